//! What the owner of a KV pool that grows and shrinks, and the ledger that it is charged to, tell each
//! other.
//!
//! Both say sums that only ever grow, and the latest word holds. So messages may be merged or
//! overtake each other, and what the ledger charges is never less than what the pool holds: it is the
//! pool's floor and what the ledger granted less what it heard was given back, and the pool holds its
//! floor and what it heard was granted less what it gave back.

use crate::Bytes;

/// What a pool says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KvReport {
    /// It grows and shrinks by whole multiples of this.
    pub chunk: Bytes,
    /// What it would like to have been granted in total, so far.
    pub wanted: Bytes,
    /// What it has given back in total: the memory is free.
    pub returned: Bytes,
    /// The latest order that it has carried out.
    pub obeyed: u64,
}

/// What the ledger says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KvOrder {
    /// What it has granted in total.
    pub granted: Bytes,
    /// Whether the room is needed: chunks beyond the floor go back as soon as no sequence uses them.
    pub tight: bool,
    /// Counts the orders to this pool.
    pub number: u64,
}
