//! The control plane in front of the embedded store.

use serde_json::json;

use super::*;
use crate::billing::Usage;
use crate::store::{Attribution, Outcome, Settlement, Source};

/// A control plane on a store of its own, with the account `default`.
struct Stored {
    control: Control,
    store: Arc<dyn Store>,
    _files: tempfile::TempDir,
}

impl Stored {
    async fn start() -> Self {
        let files = tempfile::tempdir().unwrap();
        let path = files.path().join("farebox.db");
        let store: Arc<dyn Store> = Embedded::open(&path, Options::default()).unwrap();
        let control = Control::before(Arc::clone(&store)).await;
        let this = Self { control, store, _files: files };
        assert_eq!(this.post("accounts", json!({ "id": "default" })).await.status, 201);
        this
    }

    async fn get(&self, path: &str) -> Value {
        let reply = self.control.get(&format!("/admin/v1/{path}")).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        reply.json()
    }

    async fn post(&self, path: &str, body: Value) -> Reply {
        self.control.post(&format!("/admin/v1/{path}"), &body.to_string()).await
    }

    /// Changes the balance of `default`.
    async fn change(&self, id: &str, body: Value) -> Reply {
        self.book("credits", id, body).await
    }

    /// Books something on `default`.
    async fn book(&self, route: &str, id: &str, body: Value) -> Reply {
        let headers = format!("Content-Type: application/json\r\nIdempotency-Key: {id}\r\n");
        let path = format!("/admin/v1/accounts/default/{route}");
        self.control.ask("POST", &path, &headers, &body.to_string()).await
    }

    /// A request that has ended.
    async fn settle(&self, id: &str, model: &str, charge: &str) {
        let settlement = Settlement {
            id: id.to_owned(),
            account: AccountId("default".into()),
            key: "key_1".to_owned(),
            model: model.to_owned(),
            served_model: None,
            upstream: "up".to_owned(),
            attribution: Attribution { tag: Some("heartbeat".to_owned()), ..Default::default() },
            usage: Usage { input: 10, output: 5, ..Usage::default() },
            charge: charge.parse().unwrap(),
            price_version: "v1".to_owned(),
            ttft_ms: Some(1),
            latency_ms: 2,
            stream: true,
            outcome: Outcome::Completed,
            source: Source::Reported,
            http_status: 200,
            flags: String::new(),
        };
        self.store.settle(settlement).await.unwrap();
    }
}

#[tokio::test]
async fn an_account_is_made_once_and_shows_its_balance() {
    let farebox = Stored::start().await;
    let account = farebox.get("accounts/default").await;
    assert_eq!(account["name"], "default");
    assert_eq!(account["status"], "open");
    for amount in ["balance", "held", "available"] {
        assert_eq!(account[amount], "0");
    }
    let again = farebox.post("accounts", json!({ "id": "default" })).await;
    assert_eq!((again.status, again.code().as_str()), (409, "conflict"));
    let made = farebox.post("accounts", json!({ "name": "Team A" })).await.json();
    let id = made["id"].as_str().unwrap();
    assert!(id.starts_with("acct_"));
    assert_eq!(farebox.get("accounts").await["data"].as_array().unwrap().len(), 2);
    assert_eq!(farebox.get(&format!("accounts/{id}")).await["name"], "Team A");
}

#[tokio::test]
async fn a_keys_secret_is_shown_once_and_is_what_opens_the_door() {
    let farebox = Stored::start().await;
    let body = json!({ "name": "openclaw", "models": ["claude-*"], "expires_at": "30d" });
    let reply = farebox.post("accounts/default/keys", body).await;
    assert_eq!(reply.status, 201, "{}", reply.body);
    let made = reply.json();
    let secret = made["key"].as_str().unwrap();
    let kept = farebox.store.key(&KeyHash::of(secret)).await.unwrap().unwrap();
    assert_eq!(kept.id, made["id"].as_str().unwrap());
    assert!(secret.ends_with(made["last4"].as_str().unwrap()));

    let list = farebox.get("accounts/default/keys").await;
    assert_eq!(list["data"][0]["id"], made["id"]);
    assert_eq!(list["data"][0]["expires_at"], made["expires_at"]);
    assert!(!list.to_string().contains(secret));
}

