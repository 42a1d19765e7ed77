//! What came of each combination: the table for people, the values for programs.

use roundhouse_residency::simulate::reference::{
    self, Admission, Collation, Cost, Frequency, Objective, Tally,
};
use roundhouse_residency::simulate::{LeastBudget, Outcome, Trace};
use roundhouse_residency::{Config as TableConfig, Policy};
use roundhouse_types::{Bytes, count};
use serde::Serialize;

use super::super::output::Table;

/// Requests that later ones may pass in the plain model of collation.
const PASSED: usize = 32;
/// Requests that are pending in it, where the drive does not say.
const PENDING: usize = 16;

/// Everything that is printed.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) notes: Vec<String>,
    pub(super) requests: usize,
    /// What every model takes, where all take the same.
    pub(super) slot: Option<Bytes>,
    pub(super) rows: Vec<Row>,
    /// The least budgets for the target hit ratio, by rule.
    pub(super) targets: Vec<(String, f64, Option<LeastBudget>)>,
}

/// One rule under one budget.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) budget: Bytes,
    pub(super) rule: String,
    pub(super) source: Source,
    pub(super) loads: u64,
    /// Loads by requests.
    pub(super) miss_ratio: f64,
    pub(super) loaded_bytes: Option<Bytes>,
    /// Loads by those of the optimum, or of its lower bound.
    pub(super) of_optimum: Option<f64>,
    /// Of a run alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) outcome: Option<Outcome>,
}

/// Where a row comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Source {
    /// The table was run.
    Table,
    /// A plain model of caching.
    Reference,
    /// The offline optimum, or the better of its lower bounds.
    Optimum,
    /// Another bound of the optimum, or an optimum of other rules.
    Bound,
}

impl Row {
    pub(super) fn of_run(config: &TableConfig, budget: Bytes, outcome: Outcome) -> Self {
        Self {
            budget,
            rule: rule(config),
            source: Source::Table,
            loads: outcome.loads,
            miss_ratio: outcome.miss_ratio,
            loaded_bytes: Some(outcome.loaded_bytes),
            of_optimum: None,
            outcome: Some(outcome),
        }
    }

    fn of_tally(budget: Bytes, rule: &str, source: Source, tally: &Tally) -> Self {
        Self {
            budget,
            rule: rule.into(),
            source,
            loads: tally.loads,
            miss_ratio: tally.miss_ratio(),
            loaded_bytes: Some(tally.loaded_bytes),
            of_optimum: None,
            outcome: None,
        }
    }
}

/// How a combination is called.
pub(super) fn rule(config: &TableConfig) -> String {
    let policy = match config.policy {
        Policy::LeastRecentlyUsed => "lru",
        Policy::GreedyDual => "greedy-dual",
    };
    let collation = if config.collation.most_waited_first { " + collation" } else { "" };
    format!("{policy}{collation}")
}

/// The plain models of caching under this budget.
pub(super) fn references(trace: &Trace, budget: Bytes, pending: Option<u32>) -> Vec<Row> {
    let sequence = trace.sequence();
    let row = |rule: &str, source, tally: Tally| Row::of_tally(budget, rule, source, &tally);
    let gdsf = |cost| reference::gdsf(&sequence, budget, Frequency::Kept, cost);
    let pending = pending.map_or(PENDING, |pending| pending as usize);
    let bounds = Collation { pending, passed: PASSED };
    let collation = reference::collation(&sequence, budget, bounds, Cost::Bytes);
    let mut rows = vec![
        row("(lru)", Source::Reference, reference::lru(&sequence, budget)),
        row("(gdsf)", Source::Reference, gdsf(Cost::Bytes)),
        row(&format!("(collation {pending}/{PASSED})"), Source::Reference, collation),
    ];
    if let Some(size) = trace.equal_size() {
        let slots = Bytes(budget.0 / size.0.max(1)).as_usize();
        let belady = |admission| reference::belady(&sequence, slots, admission);
        let (optimum, transient) =
            (belady(Admission::MustTakeRoom), belady(Admission::MayPassThrough));
        rows.push(row("(optimum: belady)", Source::Optimum, optimum));
        rows.push(row("(belady, a transient slot more)", Source::Bound, transient));
    } else {
        rows.push(row("(gdsf, every load costs the same)", Source::Reference, gdsf(Cost::Load)));
        rows.extend(bounds_of_optimum(&sequence, budget));
    }
    rows
}

