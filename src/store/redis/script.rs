//! The operations as scripts: one file each, run in one step by the server.
//!
//! A script names the keys that it touches, and all of them are given with the call, so that
//! a cluster can tell where it runs. They are sent by their hash; a server that does not know
//! it, because it was restarted or another one took over, is sent the text.

use std::io::Write as _;

use redis::Cmd;

use super::names::{Name, Names};
use crate::store::AccountId;

/// A script, ready to be called.
pub(super) struct Script {
    text: String,
    hash: String,
    keys: &'static [Name],
    /// Whether it may run where nothing can be written.
    reads_only: bool,
}

impl Script {
    fn new(keys: &'static [Name], files: &[&str], reads_only: bool) -> Self {
        let names: Vec<_> = keys.iter().map(|key| key.variable()).collect();
        let values: Vec<_> = (1..=keys.len()).map(|n| format!("KEYS[{n}]")).collect();
        let head = match keys {
            [] => String::new(),
            _ => format!("local {} = {}\n", names.join(", "), values.join(", ")),
        };
        let text = head + &files.join("\n");
        let hash = redis::Script::new(&text).get_hash().to_owned();
        Self { text, hash, keys, reads_only }
    }

    /// How many keys a call has before those of its own.
    pub(super) fn fixed_keys(&self) -> usize {
        self.keys.len()
    }

    /// A call by hash on these keys alone.
    pub(super) fn call_on(&self, keys: Vec<String>) -> Call<'_> {
        Call { script: self, keys, values: Vec::new(), ends: Vec::new() }
    }

    /// A call by hash. `more` are further keys, behind those that the script names.
    pub(super) fn call(&self, names: &Names, account: &AccountId, more: &[String]) -> Call<'_> {
        let mut keys: Vec<String> = self.keys.iter().map(|key| names.of(account, *key)).collect();
        keys.extend_from_slice(more);
        Call { script: self, keys, values: Vec::new(), ends: Vec::new() }
    }
}

/// A script with its keys and arguments.
pub(super) struct Call<'a> {
    script: &'a Script,
    keys: Vec<String>,
    /// One after the other.
    values: Vec<u8>,
    /// Where each ends.
    ends: Vec<usize>,
}

impl Call<'_> {
    /// A key of the call, to find where it runs.
    pub(super) fn key(&self) -> &str {
        self.keys.first().map_or("", String::as_str)
    }

    /// One more argument.
    pub(super) fn arg(mut self, value: impl AsRef<[u8]>) -> Self {
        self.push(value);
        self
    }

    /// One more argument, in place.
    pub(super) fn push(&mut self, value: impl AsRef<[u8]>) {
        self.values.extend_from_slice(value.as_ref());
        self.ends.push(self.values.len());
    }

    /// One more argument, in place, as it is displayed.
    pub(super) fn push_display(&mut self, value: impl std::fmt::Display) {
        // A vector takes everything.
        let _ = write!(self.values, "{value}");
        self.ends.push(self.values.len());
    }

    /// The command that names the script by its hash.
    pub(super) fn by_hash(&self) -> Cmd {
        let verb = if self.script.reads_only { "EVALSHA_RO" } else { "EVALSHA" };
        self.command(verb, &self.script.hash)
    }

    /// The command that brings the script with it.
    pub(super) fn by_text(&self) -> Cmd {
        let verb = if self.script.reads_only { "EVAL_RO" } else { "EVAL" };
        self.command(verb, &self.script.text)
    }

    fn command(&self, verb: &str, script: &str) -> Cmd {
        let mut cmd = redis::cmd(verb);
        cmd.arg(script).arg(self.keys.len());
        for key in &self.keys {
            cmd.arg(key);
        }
        let mut from = 0;
        for end in &self.ends {
            cmd.arg(&self.values[from..*end]);
            from = *end;
        }
        cmd
    }
}

const BOOKS: &str = include_str!("lua/books.lua");
const FLIGHTS: &str = include_str!("lua/flights.lua");
const KEYS: &str = include_str!("lua/keys.lua");
const UNDO: &str = include_str!("lua/undo.lua");

/// Every script.
pub(super) struct Scripts {
    pub create_account: Script,
    pub account: Script,
    pub admit: Script,
    pub release: Script,
    pub settle: Script,
    pub grant: Script,
    pub refund: Script,
    pub reverse: Script,
    pub close: Script,
    pub sweep: Script,
    pub lots: Script,
    pub first_since: Script,
    pub lend: Script,
    pub board: Script,
    pub renew: Script,
    pub due: Script,
    pub put_key: Script,
    pub key_use: Script,
    pub configure: Script,
    pub books_head: Script,
    pub trim: Script,
    pub extent: Script,
    pub snapshot: Script,
    pub load: Script,
    pub over: Script,
    pub document: Script,
    pub put_document: Script,
    pub own: Script,
    pub owns: Script,
}