#[tokio::test]
async fn a_revoked_key_stays_listed_and_only_its_own_account_revokes_it() {
    let farebox = Stored::start().await;
    farebox.post("accounts", json!({ "id": "other" })).await;
    let made = farebox.post("accounts/default/keys", json!({ "name": "a" })).await.json();
    let id = made["id"].as_str().unwrap();
    let revoke = async |account: &str| {
        let path = format!("/admin/v1/accounts/{account}/keys/{id}");
        farebox.control.ask("DELETE", &path, "", "").await
    };
    let reply = revoke("other").await;
    assert_eq!((reply.status, reply.code().as_str()), (404, "key_not_found"));
    let first = revoke("default").await;
    assert!(first.json()["revoked_at"].is_string());
    assert_eq!(revoke("default").await.json(), first.json());
    let list = farebox.get("accounts/default/keys").await;
    assert_eq!(list["data"][0]["revoked_at"], first.json()["revoked_at"]);
}

#[tokio::test]
async fn a_repeated_credit_is_booked_once_and_says_so() {
    let farebox = Stored::start().await;
    let body = json!({ "kind": "topup", "amount": "5", "note": "invoice 17" });
    let first = farebox.change("inv17", body.clone()).await;
    assert_eq!((first.status, first.json()["duplicate"].as_bool()), (201, Some(false)));
    let again = farebox.change("inv17", body).await;
    assert_eq!((again.status, again.json()["duplicate"].as_bool()), (200, Some(true)));
    assert_eq!(again.json()["seq"], first.json()["seq"]);
    let other = farebox.change("inv17", json!({ "kind": "topup", "amount": "6" })).await;
    assert_eq!((other.status, other.code().as_str()), (409, "conflict"));
    assert_eq!(farebox.get("accounts/default").await["balance"], "5");

    let ledger = farebox.get("accounts/default/ledger").await;
    let entry = &ledger["data"][0];
    assert_eq!(ledger["data"].as_array().unwrap().len(), 1);
    assert_eq!((entry["seq"].as_u64(), entry["kind"].as_str()), (Some(1), Some("topup")));
    assert_eq!((&entry["amount"], &entry["balance_after"]), (&json!("5"), &json!("5")));
    assert_eq!((&entry["ref"], &entry["note"]), (&json!("inv17"), &json!("invoice 17")));
    assert!(entry["ts"].as_str().unwrap().ends_with('Z'));
}

#[tokio::test]
async fn a_credit_is_complete_and_says_why_or_it_is_not_booked() {
    let farebox = Stored::start().await;
    let path = "accounts/default/credits";
    let reply = farebox.post(path, json!({ "kind": "topup", "amount": "5" })).await;
    assert_eq!((reply.status, reply.code().as_str()), (400, "idempotency_key_missing"));
    for (body, param) in [
        (json!({ "kind": "topup", "amount": "0" }), "amount"),
        (json!({ "kind": "topup", "amount": "-5", "note": "x" }), "amount"),
        (json!({ "kind": "adjust", "amount": "0", "note": "x" }), "amount"),
        (json!({ "kind": "adjust", "amount": "-5" }), "note"),
        (json!({ "kind": "adjust", "amount": "-5", "note": " " }), "note"),
    ] {
        let reply = farebox.change("a", body.clone()).await;
        assert_eq!(reply.json()["error"]["param"], param, "{body}");
    }
    let reply = farebox.change("a", json!({ "kind": "topup", "amount": "1000000.1" })).await;
    assert_eq!((reply.status, reply.code().as_str()), (422, "amount_out_of_range"));
    assert_eq!(farebox.get("accounts/default/ledger").await["data"], json!([]));
}

#[tokio::test]
async fn an_adjustment_may_leave_the_balance_below_zero() {
    let farebox = Stored::start().await;
    let body = json!({ "kind": "adjust", "amount": "-0.1", "note": "correction" });
    assert_eq!(farebox.change("fix", body).await.json()["balance_after"], "-0.1");
}

#[tokio::test]
async fn promotional_credits_end_as_asked_and_are_listed_before_bought_ones() {
    let farebox = Stored::start().await;
    farebox.change("pay", json!({ "kind": "topup", "amount": "5" })).await;
    let gift = json!({ "kind": "promotional", "amount": "1", "expires": "30d" });
    let entry = farebox.change("gift", gift.clone()).await.json();
    assert_eq!((&entry["kind"], &entry["balance_after"]), (&json!("promo"), &json!("6")));
    assert_eq!(entry["parts"], json!([{ "lot": 2, "amount": "1" }]));
    // A length of time is the same request whenever it is repeated.
    assert_eq!(farebox.change("gift", gift).await.status, 200);

    let lots = farebox.get("accounts/default/lots").await;
    assert_eq!((&lots["data"][0]["lot"], &lots["data"][0]["kind"]), (&json!(2), &json!("promo")));
    assert_eq!(
        (&lots["data"][1]["source"], &lots["data"][1]["remaining"]),
        (&json!("pay"), &json!("5"))
    );
    for (body, param) in [
        (json!({ "kind": "promotional", "amount": "1", "expires": "soon" }), "expires"),
        (json!({ "kind": "promotional", "amount": "1", "expires": "2020-01-01" }), "expires"),
        (json!({ "kind": "promotional", "amount": "-1" }), "amount"),
        (json!({ "kind": "topup", "amount": "1", "expires": "30d" }), "expires"),
    ] {
        let reply = farebox.change("bad", body.clone()).await;
        assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!(param)), "{body}");
    }
    assert_eq!(farebox.get("accounts/default").await["balance"], "6");
}

