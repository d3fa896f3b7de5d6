//! Files that spreadsheets and programs read alike, and that tell when they were changed.

use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;

use super::check::{check, meta_path};
use super::*;
use crate::billing::Usage;
use crate::billing::ledger::Expiry;
use crate::store::embedded::{Embedded, Options};
use crate::store::{Attribution, Grant, Outcome, Settlement, Source};

/// 2026-10-24T22:30:00Z, half past midnight in Berlin, on the day before summer time ends.
const START: Millis = 1_792_881_000_000;

struct Files {
    store: Arc<dyn Store>,
    folder: TempDir,
}

impl Files {
    /// An account with a top-up, promotional credits and some requests, a minute apart.
    async fn new(requests: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(std::sync::atomic::AtomicI64::new(START));
        let now = clock.clone();
        let options = Options {
            clock: Arc::new(move || now.load(std::sync::atomic::Ordering::SeqCst)),
            ..Options::default()
        };
        let store = Embedded::open(&folder.path().join("farebox.db"), options).unwrap();
        store.create_account(account(), "A".into()).await.unwrap();
        let grant = |kind, amount: &str, note: &str, id: &str| Grant {
            account: account(),
            kind,
            amount: amount.parse().unwrap(),
            expires: (kind == Kind::Promo).then_some(Expiry::After(Duration::from_secs(86_400))),
            note: note.into(),
            id: id.into(),
        };
        store
            .grant(grant(Kind::Topup, "5", "=HYPERLINK(\"x\"), \"quoted\"", "inv17"))
            .await
            .unwrap();
        store.grant(grant(Kind::Promo, "0.1", "", "@gift")).await.unwrap();
        for n in 0..requests {
            clock.fetch_add(60_000, std::sync::atomic::Ordering::SeqCst);
            store.settle(settlement(n)).await.unwrap();
        }
        Self { store, folder }
    }

    fn export(&self, what: What, format: Format) -> Export {
        Export {
            account: account(),
            what,
            since: None,
            until: START + 86_400_000,
            format,
            zone: TimeZone::get("Europe/Berlin").unwrap(),
            zone_name: "Europe/Berlin".into(),
            bom: false,
        }
    }

    async fn bytes(&self, export: &Export) -> Vec<u8> {
        let mut reading = Reading::new(self.store.clone(), export.clone());
        let mut all = Vec::new();
        while let Some(bytes) = reading.next().await.unwrap() {
            all.extend_from_slice(&bytes);
        }
        all
    }

    async fn meta(&self, export: &Export) -> Meta {
        Reading::new(self.store.clone(), export.clone()).meta().await.unwrap()
    }

    /// Writes the file and its metadata.
    async fn save(&self, export: &Export) -> std::path::PathBuf {
        let path = self.folder.path().join(export.file_name());
        std::fs::write(&path, self.bytes(export).await).unwrap();
        let meta = serde_json::to_vec(&self.meta(export).await).unwrap();
        std::fs::write(meta_path(&path), meta).unwrap();
        path
    }
}

fn account() -> AccountId {
    AccountId("a".into())
}

fn settlement(n: usize) -> Settlement {
    Settlement {
        id: format!("req_{n:04}"),
        account: account(),
        key: "key_1".into(),
        model: ["sonnet", "+opus"][n % 2].into(),
        served_model: None,
        upstream: "up".into(),
        attribution: Attribution { agent: Some("-1+1".into()), ..Attribution::default() },
        usage: Usage { input: 10, output: 5, ..Usage::default() },
        charge: Credits::from_nano(7_000_001),
        price_version: "v1".into(),
        ttft_ms: None,
        latency_ms: 2,
        stream: false,
        outcome: Outcome::Completed,
        source: Source::Reported,
        http_status: 200,
        flags: String::new(),
    }
}

/// The rows of a CSV file as another reader of RFC 4180 sees them.
fn rows(bytes: &[u8]) -> Vec<Vec<String>> {
    let mut csv = csv::ReaderBuilder::new().has_headers(false).from_reader(bytes);
    csv.records().map(|row| row.unwrap().iter().map(str::to_owned).collect()).collect()
}

#[tokio::test]
async fn the_ledger_is_written_oldest_first_with_its_running_balance() {
    let files = Files::new(2).await;
    let export = files.export(What::Ledger(None), Format::Csv);
    assert_eq!(export.file_name(), "ledger_a_start_2026-10-25_Europe-Berlin.csv");
    let bytes = files.bytes(&export).await;
    let text = String::from_utf8(bytes.clone()).unwrap();
    assert_eq!(
        text.lines().next().unwrap(),
        "seq,time,time_utc,kind,amount,balance_after,ref,note,undoes,parts"
    );
    assert!(text.ends_with("\r\n") && text.matches("\r\n").count() == text.matches('\n').count());
    let rows = rows(&bytes);
    let column = |at: usize| rows[1..].iter().map(|row| row[at].as_str()).collect::<Vec<_>>();
    assert_eq!(column(0), ["1", "2", "3", "4"]);
    assert_eq!(column(3), ["topup", "promo", "debit_ai", "debit_ai"]);
    assert_eq!(column(4), ["5", "0.1", "-0.007000001", "-0.007000001"]);
    assert_eq!(column(5), ["5", "5.1", "5.092999999", "5.085999998"]);
    assert_eq!(rows[1][1], "2026-10-25T00:30:00.000+02:00");
    assert_eq!(rows[1][2], "2026-10-24T22:30:00.000Z");
    assert_eq!(rows[3][9], "lot 2 -0.007000001");
    // No text is a formula, and none is lost.
    assert_eq!(rows[1][7], "'=HYPERLINK(\"x\"), \"quoted\"");
    assert_eq!(rows[2][6], "'@gift");
}

