//! What the programs share: a flag parser, the wall clock in nanoseconds, a runtime.

use std::time::{SystemTime, UNIX_EPOCH};

#[cfg(feature = "store")]
pub mod store;

/// `--name value` pairs; a flag given twice keeps both values.
pub struct Args(Vec<(String, String)>);

impl Args {
    pub fn parse() -> Self {
        let mut it = std::env::args().skip(1);
        let mut v = Vec::new();
        while let Some(k) = it.next() {
            let k = k
                .strip_prefix("--")
                .unwrap_or_else(|| panic!("unexpected argument {k}"))
                .to_string();
            let val = it.next().unwrap_or_else(|| panic!("--{k} needs a value"));
            v.push((k, val));
        }
        Args(v)
    }

    pub fn all<'a>(&'a self, k: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(n, _)| n == k).map(|(_, v)| v.as_str())
    }

    pub fn get<T: std::str::FromStr>(&self, k: &str, default: T) -> T {
        match self.all(k).last() {
            Some(v) => v.parse().unwrap_or_else(|_| panic!("--{k}: cannot read {v}")),
            None => default,
        }
    }
}

/// Wall clock, ns since 1970. Upstream and load run on one machine, so the
/// stamps of one can be subtracted from those of the other.
pub fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

pub fn runtime(threads: usize) -> tokio::runtime::Runtime {
    let mut b = if threads <= 1 {
        tokio::runtime::Builder::new_current_thread()
    } else {
        let mut b = tokio::runtime::Builder::new_multi_thread();
        b.worker_threads(threads);
        b
    };
    b.enable_all().build().expect("runtime")
}
