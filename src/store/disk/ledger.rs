//! Who holds how many bytes of the disk, and who must leave.
//!
//! 1. Whole artefacts, abandoned partial fetches, promises to running fetches and what
//!    is being deleted never exceed the budget together.
//! 2. An artefact that somebody holds is not evicted.
//! 3. Nobody is evicted unless the whole set of victims makes room.
//! 4. Bytes that several artefacts hold are counted once, and freed with the last of them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use roundhouse_types::{ArtefactId, Bytes, ModelId, Version};
use tracing::{info, warn};

use super::CacheUsage;
use super::extents::Hold;
use super::held::Held;
use super::layout::Layout;
use super::manifest::Manifest;
use super::notes::Notes;
use super::recipe::Recipe;
use super::share::Abilities;
use super::standing::Standing;
use super::tenants::{DiskLimits, Lack, Wanted};
use crate::{Error, metrics};

/// How often it is shown how tenants stand while much changes.
const SHOWN_EACH: Duration = Duration::from_secs(1);

/// The table. Its lock is held for bookkeeping only, never over file work.
#[derive(Debug)]
pub(super) struct Ledger {
    pub(super) layout: Layout,
    pub(super) abilities: Abilities,
    budget: u64,
    state: Mutex<State>,
    /// Held while victims are chosen and deleted, so that their bytes are counted once.
    evicting: Mutex<()>,
    /// Notes follow what is in memory one at a time.
    pub(super) noting: Mutex<()>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// By name, so that a model's versions are found without a walk over all.
    pub(super) whole: BTreeMap<ArtefactId, Whole>,
    pub(super) partial: HashMap<ArtefactId, Partial>,
    /// Promised to running fetches.
    pub(super) promised: u64,
    /// The same by tenant.
    pub(super) promised_to: HashMap<String, u64>,
    /// What tenants are promised and may take.
    pub(super) limits: BTreeMap<String, DiskLimits>,
    /// Partial fetches that are out of the tables, still on disk.
    pub(super) leaving: u64,
    /// What whole artefacts take, those out of the tables and still on disk included.
    pub(super) standing: Standing,
    /// When it was last shown how tenants stand.
    shown_at: Option<Instant>,
    /// The versions that models are held at.
    held_at: HashMap<ModelId, Version>,
}

#[derive(Debug)]
pub(super) struct Whole {
    pub(super) held: Arc<Held>,
    pub(super) used_at: SystemTime,
    pub(super) notes: Notes,
}

#[derive(Debug)]
pub(super) struct Partial {
    pub(super) folder: PathBuf,
    pub(super) bytes: u64,
    pub(super) used_at: SystemTime,
}

/// The order in which versions leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    Old,
    Recent,
    Held,
}

/// One that leaves the disk.
#[derive(Debug)]
pub(super) struct Victim {
    pub(super) what: &'static str,
    pub(super) id: ArtefactId,
    pub(super) folder: PathBuf,
    /// What comes free with it.
    pub(super) bytes: u64,
    pub(super) is_whole: bool,
}

impl State {
    fn used(&self) -> u64 {
        let partial: u64 = self.partial.values().map(|partial| partial.bytes).sum();
        self.standing.bytes() + partial + self.promised + self.leaving
    }

    /// The whole versions of a model.
    pub(super) fn of_model(&self, model: &ModelId) -> impl Iterator<Item = &Whole> {
        // No version is before the empty one.
        let first = ArtefactId { model: model.clone(), version: Version::from_digest("") };
        let model = first.model.clone();
        let from = self.whole.range(first..);
        from.take_while(move |(id, _)| id.model == model).map(|(_, whole)| whole)
    }

    /// What would be used with so much more for a version, whose leftover it replaces.
    fn wanted(&self, id: &ArtefactId, more: u64) -> u64 {
        let own = self.partial.get(id).map_or(0, |partial| partial.bytes);
        (self.used() - own).saturating_add(more)
    }

    /// How early a whole version leaves: first what two other versions of its model were used
    /// after, last what its model is held at. So the version before the newest stays as long
    /// as other models' versions do, and can be returned to.
    pub(super) fn ranks(&self) -> HashMap<&ArtefactId, Rank> {
        let mut by_model: HashMap<&ModelId, Vec<(SystemTime, &ArtefactId)>> = HashMap::new();
        for (id, whole) in &self.whole {
            by_model.entry(&id.model).or_default().push((whole.used_at, id));
        }
        let mut ranks = HashMap::new();
        for (model, mut versions) in by_model {
            versions.sort_unstable_by(|a, b| b.cmp(a));
            for (index, (_, id)) in versions.into_iter().enumerate() {
                let is_held = self.held_at.get(model) == Some(&id.version);
                let rank = match index {
                    _ if is_held => Rank::Held,
                    0 | 1 => Rank::Recent,
                    _ => Rank::Old,
                };
                ranks.insert(id, rank);
            }
        }
        ranks
    }
}

