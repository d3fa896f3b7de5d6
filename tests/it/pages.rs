//! The billing pages, in a real browser and over plain HTTP.

use fantoccini::key::Key;
use farebox::dashboard::{Area, PAGES};
use serde_json::json;

use crate::demo::Demo;
use crate::support::account::chat;
use crate::support::browser::Browser;
use crate::support::http::Call;
use crate::support::proxy::{Proxy, Setup};
use crate::support::upstream::Upstream;
use crate::support::{credits, until, within};

mod connection;
mod equal;
pub mod look;
mod states;
mod tasks;
mod world;

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
async fn a_fresh_link_leads_back_to_the_page_that_was_asked_for_before_it() {
    let proxy = Setup::bare().start().await;
    let other = proxy.account_with(credits("7")).await;
    let asked = "/billing/default/usage?range=7d";
    let browser = Browser::open().await;
    browser.goto(&format!("{}{asked}", proxy.admin_url())).await;
    browser.until_text("h1", |text| text == "Sign in").await;
    browser.goto(&link(&proxy, "default").await).await;
    browser.find("button.primary").await.click().await.unwrap();
    browser.until_text("h1", |text| text == "Usage details").await;
    assert_eq!(browser.path().await, asked);

    // It is kept for one sign-in; and nobody is brought to what is not theirs.
    for asked in ["", &format!("/billing/{}/usage", other.id), "/operator/accounts"] {
        browser.client.delete_cookie("farebox").await.unwrap();
        if !asked.is_empty() {
            browser.goto(&format!("{}{asked}", proxy.admin_url())).await;
            browser.until_text("h1", |text| text == "Sign in").await;
        }
        browser.goto(&link(&proxy, "default").await).await;
        browser.find("button.primary").await.click().await.unwrap();
        browser.until_text("h1", |text| text == "Wallet").await;
        assert_eq!(browser.path().await, "/billing/default/wallet", "{asked}");
    }
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

/// Hostile text, wherever people or programs may name something.
const HOSTILE: [&str; 4] = [
    "\"><img src=x onerror=\"window.ran=1\">",
    "<script>window.ran=1</script>",
    "javascript:window.ran=1//",
    "'-window.ran=1-'{{7*7}}</title><svg onload=window.ran=1>",
];

#[tokio::test]
async fn hostile_names_tags_and_notes_stay_text_on_every_page() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.default_account();
    for text in HOSTILE {
        let key = account.new_key(&json!({ "name": text, "tag": text })).await;
        let body = chat("test", "Hi");
        let url = format!("{}/v1/chat/completions", proxy.url());
        Call::post(url, &body).bearer(&key).reply().await.expect(200);
        let grant = json!({ "kind": "topup", "amount": "1", "note": text });
        let url = format!("{}/admin/v1/accounts/default/credits", proxy.admin_url());
        let call = Call::post(url, &grant).bearer(proxy.admin_key());
        call.header("idempotency-key", &format!("n{}", text.len())).reply().await.expect(201);
    }
    let browser = signed_in(&proxy, "default").await;
    let usage = "usage?range=7d&model=%22%3E%3Cimg%20src%3Dx%20onerror%3Dwindow.ran%3D1%3E";
    for path in
        ["wallet", "costs?by=key", "costs?by=tag", "spending", "usage", usage, "transactions"]
    {
        browser.goto(&format!("{}/billing/default/{path}", proxy.admin_url())).await;
        browser.find("h1").await;
        let ran = "return [window.ran ?? null, document.querySelectorAll('main img').length]";
        assert_eq!(browser.eval(ran, json!(null)).await, json!([null, 0]), "{path}");
    }
    assert!(!proxy.output().contains("content security policy"), "{}", proxy.output());
}

