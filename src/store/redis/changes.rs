//! What operators do to a balance: credits, refunds, chargebacks, the end of an account.

use super::Shared;
use super::names::Name;
use super::read::Order;
use super::reply::{Odd, Reply, refused};
use super::rows::Item;
use crate::billing::ledger::{Expiry, Kind, expiry::twelve_months_after};
use crate::key::hex;
use crate::store::fingerprint::{Fingerprint, of_closing, of_grant, of_undo};
use crate::store::{AccountId, Grant, Granted, Millis, StoreError, Undo};

/// Milliseconds in a day.
const DAY_MS: Millis = 86_400_000;
/// How often a script may ask for another day's calendar: once, unless a day ends in between.
const TRIES: u32 = 4;
/// Entries that are looked through for an id that is remembered no more.
const STEP: usize = 1000;

/// What the scripts know of the calendar: a day, and how far ahead of its instants lies the
/// same time twelve months later.
fn calendar(at: Millis) -> [String; 2] {
    [at.div_euclid(DAY_MS).to_string(), (twelve_months_after(at) - at).to_string()]
}

fn print(fingerprint: &Fingerprint) -> String {
    hex(fingerprint)
}

/// What came of an operation.
enum Done {
    Granted(Granted),
    When(Millis),
    NotFound,
}

impl Shared {
    pub(super) async fn grant(&self, grant: Grant) -> Result<Granted, StoreError> {
        let Grant { account, kind, amount, expires, note, id } = &grant;
        let id_key = [self.names.request(account, id)];
        let (how, at) = match expires {
            None => ("", String::new()),
            Some(Expiry::At(at)) => ("at", at.to_string()),
            Some(Expiry::After(wait)) => ("after", wait.as_millis().to_string()),
        };
        let expires = if *kind == Kind::Promo { (how, at) } else { ("", String::new()) };
        let mut now = self.now().await?;
        for _ in 0..TRIES {
            let mut call = self.call(&self.scripts.grant, account, &id_key);
            for value in [id.clone(), print(&of_grant(&grant)), kind.name().into()] {
                call.push(value);
            }
            call.push(amount.nano().to_string());
            call.push(expires.0);
            call.push(&expires.1);
            for value in calendar(now) {
                call.push(value);
            }
            call.push(note);
            let answer = Reply::of(self.link.commit(&call).await?)?;
            match self.done(answer, account, id).await? {
                Done::Granted(granted) => return Ok(granted),
                Done::When(at) => now = at,
                Done::NotFound => return Err(Odd.into()),
            }
        }
        Err(Odd.into())
    }

    pub(super) async fn refund(&self, refund: Undo) -> Result<Granted, StoreError> {
        let Undo { account, of, amount, note, id } = &refund;
        let fingerprint = print(&of_undo(Kind::Refund, &refund));
        let ids = [self.names.request(account, of), self.names.request(account, id)];
        let mut now = self.now().await?;
        let mut found = String::new();
        for _ in 0..TRIES {
            let mut call = self.call(&self.scripts.refund, account, &ids);
            for value in [id, &fingerprint, of] {
                call.push(value);
            }
            call.push(amount.map(|amount| amount.nano().to_string()).unwrap_or_default());
            call.push(note);
            for value in calendar(now) {
                call.push(value);
            }
            call.push(&found);
            let answer = Reply::of(self.link.commit(&call).await?)?;
            match self.done(answer, account, id).await? {
                Done::Granted(granted) => return Ok(granted),
                Done::When(at) => now = at,
                Done::NotFound if found.is_empty() => {
                    let Some(seq) = self.find_charge(account, of).await? else { break };
                    found = seq;
                }
                Done::NotFound => break,
            }
        }
        Err(self.no_such("charged request", account, of).await)
    }

    pub(super) async fn reverse(&self, reversal: Undo) -> Result<Granted, StoreError> {
        let Undo { account, of, amount, note, id } = &reversal;
        let fingerprint = print(&of_undo(Kind::PaymentReversal, &reversal));
        let id_key = [self.names.request(account, id)];
        let mut call = self.call(&self.scripts.reverse, account, &id_key);
        for value in [id, &fingerprint, of] {
            call.push(value);
        }
        call.push(amount.map(|amount| amount.nano().to_string()).unwrap_or_default());
        call.push(note);
        let answer = Reply::of(self.link.commit(&call).await?)?;
        match self.done(answer, account, id).await? {
            Done::Granted(granted) => Ok(granted),
            Done::When(_) => Err(Odd.into()),
            Done::NotFound => Err(self.no_such("payment", account, of).await),
        }
    }

    /// Nothing to undo by this id. Requests that were trimmed have left none behind.
    async fn no_such(&self, what: &str, account: &AccountId, of: &str) -> StoreError {
        match self.checkpoint(account).await {
            Ok((0, _)) => StoreError::NotFound(format!("{what} {of}")),
            Ok(_) => StoreError::NotFound(format!(
                "{what} {of} (if it was trimmed, correct the balance)"
            )),
            Err(error) => error,
        }
    }

    pub(super) async fn close(&self, account: &AccountId, id: String) -> Result<(), StoreError> {
        let id_key = [self.names.request(account, &id)];
        let call = self.call(&self.scripts.close, account, &id_key).arg(&id);
        let call = call.arg(print(&of_closing()));
        let mut answer = Reply::of(self.link.commit(&call).await?)?;
        match answer.text()?.as_str() {
            "ok" => {
                // The end of a lease, if anything still runs.
                let due: String = answer.text()?;
                if let Ok(due) = due.parse() {
                    self.note_due(account, due).await;
                }
                self.outlive_belief(&answer.text()?).await;
                Ok(())
            }
            "duplicate" => Ok(()),
            word => Err(refused(word, answer, account, &id)),
        }
    }

    async fn done(
        &self,
        mut answer: Reply,
        account: &AccountId,
        id: &str,
    ) -> Result<Done, StoreError> {
        let duplicate = match answer.text()?.as_str() {
            "ok" => false,
            "duplicate" => true,
            "when" => return Ok(Done::When(answer.number()?)),
            "not_found" => return Ok(Done::NotFound),
            word => return Err(refused(word, answer, account, id)),
        };
        let entry = Item::read(answer.value()?)?.entry()?;
        if let Some(Ok(due)) = answer.next().map(super::reply::text)
            && let Ok(due) = super::reply::number(&due)
        {
            self.note_due(account, due).await;
        }
        Ok(Done::Granted(Granted { entry, duplicate }))
    }

    /// The entry of a request whose id is remembered no more: by looking through the ledger.
    async fn find_charge(
        &self,
        account: &AccountId,
        of: &str,
    ) -> Result<Option<String>, StoreError> {
        let key = self.names.of(account, Name::Entries);
        let mut high = String::from("+");
        loop {
            let range = (String::from("-"), high);
            let items = self.stream(&key, range, Order::NewestFirst, STEP).await?;
            let is_last = items.len() < STEP;
            high = items.last().map(|item| format!("({}", item.id)).unwrap_or_default();
            for item in items {
                let entry = item.entry()?;
                if entry.kind == Kind::DebitAi && entry.reference == of {
                    return Ok(Some(entry.seq.to_string()));
                }
            }
            if is_last {
                return Ok(None);
            }
        }
    }
}
