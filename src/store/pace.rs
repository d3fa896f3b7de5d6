//! How many come to share a sync of the disk: where many come, the first of them waits a moment
//! for the others, or each few would pay for a sync of their own.

use std::time::{Duration, Instant};

/// How long the first may wait.
pub(super) const GATHER: Duration = Duration::from_millis(1);
/// So many in that time are worth a wait.
const CROWD: usize = 4;
/// How often they are counted.
const COUNT: Duration = Duration::from_millis(10);

/// How many come.
pub(super) struct Pace {
    since: Instant,
    came: usize,
    crowd: usize,
}

impl Pace {
    /// Nobody has come yet.
    pub(super) fn new() -> Self {
        Self { since: Instant::now(), came: 0, crowd: 0 }
    }

    /// So many have come until now.
    pub(super) fn count(&mut self, came: usize, now: Instant) {
        self.came += came;
        let passed = now.saturating_duration_since(self.since);
        if passed >= COUNT {
            let expected = self.came as u128 * GATHER.as_micros() / passed.as_micros();
            let expected = usize::try_from(expected).unwrap_or(usize::MAX);
            let crowd = if expected < CROWD { 0 } else { expected };
            *self = Self { since: now, came: 0, crowd };
        }
    }

    /// How many are expected in [`GATHER`]; none if they are too few to be waited for.
    pub(super) fn crowd(&self) -> usize {
        self.crowd
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_who_come_one_by_one_are_not_waited_for_and_a_crowd_is() {
        let mut pace = Pace::new();
        let mut now = pace.since;
        let mut come = |pace: &mut Pace, each: usize, after: Duration| {
            for _ in 0..100 {
                now += after;
                pace.count(each, now);
            }
            pace.crowd()
        };
        assert_eq!(come(&mut pace, 1, Duration::from_millis(1)), 0);
        assert_eq!(come(&mut pace, 2, Duration::from_micros(200)), 10);
        assert_eq!(come(&mut pace, 64, Duration::from_millis(4)), 16);
        assert_eq!(come(&mut pace, 1, Duration::from_secs(1)), 0);
    }
}
