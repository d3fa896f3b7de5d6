//! `farebox key`: what clients sign their requests with.

use std::io::{self, BufRead, IsTerminal};

use clap::Subcommand;
use serde_json::{Value, json};

use super::context::Context;
use super::failure::{Exit, Failure};
use super::limit::{self, LimitArgs, Setting};
use super::table::{Align, Table};
use crate::admin::keys::{CreatedKey, KeyRow, Replaced, RotatedKey};
use crate::admin::trial::Tried;
use crate::store::{Key, Millis, Rejection, Rows};
use crate::time;

/// What to do with keys.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a key and print it, this once
    #[command(after_help = "Examples:\n  \
        farebox key create --name openclaw --models 'claude-*,gemini-3-flash' --daily 5\n  \
        farebox key create --name trial --expires 30d --tag trial")]
    Create {
        /// Shown in usage rows
        #[arg(long)]
        name: String,
        /// The default attribution of its requests, such as heartbeat
        #[arg(long)]
        tag: Option<String>,
        /// Models it may call, * standing for any characters (default: all)
        #[arg(long, value_delimiter = ',', value_name = "MODEL,…")]
        models: Vec<String>,
        /// When it stops being valid: a time such as 2026-12-31T00:00:00Z, or 30d from now
        #[arg(long, value_name = "TIME", alias = "expires-at")]
        expires: Option<String>,
        /// How requests are refused when credits are used up
        #[arg(long, value_enum, default_value_t)]
        rejection: Rejection,
        #[command(flatten)]
        limits: LimitArgs,
    },
    /// Change a key; in force for the next request ("none" takes a limit away)
    #[command(after_help = "Examples:\n  \
        farebox key set openclaw --daily 5 --zone Europe/Vilnius --rpm 60\n  \
        farebox key set openclaw --daily none")]
    Set {
        /// Its id or its name
        key: String,
        /// Shown in usage rows
        #[arg(long)]
        name: Option<String>,
        /// The default attribution of its requests, such as heartbeat
        #[arg(long)]
        tag: Option<Setting<String>>,
        /// Models it may call, * standing for any characters; * alone for all
        #[arg(long, value_delimiter = ',', value_name = "MODEL,…")]
        models: Option<Vec<String>>,
        /// When it stops being valid: a time such as 2026-12-31T00:00:00Z, or 30d from now
        #[arg(long, value_name = "TIME", alias = "expires-at")]
        expires: Option<Setting<String>>,
        /// How requests are refused when credits are used up
        #[arg(long, value_enum)]
        rejection: Option<Rejection>,
        #[command(flatten)]
        limits: LimitArgs,
    },
    /// Make a key like another and print it, this once; the other ends after a while
    #[command(after_help = "The new key has the same name, tag, models and limits, and counts \
        what it spends from zero.\n\nExamples:\n  \
        farebox key rotate openclaw\n  \
        farebox key rotate openclaw --overlap 7d\n  \
        farebox key rotate openclaw --overlap 0s     # the old one ends at once")]
    Rotate {
        /// Its id or its name
        key: String,
        /// How long the old key stays valid: 1h, 7d; 0s ends it at once
        #[arg(long, value_name = "TIME", default_value = "24h")]
        overlap: String,
    },
    /// Send a request with a key through the proxy, as its holder will
    #[command(after_help = "The key itself is read from FAREBOX_KEY, or from the standard \
        input: it must not stand on a command line.\n\nExamples:\n  \
        FAREBOX_KEY=fbx_live_… farebox key test openclaw\n  \
        FAREBOX_KEY=fbx_live_… farebox key test openclaw --model gemini-3-flash")]
    Test {
        /// Its id or its name
        key: String,
        /// Ask this model for a short answer, which costs what its tokens do; without it the
        /// models are listed, which costs nothing
        #[arg(long)]
        model: Option<String>,
    },
    /// List the keys of an account, revoked ones too
    List,
    /// End a key at once
    #[command(after_help = "Example:\n  farebox key revoke openclaw")]
    Revoke {
        /// Its id or its name
        key: String,
    },
}

