//! The unit of money: whole nano-credits, exact from end to end.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Neg, Sub};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An amount of credits, in whole nano-credits (10⁻⁹). Never a float.
///
/// Written and read as a decimal string, such as `"-0.1"` or `"4.9"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Credits(i64);

/// Nano-credits in one credit.
const NANO: i64 = 1_000_000_000;

/// Why a text is not an amount of credits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CreditsError {
    /// Something other than an optional sign, digits and one point.
    #[error("not a decimal number such as 4.9 or -0.1")]
    NotDecimal,
    /// Finer than a nano-credit.
    #[error("more than nine decimals, and a nano-credit is the smallest amount")]
    TooFine,
    /// Beyond ±9,000,000 credits.
    #[error("beyond the limit of 9,000,000 credits")]
    TooLarge,
}

impl Credits {
    /// No credits.
    pub const ZERO: Self = Self(0);
    /// The largest balance, either way: it stays an exact whole number of nano-credits even
    /// where a store counts in doubles (2⁵³ ≈ 9.007·10¹⁵).
    pub const LIMIT: Self = Self(9_000_000 * NANO);
    /// The largest single credit or debit.
    pub const ENTRY_LIMIT: Self = Self(1_000_000 * NANO);

    /// An amount of whole nano-credits.
    pub const fn from_nano(nano: i64) -> Self {
        Self(nano)
    }

    /// The amount in whole nano-credits.
    pub const fn nano(self) -> i64 {
        self.0
    }

    /// Rounds pico-credits (10⁻¹²) half up to the nano-credit. `None` beyond [`Self::LIMIT`].
    pub fn from_pico(pico: i128) -> Option<Self> {
        let nano = pico.checked_add(500)?.div_euclid(1000);
        let nano = i64::try_from(nano).ok()?;
        (nano.abs() <= Self::LIMIT.0).then_some(Self(nano))
    }

    /// `None` where the sum leaves ±[`Self::LIMIT`].
    pub fn checked_add(self, other: Self) -> Option<Self> {
        let sum = self.0.checked_add(other.0)?;
        (sum.abs() <= Self::LIMIT.0).then_some(Self(sum))
    }

    /// Above zero, strictly: exactly zero admits nothing.
    pub const fn is_positive(self) -> bool {
        self.0 > 0
    }

    /// Below zero.
    pub const fn is_negative(self) -> bool {
        self.0 < 0
    }

    /// The amount without its sign.
    pub const fn abs(self) -> Self {
        Self(self.0.abs())
    }
}

/// A sum of any number of amounts: unlike a balance it has no limit of its own.
///
/// Written and read as [`Credits`] are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Total(i128);

impl Total {
    /// Nothing.
    pub const ZERO: Self = Self(0);
}

impl fmt::Display for Credits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Total::from(*self).fmt(f)
    }
}

impl fmt::Display for Total {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nano = self.0.unsigned_abs();
        let one = NANO.unsigned_abs();
        let (whole, part) = match u64::try_from(nano) {
            // Nearly always; to divide what is wider costs ten times as much.
            Ok(nano) => (u128::from(nano / one), nano % one),
            Err(_) => (nano / u128::from(one), (nano % u128::from(one)) as u64),
        };
        // From the last digit to the first: 30, a point and 9 are the most.
        let mut text = [0; 40];
        let mut at = text.len();
        let mut put = |digit: u8| {
            at -= 1;
            text[at] = digit;
        };
        let (mut part, mut places) = (part, 9);
        while part > 0 && part % 10 == 0 {
            (part, places) = (part / 10, places - 1);
        }
        if part > 0 {
            for _ in 0..places {
                put(b'0' + (part % 10) as u8);
                part /= 10;
            }
            put(b'.');
        }
        match u64::try_from(whole) {
            Ok(whole) => digits(whole, &mut put),
            Err(_) => {
                const STEP: u128 = 10_u128.pow(19);
                let mut low = (whole % STEP) as u64;
                for _ in 0..19 {
                    put(b'0' + (low % 10) as u8);
                    low /= 10;
                }
                // Of the most that an `i128` holds, divided by 10⁹, this leaves 11 digits.
                digits((whole / STEP) as u64, &mut put);
            }
        }
        let text = std::str::from_utf8(&text[at..]).expect("digits and a point");
        f.pad_integral(self.0 >= 0, "", text)
    }
}

/// The digits of a number, the last one first.
fn digits(mut number: u64, put: &mut impl FnMut(u8)) {
    loop {
        put(b'0' + (number % 10) as u8);
        number /= 10;
        if number == 0 {
            return;
        }
    }
}

impl From<Credits> for Total {
    fn from(amount: Credits) -> Self {
        Self(amount.0.into())
    }
}

impl Add for Total {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

impl Sub for Total {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0 - other.0)
    }
}

