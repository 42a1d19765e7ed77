//! What the tokens of one sequence must spell, decided by somebody who knows text.

/// Says token by token what may come next. It belongs to one sequence and is asked once per
/// sampled token, on the lane's thread: what it computes there is time of all sequences that
/// share the step, so an implementation bounds its work and refuses what takes more.
///
/// It follows the sampled tokens alone. A sequence that is pre-empted and computed again is not
/// sampled again, so its constraint notices nothing.
pub trait Constraint: Send + std::fmt::Debug {
    /// What may come next.
    ///
    /// # Errors
    /// [`Unmet`] where finding out takes more work than it allows itself, or nothing may follow.
    fn allowed(&mut self) -> Result<Allowed<'_>, Unmet>;

    /// Takes the token that was chosen among the allowed ones. Tokens that end the sequence are
    /// not shown to it.
    ///
    /// # Errors
    /// [`Unmet`] where the token is none of them, or following it takes too much work.
    fn accept(&mut self, token: u32) -> Result<Progress, Unmet>;
}

/// The tokens that may come next.
#[derive(Debug, Clone, Copy)]
pub struct Allowed<'a> {
    /// One bit per token, the lowest of the first word for token 0; tokens past the end may not
    /// come. Tokens that end a sequence need no bit.
    pub tokens: &'a [u32],
    /// Whether the sequence may end here.
    pub may_end: bool,
}

/// Where a constraint stands after a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// More may follow.
    Open,
    /// Nothing may follow: the sequence ends with this token.
    Complete,
}

/// A constraint that cannot be followed any further; says why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unmet(pub String);
