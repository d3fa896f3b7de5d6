//! What people come for, done by the keyboard alone: Tab, Enter, arrows, Escape and the keys
//! that the pages offer.

use fantoccini::key::Key;
use serde_json::json;

use super::link;
use super::world::World;
use crate::support::browser::Browser;
use crate::support::script::Script;
use crate::support::upstream::Upstream;
use crate::support::{credits, until};

impl Browser {
    /// Presses a key that has no letter.
    async fn key(&self, key: Key) {
        self.press(&key.to_string()).await;
    }

    /// Walks to something by Tab and presses Enter on it.
    async fn enter(&self, css: &str) {
        self.tab_to(css).await;
        self.press("\n").await;
    }

    /// Walks to a field by Tab and types.
    async fn fill(&self, css: &str, text: &str) {
        self.tab_to(css).await;
        self.press(text).await;
    }

    async fn title(&self, is: &str) {
        self.until_text("h1", |text| text == is).await;
    }

    async fn focus(&self) -> String {
        let id = self.eval("return document.activeElement.id", json!(null)).await;
        id.as_str().unwrap().to_owned()
    }
}

/// A window in which the holder of an account came in by a link, by Enter.
async fn holder(world: &World, account: &str) -> Browser {
    let browser = Browser::open().await;
    browser.goto(&link(&world.proxy, account).await).await;
    browser.enter("button.primary").await;
    browser.title("Wallet").await;
    browser
}

#[tokio::test]
async fn the_operator_signs_in_and_tops_an_account_up_by_keyboard() {
    let world = World::new().await;
    let browser = Browser::open().await;
    browser.goto(&format!("{}/operator/accounts", world.proxy.admin_url())).await;
    // The field has the focus from the start.
    assert_eq!(browser.focus().await, "key");
    browser.press(&format!("{}\n", world.proxy.admin_key())).await;
    browser.title("Accounts").await;
    browser.enter("tbody th a[href$='/negative']").await;
    browser.title("Team negative").await;
    browser.fill("#a-amount", "20.5").await;
    browser.fill("#a-note", "invoice 18\n").await;
    browser.title("Add credits").await;
    browser.enter("button.primary").await;
    browser.until_text("[role=status]", |text| text.contains("Booked")).await;
    assert_eq!(world.account("negative").balance().await, credits("20.376543211"));

    // And hands the holder a link.
    browser.enter("#reusable ~ label, form[action$='/link'] button").await;
    let url = browser.text("#link").await;
    assert!(url.contains("/sign-in/"), "{url}");
}

#[tokio::test]
async fn a_holder_reads_the_balance_and_finds_what_it_went_on_by_keyboard() {
    let world = World::new().await;
    let browser = holder(&world, "normal").await;
    let shown = browser.find(".hero .figure data").await.attr("value").await.unwrap().unwrap();
    assert_eq!(credits(&shown), world.account("normal").balance().await);

    // The dearest model, its requests, and the arithmetic of one of them.
    browser.press("gm").await;
    browser.title("Cost by model").await;
    browser.enter("tbody th a").await;
    browser.title("Usage details").await;
    assert!(browser.path().await.contains("model="), "{}", browser.path().await);
    browser.enter("a.row-link").await;
    browser.find("dialog[open] .sum tfoot data").await;
    let inside = "return document.activeElement.closest('dialog') !== null";
    browser.key(Key::Tab).await;
    assert_eq!(browser.eval(inside, json!(null)).await, json!(true), "the drawer has the focus");
    browser.key(Key::Escape).await;
    let back = "return document.activeElement.matches('a.row-link')";
    until("the focus where it was", || async {
        browser.eval(back, json!(null)).await.as_bool()?.then_some(())
    })
    .await;
}

