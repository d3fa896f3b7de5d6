//! Clients that keep a program busy, and what they saw.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use farebox::billing::Credits;
use serde_json::json;
use tokio::task::JoinHandle;

use super::account::{Account, chat};
use super::answer::Answer;
use super::prices::{Counts, charge};
use super::upstream::{Play, Received, Upstream};

/// Some clients, each of which asks again as soon as it is answered.
pub struct Load {
    ends: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Vec<Seen>>>,
}

/// A request as its client saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Unlike that of any other request.
    pub prompt: String,
    /// The id that the reply's head gave, if there was one.
    pub id: Option<String>,
    pub status: u16,
    /// The end of the reply was there: the last event of a stream, or the whole body.
    pub complete: bool,
}

impl Load {
    /// Starts clients of an account; their prompts begin with `name`. Each ends where a reply
    /// does not come whole.
    pub fn start(account: &Account, name: &str, clients: usize) -> Self {
        Self::of(account, name, clients, false)
    }

    /// As [`Load::start`], but clients go on after a refusal, a little later.
    pub fn steady(account: &Account, name: &str, clients: usize) -> Self {
        Self::of(account, name, clients, true)
    }

    fn of(account: &Account, name: &str, clients: usize, goes_on: bool) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let client = |client| {
            let (account, name, ends) = (account.clone(), name.to_owned(), ends.clone());
            tokio::spawn(async move {
                let mut seen: Vec<Seen> = Vec::new();
                while !ends.load(Ordering::Relaxed) {
                    let n = seen.len();
                    seen.push(ask(&account, format!("{name}, {client}.{n}"), client + n).await);
                    if !seen[n].complete {
                        if !goes_on {
                            break;
                        }
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
                seen
            })
        };
        Self { clients: (0..clients).map(client).collect(), ends }
    }

    /// Lets each client read its last reply; what all of them saw.
    pub async fn end(self) -> Vec<Seen> {
        self.ends.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for client in self.clients {
            all.extend(client.await.unwrap());
        }
        all
    }
}

/// One request: chat and messages, streamed and whole, in turn.
async fn ask(account: &Account, prompt: String, turn: usize) -> Seen {
    let (path, model, last) = match turn % 2 {
        0 => ("/v1/chat/completions", "test", "data: [DONE]\n\n"),
        _ => ("/v1/messages", "claude", "\"message_stop\"}\n\n"),
    };
    let mut body = chat(model, &prompt);
    body["max_tokens"] = json!(1000);
    let stream = turn % 4 < 2;
    body["stream"] = json!(stream);
    let mut seen = Seen { prompt, id: None, status: 0, complete: false };
    let Ok(reply) = account.call(path, &body).try_send().await else { return seen };
    let id = reply.headers.get("x-request-id").map(|id| id.to_str().unwrap().to_owned());
    (seen.id, seen.status) = (id, reply.status);
    let reply = reply.rest().await;
    let ended = if stream { reply.text().ends_with(last) } else { reply.complete };
    seen.complete = seen.status == 200 && ended;
    seen
}

/// Lets the upstream bill every request of a load differently, and stream in a few pieces.
pub fn vary(upstream: &Upstream) {
    upstream.choose(|request| {
        if !["test", "claude"].contains(&request.model().as_str()) {
            return None;
        }
        let seed =
            prompt_of(request).bytes().fold(7, |sum: u64, byte| sum * 31 % 9973 + u64::from(byte));
        let answer = Answer::text(["Hello", " wide", " world"]);
        let counts = Counts::new(10 + seed, 3 + seed % 97);
        let answer = answer.counts(counts).staged(|script| script.paced(Duration::from_millis(1)));
        Some(Play::Answer(answer))
    });
}

/// What the upstream's own books say that each request costs, by its prompt, once it has
/// entered all of them.
pub async fn billed(upstream: &Upstream) -> HashMap<String, Credits> {
    upstream.when("the upstream's books", |all| all.iter().all(|one| one.ending.is_some())).await;
    let all = upstream.exchanges().into_iter();
    let billed = all.filter_map(|exchange| {
        let bill = exchange.bill?;
        Some((prompt_of(&exchange.request), charge(&bill.model, &bill.counts)))
    });
    billed.collect()
}

fn prompt_of(request: &Received) -> String {
    request.json()["messages"][0]["content"].as_str().unwrap_or_default().into()
}
