//! A provider that does as it is told and keeps its own books.
//!
//! It reads HTTP/1.1 itself, so that it can answer byte by byte, break off anywhere and send
//! what no server library would. Every request is kept as it came, with what was sent back
//! and how it ended; [`Upstream::bills`] is what a provider's invoice would say.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::{Buf, Bytes, BytesMut};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::answer::{Answer, Dialect};
use super::prices::Counts;
use super::script::{Bill, Cut, Framing, Script, Step};
use super::within;

/// A request as it came.
#[derive(Clone, Debug, Default)]
pub struct Received {
    pub method: String,
    /// With the query.
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
    /// False if the client left before the end of the body.
    pub complete: bool,
}

impl Received {
    /// A header's value, if it came once.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
        let (_, value) = values.next()?;
        values.next().is_none().then_some(value)
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// The model of the body, or of a Gemini path.
    pub fn model(&self) -> String {
        match self.json()["model"].as_str() {
            Some(model) => model.into(),
            None => {
                let last = self.path.rsplit('/').next().unwrap_or_default();
                last.split(':').next().unwrap_or_default().into()
            }
        }
    }
}

/// How an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The script was played to its end.
    Whole,
    /// The script broke off.
    Cut,
    /// The other side went away first.
    Left,
}

/// One request, what was sent back, and its end.
#[derive(Clone, Debug)]
pub struct Exchange {
    pub request: Received,
    /// The body as sent, without transfer framing.
    pub sent: Vec<u8>,
    /// `None` while it runs.
    pub ending: Option<Ending>,
    pub ended_at: Option<Instant>,
    /// What is on the invoice; nothing before the first byte of a reply.
    pub bill: Option<Bill>,
}

/// What is answered.
#[derive(Clone, Debug)]
pub enum Play {
    /// In the dialect of the request.
    Answer(Answer),
    /// Exactly this.
    Script(Script),
}

impl From<Answer> for Play {
    fn from(answer: Answer) -> Self {
        Self::Answer(answer)
    }
}

impl From<Script> for Play {
    fn from(script: Script) -> Self {
        Self::Script(script)
    }
}

type Choice = Box<dyn Fn(&Received) -> Option<Play> + Send>;

struct Plan {
    next: VecDeque<Play>,
    by_model: HashMap<String, Play>,
    choice: Option<Choice>,
    always: Play,
}

struct State {
    plan: Mutex<Plan>,
    exchanges: watch::Sender<Vec<Exchange>>,
    connections: Mutex<usize>,
}

/// A running upstream. It ends with its test.
pub struct Upstream {
    addr: SocketAddr,
    state: Arc<State>,
}

impl Upstream {
    /// Answers everything plausibly, in every dialect.
    pub async fn start() -> Self {
        Self::answering(Answer::default()).await
    }

    /// Answers everything with this.
    pub async fn answering(play: impl Into<Play>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let plan = Plan {
            next: VecDeque::new(),
            by_model: HashMap::new(),
            choice: None,
            always: play.into(),
        };
        let state = Arc::new(State {
            plan: Mutex::new(plan),
            exchanges: watch::Sender::new(Vec::new()),
            connections: Mutex::new(0),
        });
        let shared = state.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                *shared.connections.lock().unwrap() += 1;
                tokio::spawn(serve(shared.clone(), stream));
            }
        });
        Self { addr, state }
    }

    /// Where it listens, such as `http://127.0.0.1:4711`.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Answers everything with this from now on, where nothing else is chosen.
    pub fn always(&self, play: impl Into<Play>) {
        self.state.plan.lock().unwrap().always = play.into();
    }

    /// Answers the next request that has no answer yet with this, once.
    pub fn next(&self, play: impl Into<Play>) {
        self.state.plan.lock().unwrap().next.push_back(play.into());
    }

    /// Answers requests for a model with this.
    pub fn for_model(&self, model: &str, play: impl Into<Play>) {
        self.state.plan.lock().unwrap().by_model.insert(model.into(), play.into());
    }

    /// Lets a function choose; where it does not, the rest of the plan holds.
    pub fn choose(&self, choice: impl Fn(&Received) -> Option<Play> + Send + 'static) {
        self.state.plan.lock().unwrap().choice = Some(Box::new(choice));
    }

    /// Every request so far, in order of arrival.
    pub fn exchanges(&self) -> Vec<Exchange> {
        self.state.exchanges.borrow().clone()
    }

    /// The last request.
    pub fn last(&self) -> Exchange {
        self.exchanges().pop().expect("a request has come")
    }

    /// Connections opened so far.
    pub fn connections(&self) -> usize {
        *self.state.connections.lock().unwrap()
    }

    /// The invoice.
    pub fn bills(&self) -> Vec<Bill> {
        self.exchanges().into_iter().filter_map(|exchange| exchange.bill).collect()
    }

    /// Waits until so many requests have come.
    pub async fn received(&self, n: usize) {
        self.when("requests at the upstream", |all| all.len() >= n).await;
    }

    /// Waits until so many requests have ended, one way or the other.
    pub async fn ended(&self, n: usize) {
        let ended = |all: &[Exchange]| all.iter().filter(|e| e.ending.is_some()).count() >= n;
        self.when("the end of requests at the upstream", ended).await;
    }

    /// Waits for a state of things.
    pub async fn when(&self, what: &str, holds: impl Fn(&[Exchange]) -> bool) {
        let mut changes = self.state.exchanges.subscribe();
        let held = within(what, changes.wait_for(|all| holds(all))).await;
        held.expect("the upstream lives as long as its test");
    }
}

