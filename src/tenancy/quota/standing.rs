//! One tenant's account. Pure: what the time is, it is told.

use std::time::Duration;

use super::{Estimate, Level, Levels, Limit, Limits, Rate, Refused};

const DAY: Duration = Duration::from_secs(86_400);
/// Nobody can know when a request under way ends.
const CONCURRENCY_WAIT: Duration = Duration::from_secs(1);
/// Sums of floats are not exact: less than this is nothing.
const NOTHING: f64 = 1e-6;
/// How much a bucket fades when it runs empty: what is left of a charge then is nothing.
const EMPTIED: f64 = 100.0;

/// An instant on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Now {
    /// Since the table was made; never goes back.
    pub(super) since: Duration,
    /// Since 1970.
    pub(super) wall: Duration,
}

impl Now {
    fn day(self) -> u64 {
        self.wall.as_secs() / DAY.as_secs()
    }

    fn until_midnight(self) -> Duration {
        let passed = Duration::new(self.wall.as_secs() % DAY.as_secs(), self.wall.subsec_nanos());
        DAY - passed
    }
}

/// What a tenant has taken of its limits. What changes a limit changes nothing here: amounts are
/// kept, not what is left.
#[derive(Debug, Default)]
pub(super) struct Standing {
    requests: Taken,
    tokens_in: Taken,
    tokens_out: Taken,
    running: u32,
    today: Today,
}

/// A bucket that leaks: what was taken and has not been made good by time.
#[derive(Debug, Default)]
struct Taken {
    amount: f64,
    at: Duration,
    /// By how much all that was ever charged has faded: of a charge, the part
    /// `exp(faded when charged - faded now)` has not been made good by time. What leaks is taken
    /// from every charge in proportion.
    faded: f64,
}

/// What was taken since midnight.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Today {
    day: u64,
    pub(super) requests: u64,
    pub(super) tokens: u64,
    pub(super) compute: Duration,
}

/// What an admission has charged.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Charge {
    tokens_in: f64,
    tokens_out: f64,
    /// Of the three buckets (tokens in and out, requests), when it was charged.
    faded: (f64, f64, f64),
    day: u64,
    day_tokens: u64,
}

/// What a request really took.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Fact {
    pub(super) tokens_in: u64,
    pub(super) tokens_out: u64,
    pub(super) compute: Duration,
}

impl Taken {
    fn leak(&mut self, per_second: f64, now: Duration) -> f64 {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        let left = (self.amount - passed * per_second).max(0.0);
        if left < self.amount {
            self.faded += if left > 0.0 { (self.amount / left).ln() } else { EMPTIED };
        }
        self.amount = left;
        self.at = self.at.max(now);
        self.amount
    }

    /// Puts fact in the place of a charge. Given back is no more than is still outstanding of it:
    /// what time has made good already would else be had twice, and bursts be saved up by requests
    /// that promise much and end late.
    fn settle(&mut self, charge: f64, faded: f64, fact: f64) {
        let outstanding = charge * (faded - self.faded).exp();
        self.amount = (self.amount + (fact - charge).max(-outstanding)).max(0.0);
    }

    /// When `cost` is within `burst`; `None` where it is now.
    fn wait(&mut self, rate: (f64, f64), cost: f64, now: Duration) -> Option<Duration> {
        let (per_second, burst) = rate;
        let over = self.leak(per_second, now) + cost - burst;
        (over > NOTHING).then(|| seconds(over / per_second))
    }

    fn level(&mut self, (per_second, burst): (f64, f64), now: Duration) -> Level {
        let amount = self.leak(per_second, now);
        Level {
            limit: whole(burst),
            remaining: whole((burst - amount + NOTHING).max(0.0)),
            reset: seconds(amount / per_second),
        }
    }
}

