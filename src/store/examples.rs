//! What every store is held to: worked examples, pages and sums, random histories.
//!
//! The files beside this one are compiled below each store's own tests, which say how a store
//! is made, opened again and looked at (`Bench`). This one has what they share.

use super::{
    AccountId, Admission, Attribution, Candidate, Grant, Key, KeyLimits, Millis, Mode, Outcome,
    Page, Rejection, Settlement, Source, Undo,
};
use crate::billing::ledger::Kind;
use crate::billing::{Credits, Usage};

/// 2026-09-01T00:00:00Z
pub(super) const START: Millis = 1_788_220_800_000;
pub(super) const LENIENT: Admission =
    Admission { mode: Mode::Lenient, max_in_flight: 64, most: None, tokens: 0 };
pub(super) const ALL: Page = Page { cursor: None, limit: 500 };

pub(super) fn account() -> AccountId {
    AccountId("default".into())
}

pub(super) fn credits(text: &str) -> Credits {
    text.parse().unwrap()
}

pub(super) fn request(id: &str) -> Candidate {
    Candidate { id: id.into(), model: "sonnet".into() }
}

/// The key of [`settlement`], without limits.
pub(super) fn key_1() -> Key {
    Key {
        id: "key_1".into(),
        account: account(),
        name: "Laptop".into(),
        tag: None,
        models: Vec::new(),
        rejection: Rejection::Limit,
        limits: KeyLimits::default(),
        last4: "a1B2".into(),
        created_at: START,
        expires_at: None,
        revoked_at: None,
    }
}

/// A request that costs at most so much, of an account in strict mode.
pub(super) fn strict(most: &str) -> Admission {
    Admission { mode: Mode::Strict, most: Some(credits(most)), ..LENIENT }
}

pub(super) fn settlement(id: &str, charge: &str) -> Settlement {
    Settlement {
        id: id.into(),
        account: account(),
        key: "key_1".into(),
        model: "sonnet".into(),
        served_model: None,
        upstream: "anthropic".into(),
        attribution: Attribution::default(),
        usage: Usage { input: 12, output: 3, ..Usage::default() },
        charge: credits(charge),
        price_version: "v1".into(),
        ttft_ms: Some(40),
        latency_ms: 900,
        stream: true,
        outcome: Outcome::Completed,
        source: Source::Reported,
        http_status: 200,
        flags: String::new(),
    }
}

pub(super) fn granting(kind: Kind, id: &str, amount: &str) -> Grant {
    Grant {
        account: account(),
        kind,
        amount: credits(amount),
        expires: None,
        note: "by hand".into(),
        id: id.into(),
    }
}

pub(super) fn undo(of: &str, amount: Option<&str>, id: &str) -> Undo {
    Undo {
        account: account(),
        of: of.into(),
        amount: amount.map(credits),
        note: "by hand".into(),
        id: id.into(),
    }
}
