//! The connection to Redis, and the breaker in front of it.
//!
//! All commands share one connection. Each has a bounded time, and a failure is never repeated
//! here: whether a command ran that got no answer is unknown, and only who sent it knows how
//! to ask again. A connection that is lost, a server that is no master any more or is not
//! ready, and several commands in a row that got no answer in time open the breaker: from then
//! on every command fails at once, while one task connects again (to whom the sentinels name
//! now) and writes a probe. Only when that succeeds do commands pass again.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{
    MultipleNodeRoutingInfo, ResponsePolicy, Route, RoutingInfo, SingleNodeRoutingInfo, SlotAddr,
};
use redis::{AsyncConnectionConfig, Cmd, ErrorKind, RedisError, ServerErrorKind, Value};
use tokio::sync::{Mutex, Notify};
use tokio::time::timeout;

use super::OpenError;
use super::address::Connector;
use super::check::{Unready, Vet};
use super::reply::{self, Reply};
use super::script::Call;
use crate::store::StoreError;

/// Commands without an answer, one after another, that open the breaker.
const FAILURES: u32 = 5;
/// The first wait before connecting again; it doubles up to the last.
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(1);

/// How long to wait for what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    /// A connection.
    pub connect: Duration,
    /// An answer that a request waits for.
    pub command: Duration,
}

impl Timeouts {
    /// Pages and sums are larger, and money must not be sent again while it is only slow.
    pub(super) fn patient(&self) -> Duration {
        4 * self.command
    }
}

/// Why a command has no answer. Whether it ran is unknown.
#[derive(Clone, Debug)]
pub(super) struct Away(pub String);

impl From<Away> for StoreError {
    fn from(Away(why): Away) -> Self {
        Self::Unavailable(why)
    }
}

/// A connection, and where it leads: money may have one of its own, on which it waits for
/// replicas.
#[derive(Clone)]
pub(super) enum Conn {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Conn {
    async fn ask(&mut self, cmd: &Cmd) -> Result<Value, RedisError> {
        match self {
            Self::Single(conn) => conn.req_packed_command(cmd).await,
            Self::Cluster(conn) => conn.req_packed_command(cmd).await,
        }?
        .extract_error()
    }
}

#[derive(Clone)]
struct Conns {
    quick: Conn,
    money: Conn,
}

/// The link to a Redis.
pub(super) struct Link {
    connector: Mutex<Connector>,
    timeouts: Timeouts,
    /// Replicas that must have a debit before it is acknowledged.
    replicas: u32,
    probe: String,
    state: ArcSwap<State>,
    failures: AtomicU32,
    lost: Notify,
    is_closed: AtomicBool,
    vet: Vet,
    /// Whether the server was found fit, once.
    is_vetted: AtomicBool,
}

enum State {
    Up(Conns),
    Down(String),
}

impl Link {
    /// Connects, and looks whether the server is fit. One that is away is waited for, if it
    /// may be; then it is looked at when it comes.
    ///
    /// # Errors
    ///
    /// [`OpenError`], when nobody answers there, or not as whom we call, or it is unfit.
    pub(super) async fn open(
        vet: Vet,
        timeouts: Timeouts,
        replicas: u32,
        probe: String,
        may_be_away: bool,
    ) -> Result<Arc<Self>, OpenError> {
        let connector = vet.address.connector((timeouts.connect, timeouts.patient()))?;
        let link = Arc::new(Self {
            connector: Mutex::new(connector),
            timeouts,
            replicas,
            probe,
            state: ArcSwap::from_pointee(State::Down("it was never connected".into())),
            failures: AtomicU32::new(0),
            lost: Notify::new(),
            is_closed: AtomicBool::new(false),
            vet,
            is_vetted: AtomicBool::new(false),
        });
        match link.connect_fit().await {
            Ok(conns) => link.state.store(Arc::new(State::Up(conns))),
            Err(Unready::Away(why)) if may_be_away => {
                tracing::error!("{why}; nothing is admitted until it is there");
                link.state.store(Arc::new(State::Down(why)));
                link.lost.notify_one();
            }
            Err(Unready::Away(why)) => {
                return Err(OpenError(format!(
                    "{why}: start it, or correct its address, user and password"
                )));
            }
            Err(Unready::Unfit(error)) => return Err(error),
        }
        tokio::spawn(keep(Arc::downgrade(&link)));
        Ok(link)
    }

