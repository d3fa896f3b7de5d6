//! A server that died while it wrote may have half of a transaction at the end of its file.
//!
//! It loads what lies before that, but keeps the half in the file where it was cut off inside a
//! command, and writes on behind it. When it is started once more, the half is carried out with the
//! next transaction: rows and debits come back that were booked again meanwhile (seen with Redis
//! 7.0 and Valkey 8.0). So nothing of ours is written to a file that a server was started with.
//! Whoever connects to a process that none of us knows asks it to begin a new one, before
//! anything else.

use std::time::Duration;

use super::OpenError;
use super::check::{Unready, field, text};
use super::link::{Away, Conn, Link};
use super::reply;

/// How often we look whether a new file is begun, and the time between two looks. Who waits for
/// longer is told so, and comes again.
const LOOKS: u32 = 40;
const PAUSE: Duration = Duration::from_millis(50);

impl Link {
    /// Lets each server begin a new file, unless that was done since it was started.
    pub(super) async fn begin_files(&self, conn: &mut Conn) -> Result<(), Unready> {
        let mut info = redis::cmd("INFO");
        info.arg("everything");
        let infos = self.ask_each_master(conn, &info).await?;
        let infos: Vec<_> = infos.iter().map(text).collect();
        if infos.iter().all(|info| field(info, "aof_enabled") != Some("1")) {
            return Ok(());
        }
        let mut runs: Vec<_> =
            infos.iter().map(|info| field(info, "run_id").unwrap_or_default()).collect();
        runs.sort_unstable();
        let runs = runs.join(" ");
        let mut get = redis::cmd("GET");
        get.arg(&self.vet().files);
        let known = reply::maybe(self.ask_patiently(conn, &get).await?);
        if known.is_ok_and(|known| known.as_ref() == Some(&runs)) {
            return Ok(());
        }
        match self.ask_each_master(conn, &redis::cmd("BGREWRITEAOF")).await {
            Ok(_) => {}
            // By whoever came before us.
            Err(Away(why)) if why.contains("in progress") => {}
            Err(Away(why)) if why.contains("NOPERM") || why.contains("unknown command") => {
                let problem = format!(
                    "the store {} does not let us begin a new append-only file ({why}), so that \
                     half a write from before its last start may be carried out at the next one: \
                     allow its user +bgrewriteaof",
                    self.vet().address
                );
                if !self.vet().anyway {
                    return Err(Unready::Unfit(OpenError(problem)));
                }
                tracing::warn!("{problem}");
            }
            Err(away) => return Err(away.into()),
        }
        // It waits for a copy that is being written, such as for a replica, and until then the old
        // file grows.
        let mut looks = 0;
        loop {
            let infos = self.ask_each_master(conn, &info).await?;
            if !infos.iter().any(|info| field(&text(info), "aof_rewrite_scheduled") == Some("1")) {
                break;
            }
            if looks == LOOKS {
                let why = format!("the store {} is busy saving its data", self.vet().address);
                return Err(Unready::Away(why));
            }
            looks += 1;
            tokio::time::sleep(PAUSE).await;
        }
        let mut set = redis::cmd("SET");
        set.arg(&self.vet().files).arg(runs);
        self.ask_patiently(conn, &set).await?;
        Ok(())
    }
}
