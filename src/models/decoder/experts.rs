//! The feed-forward blocks of a sparse layer, of which each token uses some.
//!
//! Tokens are sorted by expert, so that each expert's weights are read once in a step, for all tokens
//! that use it. What a token gets is added up in the order of the experts, whoever is beside it.

use candle_core::{Result, Tensor};

use super::weights::{Outcome, Take};
use crate::activation::{Activation, with_floats};
use crate::adapter::{ExpertSites, Groups, Site};
use crate::config::decoder::{Experts as Config, Lie};
use crate::in_place;
use crate::linear::Linear;
use crate::reader::Parameter;
use crate::simd::exp;

/// A layer's router and experts.
#[derive(Debug)]
pub(super) struct Experts<T> {
    /// `[experts, hidden]`: as it is in the files, for its sums decide which weights are used at all.
    pub(super) router: Linear<T>,
    pub(super) each: Vec<Expert<T>>,
    /// What all tokens use beside them, where there is one.
    pub(super) shared: Option<Shared<T>>,
}

/// An expert of all tokens.
#[derive(Debug)]
pub(super) struct Shared<T> {
    /// `[1, hidden]`: as it is in the files, as the router is. Its sigmoid says how much a token gets;
    /// without one, all.
    pub(super) gate: Option<Linear<T>>,
    pub(super) expert: Expert<T>,
}

#[derive(Debug)]
pub(super) struct Expert<T> {
    /// Gate and up in one.
    pub(super) up: Linear<T>,
    pub(super) down: Linear<T>,
}

impl<T> Experts<T> {
    /// Takes a layer's, in the order of the computation.
    pub(super) fn gather<E>(
        config: &Config,
        layer: &str,
        hidden: usize,
        take: &mut Take<'_, T, E>,
    ) -> Outcome<Self, E> {
        let names = config.names;
        let exact = |take: &mut Take<'_, T, E>, name: &str, (rows, biased): (usize, bool)| {
            let name = format!("{layer}.{name}");
            let matrix = Parameter::matrix(format!("{name}.weight"), rows, hidden);
            let weight = take(Parameter { exact: true, ..matrix })?;
            let bias = match biased {
                true => Some(take(Parameter::vector(format!("{name}.bias"), rows))?),
                false => None,
            };
            Ok(Linear { weight, bias })
        };
        let expert = |take: &mut Take<'_, T, E>, name: &str, width: usize| {
            let named = |module: &str| format!("{layer}.{name}.{module}");
            let each = 2 * width / names.up.len();
            let up: Vec<_> = names.up.iter().map(|module| (named(module), each)).collect();
            let transposed = config.lie == Lie::ColumnsInTurns;
            let up = Linear::gather_lying(take, &up, (hidden, transposed), config.biased)?;
            let down = [(named(names.down), hidden)];
            let down = Linear::gather_lying(take, &down, (width, transposed), config.biased)?;
            Ok(Expert { up, down })
        };
        let router = exact(take, names.router, (config.count, config.biased))?;
        let each = (0..config.count)
            .map(|index| expert(take, &format!("{}.{index}", names.experts), config.intermediate));
        let each = each.collect::<Outcome<_, E>>()?;
        let shared = match (config.shared, names.shared) {
            (Some(width), Some((name, gate))) => {
                let gate = gate.map(|gate| exact(take, gate, (1, false))).transpose()?;
                Some(Shared { gate, expert: expert(take, name, width)? })
            }
            _ => None,
        };
        Ok(Self { router, each, shared })
    }
}

impl Experts<Tensor> {
    /// What all tokens' experts make of them: `[tokens, hidden]` to the same; what adapters make of the
    /// same tokens is added at `sites`.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        config: &Config,
        activation: Activation,
        (groups, sites): (&Groups, ExpertSites),
    ) -> Result<Tensor> {
        let shape = x.dims2()?;
        let scores = self.router.forward(x, (groups, sites.router()))?;
        let routes = with_floats(&scores, |scores| routes(scores, config))?;
        drop(scores);
        let owners = groups.owners(shape.0);
        let mut out = vec![0.0; shape.0 * shape.1];
        for routes in routes.chunk_by(|a, b| a.expert == b.expert) {
            let expert = &self.each[routes[0].expert as usize];
            let rows = with_floats(x, |x| gathered(x, routes, shape.1))?;
            let rows = Tensor::from_vec(rows, (routes.len(), shape.1), x.device())?;
            let of = sites.expert(routes[0].expert as usize);
            let beside = owners.gathered(of, routes.iter().map(|route| route.token));
            let made = expert.forward(rows, (activation, config.limit), (&beside, of))?;
            with_floats(&made, |made| {
                for (route, made) in routes.iter().zip(made.chunks_exact(shape.1)) {
                    let out = &mut out[route.token as usize * shape.1..][..shape.1];
                    out.iter_mut().zip(made).for_each(|(out, made)| *out += route.weight * made);
                }
            })?;
        }
        if let Some(shared) = &self.shared {
            let sigmoid = |score: &f32| 1.0 / (1.0 + exp::<false>(-score));
            let parts: Vec<f32> = match &shared.gate {
                Some(gate) => {
                    let scores = gate.forward(x, (groups, sites.shared_gate()))?;
                    with_floats(&scores, |scores| scores.iter().map(sigmoid).collect())?
                }
                None => vec![1.0; shape.0],
            };
            let beside = (groups, sites.shared());
            let made = shared.expert.forward(x.clone(), (activation, config.limit), beside)?;
            with_floats(&made, |made| {
                let rows = out.chunks_exact_mut(shape.1).zip(made.chunks_exact(shape.1));
                for ((out, made), part) in rows.zip(&parts) {
                    out.iter_mut().zip(made).for_each(|(out, made)| *out += part * made);
                }
            })?;
        }
        Tensor::from_vec(out, shape, x.device())
    }
}

