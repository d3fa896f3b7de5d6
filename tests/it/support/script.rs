//! One reply of the scripted upstream, down to its bytes, its pauses and how it breaks off.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::prices::Counts;

/// What the upstream does, step by step, after it has read a request.
#[derive(Clone, Debug)]
pub struct Script {
    pub version: &'static str,
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub framing: Framing,
    pub steps: Vec<Step>,
    /// What the provider writes on its invoice.
    pub bill: Option<Bill>,
}

/// How the end of the body is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// `content-length`: stays what it was when a script is cut.
    Length(usize),
    Chunked,
    /// HTTP/1.0: the end of the connection.
    UntilClose,
    /// The pieces are the whole reply, head and all.
    Raw,
}

#[derive(Clone, Debug)]
pub enum Step {
    Head,
    /// A piece of the body, written at once, and the output tokens it took to make it.
    Send {
        bytes: Bytes,
        tokens: u64,
    },
    Wait(Duration),
    Pass(Gate),
    Cut(Cut),
    /// Nothing more, until the other side goes away.
    Stall,
}

/// How an upstream leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    Fin,
    Reset,
}

/// Tokens as the provider bills them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bill {
    pub model: String,
    pub counts: Counts,
}

/// Holds a script back until the test lets it go on.
#[derive(Clone, Debug)]
pub struct Gate(Arc<Semaphore>);

impl Gate {
    pub fn new() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }

    /// Lets `n` more steps pass.
    pub fn open(&self, n: usize) {
        self.0.add_permits(n);
    }

    /// Holds nothing back any more.
    pub fn open_all(&self) {
        self.0.close();
    }

    pub async fn pass(&self) {
        if let Ok(permit) = self.0.acquire().await {
            permit.forget();
        }
    }
}

/// Sizes of the pieces in which a body is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pieces {
    Whole,
    /// These sizes, over and over.
    Sizes(Vec<usize>),
}

impl Script {
    /// A body of known length.
    pub fn whole(content_type: &str, body: impl Into<Bytes>) -> Self {
        let bytes = body.into();
        let framing = Framing::Length(bytes.len());
        Self::of(content_type, framing, vec![Step::Send { bytes, tokens: 0 }])
    }

    /// A JSON body.
    pub fn json(body: &serde_json::Value) -> Self {
        Self::whole("application/json", body.to_string())
    }

    /// An event stream: each piece with the output tokens it stands for.
    pub fn events(events: impl IntoIterator<Item = (String, u64)>) -> Self {
        let steps = events
            .into_iter()
            .map(|(event, tokens)| Step::Send { bytes: event.into(), tokens })
            .collect();
        Self::of("text/event-stream; charset=utf-8", Framing::Chunked, steps)
    }

    /// An error in OpenAI's shape.
    pub fn error(status: u16, kind: &str, message: &str) -> Self {
        let error = serde_json::json!({
            "error": { "message": message, "type": kind, "param": null, "code": kind }
        });
        Self::json(&error).status(status)
    }

    /// Reads the request and never answers.
    pub fn silent() -> Self {
        Self::steps(vec![Step::Stall])
    }

    /// Reads the request and leaves.
    pub fn leave(cut: Cut) -> Self {
        Self::steps(vec![Step::Cut(cut)])
    }

    /// These bytes, whatever they are, and then the end of the connection.
    pub fn raw(bytes: impl Into<Bytes>) -> Self {
        Self::steps(vec![Step::Send { bytes: bytes.into(), tokens: 0 }, Step::Cut(Cut::Fin)])
    }

    fn steps(steps: Vec<Step>) -> Self {
        Self {
            version: "HTTP/1.1",
            status: 200,
            headers: Vec::new(),
            framing: Framing::Raw,
            steps,
            bill: None,
        }
    }

    fn of(content_type: &str, framing: Framing, body: Vec<Step>) -> Self {
        let mut script = Self::steps(vec![Step::Head]);
        script.framing = framing;
        script.steps.extend(body);
        script.header("content-type", content_type).header("x-request-id", "req_upstream_canary")
    }

    pub fn status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// Sets a header of the reply, in place of one of that name.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(n, _)| !n.eq_ignore_ascii_case(name));
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn billing(mut self, model: &str, counts: Counts) -> Self {
        self.bill = Some(Bill { model: model.into(), counts });
        self
    }

    /// HTTP/1.0, ended by the end of the connection.
    pub fn http10(mut self) -> Self {
        self.version = "HTTP/1.0";
        self.framing = Framing::UntilClose;
        self
    }

    /// The body in a transfer of unknown length.
    pub fn chunked(mut self) -> Self {
        self.framing = Framing::Chunked;
        self
    }

