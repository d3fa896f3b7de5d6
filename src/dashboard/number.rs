//! How amounts, counts and lengths of time are shown.
//!
//! Nothing is rounded that is not marked so: a rounded amount carries the exact one beside it
//! (`<data value>`, and as its title). No float anywhere.

use std::fmt;

use askama::filters::HtmlSafe;

use crate::billing::Credits;

/// U+2212, as wide as a digit's plus.
const MINUS: char = '−';
/// U+202F, between groups of three digits.
const THIN: char = '\u{202f}';
const NANO_DIGITS: usize = 9;
/// From a hundredth of a credit on, digits behind the fourth decimal are the lesser part.
const FINE_FROM_NANO: u64 = 10_000_000;

/// How many decimals amounts in prose and on cards have. Columns have all that they need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Decimals {
    /// Four from one credit on, six below, without zeros at the end.
    #[default]
    Fitting,
    /// So many, as an account chose.
    Fixed(u8),
}

impl Decimals {
    /// The choices of an account, besides the fitting ones.
    pub const CHOICES: std::ops::RangeInclusive<u8> = 2..=9;

    /// An amount that is shown so.
    pub const fn show(self, amount: Credits) -> Amount {
        Amount { amount, decimals: self }
    }
}

/// An amount in prose or on a card, rounded half up; exact in its `value` and title. What costs
/// something is never shown as nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amount {
    amount: Credits,
    decimals: Decimals,
}

impl Amount {
    /// The text alone.
    pub fn text(self) -> String {
        let nano = self.amount.nano();
        let keep = match self.decimals {
            Decimals::Fitting if nano.unsigned_abs() >= 1_000_000_000 => 4,
            Decimals::Fitting => 6,
            Decimals::Fixed(places) => usize::from(places).min(NANO_DIGITS),
        };
        let step = 10_u64.pow(u32::try_from(NANO_DIGITS - keep).unwrap_or(0));
        if nano != 0 && nano.unsigned_abs() < step {
            let sign = if nano < 0 { "> −" } else { "< " };
            return format!("{sign}{}", decimals(step, keep));
        }
        let rounded = (nano.unsigned_abs() + step / 2) / step * step;
        let text = decimals(rounded, keep);
        let text = match self.decimals {
            Decimals::Fitting => text.trim_end_matches('0').trim_end_matches('.'),
            Decimals::Fixed(_) => &text,
        };
        if nano < 0 { format!("{MINUS}{text}") } else { text.to_owned() }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.text();
        write!(
            f,
            "<data class=\"amount\" value=\"{}\" title=\"{} credits\">{text}</data>",
            self.amount, self.amount
        )
    }
}

impl HtmlSafe for Amount {}

/// An amount in a column: every digit that is not zero at the end of the whole column, so that
/// the points line up and nothing is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exact {
    amount: Credits,
    places: usize,
    signed: bool,
}

impl Exact {
    /// The amounts of one column.
    pub fn column(amounts: impl IntoIterator<Item = Credits>) -> Vec<Self> {
        Self::of(amounts, false)
    }

    /// As [`Self::column`], with a plus before what is above zero.
    pub fn signed(amounts: impl IntoIterator<Item = Credits>) -> Vec<Self> {
        Self::of(amounts, true)
    }

    /// The same, with a plus if it is above zero.
    #[must_use]
    pub const fn with_sign(self) -> Self {
        Self { signed: true, ..self }
    }

    /// One amount with at least four decimals.
    pub fn one(amount: Credits) -> Self {
        Self { amount, places: places(amount).max(4), signed: false }
    }

    fn of(amounts: impl IntoIterator<Item = Credits>, signed: bool) -> Vec<Self> {
        let amounts: Vec<_> = amounts.into_iter().collect();
        let places = amounts.iter().copied().map(places).max().unwrap_or(0).max(4);
        amounts.into_iter().map(|amount| Self { amount, places, signed }).collect()
    }
}

impl fmt::Display for Exact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.amount.nano() {
            ..0 => "−",
            1.. if self.signed => "+",
            0.. => "",
        };
        let nano = self.amount.nano().unsigned_abs();
        let text = decimals(nano, self.places);
        // What is finer than a hundredth of a cent steps back, unless it is most of what there is.
        let fine = if nano == 0 || nano >= FINE_FROM_NANO { self.places - 4 } else { 0 };
        let (most, fine) = text.split_at(text.len() - fine);
        write!(f, "<data class=\"amount\" value=\"{}\">{sign}{most}", self.amount)?;
        if !fine.is_empty() {
            write!(f, "<span class=\"fine\">{fine}</span>")?;
        }
        f.write_str("</data>")
    }
}

impl HtmlSafe for Exact {}

/// Decimals that an amount needs.
fn places(amount: Credits) -> usize {
    let text = amount.to_string();
    text.split_once('.').map_or(0, |(_, part)| part.len())
}

/// Nano-credits with so many decimals, the rest cut off, whole credits in groups.
fn decimals(nano: u64, places: usize) -> String {
    let part = format!("{:09}", nano % 1_000_000_000);
    format!("{}.{}", grouped(nano / 1_000_000_000), &part[..places])
}

/// A whole number in groups of three digits.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() * 2);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(THIN);
        }
        out.push(digit);
    }
    out
}

