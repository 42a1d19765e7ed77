//! How a model stands at this instant, for people.

use std::time::Duration;

use roundhouse_types::{ArtefactId, ErrorKind, ModelId};

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
        (format!("not loaded{}{kept}", self.beside(model)), None)
    }

    /// What there is of a model beside its devices.
    fn beside(&self, model: &ModelId) -> &'static str {
        let mut copies = self.copies.iter().filter(|(artefact, _)| artefact.model == *model);
        let is_there = copies.any(|(artefact, _)| self.copies.is_usable(artefact));
        if is_there { "; a copy is in host memory" } else { "" }
    }

    fn serving(&self, key: &super::Key) -> String {
        let Some(resident) = self.residents.get(key) else {
            return String::new();
        };
        let idle = self.now.saturating_duration_since(resident.last_used).as_secs();
        let mut sentence = format!(
            "serves on {}, version {}, takes {}, {} leases held, last used {idle} s ago, {}",
            key.device,
            short(&key.artefact.version),
            resident.footprint.total(),
            resident.leases,
            self.demand(&key.artefact.model),
        );
        for (other, resident) in self.all_ready(&key.artefact.model) {
            if other != key {
                let (device, leases) = (other.device, resident.leases);
                sentence.push_str(&format!("; also on {device}, {leases} leases held"));
            }
        }
        if let Some(base) = &resident.base {
            sentence.push_str(&format!("; on its base {base}"));
        }
        match self.bases.count(key) {
            0 => {}
            adapters => sentence.push_str(&format!("; {adapters} adapters on it")),
        }
        let unfit = self.models.peek(&key.artefact.model).and_then(|it| it.unfit.as_ref());
        if let Some(unfit) = unfit {
            let since = self.now.saturating_duration_since(unfit.since).as_secs();
            let what = match &unfit.version {
                Some(version) => {
                    format!("another version, {}, failed {since} s ago", short(version))
                }
                None => format!("its newest version cannot be told for {since} s"),
            };
            sentence.push_str(&format!("; {what}: {}", unfit.reason));
        }
        if self.is_kept(&key.artefact.model) {
            sentence.push_str("; kept");
        }
        if let Some(claim) = &resident.claimed_by {
            sentence.push_str(&format!("; to leave for {claim}"));
        }
        sentence
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
        sentence.push_str(&format!("; {place} of {} loads, {waiting} requests wait", order.len()));
        let overtaken = self.jobs.get(artefact).map_or(0, |job| job.overtaken);
        if overtaken > 0 {
            sentence.push_str(&format!(", passed by {overtaken} later ones"));
        }
        let job = self.jobs.get(artefact);
        sentence.extend(job.and_then(|job| self.pace_told(job)));
        if self.lead(&artefact.model) > 0 {
            sentence.push_str("; its tenant had more than its share of loads");
        }
        sentence
    }
}
