//! New prices under load: no request fails, and each is priced by the version it names.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use farebox::billing::Credits;

use crate::support::account::Account;
use crate::support::books::price_versions;
use crate::support::http::Call;
use crate::support::load::{Load, vary};
use crate::support::prices::{self, Audio, PLAIN, Rates, round};
use crate::support::proxy::{Proxy, Setup};
use crate::support::until;
use crate::support::upstream::Upstream;

const RELOADS: usize = 20;
/// Prices of the input in the tables that follow each other.
const INPUTS: [&str; 4] = ["10", "11", "12.5", "40"];

/// The tests' list with another price for the input of `test` and `claude`.
fn table(input: &str) -> String {
    let plain = format!("\ninput = \"{}\"\n", PLAIN.input);
    prices::toml().replace(&plain, &format!("\ninput = \"{input}\"\n"))
}

/// Replaces the file in one step, as an editor or a deployment does.
fn replace(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    std::fs::write(&beside, text).unwrap();
    std::fs::rename(beside, path).unwrap();
}

async fn version(proxy: &Proxy) -> String {
    let url = format!("{}/admin/v1/prices", proxy.admin_url());
    let reply = Call::get(url).bearer(proxy.admin_key()).reply().await.expect(200);
    reply.json()["version"].as_str().expect("a version").into()
}

async fn reload(proxy: &Proxy, text: &str, expected: Option<&String>) -> String {
    let before = version(proxy).await;
    replace(&proxy.dir().join("pricing.toml"), text);
    proxy.signal("HUP");
    until("another version of the prices", || async {
        let now = version(proxy).await;
        let is_there = expected.map_or(now != before, |expected| now == *expected);
        is_there.then_some(now)
    })
    .await
}

async fn assert_each_by_its_version(
    account: &Account,
    proxy: &Proxy,
    inputs: &HashMap<String, &'static str>,
) -> HashSet<Credits> {
    // Who asks waits until what was answered is booked; who reads the file does not.
    let rows = account.usage().await;
    let versions = price_versions(&proxy.store());
    let mut used = HashSet::new();
    for row in rows {
        let input = inputs[&versions[&row.id]];
        let rates = Rates { input, ..PLAIN };
        let charge = round(rates.pico(&row.counts(), Audio::default()));
        assert_eq!(row.charge, charge, "at {input} for the input: {row:?}");
        used.insert(round(rates.pico(&prices::Counts::new(1, 0), Audio::default())));
    }
    used
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prices_that_change_under_load_fail_no_request_and_mix_in_none() {
    let upstream = Upstream::start().await;
    vary(&upstream);
    let proxy = Setup::before(&upstream).env("FAREBOX_INITIAL_CREDITS", "100000").start().await;
    let account = proxy.default_account();
    let mut inputs = HashMap::from([(version(&proxy).await, INPUTS[0])]);
    let load = Load::start(&account, "reload", 8);
    for round in 1..=RELOADS {
        let input = INPUTS[round % INPUTS.len()];
        let known = inputs.iter().find(|(_, known)| **known == input).map(|(v, _)| v.clone());
        inputs.insert(reload(&proxy, &table(input), known.as_ref()).await, input);
        // Every version serves something.
        let so_far = upstream.exchanges().len();
        upstream.received(so_far + 8).await;
    }
    let seen = load.end().await;
    assert!(seen.iter().all(|one| one.complete), "{:?}", seen.iter().find(|one| !one.complete));
    assert_eq!(inputs.len(), INPUTS.len(), "a version names its content");
    let used = assert_each_by_its_version(&account, &proxy, &inputs).await;
    assert_eq!(used.len(), INPUTS.len());
    account.check_books().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_with_an_error_changes_nothing_under_load() {
    let upstream = Upstream::start().await;
    vary(&upstream);
    let proxy = Setup::before(&upstream).env("FAREBOX_INITIAL_CREDITS", "100000").start().await;
    let account = proxy.default_account();
    let before = version(&proxy).await;
    let inputs = HashMap::from([(before.clone(), INPUTS[0])]);
    let load = Load::start(&account, "broken table", 8);
    for broken in [table("-1"), table("ten"), String::from("[models"), String::new()] {
        replace(&proxy.dir().join("pricing.toml"), &broken);
        let told = proxy.output().matches("prices stay as they were").count();
        proxy.signal("HUP");
        until("word that the prices stay", || async {
            (proxy.output().matches("prices stay as they were").count() > told).then_some(())
        })
        .await;
        assert_eq!(version(&proxy).await, before);
    }
    let seen = load.end().await;
    assert!(seen.iter().all(|one| one.complete), "{:?}", seen.iter().find(|one| !one.complete));
    assert_each_by_its_version(&account, &proxy, &inputs).await;
    account.check_books().await;
}
