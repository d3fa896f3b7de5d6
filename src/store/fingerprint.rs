//! What makes two operations of one id the same operation.

use sha2::{Digest, Sha256};

use crate::billing::ledger::{Expiry, Kind};
use crate::store::{Grant, Settlement, Undo};

/// The beginning of the SHA-256 of an operation's content: who repeats an id by accident
/// never meets it.
pub(super) type Fingerprint = [u8; 8];

/// What makes two settlements of one id the same: what was used, by whom, and what it costs.
pub(super) fn of_settlement(settlement: &Settlement) -> Fingerprint {
    let Settlement { key, model, usage, charge, .. } = settlement;
    let mut content = Vec::with_capacity(256);
    content.extend(b"settle");
    add_text(&mut content, key);
    add_text(&mut content, model);
    content.extend(charge.nano().to_le_bytes());
    let counts = [
        usage.input,
        usage.cached,
        usage.cache_creation_5m,
        usage.cache_creation_1h,
        usage.output,
        usage.reasoning,
        usage.input_audio,
        usage.input_image,
        usage.cached_audio,
        usage.output_audio,
        usage.output_image,
    ];
    for count in counts {
        content.extend(count.to_le_bytes());
    }
    for (call, count) in &usage.calls {
        add_text(&mut content, call);
        content.extend(count.to_le_bytes());
    }
    cut(&content)
}

/// Kind, amount, note and expiry, as asked.
pub(super) fn of_grant(grant: &Grant) -> Fingerprint {
    let mut content = Vec::with_capacity(256);
    content.extend(b"grant");
    add_text(&mut content, grant.kind.name());
    content.extend(grant.amount.nano().to_le_bytes());
    add_text(&mut content, &grant.note);
    match grant.expires {
        None => {}
        Some(Expiry::At(at)) => {
            content.extend(b"at");
            content.extend(at.to_le_bytes());
        }
        Some(Expiry::After(wait)) => {
            content.extend(b"after");
            content.extend(wait.as_millis().to_le_bytes());
        }
    }
    cut(&content)
}

/// What is undone, how much of it, and why.
pub(super) fn of_undo(kind: Kind, undo: &Undo) -> Fingerprint {
    let mut content = Vec::with_capacity(256);
    add_text(&mut content, kind.name());
    add_text(&mut content, &undo.of);
    add_text(&mut content, &undo.amount.map(|amount| amount.to_string()).unwrap_or_default());
    add_text(&mut content, &undo.note);
    cut(&content)
}

/// Closing has no content.
pub(super) fn of_closing() -> Fingerprint {
    cut(b"close")
}

/// Of the whole content at once: many small updates take longer than the hash itself.
fn cut(content: &[u8]) -> Fingerprint {
    let whole: [u8; 32] = Sha256::digest(content).into();
    let [a, b, c, d, e, f, g, h, ..] = whole;
    [a, b, c, d, e, f, g, h]
}

/// With its length, so that two texts never run into one another.
fn add_text(content: &mut Vec<u8>, text: &str) {
    content.extend((text.len() as u64).to_le_bytes());
    content.extend(text.as_bytes());
}
