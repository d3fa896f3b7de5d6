//! The pages that change something: keys, settings and the operator's, in a real browser and
//! over plain HTTP.

mod figures;
mod keys;

use fantoccini::Locator;
use serde_json::json;

use crate::pages::look::keep_pictures;
use crate::pages::signed_in;
use crate::support::account::{Account, chat};
use crate::support::answer::Answer;
use crate::support::browser::Browser;
use crate::support::http::{Call, Reply};
use crate::support::prices::Counts;
use crate::support::proxy::{Proxy, Setup};
use crate::support::script::Script;
use crate::support::upstream::Upstream;
use crate::support::{credits, until};

/// Texts that run if a page takes them for its own.
const HOSTILE: [&str; 4] = [
    "<script>window.ran = 1</script>",
    "\"><img src=x onerror=\"window.ran = 1\">",
    "'; window.ran = 1; //",
    "</title><svg onload=window.ran=1>",
];

async fn start(upstream: &Upstream) -> Proxy {
    Setup::before(upstream)
        .setting("alert_private_addresses", "true")
        .setting("alert_retry", "\"50ms\"")
        .start()
        .await
}

async fn operator(proxy: &Proxy) -> Browser {
    let browser = Browser::open().await;
    browser.goto(&format!("{}/operator/accounts", proxy.admin_url())).await;
    browser.find("#key").await.send_keys(proxy.admin_key()).await.unwrap();
    browser.press("\n").await;
    browser.until_text("h1", |text| text == "Accounts").await;
    browser
}

/// A session of the operator without a browser: its cookie and what forms must send.
struct Plain<'a> {
    proxy: &'a Proxy,
    cookie: String,
    csrf: String,
}

impl<'a> Plain<'a> {
    async fn enter(proxy: &'a Proxy) -> Self {
        let form = format!("key={}", proxy.admin_key());
        let call = Call::form(format!("{}/sign-in", proxy.admin_url()), &form);
        let reply = call.header("sec-fetch-site", "same-origin").reply().await.expect(303);
        let cookie = reply.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
        let mut plain = Self { proxy, cookie, csrf: String::new() };
        let page = plain.get("/operator/accounts").await.expect(200).text();
        plain.csrf = value_of(&page, "csrf");
        plain
    }

    async fn get(&self, path: &str) -> Reply {
        let call = Call::get(format!("{}{path}", self.proxy.admin_url()));
        call.header("cookie", &self.cookie).reply().await
    }

    async fn post(&self, path: &str, form: &str) -> Reply {
        self.post_as(path, &format!("csrf={}&{form}", self.csrf)).await
    }

    async fn post_as(&self, path: &str, form: &str) -> Reply {
        let call = Call::form(format!("{}{path}", self.proxy.admin_url()), form);
        let call = call.header("sec-fetch-site", "same-origin").header("cookie", &self.cookie);
        call.reply().await
    }
}

/// The value of the first field of a name.
fn value_of(page: &str, name: &str) -> String {
    let (_, rest) = page.split_once(&format!("name=\"{name}\" value=\"")).unwrap();
    rest.split('"').next().unwrap().to_owned()
}

/// Keeps pictures of the page in both colours, if somebody wants to look at them.
async fn picture(browser: &Browser, name: &str) {
    for theme in ["light", "dark", "system"] {
        browser.eval("document.documentElement.dataset.theme = arguments[0]", theme).await;
        if theme != "system" {
            keep_pictures(browser, &format!("{name} {theme}")).await;
        }
    }
}

#[tokio::test]
async fn a_key_is_made_used_and_revoked_by_the_keyboard_alone() {
    let upstream = Upstream::start().await;
    let proxy = start(&upstream).await;
    let browser = signed_in(&proxy, "default").await;
    browser.goto(&format!("{}/billing/default/keys", proxy.admin_url())).await;
    browser.tab_to("#key-name").await;
    browser.press("openclaw at home\n").await;
    let secret = browser.text("#secret").await;
    for snippet in ["openclaw", "n8n", "curl", "python", "javascript", "environment"] {
        let text = browser
            .eval(
                "return document.getElementById(arguments[0]).textContent",
                format!("snippet-{snippet}"),
            )
            .await;
        let text = text.as_str().unwrap();
        assert!(text.contains(&secret) && text.contains(&proxy.url()), "{snippet}: {text}");
    }
    picture(&browser, "key-made").await;
    let account = proxy.default_account().with_key(&secret);
    account.chat("Hi").await.expect(200);

    browser.goto(&format!("{}/billing/default/keys", proxy.admin_url())).await;
    let page = browser.client.source().await.unwrap();
    assert!(!page.contains(&secret), "a secret is shown once");
    picture(&browser, "keys").await;
    // The newest is first.
    browser.tab_to("form[action$='/keys/end'] button").await;
    browser.press("\n").await;
    browser.find("#typed").await.send_keys("openclaw at hom").await.unwrap();
    browser.press("\n").await;
    browser.until_text("[role=alert]", |text| text.contains("not its name")).await;
    picture(&browser, "key-revoke").await;
    account.chat("Hi").await.expect(200);
    browser.find("#typed").await.send_keys("openclaw at home").await.unwrap();
    browser.press("\n").await;
    browser.until_text("h1", |text| text == "Keys").await;
    account.chat("Hi").await.expect(401);
}