#[tokio::test]
async fn requests_are_written_oldest_first_and_their_texts_are_no_formulas() {
    let files = Files::new(3).await;
    let rows =
        rows(&files.bytes(&files.export(What::Usage(UsageFilter::default()), Format::Csv)).await);
    assert_eq!(rows[0], USAGE_COLUMNS);
    let ids: Vec<_> = rows[1..].iter().map(|row| row[0].as_str()).collect();
    assert_eq!(ids, ["req_0000", "req_0001", "req_0002"]);
    assert_eq!((rows[2][3].as_str(), rows[2][10].as_str()), ("'+opus", ""));
    assert_eq!(rows[2][9], "'-1+1");
}

#[tokio::test]
async fn metadata_are_those_of_the_bytes_and_of_the_range() {
    // More than two pages.
    let files = Files::new(1100).await;
    for format in [Format::Csv, Format::Jsonl] {
        let export = Export {
            since: Some(START + 60_000),
            until: START + 60_000 * 1051,
            ..files.export(What::Ledger(None), format)
        };
        let meta = files.meta(&export).await;
        assert_eq!((meta.total.count, meta.first_seq, meta.last_seq), (1050, Some(3), Some(1052)));
        assert_eq!(meta.total.amount.to_string(), "-7.35000105");
        assert_eq!(meta.opening_balance.unwrap().to_string(), "5.1");
        assert_eq!(meta.closing_balance.unwrap().to_string(), "-2.25000105");
        let bytes = files.bytes(&export).await;
        assert_eq!(meta.bytes, bytes.len() as u64);
        assert_eq!(meta.sha256, hex(&Sha256::digest(&bytes)));
    }
    let all = files.meta(&files.export(What::Usage(UsageFilter::default()), Format::Csv)).await;
    assert_eq!((all.sums["sonnet"].count, all.sums["'+opus"].count), (550, 550));
    let empty = Export {
        since: Some(START + 70_000),
        until: START + 70_001,
        ..files.export(What::Ledger(None), Format::Csv)
    };
    let meta = files.meta(&empty).await;
    assert_eq!(meta.total.count, 0);
    assert_eq!(meta.opening_balance.unwrap().to_string(), "5.092999999");
}

#[tokio::test]
async fn a_file_that_was_changed_no_longer_fits_its_metadata() {
    let files = Files::new(3).await;
    let usage = || What::Usage(UsageFilter::default());
    for (what, format, from, to) in [
        (What::Ledger(None), Format::Csv, "5.092999999", "5.192999999"),
        (What::Ledger(None), Format::Jsonl, "\"5.092999999\"", "\"5.192999999\""),
        (What::Ledger(Some(Kind::DebitAi)), Format::Csv, "-0.007000001", "-0.006000001"),
        (usage(), Format::Csv, "0.007000001", "0.006000001"),
        (usage(), Format::Jsonl, "\"0.007000001\"", "\"0.006000001\""),
    ] {
        let export = Export { bom: true, ..files.export(what, format) };
        let path = files.save(&export).await;
        let (meta, problems) = check(&path).unwrap();
        assert_eq!(problems, Vec::<String>::new(), "{export:?}");
        assert_eq!(meta.account, "a");
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.starts_with(BYTE_ORDER_MARK), format == Format::Csv);
        std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
        let (_, problems) = check(&path).unwrap();
        // Its bytes, and what they say.
        assert!(problems.len() >= 2, "{problems:?}");
        let (short, _) = text.trim_end().rsplit_once('\n').unwrap();
        std::fs::write(&path, format!("{short}\n")).unwrap();
        assert!(check(&path).unwrap().1.iter().any(|problem| problem.starts_with("rows: ")));
    }
}

proptest! {
    /// Whatever a text is, its cell is no formula, and a reader of RFC 4180 gets it back.
    #[test]
    fn every_text_comes_back_and_none_is_a_formula(text in "[=+@'\",;\\-\\t\\r\\n 0-9a-z]{0,12}") {
        let cell = plain(&text);
        let is_number = text.parse::<Total>().is_ok();
        prop_assert!(is_number || !cell.starts_with(['=', '+', '-', '@', '\t', '\r']));
        prop_assert!(cell == text || cell.strip_prefix('\'') == Some(&text));
        let written = csv([[cell.as_str(), "x"]]);
        prop_assert_eq!(&rows(&written)[0], &vec![cell, "x".to_owned()]);
    }
}
