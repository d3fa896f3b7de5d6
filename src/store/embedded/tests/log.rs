//! The log of the database, and what is read from it for long.

use super::faults::eventually;
use super::*;
use crate::store::embedded::checkpoint::LONG_LOG;

/// Pages of the log that are in use: `mxFrame` of the index beside it, at the place that
/// SQLite's "WAL-mode file format" gives. To ask SQLite for them is to fold the log.
fn pages(bench: &Bench) -> i64 {
    let mut index = bench.path().into_os_string();
    index.push("-shm");
    let index = std::fs::read(index).unwrap();
    u32::from_ne_bytes(index[16..20].try_into().unwrap()).into()
}

fn bytes(bench: &Bench) -> u64 {
    let mut log = bench.path().into_os_string();
    log.push("-wal");
    std::fs::metadata(log).unwrap().len()
}

/// Somebody reads for as long as it takes the log to grow beyond its length: what is read stays
/// what it was, debits go on, and once it ends the log begins anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn debits_go_on_beside_a_long_read_and_the_log_is_folded_when_it_ends() {
    let bench = Bench::with("1000").await;
    let reader = read_only(&bench.path());
    let snapshot = reader.unchecked_transaction().unwrap();
    let seen = || {
        let sql = "SELECT (SELECT balance FROM account), (SELECT count(*) FROM record)";
        snapshot.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap()
    };
    let before: (i64, i64) = seen();
    let mut debits = 0;
    let mut settle_some = async || {
        for _ in 0..512 {
            bench.settle(&format!("req_{debits}"), "0.001").await.unwrap();
            debits += 1;
        }
        debits
    };
    while pages(&bench) < LONG_LOG + LONG_LOG / 4 {
        settle_some().await;
    }
    let debits = settle_some().await;
    assert_eq!(seen(), before);
    let left = credits("1000") - Credits::from_nano(debits * 1_000_000);
    assert_eq!(bench.store.account(&account()).await.unwrap().balance, left);

    snapshot.finish().unwrap();
    let mut more = 0;
    eventually("the log is short", async || {
        for _ in 0..512 {
            bench.settle(&format!("more_{more}"), "0.001").await.unwrap();
            more += 1;
        }
        pages(&bench) < LONG_LOG / 4
    })
    .await;
    eventually("its file is, too", async || bytes(&bench) <= 64 << 20).await;
    assert_eq!(
        bench.store.account(&account()).await.unwrap().balance,
        left - Credits::from_nano(more * 1_000_000)
    );
    bench.assert_sound().await;
}
