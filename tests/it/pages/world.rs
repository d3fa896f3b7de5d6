//! Accounts in every state that an account can be in, in front of the real program.

use farebox::billing::ledger::Kind;
use farebox::billing::{Credits, Usage};
use farebox::store::{Attribution, Outcome, Source};
use farebox::time;
use tempfile::TempDir;

use super::link;
use crate::support::account::Account;
use crate::support::browser::Browser;
use crate::support::credits;
use crate::support::history::{DAY_MS, HOUR_MS, History};
use crate::support::proxy::{Proxy, Setup};
use crate::support::upstream::Upstream;

/// Texts that run if a page takes them for its own: what strangers may name models, keys, tags,
/// agents, sessions, notes, upstreams and accounts.
const HOSTILE: [&str; 14] = [
    "<script>window.ran=1</script>",
    "\"><img src=x onerror=\"window.ran=1\">",
    "'><svg/onload=window.ran=1>",
    "</title><script>window.ran=1</script>",
    "</textarea></select></option><script>window.ran=1</script>",
    "javascript:window.ran=1//",
    "data:text/html,<script>window.ran=1</script>",
    "'-window.ran=1-'",
    "{{7*7}}${window.ran=1}#{window.ran=1}<%= window.ran=1 %>",
    "<iframe srcdoc='<script>parent.ran=1</script>'></iframe>",
    "<math><mtext></form><form><mglyph><style></math><img src=x onerror=window.ran=1>",
    "\u{202e}gnp.exe\u{2066}\" autofocus onfocus=window.ran=1 x=\"",
    "<details open ontoggle=window.ran=1><summary>x",
    "&lt;script&gt;window.ran=1&lt;/script&gt;<base href=//evil.example>",
];

/// A state of an account, and the one thing that its pages must then say above everything.
pub struct State {
    pub id: &'static str,
    pub banner: Option<&'static str>,
}

pub const STATES: [State; 9] = [
    State { id: "empty", banner: Some("No credits") },
    State { id: "normal", banner: None },
    State { id: "low", banner: Some("Low") },
    State { id: "zero", banner: Some("No credits") },
    State { id: "negative", banner: Some("Negative") },
    State { id: "expiring", banner: Some("Credits end soon") },
    State { id: "estimated", banner: Some("Estimated") },
    State { id: "closed", banner: Some("Closed") },
    State { id: "hostile", banner: None },
];

/// Accounts in every state, on a running program.
pub struct World {
    pub proxy: Proxy,
    _upstream: Upstream,
    _disk: TempDir,
}

impl World {
    pub async fn new() -> Self {
        let disk = TempDir::new().unwrap();
        let file = disk.path().join("books.db");
        let history = History::open(&file);
        let now = time::now();
        for state in &STATES {
            history.at(now - 40 * DAY_MS).account(state.id, &format!("Team {}", state.id)).await;
            if state.id != "empty" {
                for (key, name) in [("a", "openclaw at home"), ("b", "n8n"), ("c", "heartbeats")] {
                    let tag = (key == "c").then_some("heartbeat");
                    history.key(state.id, &format!("key_{}{key}", state.id), name, tag).await;
                }
            }
        }
        history.grant("normal", Kind::Topup, "100", "invoice 17").await;
        month(&history, "normal", now, "0.123456789").await;
        for (id, left) in [("low", "0.1"), ("zero", "0"), ("negative", "-0.123456789")] {
            let spent = credits("3.600000027");
            let first = spent.checked_add(credits(left)).unwrap();
            history.at(now - 4 * DAY_MS).grant(id, Kind::Topup, &first.to_string(), "once").await;
            for n in 0..9 {
                history.at(now - 3 * DAY_MS + n * 7 * HOUR_MS);
                let request =
                    history.request(id, &format!("key_{id}a"), "gpt-5.4", credits("0.400000003"));
                history.settle(request).await;
            }
        }
        history.at(now - DAY_MS).grant("expiring", Kind::Topup, "5", "kept").await;
        history.lot("expiring", Kind::Promo, "2", now + 3 * DAY_MS).await;
        history.lot("expiring", Kind::Promo, "1.5", now + 300 * DAY_MS).await;
        history.at(now - DAY_MS).grant("estimated", Kind::Topup, "50", "").await;
        history.at(now - 1_000);
        let mut guess = history.request("estimated", "key_estimateda", "grok-4.5", credits("0.5"));
        guess.source = Source::Estimated;
        guess.outcome = Outcome::ClientClosed;
        guess.flags = "usage_missing".into();
        history.settle(guess).await;
        history.at(now - 2 * DAY_MS).grant("closed", Kind::Topup, "5", "first").await;
        let request = history.request("closed", "key_closeda", "gpt-5.4", credits("1.5"));
        history.settle(request).await;
        history.at(now - 500).end_account("closed").await;
        hostile(&history, now).await;
        history.close().await;

        let upstream = Upstream::start().await;
        let proxy = Setup::before(&upstream)
            .setting("alert_private_addresses", "true")
            .env("FAREBOX_STORE", file.to_str().unwrap())
            .start()
            .await;
        Self { proxy, _upstream: upstream, _disk: disk }
    }

