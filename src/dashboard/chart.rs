//! Stacked bars as SVG, drawn here.
//!
//! Places are percentages of the drawing, so it fits every width while its text keeps its size;
//! colours are classes. Each bar is a link with its figures in words. Beside it stand a summary
//! in a sentence, a legend, and (by the page) the same as a table. Whole numbers throughout.

use askama::Template;

use super::number::{Amount, Decimals};
use crate::billing::Credits;

/// Series with a colour of their own; the next one is for the rest.
pub const SERIES: usize = 5;

/// One bar.
#[derive(Clone, Debug)]
pub struct Bar {
    /// Of each series, in order.
    pub parts: Vec<Credits>,
    /// Its name in words, such as `Mon 12 Oct`.
    pub name: String,
    /// What stands under it, if anything does.
    pub tick: String,
    /// Whether a narrow drawing leaves the tick out.
    pub is_minor: bool,
    /// What the same hour or day of the time before came to, where that is compared.
    pub before: Option<Credits>,
    /// Whether it is not over yet.
    pub is_open: bool,
    /// What happened in it, such as a top-up.
    pub marks: Vec<String>,
    /// Where it leads.
    pub href: String,
}

impl Bar {
    /// All series together.
    pub fn total(&self) -> Credits {
        self.parts.iter().copied().sum()
    }
}

#[derive(Template)]
#[template(path = "chart.html")]
struct Drawing<'a> {
    title: &'a str,
    summary: &'a str,
    axis: &'a str,
    bars: Vec<Shape>,
    lines: Vec<Line>,
    legend: Vec<Series>,
    before: Option<Amount>,
    has_events: bool,
}

struct Shape {
    x: String,
    width: String,
    middle: String,
    slot_x: String,
    slot_width: String,
    parts: Vec<Part>,
    before: Option<Part>,
    label: String,
    tick: String,
    is_minor: bool,
    is_open: bool,
    marks: String,
    href: String,
}

struct Part {
    y: String,
    height: String,
    series: usize,
}

struct Line {
    y: String,
    label: String,
}

struct Series {
    name: String,
    total: Amount,
    number: usize,
}

/// Draws bars; the legend sums up `sums`, which are others where each bar stands for all before
/// it. `axis` says what stands along it, such as `Days in Europe/Berlin`.
///
/// # Errors
///
/// When the template fails.
pub fn stacked(
    title: &str,
    axis: &str,
    summary: &str,
    names: &[String],
    bars: &[Bar],
    sums: &[Bar],
    decimals: Decimals,
) -> Result<String, askama::Error> {
    let all = bars.iter().flat_map(|bar| [bar.total(), bar.before.unwrap_or_default()]);
    let highest = all.map(Credits::nano).max().unwrap_or(0);
    let (top, steps) = scale(highest);
    let slots = i64::try_from(bars.len().max(1)).unwrap_or(1);
    let shapes = bars.iter().zip(0_i64..).map(|(bar, at)| {
        let (left, right) = (at * 100_000 / slots, (at + 1) * 100_000 / slots);
        let gap = (right - left) / 6;
        let mut above = 100_000;
        let parts = bar.parts.iter().enumerate().filter(|(_, part)| part.is_positive());
        let parts = parts.map(|(series, part)| {
            let height = share(part.nano(), top);
            above -= height;
            Part { y: thousandths(above), height: thousandths(height), series: series + 1 }
        });
        let before = bar.before.filter(|before| before.is_positive()).map(|before| {
            let height = share(before.nano(), top);
            Part { y: thousandths(100_000 - height), height: thousandths(height), series: 0 }
        });
        Shape {
            before,
            x: thousandths(left + gap),
            width: thousandths(right - left - 2 * gap),
            middle: thousandths(i64::midpoint(left, right)),
            slot_x: thousandths(left),
            slot_width: thousandths(right - left),
            parts: parts.collect(),
            label: label(bar, names, decimals),
            tick: bar.tick.clone(),
            is_minor: bar.is_minor,
            is_open: bar.is_open,
            marks: bar.marks.join("; "),
            href: bar.href.clone(),
        }
    });
    // Round numbers, whatever decimals were chosen.
    let lines = (0..=steps).map(|step| Line {
        y: thousandths(100_000 - 100_000 * step / steps),
        label: Decimals::Fitting.show(Credits::from_nano(top / steps * step)).text(),
    });
    let legend = names.iter().enumerate().map(|(at, name)| Series {
        name: name.clone(),
        total: decimals.show(sums.iter().filter_map(|bar| bar.parts.get(at).copied()).sum()),
        number: at + 1,
    });
    let drawing = Drawing {
        title,
        summary,
        axis,
        bars: shapes.collect(),
        lines: lines.collect(),
        legend: legend.collect(),
        before: sums
            .iter()
            .any(|bar| bar.before.is_some())
            .then(|| decimals.show(sums.iter().filter_map(|bar| bar.before).sum())),
        has_events: bars.iter().any(|bar| !bar.marks.is_empty()),
    };
    drawing.render()
}

