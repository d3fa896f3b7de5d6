//! How what has gathered in a lane is sent, and its answers are dealt out.

use std::sync::Arc;
use std::time::Instant;

use redis::Value;
use tokio::sync::oneshot;

use super::Shared;
use super::lent::{self, Lending, News};
use super::reply::{Odd, Reply, no_account, text};
use super::settle::{self, Admit, Came, Settle};
use crate::store::{AccountId, Admitted, Mode, Refused, Settled, Settlement, StoreError};

/// How often a request that finds all places taken asks again, where some are lent ahead: longer
/// than they are kept by who does not use them.
const WAITS: u32 = 6;

impl Shared {
    /// Settles requests of one account; the answers are in their order.
    pub(super) async fn send_settles(
        &self,
        account: &AccountId,
        mut asked: Vec<Settle>,
    ) -> Vec<Result<Settled, StoreError>> {
        let mut answers: Vec<Option<Result<Settled, StoreError>>> = vec![None; asked.len()];
        // Twice suffices unless a day ends in between.
        for _ in 0..4 {
            let open: Vec<_> = (0..asked.len()).filter(|&n| answers[n].is_none()).collect();
            if open.is_empty() {
                break;
            }
            let since = Instant::now();
            let sent: Vec<_> = open.iter().map(|&n| &asked[n]).collect();
            let came = self.send_settles_once(account, &sent).await;
            for (n, came) in open.into_iter().zip(came) {
                match came {
                    Ok(Came::Of(settled, lending)) => {
                        self.heed_settled(&asked[n], &settled, lending, since);
                        answers[n] = Some(Ok(settled));
                    }
                    Ok(Came::Crowded) => answers[n] = Some(Err(Odd.into())),
                    Err(error) => answers[n] = Some(Err(error)),
                    Ok(Came::When(at)) => {
                        match self.untils(account, &asked[n].settlement.key, at).await {
                            Ok(untils) => asked[n].untils = untils,
                            Err(error) => answers[n] = Some(Err(error)),
                        }
                    }
                }
            }
        }
        let answers = answers.into_iter().map(|answer| answer.unwrap_or(Err(Odd.into())));
        let ended = asked.iter().zip(answers).map(|(asked, answer)| {
            let Settlement { id, key, .. } = &asked.settlement;
            if answer.is_err() {
                self.lent.ended(account, id, key, None);
            }
            answer
        });
        ended.collect()
    }

    /// What the answer to a settlement says of the requests after it.
    fn heed_settled(
        &self,
        asked: &Settle,
        settled: &Settled,
        lending: Option<Lending>,
        since: Instant,
    ) {
        let Settlement { account, id, key, .. } = &asked.settlement;
        let news = lending.zip(settled.balance);
        let news = news.map(|(lending, balance)| News { lending, balance, asked: since });
        self.lent.ended(account, id, key, news.as_ref());
    }

    async fn send_settles_once(
        &self,
        account: &AccountId,
        asked: &[&Settle],
    ) -> Vec<Result<Came<Settled>, StoreError>> {
        let script = &self.scripts.settle;
        let ids: Vec<_> =
            asked.iter().map(|op| self.names.request(account, &op.settlement.id)).collect();
        let mut call = self.call(script, account, &ids);
        call.push(script.fixed_keys().to_string());
        call.push(self.remember.as_secs().to_string());
        for op in asked {
            op.push(&mut call);
        }
        let answers = self.link.commit(&call).await.map_err(StoreError::from);
        each(answers, account, asked.len(), |n, answer| {
            settle::settled(answer, account, &asked[n].settlement.id)
        })
    }

