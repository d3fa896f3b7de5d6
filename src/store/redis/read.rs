//! What is read: accounts, lots, and the pages of the ledger and of usage.
//!
//! Pages go by the ids of streams, never by offset: page one thousand costs what the first one
//! costs. Entries that are no debits have a list of their own; filters of usage rows are looked
//! for in bounded steps, a page at a time.

use std::ops::Range;

use redis::Value;

use super::Shared;
use super::names::Name;
use super::reply::{self, Odd, Reply, no_account, no_page, number, word};
use super::rows::{self, Item};
use crate::billing::ledger::Kind;
use crate::store::sums::HOUR_MS;
use crate::store::{
    Account, AccountId, Entry, EntryFilter, LotFilter, LotRow, Millis, Page, Rows, StoreError,
    UsageFilter, UsageRow,
};

/// The largest page.
const PAGE: u32 = 500;
/// Rows that are looked at in one step.
const STEP: usize = 1000;
/// Rows that are looked at for one page. A page that ends here may have fewer rows than asked
/// for, and says where the next one begins.
const LOOKED_AT: usize = 100_000;

impl Shared {
    pub(super) async fn read_account(&self, id: &AccountId) -> Result<Account, StoreError> {
        let call = self.scripts.account.call(&self.names, id, &[]).arg(self.clock());
        let mut answer = Reply::of(self.link.run(&call).await?)?;
        if answer.text()? != "ok" {
            return Err(no_account(id));
        }
        let status = word(&answer.text()?)?;
        let (balance, held) = (answer.credits()?, answer.credits()?);
        let (in_flight, name, created_at) = (answer.number()?, answer.text()?, answer.number()?);
        let (mode, max_in_flight) = (answer.text()?, answer.text()?);
        Ok(Account {
            id: id.clone(),
            name,
            status,
            balance,
            held,
            available: balance - held,
            in_flight,
            mode: if mode.is_empty() { None } else { Some(word(&mode)?) },
            max_in_flight: max_in_flight.parse().ok(),
            created_at,
        })
    }

    /// The ids of accounts, in their order.
    pub(super) async fn list_accounts(&self, page: &Page) -> Result<Rows<AccountId>, StoreError> {
        let limit = limit(page);
        let from = page.cursor.as_ref().map_or("-".into(), |cursor| format!("({cursor}"));
        let mut cmd = redis::cmd("ZRANGEBYLEX");
        cmd.arg(self.names.accounts()).arg(from).arg("+").arg("LIMIT").arg(0).arg(limit + 1);
        let ids: Vec<_> = Reply::of(self.link.patient(&cmd).await?)?
            .map(|id| reply::text(id).map(|id| AccountId(id.into())))
            .collect::<Result<_, _>>()?;
        Ok(cut(ids, limit, ToString::to_string))
    }

