//! Who is calling, what may they use, how much.
//!
//! Reading order: [`caller`] (who a request is from), [`places`] (what tenants share).

pub mod caller;
pub mod places;

pub use caller::Caller;
pub use places::Places;
