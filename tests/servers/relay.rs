//! A TCP relay in front of a server, that does what networks do: it loses replies, is slow,
//! refuses, and one day leads to another server.
//!
//! Blocking threads, as connections to a store are few.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// A relay; it ends with its test.
pub struct Relay {
    port: u16,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    target: AtomicU16,
    refuses: AtomicBool,
    ended: AtomicBool,
    delay_ms: AtomicU64,
    /// One in so many replies is lost, with its connection; zero: none.
    loses: AtomicU64,
    replies: AtomicU64,
    lost: AtomicU64,
    open: Mutex<Vec<TcpStream>>,
}

impl Relay {
    /// Starts a relay to a port of this machine.
    pub fn to(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State::default());
        state.target.store(target, SeqCst);
        thread::spawn({
            let state = Arc::clone(&state);
            move || {
                for client in listener.incoming() {
                    if state.ended.load(SeqCst) {
                        break;
                    }
                    if let Ok(client) = client {
                        state.connect(client);
                    }
                }
            }
        });
        Self { port, state }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on it leads to another server; every connection ends.
    pub fn switch(&self, target: u16) {
        self.state.target.store(target, SeqCst);
        self.cut();
    }

    /// Ends every connection.
    pub fn cut(&self) {
        for stream in self.state.open.lock().unwrap().drain(..) {
            // It may have ended by itself.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Ends every connection, and takes no new one; or takes them again.
    pub fn refuse(&self, refuses: bool) {
        self.state.refuses.store(refuses, SeqCst);
        self.cut();
    }

    /// Replies come later by this much.
    pub fn delay(&self, delay: Duration) {
        self.state.delay_ms.store(delay.as_millis().try_into().unwrap(), SeqCst);
    }

    /// Loses one reply in `n`, after its command was carried out, and ends its connection.
    pub fn lose_one_reply_in(&self, n: u64) {
        self.state.loses.store(n, SeqCst);
    }

    /// How many replies it has lost.
    pub fn lost(&self) -> u64 {
        self.state.lost.load(SeqCst)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.state.ended.store(true, SeqCst);
        self.cut();
        // Wakes the thread that waits for connections, so that it sees the end.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl State {
    fn connect(self: &Arc<Self>, client: TcpStream) {
        if self.refuses.load(SeqCst) {
            return;
        }
        let Ok(server) = TcpStream::connect(("127.0.0.1", self.target.load(SeqCst))) else {
            return;
        };
        let pair = |stream: &TcpStream| stream.try_clone().unwrap();
        for stream in [&client, &server] {
            stream.set_nodelay(true).unwrap();
            self.open.lock().unwrap().push(pair(stream));
        }
        let (from, to) = (pair(&client), pair(&server));
        thread::spawn(move || pass(from, to, || true));
        let state = Arc::clone(self);
        thread::spawn(move || pass(server, client, || state.may_pass()));
    }

    fn may_pass(&self) -> bool {
        thread::sleep(Duration::from_millis(self.delay_ms.load(SeqCst)));
        let loses = self.loses.load(SeqCst);
        if loses == 0 || !(self.replies.fetch_add(1, SeqCst) + 1).is_multiple_of(loses) {
            return true;
        }
        self.lost.fetch_add(1, SeqCst);
        false
    }
}

/// Passes bytes on until one side ends or some may not pass; then ends both.
fn pass(mut from: TcpStream, mut to: TcpStream, may_pass: impl Fn() -> bool) {
    let mut piece = [0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut piece) {
        if !may_pass() || to.write_all(&piece[..length]).is_err() {
            break;
        }
    }
    // One of them may have ended by itself.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
