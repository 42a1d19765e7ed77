//! Places that tenants share, so that one's flood leaves room for the others.

use std::collections::HashMap;

use roundhouse_types::TenantName;

/// One tenant holds at most so many times as many places as are free: alone, three quarters of
/// all; the more others hold, the fewer (dynamic thresholds, as switches share their buffers:
/// Choudhury and Hahne, 1998).
const TIMES_FREE: usize = 3;

/// Counts the places that are taken, in all and by each tenant. Plain data: its owner locks it.
///
/// 1. No more are taken than there are.
/// 2. A tenant that holds none takes no memory.
#[derive(Debug, Default)]
pub struct Places {
    taken: usize,
    of_tenants: HashMap<TenantName, usize>,
}

impl Places {
    /// Takes one of `all` places. False where none is free, or where the tenant holds so many that
    /// the rest is for others; whoever is nobody's tenant may have them all.
    pub fn take(&mut self, all: usize, tenant: Option<&TenantName>) -> bool {
        if self.taken >= all {
            return false;
        }
        let Some(tenant) = tenant else {
            self.taken += 1;
            return true;
        };
        let held = self.of_tenants.get(tenant).copied().unwrap_or(0);
        if held >= (all - self.taken).saturating_mul(TIMES_FREE) {
            return false;
        }
        self.of_tenants.insert(tenant.clone(), held + 1);
        self.taken += 1;
        true
    }

    /// Gives one back that was taken for the same tenant.
    pub fn give(&mut self, tenant: Option<&TenantName>) {
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

    fn tenant(name: &str) -> TenantName {
        name.parse().unwrap()
    }

    fn most(places: &mut Places, tenant: Option<&TenantName>) -> usize {
        std::iter::repeat_with(|| places.take(100, tenant)).take_while(|taken| *taken).count()
    }

    #[test]
    fn a_flood_leaves_places_for_others_and_for_others_still() {
        let mut places = Places::default();
        assert_eq!(most(&mut places, Some(&tenant("a"))), 75);
        assert_eq!(most(&mut places, Some(&tenant("b"))), 19);
        assert_eq!(most(&mut places, Some(&tenant("c"))), 5);
        assert_eq!(most(&mut places, Some(&tenant("d"))), 1);
        assert_eq!(most(&mut places, Some(&tenant("e"))), 0, "all are taken");
        for _ in 0..75 {
            places.give(Some(&tenant("a")));
        }
        assert_eq!(places.taken(), 25);
        assert!(places.take(100, Some(&tenant("e"))));
        assert!(!places.of_tenants.contains_key("a"), "2");
    }

    #[test]
    fn without_tenants_all_places_are_anybodys() {
        let mut places = Places::default();
        assert_eq!(most(&mut places, None), 100);
        places.give(None);
        assert_eq!(most(&mut places, Some(&tenant("a"))), 1);
    }
}
