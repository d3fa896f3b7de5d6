//! The pure readers, each checked against a second, naive one.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use bytes::Bytes;
use farebox::billing::price::PriceTable;
use farebox::config::Config;
use farebox::wire::meter::{Edit, Meter, Reading, read_whole, whole_text};
use farebox::wire::request::{self, IncludeUsage, Settings};
use farebox::wire::{Endpoint, estimate, http1, sse};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::mutate::{Random, Seeds, run};

const ENDPOINTS: [Endpoint; 8] = [
    Endpoint::Chat,
    Endpoint::Completions,
    Endpoint::Embeddings,
    Endpoint::Responses,
    Endpoint::Messages,
    Endpoint::CountTokens,
    Endpoint::Generate,
    Endpoint::StreamGenerate,
];

/// Recorded replies or requests that are short enough to be spoilt a million times.
fn recorded(folder: &str, stream: Option<bool>, most_bytes: usize) -> Vec<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases").join(folder);
    let mut paths: Vec<_> =
        fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let bodies = paths.into_iter().filter(|path| path.extension().is_some_and(|e| e == "json"));
    let bodies = bodies.filter_map(|path| {
        let case: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        let text = match &case["body"] {
            serde_json::Value::String(text) => text.clone(),
            serde_json::Value::Null => return None,
            body => body.to_string(),
        };
        let is_stream = text.contains("data:");
        (text.len() <= most_bytes && stream.is_none_or(|stream| stream == is_stream))
            .then(|| text.into_bytes())
    });
    bodies.collect()
}

/// A text in pieces of random lengths.
fn pieces<'a>(mut text: &'a [u8], random: &mut Random) -> Vec<&'a [u8]> {
    let longest = [1, 3, 20, 400][random.below(4)];
    let mut pieces = Vec::new();
    while !text.is_empty() {
        let (piece, rest) = text.split_at((1 + random.below(longest)).min(text.len()));
        pieces.push(piece);
        text = rest;
    }
    pieces
}

const SSE_WORDS: [&str; 12] = [
    "\n", "\r", "\r\n", "\n\n", "data:", "data: ", "event: ", ":", "data", "id: 1", "[DONE]",
    "\u{feff}",
];

/// Name and data of each event, read as the HTML standard says, all at once.
fn events_by_the_book(stream: &str) -> Vec<(String, String)> {
    let mut events = Vec::new();
    let (mut name, mut data, mut first) = (String::new(), Vec::new(), true);
    let text = stream.replace("\r\n", "\n").replace('\r', "\n");
    let mut lines = text.split('\n').collect::<Vec<_>>();
    // Behind the last line end stands no whole line.
    lines.pop();
    for line in lines {
        // A byte order mark belongs to no field.
        let line =
            if std::mem::take(&mut first) { line.trim_start_matches('\u{feff}') } else { line };
        if line.is_empty() {
            events.push((std::mem::take(&mut name), data.join("\n")));
            data.clear();
            first = true;
            continue;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => data.push(value),
            "event" => value.clone_into(&mut name),
            _ => {}
        }
    }
    events
}

#[test]
fn events_are_found_as_the_standard_says_however_a_stream_is_cut() {
    let seeds = Seeds::of("sse", recorded("usage", Some(true), 900), &SSE_WORDS);
    run("event streams", 250_000, &seeds, |text, random| {
        let text = String::from_utf8_lossy(text);
        // One at the start is all that the standard knows of them.
        let text = text.replace('\u{feff}', "");
        let mut scanner = sse::Scanner::default();
        let mut found = Vec::new();
        for piece in pieces(text.as_bytes(), random) {
            let mut at = scanner.begin(piece);
            while let Some(event) = scanner.next(piece, at) {
                at = event.end;
                let event = sse::parse(event.raw);
                let utf8 = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                found.push((utf8(event.name), utf8(&event.data)));
            }
        }
        assert_eq!(found, events_by_the_book(&text));
    });
}

/// A document as a reader understands it that takes the first, or the last, of equal names.
#[derive(Debug, PartialEq)]
enum Tree {
    Leaf(String),
    List(Vec<Tree>),
    Object(BTreeMap<String, Tree>),
}

struct Pairs(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Pairs;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(All)
    }
}

fn understood(raw: &str, first_wins: bool, name: fn(&str) -> String) -> Tree {
    if raw.starts_with('[') {
        let items: Vec<Box<RawValue>> = serde_json::from_str(raw).unwrap();
        return Tree::List(
            items.iter().map(|item| understood(item.get(), first_wins, name)).collect(),
        );
    }
    if !raw.starts_with('{') {
        return Tree::Leaf(raw.to_owned());
    }
    let mut object = BTreeMap::new();
    for (key, value) in serde_json::from_str::<Pairs>(raw).unwrap().0 {
        let (key, value) = (name(&key), understood(value.get(), first_wins, name));
        if first_wins {
            object.entry(key).or_insert(value);
        } else {
            object.insert(key, value);
        }
    }
    Tree::Object(object)
}

