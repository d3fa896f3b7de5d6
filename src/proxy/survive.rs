//! Work that goes on when the client that waits for it is gone.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use super::Context;
use super::settle::Client;

/// A future that runs in place while someone waits for it, and in a task of its own from
/// the moment that nobody does: nothing is spawned while all goes well.
pub struct Surviving<T: Send + 'static> {
    work: Option<Pin<Box<dyn Future<Output = T> + Send>>>,
    ctx: Arc<Context>,
    /// Work for a client: it is told that the client left, and only goes on within the
    /// limits of a drain.
    client: Option<Client>,
}

impl<T: Send + 'static> Surviving<T> {
    /// Work that must come to its end.
    pub fn new(ctx: &Arc<Context>, work: impl Future<Output = T> + Send + 'static) -> Self {
        Self { work: Some(Box::pin(work)), ctx: Arc::clone(ctx), client: None }
    }

    /// Work for a client. Cut off by a limit, it is dropped, and its bill settles itself.
    pub fn of_client(
        ctx: &Arc<Context>,
        client: Client,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Self {
        Self { work: Some(Box::pin(work)), ctx: Arc::clone(ctx), client: Some(client) }
    }
}

impl<T: Send + 'static> Future for Surviving<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<T> {
        let Some(work) = &mut self.work else { return Poll::Pending };
        let done = work.as_mut().poll(cx);
        if done.is_ready() {
            self.work = None;
        }
        done
    }
}

impl<T: Send + 'static> Drop for Surviving<T> {
    fn drop(&mut self) {
        let Some(work) = self.work.take() else { return };
        let Some(client) = self.client.take() else {
            self.ctx.spawn(async move {
                work.await;
            });
            return;
        };
        client.left();
        let ctx = Arc::clone(&self.ctx);
        self.ctx.spawn(async move {
            let Ok(slot) = ctx.drains.try_acquire() else { return };
            let done = tokio::select! {
                done = tokio::time::timeout(ctx.config.abort_drain, work) => done.ok(),
                () = ctx.stop.cancelled() => None,
            };
            // A stream that nobody takes is drained as soon as it is dropped: on this slot.
            drop(slot);
            drop(done);
        });
    }
}