#[tokio::test]
async fn credits_are_reviewed_first_and_booked_once_however_often_it_is_clicked() {
    let proxy = Setup::bare().start().await;
    let account = proxy.account_with(credits("1")).await;
    let plain = Plain::enter(&proxy).await;
    let here = format!("/operator/accounts/{}", account.id);
    let page = plain.get(&here).await.expect(200).text();
    let form = format!("id={}&what=topup&amount=5&note=invoice+17", value_of(&page, "id"));
    let review = plain.post(&format!("{here}/change"), &form).await.expect(200).text();
    assert!(review.contains("5 usage credits are added"), "{review}");
    assert_eq!(account.balance().await, credits("1"), "nothing is booked by looking");

    let sure = format!("{form}&sure=1");
    for _ in 0..3 {
        plain.post(&format!("{here}/change"), &sure).await.expect(303);
    }
    assert_eq!(account.balance().await, credits("6"));
    // The same form with another amount is not the same operation.
    let other = sure.replace("amount=5", "amount=6");
    plain.post(&format!("{here}/change"), &other).await.expect(409);
    // Without the session's token, or from elsewhere, nothing is taken.
    plain.post_as(&format!("{here}/change"), &sure).await.expect(403);
    let expires = form.replace("topup", "promotional").replace("id=page_", "id=page_p");
    plain
        .post(&format!("{here}/change"), &format!("{expires}&sure=1&expires=30d"))
        .await
        .expect(303);
    let kinds: Vec<_> = account.ledger().await.into_iter().map(|entry| entry.kind).collect();
    assert_eq!(kinds.len(), 3, "{kinds:?}");
    account.check_books().await;
}

#[tokio::test]
async fn an_account_is_made_credited_refunded_and_closed_on_the_pages() {
    let upstream = Upstream::start().await;
    let proxy = start(&upstream).await;
    let browser = operator(&proxy).await;
    picture(&browser, "operator-accounts").await;
    browser.find("#new-id").await.send_keys("team-a").await.unwrap();
    browser.find("#new-name").await.send_keys("Team A\n").await.unwrap();
    browser.until_text("h1", |text| text == "Team A").await;
    browser.find("#a-amount").await.send_keys("3").await.unwrap();
    browser.find("#a-note").await.send_keys("trial\n").await.unwrap();
    browser.until_text("h1", |text| text == "Add credits").await;
    picture(&browser, "operator-confirm").await;
    browser.tab_to("button.primary").await;
    browser.press("\n").await;
    browser.until_text("[role=status]", |text| text.contains("Booked")).await;

    let account = Account::new(proxy.default_account().shared(), "team-a", "");
    let key = account.new_key(&json!({ "name": "k" })).await;
    let account = account.with_key(&key);
    account.chat("Hi").await.expect(200);
    account.settled().await;
    let spent = account.balance().await;
    assert!(spent < credits("3"));
    let request = account.last_usage().await.id;
    browser.find("#u-of").await.send_keys(&request).await.unwrap();
    browser.find("#u-note").await.send_keys("sorry\n").await.unwrap();
    browser.until_text("h1", |text| text == "Refund a request").await;
    browser.tab_to("button.primary").await;
    browser.press("\n").await;
    browser.until_text("[role=status]", |text| text.contains("Booked")).await;
    assert_eq!(account.balance().await, credits("3"));
    picture(&browser, "operator-account").await;

    browser.tab_to("#hand-out ~ form button").await;
    browser.press("\n").await;
    let url = browser.text("#link").await;
    assert!(url.contains("/sign-in/"), "{url}");
    browser.client.back().await.unwrap();
    browser.find("#close").await;
    browser.tab_to("form button.danger").await;
    browser.press("\n").await;
    browser.until_text("h1", |text| text == "Close the account").await;
    browser.find("#typed").await.send_keys("team-a").await.unwrap();
    browser.press("\n").await;
    browser.until_text(".about", |text| text.contains("Closed") || text.contains("Closing")).await;
    account.chat("Hi").await.expect(403);
    account.check_books().await;
}

