//! Every page in every state that an account, a session or the store can be in.

use farebox::dashboard::{Area, PAGES};
use serde_json::json;

use super::look::{Faults, keep_for_readme};
use super::world::{STATES, World};
use crate::support::browser::Browser;
use crate::support::until;

/// The pages of an account: all of the navigation, and what lies behind them.
pub fn pages() -> Vec<String> {
    let all = PAGES.iter().filter(|page| page.of == Area::Account).map(|page| page.slug.to_owned());
    let more = [
        "costs?by=key",
        "spending?range=24h",
        "spending?range=90d",
        "transactions?view=day",
        "report",
    ];
    all.chain(more.map(str::to_owned)).collect()
}

/// What stands above a page, what is left, and whether anything could not be said.
pub const SEEN: &str = "
    const titles = [...document.querySelectorAll('#banner .banner strong')];
    return [titles.map((one) => one.textContent),
        document.querySelector('.glance-balance data').value,
        /NaN|undefined|null|Infinity/.test(document.querySelector('main').innerText)]";

#[tokio::test]
async fn every_page_says_the_one_thing_that_needs_attention_in_every_state() {
    let world = World::new().await;
    let browser = Browser::open().await;
    let mut faults = Faults::default();
    for state in &STATES {
        world.enter(&browser, state.id).await;
        let balance = world.account(state.id).balance().await.to_string();
        let banner: Vec<_> = state.banner.iter().map(|title| format!("{title}.")).collect();
        for page in pages() {
            let what = format!("{page} of {}", state.id);
            world.open(&browser, state.id, &page).await;
            faults.seen(&browser, &what, SEEN, &json!([banner, balance, false])).await;
            faults.fits(&browser, &what).await;
            faults.quiet(&browser, &what).await;
        }
    }
    faults.assert_none();
    world.assert_no_reports();
}

#[tokio::test]
async fn no_page_breaks_a_rule_of_accessibility_in_light_or_dark() {
    let world = World::new().await;
    let browser = world.operator().await;
    let mut faults = Faults::default();
    for state in ["normal", "empty", "negative"] {
        for page in pages() {
            world.open(&browser, state, &page).await;
            let what = format!("{page} of {state}");
            faults.accessible(&browser, &what).await;
            faults.quiet(&browser, &what).await;
        }
    }
    faults.assert_none();
    world.assert_no_reports();
    world.enter(&browser, "normal").await;
    for page in ["wallet", "usage"] {
        world.open(&browser, "normal", page).await;
        browser.find("#age.live").await;
        keep_for_readme(&browser, page).await;
    }
}

/// The operator's pages, and those that are shown to nobody in particular.
#[tokio::test]
async fn the_operators_pages_and_those_outside_fit_and_are_accessible() {
    let world = World::new().await;
    let browser = world.operator().await;
    let mut faults = Faults::default();
    for path in [
        "/operator/accounts",
        "/operator/accounts/normal",
        "/operator/accounts/hostile",
        "/operator/accounts/closed",
        "/operator/prices",
        "/operator/upstreams",
        "/operator/alerts",
        "/billing",
        "/billing/nobody/wallet",
        "/sign-in",
        "/sign-in/fbx_link_of_nobody",
    ] {
        browser.goto(&format!("{}{path}", world.proxy.admin_url())).await;
        browser.find("h1").await;
        faults.fits(&browser, path).await;
        faults.accessible(&browser, path).await;
        match path {
            // That there is no such page is what the browser notes.
            "/billing/nobody/wallet" => drop(browser.console().await),
            _ => faults.quiet(&browser, path).await,
        }
    }
    // What is shown once, and beside a list.
    world.open(&browser, "normal", "keys").await;
    browser.find("#key-name").await.send_keys("new\n").await.unwrap();
    browser.find("#secret").await;
    faults.fits(&browser, "a new key").await;
    faults.accessible(&browser, "a new key").await;
    for account in ["normal", "hostile"] {
        world.open(&browser, account, "usage").await;
        browser.find("a.row-link").await.click().await.unwrap();
        browser.find("dialog[open] .sum tfoot").await;
        let what = format!("the drawer of {account}");
        faults.fits(&browser, &what).await;
        faults.accessible(&browser, &what).await;
        faults.quiet(&browser, &what).await;
    }
    faults.assert_none();
    world.assert_no_reports();
}

/// Asks an open page to look now whether anything changed, as one does that comes to the front.
pub async fn look(browser: &Browser) {
    browser.eval("document.dispatchEvent(new Event('visibilitychange'))", json!(null)).await;
}

#[tokio::test]
async fn a_session_that_ends_brings_back_to_the_same_page_after_signing_in() {
    let world = World::new().await;
    let browser = world.operator().await;
    for page in pages() {
        world.open(&browser, "normal", &page).await;
        let was = browser.path().await;
        browser.client.delete_cookie("farebox").await.unwrap();
        look(&browser).await;
        browser.until_text("h1", |text| text == "Sign in").await;
        browser.find("#key").await.send_keys(world.proxy.admin_key()).await.unwrap();
        browser.press("\n").await;
        until("the page again", || async { (browser.path().await == was).then_some(()) }).await;
        browser.find("#glance").await;
    }
}

#[tokio::test]
async fn a_page_of_another_account_says_no_more_than_that_there_is_none() {
    let world = World::new().await;
    let browser = Browser::open().await;
    world.enter(&browser, "zero").await;
    for page in pages() {
        world.open(&browser, "normal", &page).await;
        let text = browser.text("body").await;
        assert!(text.contains("Nothing here") && text.contains("req_"), "{page}: {text}");
        assert!(!text.contains("Team"), "{page}: {text}");
    }
}