impl State {
    fn script(&self, request: &Received) -> Script {
        let mut plan = self.plan.lock().unwrap();
        let chosen = plan.choice.as_ref().and_then(|choice| choice(request));
        let play = match chosen {
            Some(play) => play,
            None => match plan.by_model.get(&request.model()) {
                Some(play) => play.clone(),
                None => plan.next.pop_front().unwrap_or_else(|| plan.always.clone()),
            },
        };
        match play {
            Play::Script(script) => script,
            Play::Answer(answer) => match Dialect::of(request) {
                Some(dialect) => answer.script(dialect, request),
                None => Script::error(404, "not_found", "no such path"),
            },
        }
    }

    /// Enters a request into the books and returns its place in them.
    fn begin(&self, request: Received) -> usize {
        let exchange =
            Exchange { request, sent: Vec::new(), ending: None, ended_at: None, bill: None };
        let mut at = 0;
        self.exchanges.send_modify(|all| {
            at = all.len();
            all.push(exchange);
        });
        at
    }

    fn change(&self, at: usize, change: impl FnOnce(&mut Exchange)) {
        self.exchanges.send_modify(|all| change(&mut all[at]));
    }
}

/// Serves one connection, request after request.
async fn serve(state: Arc<State>, mut stream: TcpStream) {
    let (mut reader, mut writer) = stream.split();
    let mut buffer = BytesMut::new();
    while let Some(request) = read_request(&mut reader, &mut writer, &mut buffer).await {
        let script = request.complete.then(|| state.script(&request));
        let at = state.begin(request);
        let Some(script) = script else {
            return end(&state, at, Ending::Left);
        };
        let mut made = Made::default();
        let played = tokio::select! {
            played = play(&state, at, &script, &mut writer, &mut made) => played,
            () = gone(&mut reader, &mut buffer) => Ending::Left,
        };
        let answered = !state.exchanges.borrow()[at].sent.is_empty();
        let bill = script.bill.as_ref().filter(|_| answered);
        let bill = bill.map(|bill| partial(bill, &made));
        state.change(at, |exchange| exchange.bill = bill);
        end(&state, at, played);
        let keep = played == Ending::Whole
            && matches!(script.framing, Framing::Length(_) | Framing::Chunked);
        if !keep {
            return;
        }
    }
}

fn end(state: &State, at: usize, ending: Ending) {
    state.change(at, |exchange| {
        exchange.ending = Some(ending);
        exchange.ended_at = Some(Instant::now());
    });
}

/// How far an answer has come.
#[derive(Default)]
struct Made {
    /// Tokens of output.
    output: u64,
    /// Nothing is left to make, whether or not the other side stays to read it.
    whole: bool,
}

/// All input is billed once an answer began, and output as far as it was made.
fn partial(bill: &Bill, made: &Made) -> Bill {
    if made.whole {
        return bill.clone();
    }
    let output = made.output.min(bill.counts.output);
    let reasoning = bill.counts.reasoning.min(output);
    Bill { model: bill.model.clone(), counts: Counts { output, reasoning, ..bill.counts } }
}

