//! HTTP/1 replies as upstreams send them (RFC 9112): the head, and the body taken out of its
//! framing. Pure: bytes in, bytes out, however they are cut.
//!
//! Strict where two readers could disagree about where a reply ends, because the connection
//! is used again: what is ambiguous is no reply, or the last one of its connection.

use http::header::{CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

pub use chunks::Chunks;

mod chunks;

/// The largest head that is read, with the interim replies before it.
pub const MAX_HEAD_BYTES: usize = 128 << 10;

/// The most headers in one head.
const MAX_HEADERS: usize = 128;

/// The headers that somebody reads; of all others only the framing is used.
const KEPT: [HeaderName; 3] = [CONTENT_TYPE, CONTENT_ENCODING, RETRY_AFTER];

/// What arrived is no reply in HTTP/1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub &'static str);

/// The head of a final reply.
#[derive(Debug, PartialEq, Eq)]
pub struct Head {
    /// Its status.
    pub status: StatusCode,
    /// Those of its headers that somebody reads.
    pub headers: HeaderMap,
    /// How its body is framed.
    pub body: Body,
    /// Another request may follow on the connection.
    pub keeps_alive: bool,
}

/// The body of a reply, as far as it is still to come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// So many bytes; zero at its end.
    Length(u64),
    /// Chunks.
    Chunked(Chunks),
    /// Whatever comes until the connection ends.
    UntilClose,
}

impl Body {
    /// Takes the body's bytes out of what arrived, and says how much of that belonged to it:
    /// all, unless the body ends before.
    ///
    /// # Errors
    ///
    /// [`Invalid`] for chunks that are none.
    pub fn take(&mut self, arrived: &[u8], out: &mut Vec<u8>) -> Result<usize, Invalid> {
        match self {
            Self::Length(left) => {
                let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(arrived.len());
                *left -= taken as u64;
                out.extend_from_slice(&arrived[..taken]);
                Ok(taken)
            }
            Self::Chunked(chunks) => chunks.take(arrived, out),
            Self::UntilClose => {
                out.extend_from_slice(arrived);
                Ok(arrived.len())
            }
        }
    }

    /// Nothing of it is to come.
    pub fn is_over(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunks) => chunks.is_over(),
            Self::UntilClose => false,
        }
    }
}

/// Reads the head of the final reply and says how long it is with the interim replies before
/// it; `None` if more is to come.
///
/// # Errors
///
/// [`Invalid`] for what is no head, or leaves open where its body ends.
pub fn head(arrived: &[u8]) -> Result<Option<(Head, usize)>, Invalid> {
    let mut start = 0;
    loop {
        let mut space = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut reply = httparse::Response::new(&mut space);
        let length = match reply.parse(&arrived[start..]) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) if arrived.len() > MAX_HEAD_BYTES => {
                return Err(Invalid("its head is too large"));
            }
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err(Invalid("its head is not HTTP/1")),
        };
        start += length;
        match reply.code {
            Some(101) => return Err(Invalid("it changes the protocol, which nobody asked for")),
            Some(100..=199) => {}
            _ => return final_head(&reply).map(|head| Some((head, start))),
        }
    }
}

fn final_head(reply: &httparse::Response<'_, '_>) -> Result<Head, Invalid> {
    let code = reply.code.unwrap_or_default();
    let status = StatusCode::from_u16(code).map_err(|_| Invalid("its status is no status"))?;
    let is_1_1 = reply.version == Some(1);
    let mut headers = HeaderMap::new();
    let mut length = None;
    let mut chunked = false;
    let mut keeps_alive = is_1_1;
    for header in reply.headers.iter() {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        if is("content-length") {
            let given = content_length(header.value)?;
            if length.is_some_and(|length| length != given) {
                return Err(Invalid("it has two lengths"));
            }
            length = Some(given);
        } else if is("transfer-encoding") {
            if chunked || !is_1_1 || !header.value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                return Err(Invalid("its transfer-encoding is not just chunked"));
            }
            chunked = true;
        } else if is("connection") {
            for option in header.value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                keeps_alive |= option.eq_ignore_ascii_case(b"keep-alive");
            }
        } else if let Some(name) = KEPT.iter().find(|name| is(name.as_str()))
            && let Ok(value) = HeaderValue::from_bytes(header.value)
        {
            headers.append(name, value);
        }
    }
    let closes = |header: &&httparse::Header<'_>| {
        let mut options = header.value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        header.name.eq_ignore_ascii_case("connection")
            && options.any(|option| option.eq_ignore_ascii_case(b"close"))
    };
    // With both a length and chunks, the chunks count, and nothing after them is believed.
    let is_ambiguous = chunked && length.is_some();
    keeps_alive &= !is_ambiguous && !reply.headers.iter().any(|header| closes(&header));
    let body = match (code, chunked, length) {
        (204 | 304, ..) => Body::Length(0),
        (_, true, _) => Body::Chunked(Chunks::default()),
        (_, false, Some(length)) => Body::Length(length),
        (_, false, None) => Body::UntilClose,
    };
    keeps_alive &= body != Body::UntilClose;
    Ok(Head { status, headers, body, keeps_alive })
}

