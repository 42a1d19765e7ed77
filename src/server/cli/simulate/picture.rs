//! The picture: requests without a load of their own over the budget, one line per rule.

use std::fmt::Write;

use roundhouse_types::{Bytes, count};

use super::rows::{Report, Row, Source};

const WIDTH: f64 = 980.0;
const HEIGHT: f64 = 560.0;
/// The plot's edges.
const LEFT: f64 = 76.0;
const RIGHT: f64 = 660.0;
const TOP: f64 = 56.0;
const BOTTOM: f64 = 488.0;
/// Told apart also by people who see fewer colours (the palette of Okabe and Ito, and grey).
const COLOURS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#7f7f7f"];
/// Lines at shares of requests.
const GRID: u32 = 5;

/// One rule's points, by budget.
struct Line<'a> {
    rule: &'a str,
    source: Source,
    points: Vec<(Bytes, f64)>,
}

/// Draws the report as SVG.
pub(super) fn draw(report: &Report, models: usize) -> String {
    let lines = lines(&report.rows);
    let mut budgets: Vec<Bytes> = report.rows.iter().map(|row| row.budget).collect();
    budgets.sort_unstable();
    budgets.dedup();
    let least = lines.iter().flat_map(|line| &line.points).map(|(_, share)| *share);
    let scale = Scale::new(&budgets, least.fold(1.0, f64::min));
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
    );
    text(
        &mut svg,
        (LEFT, 28.0),
        "start\" font-size=\"16",
        &format!("{} for {}", count(report.requests, "request"), count(models, "model")),
    );
    axes(&mut svg, report, &budgets, &scale);
    for (number, line) in lines.iter().enumerate() {
        draw_line(&mut svg, line, number, &scale);
    }
    svg.push_str("</svg>\n");
    svg
}

/// Rules in the order of the table. Bounds that are not the best are left out.
fn lines(rows: &[Row]) -> Vec<Line<'_>> {
    let mut lines: Vec<Line<'_>> = Vec::new();
    for row in rows.iter().filter(|row| row.source != Source::Bound) {
        let point = (row.budget, 1.0 - row.miss_ratio);
        match lines.iter_mut().find(|line| line.rule == row.rule) {
            Some(line) => line.points.push(point),
            None => {
                lines.push(Line { rule: &row.rule, source: row.source, points: vec![point] });
            }
        }
    }
    for line in &mut lines {
        line.points.sort_by_key(|(budget, _)| *budget);
    }
    lines
}

/// From budgets, by their logarithm, and shares to places in the picture.
struct Scale {
    first: f64,
    span: f64,
    lowest: f64,
}

impl Scale {
    fn new(budgets: &[Bytes], least: f64) -> Self {
        let ends = (budgets.first().map_or(0.0, log), budgets.last().map_or(0.0, log));
        let lowest = ((least * 10.0).floor() / 10.0).clamp(0.0, 0.9);
        Self { first: ends.0, span: ends.1 - ends.0, lowest }
    }

    fn x(&self, budget: Bytes) -> f64 {
        // One budget alone stands in the middle.
        let share = if self.span > 0.0 { (log(&budget) - self.first) / self.span } else { 0.5 };
        LEFT + 24.0 + share * (RIGHT - LEFT - 48.0)
    }

    fn y(&self, share: f64) -> f64 {
        BOTTOM - (share - self.lowest) / (1.0 - self.lowest) * (BOTTOM - TOP)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a place in a picture")]
fn log(budget: &Bytes) -> f64 {
    (budget.0.max(1) as f64).ln()
}

fn axes(svg: &mut String, report: &Report, budgets: &[Bytes], scale: &Scale) {
    for step in 0..=GRID {
        let share = scale.lowest + (1.0 - scale.lowest) * f64::from(step) / f64::from(GRID);
        let y = scale.y(share);
        put(svg, format_args!("<path d=\"M{LEFT} {y:.1}H{RIGHT}\" stroke=\"#dddddd\"/>\n"));
        text(svg, (LEFT - 8.0, y + 4.0), "end", &format!("{share:.2}"));
    }
    for budget in budgets {
        let x = scale.x(*budget);
        put(svg, format_args!("<path d=\"M{x:.1} {TOP}V{BOTTOM}\" stroke=\"#eeeeee\"/>\n"));
        let label = match report.slot {
            Some(slot) if budget.0.is_multiple_of(slot.0.max(1)) => {
                (budget.0 / slot.0.max(1)).to_string()
            }
            _ => budget.to_string(),
        };
        text(svg, (x, BOTTOM + 20.0), "middle", &label);
    }
    put(
        svg,
        format_args!(
            "<path d=\"M{LEFT} {TOP}V{BOTTOM}H{RIGHT}\" fill=\"none\" stroke=\"black\"/>\n"
        ),
    );
    let unit = match report.slot {
        Some(slot) => format!("budget, in models of {slot} (logarithmic)"),
        None => "budget (logarithmic)".to_owned(),
    };
    text(svg, (f64::midpoint(LEFT, RIGHT), BOTTOM + 46.0), "middle", &unit);
    let middle = f64::midpoint(TOP, BOTTOM);
    put(
        svg,
        format_args!(
            "<text transform=\"translate(22 {middle:.0}) rotate(-90)\" text-anchor=\"middle\">\
             1 - loads per request</text>\n"
        ),
    );
}

fn draw_line(svg: &mut String, line: &Line<'_>, number: usize, scale: &Scale) {
    let colour = COLOURS[number % COLOURS.len()];
    let dashes = match line.source {
        Source::Table => "",
        Source::Reference => " stroke-dasharray=\"6 4\"",
        Source::Optimum | Source::Bound => " stroke-dasharray=\"2 3\"",
    };
    let place = |(budget, share): &(Bytes, f64)| (scale.x(*budget), scale.y(*share));
    let places: Vec<String> =
        line.points.iter().map(place).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    put(
        svg,
        format_args!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"{dashes}/>\n",
            places.join(" ")
        ),
    );
    for (x, y) in line.points.iter().map(place) {
        put(
            svg,
            format_args!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{colour}\"/>\n"),
        );
    }
    #[expect(clippy::cast_precision_loss, reason = "a handful of lines")]
    let y = TOP + 12.0 + number as f64 * 24.0;
    let (from, to) = (RIGHT + 20.0, RIGHT + 56.0);
    put(
        svg,
        format_args!(
            "<path d=\"M{from} {y}H{to}\" stroke=\"{colour}\" stroke-width=\"2\"{dashes}/>\n"
        ),
    );
    text(svg, (to + 8.0, y + 4.0), "start", line.rule);
}

fn text(svg: &mut String, (x, y): (f64, f64), anchor: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    put(
        svg,
        format_args!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>\n"),
    );
}

fn put(svg: &mut String, words: std::fmt::Arguments<'_>) {
    svg.write_fmt(words).expect("a string takes everything");
}
