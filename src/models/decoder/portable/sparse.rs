//! Experts by operations of tensors. The routers' scores come to the host, which says
//! what is computed: the one place where a step waits for it.

use candle_core::{Result, Tensor};

use super::{gate, project};
use crate::activation::Activation;
use crate::config::decoder::Experts as Config;
use crate::decoder::experts::{Expert, Experts, Route, routes};

/// What all tokens' experts make of them: `[tokens, hidden]` to the same.
pub(super) fn forward(
    experts: &Experts<Tensor>,
    x: &Tensor,
    config: &Config,
    activation: Activation,
) -> Result<Tensor> {
    let device = x.device();
    let scores = project(&experts.router, x)?.flatten_all()?.to_vec1()?;
    let mut out = x.zeros_like()?;
    for routes in routes(&scores, config).chunk_by(|a, b| a.expert == b.expert) {
        let expert = &experts.each[routes[0].expert as usize];
        let tokens: Vec<u32> = routes.iter().map(|route| route.token).collect();
        let weights: Vec<f32> = routes.iter().map(|route: &Route| route.weight).collect();
        let tokens = Tensor::new(tokens, device)?;
        let weights = Tensor::from_vec(weights, (routes.len(), 1), device)?;
        let made = one(expert, &x.index_select(&tokens, 0)?, (activation, config.limit))?;
        out = out.index_add(&tokens, &made.broadcast_mul(&weights)?, 0)?;
    }
    match &experts.shared {
        Some(shared) => {
            let made = one(&shared.expert, x, (activation, config.limit))?;
            let Some(gate) = &shared.gate else { return out + made };
            out + made.broadcast_mul(&sigmoid(&project(gate, x)?)?)?
        }
        None => Ok(out),
    }
}

/// What an expert makes of some rows.
fn one(
    expert: &Expert<Tensor>,
    rows: &Tensor,
    (activation, limit): (Activation, Option<f32>),
) -> Result<Tensor> {
    let mut up = project(&expert.up, rows)?;
    if let Some(limit) = limit {
        let half = up.dim(1)? / 2;
        let gate = up.narrow(1, 0, half)?.contiguous()?.minimum(limit)?;
        let other = up.narrow(1, half, half)?.contiguous()?.clamp(-limit, limit)?;
        up = Tensor::cat(&[gate, other.affine(1.0, 1.0)?], 1)?;
    }
    let activated = gate(activation, &up)?;
    drop(up);
    project(&expert.down, &activated)
}

fn sigmoid(x: &Tensor) -> Result<Tensor> {
    (x * 0.5)?.tanh()?.affine(0.5, 0.5)
}
