//! Who a request is from.

use std::sync::Arc;

use roundhouse_types::TenantName;

/// Who a request is from, as far as anybody asked. Cheap to clone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    /// On whose behalf; absent where nobody is asked who they are.
    pub tenant: Option<TenantName>,
    /// By which of the tenant's credentials: its id, never a secret.
    pub credential: Option<Arc<str>>,
}

impl Caller {
    /// Whoever reaches the port, where nobody is asked who they are.
    pub fn anonymous() -> Self {
        Self::default()
    }
}
