//! What pages say of figures: in which order, what was refused, what needs attention, and that
//! the books add up.

use farebox::billing::Credits;
use serde_json::json;

use super::{Plain, start};
use crate::support::account::chat;
use crate::support::answer::Answer;
use crate::support::http::Call;
use crate::support::prices::Counts;
use crate::support::proxy::{Proxy, Setup};
use crate::support::upstream::Upstream;
use crate::support::{credits, until};

/// The exact costs of a page's rows, in their order.
fn costs(page: &str) -> Vec<Credits> {
    let cells = page.split("data-label=\"Cost\"").skip(1);
    cells.map(|cell| value(cell).parse().unwrap()).collect()
}

/// The first exact amount of a piece of a page.
fn value(part: &str) -> &str {
    part.split_once("value=\"").unwrap().1.split('"').next().unwrap()
}

/// The text of a banner, without its markup.
async fn banner(plain: &Plain<'_>, account: &str) -> String {
    let page = plain.get(&format!("/billing/{account}/keys")).await.expect(200).text();
    let Some((_, rest)) = page.split_once("<div class=\"banner ") else { return String::new() };
    assert_eq!(rest.matches("<div class=\"banner ").count(), 0, "one banner at most");
    let (_, text) = rest.split_once("<strong>").unwrap();
    text.split("</p>").next().unwrap().replace("</strong>", "")
}

#[tokio::test]
async fn requests_are_ordered_and_filtered_by_cost_and_what_was_refused_is_counted() {
    let answer = Answer::default().counts(Counts::new(1_000, 10));
    let upstream = Upstream::answering(answer).await;
    let model = |name: &str, input: &str| {
        format!("[models.{name}]\nupstream = \"openai\"\ninput = \"{input}\"\noutput = \"2\"\n")
    };
    let prices = model("cheap", "1") + &model("dear", "100") + &model("middle", "10");
    let proxy = Setup::before(&upstream).prices(&prices).start().await;
    let account = proxy.default_account();
    for model in ["middle", "dear", "cheap"] {
        account.post("/v1/chat/completions", &chat(model, "Hi")).await.expect(200);
        account.settled().await;
    }
    let plain = Plain::enter(&proxy).await;
    let usage = "/billing/default/usage";
    let by_time = costs(&plain.get(usage).await.expect(200).text());
    let page = plain.get(&format!("{usage}?sort=cost")).await.expect(200).text();
    let by_cost = costs(&page);
    assert!(page.contains("aria-sort=\"descending\"") && page.contains("dearest first"));
    assert_eq!(by_cost, [by_time[1], by_time[2], by_time[0]]);
    let exactly = by_cost[1];
    let above = |than: Credits| {
        let (plain, path) = (&plain, format!("{usage}?above={than}"));
        async move { costs(&plain.get(&path).await.expect(200).text()) }
    };
    assert_eq!(above(exactly).await, by_cost[..1]);
    assert_eq!(above(exactly - Credits::from_nano(1)).await.len(), 2);
    plain.get(&format!("{usage}?above=much")).await.expect(400);
    assert!(!page.contains("id=\"refused\""), "nothing was refused");

    // Refusals cost nothing, have no row, and are counted by what stood in their way.
    let capped = json!({ "name": "capped", "limits": { "total": "0" } });
    let capped = account.with_key(&account.new_key(&capped).await);
    for _ in 0..3 {
        capped.post("/v1/chat/completions", &chat("cheap", "Hi")).await.expect(402);
    }
    let page = plain.get(usage).await.expect(200).text();
    assert!(page.contains("3 more were refused") && page.contains("cap of the key 3"), "{page}");
    assert_eq!(costs(&page), by_time);
    let url = format!("{}/admin/v1/accounts/default/refusals", proxy.admin_url());
    let told = Call::get(url).bearer(proxy.admin_key()).reply().await.expect(200).json();
    assert_eq!(told["data"], json!([{ "reason": "key_cap", "requests": 3 }]));

    // Groups by upstream and model add up to the same, and a model shows its price of now.
    for by in ["upstream", "model"] {
        let page = plain.get(&format!("/billing/default/costs?by={by}")).await.expect(200).text();
        let total = costs(&page).pop().unwrap();
        assert_eq!(total, by_time.iter().copied().sum::<Credits>(), "{by}");
        assert_eq!(page.contains("100 in, 2 out"), by == "model");
    }
}

