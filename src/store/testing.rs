//! Stores for tests, and the suite that every store must pass.

mod contract;
mod faulty;
mod memory;
mod writes;

pub use contract::{contract, contract_objects};
pub use faulty::{Fault, Faulty, Operation};
pub use memory::MemoryStore;
pub use writes::{FaultyWrites, contract_of_writes};
