//! Keys in memory: a request's key costs no read of the database.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::HashMap;

use crate::key::KeyHash;
use crate::store::Key;

/// Keys of one generation; two are kept.
const GENERATION: usize = 32_768;

/// The keys used lately, by their hash. Unknown keys are not kept: a new key works at once, and
/// a flood of bad ones fills nothing.
#[derive(Default)]
pub(super) struct Keys(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    young: HashMap<KeyHash, Arc<Key>>,
    old: HashMap<KeyHash, Arc<Key>>,
    changes: u64,
}

/// Taken before a key is read from the database: what is read is kept only if no key has been
/// changed since.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket(u64);

impl Keys {
    /// The key, if it has been used lately.
    pub(super) fn get(&self, hash: &KeyHash) -> Result<Arc<Key>, Ticket> {
        let mut inner = self.lock();
        if let Some(key) = inner.young.get(hash) {
            return Ok(key.clone());
        }
        match inner.old.remove(hash) {
            Some(key) => {
                inner.insert(*hash, key.clone());
                Ok(key)
            }
            None => Err(Ticket(inner.changes)),
        }
    }

    /// Keeps a key that was read.
    pub(super) fn insert(&self, ticket: Ticket, hash: KeyHash, key: Arc<Key>) {
        let mut inner = self.lock();
        if ticket == Ticket(inner.changes) {
            inner.insert(hash, key);
        }
    }

    /// Shows a key as it is from now on.
    pub(super) fn change(&self, hash: &KeyHash, key: &Key) {
        let mut inner = self.lock();
        inner.changes += 1;
        let Inner { young, old, .. } = &mut *inner;
        for kept in [young.get_mut(hash), old.get_mut(hash)].into_iter().flatten() {
            *kept = Arc::new(key.clone());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Drops the keys of the generation before last once there are many.
    fn insert(&mut self, hash: KeyHash, key: Arc<Key>) {
        if self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(hash, key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{AccountId, KeyLimits, Rejection};

    fn key(id: usize) -> (KeyHash, Arc<Key>) {
        let key = Key {
            id: format!("key_{id}"),
            account: AccountId("a".into()),
            name: String::new(),
            tag: None,
            models: vec![],
            rejection: Rejection::Limit,
            limits: KeyLimits::default(),
            last4: String::new(),
            created_at: 0,
            expires_at: None,
            revoked_at: None,
        };
        (KeyHash::of(&key.id), Arc::new(key))
    }

    fn ticket(keys: &Keys) -> Ticket {
        keys.get(&KeyHash::of("never made")).unwrap_err()
    }

    #[test]
    fn a_key_that_was_read_before_a_change_is_not_kept() {
        let keys = Keys::default();
        let (hash, key) = key(1);
        let before = ticket(&keys);
        keys.change(&hash, &key);
        keys.insert(before, hash, key);
        assert!(keys.get(&hash).is_err());
    }

    #[test]
    fn a_kept_key_is_changed_in_place() {
        let keys = Keys::default();
        let (hash, key) = key(1);
        keys.insert(ticket(&keys), hash, key.clone());
        keys.change(&hash, &Key { revoked_at: Some(7), ..Key::clone(&key) });
        assert_eq!(keys.get(&hash).ok().unwrap().revoked_at, Some(7));
    }

    #[test]
    fn memory_is_bounded_and_keys_in_use_stay() {
        let keys = Keys::default();
        let (first, value) = key(0);
        keys.insert(ticket(&keys), first, value);
        for id in 1..3 * GENERATION {
            let (hash, key) = key(id);
            keys.insert(ticket(&keys), hash, key);
            if id % 1000 == 0 {
                assert!(keys.get(&first).is_ok(), "after {id} others");
            }
        }
        let inner = keys.lock();
        assert!(inner.young.len() + inner.old.len() <= 2 * GENERATION);
    }
}
