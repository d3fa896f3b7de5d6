//! Client keys: who signs, and what admission asks of them.
//!
//! A key lives with its account. Beside the account, a small entry by the hash of its secret
//! says whose it is; that never changes. What was read is kept for a second: a revoked key is
//! refused at once all the same, and its limits hold at once, because admission decides by
//! what the store knows.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use redis::Value;

use super::Shared;
use super::names::Name;
use super::reply::{self, Odd, Reply, no_account};
use super::settle::terms_of;
use crate::billing::limit::Period;
use crate::key::KeyHash;
use crate::store::{AccountId, Key, KeyChange, KeyUse, Millis, RateUse, Spend, StoreError};

/// How long a key that was read is believed.
const FRESH: Duration = Duration::from_secs(1);
/// Keys that are kept before those that are not fresh are forgotten.
const CAPACITY: usize = 65_536;
/// How often a change is tried again that others came before.
const TRIES: u32 = 100;

/// The keys used lately.
#[derive(Default)]
pub(super) struct Cache(Mutex<HashMap<KeyHash, (Instant, Arc<Key>)>>);

impl Cache {
    fn get(&self, hash: &KeyHash) -> Option<Arc<Key>> {
        let kept = self.lock();
        let (since, key) = kept.get(hash)?;
        (since.elapsed() < FRESH).then(|| key.clone())
    }

    fn keep(&self, hash: KeyHash, since: Instant, key: Arc<Key>) {
        let mut kept = self.lock();
        if kept.len() >= CAPACITY {
            kept.retain(|_, (since, _)| since.elapsed() < FRESH);
        }
        if kept.len() < CAPACITY {
            kept.insert(hash, (since, key));
        }
    }

