//! Output that must have a form: a JSON schema, a regular expression, one of several texts.
//!
//! Reading order: `form` (what clients ask, and how it is written for the library; `rules`: grammars
//! that clients write; `tags`: texts in which parts have a form), `vocabulary`
//! (what bytes each token stands for), `speller` (compiles forms for one tokenizer, within limits; `kept`: those asked for again),
//! `follower` (follows one sequence, on the lane).
//!
//! Forms are their senders' and not trusted: their length, the work of compiling them, the work of
//! each step and the states that they may reach are bounded, all in counted work rather than time,
//! so that the same request ends the same way on a busy machine.

mod follower;
mod form;
mod kept;
mod rules;
mod size;
mod speller;
mod tags;
#[cfg(test)]
mod tests;
mod vocabulary;

pub use form::{FormKind, OutputForm};
pub(crate) use form::{Grammar, laid_out, literal, texts_within};
pub(crate) use size::affordable;
pub(crate) use speller::{Compiled, Speller};
pub(crate) use vocabulary::unfinished;