#[tokio::test]
async fn requests_are_filtered_and_paged_by_keyboard() {
    let world = World::new().await;
    let browser = holder(&world, "normal").await;
    browser.press("gu").await;
    browser.title("Usage details").await;
    browser.press("/").await;
    assert_eq!(browser.focus().await, "f-model");
    // Arrows walk through the choices; nothing is sent before Apply.
    browser.key(Key::Down).await;
    browser.key(Key::Down).await;
    assert_eq!(browser.focus().await, "f-model");
    let chosen = browser.eval("return document.activeElement.value", json!(null)).await;
    let chosen = chosen.as_str().unwrap().to_owned();
    browser.enter("form[data-filter] button").await;
    let only =
        "return [...document.querySelectorAll('tbody th')].map((cell) => cell.textContent.trim())
        .filter((name) => name !== arguments[0]).length";
    browser.find(".filters a.button").await;
    assert_eq!(browser.eval(only, chosen.clone()).await, json!(0), "{chosen}");
    browser.enter(".filters a.button").await;
    browser.find("a[rel=next]").await;
    let first = browser.find("tbody tr").await.attr("data-row").await.unwrap().unwrap();
    browser.enter("a[rel=next]").await;
    let second = until("older requests", || async {
        let row = browser.find("tbody tr").await.attr("data-row").await.ok()??;
        (row < first).then_some(row)
    })
    .await;
    browser.client.back().await.unwrap();
    until("the newest again", || async {
        let row = browser.find("tbody tr").await.attr("data-row").await.ok()??;
        (row == first && row != second).then_some(())
    })
    .await;
}

#[tokio::test]
async fn requests_are_exported_by_keyboard_as_the_command_line_exports_them() {
    let world = World::new().await;
    let browser = holder(&world, "normal").await;
    browser.press("ge").await;
    browser.title("Settings").await;
    browser.fill("#from", "01012026").await;
    browser.fill("#to", "01012036").await;
    browser.enter("form[action$='/export/usage'] button:not([formaction])").await;
    let (name, bytes) = browser.downloaded().await;
    assert!(name.starts_with("usage_normal_2026-01-01_") && name.ends_with(".csv"), "{name}");
    let zone = browser.eval("return document.body.dataset.zone", json!(null)).await;
    let args = ["usage", "export", "--account", "normal", "--from", "2026-01-01", "--tz"];
    let shell = world.proxy.cli(&[&args[..], &[zone.as_str().unwrap()]].concat()).await;
    assert!(shell.status.success() && bytes == shell.stdout, "{shell:?}");
}

#[tokio::test]
async fn a_key_is_made_copied_replaced_and_revoked_by_keyboard() {
    let world = World::new().await;
    let browser = holder(&world, "normal").await;
    browser.press("gk").await;
    browser.title("Keys").await;
    browser.fill("#key-name", "on the train\n").await;
    let secret = browser.text("#secret").await;
    browser.enter("[data-copy=secret]").await;
    browser.until_text("#say", |text| text == "Copied").await;
    browser.press("gu").await;
    browser.title("Usage details").await;
    browser.tab_to("#id").await;
    browser.press(&format!("{}v", Key::Control)).await;
    let pasted = browser.eval("return document.activeElement.value", json!(null)).await;
    assert_eq!(pasted, json!(secret));
    let account = world.account("normal").with_key(&secret);
    account.chat("Hi").await.expect(200);

    browser.goto(&format!("{}/billing/normal/keys", world.proxy.admin_url())).await;
    browser.enter("form[action$='/keys/end'] button").await;
    browser.until_text("h1", |text| text.starts_with("Revoke")).await;
    // The field has the focus from the start.
    browser.press("on the train\n").await;
    browser.title("Keys").await;
    account.chat("Hi").await.expect(401);
}