impl Expert<Tensor> {
    /// What it makes of some rows.
    fn forward(
        &self,
        rows: Tensor,
        (activation, limit): (Activation, Option<f32>),
        (groups, sites): (&Groups, [Site; 2]),
    ) -> Result<Tensor> {
        let up = self.up.forward(&rows, (groups, sites[0]))?;
        drop(rows);
        if let Some(limit) = limit {
            cut(&up, limit)?;
        }
        let activated = activation.gate(&up)?;
        drop(up);
        self.down.forward(&activated, (groups, sites[1]))
    }
}

/// Cuts gates off above `limit`, and what they multiply at plus and minus it; to which one is added.
fn cut(up: &Tensor, limit: f32) -> Result<()> {
    in_place::change(up, |numbers, width| {
        for row in numbers.chunks_exact_mut(width) {
            let (gate, up) = row.split_at_mut(width / 2);
            // What is no number stays what it is.
            gate.iter_mut().for_each(|gate| *gate = gate.clamp(f32::NEG_INFINITY, limit));
            up.iter_mut().for_each(|up| *up = up.clamp(-limit, limit) + 1.0);
        }
    })
}

/// A token that an expert computes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Route {
    pub(super) expert: u32,
    pub(super) token: u32,
    /// What its result is multiplied by.
    pub(super) weight: f32,
}

/// The routes of all tokens by their scores `[tokens, experts]`, expert after expert.
///
/// A token's weights are the softmax of its scores; the largest are kept, of equals the first. What is
/// no number is taken for the smallest: whatever a router gives, each token has its experts.
pub(super) fn routes(scores: &[f32], config: &Config) -> Vec<Route> {
    let tokens = scores.len() / config.count;
    let mut routes = Vec::with_capacity(tokens * config.used);
    let mut order: Vec<u32> = Vec::with_capacity(config.count);
    for (token, scores) in scores.chunks_exact(config.count).enumerate() {
        let score = |expert: u32| match scores[expert as usize] {
            score if score.is_nan() => f32::NEG_INFINITY,
            score => score,
        };
        order.clear();
        order.extend(0..config.count as u32);
        let larger = |a: &u32, b: &u32| score(*b).total_cmp(&score(*a)).then(a.cmp(b));
        if config.used < config.count {
            order.select_nth_unstable_by(config.used - 1, larger);
        }
        let used = &mut order[..config.used];
        used.sort_unstable_by(larger);
        let most = score(used[0]);
        let weigh = |expert: u32| exp::<false>(score(expert) - most);
        let sum: f32 = match config.normalised {
            true => used.iter().map(|expert| weigh(*expert)).sum(),
            false => (0..config.count as u32).map(weigh).sum(),
        };
        let token = token as u32;
        let route = |expert: &u32| Route { expert: *expert, token, weight: weigh(*expert) / sum };
        routes.extend(used.iter().map(route));
    }
    routes.sort_unstable_by_key(|route| (route.expert, route.token));
    routes
}

/// The rows of some routes' tokens, `[routes, width]`.
fn gathered(x: &[f32], routes: &[Route], width: usize) -> Vec<f32> {
    let mut rows = Vec::with_capacity(routes.len() * width);
    for route in routes {
        rows.extend_from_slice(&x[route.token as usize * width..][..width]);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::experts::MIXTRAL_EXPERTS;

    fn config(count: usize, used: usize, normalised: bool) -> Config {
        Config { count, used, intermediate: 8, normalised, ..Config::of(&MIXTRAL_EXPERTS) }
    }

    #[test]
    fn tokens_go_to_their_heaviest_experts_in_the_order_of_the_experts() {
        let scores = [0.0, 1.0, 3.0, 1.0, 2.0, -1.0, 2.0, 0.0];
        let found = routes(&scores, &config(4, 2, true));
        let places: Vec<(u32, u32)> = found.iter().map(|it| (it.expert, it.token)).collect();
        assert_eq!(places, [(0, 1), (1, 0), (2, 0), (2, 1)], "of equals the first");
        let share = 1.0 / (1.0 + (-2.0f32).exp());
        let want = [0.5, 1.0 - share, share, 0.5];
        for (route, want) in found.iter().zip(want) {
            assert!((route.weight - want).abs() < 1e-6, "{route:?} {want}");
        }
    }

    #[test]
    fn weights_that_are_not_normalised_are_those_of_the_softmax_over_all() {
        let scores = [0.0f32, 1.0, 3.0, 1.5];
        let sum: f32 = scores.iter().map(|score| score.exp()).sum();
        for route in routes(&scores, &config(4, 3, false)) {
            let want = scores[route.expert as usize].exp() / sum;
            assert!((route.weight - want).abs() < 1e-6, "{route:?} {want}");
        }
    }

    #[test]
    fn every_token_has_its_experts_whatever_its_scores() {
        let scores = [f32::NAN, f32::NAN, f32::NAN, f32::NAN, 1.0, f32::NAN];
        let found = routes(&scores, &config(3, 2, true));
        assert_eq!(found.len(), 4);
        assert!(found.iter().any(|route| (route.expert, route.token) == (1, 1)));
        let all = routes(&[1.0, 2.0], &config(2, 2, false));
        assert!((all.iter().map(|route| route.weight).sum::<f32>() - 1.0).abs() < 1e-6);
    }
}