/// A bar in words.
fn label(bar: &Bar, names: &[String], decimals: Decimals) -> String {
    let mut label = format!("{}: {} credits", bar.name, decimals.show(bar.total()).text());
    let parts = bar.parts.iter().zip(names).filter(|(part, _)| part.is_positive());
    for (part, name) in parts {
        label.push_str(&format!(", {name} {}", decimals.show(*part).text()));
    }
    if let Some(before) = bar.before {
        label.push_str(&format!(", the time before {}", decimals.show(before).text()));
    }
    if bar.is_open {
        label.push_str(", so far");
    }
    for mark in &bar.marks {
        label.push_str(", ");
        label.push_str(mark);
    }
    label
}

/// The top of the axis, at or above the highest bar, and the steps to it: round numbers.
fn scale(highest: i64) -> (i64, i64) {
    let mut unit = 1_i64;
    loop {
        for (times, steps) in [(1, 2), (2, 4), (3, 3), (4, 4), (5, 5), (8, 4)] {
            // Tens, so that every step is whole.
            let top = unit * times * 10;
            if top >= highest.max(1000) {
                return (top, steps);
            }
        }
        unit *= 10;
    }
}

/// Thousandths of a percent.
fn share(part: i64, whole: i64) -> i64 {
    i64::try_from(i128::from(part) * 100_000 / i128::from(whole.max(1))).unwrap_or(100_000)
}

fn thousandths(of_percent: i64) -> String {
    format!("{}.{:03}%", of_percent / 1000, of_percent % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_axis_ends_at_a_round_number_that_nothing_exceeds() {
        for highest in [0, 1, 999, 1000, 1_234_567, 30_000_000_000, 8_999_999_999_999_999] {
            let (top, steps) = scale(highest);
            assert!(top >= highest && top % steps == 0, "{highest}: {top} in {steps}");
            assert!(top <= highest.max(1000) * 2 + 1000, "{highest}: {top}");
        }
        assert_eq!(scale(2_400_000_000), (3_000_000_000, 3));
    }

    #[test]
    fn a_bar_says_its_figures_and_hostile_names_stay_text() {
        let bar = Bar {
            parts: vec!["1.5".parse().unwrap(), "0.25".parse().unwrap()],
            name: "Mon 12 Oct".into(),
            tick: "12".into(),
            is_minor: false,
            before: Some("1".parse().unwrap()),
            is_open: true,
            marks: vec!["top-up 10".into()],
            href: "?from=x".into(),
        };
        let bars = [bar];
        let names = ["<script>alert(1)</script>".to_owned(), "b".to_owned()];
        let drawn = stacked("Spending", "Days in UTC", "", &names, &bars, &bars, Decimals::Fitting);
        let drawn = drawn.unwrap();
        assert!(drawn.contains("Mon 12 Oct: 1.75 credits, "), "{drawn}");
        assert!(drawn.contains("the time before 1, so far, top-up 10"), "{drawn}");
        assert!(!drawn.contains("<script>") && !drawn.contains("style="));
    }
}