fn bounds_of_optimum(sequence: &reference::Sequence, budget: Bytes) -> Vec<Row> {
    let loads = reference::bounds(sequence, budget, Objective::Loads);
    let bytes = reference::bounds(sequence, budget, Objective::Bytes);
    let row = |rule: &str, source, loads_: u64, bytes: u64| {
        let loaded_bytes = Bytes(bytes);
        let tally = Tally { requests: loads.requests, loads: loads_, loaded_bytes, refused: 0 };
        Row::of_tally(budget, rule, source, &tally)
    };
    vec![
        row("(optimum, at most: greedy)", Source::Bound, loads.greedy_upper, bytes.greedy_upper),
        row("(optimum, at least: dual)", Source::Optimum, loads.dual_lower, bytes.dual_lower),
        row("(optimum, at least: PFOO-L)", Source::Bound, loads.pfoo_lower, bytes.pfoo_lower),
    ]
}

/// Holds the loads of each row against those of the optimum under the same budget.
pub(super) fn hold_against_optimum(rows: &mut [Row]) {
    let optima: Vec<(Bytes, u64)> = rows
        .iter()
        .filter(|row| row.source == Source::Optimum)
        .map(|row| (row.budget, row.loads))
        .collect();
    for row in rows {
        let optimum = optima.iter().find(|(budget, _)| *budget == row.budget);
        row.of_optimum = optimum.filter(|(_, loads)| *loads > 0).map(|(_, loads)| {
            #[expect(clippy::cast_precision_loss, reason = "exact below 2^53")]
            let ratio = row.loads as f64 / *loads as f64;
            ratio
        });
    }
}

impl Report {
    /// The table, with what was left out above and the targets below.
    pub(super) fn text(&self) -> String {
        let mut text: String = self.notes.iter().map(|note| format!("note: {note}\n")).collect();
        let headings = [
            "BUDGET",
            "RULE",
            ">LOADS/REQ",
            ">LOADS",
            ">LOADED",
            ">x OPTIMUM",
            ">HITS",
            ">P50",
            ">P99",
            ">MAX",
            ">REFUSED",
            ">GOODPUT",
            ">OVERTAKEN",
        ];
        let mut table = Table::new(&headings);
        for row in &self.rows {
            table.row(self.cells(row));
        }
        text.push_str(&table.render());
        for (rule, ratio, least) in &self.targets {
            text.push_str(&match least {
                Some(least) => format!(
                    "{rule}: hit ratio {ratio} from {} ({}): {}, {:.1} per slot\n",
                    self.budget(least.budget),
                    count(least.slots, "slot"),
                    count(least.models, "model"),
                    least.models_per_slot,
                ),
                None => format!("{rule}: hit ratio {ratio} is not reached at any budget\n"),
            });
        }
        text
    }

    /// A budget as people think of it.
    pub(super) fn budget(&self, budget: Bytes) -> String {
        match self.slot {
            Some(slot) if slot > Bytes::ZERO && budget.0.is_multiple_of(slot.0) => {
                format!("{} x {slot}", budget.0 / slot.0)
            }
            _ => budget.to_string(),
        }
    }

    fn cells(&self, row: &Row) -> Vec<String> {
        let dash = || "-".to_owned();
        let mut cells = vec![
            self.budget(row.budget),
            row.rule.clone(),
            format!("{:.4}", row.miss_ratio),
            row.loads.to_string(),
            row.loaded_bytes.map_or_else(dash, |bytes| bytes.to_string()),
            row.of_optimum.map_or_else(dash, |ratio| format!("{ratio:.3}")),
        ];
        match &row.outcome {
            Some(outcome) => cells.extend([
                format!("{:.4}", outcome.hit_ratio),
                milliseconds(outcome.waits.p50_ms),
                milliseconds(outcome.waits.p99_ms),
                milliseconds(outcome.waits.max_ms),
                outcome.refused.to_string(),
                format!("{:.2}/s", outcome.goodput),
                outcome.most_overtakings.to_string(),
            ]),
            None => cells.extend(std::iter::repeat_with(dash).take(7)),
        }
        cells
    }
}

fn milliseconds(time: f64) -> String {
    if time >= 10_000.0 { format!("{:.1} s", time / 1e3) } else { format!("{time:.0} ms") }
}
