//! Documents change only from the version that their writer saw, and end when they expire.

use super::*;
use crate::store::{Document, Put, Scope};

fn put(name: &str, body: Option<&str>, replaces: Option<u64>) -> Put {
    Put { name: name.into(), body: body.map(Into::into), replaces, expires_at: None }
}

async fn read(bench: &Bench, scope: &Scope, name: &str) -> Option<String> {
    bench.store.document(scope, name).await.unwrap().map(|Document { body, .. }| body)
}

#[tokio::test]
async fn of_two_writers_that_saw_the_same_version_one_writes() {
    let bench = Bench::new().await;
    let scope = Scope::Account(account());
    let first = bench.store.put_document(&scope, put("a", Some("1"), None)).await.unwrap();
    let (one, other) = tokio::join!(
        bench.store.put_document(&scope, put("a", Some("2"), Some(first))),
        bench.store.put_document(&scope, put("a", Some("3"), Some(first))),
    );
    let second = one.unwrap();
    assert!(second > first);
    assert!(matches!(other, Err(StoreError::Conflict(_))));
    let again = bench.store.put_document(&scope, put("a", Some("4"), None)).await;
    assert!(matches!(again, Err(StoreError::Conflict(_))));
    assert_eq!(read(&bench, &scope, "a").await.as_deref(), Some("2"));
}

#[tokio::test]
async fn a_document_made_anew_does_not_have_a_version_of_the_one_before() {
    let bench = Bench::new().await;
    let scope = Scope::Installation;
    let first = bench.store.put_document(&scope, put("a", Some("1"), None)).await.unwrap();
    bench.set_clock(START + 1);
    bench.store.put_document(&scope, put("a", None, Some(first))).await.unwrap();
    assert_eq!(read(&bench, &scope, "a").await, None);
    bench.set_clock(START + 2);
    bench.store.put_document(&scope, put("a", Some("2"), None)).await.unwrap();
    let late = bench.store.put_document(&scope, put("a", Some("3"), Some(first))).await;
    assert!(matches!(late, Err(StoreError::Conflict(_))));
}

#[tokio::test]
async fn scopes_do_not_see_each_other_and_an_account_must_exist() {
    let bench = Bench::new().await;
    let (mine, all) = (Scope::Account(account()), Scope::Installation);
    bench.store.put_document(&mine, put("a", Some("mine"), None)).await.unwrap();
    assert_eq!(read(&bench, &all, "a").await, None);
    let nobody = Scope::Account(AccountId("nobody".into()));
    let refused = bench.store.put_document(&nobody, put("a", Some("1"), None)).await;
    assert!(matches!(refused, Err(StoreError::NotFound(_))));
}

#[tokio::test]
async fn an_expired_document_is_not_there_and_its_name_is_free() {
    let bench = Bench::new().await;
    let scope = Scope::Installation;
    let ends = Put { expires_at: Some(START + 10), ..put("a", Some("1"), None) };
    bench.store.put_document(&scope, ends).await.unwrap();
    let bench = bench.reopened().await;
    bench.set_clock(START + 9);
    assert_eq!(read(&bench, &scope, "a").await.as_deref(), Some("1"));
    bench.set_clock(START + 10);
    assert_eq!(read(&bench, &scope, "a").await, None);
    bench.store.put_document(&scope, put("a", Some("3"), None)).await.unwrap();
    assert_eq!(read(&bench, &scope, "a").await.as_deref(), Some("3"));
}