#[tokio::test]
async fn alerts_are_set_and_tried_out_on_the_settings_and_the_log_follows() {
    let upstream = Upstream::start().await;
    let receiver = Upstream::answering(Script::whole("text/plain", "")).await;
    let proxy = start(&upstream).await;
    let browser = signed_in(&proxy, "default").await;
    let settings = format!("{}/billing/default/settings", proxy.admin_url());
    browser.goto(&settings).await;
    browser.find("#low").await.send_keys("5").await.unwrap();
    browser.find("#webhook").await.send_keys(&format!("{}/hook\n", receiver.url())).await.unwrap();
    let secret = browser.text("#whsec").await;
    assert!(secret.starts_with("whsec_"), "{secret}");
    browser.tab_to("form[action$='/alerts/test'] button").await;
    browser.press("\n").await;
    receiver.ended(1).await;
    assert_eq!(receiver.last().request.json()["type"], "test");
    until("the log", || async {
        browser.goto(&settings).await;
        let log = browser.text("#alerts-log").await;
        (log.contains("Test") && log.contains("Delivered")).then_some(())
    })
    .await;
    let page = browser.client.source().await.unwrap();
    assert!(!page.contains(&secret), "the secret is shown once");
    picture(&browser, "settings").await;

    browser.find("#tz").await.send_keys("Pacific/Auckland").await.unwrap();
    browser.press("\n").await;
    browser.until_text(".foot", |text| text.contains("Days in Pacific/Auckland")).await;
}

#[tokio::test]
async fn decimals_are_chosen_for_cards_and_sentences_while_tables_keep_every_digit() {
    let upstream = Upstream::start().await;
    let proxy = start(&upstream).await;
    let account = proxy.default_account();
    account.chat("Hi").await.expect(200);
    account.settled().await;
    let plain = Plain::enter(&proxy).await;
    let form = "zone=&shortcuts=1&decimals=";
    let display = "/billing/default/settings/display";
    for bad in ["1", "10", "x", "-2"] {
        plain.post(display, &format!("{form}{bad}")).await.expect(400);
    }
    let browser = signed_in(&proxy, "default").await;
    let balance = account.balance().await;
    assert_eq!(balance, credits("99.99986"));
    for (choice, shown) in [("2", "100.00"), ("9", "99.999860000"), ("", "99.9999")] {
        plain.post(display, &format!("{form}{choice}")).await.expect(303);
        browser.goto(&format!("{}/billing/default/wallet", proxy.admin_url())).await;
        browser.until_text(".hero .figure data", |text| text == shown).await;
        let value = browser.find(".hero .figure data").await.attr("value").await.unwrap();
        assert_eq!(value, Some(balance.to_string()));
        let exact = browser.text("#recent td[data-label=Balance] data").await;
        assert_eq!(exact, "99.99986");
    }
}

#[tokio::test]
async fn exports_of_the_pages_are_the_bytes_of_the_command_line() {
    let upstream = Upstream::start().await;
    let proxy = start(&upstream).await;
    let account = proxy.default_account();
    for _ in 0..3 {
        account.chat("Hi").await.expect(200);
    }
    account.settled().await;
    let plain = Plain::enter(&proxy).await;
    let until = farebox::time::rfc3339(farebox::time::now());
    for (what, format) in
        [("usage", "csv"), ("usage", "jsonl"), ("ledger", "csv"), ("ledger", "jsonl")]
    {
        let query = format!("format={format}&until={until}&tz=Europe/Berlin");
        let page = plain.get(&format!("/billing/default/export/{what}?{query}")).await.expect(200);
        let args = [what, "export", "--format", format, "--until", &until, "--tz", "Europe/Berlin"];
        let shell = proxy.cli(&args).await;
        assert!(shell.status.success() && !shell.stdout.is_empty(), "{shell:?}");
        assert_eq!(page.body, shell.stdout, "{what} {format}");
    }
}

