//! What each tenant has of a step, of the places and of the pool while others want them too.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::Sequence;
use crate::account::Account;

/// How long steps take, by their tokens: a time that every step takes, and one for each token.
/// Fitted by least squares to the last steps.
#[derive(Debug, Default)]
pub(super) struct StepCost {
    count: f64,
    tokens: f64,
    seconds: f64,
    squares: f64,
    products: f64,
    fixed: Option<f64>,
}

/// What a step counts after the next one: some fifty are remembered.
const REMEMBERED: f64 = 0.98;

/// Steps whose numbers of tokens vary by less than a tenth say nothing about the cost of one.
const VARIED: f64 = 0.01;

/// Weight of the newest fit.
const NEWEST: f64 = 0.1;

impl StepCost {
    /// A step of `tokens` tokens took so long.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    pub(super) fn measured(&mut self, tokens: usize, elapsed: Duration) {
        let (tokens, seconds) = (tokens as f64, elapsed.as_secs_f64());
        let keep = |sum: &mut f64, newest: f64| *sum = *sum * REMEMBERED + newest;
        keep(&mut self.count, 1.0);
        keep(&mut self.tokens, tokens);
        keep(&mut self.seconds, seconds);
        keep(&mut self.squares, tokens * tokens);
        keep(&mut self.products, tokens * seconds);
        let spread = self.count * self.squares - self.tokens * self.tokens;
        if spread <= VARIED * self.tokens * self.tokens {
            return;
        }
        let each = (self.count * self.products - self.tokens * self.seconds) / spread;
        let every = (self.seconds - each * self.tokens) / self.count;
        if each > 0.0 {
            let newest = (every / each).max(0.0);
            self.fixed = Some(self.fixed.map_or(newest, |mean| mean + NEWEST * (newest - mean)));
        }
    }

    /// How many tokens take as long as what every step takes; `None` before steps told.
    pub(super) fn fixed(&self) -> Option<f64> {
        self.fixed
    }
}

/// A tenant that has work here.
#[derive(Debug)]
pub(super) struct Tenant {
    share: u64,
    /// Its sequences that run.
    pub(super) places: usize,
    /// Blocks in their tables.
    pub(super) blocks: usize,
    decodes: usize,
    prompts: usize,
    /// Tokens that it may have in the step.
    pub(super) allowed: usize,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Tenants {
    all: Vec<Tenant>,
    by_account: HashMap<*const Account, usize>,
    whole: u64,
    is_limited: bool,
}

impl Tenants {
    /// Those whose sequences run or wait, and what each may have of a step that takes at most
    /// `room` tokens of prompts.
    pub(super) fn of<'a>(
        running: &'a [Sequence],
        waiting: impl Iterator<Item = &'a Sequence>,
        room: usize,
        cost: &StepCost,
    ) -> Self {
        let (all, by_account) = (Vec::new(), HashMap::new());
        let mut tenants = Self { all, by_account, whole: 0, is_limited: false };
        for sequence in running {
            let tenant = tenants.know(&sequence.turn.account);
            tenant.places += 1;
            tenant.blocks += sequence.blocks.len();
            match sequence.remaining() {
                1 => tenant.decodes += 1,
                more => tenant.prompts += more,
            }
        }
        for sequence in waiting {
            let tenant = tenants.know(&sequence.turn.account);
            tenant.prompts += sequence.remaining();
        }
        tenants.whole = tenants.all.iter().map(|tenant| tenant.share).sum();
        if let Some(fixed) = cost.fixed().filter(|_| tenants.all.len() > 1) {
            let wants: Vec<_> = tenants
                .all
                .iter()
                .map(|tenant| (tenant.share, tenant.decodes + tenant.prompts.min(room)))
                .collect();
            let allowed = allowed(fixed, &wants);
            tenants.is_limited = allowed.iter().zip(&wants).any(|(most, (_, want))| most < want);
            if tenants.is_limited {
                for (tenant, most) in tenants.all.iter_mut().zip(allowed) {
                    tenant.allowed = most;
                }
            }
        }
        tenants
    }

    fn know(&mut self, account: &Arc<Account>) -> &mut Tenant {
        let next = self.all.len();
        let index = *self.by_account.entry(Arc::as_ptr(account)).or_insert(next);
        if index == next {
            self.all.push(Tenant {
                share: account.share(),
                places: 0,
                blocks: 0,
                decodes: 0,
                prompts: 0,
                allowed: usize::MAX,
            });
        }
        &mut self.all[index]
    }

    /// Whether there are several.
    pub(super) fn are_several(&self) -> bool {
        self.all.len() > 1
    }

    /// Whether somebody wants more of the step than it may have.
    pub(super) fn is_limited(&self) -> bool {
        self.is_limited
    }

    /// The tenant of a sequence, which must be one of those that this was made of.
    pub(super) fn of_it(&mut self, sequence: &Sequence) -> &mut Tenant {
        let index = self.index(sequence);
        &mut self.all[index]
    }

    /// The places that its tenant had when the step began.
    pub(super) fn places(&self, sequence: &Sequence) -> usize {
        self.all[self.index(sequence)].places
    }

    /// Names its tenant.
    pub(super) fn index(&self, sequence: &Sequence) -> usize {
        self.by_account[&Arc::as_ptr(&sequence.turn.account)]
    }