#[tokio::test]
async fn the_demonstration_is_looked_at_by_keyboard_alone() {
    let demo = within("the demonstration", tokio::task::spawn_blocking(Demo::start)).await.unwrap();
    let browser = Browser::open().await;
    browser.goto(demo.printed("Billing pages")).await;
    browser.tab_to("button.primary").await;
    browser.press("\n").await;
    browser.until_text("h1", |text| text == "Wallet").await;
    browser.find("#recent [scope=row] a").await;

    // Where did it go, and why did the newest request cost what it did?
    browser.press("gm").await;
    browser.until_text("h1", |text| text == "Cost by model").await;
    browser.find("tfoot data").await;
    browser.press("gu").await;
    browser.until_text("h1", |text| text == "Usage details").await;
    browser.tab_to("a.row-link").await;
    browser.press("\n").await;
    browser.find("dialog[open] .sum tfoot data").await;
    browser.press(&Key::Escape.to_string()).await;
    let closed = "return document.querySelector('dialog[open]') === null";
    until("a closed drawer", || async {
        browser.eval(closed, json!(null)).await.as_bool()?.then_some(())
    })
    .await;
    browser.press("/").await;
    let focus = "return document.activeElement.id";
    assert_eq!(browser.eval(focus, json!(null)).await, json!("f-model"));

    // The chart: one stop, arrows, and the day behind a bar.
    browser
        .goto(&format!("{}/billing/default/spending", demo.printed("export FAREBOX_URL=")))
        .await;
    browser.tab_to("a.point").await;
    browser.press(&Key::Left.to_string()).await;
    browser.press(&Key::Right.to_string()).await;
    browser.press("\n").await;
    browser.until_text("h1", |text| text == "Usage details").await;
    browser.press("gs").await;
    browser.until_text("h1", |text| text == "Spending over time").await;
    browser.press("t").await;
    browser.find("details.twin[open] tfoot").await;
    browser.press("?").await;
    browser.find("dialog#keys[open]").await;
}

/// Looks at every page of the demonstration: nothing sticks out of a window, and no rule of
/// accessibility is broken, in both colours. With `FAREBOX_SCREENSHOTS` it keeps pictures there.
#[tokio::test]
async fn every_page_fits_and_is_accessible_in_light_and_dark() {
    let axe =
        concat!(env!("CARGO_MANIFEST_DIR"), "/target/browser/node_modules/axe-core/axe.min.js");
    let axe = std::fs::read_to_string(axe).expect("axe-core: tests/browser/install.sh installs it");
    let folder = std::env::var_os("FAREBOX_SCREENSHOTS").map(std::path::PathBuf::from);
    let demo = within("the demonstration", tokio::task::spawn_blocking(Demo::start)).await.unwrap();
    let browser = Browser::open().await;
    browser.goto(demo.printed("Billing pages")).await;
    browser.find("button.primary").await.click().await.unwrap();
    browser.until_text("h1", |text| text == "Wallet").await;
    let base = format!("{}/billing/default", demo.printed("export FAREBOX_URL="));
    let request = browser.find("#recent [scope=row] a").await.attr("href").await.unwrap().unwrap();
    let request = request.rsplit_once("/billing/default/").unwrap().1.to_owned();
    let paths = ["wallet", "costs?range=7d", "spending?range=24h", "usage", "transactions"];
    for path in paths.into_iter().chain([request.as_str(), "transactions?view=hour"]) {
        browser.goto(&format!("{base}/{path}")).await;
        for theme in ["light", "dark"] {
            let set = "document.documentElement.dataset.theme = arguments[0]";
            browser.eval(set, theme).await;
            for width in [320, 360, 768, 1280] {
                browser.resize(width, 900).await;
                let wide = "const root = document.documentElement;
                    return root.scrollWidth > root.clientWidth ? root.scrollWidth : null";
                assert_eq!(browser.eval(wide, json!(null)).await, json!(null), "{path} at {width}");
                if let Some(folder) = folder.as_ref().filter(|_| width == 360 || width == 1280) {
                    std::fs::create_dir_all(folder).unwrap();
                    let name = path.split(['?', '/']).next().unwrap();
                    let name = match (path.contains('/'), path.contains("view=")) {
                        (true, _) => "request",
                        (_, true) => "transactions-by-hour",
                        _ => name,
                    };
                    let picture = browser.client.screenshot().await.unwrap();
                    std::fs::write(folder.join(format!("{name}-{width}-{theme}.png")), picture)
                        .unwrap();
                }
            }
            let script = format!(
                "{axe};const done = arguments[arguments.length - 1];
                axe.run().then((all) => done(all.violations.map((found) =>
                    found.id + ': ' + found.nodes.map((node) => node.html).slice(0, 3).join(' | '))));"
            );
            let found = browser.client.execute_async(&script, vec![]).await.unwrap();
            assert_eq!(found, json!([]), "{path} in {theme}");
        }
    }
}