#[tokio::test]
async fn a_charge_is_given_back_once_and_never_more_than_it_was() {
    let farebox = Stored::start().await;
    farebox.change("pay", json!({ "kind": "topup", "amount": "1" })).await;
    farebox.settle("req_1", "a", "0.4").await;
    let part = json!({ "request": "req_1", "amount": "0.1", "note": "bad reply" });
    for (status, duplicate) in [(201, false), (200, true)] {
        let reply = farebox.book("refunds", "back", part.clone()).await;
        assert_eq!((reply.status, &reply.json()["duplicate"]), (status, &json!(duplicate)));
        assert_eq!(reply.json()["parts"], json!([{ "lot": 1, "amount": "0.1" }]));
        assert_eq!(reply.json()["undoes"], 2);
    }
    let other = json!({ "request": "req_1", "note": "bad reply" });
    let reply = farebox.book("refunds", "back", other.clone()).await;
    assert_eq!((reply.status, reply.code().as_str()), (409, "conflict"));
    assert_eq!(farebox.book("refunds", "rest", other.clone()).await.json()["amount"], "0.3");
    assert_eq!(farebox.book("refunds", "more", other).await.status, 422);
    let unknown = json!({ "request": "req_2", "note": "x" });
    assert_eq!(farebox.book("refunds", "none", unknown).await.status, 404);
    for bad in
        [json!({ "request": "req_1" }), json!({ "request": "req_1", "amount": "0", "note": "x" })]
    {
        assert_eq!(farebox.book("refunds", "bad", bad).await.status, 400);
    }
    assert_eq!(farebox.get("accounts/default").await["balance"], "1");
}

#[tokio::test]
async fn a_payment_that_was_taken_back_is_taken_back_once() {
    let farebox = Stored::start().await;
    farebox.change("pay", json!({ "kind": "topup", "amount": "5" })).await;
    farebox.settle("req_1", "a", "1.5").await;
    let body = json!({ "payment": "pay", "note": "dispute" });
    let entry = farebox.book("reversals", "dispute", body.clone()).await.json();
    assert_eq!((&entry["kind"], &entry["amount"]), (&json!("payment_reversal"), &json!("-5")));
    let parts = json!([{ "lot": 1, "amount": "-3.5" }, { "lot": null, "amount": "-1.5" }]);
    assert_eq!(entry["parts"], parts);
    assert_eq!(farebox.book("reversals", "dispute", body).await.status, 200);
    let charge = json!({ "payment": "req_1", "note": "x" });
    assert_eq!(farebox.book("reversals", "no payment", charge).await.status, 404);
    assert_eq!(farebox.get("accounts/default").await["balance"], "-1.5");
}

#[tokio::test]
async fn a_closed_account_forfeits_what_is_left_and_takes_nothing_more() {
    let farebox = Stored::start().await;
    farebox.change("pay", json!({ "kind": "topup", "amount": "5" })).await;
    let missing = farebox.post("accounts/default/close", json!({})).await;
    assert_eq!(missing.code(), "idempotency_key_missing");
    assert_eq!(farebox.book("close", "pay", json!({})).await.status, 409);
    for _ in 0..2 {
        let closed = farebox.book("close", "end", json!({})).await;
        assert_eq!((closed.status, &closed.json()["status"]), (200, &json!("closed")));
        assert_eq!(closed.json()["balance"], "0");
    }
    let refused = farebox.change("more", json!({ "kind": "topup", "amount": "5" })).await;
    assert_eq!((refused.status, refused.code().as_str()), (409, "conflict"));
    let ledger = farebox.get("accounts/default/ledger?kind=forfeit").await;
    assert_eq!(ledger["data"][0]["amount"], "-5");
    assert_eq!(farebox.get("accounts/default/lots").await["data"], json!([]));
    assert_eq!(farebox.get("accounts/default/lots?all=true").await["data"][0]["forfeited"], "5");
}

