//! Bodies: what goes to the client, and what comes compressed from an upstream.

use std::io::Write;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::meter::Tap;

/// The body of a reply to a client.
pub enum Body {
    /// All of it at once.
    Whole(Option<Bytes>),
    /// A stream that is metered as it passes.
    Tap(Box<Tap>),
}

impl Body {
    /// A body that is there.
    pub const fn whole(bytes: Bytes) -> Self {
        Self::Whole(Some(bytes))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    /// A stream can only be broken off: its client must not take what it has for the whole.
    type Error = super::error::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Tap(tap) => tap.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64))
            }
            Self::Tap(_) => SizeHint::default(),
        }
    }
}

/// Undoes a content-encoding that an upstream used although we asked for none.
///
/// The client gets the reply as it asked for it, without encoding.
pub enum Decoder {
    Gzip(Box<flate2::write::MultiGzDecoder<Vec<u8>>>),
    Deflate(Box<flate2::write::ZlibDecoder<Vec<u8>>>),
    Brotli(Box<brotli::DecompressorWriter<Vec<u8>>>),
    Zstd(Box<zstd::stream::write::Decoder<'static, Vec<u8>>>),
}

/// What one piece may grow to: a reply that exceeds it is a bomb, not an answer.
const MAX_PIECE_BYTES: usize = 16 * 1024 * 1024;

impl Decoder {
    /// The decoder for a content-encoding.
    ///
    /// # Errors
    ///
    /// When the encoding is not one of gzip, deflate, br and zstd.
    pub fn new(encoding: &str) -> Result<Self, UnknownEncoding> {
        match encoding.trim().to_ascii_lowercase().as_str() {
            "gzip" | "x-gzip" => {
                Ok(Self::Gzip(Box::new(flate2::write::MultiGzDecoder::new(Vec::new()))))
            }
            "deflate" => Ok(Self::Deflate(Box::new(flate2::write::ZlibDecoder::new(Vec::new())))),
            "br" => Ok(Self::Brotli(Box::new(brotli::DecompressorWriter::new(Vec::new(), 4096)))),
            "zstd" => zstd::stream::write::Decoder::new(Vec::new())
                .map(|decoder| Self::Zstd(Box::new(decoder)))
                .map_err(|_| UnknownEncoding),
            _ => Err(UnknownEncoding),
        }
    }

    /// Decodes the next piece.
    ///
    /// # Errors
    ///
    /// When the piece is not of the encoding, or grows beyond belief.
    pub fn push(&mut self, piece: &[u8]) -> std::io::Result<Bytes> {
        let mut out = Vec::new();
        // In small steps, so that a bomb is noticed before it has gone off.
        for step in piece.chunks(4096) {
            let decoded = match self {
                Self::Gzip(decoder) => step_of(decoder.as_mut(), step, |d| d.get_mut())?,
                Self::Deflate(decoder) => step_of(decoder.as_mut(), step, |d| d.get_mut())?,
                Self::Brotli(decoder) => step_of(decoder.as_mut(), step, |d| d.get_mut())?,
                Self::Zstd(decoder) => step_of(decoder.as_mut(), step, |d| d.get_mut())?,
            };
            out.extend_from_slice(&decoded);
            if out.len() > MAX_PIECE_BYTES {
                return Err(std::io::Error::other("the reply grows beyond belief"));
            }
        }
        Ok(out.into())
    }
}

/// An upstream used a content-encoding that we did not ask for and cannot read.
pub struct UnknownEncoding;

fn step_of<W: Write>(
    decoder: &mut W,
    step: &[u8],
    output: impl Fn(&mut W) -> &mut Vec<u8>,
) -> std::io::Result<Vec<u8>> {
    decoder.write_all(step)?;
    // Each piece must come out as it comes in, or a stream would stall.
    decoder.flush()?;
    Ok(std::mem::take(output(decoder)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"data: {\"usage\":null}\n\ndata: [DONE]\n\n";

    fn byte_by_byte(encoding: &str, encoded: &[u8]) -> Vec<u8> {
        let mut decoder = Decoder::new(encoding).unwrap_or_else(|_| panic!("{encoding}"));
        let mut out = Vec::new();
        for byte in encoded.chunks(1) {
            out.extend_from_slice(&decoder.push(byte).unwrap());
        }
        out
    }

    #[test]
    fn every_encoding_is_undone_byte_by_byte() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(TEXT).unwrap();
        assert_eq!(byte_by_byte("gzip", &gzip.finish().unwrap()), TEXT);
        let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        zlib.write_all(TEXT).unwrap();
        assert_eq!(byte_by_byte("deflate", &zlib.finish().unwrap()), TEXT);
        let mut br = brotli::CompressorWriter::new(Vec::new(), 4096, 5, 20);
        br.write_all(TEXT).unwrap();
        assert_eq!(byte_by_byte("br", &br.into_inner()), TEXT);
        assert_eq!(byte_by_byte("zstd", &zstd::encode_all(TEXT, 1).unwrap()), TEXT);
    }

    #[test]
    fn a_bomb_is_refused_and_an_unknown_encoding_too() {
        let bomb = zstd::encode_all(&vec![0; 64 * 1024 * 1024][..], 1).unwrap();
        assert!(Decoder::new("zstd").is_ok_and(|mut decoder| decoder.push(&bomb).is_err()));
        assert!(Decoder::new("compress").is_err());
    }
}
