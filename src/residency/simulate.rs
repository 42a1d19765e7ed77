//! Replays arrivals against the table, and against plain models of caching.

pub mod reference;
