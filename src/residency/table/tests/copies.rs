//! What the table promises about copies in the host's memory, one sentence each.