#[tokio::test]
async fn usage_is_listed_page_by_page_and_each_request_once() {
    let farebox = Stored::start().await;
    for n in 0..5 {
        farebox.settle(&format!("req_{n}"), "a", "0.1").await;
    }
    let mut seen = Vec::new();
    let mut path = "accounts/default/usage?limit=2".to_owned();
    loop {
        let page = farebox.get(&path).await;
        let rows = page["data"].as_array().unwrap();
        seen.extend(rows.iter().map(|row| row["id"].as_str().unwrap().to_owned()));
        match page["next"].as_str() {
            Some(next) => path = format!("accounts/default/usage?limit=2&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen, ["req_4", "req_3", "req_2", "req_1", "req_0"]);
}

#[tokio::test]
async fn a_cursor_that_no_page_gave_is_an_error_of_the_caller() {
    let farebox = Stored::start().await;
    for path in
        ["accounts", "accounts/default/usage", "accounts/default/ledger", "accounts/default/lots"]
    {
        let path = format!("/admin/v1/{path}?cursor=%00nonsense");
        let status = farebox.control.get(&path).await.status;
        assert!((200..500).contains(&status), "{path}: {status}");
    }
}

#[tokio::test]
async fn a_usage_row_has_the_names_that_programs_rely_on() {
    let farebox = Stored::start().await;
    farebox.settle("req_1", "a", "0.1").await;
    let row = farebox.get("accounts/default/usage").await["data"][0].clone();
    let names = "id ts model upstream key tag input_tokens cached_input_tokens \
        cache_creation_5m_tokens cache_creation_1h_tokens output_tokens reasoning_tokens charge \
        ttft_ms latency_ms stream outcome source http_status run agent session origin";
    for name in names.split_whitespace() {
        assert!(row.get(name).is_some(), "{name}");
    }
    assert_eq!((&row["charge"], &row["source"]), (&json!("0.1"), &json!("reported")));
}

#[tokio::test]
async fn usage_is_filtered_and_an_unknown_value_is_an_error() {
    let farebox = Stored::start().await;
    farebox.settle("req_1", "a", "0.1").await;
    farebox.settle("req_2", "b", "0.2").await;
    let count = async |query: &str| {
        let page = farebox.get(&format!("accounts/default/usage?{query}")).await;
        page["data"].as_array().unwrap().len()
    };
    assert_eq!(count("model=a").await, 1);
    assert_eq!(count("tag=heartbeat&source=reported&outcome=completed").await, 2);
    assert_eq!(count("key=key_2").await, 0);
    assert_eq!(count("since=2000-01-01&until=2000-01-02T00:00:00Z").await, 0);
    for query in ["source=mine", "outcome=ok", "since=yesterday", "colour=red", "model=a&model=b"] {
        let path = format!("/admin/v1/accounts/default/usage?{query}");
        assert_eq!(farebox.control.get(&path).await.status, 400, "{query}");
    }
}

#[tokio::test]
async fn a_summary_adds_up_to_the_ledger() {
    let farebox = Stored::start().await;
    farebox.settle("req_1", "a", "0.1").await;
    farebox.settle("req_2", "b", "0.2").await;
    farebox.settle("req_3", "b", "0.000000001").await;
    for by in ["model", "key", "tag", "day"] {
        let path = format!("accounts/default/usage/summary?by={by}&tz=Pacific/Auckland");
        let summary = farebox.get(&path).await;
        assert_eq!(summary["total"]["charge"], "0.300000001", "{by}");
        assert_eq!(summary["total"]["requests"], 3, "{by}");
    }
    let models = farebox.get("accounts/default/usage/summary").await;
    assert_eq!(models["data"][0]["group"], "b");
    assert_eq!(farebox.get("accounts/default").await["balance"], "-0.300000001");
    for query in ["by=colour", "tz=Nowhere", "since=2020-01-01", "limit=5"] {
        let path = format!("/admin/v1/accounts/default/usage/summary?{query}");
        assert_eq!(farebox.control.get(&path).await.status, 400, "{query}");
    }
}

#[tokio::test]
async fn an_account_that_does_not_exist_is_not_found_on_every_route() {
    let farebox = Stored::start().await;
    for route in ROUTES.iter().filter(|route| route.path.contains("{account}")) {
        let path = path_of(route).replace("default", "nobody");
        let headers = "Content-Type: application/json\r\nIdempotency-Key: a\r\n";
        let body = if route.method == Method::POST { "{}" } else { "" };
        let reply = farebox.control.ask(route.method.as_str(), &path, headers, body).await;
        assert_eq!((reply.status, reply.code().as_str()), (404, "account_not_found"), "{path}");
    }
}

#[tokio::test]
async fn readiness_is_that_of_the_store() {
    let farebox = Stored::start().await;
    assert_eq!(farebox.control.get("/readyz").await.json(), json!({ "status": "ok" }));
    farebox.store.close().await.unwrap();
    assert_eq!(farebox.control.get("/readyz").await.status, 503);
}
