//! The report for people.

use roundhouse_types::{Bytes, Footprint, ModelKind};

use super::estimate::{Estimate, Fit, Parts, Trust};
use super::instances::{Device, Instance};
use super::{Report, Total};
use crate::cli::output::{Table, printable};
use crate::error::count;

/// The whole report as text.
pub(super) fn text(report: &Report) -> String {
    let chosen = if report.budget_is_automatic { "this machine's" } else { "as told" };
    let mut text = format!(
        "{} ({chosen}); context {}, {} in a KV pool at most, steps of {} tokens; the process \
         itself takes about {}\n",
        budgets(report),
        report.context,
        count(report.kv_sequences, "sequence"),
        report.step_tokens,
        report.overhead_bytes,
    );
    for estimate in &report.targets {
        text.push('\n');
        target(&mut text, estimate);
    }
    for failed in &report.failed {
        let line = format!("{}: cannot be planned for: {}", failed.target, failed.message);
        text.push_str(&format!("\n{}\n", printable(&line)));
    }
    if report.targets.len() > 1 {
        text.push('\n');
        together(&mut text, &report.total, &budgets(report));
    }
    text
}

fn target(text: &mut String, estimate: &Estimate) {
    let kind = estimate.kind.map_or("?", ModelKind::as_str);
    let architecture = estimate.architecture.as_deref().unwrap_or_default();
    let grade = match estimate.grade {
        Trust::Exact => "exact",
        Trust::Remembered => "remembered",
        Trust::Declared => "declared",
        Trust::Unknown => "unknown until fetched",
    };
    let what = [estimate.form, kind, architecture, grade].into_iter().filter(|it| !it.is_empty());
    let what: Vec<&str> = what.collect();
    text.push_str(&printable(&format!("{}: {}", estimate.target, what.join(", "))));
    text.push('\n');
    if let Some(adapter) = &estimate.adapter {
        text.push_str(&printable(&format!("an adapter of {adapter}")));
        text.push('\n');
    }
    if let Some(parts) = &estimate.footprint {
        text.push_str(&table(estimate, parts).render());
    }
    if !estimate.sequences.is_empty() {
        let shown = |it: &super::estimate::Sequences| match it.at_floor == it.sequences {
            true => format!("{} of {}", it.sequences, it.context),
            false => format!("{} to {} of {}", it.at_floor, it.sequences, it.context),
        };
        let shown: Vec<String> = estimate.sequences.iter().map(shown).collect();
        text.push_str(&format!("sequences at a time, by tokens: {}\n", shown.join(", ")));
    }
    match (&estimate.devices[..], estimate.models_in_budget) {
        ([_], Some(models)) => {
            text.push_str(&format!("models like this in the budget: {models}\n"));
        }
        (devices, _) => devices.iter().for_each(|fit| text.push_str(&fitting(fit))),
    }
    instances(text, &estimate.instances);
    for warning in &estimate.warnings {
        text.push_str(&format!("warning: {}\n", printable(warning)));
    }
}

/// One device in the header, or each of several.
fn budgets(report: &Report) -> String {
    match &report.devices[..] {
        [only] => format!("budget {}", only.bytes),
        several => {
            let shown = several.iter().map(|it| format!("{} on {}", it.bytes, it.id));
            format!("budgets {}", shown.collect::<Vec<_>>().join(", "))
        }
    }
}

fn fitting(fit: &Fit) -> String {
    let Fit { id, budget_bytes, models, .. } = fit;
    match fit.fits {
        true => format!("fits {id} ({budget_bytes}): {} like it\n", count(*models, "model")),
        false => format!("does not fit {id} ({budget_bytes})\n"),
    }
}

fn table(estimate: &Estimate, parts: &Parts) -> Table {
    let mut table = Table::new(&["PART", ">IN FILES", ">IN MEMORY", "NOTE"]);
    let mut grown = String::new();
    let mut row = |part: &str, in_files: String, bytes: Bytes, note: String| {
        table.row(vec![part.into(), in_files, bytes.to_string(), note]);
    };
    for share in &estimate.weights {
        let note = match share.file_dtype == share.memory_dtype {
            true => share.file_dtype.to_owned(),
            false => format!("{} -> {}", share.file_dtype, share.memory_dtype),
        };
        row("weights", share.file_bytes.to_string(), share.bytes, note);
    }
    let Footprint { weights, kv, workspace, host, .. } = parts.parts;
    if let Some(token) = estimate.kv_token_bytes {
        let dtype = estimate.kv_dtype.unwrap_or_default();
        row("kv pool", String::new(), kv, format!("{dtype}, {token} per token"));
        if let Some(most) = estimate.kv_most_bytes.filter(|most| *most > kv) {
            grown = format!("grows to {most} of KV where room is free");
        }
    }
    if estimate.kind == Some(ModelKind::Adapter) {
        row("weights", String::new(), weights, "beside its base's".into());
        row("host", String::new(), host, "what finds them; some KiB more with the base".into());
    } else if estimate.kind == Some(ModelKind::Handler) {
        row("processes", String::new(), host, "measured while it runs".into());
    } else {
        row("workspace", String::new(), workspace, "of the largest step".into());
        let note = "tokenizer and template, estimated; measured when loaded";
        row("host", String::new(), host, note.into());
    }
    row("total", String::new(), parts.total, grown);
    table
}

fn together(text: &mut String, total: &Total, budgets: &str) {
    let fit = if total.fits { "fits" } else { "does not fit" };
    let unknown = match total.unknown {
        0 => String::new(),
        number => format!(" and {number} unknown"),
    };
    text.push_str(&format!(
        "together: {} in {} known{unknown}; {fit} the {budgets} side by side\n",
        total.bytes,
        count(total.known, "model"),
    ));
    instances(text, &total.instances);
}

fn instances(text: &mut String, fitting: &[&Instance]) {
    let of = |device: Device| {
        let named = fitting.iter().filter(move |it| it.device() == device);
        let named: Vec<String> =
            named.map(|it| format!("{} ({})", it.name(), it.memory())).collect();
        named.join(", ")
    };
    let (hosts, gpus) = (of(Device::Cpu), of(Device::Cuda));
    if !hosts.is_empty() {
        text.push_str(&format!("smallest instances that hold it: {hosts}\n"));
    }
    if !gpus.is_empty() {
        let note = "with a build for GPUs; weights as on the CPU";
        text.push_str(&format!("smallest GPU that holds it: {gpus} ({note})\n"));
    }
}