    /// A connection to a server that was found fit, now or before.
    async fn connect_fit(&self) -> Result<Conns, Unready> {
        let address = &self.vet.address;
        let mut conns = self.connect().await.map_err(|error| {
            let why = format!("the store {address} does not answer ({error})");
            match may_come(&error) {
                true => Unready::Away(why),
                false => {
                    let remedy = "start it, or correct its address, user and password";
                    Unready::Unfit(OpenError(format!("{why}: {remedy}")))
                }
            }
        })?;
        if !self.is_vetted.load(Ordering::Relaxed) {
            self.vet.look(self, &mut conns.quick).await?;
            self.is_vetted.store(true, Ordering::Relaxed);
        }
        self.begin_files(&mut conns.quick).await?;
        Ok(conns)
    }

    /// What is asked of the server.
    pub(super) fn vet(&self) -> &Vet {
        &self.vet
    }

    /// The result of a command that a request waits for.
    pub(super) async fn quick(&self, cmd: &Cmd) -> Result<Value, Away> {
        let mut conn = self.conns()?.quick;
        self.ask(&mut conn, cmd, self.timeouts.command).await.map_err(Failure::away)
    }

    /// The result of a command that may take longer.
    pub(super) async fn patient(&self, cmd: &Cmd) -> Result<Value, Away> {
        let mut conn = self.conns()?.quick;
        self.ask(&mut conn, cmd, self.timeouts.patient()).await.map_err(Failure::away)
    }

    /// The result of a script that a request waits for.
    pub(super) async fn run(&self, call: &Call<'_>) -> Result<Value, Away> {
        let conn = self.conns()?.quick;
        self.script(conn, call, self.timeouts.command).await
    }

    /// The result of a script that may take longer.
    pub(super) async fn patient_run(&self, call: &Call<'_>) -> Result<Value, Away> {
        let conn = self.conns()?.quick;
        self.script(conn, call, self.timeouts.patient()).await
    }

    /// The result of a script that moves money, once as many replicas have it as is asked for.
    pub(super) async fn commit(&self, call: &Call<'_>) -> Result<Value, Away> {
        let conn = self.conns()?.money;
        let value = self.script(conn.clone(), call, self.timeouts.patient()).await?;
        if self.replicas > 0 {
            self.wait(conn, call.key()).await?;
        }
        Ok(value)
    }

    async fn script(
        &self,
        mut conn: Conn,
        call: &Call<'_>,
        patience: Duration,
    ) -> Result<Value, Away> {
        match self.ask(&mut conn, &call.by_hash(), patience).await {
            Err(Failure::NoScript) => {
                self.ask(&mut conn, &call.by_text(), patience).await.map_err(Failure::away)
            }
            other => other.map_err(Failure::away),
        }
    }

    /// Waits until replicas have what was written on this connection.
    async fn wait(&self, mut conn: Conn, key: &str) -> Result<(), Away> {
        let mut cmd = redis::cmd("WAIT");
        cmd.arg(self.replicas).arg(self.timeouts.command.as_millis() as u64);
        let patience = self.timeouts.patient();
        let reached = match &mut conn {
            Conn::Single(_) => self.ask(&mut conn, &cmd, patience).await,
            Conn::Cluster(cluster) => {
                let master = Route::with_key(key, SlotAddr::Master);
                let routing = RoutingInfo::SingleNode(SingleNodeRoutingInfo::SpecificNode(master));
                let answer = timeout(patience, cluster.route_command(cmd, routing)).await;
                self.judge(answer, patience)
            }
        };
        match reached.map_err(Failure::away)? {
            Value::Int(reached) if reached >= i64::from(self.replicas) => Ok(()),
            _ => Err(Away(format!("fewer than {} replicas have what was written", self.replicas))),
        }
    }

    /// The answer of each master to a question about itself.
    pub(super) async fn of_each_master(&self, cmd: &Cmd) -> Result<Vec<Value>, Away> {
        let mut conn = self.conns()?.quick;
        self.ask_each_master(&mut conn, cmd).await
    }

