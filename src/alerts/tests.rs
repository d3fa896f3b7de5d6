//! Two processes that look at one store.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::*;
use crate::store::Grant;
use crate::store::embedded::{Embedded, Options};

/// A receiver that takes everything, and how often it was called.
async fn receiver() -> (String, watch::Receiver<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let (count, counted) = watch::channel(0);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut seen = Vec::new();
            let mut part = [0; 4096];
            while !seen.ends_with(b"}") {
                let length = stream.read(&mut part).await.unwrap();
                assert!(length > 0, "the document ends");
                seen.extend_from_slice(&part[..length]);
            }
            count.send_modify(|count| *count += 1);
            let answer = b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n";
            stream.write_all(answer).await.unwrap();
        }
    });
    (url, counted)
}

#[tokio::test]
async fn of_several_processes_that_see_a_crossing_one_tells_it() {
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("farebox.db");
    let store: Arc<dyn Store> = Embedded::open(&path, Options::default()).unwrap();
    let config = Config { alert_private_addresses: true, ..Config::default() };
    let both = [(), ()].map(|()| Arc::new(Alerts::new(&config, Arc::clone(&store))));
    let closing = CancellationToken::new();
    for alerts in &both {
        tokio::spawn(Arc::clone(alerts).run(closing.clone()));
    }
    let (url, mut counted) = receiver().await;
    for n in 1..=8 {
        let account = AccountId(format!("a{n}").into());
        store.create_account(account.clone(), "a".into()).await.unwrap();
        let scope = Scope::Account(account.clone());
        let low_balance = Some("5".parse().unwrap());
        let rules = Rules { low_balance, webhook: Some(url.clone()), ..Rules::default() };
        both[0].set(&scope, rules, false).await.unwrap();
        let grant = Grant {
            account: account.clone(),
            kind: Kind::Topup,
            amount: "1".parse().unwrap(),
            expires: None,
            note: String::new(),
            id: format!("g{n}"),
        };
        store.grant(grant).await.unwrap();
        both.iter().for_each(|alerts| alerts.touch(&account));
    }
    counted.wait_for(|count| *count >= 8).await.unwrap();
    // Both look once more at each: a test is delivered by a look, after it has judged.
    for n in 1..=8 {
        let account = AccountId(format!("a{n}").into());
        both[1].test(&Scope::Account(account.clone())).await.unwrap();
        both.iter().for_each(|alerts| alerts.touch(&account));
    }
    counted.wait_for(|count| *count >= 16).await.unwrap();
    for n in 1..=8 {
        let kept = both[0].kept(&Scope::Account(AccountId(format!("a{n}").into()))).await.unwrap();
        assert_eq!(kept.deliveries.len(), 2, "{kept:?}");
    }
    closing.cancel();
    store.close().await.unwrap();
    assert_eq!(*counted.borrow(), 16);
}
