//! What the store is and how it does, as the servers tell it.

use futures_util::future::join_all;

use super::Shared;
use super::check::{field, text};
use super::reply::{Odd, Reply};
use crate::store::{AccountId, Millis, Page, ServerStatus, StoreError, StoreStatus};

/// Accounts that are looked at together.
const ACCOUNTS: u32 = 100;

/// How much is written, and since when.
#[derive(Default)]
struct Extent {
    accounts: u64,
    entries: u64,
    oldest: Option<Millis>,
    trimmed: u64,
    trimmed_before: Option<Millis>,
}

impl Shared {
    pub(super) async fn status(&self) -> Result<StoreStatus, StoreError> {
        let mut info = redis::cmd("INFO");
        info.arg("everything");
        let infos = self.link.of_each_master(&info).await?;
        let infos: Vec<_> = infos.iter().map(text).collect();
        let sum = |name: &str| {
            infos.iter().filter_map(|info| field(info, name)?.parse::<u64>().ok()).sum::<u64>()
        };
        let syncs = self.appendfsync().await;
        let mut keys = 0;
        for count in self.link.of_each_master(&redis::cmd("DBSIZE")).await? {
            let redis::Value::Int(count) = count else { return Err(Odd.into()) };
            keys += count.unsigned_abs();
        }
        let all: Vec<_> = infos.iter().map(String::as_str).collect();
        let server = ServerStatus {
            version: version(all.first().unwrap_or(&"")),
            masters: infos.len() as u64,
            replicas: sum("connected_slaves"),
            memory_limit_bytes: Some(sum("maxmemory")).filter(|limit| *limit > 0),
            eviction: each(&all, "maxmemory_policy"),
            keys,
            may_lose: may_lose(&all, &syncs, sum("connected_slaves"), self.link.replicas()),
        };
        let problems: Vec<_> = all.iter().flat_map(|info| problems(info)).collect();
        let is_appended = all.iter().all(|info| field(info, "aof_enabled") == Some("1"));
        let durability =
            if is_appended { format!("appendfsync {syncs}") } else { "appendonly no".into() };
        let extent = self.extent().await?;
        Ok(StoreStatus {
            kind: "redis".into(),
            location: self.location.clone(),
            schema: None,
            bytes: sum("used_memory"),
            log_bytes: sum("aof_current_size"),
            accounts: extent.accounts,
            entries: extent.entries,
            trimmed: extent.trimmed,
            trimmed_before: extent.trimmed_before,
            oldest_entry: extent.oldest,
            pending: None,
            durability: Some(durability),
            problem: Some(problems.join("; ")).filter(|problems| !problems.is_empty()),
            server: Some(server),
        })
    }

    /// How often the servers write their files through to the disk.
    async fn appendfsync(&self) -> String {
        let mut cmd = redis::cmd("CONFIG");
        cmd.arg("GET").arg("appendfsync");
        let Ok(answers) = self.link.of_each_master(&cmd).await else {
            return "not told (allow +config|get)".into();
        };
        let mut words: Vec<_> = answers
            .into_iter()
            .filter_map(|answer| Reply::of(answer).ok()?.nth(1))
            .filter_map(|word| super::reply::text(word).ok())
            .collect();
        words.sort_unstable();
        words.dedup();
        words.join(", ")
    }

    async fn extent(&self) -> Result<Extent, StoreError> {
        let mut all = Extent::default();
        let mut cursor = None;
        loop {
            let ids = self.list_accounts(&Page { cursor, limit: ACCOUNTS }).await?;
            for one in join_all(ids.data.iter().map(|id| self.extent_of(id))).await {
                let Some(one) = one? else { continue };
                all.accounts += 1;
                all.entries += one.entries;
                all.trimmed += one.trimmed;
                all.oldest = all.oldest.into_iter().chain(one.oldest).min();
                all.trimmed_before = all.trimmed_before.max(one.trimmed_before);
            }
            match ids.next {
                Some(next) => cursor = Some(next),
                None => return Ok(all),
            }
        }
    }

    async fn extent_of(&self, account: &AccountId) -> Result<Option<Extent>, StoreError> {
        let call = self.call(&self.scripts.extent, account, &[]);
        let mut answer = Reply::of(self.link.patient_run(&call).await?)?;
        if answer.text()? != "ok" {
            return Ok(None);
        }
        let seq: u64 = answer.number()?;
        let oldest = answer.text()?.parse().ok();
        let trimmed: u64 = answer.number()?;
        let trimmed_before = answer.text()?.parse().ok();
        let entries = seq.checked_sub(trimmed).ok_or(Odd)?;
        Ok(Some(Extent { accounts: 1, entries, oldest, trimmed, trimmed_before }))
    }
}

fn version(info: &str) -> String {
    match (field(info, "valkey_version"), field(info, "redis_version")) {
        (Some(version), _) => format!("Valkey {version}"),
        (None, version) => format!("Redis {}", version.unwrap_or("of an unknown version")),
    }
}

/// What each server says, once if they all say the same.
fn each(infos: &[&str], name: &str) -> String {
    let mut words: Vec<_> = infos.iter().filter_map(|info| field(info, name)).collect();
    words.sort_unstable();
    words.dedup();
    words.join(", ")
}

/// What is wrong now.
fn problems(info: &str) -> Vec<String> {
    let is_failed = |name| field(info, name).is_some_and(|status| status != "ok");
    let mut problems = super::check::problems_of(info);
    if is_failed("aof_last_write_status") {
        problems.push("the append-only file could not be written: look at its disk".into());
    }
    if is_failed("aof_last_bgrewrite_status") {
        problems.push("the append-only file could not be rewritten: look at its disk".into());
    }
    problems
}

/// What can be lost of what was acknowledged, by the settings of the servers.
fn may_lose(infos: &[&str], syncs: &str, replicas: u64, waits_for: u32) -> String {
    let alone = if infos.iter().any(|info| field(info, "aof_enabled") != Some("1")) {
        "when a server ends: everything since its last snapshot"
    } else {
        match syncs {
            "always" => "when a server ends or loses power: nothing",
            "everysec" => "when a server ends: nothing; when it loses power: about a second",
            "no" => "when a server ends: nothing; when it loses power: about half a minute",
            _ => "when a server ends: nothing; when it loses power: as appendfsync says",
        }
    };
    let failover = match (replicas, waits_for) {
        (0, _) => "there is no replica to fail over to",
        (_, 0) => "in a failover: what the replica had not received",
        (_, _) => "in a failover: nothing while the replicas waited for are there",
    };
    format!("{alone}; {failover}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_lost_follows_from_the_settings() {
        let appends = "aof_enabled:1\r\n";
        for (infos, syncs, replicas, waits_for, said) in [
            ([appends, appends], "always", 0, 0, "loses power: nothing; there is no replica"),
            ([appends, appends], "everysec", 1, 0, "about a second; in a failover: what the"),
            ([appends, appends], "no", 2, 1, "half a minute; in a failover: nothing while"),
            ([appends, "aof_enabled:0\r\n"], "always", 0, 0, "since its last snapshot"),
            ([appends, appends], "always, no", 0, 0, "as appendfsync says"),
        ] {
            let told = may_lose(&infos, syncs, replicas, waits_for);
            assert!(told.contains(said), "{told}");
        }
        assert_eq!(version("redis_version:7.2.4\r\nvalkey_version:8.1.0\r\n"), "Valkey 8.1.0");
        let failing = "aof_last_write_status:err\r\n";
        assert!(problems(failing).iter().any(|problem| problem.contains("could not be written")));
    }
}
