//! A Redis is lost with all that was on its disk; a backup and the journals bring it back.

use std::time::Duration;

use crate::support::load::Load;
use crate::support::proxy::Proxy;
use crate::support::redis::{DURABLE, Redis};

use super::{CLIENTS, Tally, on, varied_upstream};

async fn cli(proxy: &Proxy, args: &[&str]) -> (i32, String) {
    let done = proxy.cli(args).await;
    let said = [done.stdout, done.stderr].concat();
    (done.status.code().unwrap(), String::from_utf8(said).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_under_load_and_the_journal_bring_a_lost_redis_back_to_the_last_debit() {
    let upstream = varied_upstream().await;
    let redis = Redis::start(DURABLE);
    let setup = on(&redis.url(), &upstream).env("FAREBOX_JOURNAL_REPLAY", "1h");
    let mut proxy = setup.start().await;
    let load = Load::start(&proxy.default_account(), "copied", CLIENTS);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let file = proxy.dir().join("backup.jsonl");
    let file = file.to_str().unwrap();
    let (code, said) = cli(&proxy, &["store", "backup", file]).await;
    assert!(code == 0 && said.contains("1 accounts"), "{said}");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let seen = load.end().await;
    proxy.default_account().settled().await;
    let (code, said) = cli(&proxy, &["store", "status"]).await;
    assert!(code == 0 && said.contains("journals send the last 1h again"), "{said}");
    let (code, said) = cli(&proxy, &["ledger", "trim", "--all", "--before", "2020-01-01"]).await;
    assert!(code == 0 && said.contains("nothing is as old"), "{said}");
    proxy.terminate().await;
    let (code, said) = cli(&proxy, &["store", "status"]).await;
    assert!(code == 0 && said.contains("no Farebox was asked"), "{said}");
    let (code, said) = cli(&proxy, &["store", "restore", file]).await;
    assert!(code == 6 && said.contains("not empty"), "{said}");

    redis.run(&["FLUSHALL"]).unwrap();
    let (code, said) = cli(&proxy, &["store", "restore", file]).await;
    assert!(code == 0 && said.contains("all of it adds up"), "{said}");
    proxy.restart().await;
    let tally = Tally::of(&proxy, &upstream, &seen).await;
    tally.print("Redis lost and restored from a backup made under load");
}
