//! The one seam: where balances live.
//!
//! A [`Store`] offers whole operations, each atomic and idempotent by its id, never reads
//! and writes that a caller combines. Balances change here and nowhere else. Every method
//! on money may be called again after an unknown outcome with the same id and content.
//! Documents are the one exception: they are compared and set by version.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use utoipa::ToSchema;

use crate::billing::audit::Record;
use crate::billing::ledger::{Expiry, Kind, LedgerError, Lot, Part};
use crate::billing::{Credits, Usage};
use crate::key::KeyHash;

pub use crate::time::Millis;
pub use limits::{
    AccountChange, Admission, Admitted, Change, KeyChange, KeyLimits, KeyUse, LimitsChange,
    Measure, Mode, Period, RateUse, Refused, Spend,
};

pub mod audit;
pub mod embedded;
#[cfg(test)]
mod examples;
mod fingerprint;
pub mod home;
pub mod journal;
mod limits;
mod pace;
pub mod redis;
mod sums;

/// The answer of a store, once it is durable.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Who pays: 1–64 characters of `a–z 0–9 _ -`, chosen at creation, never changed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AccountId(pub Arc<str>);

impl std::fmt::Display for AccountId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a store did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// No such account, key or entry.
    #[error("there is no {0}")]
    NotFound(String),
    /// The id is taken by something else, or the same operation came with other content.
    #[error("{0}")]
    Conflict(String),
    /// The amount cannot be booked.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The store cannot be read or written now. Whether the operation happened is unknown
    /// until it is repeated with the same id.
    #[error("the ledger cannot be reached: {0}")]
    Unavailable(String),
}

/// Open, or no longer served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Requests are admitted while the balance is positive.
    Open,
    /// Nothing is admitted; what runs is still settled.
    Closing,
    /// Ended.
    Closed,
}

impl Status {
    /// The word that the API shows.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Closing => "closing",
            Self::Closed => "closed",
        }
    }
}

/// An account as everyone sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Account {
    /// Its id.
    #[schema(value_type = String)]
    pub id: AccountId,
    /// Shown beside the id.
    pub name: String,
    /// Whether it is served.
    pub status: Status,
    /// Credits, debt taken off; may be negative.
    #[schema(value_type = String)]
    pub balance: Credits,
    /// Credits held for requests that run.
    #[schema(value_type = String)]
    pub held: Credits,
    /// `balance` less `held`.
    #[schema(value_type = String)]
    pub available: Credits,
    /// Requests that run now.
    pub in_flight: u32,
    /// How requests are admitted; none: as the configuration says.
    pub mode: Option<Mode>,
    /// Requests that may run at once; none: as the configuration says.
    pub max_in_flight: Option<u32>,
    /// When it was made.
    #[serde(with = "crate::time::millis")]
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Millis,
}

/// A client key, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Key {
    /// `key_…`
    pub id: String,
    /// Whose requests it signs.
    #[schema(value_type = String)]
    pub account: AccountId,
    /// Shown in usage rows.
    pub name: String,
    /// The default attribution of its requests, such as `heartbeat`.
    pub tag: Option<String>,
    /// Models it may call, `*` standing for any characters; empty means all.
    pub models: Vec<String>,
    /// How requests are refused when credits are used up.
    pub rejection: Rejection,
    /// What it may spend, and how often it may be used.
    #[serde(default)]
    pub limits: KeyLimits,
    /// The last four characters of the secret.
    pub last4: String,
    /// When it was made.
    #[serde(with = "crate::time::millis")]
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Millis,
    /// When it stops being valid.
    #[serde(with = "crate::time::optional")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Millis>,
    /// When it was revoked.
    #[serde(with = "crate::time::optional")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub revoked_at: Option<Millis>,
}

/// The reply to a request without credits; clients differ in what they do with it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Rejection {
    /// 402 in words that every client shows and none locks on.
    #[default]
    Limit,
    /// 402 in plain billing words.
    Billing,
    /// 400 in neutral words.
    BadRequest,
    /// 200 with the text as the assistant's message.
    Message,
}