/// A whole number for a card: `999`, `12.5 k`, `3.2 M`.
pub fn short(number: u64) -> String {
    let (unit, name) = match number {
        ..1_000 => return number.to_string(),
        1_000..1_000_000 => (1_000, "k"),
        1_000_000..1_000_000_000 => (1_000_000, "M"),
        _ => (1_000_000_000, "G"),
    };
    let tenths = number / (unit / 10);
    match tenths % 10 {
        0 => format!("{}{THIN}{name}", tenths / 10),
        tenth => format!("{}.{tenth}{THIN}{name}", tenths / 10),
    }
}

/// Milliseconds: `840 ms`, `7.9 s`, `2 min 05 s`.
pub fn duration(ms: u32) -> String {
    match ms {
        ..1_000 => format!("{ms}{THIN}ms"),
        1_000..60_000 => format!("{}.{}{THIN}s", ms / 1000, ms % 1000 / 100),
        _ => format!("{}{THIN}min {:02}{THIN}s", ms / 60_000, ms / 1000 % 60),
    }
}

/// A share in percent with one decimal, rounded half up: `71.3 %`. Nothing of nothing is none.
pub fn percent(part: Credits, whole: Credits) -> String {
    let (part, whole) = (i128::from(part.nano()), i128::from(whole.nano()));
    if whole <= 0 {
        return "–".into();
    }
    let tenths = (part * 1000 + whole / 2) / whole;
    if tenths == 0 && part > 0 {
        return format!("< 0.1{THIN}%");
    }
    format!("{}.{}{THIN}%", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn credits(text: &str) -> Credits {
        text.parse().unwrap()
    }

    #[test]
    fn an_amount_is_short_and_never_nothing_for_something() {
        for (amount, shown) in [
            ("0", "0"),
            ("12.345678", "12.3457"),
            ("-0.1", "−0.1"),
            ("0.0862785", "0.086279"),
            ("0.000001", "0.000001"),
            ("0.000000009", "< 0.000001"),
            ("-0.000000009", "> −0.000001"),
            ("1234567.5", "1\u{202f}234\u{202f}567.5"),
            ("0.9999999", "1"),
        ] {
            assert_eq!(Decimals::Fitting.show(credits(amount)).text(), shown, "{amount}");
        }
    }

    #[test]
    fn chosen_decimals_are_all_shown_and_never_nothing_for_something() {
        for (places, amount, shown) in [
            (2, "12.345678", "12.35"),
            (2, "12", "12.00"),
            (2, "0", "0.00"),
            (2, "0.009999999", "< 0.01"),
            (2, "-0.004", "> −0.01"),
            (4, "-0.1", "−0.1000"),
            (9, "0.000000001", "0.000000001"),
            (9, "1234.5", "1\u{202f}234.500000000"),
        ] {
            let of = Decimals::Fixed(places).show(credits(amount)).text();
            assert_eq!(of, shown, "{amount} with {places}");
        }
    }

    #[test]
    fn a_column_keeps_every_digit_and_lines_up() {
        let column = Exact::column(["0.0862785", "12", "-3.5"].map(credits));
        let text: Vec<_> = column.iter().map(ToString::to_string).collect();
        assert_eq!(
            text[0],
            "<data class=\"amount\" value=\"0.0862785\">0.0862<span class=\"fine\">785</span></data>"
        );
        assert_eq!(
            text[1],
            "<data class=\"amount\" value=\"12\">12.0000<span class=\"fine\">000</span></data>"
        );
        assert!(text[2].contains(">−3.5000<"), "{}", text[2]);
    }

    #[test]
    fn digits_do_not_step_back_where_they_are_most_of_an_amount() {
        let shown = |amount: &str| Exact::one(credits(amount)).to_string();
        assert!(shown("0.00004020").contains(">0.0000402<"), "{}", shown("0.0000402"));
        assert!(shown("0.0123456").contains("0.0123<span"), "{}", shown("0.0123456"));
    }

    #[test]
    fn counts_times_and_shares_read_well() {
        assert_eq!(short(12_549), "12.5\u{202f}k");
        assert_eq!(short(3_000_000), "3\u{202f}M");
        assert_eq!(grouped(1_234_567), "1\u{202f}234\u{202f}567");
        assert_eq!(
            (duration(840), duration(7_949)),
            ("840\u{202f}ms".into(), "7.9\u{202f}s".into())
        );
        assert_eq!(percent(credits("1"), credits("3")), "33.3\u{202f}%");
        assert_eq!(percent(credits("1"), credits("0")), "–");
    }

    proptest! {
        /// The digits of a column are those of the amount, whatever the others need.
        #[test]
        fn a_column_says_the_amount_itself(a in any::<i32>(), b in any::<i32>()) {
            let amounts = [Credits::from_nano(i64::from(a) * 1000), Credits::from_nano(b.into())];
            for (shown, amount) in Exact::column(amounts).iter().zip(amounts) {
                let text = shown.to_string().replace('−', "-").replace(THIN, "");
                let digits: String = text
                    .split('>').skip(1).flat_map(|part| part.split('<').next()).collect();
                prop_assert_eq!(digits.parse::<Credits>().unwrap(), amount);
            }
        }
    }
}
