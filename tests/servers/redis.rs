//! Real Redis servers for tests: started on loopback, stopped, killed, replaced by a replica,
//! joined to a cluster. The program is `redis-server`, or what `REDIS_SERVER` names.
//!
//! Blocking, on the standard library alone, so that tests of the library (`#[path]`) and tests
//! from outside share it. Every wait is bounded.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Longest wait for anything that should happen at once: generous, as machines are shared.
const PATIENCE: Duration = Duration::from_secs(60);

/// Every debit on disk before it is answered, and nothing evicted: what a ledger needs.
pub const DURABLE: &[&str] =
    &["--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction"];

/// A server of its own, on files of its own. It is killed with its test.
pub struct Redis {
    dir: TempDir,
    port: u16,
    arguments: Vec<String>,
    child: Option<Child>,
}

impl Redis {
    /// Starts a server with these arguments, such as [`DURABLE`], and waits until it serves.
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_on(arguments, |_| {})
    }

    /// As [`Redis::start`], on the files that `put` leaves in its folder.
    pub fn start_on(arguments: &[&str], put: impl Fn(&Path)) -> Self {
        let mut last = String::new();
        // Another process may take a port between the look and the start.
        for _ in 0..20 {
            let mut server = Self {
                dir: TempDir::new().unwrap(),
                port: free_port(),
                arguments: arguments.iter().map(|&word| word.into()).collect(),
                child: None,
            };
            put(server.dir.path());
            match server.try_spawn() {
                Ok(()) => {
                    server.serves();
                    return server;
                }
                Err(why) => last = why,
            }
        }
        panic!("no Redis server could be started: {last}");
    }

    /// Waits until it has loaded its files.
    fn serves(&self) {
        until("a server that serves", || run_at(self.port, &["PING"]).is_ok());
    }

    /// Starts a replica of this server, and waits until it has all that the server has.
    pub fn replica(&self, arguments: &[&str]) -> Self {
        let replica = Self::start(arguments);
        replica.follow(self);
        replica
    }

    /// Makes this server a replica of another, and waits until it is in step.
    pub fn follow(&self, primary: &Self) {
        self.follow_at(primary.port, primary);
    }

    /// As [`Redis::follow`], by way of another port, such as a relay's.
    pub fn follow_at(&self, port: u16, primary: &Self) {
        self.run(&["REPLICAOF", "127.0.0.1", &port.to_string()]).unwrap();
        until("a replica in step", || self.info("master_link_status").as_deref() == Some("up"));
        self.in_step_with(primary);
    }

    /// Waits until this replica is linked to its primary, with all that it had then.
    pub fn is_linked(&self) {
        until("a replica that is linked", || {
            self.info("master_link_status").as_deref() == Some("up")
        });
    }

    /// Waits until a replica has everything that its primary has now.
    pub fn in_step_with(&self, primary: &Self) {
        let goal: u64 = primary.info("master_repl_offset").unwrap().parse().unwrap();
        until("a replica in step", || {
            let here = self.info("slave_repl_offset").and_then(|text| text.parse().ok());
            here.is_some_and(|here: u64| here >= goal)
        });
    }

    /// `127.0.0.1:port`
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// `redis://127.0.0.1:port`
    pub fn url(&self) -> String {
        format!("redis://{}", self.address())
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Runs one command on a connection of its own.
    ///
    /// # Errors
    ///
    /// The server's words, or those of the connection.
    pub fn run(&self, command: &[&str]) -> Result<Value, String> {
        run_at(self.port, command)
    }

    /// A field of `INFO`.
    pub fn info(&self, field: &str) -> Option<String> {
        let Ok(Value::Text(all)) = self.run(&["INFO", "everything"]) else { return None };
        let line = all.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.map(String::from)
    }

    /// Changes a setting while it runs.
    pub fn set(&self, setting: &str, value: &str) {
        self.run(&["CONFIG", "SET", setting, value]).unwrap();
    }

    /// Kills it at once: nothing is flushed.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Starts it again on the same port and files, and waits until it serves.
    pub fn restart(&mut self) {
        self.spawn_again();
        let since = Instant::now();
        while run_at(self.port, &["PING"]).is_err() {
            assert!(since.elapsed() < PATIENCE, "the server does not come to serve");
            // One that was killed while it began a new file ends its first start, as it cuts off
            // half a write at the end of the old one; whoever looks after it starts it again.
            if self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_some()) {
                self.child = None;
                self.spawn_again();
            }
            sleep(Duration::from_millis(5));
        }
    }

    /// Starts it again, and waits until it answers.
    fn spawn_again(&mut self) {
        assert!(self.child.is_none(), "it still runs");
        let since = Instant::now();
        while let Err(why) = self.try_spawn() {
            assert!(since.elapsed() < PATIENCE, "the server does not come back: {why}");
            sleep(Duration::from_millis(20));
        }
    }

    /// Starts it again, and lets it load each key of its files this slowly: it answers, but
    /// only that it is loading.
    pub fn restart_loading(&mut self, microseconds_a_key: &str) {
        let arguments = self.arguments.clone();
        for word in [
            "--key-load-delay",
            microseconds_a_key,
            "--loading-process-events-interval-bytes",
            "1024",
        ] {
            self.arguments.push(word.into());
        }
        self.spawn_again();
        self.arguments = arguments;
    }

    /// Makes a replica the primary, with what it has.
    pub fn promote(&self) {
        self.run(&["REPLICAOF", "NO", "ONE"]).unwrap();
    }

    /// Makes it stand still (`SIGSTOP`): connections stay open, nothing is answered.
    pub fn pause(&self) {
        self.signal("STOP");
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signal("CONT");
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.pid().to_string()]).status();
        assert!(sent.unwrap().success());
    }

    fn try_spawn(&mut self) -> Result<(), String> {
        let program = std::env::var("REDIS_SERVER").unwrap_or_else(|_| "redis-server".into());
        let log = self.dir.path().join("log");
        let mut command = Command::new(&program);
        // The file of a sentinel's settings comes first.
        let is_file = |first: &String| !first.starts_with("--");
        let files = usize::from(self.arguments.first().is_some_and(is_file));
        let (file, arguments) = self.arguments.split_at(files);
        command.args(file).args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"]);
        command.arg("--dir").arg(self.dir.path()).arg("--logfile").arg(&log);
        command.args(["--save", "", "--repl-diskless-sync-delay", "0"]);
        command.args(arguments).stdin(Stdio::null());
        let child = command.spawn().map_err(|error| format!("{program}: {error}"))?;
        let child = self.child.insert(child);
        let since = Instant::now();
        while since.elapsed() < PATIENCE {
            if child.try_wait().unwrap().is_some() {
                self.child = None;
                return Err(std::fs::read_to_string(&log).unwrap_or_default());
            }
            // Also while it loads; and another's server may have the port.
            let told = run_at(self.port, &["INFO", "server"]);
            let id = format!("process_id:{}", child.id());
            if told.is_ok_and(|told| told.text().lines().any(|line| line == id)) {
                return Ok(());
            }
            sleep(Duration::from_millis(5));
        }
        Err(format!("{program} does not answer"))
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Runs one command at a port, on a connection of its own.
///
/// # Errors
///
/// The server's words, or those of the connection.
pub fn run_at(port: u16, command: &[&str]) -> Result<Value, String> {
    Connection::open(port).and_then(|mut connection| connection.run(command))
}

/// Three primaries with a replica each, joined.
pub struct Cluster {
    pub nodes: Vec<Redis>,
}

impl Cluster {
    const PRIMARIES: usize = 3;
    const SLOTS: usize = 16_384;

    /// Starts six servers with these arguments and joins them.
    pub fn start(arguments: &[&str]) -> Self {
        let mut nodes = Vec::new();
        for _ in 0..2 * Self::PRIMARIES {
            let bus = free_port().to_string();
            let mut all = vec!["--cluster-enabled", "yes", "--cluster-port", &bus];
            all.extend(["--cluster-node-timeout", "3000"]);
            all.extend(arguments);
            nodes.push((Redis::start(&all), bus));
        }
        for (n, (node, _)) in nodes.iter().enumerate() {
            // Else two primaries begin with the same one, and while they settle that, a replica
            // is not voted for.
            let epoch = (n + 1).to_string();
            node.run(&["CLUSTER", "SET-CONFIG-EPOCH", &epoch]).unwrap();
        }
        let slots = |n: usize| n * Self::SLOTS / Self::PRIMARIES;
        for (n, (node, _)) in nodes.iter().take(Self::PRIMARIES).enumerate() {
            let (first, last) = (slots(n).to_string(), (slots(n + 1) - 1).to_string());
            node.run(&["CLUSTER", "ADDSLOTSRANGE", &first, &last]).unwrap();
        }
        for (node, bus) in &nodes[1..] {
            let port = node.port.to_string();
            nodes[0].0.run(&["CLUSTER", "MEET", "127.0.0.1", &port, bus]).unwrap();
        }
        let nodes: Vec<_> = nodes.into_iter().map(|(node, _)| node).collect();
        let knows = |node: &Redis, count: usize| cluster(node, "cluster_known_nodes") == count;
        until("a cluster whose nodes know each other", || {
            nodes.iter().all(|node| knows(node, nodes.len()))
        });
        for (n, node) in nodes.iter().enumerate().skip(Self::PRIMARIES) {
            let Ok(Value::Text(primary)) = nodes[n - Self::PRIMARIES].run(&["CLUSTER", "MYID"])
            else {
                panic!("a node has no id");
            };
            node.run(&["CLUSTER", "REPLICATE", &primary]).unwrap();
        }
        until("a cluster that serves", || {
            let ok = |node| state(node) == "ok" && cluster(node, "cluster_slots_ok") == Self::SLOTS;
            let linked = |node: &Redis| node.info("master_link_status").is_some_and(|s| s == "up");
            nodes.iter().all(ok) && nodes[Self::PRIMARIES..].iter().all(linked)
        });
        Self { nodes }
    }

    /// Which nodes have a key at first: the primary and its replica.
    pub fn of(&self, key: &str) -> (usize, usize) {
        let slot = self.nodes[0].run(&["CLUSTER", "KEYSLOT", key]).unwrap().text();
        let slot: usize = slot.parse().unwrap();
        let is_there = |n: &usize| slot < (n + 1) * Self::SLOTS / Self::PRIMARIES;
        let primary = (0..Self::PRIMARIES).find(is_there).unwrap();
        (primary, primary + Self::PRIMARIES)
    }

    /// Waits until a node takes writes.
    pub fn is_primary(&self, node: usize) {
        until("a node that has become a primary", || {
            self.nodes[node].info("role").as_deref() == Some("master")
                && state(&self.nodes[node]) == "ok"
        });
    }

    /// `redis+cluster://` with the addresses of three nodes.
    pub fn url(&self) -> String {
        let addresses: Vec<_> = self.nodes.iter().take(3).map(Redis::address).collect();
        format!("redis+cluster://{}", addresses.join(","))
    }
}

fn state(node: &Redis) -> String {
    cluster_field(node, "cluster_state").unwrap_or_default()
}

fn cluster(node: &Redis, field: &str) -> usize {
    cluster_field(node, field).and_then(|text| text.parse().ok()).unwrap_or_default()
}

fn cluster_field(node: &Redis, field: &str) -> Option<String> {
    let Ok(Value::Text(all)) = node.run(&["CLUSTER", "INFO"]) else { return None };
    let line = all.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.map(|text| text.trim().to_owned())
}

/// What a server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Text(String),
    Number(i64),
    List(Vec<Value>),
    Nil,
}

