//! Keys: what a client or an operator signs requests with.
//!
//! `fbx_live_` (client), `fbx_admin_` (operator) or `fbx_link_` (sign-in), 43 characters of base62 from 32 random
//! bytes, `_`, and a checksum of six characters: secret scanners find it, and a typo is
//! told apart from an unknown key. Only the SHA-256 of the whole key is ever kept.

use std::fmt;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// The SHA-256 of a whole key: what stores and caches know it by.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyHash(pub [u8; 32]);

impl KeyHash {
    /// The hash of a presented key, whatever its shape.
    pub fn of(key: &str) -> Self {
        Self(Sha256::digest(key.as_bytes()).into())
    }

    /// Compares in constant time.
    pub fn matches(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyHash(…)")
    }
}

/// A text that never shows itself: provider keys, client keys, admin keys.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself, for the one place that must send or hash it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Which listener a key opens; the classes are disjoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Inference.
    Client,
    /// The control plane.
    Admin,
    /// The billing pages of one account, by a link that the operator hands out.
    Link,
}

impl Class {
    /// What keys of this class begin with.
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Client => "fbx_live_",
            Self::Admin => "fbx_admin_",
            Self::Link => "fbx_link_",
        }
    }
}

const BODY_CHARS: usize = 43;
const CHECKSUM_CHARS: usize = 6;
const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Makes a key from 32 bytes of the operating system's randomness.
///
/// # Errors
///
/// When the operating system has none to give.
pub fn generate(class: Class) -> Result<Secret, getrandom::Error> {
    let mut random = [0; 32];
    getrandom::fill(&mut random)?;
    let mut body = String::with_capacity(BODY_CHARS);
    // 62⁴³ exceeds 2²⁵⁶, so 43 digits hold all 32 bytes.
    for _ in 0..BODY_CHARS {
        body.push(char::from(BASE62[divide(&mut random, 62)]));
    }
    let head = format!("{}{body}_", class.prefix());
    let sum = checksum(&head);
    Ok(Secret(head + &sum))
}

/// Divides a big-endian number in place and returns the remainder.
fn divide(number: &mut [u8], by: u32) -> usize {
    let mut rest = 0_u32;
    for byte in number {
        let value = rest << 8 | u32::from(*byte);
        *byte = u8::try_from(value / by).expect("the rest is below the divisor");
        rest = value % by;
    }
    rest as usize
}

/// Six base62 digits of the CRC-32 of everything before them.
fn checksum(head: &str) -> String {
    let mut crc = flate2::Crc::new();
    crc.update(head.as_bytes());
    let mut rest = crc.sum();
    let mut digits = [b'0'; CHECKSUM_CHARS];
    for digit in digits.iter_mut().rev() {
        *digit = BASE62[(rest % 62) as usize];
        rest /= 62;
    }
    digits.iter().map(|d| char::from(*d)).collect()
}

/// Whether a text has our shape but a wrong checksum: a typo or a cut, not another key.
pub fn looks_mistyped(key: &str) -> bool {
    let ours =
        [Class::Client, Class::Admin, Class::Link].iter().any(|c| key.starts_with(c.prefix()));
    ours && match key.len().checked_sub(CHECKSUM_CHARS) {
        Some(at) if key.is_char_boundary(at) => checksum(&key[..at]) != key[at..],
        _ => true,
    }
}

/// Bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a text does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// The last four characters: enough to tell keys apart, not to use one.
pub fn last4(key: &str) -> String {
    let skip = key.chars().count().saturating_sub(4);
    key.chars().skip(skip).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_has_its_prefix_its_length_and_a_true_checksum() {
        for class in [Class::Client, Class::Admin, Class::Link] {
            let key = generate(class).unwrap();
            let text = key.expose();
            assert!(text.starts_with(class.prefix()));
            assert_eq!(text.len(), class.prefix().len() + BODY_CHARS + 1 + CHECKSUM_CHARS);
            assert!(!looks_mistyped(text));
        }
    }

    #[test]
    fn any_one_changed_character_is_told_as_a_typo() {
        let key = generate(Class::Client).unwrap();
        let text = key.expose();
        for at in Class::Client.prefix().len()..text.len() {
            let mut other = text.as_bytes().to_vec();
            other[at] = if other[at] == b'x' { b'y' } else { b'x' };
            assert!(looks_mistyped(std::str::from_utf8(&other).unwrap()), "at {at}");
        }
        assert!(looks_mistyped(&text[..20]));
        assert!(!looks_mistyped("sk-something-else"));
    }

    #[test]
    fn a_secret_does_not_show_itself() {
        let key = generate(Class::Admin).unwrap();
        assert_eq!(format!("{key:?} {:?}", KeyHash::of(key.expose())), "*** KeyHash(…)");
    }
}
