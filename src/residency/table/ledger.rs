//! Every byte of every device: what is charged, what is promised.

use std::collections::{BTreeMap, BTreeSet};

use roundhouse_types::{ArtefactId, Bytes, ContentId, DeviceId, Footprint, Part, SharedPart};

mod shares;

use self::shares::Shares;
use crate::config::tenant;

/// Names one holding for as long as somebody holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum HoldingId {
    /// Shared with nobody.
    Own(u64),
    /// Whoever holds this content holds the same.
    Content(ContentId),
}

/// A part of a model in a device's memory: the unit of account. A holding is charged once,
/// however many residents hold it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Holding {
    pub(super) id: HoldingId,
    pub(super) part: Part,
    pub(super) bytes: Bytes,
}

/// The accounts of all devices. Owned by the table.
///
/// Charges and promises are asked of it, never added up elsewhere: what a set of victims
/// frees is less than their sum where they share holdings with others.
///
/// A load counts on content that is on the account when its room is promised: it holds that
/// like a resident until it ends, so the content stays charged though all residents that
/// brought it leave. Then the memory may be gone, and there is room for it.
#[derive(Debug)]
pub(super) struct Ledger {
    accounts: BTreeMap<DeviceId, Account>,
    next_holding: u64,
}

#[derive(Debug, Default)]
struct Account {
    budget: Bytes,
    /// The largest budget that it ever had.
    most: Bytes,
    /// Always the sum over `held`.
    charged: Bytes,
    /// Always the sum over `promises`.
    reserved: Bytes,
    promises: BTreeMap<ArtefactId, Bytes>,
    held: BTreeMap<HoldingId, Held>,
    /// What residents hold.
    holders: BTreeMap<ArtefactId, Vec<HoldingId>>,
    /// What loads count on.
    counted: BTreeMap<ArtefactId, Vec<HoldingId>>,
    /// Always what `share` says of each tenant's residents, added up.
    shares: Shares,
}

#[derive(Debug)]
struct Held {
    holding: Holding,
    /// Residents that hold it and loads that count on it.
    holders: usize,
    /// The loads among them.
    counting: usize,
}

impl Account {
    /// What residents and loads of this artefact hold here.
    fn of(&self, artefact: &ArtefactId) -> impl Iterator<Item = &HoldingId> {
        let both = [self.holders.get(artefact), self.counted.get(artefact)];
        both.into_iter().flatten().flatten()
    }

    fn bytes(&self, id: &HoldingId) -> Bytes {
        self.held.get(id).map(|held| held.holding.bytes).unwrap_or_default()
    }

    /// Takes one holder off each of these and returns what that freed.
    fn let_go(&mut self, ids: Vec<HoldingId>) -> Bytes {
        let mut freed = Bytes::ZERO;
        for id in ids {
            let held = self.held.get_mut(&id).expect("what is held is on the account");
            held.holders -= 1;
            if held.holders == 0 {
                freed += held.holding.bytes;
                self.held.remove(&id);
            }
        }
        self.charged = self.charged.saturating_sub(freed);
        freed
    }

    /// What nobody but these residents holds.
    fn only_held_by<'a>(&self, leaving: impl IntoIterator<Item = &'a ArtefactId>) -> Vec<&Holding> {
        let mut leavers: BTreeMap<HoldingId, usize> = BTreeMap::new();
        for artefact in leaving {
            for id in self.holders.get(artefact).into_iter().flatten() {
                *leavers.entry(*id).or_default() += 1;
            }
        }
        let alone = leavers.iter().filter_map(|(id, leaving)| {
            let held = self.held.get(id)?;
            (held.holders == *leaving).then_some(&held.holding)
        });
        alone.collect()
    }
}

/// What comes free as more and more residents leave.
pub(super) struct Freeing<'a> {
    account: &'a Account,
    leavers: BTreeMap<HoldingId, usize>,
    bytes: Bytes,
}

