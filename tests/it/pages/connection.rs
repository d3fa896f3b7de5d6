//! What pages say while the way to Farebox, or from Farebox to its store, is cut.

use serde_json::json;

use super::states::{look, pages};
use super::world::World;
use crate::support::browser::Browser;
use crate::support::proxy::Setup;
use crate::support::redis::{DURABLE, Redis};
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
