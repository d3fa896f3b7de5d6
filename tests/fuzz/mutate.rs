//! Inputs of fuzz tests: seeds of the corpus, spoilt in the ways that find mistakes. The same
//! numbers give the same inputs, so that a failure can be repeated.

use std::fs;
use std::path::Path;

/// A small generator (xorshift).
pub struct Random(u64);

impl Random {
    /// Another sequence for each seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `n`; 0 if there is none.
    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).unwrap_or_default() % n.max(1)
    }
}

/// Seeds of one kind of input, and the words that mean something in it.
pub struct Seeds {
    seeds: Vec<Vec<u8>>,
    words: &'static [&'static str],
}

impl Seeds {
    /// The files of a folder of the corpus, and more.
    pub fn of(
        folder: &str,
        more: impl IntoIterator<Item = Vec<u8>>,
        words: &'static [&'static str],
    ) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(folder);
        let mut paths: Vec<_> =
            fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        let kept = paths.into_iter().map(|path| fs::read(path).unwrap());
        Self { seeds: kept.chain(more).collect(), words }
    }

    /// Each seed as it is, then spoilt ones without end.
    pub fn case(&self, number: u64) -> (Vec<u8>, Random) {
        let mut random = Random::new(number + 1);
        if let Some(seed) = usize::try_from(number).ok().and_then(|n| self.seeds.get(n)) {
            return (seed.clone(), random);
        }
        let mut text = self.seeds[random.below(self.seeds.len())].clone();
        for _ in 0..=random.below(4) {
            self.spoil(&mut text, &mut random);
        }
        (text, random)
    }

    fn spoil(&self, text: &mut Vec<u8>, random: &mut Random) {
        let at = random.below(text.len() + 1);
        let end = (at + random.below(24)).min(text.len());
        match random.below(8) {
            0 if at < text.len() => text[at] ^= 1 << random.below(8),
            1 if at < text.len() => text[at] = u8::try_from(random.below(256)).unwrap_or_default(),
            2 => drop(text.drain(at..end)),
            3 => text.truncate(at),
            4 => {
                let piece = text[at..end].to_vec();
                let to = random.below(text.len() + 1);
                text.splice(to..to, piece);
            }
            5 => {
                let other = &self.seeds[random.below(self.seeds.len())];
                let from = random.below(other.len() + 1);
                let piece = other[from..(from + random.below(64)).min(other.len())].to_vec();
                text.splice(at..at, piece);
            }
            _ => {
                let word = self.words[random.below(self.words.len())];
                // In place of something, or between.
                let end = if random.below(2) == 0 { at } else { end };
                text.splice(at..end, word.bytes());
            }
        }
    }
}

/// How many cases one target gets: a share of a million in all, or with `FAREBOX_SOAK` twenty
/// million; `FUZZ_CASES` sets another figure.
pub fn cases(share: u64) -> u64 {
    let set = std::env::var("FUZZ_CASES").ok().and_then(|text| text.parse().ok());
    set.unwrap_or(if std::env::var_os("FAREBOX_SOAK").is_some() { 20_000_000 } else { share })
}

/// Runs a check over all cases of a target, on every core.
pub fn run(name: &str, share: u64, seeds: &Seeds, check: impl Fn(&[u8], &mut Random) + Sync) {
    let cases = cases(share);
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let check = &check;
            scope.spawn(move || {
                for number in (thread..cases).step_by(threads as usize) {
                    let (text, mut random) = seeds.case(number);
                    let _shown = Shown(name, number, &text);
                    check(&text, &mut random);
                }
            });
        }
    });
    println!("{cases} cases of {name}");
}

/// Names the case that panics.
struct Shown<'a>(&'a str, u64, &'a [u8]);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self(name, number, text) = self;
            eprintln!("case {number} of {name}: {:?}", String::from_utf8_lossy(text));
        }
    }
}
