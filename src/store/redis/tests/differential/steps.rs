//! What happens in a history, by a seed.

use crate::billing::Credits;
use crate::billing::ledger::{Expiry, Kind};
use crate::store::{Admission, KeyLimits, LimitsChange, Mode, Outcome, Settlement, Undo};

use super::super::*;
use super::model::Model;

/// Keys of an account.
pub(super) const KEYS: usize = 2;

/// A generator of steps, the same for the same seed.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        // Neighbouring seeds are to begin far apart, and none at nothing.
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        // Xorshift: Marsaglia, 2003.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }

    fn index(&mut self, n: usize) -> usize {
        usize::try_from(self.below(n as u64)).unwrap()
    }

    /// Mostly small, sometimes near what a store can count.
    fn amount(&mut self) -> i64 {
        let amount = match self.below(40) {
            0..20 => self.below(50),
            20..38 => self.below(3_000_000_000),
            38 => self.below(1_000_000_000_000_001),
            _ => 1_000_000_000_000_000 - self.below(3),
        };
        i64::try_from(amount).unwrap()
    }

    fn credits(&mut self) -> Credits {
        Credits::from_nano(self.amount())
    }

    fn expiry(&mut self) -> Option<Expiry> {
        let hours = self.below(40);
        match self.below(8) {
            0 => None,
            // Days from the beginning, so that some have passed.
            1 => Some(Expiry::At(START + 86_400_000 * Millis::try_from(hours).unwrap())),
            _ => Some(Expiry::After(Duration::from_secs(hours * 3600))),
        }
    }

    fn how(&mut self) -> Admission {
        let mode = [Mode::Lenient, Mode::OneRequest, Mode::Strict][self.index(3)];
        let max_in_flight = [1, 3, 8, 64][self.index(4)];
        let most = (self.below(5) > 0).then(|| self.credits());
        Admission { mode, max_in_flight, most, tokens: 0 }
    }

    fn limits(&mut self) -> KeyLimits {
        let mut cap = || (self.below(4) == 0).then(|| self.credits());
        let (daily, weekly, monthly, total) = (cap(), cap(), cap(), cap());
        let zone = ["UTC", "America/New_York", "Asia/Kathmandu"][self.index(3)];
        KeyLimits {
            daily,
            weekly,
            monthly,
            total,
            zone: Some(zone.into()),
            max_in_flight: [None, Some(1), Some(4)][self.index(3)],
            ..KeyLimits::default()
        }
    }
}

/// What happens to an account. Requests are `r0`, `r1`, …, each of the key that its number says.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Admit {
        n: usize,
        how: Admission,
    },
    Release {
        n: usize,
    },
    Settle {
        n: usize,
        charge: i64,
        outcome: Outcome,
    },
    /// Something that is written for certain, so that the account has seen the time.
    Look {
        id: String,
    },
    Grant {
        id: String,
        kind: Kind,
        amount: i64,
        expires: Option<Expiry>,
    },
    Refund {
        id: String,
        of: String,
        amount: Option<i64>,
    },
    Reverse {
        id: String,
        of: String,
        amount: Option<i64>,
    },
    Limits {
        key: usize,
        limits: KeyLimits,
    },
    Close {
        id: String,
    },
}

/// A step of an account in its `n`th round. Ids are often used again.
pub(super) fn step(random: &mut Random, n: usize, model: &Model) -> Step {
    let earlier = |random: &mut Random| n.saturating_sub(random.index(12));
    let at = if random.below(12) == 0 { earlier(random) } else { n };
    match random.below(400) {
        0 if n > 60 && random.below(2) == 0 => return Step::Close { id: format!("end{at}") },
        0..8 => return Step::Limits { key: random.index(KEYS), limits: random.limits() },
        _ => {}
    }
    match random.below(26) {
        // A request that has ended never asks for a place again.
        0..6 => Step::Admit { n: if model.is_done(at) { n } else { at }, how: random.how() },
        6 => Step::Release { n: running(random, model).unwrap_or(at) },
        7..15 => {
            let of = if random.below(3) > 0 { running(random, model) } else { None };
            let outcomes = [Outcome::Completed, Outcome::Completed, Outcome::UpstreamError];
            Step::Settle {
                n: of.unwrap_or(at),
                charge: random.amount(),
                outcome: outcomes[random.index(3)],
            }
        }
        15..19 => {
            // Rather large: an account in debt admits nothing.
            let amount = random.amount().max(random.amount());
            let id = format!("pay{at}");
            Step::Grant { id, kind: Kind::Topup, amount, expires: None }
        }
        19..22 => {
            let (amount, id) = (random.amount(), format!("gift{at}"));
            Step::Grant { id, kind: Kind::Promo, amount, expires: random.expiry() }
        }
        22 => {
            let sign = if random.below(2) == 0 { 1 } else { -1 };
            let (amount, id) = (sign * random.amount(), format!("fix{at}"));
            Step::Grant { id, kind: Kind::Adjust, amount, expires: None }
        }
        what => {
            let amount = Some(random.amount()).filter(|_| random.below(3) > 0);
            // Mostly of late; sometimes of long ago, when it may be trimmed.
            let of = if random.below(5) == 0 { random.index(n) } else { earlier(random) };
            match what {
                23 | 24 => Step::Refund { id: format!("back{at}"), of: format!("r{of}"), amount },
                _ => Step::Reverse { id: format!("bank{at}"), of: format!("pay{of}"), amount },
            }
        }
    }
}