    /// Accounts by id.
    pub(super) async fn read_accounts(&self, page: Page) -> Result<Rows<Account>, StoreError> {
        let ids = self.list_accounts(&page).await?;
        let accounts =
            futures_util::future::join_all(ids.data.iter().map(|id| self.read_account(id)));
        let mut data = Vec::new();
        for account in accounts.await {
            match account {
                Ok(account) => data.push(account),
                // Its name is listed before it is made.
                Err(StoreError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Rows { data, next: ids.next })
    }

    pub(super) async fn read_lots(
        &self,
        account: &AccountId,
        filter: LotFilter,
        page: &Page,
    ) -> Result<Rows<LotRow>, StoreError> {
        let limit = limit(page);
        let cursor = page.cursor.as_deref().unwrap_or_default();
        let (which, at, after) = match filter {
            LotFilter::All => ("all", "", cursor),
            LotFilter::Usable => {
                let (at, after) = cursor.split_once('.').unwrap_or(("0", ""));
                if !cursor.is_empty() && after.is_empty() {
                    return Err(no_page());
                }
                ("usable", at, after)
            }
        };
        let number = after.strip_prefix(['0', '1']).and_then(|after| after.strip_prefix(':'));
        let number = if which == "all" || cursor.is_empty() { Some(after) } else { number };
        let numbers = [at, number.ok_or_else(no_page)?];
        if numbers.iter().any(|text| !text.is_empty() && text.parse::<i64>().is_err()) {
            return Err(no_page());
        }
        let call = self.scripts.lots.call(&self.names, account, &[]).arg(self.clock()).arg(which);
        let call = call.arg((limit + 1).to_string()).arg(at).arg(after);
        let mut answer = Reply::of(self.link.patient_run(&call).await?)?;
        if answer.text()? != "ok" {
            return Err(no_account(account));
        }
        let now: Millis = answer.number()?;
        let lots = answer.list()?.map(|packed| {
            let LotRow { lot, source } = rows::lot(&reply::text(packed)?)?;
            Ok::<_, Odd>(LotRow { lot: lot.at(now), source })
        });
        let lots = lots.collect::<Result<Vec<_>, _>>()?;
        Ok(cut(lots, limit, |LotRow { lot, .. }| match filter {
            LotFilter::All => lot.number.to_string(),
            LotFilter::Usable => {
                format!("{}.{}:{:016}", lot.expires_at, lot.class as u8, lot.number)
            }
        }))
    }

    /// A page of the ledger. The cursor is the number of the last entry.
    pub(super) async fn read_entries(
        &self,
        account: &AccountId,
        filter: EntryFilter,
        page: &Page,
        order: Order,
    ) -> Result<Rows<Entry>, StoreError> {
        let limit = limit(page);
        let cursor = page.cursor.as_deref().map(number::<u64>);
        let cursor = cursor.transpose().map_err(|_| no_page())?;
        let mut from = match filter.since {
            Some(since) => self.first_since(account, since).await?,
            None => 0,
        };
        let mut until = match filter.until {
            Some(until) => self.first_since(account, until).await?,
            None => u64::MAX,
        };
        match (order, cursor) {
            (Order::NewestFirst, Some(cursor)) => until = until.min(cursor),
            (Order::OldestFirst, Some(cursor)) => from = from.max(cursor.saturating_add(1)),
            (_, None) => {}
        }
        let entries = match filter.kind {
            // Nearly every entry is a debit.
            None | Some(Kind::DebitAi) => {
                self.scan_entries(account, filter.kind, from, until, order, limit).await?
            }
            Some(kind) => self.find_entries(account, kind, from, until, order, limit).await?,
        };
        Ok(cut(entries, limit, |entry| entry.seq.to_string()))
    }

    async fn scan_entries(
        &self,
        account: &AccountId,
        kind: Option<Kind>,
        from: u64,
        until: u64,
        order: Order,
        limit: u32,
    ) -> Result<Vec<Entry>, StoreError> {
        let wanted = limit as usize + 1;
        let (mut low, mut high) = (from, until.saturating_sub(1));
        let mut entries = Vec::new();
        while low <= high && entries.len() < wanted && until > 0 {
            let key = self.names.of(account, Name::Entries);
            let range = (format!("{low}-0"), format!("{high}-0"));
            let step = if kind.is_none() { wanted } else { STEP };
            let found = self.stream(&key, range, order, step).await?;
            let is_last = found.len() < step;
            for item in found {
                let entry = item.entry()?;
                match order {
                    Order::NewestFirst => high = entry.seq.saturating_sub(1),
                    Order::OldestFirst => low = entry.seq + 1,
                }
                if entries.len() < wanted && kind.is_none_or(|kind| kind == entry.kind) {
                    entries.push(entry);
                }
            }
            if is_last || high == 0 {
                break;
            }
        }
        if entries.is_empty() {
            self.must_exist(account).await?;
        }
        Ok(entries)
    }

    async fn find_entries(
        &self,
        account: &AccountId,
        kind: Kind,
        from: u64,
        until: u64,
        order: Order,
        limit: u32,
    ) -> Result<Vec<Entry>, StoreError> {
        let wanted = limit as usize + 1;
        let (verb, first, last) = match order {
            Order::NewestFirst => ("ZREVRANGEBYSCORE", format!("({until}"), from.to_string()),
            Order::OldestFirst => ("ZRANGEBYSCORE", from.to_string(), format!("({until}")),
        };
        let (mut entries, mut skip) = (Vec::new(), 0);
        loop {
            let mut cmd = redis::cmd(verb);
            cmd.arg(self.names.of(account, Name::Others)).arg(&first).arg(&last);
            cmd.arg("LIMIT").arg(skip).arg(wanted);
            let seqs: Vec<_> = Reply::of(self.link.patient(&cmd).await?)?.collect();
            let is_last = seqs.len() < wanted;
            skip += seqs.len();
            let found = seqs.into_iter().map(|seq| async {
                let seq = reply::text(seq)?;
                let key = self.names.of(account, Name::Entries);
                let range = (format!("{seq}-0"), format!("{seq}-0"));
                self.stream(&key, range, order, 1).await
            });
            for items in futures_util::future::join_all(found).await {
                for item in items? {
                    let entry = item.entry()?;
                    if entry.kind == kind && entries.len() < wanted {
                        entries.push(entry);
                    }
                }
            }
            if is_last || entries.len() >= wanted {
                break;
            }
        }
        if entries.is_empty() {
            self.must_exist(account).await?;
        }
        Ok(entries)
    }

    /// The number of the first entry at or after a time.
    async fn first_since(&self, account: &AccountId, since: Millis) -> Result<u64, StoreError> {
        let call = self.scripts.first_since.call(&self.names, account, &[]);
        let call = call.arg(self.clock()).arg(since.to_string());
        let mut answer = Reply::of(self.link.patient_run(&call).await?)?;
        if answer.text()? != "ok" {
            return Err(no_account(account));
        }
        Ok(answer.number()?)
    }

    /// A page of requests. The cursor is the place of the last row.
    ///
    /// What a filter asks for is looked for in the next rows as they come, and if those do not
    /// fill the page, only in hours of which the sums say that they have some.
    pub(super) async fn read_usage(
        &self,
        account: &AccountId,
        filter: UsageFilter,
        page: &Page,
        order: Order,
    ) -> Result<Rows<UsageRow>, StoreError> {
        let limit = limit(page);
        let Some(places) = Places::of(&filter, page, order)? else {
            return Ok(Rows { data: Vec::new(), next: None });
        };
        let is_filtered =
            UsageFilter { since: None, until: None, ..filter.clone() } != UsageFilter::default();
        let wanted = limit as usize + 1;
        let mut search = Search { filter, order, wanted, ..Search::default() };
        let step = if is_filtered { STEP } else { wanted };
        self.look(account, places.all(), step, step, &mut search).await?;
        if let Some(last) = search.last.take_if(|_| is_filtered && search.found.len() < wanted) {
            let places = places.after(&last, order)?;
            for run in self.runs(account, &search.filter, &places, order).await? {
                self.look(account, places.within(&run), step, LOOKED_AT, &mut search).await?;
                if search.last.is_some() {
                    break;
                }
            }
        }
        let Search { found, last, .. } = search;
        if found.is_empty() {
            self.must_exist(account).await?;
        }
        // A page that is not full and yet not the last ends where we stopped looking.
        let stopped = last.filter(|_| found.len() < wanted);
        let Rows { data, next } = cut(found, limit, |(id, _)| id.clone());
        let data = data.into_iter().map(|(_, row)| row).collect();
        Ok(Rows { data, next: next.or(stopped) })
    }

    /// Looks at rows until enough are found, or so many were looked at.
    async fn look(
        &self,
        account: &AccountId,
        (mut low, mut high): (String, String),
        step: usize,
        most: usize,
        search: &mut Search,
    ) -> Result<(), StoreError> {
        let key = self.names.of(account, Name::Usage);
        while search.found.len() < search.wanted && search.looked_at < most {
            let range = (low.clone(), high.clone());
            let items = self.stream(&key, range, search.order, step).await?;
            let count = items.len();
            search.looked_at += count;
            for item in items {
                let id = item.id.clone();
                let row = item.usage()?;
                if search.found.len() < search.wanted && rows::matches(&row, &search.filter) {
                    search.found.push((id.clone(), row));
                }
                search.last = Some(id);
            }
            if count < step {
                search.last = None;
                break;
            }
            if let Some(id) = &search.last {
                match search.order {
                    Order::NewestFirst => high = format!("({id}"),
                    Order::OldestFirst => low = format!("({id}"),
                }
            }
        }
        Ok(())
    }

    /// The hours in which there may be rows of a filter, those that follow one another together.
    async fn runs(
        &self,
        account: &AccountId,
        filter: &UsageFilter,
        places: &Places,
        order: Order,
    ) -> Result<Vec<Range<i64>>, StoreError> {
        let hours = places.low.1.div_euclid(HOUR_MS)..places.high.1.div_euclid(HOUR_MS) + 1;
        let found = self.hours(account, hours, |of| of.is_asked(filter) != Some(false)).await?;
        let mut hours: Vec<i64> = found.into_iter().map(|found| found.hour).collect();
        hours.sort_unstable();
        let mut runs: Vec<Range<i64>> = Vec::new();
        for hour in hours {
            match runs.last_mut() {
                Some(run) if hour <= run.end => run.end = hour + 1,
                _ => runs.push(hour..hour + 1),
            }
        }
        if order == Order::NewestFirst {
            runs.reverse();
        }
        Ok(runs)
    }

    /// Items of a stream between two ids, both included.
    pub(super) async fn stream(
        &self,
        key: &str,
        (low, high): (String, String),
        order: Order,
        count: usize,
    ) -> Result<Vec<Item>, StoreError> {
        let mut cmd = match order {
            Order::NewestFirst => {
                let mut cmd = redis::cmd("XREVRANGE");
                cmd.arg(key).arg(high).arg(low);
                cmd
            }
            Order::OldestFirst => {
                let mut cmd = redis::cmd("XRANGE");
                cmd.arg(key).arg(low).arg(high);
                cmd
            }
        };
        cmd.arg("COUNT").arg(count);
        let items = Reply::of(self.link.patient(&cmd).await?)?;
        Ok(items.map(Item::read).collect::<Result<_, _>>()?)
    }

    pub(super) async fn must_exist(&self, account: &AccountId) -> Result<(), StoreError> {
        let mut cmd = redis::cmd("EXISTS");
        cmd.arg(self.names.of(account, Name::Account));
        match self.link.quick(&cmd).await? {
            Value::Int(1) => Ok(()),
            _ => Err(no_account(account)),
        }
    }
}

/// Which end of a list is shown first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Order {
    #[default]
    NewestFirst,
    OldestFirst,
}

/// Rows that are looked for.
#[derive(Default)]
struct Search {
    filter: UsageFilter,
    order: Order,
    wanted: usize,
    found: Vec<(String, UsageRow)>,
    looked_at: usize,
    /// The last row that was looked at, unless there are no more.
    last: Option<String>,
}

/// The first and the last place that rows may have, and the times of these.
struct Places {
    low: (String, Millis),
    high: (String, Millis),
}

impl Places {
    /// Of a page; none, if there can be no rows.
    fn of(filter: &UsageFilter, page: &Page, order: Order) -> Result<Option<Self>, StoreError> {
        let since = filter.since.unwrap_or(0).max(0);
        let until = filter.until.unwrap_or(Millis::MAX);
        if until <= 0 {
            return Ok(None);
        }
        let places =
            Self { low: (since.to_string(), since), high: ((until - 1).to_string(), until - 1) };
        match &page.cursor {
            Some(cursor) => places.after(cursor, order).map(Some),
            None => Ok(Some(places)),
        }
    }

