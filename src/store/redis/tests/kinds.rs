//! Every kind of server: a cluster, one behind sentinels, one with TLS and a user; and those
//! that must not be trusted.

use std::process::Command;

use super::server::Cluster;
use super::*;

const FIT: &[&str] =
    &["--appendonly", "yes", "--appendfsync", "no", "--maxmemory-policy", "noeviction"];

fn options(url: &str) -> Options {
    Options {
        connect_timeout: Duration::from_secs(20),
        command_timeout: Duration::from_secs(20),
        ..Options::of(url)
    }
}

/// The life of an account, and everything that can be asked of it.
async fn live(store: &Redis, id: &str) {
    let account = AccountId(id.into());
    store.create_account(account.clone(), id.into()).await.unwrap();
    let key = Key { account: account.clone(), ..key_1() };
    let hash = KeyHash::of(id);
    let key = store.create_key(key, hash).await.unwrap();
    assert_eq!(store.key(&hash).await.unwrap().as_deref(), Some(&key));
    let own = |grant: Grant| Grant { account: account.clone(), ..grant };
    store.grant(own(granting(Kind::Topup, "pay", "5"))).await.unwrap();
    store.grant(own(granting(Kind::Promo, "gift", "1"))).await.unwrap();
    let charged =
        |id: &str, charge| Settlement { account: account.clone(), ..settlement(id, charge) };
    store.admit(&key, request("one"), strict("2")).await.unwrap().unwrap();
    assert_eq!(store.account(&account).await.unwrap().held, credits("2"));
    for duplicate in [false, true] {
        let settled = store.settle(charged("one", "1.5")).await.unwrap();
        assert_eq!(settled, Settled { balance: Some(credits("4.5")), duplicate });
    }
    store.admit(&key, request("two"), LENIENT).await.unwrap().unwrap();
    store.release(&account, "two");
    let undone = |undo: Undo| Undo { account: account.clone(), ..undo };
    store.refund(undone(undo("one", Some("0.5"), "back"))).await.unwrap();
    store.reverse(undone(undo("pay", Some("1"), "bank"))).await.unwrap();
    store.own(&account, "resp_1").await.unwrap();
    assert!(store.owns(&account, "resp_1").await.unwrap());
    let change = KeyChange { name: Some("New".into()), ..KeyChange::default() };
    store.change_key(&account, &key.id, change).await.unwrap();
    store.key_use(&account, &key.id).await.unwrap();
    let put = Put { name: "a".into(), body: Some("1".into()), replaces: None, expires_at: None };
    for scope in [Scope::Installation, Scope::Account(account.clone())] {
        let put = Put { name: format!("{id}/a"), ..put.clone() };
        store.put_document(&scope, put).await.unwrap();
        assert!(store.document(&scope, &format!("{id}/a")).await.unwrap().is_some());
    }
    assert_eq!(store.lots(&account, LotFilter::All, ALL).await.unwrap().data.len(), 2);
    let entries = store.entries(&account, EntryFilter::default(), ALL).await.unwrap().data;
    assert_eq!(entries.len(), 5);
    let usage = store.usage(&account, UsageFilter::default(), ALL).await.unwrap().data;
    assert_eq!(usage.len(), 1);
    let utc = jiff::tz::TimeZone::UTC;
    let sums = store.summary(&account, UsageFilter::default(), Group::Key, utc).await.unwrap();
    assert_eq!(sums[0].charge, credits("1.5"));
    store.revoke_key(&account, &key.id).await.unwrap();
    let refused = store.admit(&key, request("three"), LENIENT).await.unwrap();
    assert_eq!(refused, Err(Refused::KeyEnded { revoked: true }));
    let closed = store.close_account(&account, "end".into()).await.unwrap();
    assert_eq!((closed.status, closed.balance), (Status::Closed, Credits::ZERO));
}