impl Tree {
    fn get(&self, name: &str) -> Option<&str> {
        match self {
            Self::Object(fields) => match fields.get(name)? {
                Self::Leaf(text) if text != "null" => Some(text),
                _ => None,
            },
            _ => None,
        }
    }
}

const GATE_WORDS: [&str; 38] = [
    "\"model\"",
    "\"Model\"",
    "\"mod\\u0065l\"",
    "\"stream\"",
    "\"\\u017ftream\"",
    "\"stream_options\"",
    "\"include_usage\"",
    "\"n\"",
    "\"max_tokens\"",
    "\"max_completion_tokens\"",
    "\"tools\"",
    "\"type\"",
    "\"messages\"",
    "\"service_tier\"",
    "\"gpt-x\"",
    "\"cheap\"",
    "true",
    "false",
    "null",
    "1",
    "0",
    "-1",
    "1e2",
    "18446744073709551616",
    ":",
    ",",
    "{",
    "}",
    "[",
    "]",
    "\"",
    "\\",
    "\\u0000",
    "\\ud83d",
    "\u{feff}",
    " ",
    "{}",
    ",\"model\":\"dear\"",
];

#[test]
fn what_passes_the_gate_is_read_alike_by_readers_of_the_first_and_of_the_last_of_equal_names() {
    let seeds = Seeds::of("gate", recorded("clients", None, 1500), &GATE_WORDS);
    let settings = Settings::default();
    let exact: fn(&str) -> String = str::to_owned;
    let caseless: fn(&str) -> String = |name| name.to_lowercase().replace('ſ', "s");
    run("requests", 250_000, &seeds, |text, random| {
        let endpoint = ENDPOINTS[random.below(4)];
        let body = Bytes::copy_from_slice(text);
        let Ok(request) = request::read(endpoint, None, body, &settings) else { return };
        let asks = [IncludeUsage::AsGiven, IncludeUsage::Ask, IncludeUsage::Omit][random.below(3)];
        let sent = request.upstream_body("its-name", asks);
        let sent = std::str::from_utf8(&sent).unwrap();
        let first = understood(sent, true, exact);
        assert_eq!(first, understood(sent, false, exact), "{sent}");
        for tree in [understood(sent, true, caseless), understood(sent, false, caseless)] {
            assert_eq!(tree.get("model"), Some("\"its-name\""), "{sent}");
            assert_eq!(tree.get("stream") == Some("true"), request.stream, "{sent}");
            let choices = tree.get("n").map_or(1, |n| n.parse().unwrap());
            assert!(request.choices >= choices, "{sent}");
            for name in ["max_tokens", "max_completion_tokens", "max_output_tokens"] {
                if let Some(limit) = tree.get(name) {
                    assert_eq!(limit.parse().ok(), request.max_output, "{sent}");
                }
            }
            assert_ne!(tree.get("background"), Some("true"), "{sent}");
        }
    });
}

const USAGE_WORDS: [&str; 34] = [
    "\n\n",
    "data: ",
    "event: error\n",
    "data: [DONE]\n\n",
    "\"usage\":",
    "\"usage\":null",
    "\"usageMetadata\":",
    "\"prompt_tokens\":",
    "\"completion_tokens\":",
    "\"total_tokens\":",
    "\"input_tokens\":",
    "\"output_tokens\":",
    "\"cached_tokens\":",
    "\"prompt_tokens_details\":",
    "\"candidatesTokenCount\":",
    "\"choices\":[]",
    "\"error\":{}",
    "\"finish_reason\":\"stop\"",
    "\"content\":\"x\"",
    "\"message_stop\"",
    "\"response.completed\"",
    "-1",
    "1e999",
    "9223372036854775808",
    "18446744073709551616",
    "0",
    "null",
    "\"12\"",
    "1.5",
    "{",
    "}",
    "[",
    "\\u00",
    "\"",
];

/// What a meter read, and what it passed on.
fn metered(endpoint: Endpoint, pieces: &[&[u8]], hides: bool) -> (Reading, Vec<u8>, (String, u64)) {
    let edit = if hides { Edit::HideUsage } else { Edit::None };
    let mut meter = Meter::stream(endpoint, edit);
    let mut passed = Vec::new();
    for piece in pieces {
        passed.extend_from_slice(&meter.push(Bytes::copy_from_slice(piece)));
    }
    passed.extend_from_slice(&meter.finish());
    let text = meter.output_text();
    (meter.into_reading(), passed, text)
}

