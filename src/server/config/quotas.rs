//! Limits of tenants, in `[[tenant]]` and `[tenant_defaults]`, and `[usage]`: where what they used
//! is written down.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use roundhouse_tenancy::usage::Sync;
use roundhouse_tenancy::{Detail, LedgerConfig, Limits, QuotaRules, Rate};
use roundhouse_types::Bytes;

use super::raw::Sources;
use super::resolve::{HOUR, SECOND};
use super::{Config, Fault, defaults, keys};
use super::{parse_duration, show_duration};

/// The section of those that are not named.
pub(super) const DEFAULTS: &str = "tenant_defaults";

/// Keys of limits.
pub(super) const KEYS: &[&str] = &[
    "requests_per_second",
    "request_burst",
    "tokens_in_per_minute",
    "tokens_out_per_minute",
    "concurrent_requests",
    "requests_per_day",
    "tokens_per_day",
    "compute_per_day",
];

/// What is written where nothing shall be limited though the defaults do.
const UNLIMITED: &str = "unlimited";
/// Enough for any machine; more is a slip.
const RATE: RangeInclusive<f64> = 0.001..=1e6;
const MOST: RangeInclusive<u64> = 1..=1_000_000_000_000;
const FEW: RangeInclusive<u64> = 1..=1_000_000;
/// A day of a thousand devices.
const COMPUTE: RangeInclusive<Duration> = SECOND..=Duration::from_secs(24_000 * 3600);

/// One limit as it is written.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
enum Said<T> {
    /// Nothing is: the defaults hold.
    #[default]
    Nothing,
    /// There is none.
    Unlimited,
    /// This one.
    At(T),
}

impl<T> Said<T> {
    fn over(self, default: Option<T>) -> Option<T> {
        match self {
            Self::Nothing => default,
            Self::Unlimited => None,
            Self::At(value) => Some(value),
        }
    }
}

/// Limits as they are written in one place.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct WrittenLimits {
    requests_per_second: Said<f64>,
    request_burst: Option<u32>,
    tokens_in_per_minute: Said<u64>,
    tokens_out_per_minute: Said<u64>,
    concurrent_requests: Said<u64>,
    requests_per_day: Said<u64>,
    tokens_per_day: Said<u64>,
    compute_per_day: Said<Duration>,
}

impl WrittenLimits {
    /// With the defaults where nothing is written.
    fn over(&self, default: &Limits) -> Limits {
        let own_rate = matches!(self.requests_per_second, Said::At(_));
        let per_second = self.requests_per_second.over(default.requests.map(|it| it.per_second));
        let requests = per_second.map(|per_second| Rate {
            per_second,
            burst: match (self.request_burst, default.requests) {
                (Some(burst), _) => burst,
                (None, Some(rate)) if !own_rate => rate.burst,
                (None, _) => a_second_of(per_second),
            },
        });
        let concurrent = default.concurrent_requests.map(u64::from);
        Limits {
            requests,
            tokens_in_per_minute: self.tokens_in_per_minute.over(default.tokens_in_per_minute),
            tokens_out_per_minute: self.tokens_out_per_minute.over(default.tokens_out_per_minute),
            concurrent_requests: self
                .concurrent_requests
                .over(concurrent)
                .and_then(|most| u32::try_from(most).ok()),
            requests_per_day: self.requests_per_day.over(default.requests_per_day),
            tokens_per_day: self.tokens_per_day.over(default.tokens_per_day),
            compute_per_day: self.compute_per_day.over(default.compute_per_day),
        }
    }
}

/// What comes in a second, one at least.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "rates are between a thousandth and a million"
)]
fn a_second_of(per_second: f64) -> u32 {
    (per_second.ceil() as u32).max(1)
}

impl Config {
    /// Limits of all tenants, for their accounts; anew after a reload.
    pub(crate) fn quota_rules(&self) -> QuotaRules {
        let others = self.tenant_defaults.over(&Limits::default());
        let named = self
            .tenants
            .iter()
            .filter_map(|tenant| Some((tenant.name.parse().ok()?, tenant.limits.over(&others))));
        QuotaRules { named: named.collect(), others }
    }

    /// Bursts of nothing.
    pub(super) fn burst_faults(&self) -> Vec<Fault> {
        let message = "is of use with requests_per_second only";
        let rules = self.quota_rules();
        let mut faults = Vec::new();
        for (index, tenant) in self.tenants.iter().enumerate() {
            let limits = rules.named.iter().find(|(name, _)| name.as_str() == tenant.name);
            let has_rate = limits.is_none_or(|(_, limits)| limits.requests.is_some());
            if tenant.limits.request_burst.is_some() && !has_rate {
                faults.push(Fault::new(format!("tenant[{index}].request_burst"), message));
            }
        }
        if self.tenant_defaults.request_burst.is_some() && rules.others.requests.is_none() {
            faults.push(Fault::new(format!("{DEFAULTS}.request_burst"), message));
        }
        faults
    }
}