    /// How many of them are its decoding sequences', by its index.
    pub(super) fn of_decodes(&self) -> impl Iterator<Item = usize> + '_ {
        self.all.iter().map(|tenant| match tenant.prompts {
            0 => tenant.allowed,
            _ => tenant.allowed.div_ceil(2),
        })
    }

    /// The tokens that each may have, by its index.
    pub(super) fn allowed(&self) -> impl Iterator<Item = usize> + '_ {
        self.all.iter().map(|tenant| tenant.allowed)
    }

    /// By what its sequence's tenant has more of `whole` than its part, by its share; a tenant with
    /// one of them is not beyond it.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    pub(super) fn excess(
        &self,
        sequence: &Sequence,
        whole: usize,
        has: impl Fn(&Tenant) -> usize,
    ) -> f64 {
        let tenant = &self.all[self.index(sequence)];
        has(tenant) as f64 - self.part(tenant, whole)
    }

    /// Whether `more` of `whole` leave its sequence's tenant within its part.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    pub(super) fn deserves(
        &self,
        sequence: &Sequence,
        more: usize,
        whole: usize,
        has: impl Fn(&Tenant) -> usize,
    ) -> bool {
        self.excess(sequence, whole, has) + more as f64 <= 0.0
    }

    /// A tenant's part of `whole`, at least one.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    fn part(&self, tenant: &Tenant, whole: usize) -> f64 {
        (whole as f64 * tenant.share as f64 / self.whole as f64).max(1.0)
    }
}

/// The tokens that each tenant may have of a step, by share and by what it wants, where what
/// every step takes is as long as `fixed` tokens.
///
/// Nobody who gets all it wants shall wait for a step longer than its own tokens alone would take,
/// divided by its part of the shares: what it would see of a device of its own that is as much
/// slower (Parekh and Gallager's generalised processor sharing, step by step). As long as that holds,
/// all get what they want; beyond it, those who want most by their share get less, and alike.
fn allowed(fixed: f64, wants: &[(u64, usize)]) -> Vec<usize> {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let wanted: Vec<(f64, f64)> =
        wants.iter().map(|(share, want)| (*share as f64, *want as f64)).collect();
    let whole: f64 = wanted.iter().map(|(share, _)| share).sum();
    let alone = |(share, want): &(f64, f64)| (fixed + want) * whole / share;
    let bound = wanted.iter().map(alone).fold(f64::INFINITY, f64::min) - fixed;
    if wanted.iter().map(|(_, want)| want).sum::<f64>() <= bound {
        return wants.iter().map(|(_, want)| *want).collect();
    }
    let mut order: Vec<_> = (0..wanted.len()).collect();
    order.sort_by(|a, b| {
        let by_share = |index: usize| wanted[index].1 / wanted[index].0;
        by_share(*a).total_cmp(&by_share(*b))
    });
    let (mut left, mut shares) = (bound, whole);
    let mut most = vec![1; wants.len()];
    for index in order {
        let (share, want) = wanted[index];
        let got = want.min(left * share / shares);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "never negative, and at most what is wanted"
        )]
        let tokens = got.round() as usize;
        most[index] = tokens.max(1);
        left -= got;
        shares -= share;
    }
    most
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_a_step_takes_is_told_by_steps_of_different_lengths() {
        let mut cost = StepCost::default();
        let step = |tokens: u64| Duration::from_micros(6_000 + 500 * tokens);
        for _ in 0..20 {
            cost.measured(8, step(8));
        }
        assert_eq!(cost.fixed(), None, "steps that are all alike tell nothing");
        for tokens in [1, 30, 8, 2, 16, 40, 8, 8, 8] {
            cost.measured(tokens, step(tokens as u64));
        }
        let fixed = cost.fixed().unwrap();
        assert!((fixed - 12.0).abs() < 0.01, "{fixed}");
        for _ in 0..1_000 {
            cost.measured(8, step(8));
        }
        assert!((cost.fixed().unwrap() - 12.0).abs() < 0.01, "it is remembered");
    }

    #[test]
    fn nobody_s_steps_grow_beyond_what_its_share_would_take() {
        assert_eq!(allowed(2.0, &[(1000, 1), (1000, 60)]), [1, 3]);
        assert_eq!(allowed(2.0, &[(3000, 2), (1000, 60)]), [2, 1]);
        // Weights cost most: company is free.
        assert_eq!(allowed(100.0, &[(1000, 1), (1000, 60)]), [1, 60]);
        // Among many, each has little to lose.
        assert_eq!(allowed(2.0, &[(1000, 1), (1000, 1), (1000, 1), (1000, 12)]), [1, 1, 1, 7]);
        assert_eq!(allowed(0.0, &[(1000, 30), (1000, 30)]), [30, 30]);
        assert_eq!(allowed(0.0, &[(3000, 40), (1000, 40)]), [40, 13]);
    }

    proptest! {
        #[test]
        fn who_gets_all_is_slowed_by_no_more_than_its_share(
            fixed in 0.0..200.0_f64,
            wants in prop::collection::vec((100..5000_u64, 1..300_usize), 2..12),
        ) {
            let got = allowed(fixed, &wants);
            let whole: u64 = wants.iter().map(|(share, _)| share).sum();
            let tokens: usize = got.iter().sum();
            prop_assert!(got.iter().zip(&wants).all(|(got, (_, want))| 1 <= *got && got <= want));
            let mut all_limited = true;
            for (got, (share, want)) in got.iter().zip(&wants) {
                if got == want {
                    all_limited = false;
                    let alone = (fixed + *want as f64) * whole as f64 / *share as f64;
                    // Tokens are whole, and each tenant has one at least.
                    let rounded = wants.len() as f64;
                    prop_assert!(fixed + tokens as f64 <= alone + rounded, "{got} of {want}");
                }
            }
            prop_assert!(!all_limited);
        }
    }
}
