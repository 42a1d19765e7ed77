//! The table by sentences, and against random worlds.

mod arriving;
mod bench;
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
