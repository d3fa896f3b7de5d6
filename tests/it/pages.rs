//! The billing pages, in a real browser and over plain HTTP.

use farebox::dashboard::{Area, PAGES};
use serde_json::json;

use crate::support::browser::Browser;
use crate::support::http::Call;
use crate::support::proxy::{Proxy, Setup};
use crate::support::{credits, within};

/// A link that signs the holder of an account in.
pub async fn link(proxy: &Proxy, account: &str) -> String {
    let made = proxy.admin_post(&format!("/accounts/{account}/sign-in-links"), &json!({})).await;
    made.json()["url"].as_str().unwrap().to_owned()
}

/// A window in which the holder of an account is signed in.
pub async fn signed_in(proxy: &Proxy, account: &str) -> Browser {
    let browser = Browser::open().await;
    browser.goto(&link(proxy, account).await).await;
    browser.find("button.primary").await.click().await.unwrap();
    browser.find("h1").await;
    browser.until_text("h1", |text| text == "Wallet").await;
    browser
}

#[tokio::test]
async fn a_holder_comes_in_by_a_link_that_works_once_and_sees_their_account_alone() {
    let proxy = Setup::bare().start().await;
    let other = proxy.account_with(credits("7")).await;
    let url = link(&proxy, "default").await;
    let browser = Browser::open().await;
    browser.goto(&url).await;
    browser.find("button.primary").await.click().await.unwrap();
    browser.until_text("h1", |text| text == "Wallet").await;
    assert_eq!(browser.path().await, "/billing/default/wallet");
    let shown = browser.find(".hero .figure data").await.attr("value").await.unwrap();
    assert_eq!(shown.as_deref(), Some("100"));

    for page in PAGES.iter().filter(|page| page.of == Area::Account) {
        browser.goto(&format!("{}/billing/{}/{}", proxy.admin_url(), other.id, page.slug)).await;
        assert_eq!(browser.text("h1").await, "Nothing here", "{}", page.slug);
    }

    let again = Browser::open().await;
    again.goto(&url).await;
    again.find("button.primary").await.click().await.unwrap();
    let said = again.text("[role=alert]").await;
    assert!(said.contains("was used or has expired"), "{said}");
}

#[tokio::test]
async fn the_operator_comes_in_by_the_admin_key_and_back_to_the_page_asked_for() {
    let proxy = Setup::bare().start().await;
    let browser = Browser::open().await;
    browser.goto(&format!("{}/billing/default/wallet?x=1", proxy.admin_url())).await;
    browser.find("#key").await.send_keys("fbx_admin_wrong").await.unwrap();
    browser.press("\n").await;
    browser.find("[role=alert]").await;
    browser.find("#key").await.send_keys(proxy.admin_key()).await.unwrap();
    browser.press("\n").await;
    browser.until_text("h1", |text| text == "Wallet").await;
    assert_eq!(browser.path().await, "/billing/default/wallet?x=1");
    browser.tab_to(".leave button").await;
    browser.press("\n").await;
    browser.until_text("h1", |text| text == "Sign in").await;
    browser.goto(&format!("{}/billing/default/wallet", proxy.admin_url())).await;
    browser.until_text("h1", |text| text == "Sign in").await;
}

#[tokio::test]
async fn the_balance_on_an_open_page_follows_what_happens() {
    let proxy = Setup::bare().start().await;
    let browser = signed_in(&proxy, "default").await;
    browser.until_text("#age", |text| text.contains("live")).await;
    proxy.default_account().topup(credits("2.5")).await;
    browser.until_text(".hero .figure", |text| text.starts_with("102.5")).await;
    browser.until_text("#glance", |text| text.contains("102.5")).await;
}

#[tokio::test]
async fn pages_and_forms_are_refused_to_strangers_and_other_sites() {
    let proxy = Setup::bare().start().await;
    let url = |path: &str| format!("{}{path}", proxy.admin_url());
    let reply = Call::get(url("/billing/default/wallet")).reply().await;
    assert_eq!(reply.status, 303);
    assert!(reply.header("location").unwrap().starts_with("/sign-in?next="));
    for (name, value) in [
        ("x-frame-options", "DENY"),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cache-control", "no-store"),
    ] {
        assert_eq!(reply.header(name), Some(value));
    }
    let policy = reply.header("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");

    let rebound = Call::get(url("/sign-in")).header("host", "evil.example").reply().await;
    assert_eq!(rebound.status, 421);
    let form = format!("key={}", proxy.admin_key());
    let post = |site: &'static str| {
        Call::form(url("/sign-in"), &form).header("sec-fetch-site", site).reply()
    };
    assert_eq!(post("cross-site").await.status, 403);
    let entered = within("sign-in", post("same-origin")).await;
    assert_eq!(entered.status, 303);
    let cookie = entered.header("set-cookie").unwrap().to_owned();
    assert!(cookie.contains("HttpOnly; SameSite=Strict"), "{cookie}");
    let cookie = cookie.split(';').next().unwrap();

    let leave = |csrf: &str| {
        Call::form(url("/sign-out"), &format!("csrf={csrf}"))
            .header("sec-fetch-site", "same-origin")
            .header("cookie", cookie)
            .reply()
    };
    assert_eq!(leave("").await.status, 403);
    assert_eq!(leave("0000").await.status, 403);
    let page = Call::get(url("/billing/default/wallet")).header("cookie", cookie).reply().await;
    let page = page.expect(200).text();
    let csrf = page.split("name=\"csrf\" value=\"").nth(1).unwrap().split('"').next().unwrap();
    assert_eq!(leave(csrf).await.status, 303);
    let gone = Call::get(url("/billing/default/wallet")).header("cookie", cookie).reply().await;
    assert_eq!(gone.status, 303);
}

#[tokio::test]
async fn no_page_is_wider_than_its_window() {
    let proxy = Setup::bare().start().await;
    let browser = signed_in(&proxy, "default").await;
    for page in PAGES.iter().filter(|page| page.of == Area::Account) {
        browser.goto(&format!("{}/billing/default/{}", proxy.admin_url(), page.slug)).await;
        for width in [320, 360, 768, 1280] {
            browser.resize(width, 800).await;
            let wide = "const root = document.documentElement;
                return root.scrollWidth > root.clientWidth ? [root.scrollWidth, innerWidth] : null";
            assert_eq!(browser.eval(wide, json!(null)).await, json!(null), "{}", page.slug);
        }
    }
}