    /// A key was changed here: it is read again.
    fn forget(&self, account: &AccountId, id: &str) {
        self.lock().retain(|_, (_, key)| key.id != id || key.account != *account);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<KeyHash, (Instant, Arc<Key>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    pub(super) async fn make_key(&self, key: Key, hash: KeyHash) -> Result<Key, StoreError> {
        self.must_exist(&key.account).await?;
        let key = Key { created_at: self.now().await?, ..key };
        let whose = format!("{} {}", key.account, key.id);
        let mut cmd = redis::cmd("SET");
        cmd.arg(self.names.key(&hash)).arg(&whose).arg("NX").arg("GET");
        let exists = || StoreError::Conflict("this key exists".into());
        match reply::maybe(self.link.quick(&cmd).await?)? {
            // An attempt before this one got no further.
            Some(before) if before == whose => {}
            Some(_) => return Err(exists()),
            None => {}
        }
        match self.put_key(&key, "").await? {
            None => Ok(key),
            Some(_) => Err(exists()),
        }
    }

    pub(super) fn kept_key(&self, hash: &KeyHash) -> Option<Arc<Key>> {
        self.keys.get(hash)
    }

    pub(super) async fn read_key(&self, hash: KeyHash) -> Result<Option<Arc<Key>>, StoreError> {
        let since = Instant::now();
        let mut cmd = redis::cmd("GET");
        cmd.arg(self.names.key(&hash));
        let Some(whose) = reply::maybe(self.link.quick(&cmd).await?)? else { return Ok(None) };
        let (account, id) = whose.split_once(' ').ok_or(Odd)?;
        let stored = self.stored_key(&AccountId(account.into()), id).await?;
        let key = stored.map(|(_, key)| Arc::new(key));
        if let Some(key) = &key {
            self.keys.keep(hash, since, key.clone());
        }
        Ok(key)
    }

    pub(super) async fn read_keys(&self, account: &AccountId) -> Result<Vec<Key>, StoreError> {
        self.must_exist(account).await?;
        let mut cmd = redis::cmd("HVALS");
        cmd.arg(self.names.of(account, Name::Keys));
        let records = Reply::of(self.link.patient(&cmd).await?)?;
        let mut keys: Vec<Key> =
            records.map(|record| read(&reply::text(record)?)).collect::<Result<_, Odd>>()?;
        keys.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        Ok(keys)
    }

    /// Changes a key, or ends it.
    pub(super) async fn alter_key(
        &self,
        account: &AccountId,
        id: &str,
        change: Option<KeyChange>,
    ) -> Result<Key, StoreError> {
        for _ in 0..TRIES {
            let Some((before, mut key)) = self.stored_key(account, id).await? else {
                return Err(StoreError::NotFound(format!("key {id}")));
            };
            match &change {
                Some(change) => change.clone().apply(&mut key),
                None if key.revoked_at.is_some() => return Ok(key),
                None => key.revoked_at = Some(self.now().await?),
            }
            if self.put_key(&key, &before).await?.is_none() {
                self.keys.forget(account, id);
                return Ok(key);
            }
        }
        Err(StoreError::Unavailable("others change the same key again and again".into()))
    }

    pub(super) async fn read_key_use(
        &self,
        account: &AccountId,
        id: &str,
    ) -> Result<KeyUse, StoreError> {
        let no_key = || StoreError::NotFound(format!("key {id}"));
        let (_, key) = self.stored_key(account, id).await?.ok_or_else(no_key)?;
        let call = self.scripts.key_use.call(&self.names, account, &[]).arg(self.clock()).arg(id);
        let mut answer = Reply::of(self.link.run(&call).await?)?;
        match answer.text()?.as_str() {
            "ok" => {}
            "no_account" => return Err(no_account(account)),
            _ => return Err(no_key()),
        }
        let now: Millis = answer.number()?;
        let mut in_use =
            KeyUse { in_flight: answer.number()?, held: answer.credits()?, ..KeyUse::default() };
        let mut levels = answer.list()?;
        let mut rate = |limit: Option<u64>| -> Result<Option<RateUse>, Odd> {
            let used = levels.text()?.parse().ok();
            Ok(limit.zip(used).map(|(limit, used)| RateUse { limit, used }))
        };
        in_use.requests_per_minute = rate(key.limits.requests_per_minute)?;
        in_use.tokens_per_minute = rate(key.limits.tokens_per_minute)?;
        let mut spent = answer.list()?;
        let zone = key.limits.time_zone();
        for period in [Period::Day, Period::Week, Period::Month, Period::Total] {
            let Some(Ok(used)) = spent.next().map(reply::text) else { break };
            let cap = key.limits.caps().find(|(capped, _)| *capped == period);
            let Some((_, limit)) = cap else { continue };
            let end = period.around(now, &zone).end;
            let spend = Spend {
                limit,
                used: crate::billing::Credits::from_nano(reply::number(&used)?),
                resets_at: (period != Period::Total).then_some(end),
            };
            in_use.spend.insert(period.cap().to_owned(), spend);
        }
        Ok(in_use)
    }

    /// When the periods of a key's caps end, as a script reads it.
    pub(super) async fn untils(
        &self,
        account: &AccountId,
        id: &str,
        at: Millis,
    ) -> Result<String, StoreError> {
        let stored = self.stored_key(account, id).await?;
        let zone = stored.map(|(_, key)| key.limits.time_zone()).unwrap_or(jiff::tz::TimeZone::UTC);
        let ends = [Period::Day, Period::Week, Period::Month].map(|p| p.around(at, &zone).end);
        Ok(format!("{} {} {}", ends[0], ends[1], ends[2]))
    }

    /// A key as it is stored, and as it is.
    async fn stored_key(
        &self,
        account: &AccountId,
        id: &str,
    ) -> Result<Option<(String, Key)>, StoreError> {
        let mut cmd = redis::cmd("HGET");
        cmd.arg(self.names.of(account, Name::Keys)).arg(id);
        let stored = reply::maybe(self.link.quick(&cmd).await?)?;
        Ok(stored.map(|record| read(&record).map(|key| (record, key))).transpose()?)
    }

    /// Keeps a key in place of what was read; what is there now, if that is something else.
    async fn put_key(&self, key: &Key, before: &str) -> Result<Option<String>, StoreError> {
        let record = serde_json::to_string(key).map_err(|_| Odd)?;
        let caps = self.caps_of(key).await?;
        let mut call = self.scripts.put_key.call(&self.names, &key.account, &[]);
        for value in [self.clock(), key.id.clone(), before.into(), record, terms_of(key)] {
            call.push(value);
        }
        for value in caps {
            call.push(value);
        }
        let mut answer = Reply::of(self.link.commit(&call).await?)?;
        match answer.text()?.as_str() {
            "ok" => {
                self.outlive_belief(&answer.text()?).await;
                Ok(None)
            }
            "no_account" => Err(no_account(&key.account)),
            _ => Ok(Some(answer.text()?)),
        }
    }

    /// What a key with caps has spent in each period until a row, and when the period ends.
    async fn caps_of(&self, key: &Key) -> Result<Vec<String>, StoreError> {
        let mut caps = Vec::new();
        if key.limits.caps().next().is_none() {
            return Ok(caps);
        }
        let mut cmd = redis::cmd("XREVRANGE");
        cmd.arg(self.names.of(&key.account, Name::Usage)).arg("+").arg("-").arg("COUNT").arg(1);
        let seen = match Reply::of(self.link.patient(&cmd).await?)?.next() {
            Some(row) => super::rows::Item::read(row)?.id,
            None => "0-0".into(),
        };
        let last: Millis = seen.split('-').next().and_then(|ts| ts.parse().ok()).unwrap_or(0);
        let trimmed = self.checkpoint(&key.account).await?.1.requests_before;
        let now = self.now().await?.max(last);
        let zone = key.limits.time_zone();
        caps.push(seen.clone());
        for period in [Period::Day, Period::Week, Period::Month, Period::Total] {
            let range = period.around(now, &zone);
            let until = range.end;
            let spent = self.spent(&key.account, &key.id, range, &seen, trimmed).await?;
            caps.push(spent.nano().to_string());
            if period != Period::Total {
                caps.push(until.to_string());
            }
        }
        Ok(caps)
    }
}

fn read(record: &str) -> Result<Key, Odd> {
    serde_json::from_str(record).map_err(|_| Odd)
}

/// What `TIME` answers, in milliseconds.
pub(super) fn millis(time: Value) -> Result<Millis, Odd> {
    let mut time = Reply::of(time)?;
    let (seconds, micros): (Millis, Millis) = (time.number()?, time.number()?);
    Ok(seconds * 1000 + micros / 1000)
}