/// Digits and nothing else: of `+5`, `5, 5` or nineteen nines readers think differently.
fn content_length(value: &[u8]) -> Result<u64, Invalid> {
    let digits = std::str::from_utf8(value.trim_ascii()).ok();
    digits
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|text| text.parse().ok())
        .ok_or(Invalid("its length is no number"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Head {
        let (head, length) = head(text.as_bytes()).unwrap().unwrap();
        assert_eq!(length, text.len());
        head
    }

    fn refused(text: &str) -> &'static str {
        match head(text.as_bytes()) {
            Err(Invalid(why)) => why,
            other => panic!("{text:?} gave {other:?}"),
        }
    }

    #[test]
    fn a_head_says_how_its_body_ends_and_whether_another_reply_may_follow() {
        let chunked = || Body::Chunked(Chunks::default());
        for (text, body, keeps_alive) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", Body::Length(5), true),
            (
                "HTTP/1.1 200 \r\nContent-Length: 5\r\ncontent-length:5 \r\n\r\n",
                Body::Length(5),
                true,
            ),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n", chunked(), true),
            ("HTTP/1.1 200 OK\r\n\r\n", Body::UntilClose, false),
            (
                "HTTP/1.1 200 OK\r\nConnection: x, Close\r\ncontent-length: 1\r\n\r\n",
                Body::Length(1),
                false,
            ),
            (
                "HTTP/1.1 200 OK\r\nconnection: keep-alive\r\nconnection: close\r\ncontent-length: 1\r\n\r\n",
                Body::Length(1),
                false,
            ),
            ("HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\n", Body::Length(1), false),
            (
                "HTTP/1.0 200 OK\r\nconnection: Keep-Alive\r\ncontent-length: 1\r\n\r\n",
                Body::Length(1),
                true,
            ),
            ("HTTP/1.1 204 No\r\n\r\n", Body::Length(0), true),
            ("HTTP/1.1 304 No\r\ncontent-length: 7\r\n\r\n", Body::Length(0), true),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n",
                chunked(),
                false,
            ),
        ] {
            let head = read(text);
            assert_eq!((head.body, head.keeps_alive), (body, keeps_alive), "{text}");
        }
    }

    #[test]
    fn interim_replies_are_passed_over_and_only_read_headers_are_kept() {
        let head = read(
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nlink: x\r\n\r\n\
             HTTP/1.1 429 Busy\r\nRetry-After: 3\r\nset-cookie: a\r\ncontent-length: 0\r\n\r\n",
        );
        assert_eq!(head.status, 429);
        assert_eq!(head.headers.len(), 1);
        assert_eq!(head.headers["retry-after"], "3");
        assert_eq!(super::head(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 2"), Ok(None));
    }

    #[test]
    fn what_leaves_its_end_open_is_refused() {
        for text in [
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 5, 5\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: +5\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: \r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 18446744073709551616\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: xchunked\r\n\r\n",
            "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/1.1 101 Switching\r\nupgrade: h2c\r\n\r\n",
            "HTTP/2 200 OK\r\n\r\n",
            "HTTP/1.1 099 No\r\n\r\n",
            "HTTP/1.1 20 No\r\n\r\n",
            "HTTP/1.1 200 OK\r\n folded: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nname : x\r\n\r\n",
            "<html>",
        ] {
            refused(text);
        }
        let large = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(MAX_HEAD_BYTES));
        assert_eq!(refused(&large), "its head is too large");
    }

    #[test]
    fn a_body_takes_what_is_its_own_and_leaves_the_rest() {
        let mut out = Vec::new();
        let mut body = Body::Length(3);
        assert_eq!(body.take(b"ab", &mut out), Ok(2));
        assert!(!body.is_over());
        assert_eq!(body.take(b"cde", &mut out), Ok(1));
        assert!(body.is_over());
        assert_eq!(out, b"abc");
        assert_eq!(Body::UntilClose.take(b"xy", &mut out), Ok(2));
    }

    proptest! {
        /// Where a head is cut changes nothing, and no bytes make it panic.
        #[test]
        fn a_head_is_read_alike_however_it_arrives(
            text in "(HTTP/1\\.[01] [0-9]{3} x\r\n)?((content-length|transfer-encoding|connection|a): ?[a-z0-9, ]{0,9}\r?\n){0,4}(\r\n)?[a-z]{0,4}",
        ) {
            let whole = head(text.as_bytes());
            for cut in 0..text.len() {
                match head(&text.as_bytes()[..cut]) {
                    Ok(None) => {}
                    early => prop_assert_eq!(&early, &whole, "{} of {:?}", cut, text),
                }
            }
        }
    }
}
