//! What the tests are made of: an upstream that we script, the program under test, accounts
//! on it, and clients down to raw sockets.
//!
//! Every wait is bounded: a promise that is not kept fails its test and never hangs it.

pub mod account;
pub mod answer;
pub mod books;
pub mod browser;
pub mod edits;
pub mod forms;
pub mod history;
pub mod http;
pub mod load;
pub mod mailbox;
pub mod prices;
pub mod proxy;
pub mod random;
pub mod raw;
#[allow(dead_code, reason = "the library's tests share it")]
#[path = "../servers/redis.rs"]
pub mod redis;
#[allow(dead_code, reason = "the library's tests share it")]
#[path = "../servers/relay.rs"]
pub mod relay;
pub mod script;
pub mod upstream;

use std::future::Future;
use std::time::Duration;

use farebox::billing::Credits;

/// Longest wait for anything that should happen at once: generous, as machines are shared.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How often or how much: the first by default, the second where `./soak` asks for the whole.
pub fn figure(quick: usize, whole: usize) -> usize {
    if is_soak() { whole } else { quick }
}

/// Whether tests run at their whole figures, which takes hours.
pub fn is_soak() -> bool {
    std::env::var_os("FAREBOX_SOAK").is_some()
}

/// An amount, such as `credits("4.9")`.
pub fn credits(text: &str) -> Credits {
    text.parse().unwrap()
}

/// The output of a future that must be ready within [`PATIENCE`].
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {PATIENCE:?} in vain for {what}"),
    }
}

/// Asks again and again until the answer is `Some`, within [`PATIENCE`].
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, ask: impl Fn() -> F) -> T {
    within(what, async {
        loop {
            if let Some(value) = ask().await {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
}
