//! An hour in the life of an account: an agent with its user, its heartbeat, workflows.

use serde_json::{Value, json};

use super::words;

/// Who sends a request; each signs with a key of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// An agent that works for a person.
    OpenClaw,
    /// Its heartbeat, by a key of its own.
    Heartbeat,
    /// Workflows.
    N8n,
}

impl Client {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::OpenClaw, Self::Heartbeat, Self::N8n];

    /// The name of its key.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OpenClaw => "openclaw",
            Self::Heartbeat => "heartbeat",
            Self::N8n => "n8n",
        }
    }
}

/// When its client stops reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// At the end.
    Everything,
    /// At the first piece.
    OnePiece,
}

/// A request.
#[derive(Clone, Debug)]
pub struct Turn {
    /// Seconds after the hour began.
    pub after_s: u64,
    /// Who sends it.
    pub client: Client,
    /// Where to.
    pub path: String,
    /// What.
    pub body: Value,
    /// When its client stops reading.
    pub reads: Reads,
}

/// The requests of an hour, in order.
pub fn hour() -> Vec<Turn> {
    let mut turns = conversations();
    turns.extend(workflows());
    turns.extend(heartbeats());
    turns.push(scheduled_job());
    turns.push(turn(2510, Client::OpenClaw, "/v1/messages", Reads::OnePiece, abandoned()));
    turns.sort_by_key(|turn| turn.after_s);
    turns
}

fn turn(after_s: u64, client: Client, path: &str, reads: Reads, body: Value) -> Turn {
    Turn { after_s, client, path: path.into(), body, reads }
}

fn message(role: &str, text: &str) -> Value {
    json!({ "role": role, "content": text })
}

/// A person talks to an agent, in conversations that grow: every turn sends all before it.
fn conversations() -> Vec<Turn> {
    const TURNS: usize = 10;
    let models = ["claude-sonnet-4.5", "gpt-5.4", "claude-sonnet-4.5", "gemini-3-flash"];
    let every = |step: u64| 20 + step * 55;
    let steps = (0..64).map(every).take_while(|after_s| *after_s < 3600);
    let turn = |(step, after_s): (usize, u64)| {
        let (conversation, at) = (step / TURNS, step % TURNS);
        let model = models[conversation % models.len()];
        let session = format!("agent:main:talk-{}", conversation + 1);
        let system = words::instructions("main", &session, 24);
        let mut messages = Vec::new();
        for before in 0..at {
            let asked = words::prompt(step - at + before);
            messages.push(message("user", asked));
            messages.push(message("assistant", &words::reply(asked)));
        }
        messages.push(message("user", words::prompt(step)));
        let (path, body) = if model.starts_with("claude") {
            let system = json!([
                { "type": "text", "text": system, "cache_control": { "type": "ephemeral" } }
            ]);
            let body = json!({
                "model": model, "max_tokens": 8192, "stream": true, "system": system,
                "messages": messages
            });
            ("/v1/messages", body)
        } else {
            messages.insert(0, message("system", &system));
            let body = json!({
                "model": model, "stream": true, "messages": messages,
                "stream_options": { "include_usage": true }
            });
            ("/v1/chat/completions", body)
        };
        self::turn(after_s, Client::OpenClaw, path, Reads::Everything, body)
    };
    steps.enumerate().map(turn).collect()
}

/// Every five minutes new mail is sorted, filed and summed up; twice something is looked up
/// at an upstream that reports no usage.
fn workflows() -> Vec<Turn> {
    let mut turns = Vec::new();
    for run in 0..12_u64 {
        let at = 45 + run * 300;
        let mail = |n: u64| {
            let lines =
                "Please find attached what we talked about. ".repeat(3 + (run + n) as usize);
            format!("{}\n\nMail {}: {lines}", words::SORT, run * 3 + n)
        };
        for n in 0..3 {
            let body = json!({ "model": "gpt-4.1-mini", "messages": [message("user", &mail(n))] });
            let path = "/v1/chat/completions";
            turns.push(turn(at + n * 2, Client::N8n, path, Reads::Everything, body));
        }
        let inputs = [mail(0), mail(1), mail(2)];
        let body = json!({ "model": "text-embedding-3-small", "input": inputs });
        turns.push(turn(at + 7, Client::N8n, "/v1/embeddings", Reads::Everything, body));
        let body = json!({
            "model": "gpt-5-mini", "instructions": "Sum up the mail of the last five minutes.",
            "input": format!("{}\n{}", words::prompt(5), mail(3).repeat(4))
        });
        turns.push(turn(at + 9, Client::N8n, "/v1/responses", Reads::Everything, body));
        if run % 6 == 3 {
            let asked = message("user", "Which of these companies are in our list of customers?");
            let body = json!({ "model": "grok-4", "stream": true, "messages": [asked] });
            let path = "/v1/chat/completions";
            turns.push(turn(at + 15, Client::N8n, path, Reads::Everything, body));
        }
    }
    turns
}

/// Every half hour the agent looks whether there is something to do.
fn heartbeats() -> Vec<Turn> {
    let body = json!({
        "systemInstruction": {
            "parts": [{ "text": words::instructions("main", "agent:main:main", 12) }]
        },
        "contents": [{ "role": "user", "parts": [{ "text": words::HEARTBEAT }] }]
    });
    let path = "/v1beta/models/gemini-3-flash:generateContent";
    let at = |after_s| turn(after_s, Client::Heartbeat, path, Reads::Everything, body.clone());
    [at(600), at(2400)].into()
}

fn scheduled_job() -> Turn {
    let prompt = "[cron:7f3c21 watch prices] Look up the prices in watch.md and note changes.";
    let system = words::instructions("main", "agent:main:cron:7f3c21", 8);
    let body = json!({
        "model": "claude-haiku-4-5", "max_tokens": 2048, "stream": true, "system": system,
        "messages": [message("user", prompt)]
    });
    turn(1203, Client::OpenClaw, "/v1/messages", Reads::Everything, body)
}

/// A question whose answer is no longer wanted: the provider bills it all the same.
fn abandoned() -> Value {
    let system = words::instructions("main", "agent:main:talk-5", 8);
    json!({
        "model": "claude-opus-4.6", "max_tokens": 8192, "stream": true, "system": system,
        "messages": [message("user", words::prompt(2))]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_has_everyone_in_it_in_order() {
        let hour = hour();
        assert!((100..200).contains(&hour.len()), "{}", hour.len());
        assert!(hour.iter().all(|turn| turn.after_s < 3600));
        assert!(hour.is_sorted_by_key(|turn| turn.after_s));
        for client in Client::ALL {
            assert!(hour.iter().any(|turn| turn.client == client), "{client:?}");
        }
        assert_eq!(hour.iter().filter(|turn| turn.reads == Reads::OnePiece).count(), 1);
    }
}
