//! A row of the table, and what it is made of.

use std::fs;
use std::path::PathBuf;

use hdrhistogram::Histogram;
use serde::Serialize;

/// What was measured of one way of debiting.
#[derive(Clone, Default, Serialize)]
pub struct Line {
    pub what: String,
    pub at_once: usize,
    pub accounts: usize,
    pub debits: u64,
    pub seconds: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    /// Of everything that ran for it.
    pub cpu_us: f64,
    /// Of it, the store's threads or server.
    pub store_us: f64,
    /// Growth of the server's memory, in bytes.
    pub memory: u64,
    /// On disk at the end, in bytes.
    pub disk: u64,
}

impl Line {
    pub fn of(what: &str, took: &Histogram<u64>) -> Self {
        let us = |quantile| took.value_at_quantile(quantile) as f64 / 1e3;
        Self { what: what.into(), p50_us: us(0.5), p99_us: us(0.99), ..Self::default() }
    }

    fn rate(&self) -> f64 {
        self.debits as f64 / self.seconds
    }

    fn each(&self, sum: f64) -> f64 {
        sum / self.debits.max(1) as f64
    }
}

/// The table as it grows: each row is printed at once.
pub struct Table(Vec<Row>);

#[derive(Serialize)]
struct Row {
    #[serde(flatten)]
    line: Line,
    debits_per_s: f64,
    cpu_us_each: f64,
    store_us_each: f64,
    memory_each: f64,
    disk_each: f64,
    /// Beside the floor above it.
    rate_ratio: Option<f64>,
    cpu_ratio: Option<f64>,
}

impl Table {
    pub fn begin() -> Self {
        println!(
            "| what | at once | accounts | debits/s | p50 µs | p99 µs | CPU µs | of it the store | \
             memory B | disk B | rate × floor | CPU × floor |\n|{}",
            "---|".repeat(12)
        );
        Self(Vec::new())
    }

    /// Adds a row, beside the floor under it. Where the floor is a server, it is the servers'
    /// CPU that is compared.
    pub fn add(&mut self, line: Line, floor: Option<&Line>) {
        let ratio = |of: fn(&Line) -> f64| floor.map(|floor| of(&line) / of(floor));
        let is_server = floor.is_some_and(|floor| floor.store_us > 0.0);
        let row = Row {
            debits_per_s: line.rate(),
            cpu_us_each: line.each(line.cpu_us),
            store_us_each: line.each(line.store_us),
            memory_each: line.each(line.memory as f64),
            disk_each: line.each(line.disk as f64),
            rate_ratio: ratio(Line::rate),
            cpu_ratio: if is_server {
                ratio(|line| line.each(line.store_us))
            } else {
                ratio(|line| line.each(line.cpu_us))
            },
            line,
        };
        let ratio = |ratio: Option<f64>| ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"));
        let Line { what, at_once, accounts, p50_us, p99_us, .. } = &row.line;
        println!(
            "| {what} | {at_once} | {accounts} | {:.0} | {p50_us:.0} | {p99_us:.0} | {:.1} | {:.1} \
             | {:.0} | {:.0} | {} | {} |",
            row.debits_per_s,
            row.cpu_us_each,
            row.store_us_each,
            row.memory_each,
            row.disk_each,
            ratio(row.rate_ratio),
            ratio(row.cpu_ratio),
        );
        self.0.push(row);
    }

    pub fn json(&self) -> String {
        serde_json::to_string_pretty(&self.0).expect("numbers and texts")
    }
}

/// CPU used by this process, in µs.
pub fn own_cpu_us() -> f64 {
    cpu_us("")
}

/// CPU used by the threads of this process whose names begin so, in µs.
pub fn cpu_us(threads: &str) -> f64 {
    cpu_of("self", threads)
}

/// CPU used by the threads of a process whose names begin so, in µs.
pub fn cpu_of(process: &str, threads: &str) -> f64 {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let named = tasks.map(|task| task.path()).filter(|task| {
        fs::read_to_string(task.join("comm")).is_ok_and(|name| name.starts_with(threads))
    });
    let ran = |task: PathBuf| {
        let times = fs::read_to_string(task.join("schedstat")).ok()?;
        times.split_whitespace().next()?.parse::<f64>().ok()
    };
    named.filter_map(ran).sum::<f64>() / 1e3
}

pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 600_000_000_000, 3).expect("bounds")
}