#[test]
fn no_reply_is_metered_otherwise_because_it_is_cut_or_garbled_and_every_byte_passes() {
    let seeds = Seeds::of("usage", recorded("usage", None, 1200), &USAGE_WORDS);
    run("replies", 250_000, &seeds, |text, random| {
        let endpoint = ENDPOINTS[random.below(8)];
        if !text.contains(&b'\n') {
            if read_whole(endpoint, text).is_some() {
                whole_text(endpoint, text);
            }
            return;
        }
        let hides = random.below(2) == 0;
        let cut = pieces(text, random);
        let (reading, passed, output) = metered(endpoint, &cut, hides);
        let at_once = metered(endpoint, &[text], hides);
        assert_eq!((&reading, &output), (&at_once.0, &at_once.2));
        assert_eq!(passed, at_once.1);
        if !hides {
            assert_eq!(passed, text);
        }
        assert!(output.1 <= text.len() as u64);
        estimate::output_tokens("m", &output.0, output.1);
    });
}

const HTTP_WORDS: [&str; 24] = [
    "\r\n",
    "\n",
    "\r\n\r\n",
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.1 100 Continue\r\n\r\n",
    "HTTP/1.0 200 OK\r\n",
    "content-length: 5\r\n",
    "Content-Length: 0\r\n",
    "transfer-encoding: chunked\r\n",
    "connection: close\r\n",
    "5\r\nhello\r\n",
    "0\r\n\r\n",
    "0\r\n",
    "A;x=y\r\n",
    "ffffffffffffffff\r\n",
    ": ",
    " ",
    "\t",
    ",",
    "chunked",
    "gzip, chunked",
    "-1",
    "18446744073709551616",
    "x: y\r\n",
];

/// A reply's status, its body, whether that is whole, and how many bytes it took.
type Replied = (u16, Vec<u8>, bool, usize);

/// The reply in the bytes of a connection.
fn replied(pieces: &[&[u8]]) -> Result<Option<Replied>, http1::Invalid> {
    let mut arrived = Vec::new();
    let mut reply: Option<(http1::Head, Vec<u8>, usize)> = None;
    for piece in pieces {
        if let Some((head, body, length)) = &mut reply {
            if !head.body.is_over() {
                *length += head.body.take(piece, body)?;
            }
            continue;
        }
        arrived.extend_from_slice(piece);
        if let Some((mut head, length)) = http1::head(&arrived)? {
            let mut body = Vec::new();
            let taken = head.body.take(&arrived[length..], &mut body)?;
            reply = Some((head, body, length + taken));
        }
    }
    Ok(reply.map(|(head, body, length)| (head.status.as_u16(), body, head.body.is_over(), length)))
}

#[test]
fn a_reply_on_the_wire_is_read_alike_however_it_arrives() {
    let seeds = Seeds::of("http", Vec::new(), &HTTP_WORDS);
    run("replies on the wire", 150_000, &seeds, |text, random| {
        let cut = replied(&pieces(text, random));
        assert_eq!(cut, replied(&[text]));
        if let Ok(Some((_, body, _, length))) = cut {
            assert!(body.len() <= length && length <= text.len());
        }
    });
}

const CONFIG_WORDS: [&str; 24] = [
    "\n",
    "=",
    "\"",
    "[",
    "]",
    "[[upstream]]\n",
    "[models.\"m\"]\n",
    "input = \"1\"\n",
    "output = \"-1\"\n",
    "name = \"x\"\n",
    "base_url = \"http://\"\n",
    "kind = \"openai\"\n",
    "max_in_flight = 0\n",
    "\"1h\"",
    "1e9",
    "18446744073709551616",
    "true",
    "{",
    "}",
    ",",
    "upstream = [\"a\", \"b\"]\n",
    "bands = [{ above = 1 }]\n",
    "markup = \"1.1\"\n",
    "aliases = [\"m\"]\n",
];

#[test]
fn settings_and_prices_are_read_or_refused_in_words() {
    let seeds = Seeds::of("config", Vec::new(), &CONFIG_WORDS);
    run("settings and prices", 50_000, &seeds, |text, _| {
        let text = String::from_utf8_lossy(text);
        if let Err(error) = toml::from_str::<Config>(&text) {
            assert!(!error.to_string().is_empty());
        }
        match PriceTable::read(&text) {
            Ok((table, _)) => assert!(table.by_name.len() >= table.models.len()),
            Err(problems) => assert!(!format!("{problems:?}").is_empty()),
        }
    });
}
