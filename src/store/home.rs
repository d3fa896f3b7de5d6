//! Answers for the threads that serve clients. Each answer that another thread gives wakes such
//! a thread anew; so what is answered at the same time is put down here, and the thread is woken
//! once to give it all to itself.

use std::cell::OnceCell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};

thread_local! {
    /// Of a thread that serves clients.
    static HOME: OnceCell<Arc<Home>> = const { OnceCell::new() };
}

/// What is to be answered on one thread.
#[derive(Default)]
struct Home {
    answers: Mutex<Vec<Give>>,
    bell: Notify,
}

/// Gives an answer.
type Give = Box<dyn FnOnce() + Send>;

impl Home {
    fn answers(&self) -> MutexGuard<'_, Vec<Give>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives what is put down for this thread, for ever. For a thread that serves clients, on a
/// runtime of its own.
pub async fn serve() {
    let home = HOME.with(|home| home.get_or_init(Arc::default).clone());
    loop {
        home.bell.notified().await;
        let answers = std::mem::take(&mut *home.answers());
        for give in answers {
            give();
        }
    }
}

/// Where an answer goes.
pub(super) struct Reply<T> {
    to: oneshot::Sender<T>,
    home: Option<Arc<Home>>,
}

impl<T: Send + 'static> Reply<T> {
    /// To whoever waits on this thread.
    pub(super) fn new() -> (Self, oneshot::Receiver<T>) {
        let (to, receiver) = oneshot::channel();
        (Self { to, home: HOME.with(|home| home.get().cloned()) }, receiver)
    }
}

/// Answers that are given at the same time: at the latest when this is dropped.
#[derive(Default)]
pub(super) struct Round(Vec<Arc<Home>>);

impl Round {
    /// Answers. Where nobody waits any more, what was done is done all the same.
    pub(super) fn give<T: Send + 'static>(&mut self, reply: Reply<T>, answer: T) {
        let Reply { to, home } = reply;
        let Some(home) = home else {
            let _ = to.send(answer);
            return;
        };
        if HOME.with(|here| here.get().is_some_and(|here| Arc::ptr_eq(here, &home))) {
            let _ = to.send(answer);
            return;
        }
        let mut answers = home.answers();
        let is_first = answers.is_empty();
        answers.push(Box::new(move || drop(to.send(answer))));
        drop(answers);
        // Who put the first down wakes the thread.
        if is_first {
            self.0.push(home);
        }
    }
}

impl Drop for Round {
    fn drop(&mut self) {
        for home in &self.0 {
            home.bell.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_who_wait_on_a_thread_that_serves_are_answered_though_some_have_left() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            tokio::spawn(serve());
            tokio::task::yield_now().await;
            for round in 0..100 {
                let (replies, waiting): (Vec<_>, Vec<_>) = (0..8).map(|_| Reply::new()).unzip();
                let thread = std::thread::spawn(move || {
                    let mut answers = Round::default();
                    for (n, reply) in replies.into_iter().enumerate() {
                        answers.give(reply, (round, n));
                    }
                });
                for (n, answer) in waiting.into_iter().enumerate().skip(round % 8) {
                    assert_eq!(answer.await, Ok((round, n)));
                }
                thread.join().unwrap();
            }
        });
    }

    #[test]
    fn a_thread_answers_itself_and_one_that_does_not_serve_at_once() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (reply, mut waiting) = Reply::new();
        let mut round = Round::default();
        round.give(reply, 1);
        assert_eq!(waiting.try_recv(), Ok(1));
        runtime.block_on(async {
            tokio::spawn(serve());
            tokio::task::yield_now().await;
            let (reply, mut waiting) = Reply::new();
            round.give(reply, 2);
            assert_eq!(waiting.try_recv(), Ok(2));
        });
    }
}