/// A request that asks for a place, and what is known of it should the process die meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Ours: `req_…`, the id of its settlement.
    pub id: String,
    /// The model as asked, by its entry's name.
    pub model: String,
}

/// Where the counts of a usage row come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The upstream reported them.
    Reported,
    /// The upstream reported them after the client had left.
    Drained,
    /// Some of them are ours.
    Estimated,
    /// Nothing was used.
    None,
}

impl Source {
    /// The name in usage and in the API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reported => "reported",
            Self::Drained => "drained",
            Self::Estimated => "estimated",
            Self::None => "none",
        }
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The reply reached its end.
    Completed,
    /// The client left before the end.
    ClientClosed,
    /// The upstream refused or failed before any output.
    UpstreamError,
    /// The upstream failed after some output.
    UpstreamCut,
    /// The process died while the request ran; it was not charged.
    Abandoned,
}

impl Outcome {
    /// The name in usage and in the API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::ClientClosed => "client_closed",
            Self::UpstreamError => "upstream_error",
            Self::UpstreamCut => "upstream_cut",
            Self::Abandoned => "abandoned",
        }
    }
}

/// Who and what a request was for, as far as the client says. Never used to authorise.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Attribution {
    /// One run of an agent: the trace id of `traceparent`.
    pub run: Option<String>,
    /// The agent's name.
    pub agent: Option<String>,
    /// The agent's session.
    pub session: Option<String>,
    /// `user`, `heartbeat` or `cron`.
    pub origin: Option<String>,
    /// The header `x-farebox-tag`, else the key's tag.
    pub tag: Option<String>,
}

/// The end of one request: everything that is written in one step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settlement {
    /// Ours, made at admission: `req_…`. The debit happens once by this id.
    pub id: String,
    /// Who pays.
    pub account: AccountId,
    /// The id of the key that signed.
    pub key: String,
    /// The model as asked, by its entry's name.
    pub model: String,
    /// The model that the reply names, where it is another.
    pub served_model: Option<String>,
    /// The upstream that answered, or the last one tried; empty if none was.
    pub upstream: String,
    /// Attribution.
    pub attribution: Attribution,
    /// What was used.
    pub usage: Usage,
    /// What it costs, tokens of other models on the same request included.
    pub charge: Credits,
    /// The price table it was priced by.
    pub price_version: String,
    /// Milliseconds to the first byte of the reply's body.
    pub ttft_ms: Option<u32>,
    /// Milliseconds to the end.
    pub latency_ms: u32,
    /// Whether the client asked for a stream.
    pub stream: bool,
    /// How it ended.
    pub outcome: Outcome,
    /// Whose counts they are.
    pub source: Source,
    /// The status that the client got.
    pub http_status: u16,
    /// What was odd: `served_model`, `usage_regressed`, `unpriced_tier`, …, comma-separated.
    pub flags: String,
}

/// What a settlement did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled {
    /// The balance after it. None: the store is away; the debit is kept on disk here, and is
    /// booked as soon as the store is back.
    pub balance: Option<Credits>,
    /// It had been settled before; nothing was written now.
    pub duplicate: bool,
}

/// A change of the balance by the operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Whose balance.
    pub account: AccountId,
    /// `Topup` or `Promo` (above zero), or `Adjust` (either way).
    pub kind: Kind,
    /// Signed.
    pub amount: Credits,
    /// When promotional credits end, at the latest after twelve months; others end then.
    pub expires: Option<Expiry>,
    /// Why; shown in the ledger.
    pub note: String,
    /// Idempotency: the same id with the same content answers the first result.
    pub id: String,
}

/// A debit or a payment that is undone, whole or in part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undo {
    /// Whose.
    pub account: AccountId,
    /// The request that was charged, or the id of the payment.
    pub of: String,
    /// Above zero; none: what is left of it.
    pub amount: Option<Credits>,
    /// Why; shown in the ledger.
    pub note: String,
    /// Idempotency: the same id with the same content answers the first result.
    pub id: String,
}

