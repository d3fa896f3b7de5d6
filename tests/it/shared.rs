//! Several Farebox on one Redis: they share one balance, and whatever happens to Redis, to the
//! way there or to themselves, what a client saw complete is debited once.
//!
//! Every fault is made: servers are killed, stopped and replaced, replies are lost, disks are
//! full. After each the ledger is read by the control plane and verified by the program.

use std::collections::HashMap;
use std::time::Duration;

use farebox::billing::Credits;

use crate::support::account::Account;
use crate::support::http::Call;
use crate::support::load::{Load, Seen, billed, vary};
use crate::support::proxy::{Proxy, Setup};
use crate::support::until;
use crate::support::upstream::Upstream;

mod caps;
mod cluster;
mod copies;
mod durability;
mod faults;
mod journal;
mod late;
mod overdraft;
mod retention;
mod start;

const CLIENTS: usize = 8;

/// A Farebox on a Redis, with credits for everything.
fn on(url: &str, upstream: &Upstream) -> Setup {
    Setup::before(upstream)
        .env("FAREBOX_STORE", url)
        .env("FAREBOX_INITIAL_CREDITS", "1000000")
        .env("FAREBOX_REDIS_LEASE", "3s")
}

/// An upstream that bills every request differently.
async fn varied_upstream() -> Upstream {
    let upstream = Upstream::start().await;
    vary(&upstream);
    upstream
}

async fn is_ready(proxy: &Proxy) -> bool {
    proxy.readyz().await.status == 200
}

/// Waits until requests are admitted, or are not.
async fn readiness(proxy: &Proxy, ready: bool) {
    let what = format!("readiness to be {ready}");
    until(&what, || async { (is_ready(proxy).await == ready).then_some(()) }).await;
}

/// A number of `/metrics`.
async fn metric(proxy: &Proxy, name: &str) -> u64 {
    let text = Call::get(format!("{}/metrics", proxy.admin_url())).reply().await.text();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("farebox_{name} ")));
    line.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no {name}: {text}"))
}

/// What clients saw and what was debited, joined.
#[derive(Debug, Default)]
struct Tally {
    served: usize,
    refused: usize,
    debits: usize,
    lost: usize,
    doubled: usize,
}

impl Tally {
    /// Waits until all is settled, then compares every complete reply with its debits, and
    /// verifies the whole ledger.
    async fn of(proxy: &Proxy, upstream: &Upstream, seen: &[Seen]) -> Self {
        readiness(proxy, true).await;
        let account = proxy.default_account();
        account.settled().await;
        let billed = billed(upstream).await;
        let debits = debits(&account).await;
        let mut tally = Self { debits: debits.values().map(Vec::len).sum(), ..Self::default() };
        for one in seen {
            if !one.complete {
                assert_ne!(one.status, 200, "a reply came without its end: {one:?}");
                tally.refused += 1;
                continue;
            }
            tally.served += 1;
            match debits.get(one.id.as_ref().expect("a reply has an id")).map(Vec::as_slice) {
                None => tally.lost += 1,
                Some([debit]) => assert_eq!(*debit, billed[&one.prompt], "{one:?}"),
                Some(_) => {}
            }
        }
        tally.doubled = debits.values().filter(|debits| debits.len() > 1).count();
        account.check_books().await;
        verify(proxy).await;
        tally
    }

    /// Nothing lost, nothing doubled; and it says so.
    fn print(&self, what: &str) {
        let Self { served, refused, debits, lost, doubled } = self;
        println!(
            "{served} served, {debits} debits, {lost} lost, {doubled} doubled, {refused} refused: \
             {what}"
        );
        assert_eq!((*lost, *doubled), (0, 0), "{what}");
        assert!(*served > 0, "nothing was served: {what}");
    }
}

async fn debits(account: &Account) -> HashMap<String, Vec<Credits>> {
    let mut debits: HashMap<String, Vec<Credits>> = HashMap::new();
    for entry in account.ledger().await.into_iter().filter(|entry| entry.kind == "debit_ai") {
        debits.entry(entry.reference).or_default().push(-entry.amount);
    }
    debits
}

/// The program's own check of every book.
async fn verify(proxy: &Proxy) {
    let verified = proxy.cli(&["ledger", "verify"]).await;
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
}

/// Refusals while the store is away say so, and nothing else.
fn assert_only_unavailable(seen: &[Seen]) {
    for one in seen.iter().filter(|one| !one.complete) {
        assert_eq!(one.status, 503, "{one:?}");
    }
}

/// Load that goes on through refusals, while something happens.
async fn under_load(proxy: &Proxy, name: &str, happens: impl AsyncFnOnce()) -> Vec<Seen> {
    let load = Load::steady(&proxy.default_account(), name, CLIENTS);
    tokio::time::sleep(Duration::from_millis(100)).await;
    happens().await;
    readiness(proxy, true).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    load.end().await
}