/// `[tenant_defaults]`.
pub(super) fn defaults(sources: &mut Sources<'_>) -> WrittenLimits {
    let Some(value) = sources.file.get(DEFAULTS).cloned() else {
        return WrittenLimits::default();
    };
    let Some(table) = value.as_table() else {
        sources.fault(DEFAULTS, format!("is a section: write [{DEFAULTS}] and its keys below"));
        return WrittenLimits::default();
    };
    let mut faults = keys::unknown_in(table, KEYS, DEFAULTS);
    let limits = read(table, DEFAULTS, &mut faults);
    sources.faults(faults);
    limits
}

/// The limits in one table.
pub(super) fn read(table: &toml::Table, at: &str, faults: &mut Vec<Fault>) -> WrittenLimits {
    let mut reader = Reader { table, at, faults };
    WrittenLimits {
        requests_per_second: reader.said("requests_per_second", rate),
        request_burst: match reader.said("request_burst", |value| whole(value, &FEW)) {
            Said::At(burst) => u32::try_from(burst).ok(),
            Said::Nothing => None,
            Said::Unlimited => {
                reader.fault("request_burst", "is a whole number: what may come at once");
                None
            }
        },
        tokens_in_per_minute: reader.count("tokens_in_per_minute", &MOST),
        tokens_out_per_minute: reader.count("tokens_out_per_minute", &MOST),
        concurrent_requests: reader.count("concurrent_requests", &FEW),
        requests_per_day: reader.count("requests_per_day", &MOST),
        tokens_per_day: reader.count("tokens_per_day", &MOST),
        compute_per_day: reader.said("compute_per_day", time),
    }
}

struct Reader<'a> {
    table: &'a toml::Table,
    at: &'a str,
    faults: &'a mut Vec<Fault>,
}

impl Reader<'_> {
    fn fault(&mut self, key: &str, message: impl Into<String>) {
        self.faults.push(Fault::new(format!("{}.{key}", self.at), message));
    }

    fn said<T>(&mut self, key: &str, parse: impl Fn(&toml::Value) -> Result<T, String>) -> Said<T> {
        match self.table.get(key) {
            None => Said::Nothing,
            Some(toml::Value::String(text)) if text == UNLIMITED => Said::Unlimited,
            Some(value) => match parse(value) {
                Ok(value) => Said::At(value),
                Err(message) => {
                    self.fault(key, message);
                    Said::Nothing
                }
            },
        }
    }

    fn count(&mut self, key: &str, range: &RangeInclusive<u64>) -> Said<u64> {
        self.said(key, |value| whole(value, range))
    }
}

fn whole(value: &toml::Value, range: &RangeInclusive<u64>) -> Result<u64, String> {
    let number = value.as_integer().and_then(|number| u64::try_from(number).ok());
    number.filter(|number| range.contains(number)).ok_or_else(|| {
        format!(
            "expected a whole number, {} to {}, or \"{UNLIMITED}\", found {value}",
            range.start(),
            range.end()
        )
    })
}

fn rate(value: &toml::Value) -> Result<f64, String> {
    #[expect(clippy::cast_precision_loss, reason = "bounded by a million right after")]
    let number = value.as_float().or_else(|| value.as_integer().map(|number| number as f64));
    number.filter(|number| RATE.contains(number)).ok_or_else(|| {
        format!("expected a number, 0.001 to 1000000, or \"{UNLIMITED}\", found {value}")
    })
}

fn time(value: &toml::Value) -> Result<Duration, String> {
    let Some(text) = value.as_str() else {
        return Err(format!("expected a string with a unit, like \"2h\", or \"{UNLIMITED}\""));
    };
    let time = parse_duration(text)?;
    match COMPUTE.contains(&time) {
        true => Ok(time),
        false => Err(format!(
            "{text} is out of range: {} to {}",
            show_duration(*COMPUTE.start()),
            show_duration(*COMPUTE.end())
        )),
    }
}