impl Neg for Total {
    type Output = Self;
    fn neg(self) -> Self {
        Self(-self.0)
    }
}

impl AddAssign<Credits> for Total {
    fn add_assign(&mut self, amount: Credits) {
        self.0 += i128::from(amount.0);
    }
}

impl AddAssign for Total {
    fn add_assign(&mut self, other: Self) {
        self.0 += other.0;
    }
}

impl Serialize for Total {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Total {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl FromStr for Total {
    type Err = CreditsError;

    fn from_str(text: &str) -> Result<Self, CreditsError> {
        nano_of(text).map(Self)
    }
}

impl FromStr for Credits {
    type Err = CreditsError;

    fn from_str(text: &str) -> Result<Self, CreditsError> {
        match i64::try_from(nano_of(text)?) {
            Ok(nano) if nano.abs() <= Self::LIMIT.0 => Ok(Self(nano)),
            _ => Err(CreditsError::TooLarge),
        }
    }
}

/// The nano-credits that a decimal text says, of any size.
fn nano_of(text: &str) -> Result<i128, CreditsError> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, part) = digits.split_once('.').unwrap_or((digits, "0"));
    let is_number = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    if !is_number(whole) || !is_number(part) {
        return Err(CreditsError::NotDecimal);
    }
    let part = part.trim_end_matches('0');
    if part.len() > 9 {
        return Err(CreditsError::TooFine);
    }
    let whole: i128 = whole.parse().map_err(|_| CreditsError::TooLarge)?;
    let part: i128 = format!("{part:0<9}").parse().map_err(|_| CreditsError::TooLarge)?;
    let nano = whole.checked_mul(NANO.into()).and_then(|n| n.checked_add(part));
    let nano = nano.ok_or(CreditsError::TooLarge)?;
    Ok(if negative { -nano } else { nano })
}

impl Serialize for Credits {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Credits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl Neg for Credits {
    type Output = Self;
    fn neg(self) -> Self {
        Self(-self.0)
    }
}

/// Balances stay within [`Credits::LIMIT`], far from where an `i64` ends.
impl Add for Credits {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

impl Sub for Credits {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0 - other.0)
    }
}

impl AddAssign for Credits {
    fn add_assign(&mut self, other: Self) {
        self.0 += other.0;
    }
}

impl Sum for Credits {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        Self(iter.map(|c| c.0).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn credits(text: &str) -> Credits {
        text.parse().unwrap()
    }

    #[test]
    fn amounts_read_as_they_are_written() {
        for text in ["0", "0.2", "-0.1", "4.9", "0.057915", "0.000000001", "-9000000"] {
            assert_eq!(credits(text).to_string(), text);
        }
        assert_eq!(credits("5.00"), credits("5"));
        assert_eq!(credits("-0"), Credits::ZERO);
        assert_eq!(format!("{:>8}", credits("-0.1")), "    -0.1");
    }

    #[test]
    fn what_is_not_an_exact_amount_is_refused() {
        for text in ["", "-", ".", "1.", ".5", "1e3", "+1", " 1", "1 ", "0x1", "١", "1_000", "--1"]
        {
            assert_eq!(text.parse::<Credits>(), Err(CreditsError::NotDecimal), "{text:?}");
        }
        assert_eq!("0.0000000001".parse::<Credits>(), Err(CreditsError::TooFine));
        assert_eq!("9000000.1".parse::<Credits>(), Err(CreditsError::TooLarge));
        assert_eq!("99999999999999999999".parse::<Credits>(), Err(CreditsError::TooLarge));
    }

    #[test]
    fn a_total_is_exact_beyond_what_a_balance_may_be() {
        let mut total = Total::ZERO;
        for _ in 0..3 {
            total += Credits::LIMIT;
            total += Credits::from_nano(-1);
        }
        assert_eq!(total.to_string(), "26999999.999999997");
        let read: Total = serde_json::from_str("\"-26999999.999999997\"").unwrap();
        assert_eq!(read, -total);
        let most = Total(i128::MAX);
        assert_eq!(most.to_string(), "170141183460469231731687303715.884105727");
        assert_eq!((-most).to_string(), "-170141183460469231731687303715.884105727");
    }

    #[test]
    fn pico_credits_round_half_up_once() {
        let nano = |pico| Credits::from_pico(pico).unwrap().nano();
        assert_eq!(nano(112_500), 113);
        assert_eq!(nano(112_499), 112);
        assert_eq!(nano(499), 0);
        assert_eq!(nano(500), 1);
        assert_eq!(Credits::from_pico(i128::MAX), None);
    }

    proptest! {
        #[test]
        fn writing_then_reading_is_identity(nano in -Credits::LIMIT.0..=Credits::LIMIT.0) {
            let amount = Credits::from_nano(nano);
            prop_assert_eq!(amount.to_string().parse::<Credits>(), Ok(amount));
        }
    }
}