impl Freeing<'_> {
    pub(super) fn bytes(&self) -> Bytes {
        self.bytes
    }

    /// One more leaves.
    pub(super) fn add(&mut self, artefact: &ArtefactId) {
        for id in self.account.holders.get(artefact).into_iter().flatten() {
            let leaving = self.leavers.entry(*id).or_default();
            *leaving += 1;
            if let Some(held) = self.account.held.get(id).filter(|held| held.holders == *leaving) {
                self.bytes += held.holding.bytes;
            }
        }
    }

    /// One of those that were added stays after all.
    pub(super) fn spare(&mut self, artefact: &ArtefactId) {
        for id in self.account.holders.get(artefact).into_iter().flatten() {
            let leaving = self.leavers.entry(*id).or_default();
            if let Some(held) = self.account.held.get(id).filter(|held| held.holders == *leaving) {
                self.bytes = self.bytes.saturating_sub(held.holding.bytes);
            }
            *leaving = leaving.saturating_sub(1);
        }
    }
}

impl Ledger {
    /// For asking what a growing set of residents frees.
    pub(super) fn freeing(&self, device: DeviceId) -> Freeing<'_> {
        Freeing { account: self.account(device), leavers: BTreeMap::new(), bytes: Bytes::ZERO }
    }

    pub(super) fn new(devices: Vec<(DeviceId, Bytes)>) -> Self {
        let open = |(id, budget)| (id, Account { budget, most: budget, ..Account::default() });
        Self { accounts: devices.into_iter().map(open).collect(), next_holding: 0 }
    }

    pub(super) fn devices(&self) -> impl Iterator<Item = DeviceId> + Clone + use<> {
        // A server has a handful of devices; a copy lets callers change accounts meanwhile.
        self.accounts.keys().copied().collect::<Vec<_>>().into_iter()
    }

    pub(super) fn budget(&self, device: DeviceId) -> Bytes {
        self.account(device).budget
    }

    /// The largest budget of any device.
    pub(super) fn largest_budget(&self) -> Bytes {
        self.accounts.values().map(|account| account.budget).max().unwrap_or_default()
    }

    /// Every device, with its budget and the largest that it ever had.
    pub(super) fn budgets(&self) -> impl Iterator<Item = (DeviceId, Bytes, Bytes)> {
        self.accounts.iter().map(|(device, account)| (*device, account.budget, account.most))
    }

    /// Changes a budget; false where there is no such device.
    pub(super) fn set_budget(&mut self, device: DeviceId, budget: Bytes) -> bool {
        let account = self.accounts.get_mut(&device);
        let change = |account: &mut Account| {
            account.budget = budget;
            account.most = account.most.max(budget);
        };
        account.map(change).is_some()
    }

    pub(super) fn charged(&self, device: DeviceId) -> Bytes {
        self.account(device).charged
    }

    pub(super) fn reserved(&self, device: DeviceId) -> Bytes {
        self.account(device).reserved
    }

    /// How many residents are charged.
    pub(super) fn residents(&self, device: DeviceId) -> usize {
        self.account(device).holders.len()
    }

    /// What may still be promised.
    pub(super) fn free(&self, device: DeviceId) -> Bytes {
        let account = self.account(device);
        account.budget.saturating_sub(account.charged + account.reserved)
    }

    /// By how much charges and promises exceed the budget: after it shrank, a load measured
    /// more than was foreseen, or a resident grew.
    pub(super) fn over(&self, device: DeviceId) -> Bytes {
        let account = self.account(device);
        (account.charged + account.reserved).saturating_sub(account.budget)
    }

    /// What is promised to one load.
    pub(super) fn promised(&self, device: DeviceId, claim: &ArtefactId) -> Bytes {
        self.account(device).promises.get(claim).copied().unwrap_or_default()
    }

    /// Adds free bytes to a load's promise.
    pub(super) fn promise(&mut self, device: DeviceId, claim: &ArtefactId, bytes: Bytes) {
        debug_assert!(
            bytes <= self.free(device),
            "invariant 1: {claim} is promised what is not free"
        );
        let account = self.account_mut(device);
        account.reserved += bytes;
        *account.promises.entry(claim.clone()).or_default() += bytes;
    }

    /// Gives back what a load was promised beyond `need`, and returns how much that is.
    pub(super) fn limit(&mut self, device: DeviceId, claim: &ArtefactId, need: Bytes) -> Bytes {
        let account = self.account_mut(device);
        let Some(bytes) = account.promises.get_mut(claim) else {
            return Bytes::ZERO;
        };
        let excess = bytes.saturating_sub(need);
        *bytes = bytes.saturating_sub(excess);
        account.reserved = account.reserved.saturating_sub(excess);
        excess
    }

    /// Ends a load's promise; its bytes are free again, and it counts on nothing any more.
    pub(super) fn withdraw(&mut self, device: DeviceId, claim: &ArtefactId) {
        let account = self.account_mut(device);
        if let Some(bytes) = account.promises.remove(claim) {
            account.reserved = account.reserved.saturating_sub(bytes);
        }
        if let Some(ids) = account.counted.remove(claim) {
            for id in &ids {
                account.held.entry(*id).and_modify(|held| held.counting -= 1);
            }
            account.let_go(ids);
        }
    }

    /// From now on a load counts on those of `parts` that are on the account, except what
    /// others count on being freed.
    pub(super) fn count_on(
        &mut self,
        device: DeviceId,
        claim: &ArtefactId,
        parts: &[SharedPart],
        except: &BTreeSet<ContentId>,
    ) {
        let account = self.account_mut(device);
        let mut counted = account.counted.remove(claim).unwrap_or_default();
        for part in parts.iter().filter(|part| !except.contains(&part.content)) {
            let id = HoldingId::Content(part.content);
            if counted.contains(&id) {
                continue;
            }
            if let Some(held) = account.held.get_mut(&id) {
                held.holders += 1;
                held.counting += 1;
                counted.push(id);
            }
        }
        if !counted.is_empty() {
            account.counted.insert(claim.clone(), counted);
        }
    }

    /// How many bytes of `parts` are on the account, without `except`.
    pub(super) fn there(
        &self,
        device: DeviceId,
        parts: &[SharedPart],
        except: &BTreeSet<ContentId>,
    ) -> Bytes {
        let account = self.account(device);
        let parts = parts.iter().filter(|part| !except.contains(&part.content));
        parts.map(|part| account.bytes(&HoldingId::Content(part.content))).sum()
    }

    /// What one more resident would be said to have of those of `parts` that are on the
    /// account: each split among the residents that hold it and that one.
    pub(super) fn split(&self, device: DeviceId, parts: &[SharedPart]) -> Bytes {
        let account = self.account(device);
        let split = parts.iter().filter_map(|part| {
            let held = account.held.get(&HoldingId::Content(part.content))?;
            let residents = held.holders - held.counting + 1;
            Some(Bytes(held.holding.bytes.0 / residents as u64))
        });
        split.sum()
    }

    /// The bytes that a load counts on.
    pub(super) fn counted(&self, device: DeviceId, claim: &ArtefactId) -> Bytes {
        let account = self.account(device);
        account.counted.get(claim).into_iter().flatten().map(|id| account.bytes(id)).sum()
    }

    /// Whether a load counts on this content.
    #[cfg(test)]
    pub(super) fn counts_on(
        &self,
        device: DeviceId,
        claim: &ArtefactId,
        content: ContentId,
    ) -> bool {
        let counted = self.account(device).counted.get(claim);
        counted.is_some_and(|ids| ids.contains(&HoldingId::Content(content)))
    }

    /// A holding per shared part, and one per part of the footprint for what is left of it.
    pub(super) fn holdings(
        &mut self,
        footprint: &Footprint,
        shared: &[SharedPart],
    ) -> Vec<Holding> {
        let mut holdings = Vec::with_capacity(4 + shared.len());
        let mut left = *footprint;
        for part in shared {
            let (id, bytes) = (HoldingId::Content(part.content), part.bytes);
            debug_assert!(bytes <= left.weights, "shared parts are parts of the weights");
            left.weights = left.weights.saturating_sub(bytes);
            holdings.push(Holding { id, part: Part::Weights, bytes });
        }
        for part in [Part::Weights, Part::Kv, Part::Workspace, Part::Host] {
            let bytes = left.part(part);
            if bytes > Bytes::ZERO {
                let id = HoldingId::Own(self.next_holding);
                self.next_holding += 1;
                holdings.push(Holding { id, part, bytes });
            }
        }
        holdings
    }

    /// Charges a resident with its holdings; one that is held already is not charged again.
    pub(super) fn charge(&mut self, device: DeviceId, holder: &ArtefactId, holdings: Vec<Holding>) {
        let account = self.account_mut(device);
        debug_assert!(!account.holders.contains_key(holder), "{holder} is charged once");
        let ids = holdings.iter().map(|holding| holding.id).collect();
        account.holders.insert(holder.clone(), ids);
        for holding in holdings {
            let bytes = holding.bytes;
            let held =
                account.held.entry(holding.id).or_insert(Held { holding, holders: 0, counting: 0 });
            if held.holders == 0 {
                account.charged += bytes;
            }
            held.holders += 1;
            account.shares.took(tenant(&holder.model), held.holding.id, held.holding.bytes);
        }
    }

    /// Takes a resident's holdings off the account and returns what that freed.
    pub(super) fn discharge(&mut self, device: DeviceId, holder: &ArtefactId) -> Bytes {
        let account = self.account_mut(device);
        let ids = account.holders.remove(holder).unwrap_or_default();
        for id in &ids {
            let bytes = account.bytes(id);
            account.shares.left(tenant(&holder.model), *id, bytes);
        }
        account.let_go(ids)
    }

    /// Charges a resident with another footprint; what it shares stays as it is.
    pub(super) fn recharge(
        &mut self,
        device: DeviceId,
        holder: &ArtefactId,
        to: &Footprint,
        shared: &[SharedPart],
    ) {
        self.discharge(device, holder);
        let holdings = self.holdings(to, shared);
        self.charge(device, holder, holdings);
    }

    /// What would be free if all of these residents left.
    pub(super) fn freed_by<'a>(
        &self,
        device: DeviceId,
        leaving: impl IntoIterator<Item = &'a ArtefactId>,
    ) -> Bytes {
        self.account(device).only_held_by(leaving).iter().map(|holding| holding.bytes).sum()
    }

    /// The content that would be gone if all of these residents left.
    pub(super) fn content_freed_by<'a>(
        &self,
        device: DeviceId,
        leaving: impl IntoIterator<Item = &'a ArtefactId>,
    ) -> impl Iterator<Item = ContentId> {
        let alone = self.account(device).only_held_by(leaving);
        alone.into_iter().filter_map(|holding| match holding.id {
            HoldingId::Content(content) => Some(content),
            HoldingId::Own(_) => None,
        })
    }

    /// What these residents and loads hold, with shared parts of one that is not there yet.
    pub(super) fn together<'a>(
        &self,
        device: DeviceId,
        holders: impl IntoIterator<Item = &'a ArtefactId>,
        parts: &[SharedPart],
    ) -> Bytes {
        let account = self.account(device);
        let ids: BTreeSet<&HoldingId> =
            holders.into_iter().flat_map(|artefact| account.of(artefact)).collect();
        let held: Bytes = ids.iter().map(|id| account.bytes(id)).sum();
        let is_new = |part: &&SharedPart| !ids.contains(&HoldingId::Content(part.content));
        held + parts.iter().filter(is_new).map(|part| part.bytes).sum()
    }

    /// The part of a resident's bytes that others hold, or loads count on, as well.
    pub(super) fn shared(&self, device: DeviceId, holder: &ArtefactId) -> Bytes {
        let account = self.account(device);
        let ids = account.holders.get(holder).into_iter().flatten();
        let held = ids.filter_map(|id| account.held.get(id)).filter(|held| held.holders > 1);
        held.map(|held| held.holding.bytes).sum()
    }

    /// A resident's bytes, those that several residents hold split among them. Loads do not
    /// count: a promise must change nobody's share, or two promises could undo each other.
    pub(super) fn share(&self, device: DeviceId, holder: &ArtefactId) -> Bytes {
        let account = self.account(device);
        let held = account.holders.get(holder).into_iter().flatten();
        let held = held.filter_map(|id| account.held.get(id));
        held.map(|held| Bytes(held.holding.bytes.0 / (held.holders - held.counting).max(1) as u64))
            .sum()
    }

    /// The same of all residents of a tenant.
    pub(super) fn tenant_share(&self, device: DeviceId, tenant: &str) -> Bytes {
        self.account(device).shares.of(tenant)
    }

    fn account(&self, device: DeviceId) -> &Account {
        self.accounts.get(&device).expect("keys name devices the table was started with")
    }

    fn account_mut(&mut self, device: DeviceId) -> &mut Account {
        self.accounts.get_mut(&device).expect("keys name devices the table was started with")
    }
}

#[cfg(test)]
mod tests;