impl Ledger {
    pub(super) fn new(layout: Layout, budget: Bytes) -> Arc<Self> {
        Arc::new(Self {
            abilities: Abilities::of(&layout.trash()),
            layout,
            budget: budget.0,
            state: Mutex::default(),
            evicting: Mutex::default(),
            noting: Mutex::default(),
        })
    }

    /// Takes over an artefact that is whole on disk.
    pub(super) fn admit(
        self: &Arc<Self>,
        (manifest, recipe): (Manifest, Option<Recipe>),
        folder: PathBuf,
        holds: Vec<Hold>,
        used_at: SystemTime,
        promised: u64,
    ) -> Arc<Held> {
        let (id, bytes) = (manifest.artefact.id.clone(), manifest.charge());
        let notes = Notes::read(&folder, &manifest);
        let overhead = manifest.overhead();
        let held = Arc::new(Held::new((manifest, recipe), folder.clone(), Arc::downgrade(self)));
        let whole = Whole { held: Arc::clone(&held), used_at, notes };
        let tenant = id.model.target.tenant().to_owned();
        let mut state = self.lock();
        state.take_promise(&id, promised);
        state.standing.add((folder, tenant), holds, bytes, overhead);
        let before = state.whole.insert(id, whole);
        self.show(&mut state);
        drop(state);
        // Two folders of one version can only come from a crash; the later one stays.
        if let Some(before) = before {
            before.held.doom();
        }
        held
    }

    /// Takes over a partial fetch that nobody goes on with now.
    pub(super) fn leave(&self, id: ArtefactId, folder: PathBuf, bytes: u64, promised: u64) {
        let mut state = self.lock();
        state.take_promise(&id, promised);
        state.partial.insert(id, Partial { folder, bytes, used_at: SystemTime::now() });
        self.show(&mut state);
    }

    /// Whether this is what is handed out of its version.
    pub(super) fn lists(&self, held: &Held) -> bool {
        let of_version = &held.manifest.artefact.id;
        self.lock().whole.get(of_version).is_some_and(|whole| whole.held.folder == held.folder)
    }

    /// Gives a promise back.
    pub(super) fn release(&self, id: &ArtefactId, promised: u64) {
        let mut state = self.lock();
        state.take_promise(id, promised);
        self.show(&mut state);
    }

    /// The artefact, if it is whole; marks it as used now. True when its last use was
    /// long enough ago to be written down.
    pub(super) fn get(&self, id: &ArtefactId) -> Option<(Arc<Held>, bool)> {
        let mut state = self.lock();
        let whole = state.whole.get_mut(id)?;
        let now = SystemTime::now();
        let since = now.duration_since(whole.used_at).unwrap_or_default();
        whole.used_at = now;
        Some((Arc::clone(&whole.held), since.as_secs() >= 60))
    }

    /// Every version of a model that is whole, and when it was last used.
    pub(super) fn versions(&self, model: &ModelId) -> Vec<(Arc<Held>, SystemTime)> {
        let state = self.lock();
        let of_model = state.of_model(model);
        of_model.map(|whole| (Arc::clone(&whole.held), whole.used_at)).collect()
    }

    /// Every model that has a version on disk, or part of one.
    pub(super) fn models(&self) -> HashSet<ModelId> {
        let state = self.lock();
        let ids = state.whole.keys().chain(state.partial.keys());
        ids.map(|id| id.model.clone()).collect()
    }

    /// Every version of a model of which an abandoned fetch left something, and how much.
    pub(super) fn partials(&self, model: &ModelId) -> Vec<(ArtefactId, u64)> {
        let state = self.lock();
        let of_model = state.partial.iter().filter(|(id, _)| id.model == *model);
        of_model.map(|(id, partial)| (id.clone(), partial.bytes)).collect()
    }

    /// Takes in that a model is held at a version, or at none any more.
    pub(super) fn hold_at(&self, model: &ModelId, version: Option<Version>) {
        let held_at = &mut self.lock().held_at;
        match version {
            Some(version) => held_at.insert(model.clone(), version),
            None => held_at.remove(model),
        };
    }

