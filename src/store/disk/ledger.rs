//! Who holds how many bytes of the disk, and who must leave.
//!
//! 1. Whole artefacts, abandoned partial fetches, promises to running fetches and what
//!    is being deleted never exceed the budget together.
//! 2. An artefact that somebody holds is not evicted.
//! 3. Nobody is evicted unless the whole set of victims makes room.
//! 4. Bytes that several artefacts hold are counted once, and freed with the last of them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use roundhouse_types::{ArtefactId, Bytes, ModelId, Version};
use tracing::{info, warn};

use super::CacheUsage;
use super::extents::Hold;
use super::held::Held;
use super::layout::{Layout, NAMED};
use super::manifest::Manifest;
use super::recipe::Recipe;
use super::share::Abilities;
use super::standing::Standing;
use crate::{Error, metrics};

/// The table. Its lock is held for bookkeeping only, never over file work.
#[derive(Debug)]
pub(super) struct Ledger {
    pub(super) layout: Layout,
    pub(super) abilities: Abilities,
    budget: u64,
    state: Mutex<State>,
    /// Held while victims are chosen and deleted, so that their bytes are counted once.
    evicting: Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    whole: HashMap<ArtefactId, Whole>,
    partial: HashMap<ArtefactId, Partial>,
    /// Promised to running fetches.
    promised: u64,
    /// Partial fetches that are out of the tables, still on disk.
    leaving: u64,
    /// What whole artefacts take, those out of the tables and still on disk included.
    standing: Standing,
    /// The versions that models are held at.
    held_at: HashMap<ModelId, Version>,
}

#[derive(Debug)]
struct Whole {
    held: Arc<Held>,
    used_at: SystemTime,
    /// When it was fetched, or the store came back to it later.
    named_at: SystemTime,
}

#[derive(Debug)]
struct Partial {
    folder: PathBuf,
    bytes: u64,
    used_at: SystemTime,
}

/// The order in which versions leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Old,
    Recent,
    Held,
}

struct Victim {
    what: &'static str,
    id: ArtefactId,
    folder: PathBuf,
    bytes: u64,
    is_whole: bool,
}

impl State {
    fn used(&self) -> u64 {
        let partial: u64 = self.partial.values().map(|partial| partial.bytes).sum();
        self.standing.bytes() + partial + self.promised + self.leaving
    }

    /// What would be used with so much more for a version, whose leftover it replaces.
    fn wanted(&self, id: &ArtefactId, more: u64) -> u64 {
        let own = self.partial.get(id).map_or(0, |partial| partial.bytes);
        (self.used() - own).saturating_add(more)
    }