/// `[usage]`; nothing where no file is named.
pub(super) fn usage(sources: &mut Sources<'_>) -> Option<LedgerConfig> {
    let detail = sources.optional("usage.detail", |text| match text {
        "interval" => Ok(Detail::Interval),
        "request" => Ok(Detail::Request),
        _ => Err(format!("'{text}' is not a detail: interval or request")),
    });
    let sync = sources.optional("usage.sync", |text| match text {
        "interval" => Ok(Sync::Interval),
        "each" => Ok(Sync::Each),
        _ => Err(format!("'{text}' is neither interval nor each")),
    });
    let path = sources.optional("usage.file", |text| match text {
        "" => Err("is empty: the path of a file".to_owned()),
        path => Ok(PathBuf::from(path)),
    });
    let interval = sources.duration("usage.interval", SECOND..=HOUR);
    let rotate_size = sources.size("usage.rotate_size", Bytes::mib(1)..=Bytes::gib(1024));
    let rotate_daily = sources.switch("usage.rotate_daily");
    let detail = detail.unwrap_or(Detail::Interval);
    let sync = sync.unwrap_or(Sync::Interval);
    if sync == Sync::Each && detail == Detail::Interval {
        let why = "each waits for a line per request: write detail = \"request\" too";
        sources.fault("usage.sync", why);
    }
    Some(LedgerConfig {
        path: path?,
        detail,
        interval: interval.unwrap_or(defaults::USAGE_INTERVAL),
        sync,
        rotate_size: rotate_size.unwrap_or(defaults::USAGE_ROTATE_SIZE),
        rotate_daily: rotate_daily.unwrap_or(true),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::ServeFlags;

    fn parsed(text: &str) -> Result<Config, Vec<String>> {
        let text = format!("version = 1\n{text}");
        let flags = ServeFlags { store: vec!["file:///m/".into()], ..ServeFlags::default() };
        Config::parse(Some(&text), &|_| None, &flags)
            .map_err(|faults| faults.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_tenant_has_the_defaults_where_it_says_nothing() {
        let rules = parsed(
            "[tenant_defaults]\nrequests_per_second = 2\nrequest_burst = 9\ntokens_per_day = 5\n\
             concurrent_requests = 3\n[[tenant]]\nname = \"a\"\nrequests_per_second = 1.5\n\
             concurrent_requests = \"unlimited\"\ncompute_per_day = \"2h\"\n\
             [[tenant]]\nname = \"b\"\nrequest_burst = 4",
        );
        let rules = rules.unwrap().quota_rules();
        let rate = |per_second, burst| Some(Rate { per_second, burst });
        assert_eq!(rules.others.requests, rate(2.0, 9));
        let of = |name: &str| rules.named[&name.parse::<roundhouse_types::TenantName>().unwrap()];
        let (a, b) = (of("a"), of("b"));
        assert_eq!(
            (a.requests, a.tokens_per_day, a.concurrent_requests),
            (rate(1.5, 2), Some(5), None)
        );
        assert_eq!(a.compute_per_day, Some(2 * HOUR));
        assert_eq!((b.requests, b.concurrent_requests), (rate(2.0, 4), Some(3)));
    }

    #[test]
    fn faults_name_their_key_and_what_was_expected() {
        let faults = parsed(
            "[tenant_defaults]\nrequests_per_second = 0\ntokens_per_dya = 1\n\
             [[tenant]]\nname = \"a\"\nrequest_burst = 3\ntokens_in_per_minute = -1\n\
             concurrent_requests = 0\ncompute_per_day = 7\n[usage]\nsync = \"each\"\ninterval = \"1ms\"",
        );
        let faults = faults.unwrap_err().join("\n");
        for part in [
            "tenant_defaults.requests_per_second: expected a number, 0.001 to 1000000",
            "tenant_defaults.tokens_per_dya: is not a key; did you mean tokens_per_day?",
            "tenant[0].request_burst: is of use with requests_per_second only",
            "tenant[0].tokens_in_per_minute: expected a whole number, 1 to",
            "tenant[0].concurrent_requests: expected a whole number",
            "tenant[0].compute_per_day: expected a string with a unit",
            "usage.sync: each waits for a line per request",
            "usage.interval: 1ms is out of range",
        ] {
            assert!(faults.contains(part), "{part} is not in\n{faults}");
        }
    }

    #[test]
    fn without_a_file_nothing_is_written_down() {
        assert_eq!(parsed("[usage]\ninterval = \"5s\"").unwrap().usage, None);
        let usage = parsed("[usage]\nfile = \"u.jsonl\"\ndetail = \"request\"\nsync = \"each\"");
        let usage = usage.unwrap().usage.unwrap();
        assert_eq!((usage.detail, usage.sync), (Detail::Request, Sync::Each));
        assert_eq!(usage.interval, Duration::from_secs(60));
    }
}
