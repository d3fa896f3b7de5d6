//! What must hold in any account, whatever happened to it.

use tokio::sync::mpsc;

use super::*;
use crate::store::audit::{Event, audit};
use names::Name;

/// Audits every account, and looks at what only this store keeps: what runs, and the order in
/// which lots burn.
pub(super) async fn assert_sound(store: &Arc<Redis>) {
    assert_audited(&(store.clone() as Arc<dyn Store>)).await;
    let accounts = store.accounts(Page { cursor: None, limit: 500 }).await.unwrap().data;
    for account in accounts {
        assert_sound_lists(store, &account.id).await;
    }
}

/// Audits every account of any store.
pub(super) async fn assert_audited(store: &Arc<dyn Store>) {
    let (sender, mut events) = mpsc::channel(1000);
    let audited = tokio::spawn(audit(store.clone(), None, sender));
    let mut last = None;
    while let Some(event) = events.recv().await {
        assert!(!matches!(event, Event::Violation(_) | Event::Failed { .. }), "{event:?}");
        last = Some(event);
    }
    audited.await.unwrap();
    let Some(Event::Done(tally)) = last else { panic!("the audit did not end: {last:?}") };
    let accounts = store.accounts(Page { cursor: None, limit: 500 }).await.unwrap().data;
    assert_eq!(tally.accounts, accounts.len() as u64);
}

async fn assert_sound_lists(store: &Redis, id: &AccountId) {
    let Redis { shared } = store;
    let ask = async |name, verb: &str, rest: &[&str]| {
        let mut cmd = ::redis::cmd(verb);
        cmd.arg(shared.names.of(id, name)).arg(rest);
        let answer = shared.link.quick(&cmd).await.unwrap();
        Reply::of(answer).unwrap().map(|value| reply::text(value).unwrap()).collect::<Vec<_>>()
    };
    let at = |packed: &String, n| packed.split(' ').nth(n).unwrap().parse::<i64>().unwrap();

    let flights = ask(Name::Flights, "HVALS", &[]).await;
    let places = ask(Name::Places, "ZRANGE", &["0", "-1"]).await;
    let running = ask(Name::Running, "HVALS", &[]).await;
    assert_eq!(places.len(), flights.len());
    let running_of_keys: i64 = running.iter().map(|packed| at(packed, 0)).sum();
    let held_of_keys: i64 = running.iter().map(|packed| at(packed, 1)).sum();
    let held: i64 = flights.iter().map(|packed| at(packed, 0)).sum();
    assert_eq!((running_of_keys, held_of_keys), (flights.len() as i64, held));

    // Exactly the lots that are not empty, soonest expiry first, then given before bought.
    let mut expected = Vec::new();
    let lots = ask(Name::Lots, "HGETALL", &[]).await;
    for pair in lots.chunks(2) {
        let lot = rows::lot(&format!("{} {}", pair[0], pair[1])).unwrap().lot;
        if lot.remaining.is_positive() {
            expected.push((lot.expires_at, lot.class, lot.number));
        }
    }
    expected.sort_unstable();
    let order = ask(Name::LotOrder, "ZRANGE", &["0", "-1"]).await;
    let order: Vec<u64> = order.iter().map(|name| name[2..].parse().unwrap()).collect();
    assert_eq!(order, expected.iter().map(|(.., number)| *number).collect::<Vec<_>>());
}