/// Plays a script; `made` follows it.
async fn play(
    state: &State,
    at: usize,
    script: &Script,
    writer: &mut WriteHalf<'_>,
    made: &mut Made,
) -> Ending {
    let makes = |step: &Step| matches!(step, Step::Send { .. } | Step::Cut(_) | Step::Stall);
    let last = script.steps.iter().rposition(makes);
    for (n, step) in script.steps.iter().enumerate() {
        let written = match step {
            Step::Head => writer.write_all(head(script).as_bytes()).await,
            Step::Send { bytes, tokens } => {
                // Entered first: what is on the wire must never be missing in the books.
                state.change(at, |exchange| exchange.sent.extend_from_slice(bytes));
                made.output += tokens;
                made.whole = last == Some(n);
                let written = writer.write_all(&framed(script.framing, bytes)).await;
                tokio::task::yield_now().await;
                written
            }
            Step::Wait(pause) => {
                tokio::time::sleep(*pause).await;
                Ok(())
            }
            Step::Pass(gate) => {
                gate.pass().await;
                Ok(())
            }
            Step::Cut(Cut::Fin) => {
                // A close that fails was done by the other side.
                let _ = writer.shutdown().await;
                return Ending::Cut;
            }
            Step::Cut(Cut::Reset) => {
                writer.as_ref().set_zero_linger().unwrap();
                return Ending::Cut;
            }
            Step::Stall => std::future::pending().await,
        };
        if written.is_err() {
            return Ending::Left;
        }
    }
    match script.framing {
        Framing::Chunked if writer.write_all(b"0\r\n\r\n").await.is_err() => Ending::Left,
        _ => Ending::Whole,
    }
}

fn head(script: &Script) -> String {
    let mut head = format!("{} {} Scripted\r\n", script.version, script.status);
    for (name, value) in &script.headers {
        head += &format!("{name}: {value}\r\n");
    }
    match script.framing {
        Framing::Length(length) => head += &format!("content-length: {length}\r\n"),
        Framing::Chunked => head += "transfer-encoding: chunked\r\n",
        Framing::UntilClose | Framing::Raw => {}
    }
    head + "\r\n"
}

fn framed(framing: Framing, bytes: &Bytes) -> Bytes {
    match framing {
        // An empty chunk would end the body.
        Framing::Chunked if !bytes.is_empty() => {
            let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
            chunk.extend_from_slice(bytes);
            chunk.extend_from_slice(b"\r\n");
            chunk.into()
        }
        _ => bytes.clone(),
    }
}

/// Ready when the other side has closed. What it sends before is kept for the next request.
async fn gone(reader: &mut ReadHalf<'_>, buffer: &mut BytesMut) {
    while let Ok(1..) = reader.read_buf(buffer).await {}
}

/// The next request; `None` if the connection ends before one begins.
async fn read_request(
    reader: &mut ReadHalf<'_>,
    writer: &mut WriteHalf<'_>,
    buffer: &mut BytesMut,
) -> Option<Received> {
    let head_len = loop {
        if let Some(at) = memchr::memmem::find(buffer, b"\r\n\r\n") {
            break at + 4;
        }
        if reader.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8_lossy(&buffer.split_to(head_len)).into_owned();
    let mut lines = head.trim_end().split("\r\n");
    let mut first = lines.next().unwrap_or_default().split(' ');
    let mut request = Received {
        method: first.next().unwrap_or_default().into(),
        path: first.next().unwrap_or_default().into(),
        ..Received::default()
    };
    for line in lines {
        if let Some((name, value)) = line.split_once(':') {
            request.headers.push((name.into(), value.trim().into()));
        }
    }
    if request.header("expect").is_some() {
        writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.ok()?;
    }
    let body = if request.header("transfer-encoding").is_some() {
        read_chunked(reader, buffer).await
    } else {
        let length = request.header("content-length").map_or(0, |l| l.parse().unwrap());
        read_exactly(reader, buffer, length).await
    };
    request.complete = body.is_some();
    request.body = body.unwrap_or_default();
    Some(request)
}

async fn read_exactly(
    reader: &mut ReadHalf<'_>,
    buffer: &mut BytesMut,
    length: usize,
) -> Option<Bytes> {
    while buffer.len() < length {
        if reader.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
    Some(buffer.split_to(length).freeze())
}

async fn read_chunked(reader: &mut ReadHalf<'_>, buffer: &mut BytesMut) -> Option<Bytes> {
    let mut body = BytesMut::new();
    loop {
        let line_len = loop {
            if let Some(at) = memchr::memmem::find(buffer, b"\r\n") {
                break at;
            }
            if reader.read_buf(buffer).await.ok()? == 0 {
                return None;
            }
        };
        let line = String::from_utf8_lossy(&buffer.split_to(line_len)).into_owned();
        buffer.advance(2);
        let size = usize::from_str_radix(line.split(';').next()?.trim(), 16).ok()?;
        body.extend_from_slice(&read_exactly(reader, buffer, size).await?);
        read_exactly(reader, buffer, 2).await?;
        if size == 0 {
            return Some(body.freeze());
        }
    }
}