/// A lot, and what granted it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LotRow {
    /// The lot.
    #[serde(flatten)]
    pub lot: Lot,
    /// The `ref` of the entry that granted it.
    pub source: String,
}

/// Which lots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LotFilter {
    /// Those that can be used now, in the order in which they will be.
    #[default]
    Usable,
    /// All that ever were, newest first.
    All,
}

/// A line of the ledger. Never edited; a correction is a new entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Entry {
    /// Dense, from 1, per account.
    pub seq: u64,
    /// When, by the store's clock; never before the entry ahead of it.
    #[serde(with = "crate::time::millis")]
    #[schema(value_type = String, format = DateTime)]
    pub ts: Millis,
    /// What it is about.
    pub kind: Kind,
    /// Signed.
    #[schema(value_type = String)]
    pub amount: Credits,
    /// The balance with this entry.
    #[schema(value_type = String)]
    pub balance_after: Credits,
    /// The request or operation behind it.
    #[serde(rename = "ref")]
    pub reference: String,
    /// A reason, where there is one.
    pub note: Option<String>,
    /// The sequence number of the entry that this one undoes.
    pub undoes: Option<u64>,
    /// What the amount is made of, in the order in which it was taken or given.
    pub parts: Vec<Part>,
}

/// What a grant did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// The entry, of now or of the first time.
    pub entry: Entry,
    /// It had been granted before.
    pub duplicate: bool,
}

/// One request, as billed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UsageRow {
    /// `req_…`
    pub id: String,
    /// When it was settled.
    #[serde(with = "crate::time::millis")]
    #[schema(value_type = String, format = DateTime)]
    pub ts: Millis,
    /// As asked.
    pub model: String,
    /// As answered, where it is another.
    pub served_model: Option<String>,
    /// Who answered.
    pub upstream: String,
    /// The key's id.
    pub key: String,
    /// Attribution: `tag`, `run`, `agent`, `session`, `origin`.
    #[serde(flatten)]
    pub attribution: Attribution,
    /// Input outside any cache.
    pub input_tokens: u64,
    /// Input read from a cache.
    pub cached_input_tokens: u64,
    /// Input written to a cache, default lifetime.
    pub cache_creation_5m_tokens: u64,
    /// Input written to a cache, one hour.
    pub cache_creation_1h_tokens: u64,
    /// Output, reasoning included.
    pub output_tokens: u64,
    /// The part of the output that was reasoning.
    pub reasoning_tokens: u64,
    /// What was debited.
    #[schema(value_type = String)]
    pub charge: Credits,
    /// The price table it was priced by.
    pub price_version: String,
    /// Milliseconds to the first byte of the reply's body.
    pub ttft_ms: Option<u32>,
    /// Milliseconds to the end.
    pub latency_ms: u32,
    /// Whether a stream was asked for.
    pub stream: bool,
    /// How it ended.
    pub outcome: Outcome,
    /// Whose counts they are.
    pub source: Source,
    /// The status that the client got.
    pub http_status: u16,
    /// Calls of tools that the upstream bills by the call.
    #[schema(value_type = Object)]
    pub calls: std::collections::BTreeMap<String, u64>,
    /// What was odd.
    pub flags: Vec<String>,
}

/// A page of a list: at most `limit` rows, those after `cursor`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Where the page before ended, as it said in `next`.
    pub cursor: Option<String>,
    /// 1–500.
    pub limit: u32,
}

/// Rows, and where the next page begins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Rows<T> {
    /// The rows of this page.
    pub data: Vec<T>,
    /// The cursor of the next page; absent on the last.
    pub next: Option<String>,
}

/// Which ledger entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EntryFilter {
    /// Of this kind.
    pub kind: Option<Kind>,
    /// Not before.
    pub since: Option<Millis>,
    /// Before.
    pub until: Option<Millis>,
}