    pub fn account(&self, id: &str) -> Account {
        Account::new(self.proxy.default_account().shared(), id, "")
    }

    pub async fn operator(&self) -> Browser {
        let browser = Browser::open().await;
        browser.goto(&format!("{}/operator/accounts", self.proxy.admin_url())).await;
        browser.find("#key").await.send_keys(self.proxy.admin_key()).await.unwrap();
        browser.press("\n").await;
        browser.until_text("h1", |text| text == "Accounts").await;
        browser
    }

    /// The holder of an account, in a window that may have been another's.
    pub async fn enter(&self, browser: &Browser, account: &str) {
        browser.goto(&link(&self.proxy, account).await).await;
        browser.find("button.primary").await.click().await.unwrap();
        browser.until_text("h1", |text| text == "Wallet").await;
    }

    pub async fn open(&self, browser: &Browser, account: &str, page: &str) {
        browser.goto(&format!("{}/billing/{account}/{page}", self.proxy.admin_url())).await;
        browser.find("h1").await;
    }

    pub fn assert_no_reports(&self) {
        let output = self.proxy.output();
        assert!(!output.contains("content security policy"), "{output}");
    }
}

/// Five weeks of an agent's work, by several models, keys and outcomes.
async fn month(history: &History, account: &str, now: i64, charge: &str) {
    let models = [
        "claude-sonnet-4.5",
        "gpt-5.4",
        "gemini-3-flash",
        "claude-opus-4.6",
        "grok-4.5",
        "gpt-5.4-mini",
        "deepseek-v3.2",
    ];
    let charge: Credits = credits(charge);
    for n in 0..35 * 6 {
        history.at(now - 35 * DAY_MS + n * 4 * HOUR_MS + n * 7_919_000 % HOUR_MS);
        let part = charge.nano() / (1 + n % 7);
        let model = models[usize::try_from(n % 11).unwrap() % models.len()];
        let key = ["a", "b", "c"][usize::try_from(n % 3).unwrap()];
        let charge = Credits::from_nano(part);
        let mut request = history.request(account, &format!("key_{account}{key}"), model, charge);
        request.usage = Usage {
            input: 12_485,
            cached: 96_000,
            output: 812,
            reasoning: 200,
            ..Usage::default()
        };
        if key == "c" {
            request.attribution.tag = Some("heartbeat".into());
            request.attribution.origin = Some("heartbeat".into());
        }
        if n % 17 == 3 {
            (request.outcome, request.source) = (Outcome::ClientClosed, Source::Drained);
        }
        if n % 41 == 5 {
            (request.outcome, request.source) = (Outcome::UpstreamError, Source::None);
            (request.charge, request.http_status) = (Credits::default(), 502);
        }
        history.settle(request).await;
    }
    history.at(now - 10 * DAY_MS).grant(account, Kind::Promo, "2.5", "thank you").await;
}

/// Everything that has a name is named to do harm.
async fn hostile(history: &History, now: i64) {
    history.at(now - 20 * DAY_MS).grant("hostile", Kind::Topup, "100", HOSTILE[0]).await;
    for (n, text) in (0..).zip(HOSTILE) {
        let key = format!("key_hostile_{n}");
        history.at(now - 5 * DAY_MS + n * HOUR_MS);
        history.key("hostile", &key, text, Some(text)).await;
        history.grant("hostile", Kind::Adjust, "0.5", text).await;
        let mut request = history.request("hostile", &key, text, credits("0.25"));
        let said = || Some(text.to_owned());
        request.served_model = said();
        request.upstream = text.into();
        request.attribution = Attribution {
            run: said(),
            agent: said(),
            session: said(),
            origin: said(),
            tag: said(),
        };
        request.price_version = text.into();
        history.settle(request).await;
    }
}
