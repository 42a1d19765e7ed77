//! Experts by operations of tensors. The routers' scores come to the host, which says
//! what is computed: the one place where a step waits for it.

use candle_core::{Result, Tensor};

use super::{gate, project};
use crate::activation::Activation;
use crate::config::decoder::Experts as Config;
use crate::decoder::experts::{Experts, Route, routes};

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
        let up = project(&expert.up, &x.index_select(&tokens, 0)?)?;
        let activated = gate(activation, &up)?;
        drop(up);
        let made = project(&expert.down, &activated)?.broadcast_mul(&weights)?;
        out = out.index_add(&tokens, &made, 0)?;
    }
    Ok(out)
}
