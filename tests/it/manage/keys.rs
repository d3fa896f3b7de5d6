//! A key's limits and its replacement, on the pages.

use serde_json::{Value, json};

use super::{Plain, picture, start, value_of};
use crate::pages::signed_in;
use crate::support::account::Account;
use crate::support::browser::Browser;
use crate::support::http::{Call, Reply};
use crate::support::proxy::Proxy;
use crate::support::script::Script;
use crate::support::until;
use crate::support::upstream::Upstream;

/// The only key of the page's list that has this name.
async fn open_key(browser: &Browser, proxy: &Proxy, name: &str) {
    browser.goto(&format!("{}/billing/default/keys", proxy.admin_url())).await;
    let open = "[...document.querySelectorAll('tbody th a')]
        .find((link) => link.textContent === arguments[0]).click()";
    browser.eval(open, name).await;
    browser.until_text("h1", |text| text.contains(name)).await;
}

/// Asks the control plane to try a key out.
async fn test_by_api(proxy: &Proxy, key: &str, body: &Value) -> Reply {
    let url = format!("{}/admin/v1/accounts/default/keys/{key}/test", proxy.admin_url());
    Call::post(url, body).bearer(proxy.admin_key()).reply().await
}

/// All keys, as the control plane tells of them.
async fn keys_of(proxy: &Proxy) -> Value {
    let call = Call::get(format!("{}/admin/v1/accounts/default/keys", proxy.admin_url()));
    call.bearer(proxy.admin_key()).reply().await.expect(200).json()
}

#[tokio::test]
async fn caps_of_a_key_are_set_seen_and_changed_on_its_page() {
    let upstream = Upstream::start().await;
    let proxy = start(&upstream).await;
    let browser = signed_in(&proxy, "default").await;
    browser.goto(&format!("{}/billing/default/keys", proxy.admin_url())).await;
    browser.find("#key-name").await.send_keys("capped").await.unwrap();
    browser.find(".limits summary").await.click().await.unwrap();
    browser.find("#key-daily").await.send_keys("5").await.unwrap();
    browser.find("#key-total").await.send_keys("0.000001").await.unwrap();
    browser.find("#key-max_in_flight").await.send_keys("2\n").await.unwrap();
    let secret = browser.text("#secret").await;
    let account = proxy.default_account().with_key(&secret);
    account.chat("Hi").await.expect(200);
    account.settled().await;
    // The cap in all is reached by what the first one cost.
    account.chat("Hi").await.expect(402);

    let spent = account.last_usage().await.charge.to_string();
    open_key(&browser, &proxy, "capped").await;
    let used = "return [...document.querySelectorAll('#key-use .use')].map((use) =>
        [use.querySelector('.use-what').textContent, use.className,
        ...[...use.querySelectorAll('data')].map((data) => data.value)])";
    assert_eq!(
        browser.eval(used, json!(null)).await,
        json!([
            ["Today", "use good", spent, "5"],
            ["In all", "use bad", spent, "0.000001"],
            ["At once", "use good"],
        ])
    );
    picture(&browser, "key").await;
    browser.find("#key-total").await.clear().await.unwrap();
    browser.find("#key-daily").await.clear().await.unwrap();
    browser.find("#key-daily").await.send_keys("7\n").await.unwrap();
    browser.until_text("#main [role=status]", |text| text.contains("Saved")).await;
    account.chat("Hi").await.expect(200);

    // The API says what the page does.
    let keys = keys_of(&proxy).await;
    let keys = keys["data"].as_array().unwrap();
    let key = keys.iter().find(|key| key["name"] == "capped").unwrap();
    assert_eq!(key["limits"], json!({ "daily": "7", "max_in_flight": 2 }));
    browser.goto(&format!("{}/billing/default/keys", proxy.admin_url())).await;
    browser.find("tbody .use").await;
    picture(&browser, "keys-capped").await;
}

#[tokio::test]
async fn a_key_that_is_replaced_stays_valid_for_the_overlap_and_the_new_one_is_like_it() {
    let upstream = Upstream::start().await;
    let proxy = start(&upstream).await;
    let account = proxy.default_account();
    let about = json!({ "name": "agent", "tag": "cron", "models": ["test"],
        "limits": { "monthly": "50", "zone": "Europe/Vilnius" } });
    let old = account.with_key(&account.new_key(&about).await);
    let browser = signed_in(&proxy, "default").await;
    open_key(&browser, &proxy, "agent").await;
    browser.tab_to("form[action$='/rotate'] button").await;
    browser.press("\n").await;
    let new = account.with_key(&browser.text("#secret").await);
    browser.until_text("#main [role=status]", |text| text.contains("is valid until")).await;
    picture(&browser, "key-rotated").await;
    for key in [&old, &new] {
        key.chat("Hi").await.expect(200);
    }
    let keys = keys_of(&proxy).await;
    let of = |key: &Account| {
        let found = keys["data"].as_array().unwrap();
        found.iter().find(|row| key.key.ends_with(row["last4"].as_str().unwrap())).unwrap().clone()
    };
    let (was, is) = (of(&old), of(&new));
    for same in ["name", "tag", "models", "limits", "rejection"] {
        assert_eq!(was[same], is[same], "{same}");
    }
    assert!(was["expires_at"].is_string() && is["expires_at"].is_null(), "{was} {is}");

    // Without an overlap it is refused at once, and a second click makes nothing more.
    let plain = Plain::enter(&proxy).await;
    let here = format!("/billing/default/keys/{}", is["id"].as_str().unwrap());
    let page = plain.get(&here).await.expect(200).text();
    let form = format!("id={}&overlap=0s", value_of(&page, "id"));
    plain.post(&format!("{here}/rotate"), &form).await.expect(200);
    new.chat("Hi").await.expect(401);
    plain.post(&format!("{here}/rotate"), &form).await.expect(404);
    let count = keys_of(&proxy).await["data"].as_array().unwrap().len();
    assert_eq!(count, keys["data"].as_array().unwrap().len() + 1);
}