    /// As [`Link::of_each_master`], on a connection that is not in use yet.
    pub(super) async fn ask_each_master(
        &self,
        conn: &mut Conn,
        cmd: &Cmd,
    ) -> Result<Vec<Value>, Away> {
        let patience = self.timeouts.patient();
        let Conn::Cluster(cluster) = conn else {
            return Ok(vec![self.ask_patiently(conn, cmd).await?]);
        };
        let masters = MultipleNodeRoutingInfo::AllMasters;
        let routing = RoutingInfo::MultiNode((masters, Some(ResponsePolicy::Special)));
        let answer = timeout(patience, cluster.route_command(cmd.clone(), routing)).await;
        match self.judge(answer, patience).map_err(Failure::away)? {
            Value::Map(answers) => Ok(answers.into_iter().map(|(_, answer)| answer).collect()),
            other => Ok(vec![other]),
        }
    }

    /// As [`Link::patient`], on a connection that is not in use yet.
    pub(super) async fn ask_patiently(&self, conn: &mut Conn, cmd: &Cmd) -> Result<Value, Away> {
        self.ask(conn, cmd, self.timeouts.patient()).await.map_err(Failure::away)
    }

    /// All keys that match a pattern, of every master.
    pub(super) async fn keys_like(&self, pattern: &str) -> Result<Vec<String>, Away> {
        let odd = |_| Away("the store answered what it was not asked".into());
        let mut keys = Vec::new();
        for master in self.masters().await? {
            let mut cursor = String::from("0");
            loop {
                let mut cmd = redis::cmd("SCAN");
                cmd.arg(&cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(1000);
                let mut answer =
                    Reply::of(self.ask_master(master.as_ref(), cmd).await?).map_err(odd)?;
                cursor = answer.text().map_err(odd)?;
                for key in answer.list().map_err(odd)? {
                    keys.push(reply::text(key).map_err(odd)?);
                }
                if cursor == "0" {
                    break;
                }
            }
        }
        Ok(keys)
    }

    /// The masters of a cluster by host and port; elsewhere there is one, and no need to say which.
    async fn masters(&self) -> Result<Vec<Option<(String, u16)>>, Away> {
        let Conn::Cluster(mut cluster) = self.conns()?.quick else { return Ok(vec![None]) };
        let routing = (MultipleNodeRoutingInfo::AllMasters, Some(ResponsePolicy::Special));
        let ping = cluster.route_command(redis::cmd("PING"), RoutingInfo::MultiNode(routing));
        let patience = self.timeouts.patient();
        let answer = self.judge(timeout(patience, ping).await, patience).map_err(Failure::away)?;
        let Value::Map(answers) = answer else { return Err(Away("no master answers".into())) };
        let address = |name: Value| {
            let name = reply::text(name).ok()?;
            let (host, port) = name.rsplit_once(':')?;
            Some(Some((host.to_owned(), port.parse().ok()?)))
        };
        let masters: Option<_> = answers.into_iter().map(|(name, _)| address(name)).collect();
        masters.ok_or_else(|| Away("a node of the cluster has no address".into()))
    }

    async fn ask_master(&self, master: Option<&(String, u16)>, cmd: Cmd) -> Result<Value, Away> {
        let (Some((host, port)), Conn::Cluster(mut cluster)) = (master, self.conns()?.quick) else {
            return self.patient(&cmd).await;
        };
        let node = SingleNodeRoutingInfo::ByAddress { host: host.clone(), port: *port };
        let patience = self.timeouts.patient();
        let routed = cluster.route_command(cmd, RoutingInfo::SingleNode(node));
        self.judge(timeout(patience, routed).await, patience).map_err(Failure::away)
    }

    /// Replicas that must have a debit before it is acknowledged.
    pub(super) fn replicas(&self) -> u32 {
        self.replicas
    }

    /// Whether something could be written now, and would be acknowledged.
    pub(super) async fn ready(&self) -> Result<(), Away> {
        let mut conn = self.conns()?.money;
        let written = self.ask(&mut conn, &self.probe_cmd(), self.timeouts.command).await;
        written.map_err(Failure::away)?;
        if self.replicas > 0 {
            self.wait(conn, &self.probe).await?;
        }
        Ok(())
    }

    /// Ends the connection; what is asked from now on fails.
    pub(super) fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
        self.state.store(Arc::new(State::Down("the store is closed".into())));
        self.lost.notify_one();
    }