impl Scripts {
    pub(super) fn new() -> Self {
        use Name::{
            Account, Entries, Flights, Hourly, Hours, Keys, Lent, Lost, LotOrder, Lots, Operations,
            Others, Over, Places, Rates, Running, Spent, Terms, Trimmed, Undone, Usage,
        };
        const MONEY: &[Name] = &[Account, LotOrder, Lots, Entries, Others, Operations, Undone];
        const WHOLE: &[Name] = &[
            Account, LotOrder, Lots, Entries, Others, Usage, Hours, Hourly, Places, Flights,
            Running, Lost, Operations, Terms, Spent, Rates, Lent,
        ];
        const SETTLE: &[Name] = &[
            Account, LotOrder, Lots, Entries, Others, Usage, Hours, Hourly, Places, Flights,
            Running, Lost, Operations, Terms, Spent, Rates, Lent, Over,
        ];
        let writes = |keys, files: &[&str]| Script::new(keys, files, false);
        let reads = |keys, files: &[&str]| Script::new(keys, files, true);
        Self {
            create_account: writes(&[Account], &[BOOKS, include_str!("lua/create_account.lua")]),
            account: reads(
                &[Account, LotOrder, Lots, Places, Flights],
                &[BOOKS, FLIGHTS, include_str!("lua/account.lua")],
            ),
            admit: writes(WHOLE, &[BOOKS, FLIGHTS, KEYS, include_str!("lua/admit.lua")]),
            release: writes(WHOLE, &[BOOKS, FLIGHTS, KEYS, include_str!("lua/release.lua")]),
            settle: writes(SETTLE, &[BOOKS, FLIGHTS, KEYS, include_str!("lua/settle.lua")]),
            grant: writes(MONEY, &[BOOKS, include_str!("lua/grant.lua")]),
            refund: writes(MONEY, &[BOOKS, UNDO, include_str!("lua/refund.lua")]),
            reverse: writes(MONEY, &[BOOKS, UNDO, include_str!("lua/reverse.lua")]),
            close: writes(WHOLE, &[BOOKS, FLIGHTS, include_str!("lua/close.lua")]),
            sweep: writes(WHOLE, &[BOOKS, FLIGHTS, include_str!("lua/sweep.lua")]),
            lots: reads(&[Account, LotOrder, Lots], &[BOOKS, include_str!("lua/lots.lua")]),
            first_since: reads(&[Account, Entries], &[BOOKS, include_str!("lua/first_since.lua")]),
            lend: writes(WHOLE, &[BOOKS, FLIGHTS, include_str!("lua/lend.lua")]),
            board: writes(WHOLE, &[BOOKS, FLIGHTS, include_str!("lua/board.lua")]),
            renew: writes(&[Places], &[BOOKS, include_str!("lua/renew.lua")]),
            due: writes(&[], &[include_str!("lua/due.lua")]),
            put_key: writes(
                &[Account, Keys, Terms, Spent, Usage, Lent],
                &[BOOKS, include_str!("lua/put_key.lua")],
            ),
            key_use: reads(
                &[Account, Terms, Spent, Rates, Running],
                &[BOOKS, FLIGHTS, KEYS, include_str!("lua/key_use.lua")],
            ),
            configure: writes(&[Account, Lent], &[BOOKS, include_str!("lua/configure.lua")]),
            books_head: reads(
                &[Account, Lots, Usage, Hours, Hourly, Flights, Trimmed],
                &[BOOKS, FLIGHTS, include_str!("lua/books_head.lua")],
            ),
            trim: writes(
                &[Trimmed, Entries, Others, Undone, Usage, Lost],
                &[BOOKS, include_str!("lua/trim.lua")],
            ),
            extent: reads(&[Account, Entries, Trimmed], &[BOOKS, include_str!("lua/extent.lua")]),
            snapshot: reads(
                &[
                    Account, LotOrder, Lots, Operations, Undone, Usage, Hours, Hourly, Lost, Keys,
                    Terms, Spent, Trimmed,
                ],
                &[BOOKS, FLIGHTS, include_str!("lua/snapshot.lua")],
            ),
            over: writes(&[Over], &[include_str!("lua/over.lua")]),
            load: writes(&[], &[include_str!("lua/load.lua")]),
            document: reads(&[], &[BOOKS, include_str!("lua/document.lua")]),
            put_document: writes(&[], &[BOOKS, include_str!("lua/put_document.lua")]),
            own: writes(&[], &[BOOKS, include_str!("lua/own.lua")]),
            owns: reads(&[], &[BOOKS, include_str!("lua/owns.lua")]),
        }
    }
}
