//! How the journal's bytes stand in a file: numbered frames with checksums.
//!
//! A frame is one group commit: written at once, on disk before the next one begins. So what a
//! crash leaves unfinished is always the last frame, and a frame that cannot be read before
//! another one that can is damage.
//!
//! ```text
//! "fbj1" | number u64 | length u32 | CRC-32 of the payload | CRC-32 of these 20 bytes | payload
//! ```

use std::ops::Range;

const MAGIC: [u8; 4] = *b"fbj1";
/// Bytes before the payload.
pub const HEAD: usize = 24;

/// Appends a frame to `out`.
///
/// # Panics
///
/// For a payload of 4 GiB or more; group commits are bounded far below.
pub fn write(number: u64, payload: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    let length = u32::try_from(payload.len()).expect("a group commit is bounded");
    out.extend(MAGIC);
    out.extend(number.to_le_bytes());
    out.extend(length.to_le_bytes());
    out.extend(crc(payload).to_le_bytes());
    out.extend(crc(&out[start..]).to_le_bytes());
    out.extend(payload);
}

/// What stands in a file.
#[derive(Debug, PartialEq, Eq)]
pub struct Scan {
    /// Where the payload of each whole frame is, in order.
    pub payloads: Vec<Range<usize>>,
    /// Bytes of whole frames from the beginning.
    pub length: usize,
    /// What follows them.
    pub tail: Tail,
}

/// What follows the last whole frame of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// Nothing.
    None,
    /// A frame that was not written to its end, or not synced.
    Unfinished,
    /// Something unreadable, and behind it a frame that was written later.
    Damaged,
    /// A frame of another version of this program.
    Foreign,
}

/// Finds the frames of a file whose first one has this number.
pub fn scan(bytes: &[u8], first: u64) -> Scan {
    let mut scan = Scan { payloads: Vec::new(), length: 0, tail: Tail::None };
    if is_foreign(bytes) {
        scan.tail = Tail::Foreign;
        return scan;
    }
    loop {
        let rest = &bytes[scan.length..];
        if rest.is_empty() {
            return scan;
        }
        let number = first + scan.payloads.len() as u64;
        match frame(rest, number) {
            Some(Frame { payload, is_whole: true }) => {
                scan.payloads.push(scan.length + HEAD..scan.length + HEAD + payload);
                scan.length += HEAD + payload;
            }
            other => {
                scan.tail = tail(rest, number, other.map(|frame| HEAD + frame.payload));
                return scan;
            }
        }
    }
}

struct Frame {
    payload: usize,
    /// The payload is there, and as it was written.
    is_whole: bool,
}

/// The frame of this number at the start of `bytes`, if its head is there.
fn frame(bytes: &[u8], number: u64) -> Option<Frame> {
    let (found, frame) = any_frame(bytes)?;
    (found == number).then_some(frame)
}

fn any_frame(bytes: &[u8]) -> Option<(u64, Frame)> {
    let (head, rest) = bytes.split_at_checked(HEAD)?;
    let field =
        |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    if head[..4] != MAGIC || field(20) != crc(&head[..20]) {
        return None;
    }
    let number = u64::from(field(4)) | u64::from(field(8)) << 32;
    let payload = field(12) as usize;
    let is_whole = rest.get(..payload).is_some_and(|payload| crc(payload) == field(16));
    Some((number, Frame { payload, is_whole }))
}

/// What `rest` is, which does not begin with the whole frame `number`. `length` is what that
/// frame's head says, if it can be read.
fn tail(rest: &[u8], number: u64, length: Option<usize>) -> Tail {
    let is_followed = match length {
        Some(length) => length < rest.len(),
        None => (1..rest.len()).any(|at| {
            rest[at] == MAGIC[0] && any_frame(&rest[at..]).is_some_and(|(found, _)| found > number)
        }),
    };
    if is_followed { Tail::Damaged } else { Tail::Unfinished }
}

/// Whether a file begins as those of another version.
fn is_foreign(bytes: &[u8]) -> bool {
    let version = bytes.strip_prefix(&MAGIC[..3]).and_then(|rest| rest.first());
    version.is_some_and(|version| version.is_ascii_digit() && *version != MAGIC[3])
}

fn crc(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> Vec<u8> {
        let mut bytes = Vec::new();
        for (number, payload) in [(7, "one"), (8, ""), (9, "the last one")] {
            write(number, payload.as_bytes(), &mut bytes);
        }
        bytes
    }

    #[test]
    fn frames_come_back_as_they_were_written() {
        let bytes = three();
        let scan = scan(&bytes, 7);
        let texts: Vec<_> = scan.payloads.iter().map(|range| &bytes[range.clone()]).collect();
        assert_eq!(texts, [&b"one"[..], b"", b"the last one"]);
        assert_eq!((scan.length, scan.tail), (bytes.len(), Tail::None));
    }

    #[test]
    fn a_frame_that_is_cut_at_any_byte_is_unfinished_and_the_others_are_whole() {
        let bytes = three();
        let last = scan(&bytes, 7).payloads[2].start - HEAD;
        for end in last + 1..bytes.len() {
            let cut = scan(&bytes[..end], 7);
            assert_eq!((cut.length, cut.tail), (last, Tail::Unfinished), "cut at {end}");
        }
    }

    #[test]
    fn a_last_frame_whose_pages_never_came_is_unfinished() {
        let mut bytes = three();
        let last = scan(&bytes, 7).payloads[2].start - HEAD;
        for from in last..bytes.len() {
            bytes[from..].fill(0);
            let torn = scan(&bytes, 7);
            assert_eq!((torn.length, torn.tail), (last, Tail::Unfinished), "zeros from {from}");
            bytes = three();
        }
    }

    #[test]
    fn any_flipped_bit_before_the_last_frame_is_told_as_damage() {
        let bytes = three();
        let last = scan(&bytes, 7).payloads[2].start - HEAD;
        for bit in 0..last * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let tail = scan(&flipped, 7).tail;
            assert!(matches!(tail, Tail::Damaged | Tail::Foreign), "bit {bit}: {tail:?}");
        }
        for bit in last * 8..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let scan = scan(&flipped, 7);
            assert_eq!((scan.length, scan.tail), (last, Tail::Unfinished), "bit {bit}");
        }
    }
}
