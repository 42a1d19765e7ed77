//! What a store holds under a name, without asking whether it is settled.

use std::pin::pin;
use std::sync::Arc;

use futures_util::future::{Either, join_all, select};
use roundhouse_types::TargetName;
use tokio::time::timeout;

use super::reads::Heads;
use super::siblings::Sibling;
use super::targets::{Finder, Target};
use super::{Inner, Mount};
use crate::remote::Remote;
use crate::{ArchiveKind, Artefact, Error, ListRequest, ObjectMeta};

/// The most that a listing may ask for in one page.
const PAGE: usize = 1000;

/// What has a name: as an object, and as a folder.
type Listed = (Result<ObjectMeta, Error>, Result<Vec<ObjectMeta>, Error>);

/// What a target's name stands for right now.
pub(super) struct Found {
    pub(super) artefact: Artefact,
    /// Several objects, or one that can be seen half-written.
    pub(super) may_be_partial: bool,
}

impl Inner {
    /// What has the target's name: an object, or else a folder.
    pub(super) async fn find(
        &self,
        mount: &Mount,
        target: &TargetName,
        key: &str,
    ) -> Result<Option<Found>, Error> {
        let remote = &mount.remote;
        let archive = ArchiveKind::of(key);
        let (head, folder) = if archive.is_some() {
            let head = remote.head(key).await;
            let folder = match &head {
                Err(_) => self.folder(remote, target, key).await,
                Ok(_) => Ok(Vec::new()),
            };
            (head, folder)
        } else {
            self.listed(mount, target, key).await
        };
        let object = match head {
            Ok(meta) => Some(meta),
            Err(Error::ObjectNotFound { .. }) => None,
            // Without permission to list, S3 denies what is not there.
            Err(Error::AccessDenied { .. }) if folder.as_ref().is_ok_and(|f| !f.is_empty()) => None,
            Err(error) => return Err(error),
        };
        // An empty object beside a folder of its name is a marker that a tool left.
        let object = object.filter(|o| o.size > 0 || folder.as_ref().is_ok_and(Vec::is_empty));
        if let Some(object) = object {
            let base = key.rsplit_once('/').map_or("", |(folder, _)| &key[..=folder.len()]);
            let artefact = Artefact::new(self.model(target), base, &[object], archive)?;
            let may_be_partial = !remote.store.writes_are_atomic();
            return Ok(Some(Found { artefact, may_be_partial }));
        }
        let objects = folder?;
        if objects.is_empty() {
            return Ok(None);
        }
        let artefact = Artefact::new(self.model(target), &format!("{key}/"), &objects, None)?;
        Ok(Some(Found { artefact, may_be_partial: true }))
    }

    /// What has the name as an object and as a folder. Meanwhile, what a target that nothing is known
    /// of has if it is like its siblings is asked for; that is waited for only if it is.
    async fn listed(&self, mount: &Mount, target: &TargetName, key: &str) -> Listed {
        let remote = &mount.remote;
        let listed =
            pin!(async { futures_util::join!(remote.head(key), self.folder(remote, target, key)) });
        let Some(sibling) = self.sibling(mount, target, key).await else { return listed.await };
        let guesses = sibling.files.iter().map(|(path, size)| {
            mount.heads.guess(remote, format!("{key}/{path}"), Heads::guessed(*size))
        });
        let guess = pin!(timeout(self.config.retry.stall, join_all(guesses)));
        let (listed, guess) = match select(listed, guess).await {
            Either::Left((listed, guess)) => (listed, Some(guess)),
            Either::Right((_, listed)) => (listed.await, None),
        };
        let found = listed.1.as_deref().unwrap_or_default();
        let is_right = |(path, size): &(String, u64)| {
            let is_it = |object: &&ObjectMeta| {
                object.key.strip_prefix(key).and_then(|rest| rest.strip_prefix('/')) == Some(path)
            };
            found.iter().find(is_it).is_some_and(|object| object.size <= Heads::guessed(*size))
        };
        if !sibling.files.iter().all(is_right) {
            sibling.missed();
        } else if let Some(guess) = guess {
            // What it did not bring in time is read as if nothing had been guessed.
            let _ = guess.await;
        }
        listed
    }

    /// What a target is likely to be made of. Nothing is guessed of what is known, or is being written
    /// and looked at again and again.
    async fn sibling(&self, mount: &Mount, target: &TargetName, key: &str) -> Option<Arc<Sibling>> {
        let sibling = mount.siblings.like(key).await?;
        let is_seen = self.sightings.get(target).await.is_some();
        (!is_seen && self.known(target).await.is_none()).then_some(sibling)
    }

    /// All files below a folder, without the markers that tools leave for folders.
    async fn folder(
        &self,
        remote: &Remote,
        target: &TargetName,
        key: &str,
    ) -> Result<Vec<ObjectMeta>, Error> {
        let limit = self.config.max_files;
        let (mut objects, more) = objects_below(remote, format!("{key}/"), limit).await?;
        if more {
            return Err(Error::Invalid {
                model: self.model(target).to_string(),
                why: format!("it has more than {limit} files"),
            });
        }
        objects.retain(|object| !object.key.ends_with('/'));
        Ok(objects)
    }
}

/// The objects below a prefix, at most `limit`, and whether there are more.
pub(super) async fn objects_below(
    remote: &Remote,
    prefix: String,
    limit: usize,
) -> Result<(Vec<ObjectMeta>, bool), Error> {
    let mut objects = Vec::new();
    let mut request = ListRequest { prefix, token: None, limit: PAGE };
    loop {
        let page = remote.list(&request).await?;
        objects.extend(page.objects);
        if objects.len() > limit || (objects.len() == limit && page.next.is_some()) {
            objects.truncate(limit);
            return Ok((objects, true));
        }
        match page.next {
            None => return Ok((objects, false)),
            token => request.token = token,
        }
    }
}

/// The targets of a mount among its first `limit` objects, and whether it has more of them. Of the
/// objects no more than a page is held.
pub(super) async fn targets_in(mount: &Mount, limit: usize) -> Result<(Vec<Target>, bool), Error> {
    let mut finder = Finder::default();
    let mut request = ListRequest { prefix: String::new(), token: None, limit: PAGE };
    let mut left = limit;
    loop {
        let page = mount.remote.list(&request).await?;
        page.objects.iter().take(left).for_each(|object| finder.add(object));
        let more = page.objects.len() > left || (page.objects.len() == left && page.next.is_some());
        left = left.saturating_sub(page.objects.len());
        match page.next {
            _ if more => return Ok((finder.finish(mount.name.as_deref()), true)),
            None => return Ok((finder.finish(mount.name.as_deref()), false)),
            token => request.token = token,
        }
    }
}