/// Which usage rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UsageFilter {
    /// Not before.
    pub since: Option<Millis>,
    /// Before.
    pub until: Option<Millis>,
    /// Exactly this model.
    pub model: Option<String>,
    /// Exactly this key's id.
    pub key: Option<String>,
    /// Exactly this tag.
    pub tag: Option<String>,
    /// Exactly this upstream.
    pub upstream: Option<String>,
    /// Exactly this origin.
    pub origin: Option<String>,
    /// Exactly this source.
    pub source: Option<Source>,
    /// Exactly this outcome.
    pub outcome: Option<Outcome>,
}

/// What a summary is grouped by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// The model as asked.
    Model,
    /// The key's id.
    Key,
    /// The tag.
    Tag,
    /// The upstream that answered.
    Upstream,
    /// The calendar day of the time zone.
    Day,
    /// The whole hour, by its first instant in UTC.
    Hour,
}

/// One group of a summary.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SummaryRow {
    /// The model, the key's id, the tag (empty: none), the upstream (empty: none), the day
    /// (`YYYY-MM-DD`) or the hour (RFC 3339, UTC).
    pub group: String,
    /// Requests.
    pub requests: u64,
    /// Input outside any cache.
    pub input_tokens: u64,
    /// Input read from a cache.
    pub cached_input_tokens: u64,
    /// Input written to a cache, of both lifetimes.
    pub cache_creation_tokens: u64,
    /// Output.
    pub output_tokens: u64,
    /// What was debited.
    #[schema(value_type = String)]
    pub charge: Credits,
    /// Requests of which some counts are ours.
    pub estimated: u64,
}

/// What waits in a journal for the store behind it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Backlog {
    /// Operations that the store has not taken yet.
    pub pending: u64,
    /// When the oldest of them was made.
    #[serde(with = "crate::time::optional")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub oldest: Option<Millis>,
    /// Operations since the start that the store refused for good when they were sent again;
    /// each is in the log.
    pub refused: u64,
    /// Operations since the start that the store had lost and took again.
    pub recovered: u64,
    /// Why nothing is admitted now, if so.
    pub halted: Option<String>,
}

/// Whose a document is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Of the whole installation.
    Installation,
    /// Of one account.
    Account(AccountId),
}

/// Something small that is neither money nor usage: a session, settings, what was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Its content; by convention JSON.
    pub body: String,
    /// Grows with each change, also across a deletion.
    pub version: u64,
}

/// A change of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    /// At most 256 bytes of the caller's choice, such as `settings` or `session/…`.
    pub name: String,
    /// The new content; none: the document ends.
    pub body: Option<String>,
    /// The version that is replaced; none: there must be no such document.
    pub replaces: Option<u64>,
    /// From then on the document is not there.
    pub expires_at: Option<Millis>,
}

/// What a store is and how it does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoreStatus {
    /// `sqlite` or `redis`.
    pub kind: String,
    /// Where it is; never with a password.
    pub location: String,
    /// The version of its schema, where it has one.
    pub schema: Option<i64>,
    /// Its size: of the file with its log, or in memory.
    pub bytes: u64,
    /// The size of its log, or of its append-only files.
    pub log_bytes: u64,
    /// Accounts.
    pub accounts: u64,
    /// Entries, without those that were trimmed.
    pub entries: u64,
    /// Entries that were trimmed.
    pub trimmed: u64,
    /// The latest instant before which something was trimmed.
    #[serde(with = "crate::time::optional")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub trimmed_before: Option<Millis>,
    /// The time of the oldest entry.
    #[serde(with = "crate::time::optional")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub oldest_entry: Option<Millis>,
    /// Operations that wait to be written, or in the journal; absent if no process serves it,
    /// or there is no journal.
    pub pending: Option<u64>,
    /// What a commit waits for; absent if no process serves it.
    pub durability: Option<String>,
    /// Why it cannot be written now, or what is wrong with it.
    pub problem: Option<String>,
    /// The servers of a shared store.
    #[serde(default)]
    pub server: Option<ServerStatus>,
}