fn running(random: &mut Random, model: &Model) -> Option<usize> {
    let running: Vec<_> = model.running().collect();
    (!running.is_empty()).then(|| running[random.index(running.len())])
}

/// What a step came to, in what all three have.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Came {
    Admitted(Result<Admitted, Refused>),
    Settled {
        balance: Credits,
        duplicate: bool,
    },
    Granted {
        entry: Box<Entry>,
        duplicate: bool,
    },
    /// The account afterwards: its status, balance, what is held, and how many run.
    Seen(Status, Credits, Credits, usize),
    Released,
    Limited,
    Refused(String),
}

/// The words of a refusal, which are the same everywhere.
pub(super) fn refused(error: &StoreError) -> Came {
    assert!(!matches!(error, StoreError::Unavailable(_)), "{error}");
    Came::Refused(error.to_string())
}

/// Does a step on a store. `keys` are the account's.
pub(super) async fn take(store: &dyn Store, keys: &[Key], step: &Step) -> Came {
    let account = keys[0].account.clone();
    let undo = |id: &str, of: &str, amount: &Option<i64>| Undo {
        account: account.clone(),
        amount: amount.map(Credits::from_nano),
        ..undo(of, None, id)
    };
    let granted = match step {
        Step::Admit { n, how } => {
            let asked = request(&format!("r{n}"));
            return match store.admit(&keys[n % KEYS], asked, *how).await {
                Ok(answer) => Came::Admitted(answer),
                Err(error) => refused(&error),
            };
        }
        Step::Release { n } => {
            store.release(&account, &format!("r{n}"));
            // It is given back in the background, but before anything is read.
            store.account(&account).await.unwrap();
            return Came::Released;
        }
        Step::Settle { n, charge, outcome } => {
            let (id, key) = (format!("r{n}"), keys[n % KEYS].id.clone());
            let charge = Credits::from_nano(*charge);
            let outcome = *outcome;
            return settle(
                store,
                Settlement { account, key, charge, outcome, ..settlement(&id, "0") },
            )
            .await;
        }
        Step::Look { id } => {
            return settle(store, Settlement { account, ..settlement(id, "0") }).await;
        }
        Step::Grant { id, kind, amount, expires } => {
            let (amount, expires) = (Credits::from_nano(*amount), *expires);
            store.grant(Grant { account, amount, expires, ..granting(*kind, id, "0") }).await
        }
        Step::Refund { id, of, amount } => store.refund(undo(id, of, amount)).await,
        Step::Reverse { id, of, amount } => store.reverse(undo(id, of, amount)).await,
        Step::Limits { key, limits } => {
            let change = KeyChange { limits: all_of(limits), ..KeyChange::default() };
            return match store.change_key(&account, &keys[*key].id, change).await {
                Ok(key) if key.limits == *limits => Came::Limited,
                Ok(key) => panic!("{limits:?} became {:?}", key.limits),
                Err(error) => refused(&error),
            };
        }
        Step::Close { id } => return seen(store.close_account(&account, id.clone()).await),
    };
    match granted {
        Ok(Granted { entry, duplicate }) => Came::Granted { entry: Box::new(entry), duplicate },
        Err(error) => refused(&error),
    }
}

async fn settle(store: &dyn Store, settlement: Settlement) -> Came {
    match store.settle(settlement).await {
        Ok(Settled { balance, duplicate }) => {
            Came::Settled { balance: balance.expect("no journal is here"), duplicate }
        }
        Err(error) => refused(&error),
    }
}

fn seen(account: Result<Account, StoreError>) -> Came {
    match account {
        Ok(Account { status, balance, held, in_flight, .. }) => {
            Came::Seen(status, balance, held, usize::try_from(in_flight).unwrap())
        }
        Err(error) => refused(&error),
    }
}

fn all_of(limits: &KeyLimits) -> LimitsChange {
    LimitsChange {
        daily: Some(limits.daily),
        weekly: Some(limits.weekly),
        monthly: Some(limits.monthly),
        total: Some(limits.total),
        zone: Some(limits.zone.clone()),
        max_in_flight: Some(limits.max_in_flight),
        ..LimitsChange::default()
    }
}
