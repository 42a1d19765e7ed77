//! The table by sentences, and against random worlds.

mod random;
mod rest;
mod sentences;
mod witness;
mod world;
