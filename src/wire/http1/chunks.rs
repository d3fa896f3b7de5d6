//! The chunked coding (RFC 9112, 7.1), undone byte for byte wherever it is cut.

use super::Invalid;

/// The most bytes of extensions and trailers in one body: nobody reads them.
const MAX_UNREAD_BYTES: u32 = 16 << 10;

/// Where in a chunked body the next byte stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chunks {
    place: Place,
    /// The size of the chunk, as far as it has been read; then what is left of it.
    left: u64,
    /// Bytes that were skipped.
    unread: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    /// Before the first digit of a size.
    #[default]
    Start,
    /// Among the digits.
    Size,
    /// After them, in space or an extension.
    Extension,
    /// Before the LF that ends the line of the size.
    SizeLf,
    /// In the data.
    Data,
    /// Before the CR and the LF after it.
    DataCr,
    DataLf,
    /// At the start of a line after the last chunk.
    TrailerStart,
    /// In such a line, and before its LF.
    Trailer,
    TrailerLf,
    /// Before the LF that ends the body.
    EndLf,
    Over,
}

impl Chunks {
    /// The last byte of the body has been taken.
    pub fn is_over(&self) -> bool {
        self.place == Place::Over
    }

    /// As [`super::Body::take`].
    pub fn take(&mut self, arrived: &[u8], out: &mut Vec<u8>) -> Result<usize, Invalid> {
        let mut at = 0;
        while at < arrived.len() && self.place != Place::Over {
            if self.place == Place::Data {
                let rest = &arrived[at..];
                let taken = usize::try_from(self.left).unwrap_or(usize::MAX).min(rest.len());
                out.extend_from_slice(&rest[..taken]);
                self.left -= taken as u64;
                at += taken;
                if self.left == 0 {
                    self.place = Place::DataCr;
                }
                continue;
            }
            self.step(arrived[at])?;
            at += 1;
        }
        Ok(at)
    }

    /// Passes one byte that is not data.
    fn step(&mut self, byte: u8) -> Result<(), Invalid> {
        self.place = match (self.place, byte) {
            (Place::Start | Place::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = char::from(byte).to_digit(16).map_or(0, u64::from);
                let size = self.left.checked_mul(16).and_then(|size| size.checked_add(digit));
                self.left = size.ok_or(Invalid("a chunk's size is beyond belief"))?;
                Place::Size
            }
            (Place::Size | Place::Extension, b'\r') => Place::SizeLf,
            (Place::Size, b';' | b' ' | b'\t') => Place::Extension,
            (Place::Extension, b'\n') => return Err(Invalid("a bare line feed in a chunk's line")),
            (Place::Extension, _) => self.skip(Place::Extension)?,
            (Place::SizeLf, b'\n') if self.left == 0 => Place::TrailerStart,
            (Place::SizeLf, b'\n') => Place::Data,
            (Place::DataCr, b'\r') => Place::DataLf,
            (Place::DataLf, b'\n') => Place::Start,
            (Place::TrailerStart, b'\r') => Place::EndLf,
            (Place::Trailer, b'\r') => Place::TrailerLf,
            (Place::TrailerStart | Place::Trailer, b'\n') => {
                return Err(Invalid("a bare line feed in a trailer"));
            }
            (Place::TrailerStart | Place::Trailer, _) => self.skip(Place::Trailer)?,
            (Place::TrailerLf, b'\n') => Place::TrailerStart,
            (Place::EndLf, b'\n') => Place::Over,
            _ => return Err(Invalid("its chunks are not framed as chunks")),
        };
        Ok(())
    }

    fn skip(&mut self, place: Place) -> Result<Place, Invalid> {
        self.unread += 1;
        if self.unread > MAX_UNREAD_BYTES {
            return Err(Invalid("its chunks carry too much that is no data"));
        }
        Ok(place)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The data, how much was taken, and whether that was all of the body.
    fn taken(text: &[u8], size: usize) -> Result<(Vec<u8>, usize, bool), Invalid> {
        let (mut chunks, mut out, mut length) = (Chunks::default(), Vec::new(), 0);
        for piece in text.chunks(size) {
            length += chunks.take(piece, &mut out)?;
        }
        Ok((out, length, chunks.is_over()))
    }

    #[test]
    fn chunks_are_put_together_however_they_are_cut() {
        let text = b"5;x=\"y\"\r\nhello\r\n00A \r\n 123456789\r\n0\r\nx: y\r\n\r\nHTTP/1.1";
        for size in 1..text.len() {
            let (out, length, over) = taken(text, size).unwrap();
            assert_eq!(out, b"hello 123456789", "{size}");
            assert!(over && length == text.len() - 8, "{size}");
        }
    }

    #[test]
    fn what_another_reader_could_frame_otherwise_is_refused() {
        for text in [
            &b"\r\n"[..],
            b";\r\n",
            b" 5\r\n",
            b"+5\r\n",
            b"0x5\r\n",
            b"5\nhello",
            b"5;\nhello",
            b"5\r\rhello",
            b"5\r\nhello5",
            b"5\r\nhello\n",
            b"5\r\nhello\rx",
            b"10000000000000000\r\n",
            b"0\r\nx\n",
            b"0\r\n\n",
            b"0\r\n\rx",
            b"g\r\n",
            b"-1\r\n",
        ] {
            let text_shown = String::from_utf8_lossy(text);
            assert!(taken(text, 1).is_err(), "{text_shown:?}");
        }
        let endless = [b"5;", vec![b'x'; 20 << 10].as_slice()].concat();
        assert!(taken(&endless, 1000).is_err());
    }

    proptest! {
        /// Whatever is framed comes out again, wherever it is cut.
        #[test]
        fn what_was_framed_comes_out(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..6),
            size in 1_usize..50,
        ) {
            let mut text = Vec::new();
            for part in &parts {
                text.extend_from_slice(format!("{:X}\r\n", part.len()).as_bytes());
                text.extend_from_slice(part);
                text.extend_from_slice(b"\r\n");
            }
            text.extend_from_slice(b"0\r\n\r\n");
            prop_assert_eq!(taken(&text, size), Ok((parts.concat(), text.len(), true)));
        }

        /// No bytes make it panic, and where they are cut changes nothing.
        #[test]
        fn garbage_is_read_alike_however_it_arrives(
            text in prop::collection::vec(prop::sample::select(b"0019afAF;= \r\n\t:xy".to_vec()), 0..40),
            size in 1_usize..9,
        ) {
            prop_assert_eq!(taken(&text, size), taken(&text, 40));
        }
    }
}
