//! Stores for tests, and the suite that every store must pass.

mod contract;
mod faulty;
mod memory;

pub use contract::{contract, contract_objects};
pub use faulty::{Fault, Faulty, Operation};
pub use memory::MemoryStore;
