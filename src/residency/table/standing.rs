//! How a model stands at this instant, for people.

use std::time::Duration;

use roundhouse_types::{ArtefactId, ErrorKind, ModelId, count, count_that};

use super::Table;
use super::state::State;
use crate::decision::short;

impl Table {
    /// One sentence, and when the model may be ready where it is not and that can be told.
    pub(crate) fn standing(&self, model: &ModelId) -> (String, Option<Duration>) {
        let Some(entry) = self.models.peek(model) else {
            return ("not asked for of late".into(), None);
        };
        if let Some(key) = self.ready(model) {
            return (format!("{}{}", self.serving(key), self.beside(model)), None);
        }
        if let Some(artefact) = entry.jobs.last() {
            let (progress, estimate) = self.progress(model);
            return (format!("{progress}{}", self.place(artefact)), estimate);
        }
        if let Some(failure) = self.trouble_told(model) {
            // What is too large is not tried again in vain.
            let is_lasting = failure.kind() == ErrorKind::TooLarge;
            let trouble = entry.trouble.as_ref().filter(|_| !is_lasting);
            let pause = trouble.map(|trouble| trouble.until);
            let pause = pause.map(|until| until.saturating_duration_since(self.now));
            return (format!("failed: {failure}{}", self.beside(model)), pause);
        }
        let is_leaving = |key: &&super::Key| {
            self.residents.get(key).is_some_and(|resident| resident.state == State::Unloading)
        };
        if !entry.residents.is_empty() && entry.residents.iter().all(|key| is_leaving(&key)) {
            return ("the device is giving its memory back".into(), None);
        }
        if entry.resolving.is_some() || !entry.residents.is_empty() {
            return (self.progress(model).0.to_string(), None);
        }
        let kept = if entry.kept { "; kept once it is loaded" } else { "" };
        let told = format!("not loaded{}{}{kept}", self.beside(model), self.unfit_told(model));
        (told, None)
    }

    /// What there is of a model beside its devices.
    fn beside(&self, model: &ModelId) -> &'static str {
        let mut copies = self.copies.of_model(model);
        let is_there = copies.any(|(artefact, _)| self.copies.is_usable(artefact));
        if is_there { "; a copy is in host memory" } else { "" }
    }

    fn serving(&self, key: &super::Key) -> String {
        let Some(resident) = self.residents.get(key) else {
            return String::new();
        };
        let idle = self.now.saturating_duration_since(resident.last_used).as_secs();
        let mut sentence = format!(
            "serves on {}, version {}, takes {}, {} held, last used {idle} s ago, {}",
            key.device,
            short(&key.artefact.version),
            resident.footprint.total(),
            count(resident.leases, "lease"),
            self.demand(&key.artefact.model),
        );
        for (other, resident) in self.all_ready(&key.artefact.model) {
            if other != key {
                let (device, leases) = (other.device, count(resident.leases, "lease"));
                sentence.push_str(&format!("; also on {device}, {leases} held"));
            }
        }
        if let Some(base) = &resident.base {
            sentence.push_str(&format!("; on its base {base}"));
        }
        match self.bases.count(key) {
            0 => {}
            adapters => sentence.push_str(&format!("; {} on it", count(adapters, "adapter"))),
        }
        sentence.push_str(&self.unfit_told(&key.artefact.model));
        if self.is_kept(&key.artefact.model) {
            sentence.push_str("; kept");
        }
        if let Some(claim) = &resident.claimed_by {
            sentence.push_str(&format!("; to leave for {claim}"));
        }
        sentence
    }

    /// What failed of a version in whose place another one answers, or would.
    fn unfit_told(&self, model: &ModelId) -> String {
        let unfit = self.models.peek(model).and_then(|entry| entry.unfit.as_ref());
        let Some(unfit) = unfit else { return String::new() };
        let since = self.now.saturating_duration_since(unfit.since).as_secs();
        let what = match &unfit.version {
            Some(version) => format!("another version, {}, failed {since} s ago", short(version)),
            None => format!("its newest version cannot be told for {since} s"),
        };
        format!("; {what}: {}", unfit.failure)
    }

    /// Where a load stands among those that wait.
    fn place(&self, artefact: &ArtefactId) -> String {
        let order = self.jobs_in_order();
        let place = order.iter().position(|other| other == artefact).unwrap_or_default() + 1;
        let waiting = self.models.peek(&artefact.model).map_or(0, |entry| entry.waiters.len());
        let mut sentence = format!("; version {}", short(&artefact.version));
        if let Some(device) = self.jobs.get(artefact).and_then(|job| job.device()) {
            sentence.push_str(&format!(" to {device}"));
        }
        let waiting = count_that(waiting, "request", ["waits", "wait"]);
        sentence.push_str(&format!("; {place} of {}, {waiting}", count(order.len(), "load")));
        let overtaken = self.jobs.get(artefact).map_or(0, |job| job.overtaken);
        if overtaken > 0 {
            sentence.push_str(&format!(", passed by {}", count(overtaken, "later one")));
        }
        let job = self.jobs.get(artefact);
        sentence.extend(job.and_then(|job| self.pace_told(job)));
        if self.lead(&artefact.model) > 0 {
            sentence.push_str("; its tenant had more than its share of loads");
        }
        sentence
    }
}
