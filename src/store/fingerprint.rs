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
    let mut hash = Sha256::new();
    hash.update(b"settle");
    update_text(&mut hash, key);
    update_text(&mut hash, model);
    hash.update(charge.nano().to_le_bytes());
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
        hash.update(count.to_le_bytes());
    }
    for (call, count) in &usage.calls {
        update_text(&mut hash, call);
        hash.update(count.to_le_bytes());
    }
    cut(hash)
}

/// Kind, amount, note and expiry, as asked.
pub(super) fn of_grant(grant: &Grant) -> Fingerprint {
    let mut hash = Sha256::new();
    hash.update(b"grant");
    update_text(&mut hash, grant.kind.name());
    hash.update(grant.amount.nano().to_le_bytes());
    update_text(&mut hash, &grant.note);
    match grant.expires {
        None => {}
        Some(Expiry::At(at)) => {
            hash.update(b"at");
            hash.update(at.to_le_bytes());
        }
        Some(Expiry::After(wait)) => {
            hash.update(b"after");
            hash.update(wait.as_millis().to_le_bytes());
        }
    }
    cut(hash)
}

/// What is undone, how much of it, and why.
pub(super) fn of_undo(kind: Kind, undo: &Undo) -> Fingerprint {
    let mut hash = Sha256::new();
    update_text(&mut hash, kind.name());
    update_text(&mut hash, &undo.of);
    update_text(&mut hash, &undo.amount.map(|amount| amount.to_string()).unwrap_or_default());
    update_text(&mut hash, &undo.note);
    cut(hash)
}

/// Closing has no content.
pub(super) fn of_closing() -> Fingerprint {
    cut(Sha256::new_with_prefix(b"close"))
}

fn cut(hash: Sha256) -> Fingerprint {
    let whole: [u8; 32] = hash.finalize().into();
    let [a, b, c, d, e, f, g, h, ..] = whole;
    [a, b, c, d, e, f, g, h]
}

/// With its length, so that two texts never run into one another.
fn update_text(hash: &mut Sha256, text: &str) {
    hash.update((text.len() as u64).to_le_bytes());
    hash.update(text);
}
