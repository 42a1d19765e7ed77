//! A container's places as tenants share them: who floods it leaves room for the others.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::{Stream, StreamExt};
use roundhouse_types::{Places, TenantName};

use crate::{Error, metrics};

/// The places of one container. Shared by the requests in them, whose ends give them back.
#[derive(Debug)]
pub struct TenantPlaces {
    container: Arc<str>,
    most: usize,
    /// Held for a look-up and an addition.
    places: Mutex<Places<TenantName>>,
}

/// One request's place. Dropping it makes room for the next.
#[derive(Debug)]
pub struct Share {
    of: Arc<TenantPlaces>,
    tenant: Option<TenantName>,
}

impl TenantPlaces {
    /// So many places of a container.
    pub fn new(container: impl Into<Arc<str>>, most: usize) -> Arc<Self> {
        Arc::new(Self { container: container.into(), most, places: Mutex::default() })
    }

    /// A place for a tenant's request. Of tenants that are known none may have all.
    ///
    /// # Errors
    /// `Full` where none is free, and `Shared` where the rest is for other tenants.
    pub fn take(self: &Arc<Self>, tenant: Option<TenantName>) -> Result<Share, Error> {
        let mut places = self.places();
        if places.take(self.most, tenant.as_ref()) {
            drop(places);
            return Ok(Share { of: Arc::clone(self), tenant });
        }
        let taken = places.taken();
        drop(places);
        metrics::request(&self.container, "full");
        let (container, limit) = (Arc::clone(&self.container), self.most);
        Err(match taken < limit {
            true => Error::Shared { container, taken, limit },
            false => Error::Full { container, limit },
        })
    }

    fn places(&self) -> MutexGuard<'_, Places<TenantName>> {
        // Plain counts.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    /// The same pieces; the place is given back at their end, or when nobody wants more.
    pub fn until_end<S: Stream<Item: Send> + Send + 'static>(
        self,
        pieces: S,
    ) -> impl Stream<Item = S::Item> + Send + use<S> {
        let mut share = Some(self);
        // The end itself, so that who has read everything may ask again at once.
        let pieces = pieces.map(Some).chain(futures_util::stream::iter([None]));
        pieces.filter_map(move |piece| {
            if piece.is_none() {
                drop(share.take());
            }
            std::future::ready(piece)
        })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.places().give(self.tenant.as_ref());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> Option<TenantName> {
        Some(name.parse().unwrap())
    }

    #[tokio::test]
    async fn a_tenants_flood_at_a_container_leaves_places_for_another() {
        let places = TenantPlaces::new("e/c", 8);
        let flood: Vec<Share> = std::iter::from_fn(|| places.take(tenant("a")).ok()).collect();
        assert_eq!(flood.len(), 6);
        let refused = places.take(tenant("a")).unwrap_err();
        assert!(matches!(refused, Error::Shared { taken: 6, limit: 8, .. }), "{refused}");
        let other = places.take(tenant("b")).unwrap();
        // One that is read to its end has its place back before it is dropped.
        let mut read = Box::pin(other.until_end(futures_util::stream::iter([1, 2])));
        assert_eq!((read.next().await, read.next().await), (Some(1), Some(2)));
        assert_eq!(places.places().taken(), 7);
        assert_eq!(read.next().await, None);
        assert_eq!(places.places().taken(), 6);
        drop(flood);
        assert_eq!(places.places().taken(), 0);
    }
}