    /// Whether commands pass.
    pub(super) fn is_up(&self) -> bool {
        matches!(**self.state.load(), State::Up(_))
    }

    fn conns(&self) -> Result<Conns, Away> {
        match &**self.state.load() {
            State::Up(conns) => Ok(conns.clone()),
            State::Down(why) => Err(Away(why.clone())),
        }
    }

    async fn ask(&self, conn: &mut Conn, cmd: &Cmd, patience: Duration) -> Result<Value, Failure> {
        let answer = timeout(patience, conn.ask(cmd)).await;
        self.judge(answer, patience)
    }

    /// Sorts what came of a command, and opens the breaker if it is time to.
    fn judge(
        &self,
        answer: Result<Result<Value, RedisError>, tokio::time::error::Elapsed>,
        patience: Duration,
    ) -> Result<Value, Failure> {
        let error = match answer {
            Ok(Ok(value)) => {
                if self.failures.load(Ordering::Relaxed) > 0 {
                    self.failures.store(0, Ordering::Relaxed);
                }
                return Ok(value);
            }
            Ok(Err(error)) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                return Err(Failure::NoScript);
            }
            Ok(Err(error)) => error,
            Err(_) => {
                let why = format!("no answer within {patience:?}");
                if self.failures.fetch_add(1, Ordering::Relaxed) + 1 >= FAILURES {
                    self.open_breaker(&why);
                }
                return Err(Failure::Away(why));
            }
        };
        let why = error.to_string();
        let is_cluster =
            matches!(&**self.state.load(), State::Up(Conns { quick: Conn::Cluster(_), .. }));
        let is_over = match error.kind() {
            // The library connects to the nodes of a cluster again by itself.
            // But one that was started again is looked at before anything is written there.
            _ if is_cluster => {
                matches!(error.kind(), ErrorKind::ClusterConnectionNotFound | ErrorKind::Io)
                    || self.failures.fetch_add(1, Ordering::Relaxed) + 1 >= FAILURES
            }
            ErrorKind::Server(kind) => matches!(
                kind,
                ServerErrorKind::ReadOnly
                    | ServerErrorKind::BusyLoading
                    | ServerErrorKind::ClusterDown
                    | ServerErrorKind::MasterDown
            ),
            // Memory is full, the disk is, replicas are missing: the connection is as good as
            // another, but the breaker spares everyone the question after a while.
            ErrorKind::Extension => self.failures.fetch_add(1, Ordering::Relaxed) + 1 >= FAILURES,
            _ => true,
        };
        if is_over {
            self.open_breaker(&why);
        } else {
            tracing::warn!(error = why, "the store refused");
        }
        Err(Failure::Away(why))
    }

    fn open_breaker(&self, why: &str) {
        if matches!(&**self.state.load(), State::Up(_)) && !self.is_closed.load(Ordering::SeqCst) {
            tracing::error!(error = why, "the store is away; nothing is admitted until it is back");
            self.state.store(Arc::new(State::Down(why.into())));
            self.lost.notify_one();
        }
    }

    fn probe_cmd(&self) -> Cmd {
        let mut cmd = redis::cmd("SET");
        cmd.arg(&self.probe).arg("1").arg("PX").arg(60_000);
        cmd
    }

    async fn connect(&self) -> Result<Conns, RedisError> {
        let connecting = async {
            let quick = self.connect_once().await?;
            let money = if self.replicas > 0 { self.connect_once().await? } else { quick.clone() };
            Ok(Conns { quick, money })
        };
        // A name may have several addresses, and a cluster has several nodes.
        let patience = 4 * self.timeouts.connect + self.timeouts.patient();
        timeout(patience, connecting).await.unwrap_or_else(|_| Err(timed_out()))
    }

