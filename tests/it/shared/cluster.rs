//! Nodes of a cluster die, or hang, below a Farebox that serves.

use std::time::Duration;

use crate::support::load::Load;
use crate::support::proxy::{Proxy, Setup};
use crate::support::redis::{Cluster, DURABLE};
use crate::support::upstream::Upstream;
use crate::support::{figure, until};

use super::{
    CLIENTS, Tally, assert_only_unavailable, debits, on, readiness, under_load, varied_upstream,
    verify,
};

/// A Farebox on a cluster, on a machine that is busy.
fn on_cluster(cluster: &Cluster, upstream: &Upstream, wait: &str) -> Setup {
    on(&cluster.url(), upstream)
        .env("FAREBOX_REDIS_WAIT", wait)
        .env("FAREBOX_REDIS_COMMAND_TIMEOUT", "1s")
        .env("FAREBOX_REDIS_LEASE", "30s")
}

/// Waits until a request is served.
async fn served(proxy: &Proxy) {
    until("a request that is served", || async {
        (proxy.default_account().chat("Hi").await.status == 200).then_some(())
    })
    .await;
}

/// Its replica takes the place of the primary that has the account; then the other way round.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_is_replaced_and_nothing_is_lost_and_nothing_is_paid_twice() {
    for wait in ["0", "1"] {
        let failovers = figure(1, 6);
        let upstream = varied_upstream().await;
        let mut cluster = Cluster::start(DURABLE);
        let (mut primary, mut replica) = cluster.of("{default}");
        let proxy = on_cluster(&cluster, &upstream, wait).start().await;
        served(&proxy).await;
        let mut seen = Vec::new();
        for round in 0..failovers {
            let name = format!("wait {wait}, round {round}");
            seen.extend(
                under_load(&proxy, &name, async || {
                    cluster.nodes[primary].kill();
                    readiness(&proxy, false).await;
                    cluster.is_primary(replica);
                    cluster.nodes[primary].restart();
                    cluster.nodes[primary].is_linked();
                })
                .await,
            );
            (primary, replica) = (replica, primary);
        }
        assert_only_unavailable(&seen);
        let tally = Tally::of(&proxy, &upstream, &seen).await;
        tally.print(&format!("{failovers} failovers of a cluster's node, redis_wait {wait}"));
    }
}

/// Of some slots neither the primary nor its replica is there: the cluster says CLUSTERDOWN.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_cluster_is_down_nothing_is_admitted_and_then_work_resumes() {
    let upstream = varied_upstream().await;
    let mut cluster = Cluster::start(DURABLE);
    let (primary, _) = cluster.of("{default}");
    let proxy = on_cluster(&cluster, &upstream, "0").start().await;
    served(&proxy).await;
    let mut seen = Vec::new();
    // Other slots than the account's, whose node is there all the while; then its own.
    for gone in [(primary + 1) % 3, primary] {
        let left = (gone + 1) % 3;
        seen.extend(
            under_load(&proxy, &format!("without {gone}"), async || {
                cluster.nodes[gone].kill();
                cluster.nodes[gone + 3].kill();
                until("a cluster that is down", || async {
                    let asked = cluster.nodes[left].run(&["GET", "{a}"]);
                    asked.is_err_and(|error| error.starts_with("CLUSTERDOWN")).then_some(())
                })
                .await;
                readiness(&proxy, false).await;
                let refused = proxy.default_account().chat("Hi").await;
                assert_eq!(
                    (refused.status, refused.code().as_str()),
                    (503, "ledger_unavailable"),
                    "{refused:?}"
                );
                cluster.nodes[gone].restart();
                cluster.nodes[gone + 3].restart();
            })
            .await,
        );
    }
    assert_only_unavailable(&seen);
    Tally::of(&proxy, &upstream, &seen).await.print("a cluster was down, twice");
}

/// With `redis_wait`, a debit that the replica of its node has not taken is not acknowledged: it
/// is in the journal, and nothing is admitted until it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_of_a_cluster_that_hangs_keeps_debits_pending_and_none_is_lost() {
    let upstream = varied_upstream().await;
    let cluster = Cluster::start(DURABLE);
    let (_, replica) = cluster.of("{default}");
    let proxy = on_cluster(&cluster, &upstream, "1").start().await;
    served(&proxy).await;
    let load = Load::steady(&proxy.default_account(), "hangs", CLIENTS);
    tokio::time::sleep(Duration::from_millis(200)).await;
    cluster.nodes[replica].pause();
    readiness(&proxy, false).await;
    cluster.nodes[replica].resume();
    readiness(&proxy, true).await;
    let seen = load.end().await;
    assert_only_unavailable(&seen);
    let tally = Tally::of(&proxy, &upstream, &seen).await;
    tally.print("a replica of a cluster hung, redis_wait 1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn started_while_a_cluster_is_down_it_waits_and_serves_once_it_is_whole() {
    let upstream = varied_upstream().await;
    let mut cluster = Cluster::start(DURABLE);
    let (primary, replica) = cluster.of("{default}");
    cluster.nodes[primary].kill();
    cluster.nodes[replica].kill();
    let left = (primary + 1) % 3;
    until("a cluster that is down", || async {
        let asked = cluster.nodes[left].run(&["GET", "{a}"]);
        asked.is_err_and(|error| error.starts_with("CLUSTERDOWN")).then_some(())
    })
    .await;
    let proxy = on_cluster(&cluster, &upstream, "0").start().await;
    assert_eq!(proxy.readyz().await.status, 503);
    cluster.nodes[primary].restart();
    cluster.nodes[replica].restart();
    readiness(&proxy, true).await;
    served(&proxy).await;
    proxy.default_account().settled().await;
    assert_eq!(debits(&proxy.default_account()).await.len(), 1);
    verify(&proxy).await;
}
