//! The table by sentences, and against random worlds.

mod adapters;
mod arriving;
mod bandwidth;
mod bases;
mod bench;
mod copies;
mod devices;
mod discards;
mod elastic;
mod hosted;
mod hostile;
mod interplay;
mod life;
mod places;
mod policy;
mod pools;
mod random;
mod replicas;
mod reports;
mod rest;
mod sentences;
mod sharing;
mod versions;
mod wishes;
mod witness;
mod world;