#[tokio::test]
async fn the_time_zone_and_the_colours_are_chosen_by_keyboard() {
    let world = World::new().await;
    let browser = holder(&world, "normal").await;
    browser.enter(".zone summary").await;
    browser.tab_to("#zone-name").await;
    browser.press(&format!("{}a", Key::Control)).await;
    browser.press("Australia/Lord_Howe\n").await;
    browser.until_text(".foot", |text| text.contains("Days in Australia/Lord_Howe")).await;
    let theme = "return document.documentElement.dataset.theme";
    let first = browser.eval(theme, json!(null)).await;
    browser.enter("#theme").await;
    browser.enter("#theme").await;
    assert_ne!(browser.eval(theme, json!(null)).await, first);
    browser.press("gs").await;
    browser.title("Spending over time").await;
    assert_eq!(browser.eval(theme, json!(null)).await, json!("dark"));
}

#[tokio::test]
async fn a_chart_is_read_bar_by_bar_and_as_a_table_by_keyboard() {
    let world = World::new().await;
    let browser = holder(&world, "normal").await;
    browser.press("gs").await;
    browser.title("Spending over time").await;
    browser.tab_to("a.point").await;
    let label = "return document.activeElement.getAttribute('aria-label')";
    let today = browser.eval(label, json!(null)).await;
    browser.key(Key::Left).await;
    let before = browser.eval(label, json!(null)).await;
    assert_ne!(before, today);
    browser.key(Key::Home).await;
    browser.key(Key::End).await;
    assert_eq!(browser.eval(label, json!(null)).await, today);
    // One stop: the next Tab leaves the chart.
    browser.key(Key::Tab).await;
    let left = "return document.activeElement.closest('.chart') === null";
    assert_eq!(browser.eval(left, json!(null)).await, json!(true));
    browser.press("t").await;
    browser.find("details.twin[open] tfoot").await;
    browser.enter("details.twin tbody a").await;
    browser.title("Usage details").await;
}

#[tokio::test]
async fn the_list_of_shortcuts_is_opened_obeyed_and_switched_off_by_keyboard() {
    let world = World::new().await;
    let browser = holder(&world, "normal").await;
    browser.press("?").await;
    browser.find("dialog#keys[open]").await;
    browser.key(Key::Escape).await;
    let gone = "return document.querySelector('dialog[open]') === null";
    assert_eq!(browser.eval(gone, json!(null)).await, json!(true));
    for (keys, title) in [
        ("gm", "Cost by model"),
        ("gs", "Spending over time"),
        ("gu", "Usage details"),
        ("gt", "Transactions"),
        ("gh", "Heartbeats"),
        ("gk", "Keys"),
        ("ge", "Settings"),
    ] {
        browser.press(keys).await;
        browser.title(title).await;
    }
    browser.tab_to("#shortcuts").await;
    browser.press(" ").await;
    browser.enter("form[action$='/display'] button.primary").await;
    browser.find("body[data-no-shortcuts]").await;
    browser.press("gw").await;
    assert_eq!(browser.text("h1").await, "Settings");
}

#[tokio::test]
async fn an_alert_is_set_and_tried_by_keyboard() {
    let receiver = Upstream::answering(Script::whole("text/plain", "")).await;
    let world = World::new().await;
    let browser = holder(&world, "normal").await;
    browser.press("ge").await;
    browser.title("Settings").await;
    browser.fill("#low", "5").await;
    browser.fill("#webhook", &format!("{}/hook\n", receiver.url())).await;
    let secret = browser.text("#whsec").await;
    assert!(secret.starts_with("whsec_"), "{secret}");
    browser.enter("form[action$='/alerts/test'] button").await;
    receiver.ended(1).await;
    assert_eq!(receiver.last().request.json()["type"], "test");
}

#[tokio::test]
async fn a_month_is_read_and_its_ledger_by_the_day_by_keyboard() {
    let world = World::new().await;
    let browser = holder(&world, "normal").await;
    browser.press("ge").await;
    browser.title("Settings").await;
    browser.enter("form[action$='/report'] button").await;
    browser.until_text("main", |text| text.contains("to the last digit")).await;
    browser.press("gt").await;
    browser.title("Transactions").await;
    browser.enter(".tabs a[href*='view=day']").await;
    browser.find("#groups").await;
    browser.enter("#groups tbody th a").await;
    browser.find("#sums").await;
}
