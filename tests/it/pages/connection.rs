//! What pages say while the way to Farebox, or from Farebox to its store, is cut.

use serde_json::json;

use super::look::Faults;
use super::states::{SEEN, look, pages};
use super::world::World;
use crate::support::answer::Answer;
use crate::support::browser::Browser;
use crate::support::proxy::Setup;
use crate::support::redis::{DURABLE, Redis};
use crate::support::script::Gate;
use crate::support::until;
use crate::support::upstream::Upstream;

#[tokio::test]
async fn without_a_network_every_page_keeps_its_figures_greyed_and_comes_back() {
    let world = World::new().await;
    let browser = Browser::open().await;
    world.enter(&browser, "normal").await;
    let balance = world.account("normal").balance().await.to_string();
    for page in pages() {
        world.open(&browser, "normal", &page).await;
        browser.set_offline(true).await;
        look(&browser).await;
        let said = browser.until_text("#age", |text| text.contains("no answer since")).await;
        assert!(said.contains("figures of") && said.contains("trying again"), "{page}: {said}");
        let kept = "return [document.body.classList.contains('stale'),
            document.querySelector('.glance-balance data').value]";
        assert_eq!(browser.eval(kept, json!(null)).await, json!([true, balance]), "{page}");
        browser.set_offline(false).await;
        look(&browser).await;
        browser.find("#age.live").await;
        assert_eq!(browser.eval(kept, json!(null)).await, json!([false, balance]), "{page}");
    }
}

#[tokio::test]
async fn a_debit_that_the_store_does_not_take_yet_is_said_on_every_page_until_it_does() {
    let redis = Redis::start(DURABLE);
    let gate = Gate::new();
    let held = gate.clone();
    let upstream = Upstream::start().await;
    let answer = Answer::text(["Hello", " world"]);
    upstream.for_model("test", answer.staged(move |script| script.gated_after(2, &held)));
    let proxy = Setup::before(&upstream).env("FAREBOX_STORE", &redis.url()).start().await;
    let account = proxy.default_account();
    let before = account.balance().await;
    let mut stream = account.stream_chat("Hi").await;
    stream.until("Hello").await;
    let request = stream.headers["x-request-id"].to_str().unwrap().to_owned();
    // Where its mark should stand there is something else: Redis works, and refuses this one.
    let mark = format!("fbx:{{default}}:id:{request}");
    redis.run(&["HSET", &mark, "in", "the way"]).unwrap();
    gate.open_all();
    assert!(stream.rest().await.complete);

    let browser = super::signed_in(&proxy, "default").await;
    let mut faults = Faults::default();
    for page in pages() {
        browser.goto(&format!("{}/billing/default/{page}", proxy.admin_url())).await;
        browser.until_text("h1", |text| !text.is_empty()).await;
        let what = format!("{page} with a debit pending");
        let seen = json!([["Debits pending."], before.to_string(), false]);
        faults.seen(&browser, &what, SEEN, &seen).await;
        faults.fits(&browser, &what).await;
        faults.accessible(&browser, &what).await;
        faults.quiet(&browser, &what).await;
    }
    let said = browser.text("#banner").await;
    assert!(said.contains("1 debit waits for the store since "), "{said}");

    redis.run(&["DEL", &mark]).unwrap();
    account.settled().await;
    assert!(account.balance().await < before);
    browser.goto(&format!("{}/billing/default/wallet", proxy.admin_url())).await;
    until("no banner", || async {
        let found = browser.client.find(fantoccini::Locator::Css("#banner .banner")).await;
        browser.client.refresh().await.ok()?;
        found.is_err().then_some(())
    })
    .await;
    faults.assert_none();
}

#[tokio::test]
async fn while_the_store_is_away_every_page_says_what_since_when_and_offers_to_try_again() {
    let mut redis = Redis::start(DURABLE);
    let upstream = Upstream::start().await;
    let proxy = Setup::before(&upstream).env("FAREBOX_STORE", &redis.url()).start().await;
    proxy.default_account().chat("Hi").await.expect(200);
    let browser = super::signed_in(&proxy, "default").await;
    let balance = proxy.default_account().balance().await.to_string();
    redis.kill();
    look(&browser).await;
    browser.until_text("#age", |text| text.contains("no answer since")).await;
    let kept = "return document.querySelector('.glance-balance data').value";
    assert_eq!(browser.eval(kept, json!(null)).await, json!(balance));

    for page in pages() {
        browser.goto(&format!("{}/billing/default/{page}", proxy.admin_url())).await;
        let said = browser.text("main").await;
        for part in ["The ledger cannot be reached", "Since ", "Try again", "Request req_"] {
            assert!(said.contains(part), "{page}: no {part:?} in {said}");
        }
    }
    redis.restart();
    until("the page", || async {
        if let Ok(again) = browser.client.find(fantoccini::Locator::LinkText("Try again")).await {
            again.click().await.ok()?;
        }
        browser.client.find(fantoccini::Locator::Css("#glance")).await.ok().map(drop)
    })
    .await;
    assert_eq!(browser.eval(kept, json!(null)).await, json!(balance));
}