    /// The body in pieces of these sizes. Tokens are taken to be made for the last one.
    pub fn in_pieces(self, pieces: &Pieces) -> Self {
        let body = self.body();
        let tokens = self.sends().map(|(_, tokens)| tokens).sum();
        let Pieces::Sizes(sizes) = pieces else {
            return self.with_body(vec![(body, tokens)]);
        };
        let mut rest = body;
        let mut parts = Vec::new();
        for size in sizes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            parts.push((rest.split_to((*size).min(rest.len())), 0));
        }
        if let Some(last) = parts.last_mut() {
            last.1 = tokens;
        }
        self.with_body(parts)
    }

    /// The body compressed as a whole: `gzip`, `br` or `zstd`.
    pub fn encoded(self, coding: &str) -> Self {
        let body = self.body();
        let mut out = Vec::new();
        match coding {
            "gzip" => {
                let mut gzip = flate2::write::GzEncoder::new(out, flate2::Compression::fast());
                gzip.write_all(&body).unwrap();
                out = gzip.finish().unwrap();
            }
            "br" => {
                brotli::CompressorWriter::new(&mut out, 4096, 4, 20).write_all(&body).unwrap();
            }
            "zstd" => out = zstd::encode_all(&body[..], 1).unwrap(),
            other => panic!("no such coding: {other}"),
        }
        let tokens = self.sends().map(|(_, tokens)| tokens).sum();
        let mut script = self.header("content-encoding", coding);
        if let Framing::Length(length) = &mut script.framing {
            *length = out.len();
        }
        script.with_body(vec![(out.into(), tokens)])
    }

    /// Waits for the gate before the head.
    pub fn gated_head(mut self, gate: &Gate) -> Self {
        self.steps.insert(0, Step::Pass(gate.clone()));
        self
    }

    /// Waits for the gate before each piece.
    pub fn gated(self, gate: &Gate) -> Self {
        self.before_each(&Step::Pass(gate.clone()))
    }

    /// Waits for the gate after so many pieces, once.
    pub fn gated_after(mut self, pieces: usize, gate: &Gate) -> Self {
        let mut sends = 0;
        let at = self.steps.iter().position(|step| {
            sends += usize::from(matches!(step, Step::Send { .. }));
            sends > pieces
        });
        self.steps.insert(at.unwrap_or(self.steps.len()), Step::Pass(gate.clone()));
        self
    }

    /// Pauses before each piece.
    pub fn paced(self, pause: Duration) -> Self {
        self.before_each(&Step::Wait(pause))
    }

    /// Breaks off after so many bytes of the body.
    pub fn cut_at(self, byte: usize, cut: Cut) -> Self {
        self.until_byte(byte, cut_steps(cut))
    }

    /// Goes silent after so many bytes of the body.
    pub fn stall_at(self, byte: usize) -> Self {
        self.until_byte(byte, vec![Step::Stall])
    }

    /// Breaks off after so many pieces of the body.
    pub fn cut_after(self, pieces: usize, cut: Cut) -> Self {
        let byte = self.sends().take(pieces).map(|(bytes, _)| bytes.len()).sum();
        self.cut_at(byte, cut)
    }

    /// Goes silent after so many pieces of the body.
    pub fn stall_after(self, pieces: usize) -> Self {
        let byte = self.sends().take(pieces).map(|(bytes, _)| bytes.len()).sum();
        self.stall_at(byte)
    }

    /// The whole body.
    pub fn body(&self) -> Bytes {
        self.sends().flat_map(|(bytes, _)| bytes.iter().copied()).collect()
    }

    /// How many pieces the body has.
    pub fn pieces(&self) -> usize {
        self.sends().count()
    }

    fn sends(&self) -> impl Iterator<Item = (&Bytes, u64)> {
        self.steps.iter().filter_map(|step| match step {
            Step::Send { bytes, tokens } => Some((bytes, *tokens)),
            _ => None,
        })
    }

    /// Puts a new body where the first piece was.
    fn with_body(mut self, parts: Vec<(Bytes, u64)>) -> Self {
        self.steps.retain(|step| !matches!(step, Step::Send { .. }));
        let at = self.steps.iter().position(|step| matches!(step, Step::Head));
        let at = at.map_or(0, |head| head + 1);
        let sends = parts.into_iter().map(|(bytes, tokens)| Step::Send { bytes, tokens });
        self.steps.splice(at..at, sends);
        self
    }

    fn before_each(mut self, first: &Step) -> Self {
        let steps = std::mem::take(&mut self.steps);
        for step in steps {
            if matches!(step, Step::Send { .. }) {
                self.steps.push(first.clone());
            }
            self.steps.push(step);
        }
        self
    }

    fn until_byte(mut self, byte: usize, then: Vec<Step>) -> Self {
        let mut left = byte;
        let mut steps = Vec::new();
        for step in std::mem::take(&mut self.steps) {
            match step {
                Step::Send { bytes, tokens } if bytes.len() <= left => {
                    left -= bytes.len();
                    steps.push(Step::Send { bytes, tokens });
                }
                Step::Send { bytes, .. } => {
                    if left > 0 {
                        steps.push(Step::Send { bytes: bytes.slice(..left), tokens: 0 });
                    }
                    break;
                }
                other => steps.push(other),
            }
        }
        steps.extend(then);
        self.steps = steps;
        self
    }
}

/// A reset may overtake bytes that the other side has not read yet, so they get some time.
fn cut_steps(cut: Cut) -> Vec<Step> {
    match cut {
        Cut::Fin => vec![Step::Cut(Cut::Fin)],
        Cut::Reset => vec![Step::Wait(Duration::from_millis(20)), Step::Cut(Cut::Reset)],
    }
}
