//! Who is calling, what may they use, how much.
//!
//! Reading order: [`caller`] (who a request is from).

pub mod caller;

pub use caller::Caller;
