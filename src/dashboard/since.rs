//! Since when something fails.

use std::sync::atomic::{AtomicI64, Ordering};

use crate::store::Millis;

/// When a failure was first seen that has not ended; for the whole process, whoever looks.
pub struct Since(AtomicI64);

const NEVER: Millis = Millis::MIN;

impl Since {
    /// It works.
    pub const fn never() -> Self {
        Self(AtomicI64::new(NEVER))
    }

    /// Takes down whether it fails now, and answers since when; none, if it works.
    pub fn told(&self, fails: bool, now: Millis) -> Option<Millis> {
        if !fails {
            self.0.store(NEVER, Ordering::Relaxed);
            return None;
        }
        let seen = self.0.compare_exchange(NEVER, now, Ordering::Relaxed, Ordering::Relaxed);
        Some(seen.map_or_else(|since| since, |_| now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_counts_until_it_works_again() {
        let since = Since::never();
        assert_eq!(since.told(false, 1), None);
        assert_eq!(since.told(true, 2), Some(2));
        assert_eq!(since.told(true, 3), Some(2));
        assert_eq!(since.told(false, 4), None);
        assert_eq!(since.told(true, 5), Some(5));
    }
}
