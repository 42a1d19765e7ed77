//! The table by sentences, and against random worlds.

mod bench;
mod copies;
mod discards;
mod hosted;
mod hostile;
mod life;
mod policy;
mod random;
mod reports;
mod rest;
mod sentences;
mod sharing;
mod versions;
mod witness;
mod world;
