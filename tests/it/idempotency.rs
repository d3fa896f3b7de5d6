//! Every change of money is booked once by its idempotency key, whatever happens between.

use serde_json::{Value, json};

use crate::support::credits;
use crate::support::http::{Call, Reply};
use crate::support::proxy::{Proxy, Setup};
use crate::support::upstream::Upstream;

/// Books something on an account.
async fn book(proxy: &Proxy, path: &str, id: &str, body: &Value) -> Reply {
    let url = format!("{}/admin/v1/accounts/{path}", proxy.admin_url());
    Call::post(url, body).bearer(proxy.admin_key()).header("idempotency-key", id).reply().await
}

async fn restart(proxy: &mut Proxy, how: usize) {
    if how == 0 {
        proxy.terminate().await;
    } else {
        proxy.kill().await;
    }
    proxy.restart().await;
}

#[tokio::test]
async fn every_change_of_money_is_booked_once_also_across_a_restart() {
    let upstream = Upstream::start().await;
    let setup = Setup::before(&upstream).env("FAREBOX_SYNCHRONOUS", "full");
    let mut proxy = setup.start().await;
    let account = proxy.default_account();
    account.chat("Hi").await.expect(200);
    account.settled().await;
    let request = account.last_usage().await.id;
    let ends = proxy.account_with(credits("3")).await.id;
    // What is booked, the same with other content, and on which account.
    let changes = [
        (
            "credits",
            json!({ "kind": "topup", "amount": "5", "note": "invoice" }),
            json!({ "kind": "topup", "amount": "6", "note": "invoice" }),
        ),
        (
            "credits",
            json!({ "kind": "promotional", "amount": "1", "expires": "30d" }),
            json!({ "kind": "promotional", "amount": "1", "expires": "31d" }),
        ),
        (
            "credits",
            json!({ "kind": "adjust", "amount": "-2", "note": "why" }),
            json!({ "kind": "adjust", "amount": "-2", "note": "another why" }),
        ),
        (
            "refunds",
            json!({ "request": request, "amount": "0.00001", "note": "cut" }),
            json!({ "request": request, "amount": "0.00002", "note": "cut" }),
        ),
        (
            "reversals",
            json!({ "payment": "change-0", "amount": "1", "note": "dispute" }),
            json!({ "payment": "change-0", "amount": "2", "note": "dispute" }),
        ),
    ];
    let mut first = Vec::new();
    for (n, (route, body, _)) in changes.iter().enumerate() {
        let reply = book(&proxy, &format!("default/{route}"), &format!("change-{n}"), body).await;
        first.push(reply.expect(201).json());
    }
    let closed = book(&proxy, &format!("{ends}/close"), "the end", &json!({})).await.expect(200);
    let balance = account.balance().await;
    for how in 0..3 {
        if how < 2 {
            restart(&mut proxy, how).await;
        }
        for (n, (route, body, other)) in changes.iter().enumerate() {
            let (path, id) = (format!("default/{route}"), format!("change-{n}"));
            let mut again = book(&proxy, &path, &id, body).await.expect(200).json();
            assert_eq!(again["duplicate"].take(), json!(true), "{path} {id}");
            again["duplicate"] = json!(false);
            assert_eq!(again, first[n], "{path}: not the first result");
            let refused = book(&proxy, &path, &id, other).await;
            assert_eq!(
                (refused.status, refused.json()["error"]["code"].clone()),
                (409, json!("conflict"))
            );
            // The key of one change names no other kind of change.
            let (elsewhere, content, _) = &changes[(n + 2) % changes.len()];
            let taken = book(&proxy, &format!("default/{elsewhere}"), &id, content).await;
            assert_eq!(taken.status, 409, "{elsewhere} {id}");
        }
        let again = book(&proxy, &format!("{ends}/close"), "the end", &json!({})).await.expect(200);
        assert_eq!(again.json(), closed.json());
        let taken = book(&proxy, "default/close", "change-0", &json!({})).await;
        assert_eq!(taken.status, 409);
        assert_eq!(account.balance().await, balance);
    }
    let missing = account.admin_call("/refunds", &changes[3].1).reply().await;
    assert_eq!(missing.json()["error"]["code"], "idempotency_key_missing");
    account.check_books().await;
}

#[tokio::test]
async fn the_command_line_says_the_key_that_it_made() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let run = async |args: &[&str]| {
        let done = proxy.cli(args).await;
        (
            done.status.code().unwrap(),
            String::from_utf8(done.stdout).unwrap() + &String::from_utf8(done.stderr).unwrap(),
        )
    };
    let add = ["credit", "add", "5", "--note", "x"];
    let (code, said) = run(&add).await;
    assert_eq!(code, 0, "{said}");
    let key = said.split_once("--idempotency-key ").expect("the key is said").1;
    let key = key.split_whitespace().next().unwrap();
    let (code, said) = run(&[&add[..], &["--idempotency-key", key]].concat()).await;
    assert!(code == 0 && said.contains("nothing changed now"), "{said}");
}