/// The servers of a shared store, as they tell about themselves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServerStatus {
    /// Such as `Redis 7.2.4`.
    pub version: String,
    /// Servers that take writes; several in a cluster.
    pub masters: u64,
    /// Replicas that are connected to them.
    pub replicas: u64,
    /// What their memory is limited to.
    pub memory_limit_bytes: Option<u64>,
    /// What they do when it is full: `noeviction`, or balances may go.
    pub eviction: String,
    /// Keys, those of other programs included.
    pub keys: u64,
    /// What can be lost of what was acknowledged, by their settings.
    pub may_lose: String,
}

/// Where balances live.
pub trait Store: Send + Sync + 'static {
    /// Makes an account with no credits. `Conflict` if the id exists.
    fn create_account(&self, id: AccountId, name: String) -> Answer<'_, Account>;
    /// One account.
    fn account(&self, id: &AccountId) -> Answer<'_, Account>;
    /// All accounts, by id.
    fn accounts(&self, page: Page) -> Answer<'_, Rows<Account>>;
    /// Changes the name of an account, or how its requests are admitted; in force for the next
    /// request.
    fn configure_account(&self, id: &AccountId, change: AccountChange) -> Answer<'_, Account>;

    /// Keeps a key under the hash of its secret. `Conflict` if the hash exists.
    fn create_key(&self, key: Key, hash: KeyHash) -> Answer<'_, Key>;
    /// The key with this hash, revoked or not. On the hot path.
    fn key(&self, hash: &KeyHash) -> Answer<'_, Option<Arc<Key>>>;
    /// The keys of an account, revoked ones too, oldest first.
    fn keys(&self, account: &AccountId) -> Answer<'_, Vec<Key>>;
    /// Changes a key, also one that is in use; in force for the next request.
    fn change_key(&self, account: &AccountId, id: &str, change: KeyChange) -> Answer<'_, Key>;
    /// What is used of a key's limits now.
    fn key_use(&self, account: &AccountId, id: &str) -> Answer<'_, KeyUse>;
    /// Ends a key at once. Revoking twice is revoking once.
    fn revoke_key(&self, account: &AccountId, id: &str) -> Answer<'_, Key>;

    /// Takes a place for a request, or says why not. On the hot path.
    ///
    /// Decided in one step, by what the store knows now of the account (status, balance, what
    /// is held, requests that run) and of the key (whether it is still valid, its limits); of
    /// `key` only its id and its account count. Limits of keys are checked in the order
    /// spend, concurrency, requests and tokens a minute; nothing is counted of who is refused.
    ///
    /// The place is the request's until `settle` answers, or `release`. A store that outlives
    /// this process lends it for a time, and renews it by itself for as long as the process
    /// lives, so a dead process holds nothing for long. In a store that dies with its process
    /// places end with it. Whose place has ended is settled all the same, once.
    fn admit(
        &self,
        key: &Key,
        request: Candidate,
        how: Admission,
    ) -> Answer<'_, Result<Admitted, Refused>>;
    /// Gives the place back; nothing is charged.
    fn release(&self, account: &AccountId, request: &str);
    /// Debit, ledger entry, usage row and daily totals in one step, and the place given back.
    ///
    /// A charge of zero writes the usage row and an entry of zero only if `outcome` is
    /// `Completed`, else the row alone. Durable when answered. On the hot path.
    fn settle(&self, settlement: Settlement) -> Answer<'_, Settled>;
    /// Credits by the operator. Durable when answered.
    fn grant(&self, grant: Grant) -> Answer<'_, Granted>;
    /// Gives back what a request was charged, to where it came from. Durable when answered.
    fn refund(&self, refund: Undo) -> Answer<'_, Granted>;
    /// Takes back a payment that the payer's bank took back. Durable when answered.
    fn reverse(&self, reversal: Undo) -> Answer<'_, Granted>;
    /// Ends an account: nothing is admitted any more, what runs is settled, and then every
    /// lot is forfeited. `id` is the operation's, as in [`Grant`]. Closing twice is closing
    /// once.
    fn close_account(&self, account: &AccountId, id: String) -> Answer<'_, Account>;
    /// The lots of an account.
    fn lots(&self, account: &AccountId, filter: LotFilter, page: Page) -> Answer<'_, Rows<LotRow>>;

    /// The ledger of an account, newest first.
    fn entries(
        &self,
        account: &AccountId,
        filter: EntryFilter,
        page: Page,
    ) -> Answer<'_, Rows<Entry>>;
    /// The requests of an account, newest first.
    fn usage(
        &self,
        account: &AccountId,
        filter: UsageFilter,
        page: Page,
    ) -> Answer<'_, Rows<UsageRow>>;
    /// The ledger of an account, oldest first: as it grows it never changes what was read.
    fn entries_oldest_first(
        &self,
        account: &AccountId,
        filter: EntryFilter,
        page: Page,
    ) -> Answer<'_, Rows<Entry>>;
    /// The requests of an account, oldest first.
    fn usage_oldest_first(
        &self,
        account: &AccountId,
        filter: UsageFilter,
        page: Page,
    ) -> Answer<'_, Rows<UsageRow>>;
    /// Sums over the requests of an account, dearest group first; days in order.
    fn summary(
        &self,
        account: &AccountId,
        filter: UsageFilter,
        by: Group,
        zone: jiff::tz::TimeZone,
    ) -> Answer<'_, Vec<SummaryRow>>;

    /// Accounts of which anything is written, whether they exist or not, by id: for an audit.
    fn audited_accounts(&self, page: Page) -> Answer<'_, Rows<AccountId>>;
    /// Hands over everything that is written of an account, as it was at one instant, in the
    /// order of [`Record`]. Ends early if nobody listens. `Unsound`, if it cannot be understood;
    /// `Conflict`, if it was trimmed meanwhile: what was handed over is then to be forgotten.
    fn read_books(&self, account: &AccountId, records: mpsc::Sender<Vec<Record>>)
    -> Answer<'_, ()>;

    /// Removes entries and requests from before an instant; a checkpoint stands for them, so
    /// that balances, sums and audits stay as they are. They must have been exported.
    /// Two may trim an account at a time, and one may be cut off.
    fn trim(&self, account: &AccountId, before: Millis) -> Answer<'_, ()>;

    /// What the store is and how it does.
    fn status(&self) -> Answer<'_, StoreStatus>;
    /// A copy in one file, which is gone once it is closed: everything, or, where that is more
    /// than one instant can hold, each account as it was at one.
    fn backup(&self) -> Answer<'_, std::fs::File>;

    /// Remembers that an account created an object at an upstream (a stored response),
    /// for 30 days.
    fn own(&self, account: &AccountId, object: &str) -> Answer<'_, ()>;
    /// Whether it did.
    fn owns(&self, account: &AccountId, object: &str) -> Answer<'_, bool>;

    /// A word for the history that acknowledged writes are in. Another word than before means
    /// that the last of them may be gone: the server restarted, or a replica took its place.
    fn epoch(&self) -> Answer<'_, String>;
    /// What waits to be sent to the store; none where no journal stands before it.
    fn backlog(&self) -> Option<Backlog> {
        None
    }

    /// A document, if it is there and has not expired.
    fn document(&self, scope: &Scope, name: &str) -> Answer<'_, Option<Document>>;
    /// Changes a document if it still has the version that the caller saw, and answers the
    /// new version. `Conflict` if it has another; `NotFound` if there is no such account.
    /// Durable when answered. Not idempotent: after an unknown outcome, read again.
    fn put_document(&self, scope: &Scope, put: Put) -> Answer<'_, u64>;

    /// Whether a debit could be written now.
    fn ready(&self) -> Answer<'_, ()>;
    /// Writes what waits, then closes.
    fn close(&self) -> Answer<'_, ()>;
}
