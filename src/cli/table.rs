//! Tables and numbers for people. Amounts are exact, here too: a column takes as many
//! decimals as its finest amount, so points line up and sums can be checked by eye.

use crate::billing::Credits;

/// How far a column may shrink on a narrow terminal.
const NARROWEST: usize = 8;
const GAP: &str = "  ";

/// Where the text of a column begins or ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Words, which may be cut on a narrow terminal.
    Left,
    /// Words that say nothing when they are cut: times, states.
    Whole,
    /// Numbers.
    Right,
}

/// What the terminal can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// Headings may be bold.
    pub bold: bool,
    /// Columns of the terminal; none where the output goes to a file or a pipe.
    pub width: Option<usize>,
}

/// Rows under headings.
#[derive(Clone, Debug, Default)]
pub struct Table {
    columns: Vec<(String, Align)>,
    rows: Vec<Vec<String>>,
    total: Option<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub fn new<const N: usize>(columns: [(&str, Align); N]) -> Self {
        let columns = columns.map(|(name, align)| (name.to_owned(), align)).into();
        Self { columns, ..Self::default() }
    }

    /// Adds a row, one cell a column.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.columns.len());
        self.rows.push(cells.iter().map(|cell| printable(cell)).collect());
    }

    /// Sets the last row, under a line.
    pub fn total<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.columns.len());
        self.total = Some(cells.iter().map(|cell| printable(cell)).collect());
    }

    /// The table as text, each line ended.
    pub fn render(&self, style: Style) -> String {
        let widths = self.widths(style.width);
        let heading: Vec<_> = self.columns.iter().map(|(name, _)| name.clone()).collect();
        let mut text = String::new();
        if style.bold {
            text.push_str("\x1b[1m");
        }
        text.push_str(self.line(&heading, &widths).trim_end());
        if style.bold {
            text.push_str("\x1b[0m");
        }
        text.push('\n');
        for row in &self.rows {
            text.push_str(self.line(row, &widths).trim_end());
            text.push('\n');
        }
        if let Some(total) = &self.total {
            let width = widths.iter().sum::<usize>() + GAP.len() * (widths.len() - 1);
            text.push_str(&"─".repeat(width));
            text.push('\n');
            text.push_str(self.line(total, &widths).trim_end());
            text.push('\n');
        }
        text
    }

    fn line(&self, cells: &[String], widths: &[usize]) -> String {
        let padded = cells.iter().zip(widths).zip(&self.columns).map(|((cell, &width), column)| {
            let cell = shorten(cell, width);
            match column.1 {
                Align::Left | Align::Whole => format!("{cell:<width$}"),
                Align::Right => format!("{cell:>width$}"),
            }
        });
        padded.collect::<Vec<_>>().join(GAP)
    }

    /// The widest cell of each column; on a narrow terminal the widest words give way, and
    /// numbers never do.
    fn widths(&self, limit: Option<usize>) -> Vec<usize> {
        let mut widths: Vec<_> =
            self.columns.iter().map(|(name, _)| name.chars().count()).collect();
        for row in self.rows.iter().chain(&self.total) {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let Some(limit) = limit else {
            return widths;
        };
        let gaps = GAP.len() * widths.len().saturating_sub(1);
        while widths.iter().sum::<usize>() + gaps > limit {
            let words = self.columns.iter().zip(&mut widths);
            let widest = words
                .filter(|(column, width)| column.1 == Align::Left && **width > NARROWEST)
                .map(|(_, width)| width)
                .max();
            match widest {
                Some(width) => *width -= 1,
                None => break,
            }
        }
        widths
    }
}

/// Cuts a text to a width, and shows that it did.
fn shorten(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(width.saturating_sub(1)).collect();
    short.push('…');
    short
}

/// A text that cannot steer the terminal: names and models are what strangers sent.
pub fn printable(text: &str) -> String {
    // Besides controls, the marks that turn the direction of text and so hide parts of it.
    let is_unsafe = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if is_unsafe(c) { '\u{fffd}' } else { c }).collect()
}

/// Amounts of one column, with the same number of decimals.
pub fn amounts(amounts: &[Credits]) -> Vec<String> {
    let texts: Vec<_> = amounts.iter().map(Credits::to_string).collect();
    let decimals = |text: &str| text.split_once('.').map_or(0, |(_, part)| part.len());
    let most = texts.iter().map(|text| decimals(text)).max().unwrap_or_default();
    let pad = |text: &String| match most - decimals(text) {
        0 => text.clone(),
        missing if decimals(text) == 0 => format!("{text}.{}", "0".repeat(missing)),
        missing => format!("{text}{}", "0".repeat(missing)),
    };
    texts.iter().map(pad).collect()
}