    /// Asks for places for requests of one account; the answers are in their order.
    pub(super) async fn send_admits(
        self: &Arc<Self>,
        account: &AccountId,
        mut asked: Vec<Admit>,
    ) -> Vec<Result<Result<Admitted, Refused>, StoreError>> {
        let mut answers: Vec<Option<Result<_, StoreError>>> = vec![None; asked.len()];
        let mut waits = 0;
        for _ in 0..4 + WAITS {
            let open: Vec<_> = (0..asked.len()).filter(|&n| answers[n].is_none()).collect();
            if open.is_empty() {
                break;
            }
            let sent: Vec<_> = open.iter().map(|&n| &asked[n]).collect();
            let came = self.send_admits_once(account, &sent, waits == WAITS).await;
            let mut is_crowded = false;
            for (n, came) in open.into_iter().zip(came) {
                match came {
                    Ok(Came::Of(answer, _)) => answers[n] = Some(Ok(answer)),
                    Ok(Came::Crowded) => is_crowded = true,
                    Err(error) => answers[n] = Some(Err(error)),
                    Ok(Came::When(at)) => match self.untils(account, &asked[n].key.id, at).await {
                        Ok(untils) => asked[n].untils = untils,
                        Err(error) => answers[n] = Some(Err(error)),
                    },
                }
            }
            if is_crowded {
                waits += 1;
                self.give_idle_back(account).await;
                tokio::time::sleep(lent::TICK).await;
            }
        }
        answers.into_iter().map(|answer| answer.unwrap_or(Err(Odd.into()))).collect()
    }

    async fn send_admits_once(
        &self,
        account: &AccountId,
        asked: &[&Admit],
        is_last: bool,
    ) -> Vec<Result<Came<Result<Admitted, Refused>>, StoreError>> {
        let lenient = asked.iter().filter(|op| op.how.mode == Mode::Lenient);
        let wanted = self.lent.wanted(account, lenient.count());
        let mut call = self.call(&self.scripts.admit, account, &[]);
        call.push(self.lease.as_millis().to_string());
        call.push(&wanted.purse);
        call.push(wanted.places.to_string());
        call.push(if is_last { "1" } else { "" });
        for op in asked {
            op.push(&mut call);
        }
        let since = Instant::now();
        let mut answers = self.link.run(&call).await.map_err(StoreError::from);
        if answers.is_err() && wanted.places > 0 {
            self.lent.lose_count(account, &wanted.purse);
        }
        // The last says how many places were lent ahead.
        if let Ok(Value::Array(all)) = &mut answers
            && all.len() == asked.len() + 1
            && let Some(Ok(Ok(lent))) = all.pop().map(|lent| text(lent).map(|lent| lent.parse()))
        {
            self.lent.add(account, &wanted.purse, lent, asked[0].how.max_in_flight);
        }
        let came =
            each(answers, account, asked.len(), |n, answer| settle::admitted(answer, asked[n]));
        for (op, came) in asked.iter().zip(&came) {
            if let Ok(Came::Of(Ok(Admitted { balance }), Some(lending))) = came {
                let news = News { lending: *lending, balance: *balance, asked: since };
                self.lent.hear(account, &op.key.id, &news);
            }
        }
        came
    }

    /// Gives places back. Where that fails, they come back when their lease ends.
    pub(super) async fn send_releases(
        &self,
        account: &AccountId,
        requests: Vec<String>,
    ) -> Vec<Result<(), StoreError>> {
        let mut call = self.call(&self.scripts.release, account, &[]);
        for request in &requests {
            call.push(request);
        }
        let sent = self.link.commit(&call).await.map(drop).map_err(StoreError::from);
        vec![sent; requests.len()]
    }
}

/// The answer of each of several operations, or the one that stands for all.
fn each<T>(
    answers: Result<Value, StoreError>,
    account: &AccountId,
    count: usize,
    read: impl Fn(usize, Reply) -> Result<T, StoreError>,
) -> Vec<Result<T, StoreError>> {
    let fail = |error: StoreError| (0..count).map(|_| Err(error.clone())).collect();
    let answers = match answers {
        Ok(Value::Array(answers)) => answers,
        Ok(_) => return fail(Odd.into()),
        Err(error) => return fail(error),
    };
    if let Some(Value::BulkString(word)) = answers.first() {
        let is_known = word == b"no_account";
        return fail(if is_known { no_account(account) } else { Odd.into() });
    }
    if answers.len() != count {
        return fail(Odd.into());
    }
    answers.into_iter().enumerate().map(|(n, answer)| read(n, Reply::of(answer)?)).collect()
}

/// What a lane answers, once it does.
pub(super) async fn answered<T>(
    answer: oneshot::Receiver<Result<T, StoreError>>,
) -> Result<T, StoreError> {
    answer.await.unwrap_or_else(|_| Err(StoreError::Unavailable("the store has ended".into())))
}
