//! On whose behalf fetches run: residency says it when one begins, and it is remembered for what is
//! fetched again before the load has ended.

use std::sync::Arc;

use roundhouse_store::Payer;
use roundhouse_tenancy::Accounts;
use roundhouse_types::{ArtefactId, TenantName};

use super::ModelLoader;

impl ModelLoader {
    /// The same loader, which tells these accounts what fetches bring.
    pub(crate) fn with_accounts(mut self, accounts: Arc<Accounts>) -> Self {
        self.accounts = Some(accounts);
        self
    }

    /// From now on fetches of this version are charged to this tenant.
    pub(super) fn charge_to(&self, id: &ArtefactId, payer: &str) {
        let mut known = self.recall(id);
        if known.payer != payer {
            payer.clone_into(&mut known.payer);
            self.remember(id, known);
        }
    }

    /// Whom a fetch of this version is charged to.
    pub(super) fn payer(&self, id: &ArtefactId) -> Payer {
        let tenant = self.recall(id).payer;
        let meter = self.accounts.clone().map(|accounts| {
            let (name, model) = (tenant.parse::<TenantName>().ok(), id.model.clone());
            let meter = move |bytes| accounts.fetched(name.as_ref(), &model, bytes);
            Arc::new(meter) as Arc<dyn Fn(_) + Send + Sync>
        });
        Payer { tenant, meter }
    }

    /// The same for a fetch that is begun from a load, which holds a place that all tenants share: it
    /// is charged, and runs as fast as it can.
    pub(super) fn payer_unpaced(&self, id: &ArtefactId) -> Payer {
        Payer { tenant: String::new(), ..self.payer(id) }
    }
}