/// A count in at most three or four digits: `9876`, `12.5 k`, `212 k`, `4.1 M`.
pub fn count(count: u64) -> String {
    if count < 10_000 {
        return count.to_string();
    }
    let count = u128::from(count);
    let mut size = 1;
    for unit in ["k", "M", "G", "T"] {
        size *= 1000;
        let tenths = (count * 10 + size / 2) / size;
        if tenths < 1000 {
            return format!("{}.{} {unit}", tenths / 10, tenths % 10);
        }
        let whole = (count + size / 2) / size;
        if whole < 1000 {
            return format!("{whole} {unit}");
        }
    }
    format!("{} T", count / size)
}

/// A part of a whole in percent; what cost something never shows as nothing.
pub fn share(part: Credits, whole: Credits) -> String {
    let (part, whole) = (i128::from(part.nano()), i128::from(whole.nano()));
    if whole <= 0 {
        return "–".to_owned();
    }
    match (part * 200 + whole) / (whole * 2) {
        0 if part > 0 => "< 1 %".to_owned(),
        percent => format!("{percent} %"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credits(text: &str) -> Credits {
        text.parse().unwrap()
    }

    fn table() -> Table {
        let mut table = Table::new([("MODEL", Align::Left), ("REQ", Align::Right)]);
        table.row(["claude-sonnet-4.5".to_owned(), "312".to_owned()]);
        table.row(["gpt".to_owned(), "7".to_owned()]);
        table
    }

    #[test]
    fn numbers_end_and_words_begin_on_one_line() {
        let mut table = table();
        table.total(["total".to_owned(), "319".to_owned()]);
        let expected = "\
MODEL              REQ
claude-sonnet-4.5  312
gpt                  7
──────────────────────
total              319
";
        assert_eq!(table.render(Style::default()), expected);
    }

    #[test]
    fn on_a_narrow_terminal_words_give_way_and_numbers_stay() {
        let text = table().render(Style { bold: false, width: Some(15) });
        assert_eq!(text.lines().nth(1), Some("claude-so…  312"));
        let text = table().render(Style { bold: false, width: Some(1) });
        assert_eq!(text.lines().nth(1), Some("claude-…  312"));
    }

    #[test]
    fn only_a_terminal_gets_bold_headings() {
        assert!(!table().render(Style::default()).contains('\x1b'));
        let bold = table().render(Style { bold: true, width: None });
        assert!(bold.starts_with("\x1b[1mMODEL              REQ\x1b[0m\n"));
    }

    #[test]
    fn a_cell_cannot_steer_the_terminal() {
        let mut table = Table::new([("NAME", Align::Left)]);
        table.row(["a\x1b[2J\u{202e}b\n".to_owned()]);
        assert_eq!(table.render(Style::default()), "NAME\na\u{fffd}[2J\u{fffd}b\u{fffd}\n");
    }

    #[test]
    fn amounts_of_a_column_are_exact_and_their_points_line_up() {
        let column = amounts(&[credits("5"), credits("-0.1"), credits("0.000000001")]);
        assert_eq!(column, ["5.000000000", "-0.100000000", "0.000000001"]);
        assert_eq!(amounts(&[credits("5"), credits("10")]), ["5", "10"]);
        assert_eq!(amounts(&[]), Vec::<String>::new());
    }

    #[test]
    fn counts_are_short_and_never_four_digits_with_a_unit() {
        for (number, text) in [
            (0, "0"),
            (9_999, "9999"),
            (10_000, "10.0 k"),
            (12_549, "12.5 k"),
            (99_949, "99.9 k"),
            (99_950, "100 k"),
            (212_000, "212 k"),
            (999_499, "999 k"),
            (999_500, "1.0 M"),
            (4_100_000, "4.1 M"),
            (u64::MAX, "18446744 T"),
        ] {
            assert_eq!(count(number), text);
        }
    }

    #[test]
    fn a_share_rounds_and_what_cost_something_is_not_nothing() {
        let of = |part, whole| share(credits(part), credits(whole));
        assert_eq!(of("1", "3"), "33 %");
        assert_eq!(of("2", "3"), "67 %");
        assert_eq!(of("0.001", "3"), "< 1 %");
        assert_eq!(of("0", "3"), "0 %");
        assert_eq!(of("0", "0"), "–");
    }
}