impl Standing {
    /// Charges a request by estimate, or says which limit stands against it for longest. More than
    /// a whole bucket or budget is charged as one: such a request goes where nothing was
    /// taken, and what it takes beyond is made good by those after it.
    pub(super) fn admit(
        &mut self,
        limits: &Limits,
        estimate: Estimate,
        now: Now,
    ) -> Result<Charge, Box<Refused>> {
        self.turn(now);
        let charge = Charge {
            tokens_in: charged(estimate.tokens_in, limits.tokens_in_per_minute),
            tokens_out: charged(estimate.tokens_out, limits.tokens_out_per_minute),
            faded: (0.0, 0.0, 0.0),
            day: self.today.day,
            day_tokens: (estimate.tokens_in.saturating_add(estimate.tokens_out))
                .min(limits.tokens_per_day.unwrap_or(u64::MAX)),
        };
        if let Some((limit, after)) = self.obstacle(limits, charge, now) {
            let (allowed, levels) = (allowed(limits, limit), self.levels(limits, now));
            return Err(Box::new(Refused { limit, allowed, after, levels }));
        }
        self.requests.amount += 1.0;
        self.tokens_in.amount += charge.tokens_in;
        self.tokens_out.amount += charge.tokens_out;
        self.running += 1;
        self.today.requests += 1;
        self.today.tokens = self.today.tokens.saturating_add(charge.day_tokens);
        // As they are now that both have leaked up to this instant.
        let faded = (self.tokens_in.faded, self.tokens_out.faded, self.requests.faded);
        Ok(Charge { faded, ..charge })
    }

    /// The limit that frees last of those that stand against a charge.
    fn obstacle(&mut self, limits: &Limits, charge: Charge, now: Now) -> Option<(Limit, Duration)> {
        let mut worst: Option<(Limit, Duration)> = None;
        let mut meets = |limit, wait: Option<Duration>| {
            if let Some(wait) = wait
                && worst.is_none_or(|(_, longest)| wait > longest)
            {
                worst = Some((limit, wait));
            }
        };
        let Self { requests, tokens_in, tokens_out, running, today } = self;
        let of_day = |is_over: bool| is_over.then(|| now.until_midnight());
        // Without a limit the bucket still has to be made good, or an applied one would find all
        // that was ever taken.
        let rate = limits.requests.map_or((f64::MAX, f64::MAX), per_second);
        meets(Limit::Requests, requests.wait(rate, 1.0, now.since));
        let rate = limits.tokens_in_per_minute.map_or((f64::MAX, f64::MAX), per_minute);
        meets(Limit::TokensIn, tokens_in.wait(rate, charge.tokens_in, now.since));
        let rate = limits.tokens_out_per_minute.map_or((f64::MAX, f64::MAX), per_minute);
        meets(Limit::TokensOut, tokens_out.wait(rate, charge.tokens_out, now.since));
        let full = limits.concurrent_requests.is_some_and(|most| *running >= most);
        meets(Limit::Concurrency, full.then_some(CONCURRENCY_WAIT));
        let full = limits.requests_per_day.is_some_and(|most| today.requests >= most);
        meets(Limit::RequestsPerDay, of_day(full));
        let tokens = today.tokens.saturating_add(charge.day_tokens);
        meets(Limit::TokensPerDay, of_day(limits.tokens_per_day.is_some_and(|most| tokens > most)));
        let full = limits.compute_per_day.is_some_and(|most| today.compute >= most);
        meets(Limit::ComputePerDay, of_day(full));
        worst
    }

    /// Puts fact in the place of the estimate. What a request took counts for the day on which it
    /// was admitted.
    pub(super) fn settle(&mut self, charge: Charge, fact: Fact, now: Now) {
        self.turn(now);
        self.running = self.running.saturating_sub(1);
        self.tokens_in.settle(charge.tokens_in, charge.faded.0, float(fact.tokens_in));
        self.tokens_out.settle(charge.tokens_out, charge.faded.1, float(fact.tokens_out));
        if charge.day == self.today.day {
            let tokens = fact.tokens_in.saturating_add(fact.tokens_out);
            let before = self.today.tokens.saturating_sub(charge.day_tokens);
            self.today.tokens = before.saturating_add(tokens);
            self.today.compute = self.today.compute.saturating_add(fact.compute);
        }
    }

