//! Places that tenants share, so that one's flood leaves room for the others.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;

/// One tenant holds at most so many times as many places as are free: alone, three quarters of
/// all; the more others hold, the fewer (dynamic thresholds, as switches share their buffers:
/// Choudhury and Hahne, 1998).
const TIMES_FREE: usize = 3;

/// Counts the places that are taken, in all and by each tenant. Plain data: its owner locks it.
///
/// 1. No more are taken than there are.
/// 2. A tenant that holds none takes no memory.
#[derive(Debug)]
pub struct Places<K> {
    taken: usize,
    of_tenants: HashMap<K, usize>,
}

impl<K> Default for Places<K> {
    fn default() -> Self {
        Self { taken: 0, of_tenants: HashMap::new() }
    }
}

impl<K: Hash + Eq> Places<K> {
    /// Takes one of `all` places. False where none is free, or where the tenant holds so many that
    /// the rest is for others; whoever is nobody's tenant may have them all.
    pub fn take<Q>(&mut self, all: usize, tenant: Option<&Q>) -> bool
    where
        K: Borrow<Q> + for<'a> From<&'a Q>,
        Q: Hash + Eq + ?Sized,
    {
        if self.taken >= all {
            return false;
        }
        let Some(tenant) = tenant else {
            self.taken += 1;
            return true;
        };
        let most = (all - self.taken).saturating_mul(TIMES_FREE);
        match self.of_tenants.get_mut(tenant) {
            Some(held) if *held >= most => return false,
            Some(held) => *held += 1,
            None => drop(self.of_tenants.insert(K::from(tenant), 1)),
        }
        self.taken += 1;
        true
    }

    /// Gives one back that was taken for the same tenant.
    pub fn give<Q>(&mut self, tenant: Option<&Q>)
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.taken = self.taken.saturating_sub(1);
        let Some(tenant) = tenant else { return };
        if let Some(held) = self.of_tenants.get_mut(tenant) {
            *held -= 1;
            if *held == 0 {
                self.of_tenants.remove(tenant);
            }
        }
    }

    /// How many are taken.
    pub fn taken(&self) -> usize {
        self.taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn most(places: &mut Places<String>, tenant: Option<&str>) -> usize {
        std::iter::repeat_with(|| places.take(100, tenant)).take_while(|taken| *taken).count()
    }

    #[test]
    fn a_flood_leaves_places_for_others_and_for_others_still() {
        let mut places = Places::<String>::default();
        assert_eq!(most(&mut places, Some("a")), 75);
        assert_eq!(most(&mut places, Some("b")), 19);
        assert_eq!(most(&mut places, Some("c")), 5);
        assert_eq!(most(&mut places, Some("d")), 1);
        assert_eq!(most(&mut places, Some("e")), 0, "all are taken");
        for _ in 0..75 {
            places.give(Some("a"));
        }
        assert_eq!(places.taken(), 25);
        assert!(places.take(100, Some("e")));
        assert!(!places.of_tenants.contains_key("a"), "2");
    }

    #[test]
    fn without_tenants_all_places_are_anybodys() {
        let mut places = Places::<String>::default();
        assert_eq!(most(&mut places, None), 100);
        places.give::<str>(None);
        assert_eq!(most(&mut places, Some("a")), 1);
    }
}
