//! Stateful sessions: `[sessions]`, and what SageMaker tells its containers of them.

use std::time::Duration;

use roundhouse_gateway::SessionLimits;

use super::raw::Sources;
use super::resolve::{DAY, SECOND};

/// What SageMaker's containers are told about stateful sessions.
const SESSIONS_VARIABLE: &str = "SAGEMAKER_ENABLE_STATEFUL_SESSIONS";
const EXPIRATION_VARIABLE: &str = "SAGEMAKER_SESSIONS_EXPIRATION";

/// `[sessions]`; `None` where there shall be none. SageMaker's variables count under the container
/// contract, behind our own.
pub(super) fn resolve(sources: &mut Sources<'_>, contract: bool) -> Option<SessionLimits> {
    let variable = |sources: &Sources<'_>, name| sources.variable(name).filter(|_| contract);
    let enabled = match sources.switch("sessions.enabled") {
        Some(enabled) => enabled,
        None => variable(sources, SESSIONS_VARIABLE)
            .is_none_or(|text| ["true", "1"].contains(&text.trim().to_ascii_lowercase().as_str())),
    };
    let limits = SessionLimits::default();
    let expiration = match sources.duration("sessions.expiration", SECOND..=DAY) {
        Some(expiration) => expiration,
        None => match variable(sources, EXPIRATION_VARIABLE) {
            None => limits.expiration,
            Some(text) => {
                let seconds = text.trim().parse().ok().map(Duration::from_secs);
                seconds.filter(|it| (SECOND..=DAY).contains(it)).unwrap_or_else(|| {
                    let message =
                        format!("{EXPIRATION_VARIABLE} is no number of seconds within 1 and 86400");
                    sources.fault("sessions.expiration", message);
                    limits.expiration
                })
            }
        },
    };
    let most = sources.count("sessions.max", 1..=1_000_000).unwrap_or(limits.most);
    let of_tenant = sources.count("sessions.max_per_tenant", 1..=1_000_000);
    let most_per_tenant = of_tenant.unwrap_or(limits.most_per_tenant);
    enabled.then_some(SessionLimits { expiration, most, most_per_tenant })
}