    /// Takes a charge back: its request was not begun, and will be asked again.
    pub(super) fn withdraw(&mut self, charge: Charge, now: Now) {
        self.settle(charge, Fact::default(), now);
        self.requests.settle(1.0, charge.faded.2, 0.0);
        if charge.day == self.today.day {
            self.today.requests = self.today.requests.saturating_sub(1);
        }
    }

    /// Adds what was taken earlier today, before this process began.
    pub(super) fn restore(&mut self, earlier: Today, now: Now) {
        self.turn(now);
        self.today.requests = self.today.requests.saturating_add(earlier.requests);
        self.today.tokens = self.today.tokens.saturating_add(earlier.tokens);
        self.today.compute = self.today.compute.saturating_add(earlier.compute);
    }

    /// How near it is to its limits.
    pub(super) fn levels(&mut self, limits: &Limits, now: Now) -> Levels {
        let requests = limits.requests.map(|it| self.requests.level(per_second(it), now.since));
        let read = limits.tokens_in_per_minute;
        let read = read.map(|most| self.tokens_in.level(per_minute(most), now.since));
        let said = limits.tokens_out_per_minute;
        let said = said.map(|most| self.tokens_out.level(per_minute(most), now.since));
        let tokens = [read, said].into_iter().flatten().min_by_key(|level| level.remaining);
        Levels { requests, tokens }
    }

    /// Whether forgetting it could matter to nobody but its own daily budget, and how much of
    /// that it would forget; `None` while requests are under way.
    pub(super) fn worth(&self) -> Option<u64> {
        (self.running == 0).then_some(self.today.tokens.saturating_add(self.today.requests))
    }

    /// Begins a new day. A clock that goes back gives nobody a second one; one that was days ahead
    /// does not shut anybody out for as long.
    fn turn(&mut self, now: Now) {
        let (day, today) = (now.day(), self.today.day);
        if day > today || day + 1 < today {
            self.today = Today { day, ..Today::default() };
        }
    }
}

impl Today {
    pub(super) fn new(requests: u64, tokens: u64, compute: Duration) -> Self {
        Self { day: 0, requests, tokens, compute }
    }
}

fn per_second(rate: Rate) -> (f64, f64) {
    (rate.per_second, f64::from(rate.burst))
}

fn per_minute(most: u64) -> (f64, f64) {
    (float(most) / 60.0, float(most))
}

/// An estimate as far as its bucket is large.
fn charged(estimate: u64, most: Option<u64>) -> f64 {
    float(estimate.min(most.unwrap_or(u64::MAX)))
}

fn allowed(limits: &Limits, limit: Limit) -> String {
    let number = |number: Option<u64>| number.map_or_else(String::new, |it| it.to_string());
    match limit {
        Limit::Requests => limits.requests.map_or_else(String::new, |rate| {
            format!("{} (at once {})", rate.per_second, rate.burst)
        }),
        Limit::TokensIn => number(limits.tokens_in_per_minute),
        Limit::TokensOut => number(limits.tokens_out_per_minute),
        Limit::Concurrency => number(limits.concurrent_requests.map(u64::from)),
        Limit::RequestsPerDay => number(limits.requests_per_day),
        Limit::TokensPerDay => number(limits.tokens_per_day),
        Limit::ComputePerDay => {
            limits.compute_per_day.map_or_else(String::new, |it| format!("{} s", it.as_secs()))
        }
    }
}

fn seconds(number: f64) -> Duration {
    // A limit of one per some years has to wait no longer than that.
    Duration::from_secs_f64(number.clamp(0.0, 1e9))
}

#[expect(clippy::cast_precision_loss, reason = "counts of tokens stay far below 2^52")]
fn float(number: u64) -> f64 {
    number as f64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "saturating, and never negative"
)]
fn whole(number: f64) -> u64 {
    number as u64
}
