//! What the examples do with a store.

use std::time::Duration;

use super::*;

impl Bench {
    pub(super) async fn new() -> Self {
        let bench = Self::empty().await;
        bench.store.create_account(account(), "Default".into()).await.unwrap();
        bench.store.create_key(key_1(), KeyHash::of("key_1")).await.unwrap();
        bench
    }

    pub(super) async fn with(balance: &str) -> Self {
        let bench = Self::new().await;
        match balance.strip_prefix('-') {
            Some(debt) => drop(bench.settle("before", debt).await.unwrap()),
            None => drop(bench.top_up("before", balance).await.unwrap()),
        }
        bench
    }

    pub(super) fn set_clock(&self, now: Millis) {
        self.clock.store(now, Ordering::SeqCst);
    }

    pub(super) async fn balance(&self) -> String {
        self.store.account(&account()).await.unwrap().balance.to_string()
    }

    pub(super) async fn admit(&self, id: &str) -> Result<Admitted, Refused> {
        self.store.admit(&key_1(), request(id), LENIENT).await.unwrap()
    }

    pub(super) async fn settle(&self, id: &str, charge: &str) -> Result<Settled, StoreError> {
        self.store.settle(settlement(id, charge)).await
    }

    pub(super) async fn top_up(&self, id: &str, amount: &str) -> Result<Granted, StoreError> {
        self.grant(Kind::Topup, id, amount).await
    }

    pub(super) async fn grant(
        &self,
        kind: Kind,
        id: &str,
        amount: &str,
    ) -> Result<Granted, StoreError> {
        self.store.grant(granting(kind, id, amount)).await
    }

    /// Promotional credits that end after so long.
    pub(super) async fn promo(
        &self,
        id: &str,
        amount: &str,
        lasts: Millis,
    ) -> Result<Granted, StoreError> {
        let lasts = Duration::from_millis(lasts.try_into().unwrap());
        let grant = granting(Kind::Promo, id, amount);
        self.store.grant(Grant { expires: Some(Expiry::After(lasts)), ..grant }).await
    }

    pub(super) async fn entries(&self) -> Vec<Entry> {
        let filter = EntryFilter::default();
        self.store.entries(&account(), filter, ALL).await.unwrap().data
    }

    pub(super) async fn lots(&self, filter: LotFilter) -> Vec<LotRow> {
        self.store.lots(&account(), filter, ALL).await.unwrap().data
    }

    /// What each lot has left, by what granted it; in burn order, without empty ones.
    pub(super) async fn left(&self) -> Vec<(String, String)> {
        let lots = self.lots(LotFilter::Usable).await;
        lots.into_iter().map(|row| (row.source, row.lot.remaining.to_string())).collect()
    }

    pub(super) async fn usage(&self) -> Vec<UsageRow> {
        self.store.usage(&account(), UsageFilter::default(), ALL).await.unwrap().data
    }
}
