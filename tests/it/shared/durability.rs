//! What each durability setting of Redis loses when the server dies or is replaced: how many
//! debits that it had acknowledged, and how many are missing once the journal has sent its own
//! again. The lines that this prints are the README's table.

use std::time::Duration;

use crate::support::figure;
use crate::support::load::{Load, Seen};
use crate::support::proxy::Proxy;
use crate::support::random::Random;
use crate::support::redis::Redis;
use crate::support::relay::Relay;
use crate::support::upstream::Upstream;

use super::{CLIENTS, Tally, metric, on, readiness, under_load, varied_upstream};

const SEED: u64 = 0x1057_ac4e;

/// What became of the debits of replies that clients saw whole.
struct Loss {
    acknowledged: usize,
    /// Gone from Redis when it came back.
    at_first: usize,
    /// Gone for good.
    in_the_end: usize,
}

impl Loss {
    async fn of(proxy: &Proxy, upstream: &Upstream, mut seen: Vec<Seen>, journal: &str) -> Self {
        // Without a journal, replies whose debit is not taken are cut off.
        seen.retain(|one| one.complete);
        let tally = Tally::of(proxy, upstream, &seen).await;
        assert_eq!(tally.doubled, 0);
        assert!(tally.served > 0, "nothing was served");
        let sent_again = match journal {
            "off" => 0,
            _ => usize::try_from(metric(proxy, "journal_recovered_total").await).unwrap(),
        };
        let (acknowledged, in_the_end) = (tally.served, tally.lost);
        Self { acknowledged, at_first: sent_again + in_the_end, in_the_end }
    }

    fn print(&self, what: &str) {
        let Self { acknowledged, at_first, in_the_end } = self;
        println!(
            "{acknowledged} acknowledged, {at_first} lost by Redis, {in_the_end} in the end: {what}"
        );
    }
}

fn journal_of(is_on: bool) -> (&'static str, &'static str) {
    if is_on { ("", "with a journal") } else { ("off", "without a journal") }
}

fn syncing(appendfsync: &str) -> Redis {
    let policy = ["--maxmemory-policy", "noeviction"];
    Redis::start(&[&["--appendonly", "yes", "--appendfsync", appendfsync], &policy[..]].concat())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_redis_loses_by_its_setting_is_in_the_journal() {
    let kills = figure(1, 20);
    for appendfsync in ["no", "everysec", "always"] {
        for is_on in [true, false] {
            let (journal, with) = journal_of(is_on);
            let upstream = varied_upstream().await;
            let mut redis = syncing(appendfsync);
            let setup = on(&redis.url(), &upstream).env("FAREBOX_JOURNAL", journal);
            let setup =
                setup.env("FAREBOX_REDIS_COMMAND_TIMEOUT", "1s").env("FAREBOX_REDIS_LEASE", "12s");
            let proxy = setup.start().await;
            let mut random = Random::new(SEED);
            let mut seen = Vec::new();
            for round in 0..kills {
                let after = Duration::from_millis(200 + random.below(1000) as u64);
                seen.extend(
                    under_load(&proxy, &format!("round {round}"), async || {
                        tokio::time::sleep(after).await;
                        redis.kill();
                        redis.restart();
                    })
                    .await,
                );
            }
            let loss = Loss::of(&proxy, &upstream, seen, journal).await;
            loss.print(&format!("appendfsync {appendfsync}, killed {kills} times, {with}"));
            if is_on || appendfsync == "always" {
                assert_eq!(loss.in_the_end, 0, "{appendfsync}, {with}");
            }
        }
    }
}

/// The replica has been cut off for a quarter of a second when it takes the primary's place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_failover_loses_by_its_setting_is_in_the_journal() {
    let failovers = figure(1, 10);
    for wait in ["0", "1"] {
        for is_on in [true, false] {
            let (journal, with) = journal_of(is_on);
            let upstream = varied_upstream().await;
            let mut primary = syncing("always");
            let relay = Relay::to(primary.port());
            // A replica must be there from the beginning, or nothing is acknowledged with `wait`.
            let mut wire = Relay::to(primary.port());
            let mut replica = syncing("always");
            replica.follow_at(wire.port(), &primary);
            let url = format!("redis://127.0.0.1:{}", relay.port());
            let setup = on(&url, &upstream).env("FAREBOX_JOURNAL", journal);
            // Of a machine that is busy: the start itself waits for the replica.
            let setup =
                setup.env("FAREBOX_REDIS_COMMAND_TIMEOUT", "1s").env("FAREBOX_REDIS_LEASE", "12s");
            let proxy = setup.env("FAREBOX_REDIS_WAIT", wait).start().await;
            let mut seen = Vec::new();
            for round in 0..failovers {
                readiness(&proxy, true).await;
                replica.in_step_with(&primary);
                let load = Load::steady(&proxy.default_account(), &format!("r{round}"), CLIENTS);
                tokio::time::sleep(Duration::from_millis(300)).await;
                wire.refuse(true);
                tokio::time::sleep(Duration::from_millis(250)).await;
                primary.kill();
                replica.promote();
                let next_wire = Relay::to(replica.port());
                let next = syncing("always");
                next.follow_at(next_wire.port(), &replica);
                relay.switch(replica.port());
                readiness(&proxy, true).await;
                seen.extend(load.end().await);
                (primary, replica, wire) = (replica, next, next_wire);
            }
            let loss = Loss::of(&proxy, &upstream, seen, journal).await;
            loss.print(&format!(
                "redis_wait {wait}, {failovers} failovers to a replica cut off for 250 ms, {with}"
            ));
            if is_on || wait == "1" {
                assert_eq!(loss.in_the_end, 0, "{wait}, {with}");
            }
        }
    }
}
