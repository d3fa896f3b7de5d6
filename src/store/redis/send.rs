//! How what has gathered in a lane is sent, and its answers are dealt out.

use redis::Value;
use tokio::sync::oneshot;

use super::Shared;
use super::reply::{Odd, Reply, no_account};
use super::settle::{self, Admit, Came, Settle};
use crate::store::{AccountId, Admitted, Refused, Settled, StoreError};

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
            let sent: Vec<_> = open.iter().map(|&n| &asked[n]).collect();
            let came = self.send_settles_once(account, &sent).await;
            for (n, came) in open.into_iter().zip(came) {
                match came {
                    Ok(Came::Of(settled)) => answers[n] = Some(Ok(settled)),
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
        answers.into_iter().map(|answer| answer.unwrap_or(Err(Odd.into()))).collect()
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
        &self,
        account: &AccountId,
        mut asked: Vec<Admit>,
    ) -> Vec<Result<Result<Admitted, Refused>, StoreError>> {
        let mut answers: Vec<Option<Result<_, StoreError>>> = vec![None; asked.len()];
        for _ in 0..4 {
            let open: Vec<_> = (0..asked.len()).filter(|&n| answers[n].is_none()).collect();
            if open.is_empty() {
                break;
            }
            let mut call = self.call(&self.scripts.admit, account, &[]);
            call.push(self.lease.as_millis().to_string());
            for &n in &open {
                asked[n].push(&mut call);
            }
            let came = self.link.run(&call).await.map_err(StoreError::from);
            let came = each(came, account, open.len(), |n, answer| {
                settle::admitted(answer, &asked[open[n]])
            });
            for (n, came) in open.into_iter().zip(came) {
                match came {
                    Ok(Came::Of(answer)) => answers[n] = Some(Ok(answer)),
                    Err(error) => answers[n] = Some(Err(error)),
                    Ok(Came::When(at)) => match self.untils(account, &asked[n].key.id, at).await {
                        Ok(untils) => asked[n].untils = untils,
                        Err(error) => answers[n] = Some(Err(error)),
                    },
                }
            }
        }
        answers.into_iter().map(|answer| answer.unwrap_or(Err(Odd.into()))).collect()
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
