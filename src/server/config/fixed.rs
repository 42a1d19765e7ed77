//! What of the settings is read when the server starts, only, and what may change as it runs.

use std::path::PathBuf;

use super::{Config, Fault, Listen};

/// The queue's folder in the disk cache's, where no other is named.
const QUEUE: &str = "async";

impl Config {
    /// What is in force when these are applied to a server that was started with `booted`.
    pub(crate) fn applied_to(self, booted: &Self) -> Self {
        let Self { mut auth, endpoints, tenants, aliases, tenant_defaults, .. } = self;
        // Who shows a certificate is of [tls]. Where that alone would ask callers, nobody is asked yet.
        auth.certificates = booted.auth.certificates;
        auth.anonymous |= !auth.asks();
        Self { auth, endpoints, tenants, aliases, tenant_defaults, ..booted.clone() }
    }

    /// Where requests wait whose callers do not.
    pub(crate) fn queue_dir(&self) -> PathBuf {
        self.async_dir.clone().unwrap_or_else(|| self.cache.dir.join(QUEUE))
    }

    /// The sections of `new` that say something else than these and are read when the server
    /// starts, only.
    pub(crate) fn fixed_beside(&self, new: &Self) -> Vec<&'static str> {
        let differ = [
            ("listen", self.listen != new.listen),
            ("tls", self.tls != new.tls),
            ("device", self.devices != new.devices),
            ("memory", self.memory != new.memory),
            ("cache", self.cache != new.cache),
            ("store", self.store != new.store),
            ("residency", self.residency != new.residency),
            ("replicas", self.replicas != new.replicas),
            ("serving", self.serving != new.serving),
            ("sessions", self.sessions != new.sessions),
            ("handlers", self.handlers != new.handlers),
            ("async", self.async_dir != new.async_dir),
            ("usage", self.usage != new.usage),
            ("lane", self.lane != new.lane),
            ("shutdown", self.shutdown != new.shutdown),
            ("log", self.log != new.log),
            ("tracing", self.traces != new.traces),
            ("cloudwatch", self.cloudwatch != new.cloudwatch),
            ("container", self.container != new.container),
        ];
        differ.into_iter().filter(|(_, differs)| *differs).map(|(section, _)| section).collect()
    }

    /// Whether a server that was started with these may go over to `new` while its ports stay where
    /// they are: not to letting in whom it did not let in.
    ///
    /// # Errors
    /// The fault, where a port would be opened.
    pub(crate) fn check_stays_shut(&self, new: &Self) -> Result<(), Fault> {
        let Listen { data, admin, insecure_no_auth, .. } = self.listen;
        let is_meant = insecure_no_auth || self.container.platform;
        let is_near = data.ip().is_loopback() && admin.ip().is_loopback();
        let is_afar = !is_meant && !is_near;
        if !self.asks_callers() && !is_afar {
            return Ok(());
        }
        let what = match (new.asks_callers(), self.auth.anonymous) {
            (false, _) => "nobody would be asked who they are",
            (true, false) if new.auth.anonymous => "callers without a credential would be let in",
            (true, _) => return Ok(()),
        };
        let message = format!("{what}, and the server runs with more: restart it if that is meant");
        Err(Fault::new("auth", message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::ServeFlags;

    #[test]
    fn certificates_are_asked_for_after_a_restart_and_till_then_nobody_is_locked_out_or_let_in() {
        let config = |auth: &str, tls: &str| {
            let flags =
                ServeFlags { store: vec!["file:///models/".into()], ..ServeFlags::default() };
            let text = format!("version = 1\n[auth]\n{auth}\n{tls}\n");
            Config::parse(Some(&text), &|_| None, &flags).unwrap()
        };
        let tls = "[tls]\ncertificate = \"/c\"\nkey = \"/k\"\nclient_ca = \"/ca\"\n";
        let applied = |new: &Config, booted: &Config| new.clone().applied_to(booted);
        let (open, certified) = (config("", ""), config("", tls));
        let keyed = config("keys = \"/keys\"", "");
        assert!(certified.asks_callers() && !certified.auth.anonymous);
        let still_open = applied(&certified, &open);
        assert!(!still_open.asks_callers() && still_open.auth.anonymous);
        assert!(open.check_stays_shut(&still_open).is_ok());
        // What asked before is gone, and what is to ask comes with the restart.
        assert!(keyed.check_stays_shut(&certified).is_ok());
        assert!(keyed.check_stays_shut(&applied(&certified, &keyed)).is_err());
        let still_certified = applied(&keyed, &certified);
        assert!(still_certified.auth.certificates && !still_certified.auth.anonymous);
        assert!(certified.check_stays_shut(&applied(&open, &certified)).is_err());
    }

    #[test]
    fn what_is_applied_differs_from_what_was_started_in_no_section_that_needs_a_restart() {
        let config = |text: &str| {
            let flags =
                ServeFlags { store: vec!["file:///models/".into()], ..ServeFlags::default() };
            Config::parse(Some(text), &|_| None, &flags).unwrap()
        };
        let booted = config("version = 1\n[cache]\ndir = \"/a\"\n");
        let text = "version = 1\n[cache]\ndir = \"/b\"\n[store]\nsettle = \"7s\"\n[serving]\ncontext = 512\n\
                    [[tenant]]\nname = \"acme\"\n";
        let new = config(text);
        assert_eq!(booted.fixed_beside(&new), ["cache", "store", "serving"]);
        let applied = new.clone().applied_to(&booted);
        assert!(booted.fixed_beside(&applied).is_empty());
        assert_eq!((&applied.tenants, &applied.endpoints), (&new.tenants, &new.endpoints));
        assert_eq!(applied.queue_dir(), PathBuf::from("/a/async"));
    }
}