    async fn connect_once(&self) -> Result<Conn, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.timeouts.connect))
            // Each command has its own, above.
            .set_response_timeout(None)
            .set_pipeline_buffer_size(1024);
        let connector = &mut *self.connector.lock().await;
        Ok(match connector {
            Connector::Single(client) => {
                Conn::Single(client.get_multiplexed_async_connection_with_config(&config).await?)
            }
            Connector::Sentinel(client) => {
                Conn::Single(client.get_async_connection_with_config(&config).await?)
            }
            Connector::Cluster(client) => Conn::Cluster(client.get_async_connection().await?),
        })
    }

    /// Connects again and tries whether something can be written.
    async fn mend(&self) -> Result<Conns, String> {
        let mut conns = self.connect_fit().await.map_err(|unready| match unready {
            Unready::Away(why) => why,
            Unready::Unfit(error) => error.to_string(),
        })?;
        match timeout(self.timeouts.patient(), conns.quick.ask(&self.probe_cmd())).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err("no answer to a probe".into()),
        }
        if matches!(conns.quick, Conn::Cluster(_)) {
            // The probe is on one node, and what is asked next on another.
            let ping = redis::cmd("PING");
            self.ask_each_master(&mut conns.quick, &ping).await.map_err(|Away(why)| why)?;
        }
        Ok(conns)
    }
}

/// Waits for the breaker to open, and then tries until it can be closed.
async fn keep(link: Weak<Link>) {
    loop {
        let Some(strong) = link.upgrade() else { return };
        let notified = async {
            // Looked at again now and then, so that a link that nobody holds is dropped.
            drop(timeout(Duration::from_secs(1), strong.lost.notified()).await);
        };
        notified.await;
        let mut wait = FIRST_RETRY;
        while !strong.is_closed.load(Ordering::SeqCst)
            && matches!(&**strong.state.load(), State::Down(_))
        {
            tokio::time::sleep(wait).await;
            wait = (2 * wait).min(LAST_RETRY);
            match strong.mend().await {
                Ok(conns) => {
                    strong.failures.store(0, Ordering::Relaxed);
                    strong.state.store(Arc::new(State::Up(conns)));
                    tracing::info!("the store is back");
                }
                Err(why) => {
                    if !matches!(&**strong.state.load(), State::Down(before) if *before == why) {
                        tracing::warn!("{why}");
                    }
                    strong.state.store(Arc::new(State::Down(why)));
                }
            }
        }
        if strong.is_closed.load(Ordering::SeqCst) {
            strong.state.store(Arc::new(State::Down("the store is closed".into())));
            return;
        }
    }
}

/// Whether a server that could not be connected to may come to be there by itself: nobody
/// answers, or not yet. That it knows another password, or speaks no TLS, is for a person.
fn may_come(error: &RedisError) -> bool {
    let io = std::error::Error::source(error).and_then(|source| source.downcast_ref());
    let is_talk = |io: &std::io::Error| {
        use std::io::ErrorKind::{InvalidData, InvalidInput, PermissionDenied};
        matches!(io.kind(), InvalidData | InvalidInput | PermissionDenied)
    };
    // Of a cluster only the words tell why.
    let said = error.to_string();
    let is_refusal = ["WRONGPASS", "NOAUTH", "NOPERM", "uthentication", "certificate"]
        .iter()
        .any(|word| said.contains(word));
    match error.kind() {
        ErrorKind::Io => !io.is_some_and(is_talk) && !is_refusal,
        ErrorKind::ClusterConnectionNotFound => !is_refusal,
        ErrorKind::Server(kind) => matches!(
            kind,
            ServerErrorKind::BusyLoading
                | ServerErrorKind::ClusterDown
                | ServerErrorKind::MasterDown
                | ServerErrorKind::TryAgain
        ),
        _ => false,
    }
}

fn timed_out() -> RedisError {
    RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut))
}

/// What a command came to, if not to an answer.
enum Failure {
    NoScript,
    Away(String),
}

impl Failure {
    fn away(self) -> Away {
        match self {
            Self::NoScript => Away("the server does not know a script it was given".into()),
            Self::Away(why) => Away(why),
        }
    }
}
