//! Files that are taken out: complete, the same from everywhere, and tell when they were changed.

use std::process::Output;

use serde_json::Value;

use crate::support::credits;
use crate::support::http::Call;
use crate::support::proxy::Proxy;
use crate::support::upstream::Upstream;

async fn cli(proxy: &Proxy, args: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = proxy.cli(args).await;
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

#[tokio::test]
async fn an_exported_ledger_ends_at_the_balance_and_a_changed_file_is_found() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.default_account();
    for _ in 0..3 {
        account.chat("Hi").await.expect(200);
    }
    account.settled().await;
    let file = proxy.dir().join("ledger.csv");
    let path = file.to_str().unwrap();
    let (code, out, err) = cli(&proxy, &["ledger", "export", "--tz", "UTC", "-o", path]).await;
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert!(out.contains("4 rows") && out.contains("0 → 99.99958 credits"), "{out}");

    let meta = std::fs::read(proxy.dir().join("ledger.csv.meta.json")).unwrap();
    let meta: Value = serde_json::from_slice(&meta).unwrap();
    assert_eq!(meta["closing_balance"], "99.99958");
    assert_eq!(meta["sums"]["debit_ai"]["count"], 3);
    assert_eq!(credits("99.99958"), account.balance().await);

    // The same bytes from the control plane and on stdout, for the same range.
    let until = meta["until"].as_str().unwrap();
    let url =
        format!("{}/admin/v1/accounts/default/ledger/export?until={until}", proxy.admin_url());
    let reply = Call::get(url).bearer(proxy.admin_key()).reply().await.expect(200);
    let text = std::fs::read_to_string(&file).unwrap();
    assert_eq!(reply.text(), text);
    let (_, out, _) = cli(&proxy, &["ledger", "export", "--tz", "UTC", "--to", until]).await;
    assert_eq!(out, text);

    let (code, out, _) = cli(&proxy, &["ledger", "verify", "--export", path]).await;
    assert!(code == 0 && out.contains("as exported"), "{out}");
    std::fs::write(&file, text.replacen("99.99986", "99.99996", 1)).unwrap();
    let (code, _, err) = cli(&proxy, &["ledger", "verify", "--export", path]).await;
    assert!(code == 8 && err.contains("is not what was exported"), "{err}");
    std::fs::remove_file(&file).unwrap();
    assert_eq!(cli(&proxy, &["ledger", "verify", "--export", path]).await.0, 5);
}

#[tokio::test]
async fn exported_requests_are_those_that_were_asked_for() {
    let upstream = Upstream::start().await;
    let proxy = Proxy::before(&upstream).await;
    let account = proxy.default_account();
    account.chat("Hi").await.expect(200);
    let row = account.last_usage().await;
    account.settled().await;
    let lines = ["usage", "export", "--format", "jsonl"];
    let (_, out, _) = cli(&proxy, &lines).await;
    let line: Value = serde_json::from_str(out.trim()).unwrap();
    assert_eq!((&line["id"], &line["charge"]), (&row.id.into(), &row.charge.to_string().into()));
    for other in [["--model", "none"], ["--to", "2020-01-01"]] {
        let (code, out, err) = cli(&proxy, &[&lines[..], &other].concat()).await;
        assert_eq!((code, out.as_str()), (0, ""), "{other:?}: {err}");
    }
    let (code, _, err) = cli(&proxy, &["usage", "export", "--account", "nobody"]).await;
    assert!(code == 5 && err.contains("There is no account `nobody`"), "{err}");
}