/// Accounts lie in all slots, and every operation touches one slot: `CROSSSLOT` is an error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_operation_stays_in_one_slot_of_a_cluster() {
    let cluster = Cluster::start(FIT);
    let store = Redis::open(options(&cluster.url())).await.unwrap();
    for n in 0..12 {
        live(&store, &format!("a{n}")).await;
    }
    let busy = |node: &&Server| node.run(&["DBSIZE"]).unwrap().text() != "0";
    assert!(cluster.nodes.iter().take(3).all(|node| busy(&node)), "some slots are not used");
    assert!(!store.epoch().await.unwrap().is_empty());
    let across = cluster.nodes[0].run(&["MGET", "{a}", "{b}"]);
    assert!(across.unwrap_err().contains("CROSSSLOT"));
    sound::assert_sound(&store).await;
    let status = store.status().await.unwrap();
    assert_eq!((status.accounts, status.server.unwrap().masters), (12, 3));

    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::copy(&mut store.backup().await.unwrap(), &mut file).unwrap();
    let back = Options { prefix: "back".into(), ..options(&cluster.url()) };
    assert_eq!(copy::restore(file.path(), back).await.unwrap().accounts, 12);
    for n in 0..12 {
        let account = AccountId(format!("a{n}").into());
        store.trim(&account, Millis::MAX).await.unwrap();
        let left = store.entries(&account, EntryFilter::default(), ALL).await.unwrap();
        assert_eq!(left.data, []);
    }
    sound::assert_sound(&store).await;
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_sentinels_name_takes_over() {
    let mut first = Server::start(FIT);
    let second = first.replica(FIT);
    let files = tempfile::tempdir().unwrap();
    let config = files.path().join("sentinel.conf");
    std::fs::write(&config, "").unwrap();
    let sentinel = Server::start(&[&config.display().to_string(), "--sentinel"]);
    let port = first.port().to_string();
    sentinel.run(&["SENTINEL", "MONITOR", "main", "127.0.0.1", &port, "1"]).unwrap();
    for (setting, value) in [("down-after-milliseconds", "1000"), ("failover-timeout", "5000")] {
        sentinel.run(&["SENTINEL", "SET", "main", setting, value]).unwrap();
    }
    let url = format!("redis+sentinel://{}/main", sentinel.address());
    let store = Redis::open(options(&url)).await.unwrap();
    live(&store, "before").await;
    let epoch = store.epoch().await.unwrap();
    eventually("a sentinel that knows the replica", async || {
        let known = sentinel.run(&["SENTINEL", "REPLICAS", "main"]);
        known.is_ok_and(|known| format!("{known:?}").contains(&second.port().to_string()))
    })
    .await;
    second.in_step_with(&first);
    first.kill();
    eventually("the replica in its place", async || store.ready().await.is_ok()).await;
    assert_eq!(second.info("role").as_deref(), Some("master"));
    assert_ne!(store.epoch().await.unwrap(), epoch);
    live(&store, "after").await;
    sound::assert_sound(&store).await;
}

/// The files of a certificate authority, and of a server on the loopback address.
fn certificates(dir: &std::path::Path) {
    let run = |arguments: &str| {
        let mut openssl = Command::new("openssl");
        let done = openssl.args(arguments.split(' ')).current_dir(dir).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
    let fresh = "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    run(&format!("{fresh} -x509 -days 2 -subj /CN=authority -keyout ca.key -out ca.pem"));
    run(&format!("{fresh} -subj /CN=redis -keyout redis.key -out redis.csr"));
    let names = "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n";
    std::fs::write(dir.join("names"), names).unwrap();
    run("x509 -req -in redis.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names \
         -out redis.pem");
}

#[tokio::test]
async fn a_server_with_tls_and_a_user_is_used_by_its_own_authority_alone() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let file = |name: &str| dir.path().join(name).display().to_string();
    let tls = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = Server::start(
        &[
            FIT,
            &["--tls-port", &tls.to_string(), "--tls-auth-clients", "no"],
            &["--tls-cert-file", &file("redis.pem"), "--tls-key-file", &file("redis.key")],
            &["--tls-ca-cert-file", &file("ca.pem")],
        ]
        .concat(),
    );
    // What README says a user needs.
    let rights = "on >sesame ~fbx:* resetchannels +@all -@admin -@dangerous +info +role +wait \
                  +bgrewriteaof";
    let mut user = vec!["ACL", "SETUSER", "farebox"];
    user.extend(rights.split(' '));
    server.run(&user).unwrap();
    server.run(&["ACL", "SETUSER", "default", "off"]).unwrap();

    let url = format!("rediss://farebox@127.0.0.1:{tls}");
    let with = |password: &str, ca: bool| Options {
        password: Some(Secret::new(password)),
        ca_file: ca.then(|| dir.path().join("ca.pem")),
        ..options(&url)
    };
    let store = Redis::open(with("sesame", true)).await.unwrap();
    live(&store, "a").await;
    for (password, ca) in [("wrong", true), ("sesame", false)] {
        let refused = Redis::open(with(password, ca)).await;
        let Err(error) = refused else { panic!("opened with {password}, {ca}") };
        let text = format!("{error} {error:?}");
        assert!(text.contains("does not answer") && !text.contains(password), "{text}");
    }
}