#[tokio::test]
async fn a_month_adds_up_and_heartbeats_are_on_the_wallet() {
    let answer = Answer::default().counts(Counts::new(20_000, 100));
    let upstream = Upstream::answering(answer).await;
    let model = |name: &str, input: &str| {
        format!("[models.{name}]\nupstream = \"openai\"\ninput = \"{input}\"\noutput = \"2\"\n")
    };
    let setup = Setup::before(&upstream).prices(&(model("dear", "10") + &model("light", "1")));
    let proxy = setup.start().await;
    let account = proxy.default_account();
    let beats = account.with_key(
        &account
            .new_key(&json!({ "name": "hb", "tag": "heartbeat", "models": ["dear", "light"] }))
            .await,
    );
    for _ in 0..4 {
        beats.post("/v1/chat/completions", &chat("dear", "Hi")).await.expect(200);
    }
    account.chat("Hi").await.expect(200);
    account.settled().await;
    let browser = signed_in(&proxy, "default").await;
    let card = browser.text("#heartbeats").await;
    assert!(card.contains("4 in the last 24 hours cost 0.8008 credits"), "{card}");
    assert!(card.contains("light"), "{card}");
    picture(&browser, "wallet").await;
    browser.goto(&format!("{}/billing/default/heartbeats", proxy.admin_url())).await;
    browser.until_text("main", |text| text.contains("On light, in a session of their own")).await;
    picture(&browser, "heartbeats").await;
    browser.goto(&format!("{}/billing/default/report", proxy.admin_url())).await;
    browser.until_text("main", |text| text.contains("to the last digit")).await;
    let closing = browser.find("tfoot data").await.attr("value").await.unwrap().unwrap();
    assert_eq!(credits(&closing), account.balance().await);
    picture(&browser, "report").await;
    if let Ok(folder) = std::env::var("FAREBOX_SCREENSHOTS") {
        let print = fantoccini::wd::PrintConfigurationBuilder::default().build().unwrap();
        std::fs::write(format!("{folder}/report.pdf"), browser.client.print(print).await.unwrap())
            .unwrap();
    }
}

#[tokio::test]
async fn what_strangers_named_is_shown_and_never_run() {
    let upstream = Upstream::start().await;
    let proxy = start(&upstream).await;
    let account = proxy.default_account();
    for (n, text) in HOSTILE.iter().enumerate() {
        let key =
            account.new_key(&json!({ "name": text, "tag": text, "models": [text, "*"] })).await;
        account.with_key(&key).chat("Hi").await.expect(200);
        account.grant("adjust", "0.1", text, &format!("h{n}")).await.expect(201);
    }
    account.settled().await;
    let browser = operator(&proxy).await;
    for path in [
        "/billing/default/keys",
        "/billing/default/settings",
        "/billing/default/heartbeats",
        "/billing/default/report",
        "/billing/default/wallet",
        "/operator/accounts",
        "/operator/accounts/default",
        "/operator/prices",
        "/operator/upstreams",
        "/operator/alerts",
    ] {
        browser.goto(&format!("{}{path}", proxy.admin_url())).await;
        browser.find("h1").await;
        assert_eq!(
            browser.eval("return window.ran ?? null", json!(null)).await,
            json!(null),
            "{path}"
        );
        for width in [320, 360, 768, 1280] {
            browser.resize(width, 800).await;
            let wide = "const root = document.documentElement;
                return root.scrollWidth > root.clientWidth ? [root.scrollWidth, innerWidth] : null";
            assert_eq!(browser.eval(wide, json!(null)).await, json!(null), "{path} at {width}");
        }
        if path.starts_with("/operator/") {
            picture(&browser, &path[1..].replace('/', "-")).await;
        }
    }
    browser.goto(&format!("{}/billing/default/keys", proxy.admin_url())).await;
    let names = browser.client.find_all(Locator::Css("tbody th")).await.unwrap();
    assert!(names[0].text().await.unwrap().contains(HOSTILE[3]));
    assert!(!proxy.output().contains("content security policy"), "{}", proxy.output());
}

#[tokio::test]
async fn the_operators_pages_are_nothing_to_a_holder() {
    let proxy = Setup::bare().start().await;
    let browser = signed_in(&proxy, "default").await;
    for path in ["accounts", "accounts/default", "prices", "upstreams", "alerts"] {
        browser.goto(&format!("{}/operator/{path}", proxy.admin_url())).await;
        assert_eq!(browser.text("h1").await, "Nothing here", "{path}");
    }
}
