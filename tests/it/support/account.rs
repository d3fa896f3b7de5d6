//! An account from outside: its requests, and what the control plane says of it.

use std::collections::HashMap;
use std::sync::Arc;

use farebox::billing::Credits;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::http::{Call, Reply, Stream};
use super::prices::Counts;
use super::proxy::Shared;
use super::{credits, until};

/// Who pays, with one of its keys.
#[derive(Clone)]
pub struct Account {
    shared: Arc<Shared>,
    pub id: String,
    pub key: String,
}

/// An account as the control plane shows it.
#[derive(Clone, Debug, Deserialize)]
pub struct View {
    pub balance: Credits,
    pub available: Credits,
    pub in_flight: u32,
}

/// A line of the ledger.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Entry {
    pub seq: u64,
    /// RFC 3339, UTC, with milliseconds.
    pub ts: String,
    pub kind: String,
    pub amount: Credits,
    pub balance_after: Credits,
    #[serde(rename = "ref")]
    pub reference: String,
    pub note: Option<String>,
}

/// A request as billed.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct UsageRow {
    pub id: String,
    /// RFC 3339, UTC, with milliseconds.
    pub ts: String,
    pub model: String,
    pub served_model: Option<String>,
    pub upstream: String,
    pub key: String,
    pub tag: Option<String>,
    pub run: Option<String>,
    pub agent: Option<String>,
    pub session: Option<String>,
    pub origin: Option<String>,
    pub input_tokens: u64,
    pub cached_input_tokens: u64,
    pub cache_creation_5m_tokens: u64,
    pub cache_creation_1h_tokens: u64,
    pub output_tokens: u64,
    pub reasoning_tokens: u64,
    pub charge: Credits,
    pub ttft_ms: Option<u32>,
    pub latency_ms: u32,
    pub stream: bool,
    pub outcome: String,
    pub source: String,
    pub http_status: u16,
    #[serde(default)]
    pub calls: std::collections::BTreeMap<String, u64>,
    #[serde(default)]
    pub flags: Vec<String>,
}

impl UsageRow {
    pub fn counts(&self) -> Counts {
        Counts {
            input: self.input_tokens,
            cached: self.cached_input_tokens,
            cache_creation_5m: self.cache_creation_5m_tokens,
            cache_creation_1h: self.cache_creation_1h_tokens,
            output: self.output_tokens,
            reasoning: self.reasoning_tokens,
        }
    }
}

impl Account {
    pub fn new(shared: Arc<Shared>, id: &str, key: &str) -> Self {
        Self { shared, id: id.into(), key: key.into() }
    }

    /// Where the program is, for another account of it.
    pub fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    /// The same account, signing with another key.
    pub fn with_key(&self, key: &str) -> Self {
        Self { key: key.into(), ..self.clone() }
    }