    /// Promises room to a fetch that has `had` already, evicting if need be. What an
    /// abandoned fetch of the same version left is taken over. Blocks.
    pub(super) fn promise(&self, id: &ArtefactId, had: u64, more: u64) -> Result<(), Error> {
        if had.saturating_add(more) > self.budget {
            return Err(Error::TooLarge {
                model: id.model.to_string(),
                needed: Bytes(had.saturating_add(more)),
                budget: Bytes(self.budget),
            });
        }
        let tenant = id.model.target.tenant();
        if let Some(ceiling) = self.lock().ceiling(tenant)
            && had.saturating_add(more) > ceiling.0
        {
            let (model, needed) = (id.model.to_string(), Bytes(had.saturating_add(more)));
            let tenant = tenant.to_owned();
            return Err(Error::AboveDiskCeiling { model, tenant, needed, ceiling });
        }
        let _turn = self.no_evictions();
        let victims = {
            let mut state = self.lock();
            let short = state.wanted(id, more).saturating_sub(self.budget);
            let of_own = state.above_ceiling(id, more);
            let wanted = Wanted { short, by: Some(id), of_own, floors: true };
            state.take_victims(wanted).map_err(|lack| self.lacking(&state, id, more, lack))?
        };
        // Their bytes are gone before they are promised to somebody else.
        self.delete(victims);
        let mut state = self.lock();
        if state.wanted(id, more) > self.budget {
            return Err(self.lacking(&state, id, more, Lack::Idle));
        }
        if state.above_ceiling(id, more) > 0 {
            return Err(self.lacking(&state, id, more, Lack::Ceiling));
        }
        state.partial.remove(id);
        state.promise(id, more);
        self.show_by_and_by(&mut state);
        Ok(())
    }

    fn lacking(&self, state: &State, id: &ArtefactId, more: u64, lack: Lack) -> Error {
        let (model, needed) = (id.model.to_string(), Bytes(more));
        let tenant = id.model.target.tenant().to_owned();
        match lack {
            Lack::Idle => Error::DiskBusy { model, needed, held: Bytes(state.wanted(id, 0)) },
            Lack::Floors => Error::DiskPromised { model, needed },
            Lack::Ceiling => Error::DiskCeilingBusy { model, tenant, needed },
        }
    }

    /// Evicts idle artefacts of about this many bytes: the file system is fuller than
    /// our own sum says. Blocks.
    pub(super) fn relieve(&self, id: &ArtefactId, bytes: u64) {
        let _turn = self.evicting.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = Wanted { short: bytes, by: Some(id), of_own: 0, floors: true };
        let victims = self.lock().take_victims(wanted).unwrap_or_default();
        self.delete(victims);
    }

    /// Evicts what is above the budget after it was made smaller. Blocks.
    pub(super) fn shrink(&self) {
        let _turn = self.evicting.lock().unwrap_or_else(PoisonError::into_inner);
        let victims = {
            let mut state = self.lock();
            let over = state.used().saturating_sub(self.budget);
            // It is the operator who wants less: that goes before what was promised.
            let wanted = Wanted { short: over, by: None, of_own: 0, floors: false };
            state.take_victims(wanted).unwrap_or_default()
        };
        self.delete(victims);
        self.show(&mut self.lock());
    }

    /// Takes a version out of sight. Its files go when nobody holds it any more.
    pub(super) fn purge(&self, id: &ArtefactId) -> Option<Arc<Held>> {
        let whole = self.lock().whole.remove(id)?;
        whole.held.doom();
        Some(whole.held)
    }

    /// Takes what an abandoned fetch left out of the table.
    pub(super) fn purge_partial(&self, id: &ArtefactId) -> Result<(), Error> {
        let partial = {
            let mut state = self.lock();
            let partial = state.partial.remove(id);
            state.leaving += partial.as_ref().map_or(0, |partial| partial.bytes);
            partial
        };
        partial.map_or(Ok(()), |partial| self.delete_partial(&partial.folder, partial.bytes))
    }

    pub(super) fn usage(&self) -> CacheUsage {
        let state = self.lock();
        let partial: u64 = state.partial.values().map(|partial| partial.bytes).sum();
        CacheUsage {
            budget: Bytes(self.budget),
            used: Bytes(state.used()),
            partial: Bytes(partial + state.promised),
            shared: Bytes(state.standing.shared()),
            artefacts: state.whole.len(),
        }
    }