    /// Those behind the place of a row.
    fn after(self, id: &str, order: Order) -> Result<Self, StoreError> {
        let (ts, n) = id.split_once('-').ok_or_else(no_page)?;
        let (Ok(ts), Ok(_)) = (ts.parse::<Millis>(), n.parse::<u64>()) else {
            return Err(no_page());
        };
        let edge = (format!("({id}"), ts);
        Ok(match order {
            Order::NewestFirst => Self { high: edge, ..self },
            Order::OldestFirst => Self { low: edge, ..self },
        })
    }

    fn all(&self) -> (String, String) {
        (self.low.0.clone(), self.high.0.clone())
    }

    /// Those of some hours.
    fn within(&self, hours: &Range<i64>) -> (String, String) {
        let (first, last) = (hours.start * HOUR_MS, hours.end * HOUR_MS - 1);
        let (mut low, mut high) = self.all();
        if first > self.low.1 {
            low = first.to_string();
        }
        if last < self.high.1 {
            high = last.to_string();
        }
        (low, high)
    }
}

fn limit(page: &Page) -> u32 {
    page.limit.clamp(1, PAGE)
}

/// One row more than the page was read: it tells whether there is a next page.
fn cut<T>(mut data: Vec<T>, limit: u32, cursor: impl Fn(&T) -> String) -> Rows<T> {
    let limit = limit as usize;
    let next = if data.len() > limit { data.get(limit - 1).map(cursor) } else { None };
    data.truncate(limit);
    Rows { data, next }
}
