//! The command line, as people and scripts use it: what it prints, and its exit codes.

use crate::support::proxy::Proxy;
use crate::support::upstream::Upstream;

#[tokio::test]
async fn a_server_that_is_idle_ends_well_when_it_is_told_to() {
    let upstream = Upstream::start().await;
    let mut proxy = Proxy::before(&upstream).await;
    assert!(proxy.terminate().await.success(), "{}", proxy.output());
}