    /// What the removal of an artefact would free now.
    pub(super) fn frees(&self, folder: &Path) -> u64 {
        let mut state = self.lock();
        let bytes = state.standing.let_go(folder);
        state.standing.take_back(folder);
        bytes
    }

    /// Every other artefact that is whole.
    pub(super) fn others(&self, but: &Held) -> Vec<Arc<Held>> {
        let state = self.lock();
        let others = state.whole.values().filter(|whole| whole.held.folder != but.folder);
        others.map(|whole| Arc::clone(&whole.held)).collect()
    }

    /// Keeps what is on disk from being evicted while the guard lives.
    pub(super) fn no_evictions(&self) -> MutexGuard<'_, ()> {
        self.evicting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what an artefact holds as well.
    pub(super) fn also_holds(&self, folder: &Path, more: Vec<Hold>) {
        self.lock().standing.also(folder, more);
    }

    /// Takes in what an artefact holds instead of what it held before.
    pub(super) fn now_holds(&self, folder: &Path, holds: Vec<Hold>) {
        let mut state = self.lock();
        state.standing.replace(folder, holds);
        self.show(&mut state);
    }

    /// Gives back what a crash kept: of files that are kept for others' sake, what nobody
    /// borrows, and what is borrowed already. Blocks.
    pub(super) fn settle(&self) {
        let gaps = self.lock().standing.gaps();
        for (path, gaps) in gaps {
            if let Err(error) = super::standing::give_back(&path, &gaps) {
                warn!(%error, file = %path.display(), "unused bytes of a file could not be given back");
            }
        }
    }

    pub(super) fn delete(&self, victims: Vec<Victim>) {
        for victim in victims {
            metrics::evicted(victim.what);
            info!(artefact = %victim.id, what = victim.what, bytes = %Bytes(victim.bytes), "evicted from disk");
            if victim.is_whole {
                self.delete_logged(&victim.folder);
            } else if let Err(error) = self.delete_partial(&victim.folder, victim.bytes) {
                warn!(error = %error, "an evicted fetch could not be deleted");
            }
        }
    }

    pub(super) fn delete_logged(&self, folder: &Path) {
        if let Err(error) = self.delete_whole(folder) {
            warn!(error = %error, "an artefact could not be deleted");
        }
    }

    /// Deletes an artefact and gives back what nobody else holds of its files. What cannot be
    /// deleted stays charged.
    fn delete_whole(&self, folder: &Path) -> Result<(), Error> {
        let holds = self.lock().standing.of(folder);
        let kept = match self.layout.take_away(folder)? {
            Some(trash) => {
                let kept = super::standing::keep_open(&trash, &holds);
                super::layout::remove_tree(&trash)?;
                kept
            }
            None => Vec::new(),
        };
        let freed = {
            let mut state = self.lock();
            let freed = state.standing.remove(folder);
            self.show(&mut state);
            freed
        };
        super::standing::trim(kept, &freed);
        Ok(())
    }

    /// Deletes a partial fetch and its charge. What cannot be deleted stays charged.
    fn delete_partial(&self, folder: &Path, bytes: u64) -> Result<(), Error> {
        self.layout.remove(folder)?;
        let mut state = self.lock();
        state.leaving -= bytes;
        self.show(&mut state);
        Ok(())
    }

    /// Shows how the disk and its tenants stand.
    pub(super) fn show(&self, state: &mut State) {
        self.show_disk(state);
        self.show_tenants(state);
    }

    /// The same for what comes many times in a fetch, as the files of an archive do: tenants, whose
    /// sums are long, are shown once a second, and at the fetch's end by what ends it.
    fn show_by_and_by(&self, state: &mut State) {
        self.show_disk(state);
        if state.shown_at.is_none_or(|at| at.elapsed() >= SHOWN_EACH) {
            self.show_tenants(state);
        }
    }

    fn show_disk(&self, state: &State) {
        debug_assert!(state.promised == 0 || state.used() <= self.budget, "invariant 1");
        metrics::disk(self.budget, state.used());
    }

    fn show_tenants(&self, state: &mut State) {
        state.shown_at = Some(Instant::now());
        for found in state.tenants() {
            metrics::tenant_disk(&found.tenant, found.bytes.0);
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs file work without holding up a thread that runs async code.
pub(super) fn off_thread(work: impl FnOnce() + Send + 'static) {
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn_blocking(work)),
        Err(_) => work(),
    }
}