    /// A path of the inference listener.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.shared.url())
    }

    /// A request to the inference listener, signed.
    pub fn call(&self, path: &str, body: &Value) -> Call {
        Call::post(self.url(path), body).bearer(&self.key)
    }

    /// Posts and reads the whole reply.
    pub async fn post(&self, path: &str, body: &Value) -> Reply {
        self.call(path, body).reply().await
    }

    /// Gets from the inference listener.
    pub async fn get(&self, path: &str) -> Reply {
        Call::get(self.url(path)).bearer(&self.key).reply().await
    }

    /// One chat completion of `test`, whole.
    pub async fn chat(&self, prompt: &str) -> Reply {
        self.post("/v1/chat/completions", &chat("test", prompt)).await
    }

    /// One chat completion of `test`, streamed.
    pub async fn stream_chat(&self, prompt: &str) -> Stream {
        let mut body = chat("test", prompt);
        body["stream"] = json!(true);
        self.call("/v1/chat/completions", &body).send().await
    }

    pub async fn view(&self) -> View {
        self.read("").await
    }

    pub async fn balance(&self) -> Credits {
        self.view().await.balance
    }

    /// Waits until none of its requests runs; then nothing is held either.
    pub async fn settled(&self) {
        until("the end of all requests of an account", || async {
            let view = self.view().await;
            (view.in_flight == 0 && view.available == view.balance).then_some(())
        })
        .await;
    }

    /// The whole ledger, oldest entry first.
    pub async fn ledger(&self) -> Vec<Entry> {
        self.pages("/ledger").await
    }

    /// All requests, oldest first.
    pub async fn usage(&self) -> Vec<UsageRow> {
        self.pages("/usage").await
    }

    /// The newest request.
    pub async fn last_usage(&self) -> UsageRow {
        let page: Page<UsageRow> = self.read("/usage?limit=1").await;
        page.data.into_iter().next().expect("a request was recorded")
    }

    /// Sums over the requests, with a query such as `by=model`.
    pub async fn summary(&self, query: &str) -> Value {
        self.read(&format!("/usage/summary?{query}")).await
    }

    /// Adds credits, once.
    pub async fn topup(&self, amount: Credits) {
        let id = format!("topup-{}", next_id());
        let reply = self.grant("topup", &amount.to_string(), "a test", &id).await;
        assert_eq!(reply.status / 100, 2, "{reply:?}");
    }

    /// Asks for a change of the balance; the reply may be a refusal.
    pub async fn grant(&self, kind: &str, amount: &str, note: &str, id: &str) -> Reply {
        let body = json!({ "kind": kind, "amount": amount, "note": note });
        self.admin_call("/credits", &body).header("idempotency-key", id).reply().await
    }

    /// Makes a key and returns its secret.
    pub async fn new_key(&self, body: &Value) -> String {
        let made = self.admin_call("/keys", body).reply().await;
        assert_eq!(made.status / 100, 2, "{made:?}");
        made.json()["key"].as_str().expect("the secret is shown once").into()
    }

    /// A request to the control plane about this account.
    pub fn admin_call(&self, path: &str, body: &Value) -> Call {
        Call::post(self.admin_path(path), body).bearer(&self.shared.admin_key)
    }

    /// Changes this account, or what the path below it names.
    pub async fn patch(&self, below: &str, body: &Value) -> Reply {
        let call = Call::new(http::Method::PATCH, self.admin_path(below));
        let call = call.bearer(&self.shared.admin_key).header("content-type", "application/json");
        call.body(body.to_string()).reply().await
    }

    /// The ledger adds up, and every debit belongs to exactly one request of that charge.
    /// Returns the sum of all debits.
    pub async fn check_books(&self) -> Credits {
        let (ledger, usage) = (self.ledger().await, self.usage().await);
        let charges: HashMap<&str, Credits> =
            usage.iter().map(|row| (row.id.as_str(), row.charge)).collect();
        let mut seen: HashMap<&str, &UsageRow> = HashMap::new();
        for row in &usage {
            if let Some(other) = seen.insert(&row.id, row) {
                panic!("a request has one row: {other:?}, {row:?}");
            }
        }
        let mut debits: HashMap<&str, usize> = HashMap::new();
        let mut balance = credits("0");
        let mut debited = credits("0");
        for (entry, seq) in ledger.iter().zip(1..) {
            assert_eq!(entry.seq, seq, "the sequence is dense");
            balance = balance.checked_add(entry.amount).unwrap();
            assert_eq!(entry.balance_after, balance, "the balance runs on: {entry:?}");
            if entry.kind == "debit_ai" {
                debited = debited.checked_add(-entry.amount).unwrap();
                let charge = charges.get(entry.reference.as_str());
                assert_eq!(charge, Some(&-entry.amount), "the debit is the charge: {entry:?}");
                *debits.entry(&entry.reference).or_default() += 1;
            }
        }
        assert_eq!(self.balance().await, balance, "the balance is the sum of the ledger");
        for row in &usage {
            let debits = debits.get(row.id.as_str()).copied().unwrap_or_default();
            let owed = usize::from(row.charge != credits("0"));
            assert!(debits <= 1 && debits >= owed, "{debits} debits for {row:?}");
        }
        debited
    }

    fn admin_path(&self, path: &str) -> String {
        format!("{}/admin/v1/accounts/{}{path}", self.shared.admin_url(), self.id)
    }

    async fn read<T: DeserializeOwned>(&self, path: &str) -> T {
        let call = Call::get(self.admin_path(path)).bearer(&self.shared.admin_key);
        let reply = call.reply().await.expect(200);
        serde_json::from_slice(&reply.body).unwrap_or_else(|error| {
            panic!("{path} does not read ({error}): {}", reply.text());
        })
    }

    async fn pages<T: DeserializeOwned>(&self, path: &str) -> Vec<T> {
        let mut rows = Vec::new();
        let mut cursor = String::new();
        loop {
            let page: Page<T> = self.read(&format!("{path}?limit=500{cursor}")).await;
            rows.extend(page.data);
            match page.next {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        rows.reverse();
        rows
    }
}

#[derive(Deserialize)]
struct Page<T> {
    data: Vec<T>,
    next: Option<String>,
}

/// The body of a chat completion.
pub fn chat(model: &str, prompt: &str) -> Value {
    json!({ "model": model, "messages": [{ "role": "user", "content": prompt }] })
}

fn next_id() -> usize {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