impl Value {
    /// A text, or a number as one.
    pub fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Number(number) => number.to_string(),
            Self::List(_) | Self::Nil => panic!("not a text: {self:?}"),
        }
    }
}

/// The protocol, as far as tests need it.
struct Connection(BufReader<TcpStream>);

impl Connection {
    fn open(port: u16) -> Result<Self, String> {
        let stream = TcpStream::connect(("127.0.0.1", port)).map_err(|error| error.to_string())?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Ok(Self(BufReader::new(stream)))
    }

    fn run(&mut self, command: &[&str]) -> Result<Value, String> {
        let mut request = format!("*{}\r\n", command.len());
        for word in command {
            request += &format!("${}\r\n{word}\r\n", word.len());
        }
        self.0.get_mut().write_all(request.as_bytes()).map_err(|error| error.to_string())?;
        self.read()
    }

    fn read(&mut self) -> Result<Value, String> {
        let mut line = String::new();
        self.0.read_line(&mut line).map_err(|error| error.to_string())?;
        let line = line.trim_end();
        let Some((kind, rest)) = line.split_at_checked(1) else {
            return Err("the connection ended".into());
        };
        let number = || rest.parse::<i64>().map_err(|_| format!("not a number: {line}"));
        match kind {
            "+" => Ok(Value::Text(rest.into())),
            "-" => Err(rest.into()),
            ":" => number().map(Value::Number),
            "$" | "*" if rest == "-1" => Ok(Value::Nil),
            "$" => {
                let mut bytes = vec![0; usize::try_from(number()?).unwrap() + 2];
                self.0.read_exact(&mut bytes).map_err(|error| error.to_string())?;
                bytes.truncate(bytes.len() - 2);
                Ok(Value::Text(String::from_utf8_lossy(&bytes).into_owned()))
            }
            "*" => (0..number()?).map(|_| self.read()).collect::<Result<_, _>>().map(Value::List),
            _ => Err(format!("not understood: {line}")),
        }
    }
}

/// A port that nobody listens on, below those that outgoing connections are given, so that
/// a server which was killed finds it free again. No two tests get the same, of whatever process.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 10_000 + u16::try_from(std::process::id() % 20_000).unwrap();
    for _ in 0..20_000 {
        let step = NEXT.fetch_add(1, Ordering::Relaxed) % 20_000;
        let port = 10_000 + (first - 10_000 + step) % 20_000;
        if is_ours(port) && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port is free");
}

/// Keeps a port for this process until it ends: also while its server is down, the tests of
/// another process leave it alone.
#[cfg(target_os = "linux")]
fn is_ours(port: u16) -> bool {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener};
    use std::sync::Mutex;

    static OURS: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());
    // A name that is gone with its process.
    let name = SocketAddr::from_abstract_name(format!("farebox-test-port-{port}")).unwrap();
    let Ok(kept) = UnixListener::bind_addr(&name) else { return false };
    OURS.lock().unwrap().push(kept);
    true
}

#[cfg(not(target_os = "linux"))]
fn is_ours(_port: u16) -> bool {
    true
}

/// Looks again and again until it is so, within [`PATIENCE`].
fn until(what: &str, is_so: impl Fn() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain for {what}");
        sleep(Duration::from_millis(10));
    }
}
