//! Farebox's store in Redis, and Redis alone, on servers of their own.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bench::{now_ns, runtime};
use farebox::store::redis::{Options, Redis};

use crate::line::{Line, cpu_of};
use crate::measure;

/// How a server keeps what it acknowledges.
pub struct Setting {
    pub name: &'static str,
    appendfsync: &'static str,
    /// Replicas that must have it.
    wait: u32,
}

pub const SETTINGS: [Setting; 3] = [
    Setting { name: "everysec", appendfsync: "everysec", wait: 0 },
    Setting { name: "always", appendfsync: "always", wait: 0 },
    Setting { name: "always+wait", appendfsync: "always", wait: 1 },
];

/// The least that a debit can be there: five counters with limits and one id, all or nothing.
const LEAST: &str = "
if redis.call('EXISTS', KEYS[6]) == 1 then return -1 end
local v = redis.call('MGET', KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5])
for i = 1, 5 do
  if tonumber(v[i] or '0') + tonumber(ARGV[1]) > tonumber(ARGV[2]) then return -2 end
end
for i = 1, 5 do redis.call('INCRBY', KEYS[i], ARGV[1]) end
redis.call('SET', KEYS[6], '1', 'EX', 600)
return 0";

/// A server, and its replica where one is waited for. They end with it.
pub struct Servers {
    what: String,
    primary: Server,
    replica: Option<Server>,
    wait: u32,
}

impl Servers {
    pub fn start(dir: &Path, setting: &Setting) -> Self {
        let primary = Server::start(dir, setting.appendfsync, &[]);
        let of = ["--replicaof", "127.0.0.1", &primary.port.to_string()];
        let replica = (setting.wait > 0).then(|| Server::start(dir, setting.appendfsync, &of));
        if let Some(replica) = &replica {
            until("a replica in step", || replica.info("master_link_status") == "up");
        }
        Self { what: setting.name.into(), primary, replica, wait: setting.wait }
    }

    /// Redis alone, asked by its own load generator, one debit a command.
    pub fn bare(&self, at_once: usize, time: Duration) -> Line {
        let hash = self.primary.ask(&["SCRIPT", "LOAD", LEAST]);
        // By a guess of the rate: what matters is that it takes about as long.
        let per_second = if self.what == "everysec" { 20_000 } else { 500 * at_once.min(32) };
        let count = (time.as_secs_f64() * per_second as f64).ceil() as u64;
        let before = self.cpu_us();
        let ran = Command::new("redis-benchmark")
            .args(["-p", &self.primary.port.to_string(), "-n", &count.to_string()])
            .args(["-c", &at_once.to_string(), "-r", "1000000000", "--precision", "3", "--csv"])
            .args(["EVALSHA", hash.trim(), "6"])
            .args((0..5).map(|n| format!("{{u}}:{n}")))
            .args(["{u}:id:__rand_int__", "1", "1000000000000"])
            .output()
            .expect("redis-benchmark runs");
        let cpu = self.cpu_us() - before;
        let text = String::from_utf8_lossy(&ran.stdout);
        let (rate, p50, p99) = figures(&text).unwrap_or_else(|| panic!("not understood: {text}"));
        Line {
            what: format!("bare Redis, {}", if self.wait > 0 { "always" } else { &self.what }),
            at_once,
            accounts: 1,
            debits: count,
            seconds: count as f64 / rate,
            p50_us: p50 * 1e3,
            p99_us: p99 * 1e3,
            cpu_us: cpu,
            store_us: cpu,
            ..Line::default()
        }
    }

    pub fn farebox(&self, at_once: usize, accounts: usize, time: Duration) -> Line {
        self.primary.ask(&["FLUSHALL"]);
        let (memory, disk) = (self.primary.memory(), self.primary.disk());
        let mut line = runtime(2).block_on(async {
            let options = Options {
                wait: self.wait,
                connect_timeout: Duration::from_secs(5),
                command_timeout: Duration::from_secs(5),
                ..Options::of(format!("redis://127.0.0.1:{}", self.primary.port))
            };
            let store = Redis::open(options).await.unwrap_or_else(|error| panic!("{error}"));
            measure(store, at_once, accounts, time, || self.cpu_us()).await
        });
        line.what = format!("Farebox, Redis {}", self.what);
        line.cpu_us += line.store_us;
        line.memory = self.primary.memory().saturating_sub(memory);
        line.disk = self.primary.disk().saturating_sub(disk);
        line
    }

    fn cpu_us(&self) -> f64 {
        let servers = std::iter::once(&self.primary).chain(&self.replica);
        servers.map(|server| cpu_of(&server.child.id().to_string(), "")).sum()
    }
}

/// Rate, median and p99 in milliseconds of redis-benchmark's one row.
fn figures(csv: &str) -> Option<(f64, f64, f64)> {
    let mut lines = csv.lines().skip_while(|line| !line.starts_with("\"test\""));
    let names: Vec<_> = lines.next()?.split(',').collect();
    // The first field is the command, which has commas: the rest is counted from the end.
    let values: Vec<_> = lines.next()?.rsplit(',').collect();
    let value = |name: &str| {
        let at = names.iter().rev().position(|known| known.trim_matches('"') == name)?;
        values.get(at)?.trim_matches('"').parse().ok()
    };
    Some((value("rps")?, value("p50_latency_ms")?, value("p99_latency_ms")?))
}

struct Server {
    child: Child,
    port: u16,
    folder: PathBuf,
}

impl Server {
    fn start(dir: &Path, appendfsync: &str, more: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let port = listener.local_addr().expect("an address").port();
        drop(listener);
        let folder = dir.join(format!("redis-{}", now_ns()));
        fs::create_dir_all(&folder).expect("a folder");
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .args(["--appendonly", "yes", "--appendfsync", appendfsync])
            .args(["--maxmemory-policy", "noeviction", "--repl-diskless-sync-delay", "0"])
            // What is written is to be counted.
            .args(["--auto-aof-rewrite-percentage", "0"])
            .arg("--dir")
            .arg(&folder)
            .args(more)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        let server = Self { child, port, folder };
        until("a server", || server.ask(&["PING"]).trim() == "PONG");
        server
    }

    fn ask(&self, command: &[&str]) -> String {
        let mut cli = Command::new("redis-cli");
        cli.args(["-p", &self.port.to_string()]).args(command).stderr(Stdio::null());
        let out = cli.output().expect("redis-cli is installed");
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    fn info(&self, field: &str) -> String {
        let all = self.ask(&["INFO", "everything"]);
        let line = all.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.unwrap_or_default().trim().to_owned()
    }

    /// Bytes, as Redis counts what it uses.
    fn memory(&self) -> u64 {
        self.info("used_memory").parse().unwrap_or_default()
    }

    /// Bytes of its append-only file.
    fn disk(&self) -> u64 {
        self.info("aof_current_size").parse().unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
        fs::remove_dir_all(&self.folder).ok();
    }
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < Duration::from_secs(20), "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