/// Runs it.
///
/// # Errors
///
/// As the control plane says.
pub async fn run(context: &Context, command: KeyCommand) -> Result<String, Failure> {
    let account = context.account.as_str();
    match command {
        KeyCommand::Create { name, tag, models, expires, rejection, limits } => {
            let body = json!({
                "name": name, "tag": tag, "models": models, "expires_at": expires,
                "rejection": rejection, "limits": limits.body(),
            });
            let answer = context.client.post(&["accounts", account, "keys"], &body, None).await?;
            context.show(&answer, |created: CreatedKey| {
                let id = &created.details.id;
                context
                    .note(&format!("{id} of account {account}; the key is shown only this once:"));
                format!("{}\n", created.key)
            })
        }
        KeyCommand::Set { key, name, tag, models, expires, rejection, limits } => {
            let id = context.key_id(&key).await?;
            let given = [
                ("name", name.map(Value::from)),
                ("tag", tag.map(Value::from)),
                ("models", models.map(Value::from)),
                ("expires_at", expires.map(Value::from)),
                ("rejection", rejection.map(|rejection| json!(rejection))),
                ("limits", Some(limits.body())),
            ];
            let given = given.into_iter().filter_map(|(name, value)| Some((name.into(), value?)));
            let body = Value::Object(given.collect());
            let answer = context.client.patch(&["accounts", account, "keys", &id], &body).await?;
            context.show(&answer, |row: KeyRow| table(context, &[row]))
        }
        KeyCommand::Rotate { key, overlap } => {
            let id = context.key_id(&key).await?;
            if time::parse_duration(&overlap).is_some_and(|overlap| overlap.is_zero()) {
                let question = format!("End {id} of account {account} at once, for a new key?");
                context.confirm(&question)?;
            }
            let path = ["accounts", account, "keys", &id, "rotate"];
            let body = json!({ "overlap": overlap });
            let answer = context.client.post(&path, &body, None).await?;
            context.show(&answer, |rotated: RotatedKey| {
                let Replaced { id: old, valid_until, is_ended, .. } = &rotated.replaced;
                let id = &rotated.new.details.id;
                context.note(&match (is_ended, valid_until) {
                    (false, _) => format!(
                        "{old} could not be ended: it is valid as before. farebox key revoke {old}"
                    ),
                    (true, Some(at)) => format!("{old} is valid until {}", context.clock(*at)),
                    (true, None) => format!("{old} is revoked"),
                });
                context
                    .note(&format!("{id} of account {account}; the key is shown only this once:"));
                format!("{}\n", rotated.new.key)
            })
        }
        KeyCommand::Test { key, model } => {
            let id = context.key_id(&key).await?;
            let body = json!({ "key": secret()?, "model": model });
            let path = ["accounts", account, "keys", &id, "test"];
            let answer = context.client.post(&path, &body, None).await?;
            let tried: Tried = answer.read()?;
            if !tried.works {
                let failure = Failure::new(Exit::Failed, tried.message);
                return Err(failure.next("farebox key list    (what is valid, and for how long)"));
            }
            context.show(&answer, |tried: Tried| {
                let charge = tried.charge.map(|charge| format!(", {charge} credits"));
                let (message, address, took) = (tried.message, tried.address, tried.latency_ms);
                format!("{message}\n{address}, {took} ms{}\n", charge.unwrap_or_default())
            })
        }
        KeyCommand::List => {
            let answer = context.client.get(&["accounts", account, "keys"], &[]).await?;
            context.show(&answer, |rows: Rows<KeyRow>| table(context, &rows.data))
        }
        KeyCommand::Revoke { key } => {
            let id = context.key_id(&key).await?;
            context.confirm(&format!("Revoke {id} of account {account}, for good?"))?;
            let answer = context.client.delete(&["accounts", account, "keys", &id]).await?;
            context.show(&answer, |key: Key| table(context, &[KeyRow { key, in_use: None }]))
        }
    }
}

/// The key itself, from the environment or the first line of the standard input.
fn secret() -> Result<String, Failure> {
    if let Ok(key) = std::env::var("FAREBOX_KEY")
        && !key.trim().is_empty()
    {
        return Ok(key);
    }
    if io::stdin().is_terminal() {
        eprintln!("Paste the key, then press Enter:");
    }
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).ok();
    if line.trim().is_empty() {
        let message = "no key: set FAREBOX_KEY, or send it to the standard input";
        return Err(Failure::new(Exit::Usage, message.to_owned()));
    }
    Ok(line)
}

fn table(context: &Context, keys: &[KeyRow]) -> String {
    let mut table = Table::new([
        ("ID", Align::Left),
        ("NAME", Align::Left),
        ("KEY", Align::Whole),
        ("TAG", Align::Left),
        ("MODELS", Align::Left),
        ("LIMITS", Align::Left),
        ("STATUS", Align::Whole),
        ("CREATED", Align::Whole),
        ("EXPIRES", Align::Whole),
    ]);
    let now = time::now();
    for KeyRow { key, in_use } in keys {
        let models = if key.models.is_empty() { "all".to_owned() } else { key.models.join(",") };
        table.row([
            key.id.clone(),
            key.name.clone(),
            format!("…{}", key.last4),
            key.tag.clone().unwrap_or_default(),
            models,
            limit::cell(key, in_use.as_ref()),
            status(key, now).to_owned(),
            context.day(key.created_at),
            key.expires_at.map_or_else(|| "never".to_owned(), |at| context.day(at)),
        ]);
    }
    table.render(context.style)
}

fn status(key: &Key, now: Millis) -> &'static str {
    match (key.revoked_at, key.expires_at) {
        (Some(_), _) => "revoked",
        (None, Some(at)) if at <= now => "expired",
        _ => "valid",
    }
}
