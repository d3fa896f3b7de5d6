//! How often something may happen in a minute: wrong keys of an address, free calls of a key.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const WINDOW: Duration = Duration::from_secs(60);
/// Beyond so many, those whose window is over are forgotten.
const MANY: usize = 10_000;

/// Counts per key in windows of a minute that begin with the first count.
pub struct PerMinute<K> {
    limit: u32,
    /// Nobody has been counted: the common case costs one load.
    idle: AtomicBool,
    windows: Mutex<HashMap<K, (Instant, u32)>>,
}

impl<K: Hash + Eq + Clone> PerMinute<K> {
    /// At most `limit` in a minute.
    pub fn new(limit: u32) -> Self {
        Self { limit, idle: AtomicBool::new(true), windows: Mutex::default() }
    }

    /// Counts one, and says how many seconds to wait if that is too many.
    pub fn take(&self, key: &K) -> Option<u64> {
        self.take_at(key, Instant::now())
    }

    fn take_at(&self, key: &K, now: Instant) -> Option<u64> {
        self.idle.store(false, Ordering::Relaxed);
        let mut windows = self.windows.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if windows.len() > MANY {
            windows.retain(|_, (start, _)| now.duration_since(*start) < WINDOW);
        }
        let (start, count) = windows.entry(key.clone()).or_insert((now, 0));
        if now.duration_since(*start) >= WINDOW {
            (*start, *count) = (now, 0);
        }
        *count = count.saturating_add(1);
        let wait = WINDOW.saturating_sub(now.duration_since(*start));
        (*count > self.limit).then(|| wait.as_secs().max(1))
    }

    /// Whether the key has used up its minute; counts nothing.
    pub fn is_over(&self, key: &K) -> bool {
        self.is_over_at(key, Instant::now())
    }

    fn is_over_at(&self, key: &K, now: Instant) -> bool {
        if self.idle.load(Ordering::Relaxed) {
            return false;
        }
        let windows = self.windows.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        windows.get(key).is_some_and(|(start, count)| {
            *count >= self.limit && now.duration_since(*start) < WINDOW
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_exact_and_each_key_has_its_own() {
        let limit = PerMinute::new(3);
        assert!(!limit.is_over(&"a"));
        assert_eq!([limit.take(&"a"), limit.take(&"a"), limit.take(&"a")], [None; 3]);
        assert!(limit.is_over(&"a"));
        assert!(limit.take(&"a").is_some());
        assert!(!limit.is_over(&"b"));
        assert_eq!(limit.take(&"b"), None);
    }

    #[test]
    fn nobody_waits_longer_than_the_minute_that_began_with_the_first() {
        let limit = PerMinute::new(2);
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!([limit.take_at(&"a", start), limit.take_at(&"a", after(59))], [None; 2]);
        assert!(limit.is_over_at(&"a", after(59)));
        assert!(!limit.is_over_at(&"a", after(60)));
        assert_eq!(limit.take_at(&"a", after(60)), None);
    }
}
