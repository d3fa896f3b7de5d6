//! Accounts, keys and requests as the measurements of the store make them.

use farebox::billing::Usage;
use farebox::store::{
    AccountId, Attribution, Key, KeyLimits, Outcome, Rejection, Settlement, Source,
};

/// `a0`, `a1`, …
pub fn account_id(number: usize) -> AccountId {
    AccountId(format!("a{number}").into())
}

/// The key of an account, without limits.
pub fn key(account: usize) -> Key {
    Key {
        id: format!("key_{account:026}"),
        account: account_id(account),
        name: String::new(),
        tag: None,
        models: Vec::new(),
        rejection: Rejection::default(),
        limits: KeyLimits::default(),
        last4: String::new(),
        created_at: 0,
        expires_at: None,
        revoked_at: None,
    }
}

/// The end of a usual request; ids rise with the number, as those of real ones with time.
pub fn settlement(number: u64, account: usize) -> Settlement {
    Settlement {
        id: format!("req_{number:026}"),
        account: account_id(account),
        key: key(account).id,
        model: "gpt-4o-mini".into(),
        served_model: None,
        upstream: "openai".into(),
        attribution: Attribution::default(),
        usage: Usage { input: 256, cached: 1024, output: 300, ..Usage::default() },
        charge: "0.000295".parse().expect("an amount"),
        price_version: "0123456789ab".into(),
        ttft_ms: Some(400),
        latency_ms: 2000,
        stream: true,
        outcome: Outcome::Completed,
        source: Source::Reported,
        http_status: 200,
        flags: String::new(),
    }
}