#[tokio::test]
async fn one_banner_says_what_matters_most() {
    let upstream = Upstream::start().await;
    let proxy = start(&upstream).await;
    let plain = Plain::enter(&proxy).await;
    let account = proxy.account_with(credits("0.00001")).await;
    let id = account.id.clone();
    assert_eq!(banner(&plain, &id).await, "");
    account.grant("promo", "3", "trial", "p1").await.expect(201);
    let soon = json!({ "kind": "promo", "amount": "2", "note": "soon", "expires": "3d" });
    let call = account.admin_call("/credits", &soon).header("idempotency-key", "p2");
    call.reply().await.expect(201);
    let ends = banner(&plain, &id).await;
    assert!(ends.starts_with("Credits end soon. About 2 credits end on"), "{ends}");

    let rules = format!("csrf={}&low_balance=100", plain.csrf);
    plain.post_as(&format!("/billing/{id}/settings/alerts"), &rules).await;
    let low = banner(&plain, &id).await;
    assert!(low.starts_with("Low. Less than 100 credits are left."), "{low}");

    account.grant("adjust", "-5.00001", "taken", "a1").await.expect(201);
    assert!(banner(&plain, &id).await.starts_with("No credits. Requests are paused"));
    account.grant("adjust", "-0.1", "taken", "a2").await.expect(201);
    let negative = banner(&plain, &id).await;
    assert!(negative.starts_with("Negative. Requests are paused. Your balance is −0.1"));
    let close = account.admin_call("/close", &json!({})).header("idempotency-key", "c1");
    close.reply().await.expect(200);
    until("a closed account", || async {
        banner(&plain, &id).await.starts_with("Closed. This account is closed").then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_whole_ledger_is_verified_and_audited_on_demand() {
    let upstream = Upstream::start().await;
    let proxy = start(&upstream).await;
    let account = proxy.default_account();
    for n in 0..1_100 {
        account.grant("adjust", "0.01", "many", &format!("m{n}")).await.expect(201);
    }
    account.chat("Hi").await.expect(200);
    account.settled().await;
    let plain = Plain::enter(&proxy).await;
    let here = "/billing/default/transactions";
    let last = account.ledger().await.len();
    let last = format!("{}\u{202f}{:03}", last / 1000, last % 1000);
    let all = format!("entries 1–{last}, all that there are");
    for query in ["", "?kind=refund", "?view=day"] {
        let page = plain.get(&format!("{here}{query}")).await.expect(200).text();
        assert!(page.contains(&all), "{all}: {page}");
        assert!(!page.contains("were audited"));
    }
    plain.post(&format!("{here}/verify"), "").await.expect(303);
    let page = plain.get(here).await.expect(200).text();
    let told = page.split("All books were audited").nth(1).expect("an audit");
    assert!(told.contains(&format!("{last} entries and 1 requests, nothing amiss")), "{told}");
    let settings = plain.get("/billing/default/settings").await.expect(200).text();
    assert!(settings.contains("nothing amiss"));
}

#[tokio::test]
async fn a_change_of_prices_is_marked_on_the_day_it_came() {
    let upstream = Upstream::start().await;
    let table = |input: &str| {
        format!(
            "[models.m]\nupstream = \"openai\"\ninput = \"{input}\"\noutput = \"2\"\n\n[models.idle]\nupstream = \"openai\"\ninput = \"{input}\"\noutput = \"2\"\n"
        )
    };
    let proxy = Setup::before(&upstream).prices(&table("1")).start().await;
    let account = proxy.default_account();
    account.post("/v1/chat/completions", &chat("m", "Hi")).await.expect(200);
    account.settled().await;
    let plain = Plain::enter(&proxy).await;
    let spending = "/billing/default/spending?range=7d&compare=1";
    let page = plain.get(spending).await.expect(200).text();
    assert!(!page.contains("changed") && page.contains("The time before"));
    replace_prices(&proxy, &table("3"));
    until("the mark", || async {
        let page = plain.get(spending).await.expect(200).text();
        page.contains("price of m changed").then_some(())
    })
    .await;
    let page = plain.get("/billing/default/costs").await.expect(200).text();
    assert!(page.contains("3 in, 2 out"));
}

fn replace_prices(proxy: &Proxy, text: &str) {
    let path = proxy.dir().join("pricing.toml");
    let beside = path.with_extension("new");
    std::fs::write(&beside, text).unwrap();
    std::fs::rename(beside, path).unwrap();
    proxy.signal("HUP");
}