#[tokio::test]
async fn a_unix_socket_is_as_good_as_a_port() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("redis.sock");
    let path = socket.display().to_string();
    let _server = Server::start(&[FIT, &["--unixsocket", &path]].concat());
    let store = Redis::open(options(&format!("redis+unix://{path}"))).await.unwrap();
    live(&store, "a").await;
}

#[tokio::test]
async fn a_server_that_may_lose_balances_is_refused_unless_one_insists() {
    let server = Server::start(&["--appendonly", "no", "--maxmemory-policy", "allkeys-lru"]);
    let Err(OpenError(why)) = Redis::open(options(&server.url())).await else { panic!("opened") };
    for said in ["appendonly yes", "maxmemory-policy noeviction", "redis_allow_unsafe"] {
        assert!(why.contains(said), "{why}");
    }
    let anyway = Options { allow_unsafe: true, ..options(&server.url()) };
    live(&Redis::open(anyway).await.unwrap(), "a").await;

    let primary = Server::start(FIT);
    let replica = primary.replica(FIT);
    let Err(OpenError(why)) = Redis::open(options(&replica.url())).await else { panic!("opened") };
    assert!(why.contains("replica"), "{why}");
}

/// A debit that no replica has yet is not acknowledged.
#[tokio::test]
async fn a_debit_waits_for_as_many_replicas_as_are_asked_for() {
    let primary = Server::start(FIT);
    let replica = primary.replica(FIT);
    let waits =
        Options { wait: 1, command_timeout: Duration::from_secs(5), ..options(&primary.url()) };
    let store = Redis::open(waits).await.unwrap();
    live(&store, "a").await;
    let account = AccountId("b".into());
    store.create_account(account.clone(), String::new()).await.unwrap();
    replica.pause();
    let debit = || Settlement { account: account.clone(), ..settlement("one", "0.3") };
    let refused = store.settle(debit()).await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    replica.resume();
    eventually("a replica that has it", async || match store.settle(debit()).await {
        Ok(settled) => {
            assert!(settled.duplicate, "it was carried out before");
            true
        }
        Err(error) => {
            assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
            false
        }
    })
    .await;
    replica.in_step_with(&primary);
    assert_eq!(store.account(&account).await.unwrap().balance, credits("-0.3"));
}

/// Nobody answers: that is waited for. What only a person can mend ends the start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_away_may_be_waited_for_but_not_one_that_refuses_us() {
    let mut server = Server::start(FIT);
    let url = server.url();
    let waiting = |url: &str| Options { may_be_away: true, ..options(url) };
    server.set("requirepass", "right");
    for url in [url.replace("redis://", "redis://:wrong@"), url.clone()] {
        let opened = Redis::open(waiting(&url)).await;
        let Err(error) = opened else { panic!("{url} is waited for") };
        assert!(error.to_string().contains("does not answer"), "{error}");
    }
    server.kill();
    assert!(Redis::open(options(&url)).await.is_err());
    let store = Redis::open(waiting(&url)).await.unwrap();
    let away = store.ready().await.unwrap_err().to_string();
    assert!(away.contains(&server.address()), "{away}");
    server.restart();
    eventually("it is there", async || store.ready().await.is_ok()).await;
    live(&store, "late").await;

    let cluster = Cluster::start(FIT);
    for node in &cluster.nodes {
        node.set("requirepass", "right");
    }
    assert!(Redis::open(waiting(&cluster.url())).await.is_err());
}
