//! The requests of one endpoint, and the room that they take.

use std::collections::HashMap;
use std::sync::Arc;

use roundhouse_types::{Places, TenantName};

use crate::config::EndpointConfig;
use crate::queue::Endpoint;
use crate::spool::Ticket;
use crate::waiting::Waiting;

/// The requests of one endpoint.
#[derive(Default)]
pub(crate) struct Line {
    /// Absent: requests are left over from settings of another time, and wait for their like.
    pub(crate) endpoint: Option<Arc<Endpoint>>,
    pub(crate) waiting: Waiting,
    pub(crate) running: usize,
    pub(crate) places: Places<TenantName>,
    pub(crate) bytes: u64,
    bytes_of: HashMap<TenantName, u64>,
}

impl Line {
    /// An empty one.
    pub(crate) fn of(endpoint: Arc<Endpoint>) -> Self {
        Self { endpoint: Some(endpoint), ..Self::default() }
    }

    /// Takes a place in the queue, where there is one for the tenant.
    pub(crate) fn reserve(
        &mut self,
        config: &EndpointConfig,
        tenant: Option<&TenantName>,
        bytes: u64,
    ) -> bool {
        let free = config.queue_bytes.0.saturating_sub(self.bytes);
        // As `Places` has it: at most three times what is free.
        let held = tenant.and_then(|it| self.bytes_of.get(it)).copied().unwrap_or_default();
        let is_over = tenant.is_some() && held + bytes > free.saturating_mul(3);
        if bytes > free || is_over || !self.places.take(config.queue_requests, tenant) {
            return false;
        }
        self.hold(tenant, bytes);
        true
    }

    fn hold(&mut self, tenant: Option<&TenantName>, bytes: u64) {
        self.bytes += bytes;
        if let Some(tenant) = tenant {
            *self.bytes_of.entry(tenant.clone()).or_default() += bytes;
        }
    }

    pub(crate) fn grow(&mut self, ticket: &Ticket, bytes: u64) {
        self.hold(ticket.tenant.as_ref(), bytes);
    }

    pub(crate) fn release(&mut self, tenant: Option<&TenantName>, bytes: u64) {
        self.places.give(tenant);
        self.bytes = self.bytes.saturating_sub(bytes);
        let Some(tenant) = tenant else { return };
        if let Some(held) = self.bytes_of.get_mut(tenant) {
            *held = held.saturating_sub(bytes);
            if *held == 0 {
                self.bytes_of.remove(tenant);
            }
        }
    }
}
