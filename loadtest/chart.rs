//! The picture of a run: how long which share of the answers took, by tier; of streams also the first
//! token and the time between tokens.

use std::path::Path;

use plotters::prelude::*;
use plotters::style::full_palette;

use crate::report::Report;

/// Draws, for each tier, latency (logarithmic) against the share of answers within it.
pub(crate) fn latency(path: &Path, report: &Report) -> Result<(), Box<dyn std::error::Error>> {
    let mut tiers = report.by_tier();
    tiers.extend(report.of_pieces().into_iter().map(|(of, h)| (format!("{of} token"), h)));
    let longest = tiers.iter().map(|(_, h)| h.max()).max().unwrap_or(1) as f64 / 1e3;
    let shortest = tiers.iter().map(|(_, h)| h.min()).min().unwrap_or(1) as f64 / 1e3;
    let root = SVGBackend::new(path, (960, 540)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(&report.title, ("sans-serif", 20))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(56)
        .build_cartesian_2d((shortest.max(0.1)..longest.max(1.0) * 1.1).log_scale(), 0.0..1.0)?;
    chart
        .configure_mesh()
        .x_desc("ms, from the planned time (between tokens: from the one before)")
        .y_desc("share of answers")
        .x_label_formatter(&|ms| format!("{ms:.0}"))
        .draw()?;
    let colours = [BLACK, BLUE, GREEN, RED, MAGENTA, CYAN, full_palette::ORANGE];
    for ((tier, histogram), colour) in tiers.iter().zip(colours) {
        let points = (0..=1000).map(|step| {
            let share = f64::from(step) / 1000.0;
            (histogram.value_at_quantile(share) as f64 / 1e3, share)
        });
        let label = format!("{tier} ({})", histogram.len());
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)))?
            .label(label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .position(SeriesLabelPosition::LowerRight)
        .draw()?;
    root.present()?;
    Ok(())
}