#[tokio::test]
async fn a_new_key_is_tried_out_where_it_is_shown_and_the_answer_is_debited() {
    let upstream = Upstream::start().await;
    let proxy = start(&upstream).await;
    let browser = signed_in(&proxy, "default").await;
    browser.goto(&format!("{}/billing/default/keys", proxy.admin_url())).await;
    browser.find("#key-name").await.send_keys("new\n").await.unwrap();
    let secret = browser.text("#secret").await;

    // Listing models costs nothing, and the key is still there to be copied.
    browser.tab_to("#try button[value=models]").await;
    browser.press("\n").await;
    let said = browser.text("#try [role=status]").await;
    assert!(said.contains("It works.") && said.contains("may call"), "{said}");
    assert_eq!(browser.text("#secret").await, secret);
    let account = proxy.default_account().with_key(&secret);
    let before = account.balance().await;

    browser.tab_to("#try button[value=ask]").await;
    browser.press("\n").await;
    let said = browser.until_text("#try [role=status]", |text| text.contains("answered")).await;
    account.settled().await;
    let spent = before - account.balance().await;
    assert_eq!(account.last_usage().await.charge, spent);
    let shown = browser.find("#try [role=status] data").await.attr("value").await.unwrap();
    assert_eq!(shown, Some(spent.to_string()), "{said}");
    // The debit changed the account: the page follows it, though a form answered with it.
    let spent = account.balance().await.to_string();
    let followed = "return [document.querySelector('.glance-balance data').value,
        document.getElementById('age').className.includes('off')]";
    until("the balance on the page", || async {
        (browser.eval(followed, json!(null)).await == json!([spent, false])).then_some(())
    })
    .await;
    picture(&browser, "key-tested").await;
}

#[tokio::test]
async fn a_key_is_tried_out_on_its_page_by_its_own_secret_alone() {
    let upstream = Upstream::start().await;
    let proxy = start(&upstream).await;
    let account = proxy.default_account();
    let secret = account.new_key(&json!({ "name": "agent" })).await;
    let other = account.new_key(&json!({ "name": "other" })).await;
    let browser = signed_in(&proxy, "default").await;
    open_key(&browser, &proxy, "agent").await;
    browser.find("#secret-typed").await.send_keys(&secret).await.unwrap();
    browser.find("#try button[value=models]").await.click().await.unwrap();
    browser.until_text("#try [role=status]", |text| text.contains("It works.")).await;
    let page = browser.client.source().await.unwrap();
    assert!(!page.contains(&secret), "what was typed is not shown again");

    // Another's secret, or any text, goes nowhere.
    let keys = keys_of(&proxy).await;
    let named = |name: &str| {
        let keys = keys["data"].as_array().unwrap();
        keys.iter().find(|key| key["name"] == name).unwrap()["id"].as_str().unwrap().to_owned()
    };
    for wrong in [other.as_str(), "fbx_live_x", "", proxy.admin_key()] {
        let refused = test_by_api(&proxy, &named("agent"), &json!({ "key": wrong })).await;
        assert_eq!((refused.status, refused.json()["error"]["param"].as_str()), (400, Some("key")));
    }
    assert_eq!(test_by_api(&proxy, "key_none", &json!({ "key": secret })).await.status, 404);

    // A model that does not answer is told of, and costs nothing.
    upstream.for_model("test", Script::error(500, "server_error", "no"));
    let body = json!({ "key": secret, "model": "test" });
    let told = test_by_api(&proxy, &named("agent"), &body).await.expect(200).json();
    assert_eq!((&told["works"], &told["status"]), (&json!(false), &json!(502)), "{told}");
    assert!(told["message"].as_str().unwrap().starts_with("It was refused with status 502: "));

    // Without credits the models are listed, and an answer is refused in our words.
    account.grant("adjust", "-100", "gone", "gone").await.expect(201);
    let told = test_by_api(&proxy, &named("agent"), &json!({ "key": secret })).await.json();
    assert_eq!(told["works"], true, "{told}");
    let told = test_by_api(&proxy, &named("agent"), &body).await.json();
    assert_eq!((&told["works"], &told["status"]), (&json!(false), &json!(402)), "{told}");
}
