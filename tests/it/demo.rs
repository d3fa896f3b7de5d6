//! The demonstration works as it says, and leaves nothing behind.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::account::chat;
use crate::support::http::Call;
use crate::support::{credits, until, within};

/// A running demonstration. It is killed with its test.
pub struct Demo {
    child: Child,
    printed: Vec<String>,
    folder: TempDir,
}

impl Demo {
    pub fn start() -> Self {
        let folder = TempDir::new().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_farebox"))
            .args(["demo", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
            .env("TMPDIR", folder.path())
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut printed = Vec::new();
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            printed.push(line.unwrap());
            if printed.last().unwrap().starts_with("control plane on ") {
                break;
            }
        }
        Self { child, printed, folder }
    }

    /// What stands behind a text on one of the printed lines.
    pub fn printed(&self, text: &str) -> &str {
        let line = self.printed.iter().find_map(|line| line.trim_start().strip_prefix(text));
        line.unwrap_or_else(|| panic!("no {text:?} in {:#?}", self.printed)).trim()
    }

    fn files(&self) -> usize {
        std::fs::read_dir(self.folder.path()).unwrap().count()
    }

    async fn ask(&self, body: &Value) -> crate::support::http::Reply {
        let url = format!("{}/v1/chat/completions", self.printed("listening on "));
        Call::post(url, body).bearer(self.printed("export KEY=")).reply().await.expect(200)
    }

    async fn books(&self, path: &str) -> Value {
        let url = self.printed("export FAREBOX_URL=");
        let call = Call::get(format!("{url}/admin/v1/accounts/default{path}"));
        call.bearer(self.printed("export FAREBOX_ADMIN_KEY=")).reply().await.expect(200).json()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // It has usually ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn a_newcomer_sees_an_hour_of_traffic_and_every_reply_debited() {
    let mut demo =
        within("the demonstration", tokio::task::spawn_blocking(Demo::start)).await.unwrap();
    assert_eq!(demo.files(), 1);

    let played = demo.books("/usage?limit=500").await["data"].as_array().unwrap().clone();
    assert!(played.len() >= 100, "{}", played.len());
    let is = |field: &str, value: &str| played.iter().any(|row| row[field] == value);
    assert!(is("source", "estimated") && is("outcome", "client_closed"));
    assert!(is("tag", "heartbeat") && is("tag", "n8n") && is("origin", "cron"));
    let minutes = |row: &Value| row["ts"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let span = minutes(&played[0]).duration_since(minutes(played.last().unwrap()));
    assert!(span.as_mins() >= 50, "{span:?}");
    let entries = demo.books("/ledger?kind=topup").await;
    assert_eq!(entries["data"].as_array().unwrap().len(), 2, "{entries}");

    let reply = demo.ask(&chat("claude-sonnet-4.5", "Hi")).await;
    let charge = credits(reply.header("x-farebox-charge").unwrap());
    assert!(charge > credits("0"));
    let newest = demo.books("/usage?limit=20").await;
    let rows = newest["data"].as_array().unwrap();
    let mine =
        rows.iter().find(|row| Some(row["id"].as_str().unwrap()) == reply.header("x-request-id"));
    assert_eq!(mine.unwrap()["charge"], charge.to_string());

    let mut body = chat("gpt-5.4", "Hi");
    body["stream"] = json!(true);
    body["stream_options"] = json!({ "include_usage": true });
    let events = demo.ask(&body).await.events();
    assert!(events.last().unwrap()["usage"]["cost"].is_number(), "{events:?}");

    let ledger = demo.books("/ledger?limit=500").await["data"].as_array().unwrap().clone();
    let mut balance = credits("0");
    for entry in ledger.iter().rev() {
        let of = |field: &str| credits(entry[field].as_str().unwrap());
        balance = balance.checked_add(of("amount")).unwrap();
        assert_eq!(of("balance_after"), balance, "{entry}");
    }

    let told = Command::new("kill").args(["-s", "TERM", &demo.child.id().to_string()]).status();
    assert!(told.unwrap().success());
    let child = std::sync::Mutex::new(&mut demo.child);
    let status = until("its end", || async { child.lock().unwrap().try_wait().unwrap() }).await;
    assert!(status.success());
    assert_eq!(demo.files(), 0);
}

#[tokio::test]
async fn every_format_and_a_tool_are_answered_and_reported() {
    let demo = within("the demonstration", tokio::task::spawn_blocking(Demo::start)).await.unwrap();
    let tool = json!({ "name": "get_weather", "parameters": {
        "type": "object", "properties": { "city": { "type": "string" } }, "required": ["city"]
    } });
    let ask = "Use get_weather for Oslo";
    let user = json!([{ "role": "user", "content": ask }]);
    let gemini = json!({
        "contents": [{ "role": "user", "parts": [{ "text": ask }] }],
        "tools": [{ "functionDeclarations": [tool] }]
    });
    let requests = [
        (
            "/v1/chat/completions",
            json!({
                "model": "gpt-5.4", "messages": user, "tools": [{ "type": "function", "function": tool }]
            }),
        ),
        (
            "/v1/responses",
            json!({
                "model": "gpt-5.4", "input": ask,
                "tools": [{ "type": "function", "name": "get_weather", "parameters": tool["parameters"] }]
            }),
        ),
        (
            "/v1/messages",
            json!({
                "model": "claude-sonnet-4.5", "max_tokens": 100, "messages": user,
                "tools": [{ "name": "get_weather", "input_schema": tool["parameters"] }]
            }),
        ),
        ("/v1beta/models/gemini-3-flash:generateContent", gemini.clone()),
        ("/v1beta/models/gemini-3-flash:streamGenerateContent?alt=sse", gemini),
    ];
    for (path, body) in requests {
        for stream in [false, true] {
            let mut body = body.clone();
            if path.starts_with("/v1/") {
                body["stream"] = json!(stream);
            }
            let url = format!("{}{path}", demo.printed("listening on "));
            let reply = Call::post(url, &body).bearer(demo.printed("export KEY=")).reply().await;
            let reply = reply.expect(200);
            assert!(reply.text().contains("get_weather"), "{path}: {}", reply.text());
            let row = demo.books("/usage?limit=20").await["data"]
                .as_array()
                .unwrap()
                .iter()
                .find(|row| Some(row["id"].as_str().unwrap()) == reply.header("x-request-id"))
                .cloned()
                .unwrap();
            assert_eq!(
                (&row["source"], &row["outcome"]),
                (&json!("reported"), &json!("completed"))
            );
        }
    }
}