    /// How early a whole version leaves: first what two other versions of its model were used
    /// after, last what its model is held at. So the version before the newest stays as long
    /// as other models' versions do, and can be returned to.
    fn ranks(&self) -> HashMap<&ArtefactId, Rank> {
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

    /// Takes the least recently used of the lowest rank out of the tables until `short` bytes
    /// are found; takes none if there are not as many.
    fn take_victims(&mut self, short: u64, but: &ArtefactId) -> Option<Vec<Victim>> {
        if short == 0 {
            return Some(Vec::new());
        }
        let ranks = self.ranks();
        let rank = |id| ranks.get(id).copied().unwrap_or(Rank::Recent);
        let idle = self.whole.iter().filter(|(_, w)| Arc::strong_count(&w.held) == 1);
        let partial = self.partial.iter();
        let mut candidates: Vec<_> = idle
            .map(|(id, w)| ((rank(id), w.used_at), w.held.bytes, id.clone(), true))
            .chain(partial.map(|(id, p)| ((Rank::Recent, p.used_at), p.bytes, id.clone(), false)))
            .filter(|(_, _, id, _)| id != but)
            .collect();
        candidates.sort_unstable_by(|a, b| (a.0, &a.2).cmp(&(b.0, &b.2)));
        let mut victims = Vec::new();
        let mut found = 0;
        for (_, bytes, id, is_whole) in candidates {
            if found >= short {
                break;
            }
            let (what, folder, bytes) = match is_whole {
                true => {
                    let Some(folder) = self.whole.get(&id).map(|w| w.held.folder.clone()) else {
                        continue;
                    };
                    // What it shares with victims before it is freed with it.
                    let bytes = self.standing.let_go(&folder);
                    ("artefact", folder, bytes)
                }
                false => {
                    let Some(partial) = self.partial.get(&id) else { continue };
                    ("partial", partial.folder.clone(), bytes)
                }
            };
            found += bytes;
            victims.push(Victim { what, id, folder, bytes, is_whole });
        }
        for victim in victims.iter().filter(|victim| victim.is_whole) {
            // Until it is deleted.
            self.standing.take_back(&victim.folder);
        }
        if found < short {
            return None;
        }
        for victim in &victims {
            if victim.is_whole {
                self.whole.remove(&victim.id);
            } else {
                self.partial.remove(&victim.id);
                self.leaving += victim.bytes;
            }
        }
        Some(victims)
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
        let named_again = std::fs::metadata(folder.join(NAMED)).and_then(|it| it.modified());
        let named_at = named_again.map_or(manifest.fetched_at, |at| at.max(manifest.fetched_at));
        let overhead = manifest.overhead();
        let held = Arc::new(Held::new((manifest, recipe), folder.clone(), Arc::downgrade(self)));
        let whole = Whole { held: Arc::clone(&held), used_at, named_at };
        let mut state = self.lock();
        state.promised -= promised;
        state.standing.add(folder, holds, bytes, overhead);
        let before = state.whole.insert(id, whole);
        self.show(&state);
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
        state.promised -= promised;
        state.partial.insert(id, Partial { folder, bytes, used_at: SystemTime::now() });
        self.show(&state);
    }

    /// Whether this is what is handed out of its version.
    pub(super) fn lists(&self, held: &Held) -> bool {
        let of_version = &held.manifest.artefact.id;
        self.lock().whole.get(of_version).is_some_and(|whole| whole.held.folder == held.folder)
    }

    /// Gives a promise back.
    pub(super) fn release(&self, promised: u64) {
        let mut state = self.lock();
        state.promised -= promised;
        self.show(&state);
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

    /// The store names this version. Where that is news, because another one came later, says
    /// where to note it, and the time.
    pub(super) fn name(&self, id: &ArtefactId) -> Option<(PathBuf, SystemTime)> {
        if self.latest(&id.model)?.manifest.artefact.id == *id {
            return None;
        }
        let mut state = self.lock();
        let whole = state.whole.get_mut(id)?;
        whole.named_at = SystemTime::now();
        Some((whole.held.folder.join(NAMED), whole.named_at))
    }

    /// The version of a model that was fetched last, or that the store came back to since.
    pub(super) fn latest(&self, model: &ModelId) -> Option<Arc<Held>> {
        let state = self.lock();
        let of_model = state.whole.values().filter(|w| w.held.manifest.artefact.id.model == *model);
        let newest = of_model.max_by_key(|whole| whole.named_at)?;
        Some(Arc::clone(&newest.held))
    }

    /// Every version of a model that is whole, and when it was last used.
    pub(super) fn versions(&self, model: &ModelId) -> Vec<(Arc<Held>, SystemTime)> {
        let state = self.lock();
        let of_model = state.whole.iter().filter(|(id, _)| id.model == *model);
        of_model.map(|(_, whole)| (Arc::clone(&whole.held), whole.used_at)).collect()
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
        let _turn = self.evicting.lock().unwrap_or_else(PoisonError::into_inner);
        let victims = {
            let mut state = self.lock();
            let short = state.wanted(id, more).saturating_sub(self.budget);
            state.take_victims(short, id).ok_or_else(|| self.busy(&state, id, more))?
        };
        // Their bytes are gone before they are promised to somebody else.
        self.delete(victims);
        let mut state = self.lock();
        if state.wanted(id, more) > self.budget {
            return Err(self.busy(&state, id, more));
        }
        state.partial.remove(id);
        state.promised += more;
        self.show(&state);
        Ok(())
    }

    fn busy(&self, state: &State, id: &ArtefactId, more: u64) -> Error {
        Error::DiskBusy {
            model: id.model.to_string(),
            needed: Bytes(more),
            held: Bytes(state.wanted(id, 0)),
        }
    }

    /// Evicts idle artefacts of about this many bytes: the file system is fuller than
    /// our own sum says. Blocks.
    pub(super) fn relieve(&self, id: &ArtefactId, bytes: u64) {
        let _turn = self.evicting.lock().unwrap_or_else(PoisonError::into_inner);
        let victims = self.lock().take_victims(bytes, id).unwrap_or_default();
        self.delete(victims);
    }

    /// Evicts what is above the budget after it was made smaller. Blocks.
    pub(super) fn shrink(&self) {
        let _turn = self.evicting.lock().unwrap_or_else(PoisonError::into_inner);
        let victims = {
            let mut state = self.lock();
            let over = state.used().saturating_sub(self.budget);
            let nobody = ArtefactId {
                model: ModelId {
                    endpoint: "none".parse().expect("a constant name"),
                    target: "none".parse().expect("a constant name"),
                },
                version: roundhouse_types::Version::from_digest(""),
            };
            state.take_victims(over, &nobody).unwrap_or_default()
        };
        self.delete(victims);
        self.show(&self.lock());
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
        self.show(&state);
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

    fn delete(&self, victims: Vec<Victim>) {
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
            self.show(&state);
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
        self.show(&state);
        Ok(())
    }

    fn show(&self, state: &State) {
        debug_assert!(state.promised == 0 || state.used() <= self.budget, "invariant 1");
        metrics::disk(self.budget, state.used());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
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
