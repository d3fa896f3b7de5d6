//! Hostile documents against other readers: whatever passes the gate reads alike everywhere.

use std::fmt;

use bytes::Bytes;
use proptest::prelude::*;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::{Request, Settings, read};
use crate::wire::Endpoint;

/// The fields of an object as another parser sees them: all of them, in order, raw.
struct Pairs(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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

fn pairs(document: &str) -> Vec<(String, Box<RawValue>)> {
    serde_json::from_str::<Pairs>(document).unwrap().0
}

/// How readers differ.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Reader {
    /// The first of two equal names counts.
    First,
    /// The last one counts.
    Last,
    /// The last one counts, and case does not (Go).
    Caseless,
}

/// A document as a reader understands it.
fn understood(raw: &str, reader: Reader) -> Value {
    if raw.starts_with('[') {
        let items: Vec<Box<RawValue>> = serde_json::from_str(raw).unwrap();
        return items.iter().map(|item| understood(item.get(), reader)).collect();
    }
    if !raw.starts_with('{') {
        // A number beyond what the other parser takes counts as none.
        return serde_json::from_str(raw).unwrap_or_default();
    }
    let mut object = serde_json::Map::new();
    for (key, value) in pairs(raw) {
        let key = match reader {
            Reader::Caseless => key.to_lowercase().replace('ſ', "s"),
            Reader::First | Reader::Last => key,
        };
        let value = understood(value.get(), reader);
        match reader {
            Reader::First => _ = object.entry(key).or_insert(value),
            Reader::Last | Reader::Caseless => _ = object.insert(key, value),
        }
    }
    object.into()
}

/// A field: its name, and values that fit it or do not.
fn field() -> impl Strategy<Value = (String, String)> {
    let one_of = |texts: &[&'static str]| prop::sample::select(texts.to_vec()).boxed();
    let count =
        one_of(&["1", "7", "null", "8", "1.0", "1e2", "-1", "\"7\"", "18446744073709551616", "01"]);
    let flag = one_of(&["true", "false", "true", "false", "null", "0", "\"true\""]);
    let pool: Vec<(&[&'static str], _)> = vec![
        (
            &["model", "model", "Model", "MODEL", " model", "model\0", "models"],
            one_of(&["\"cheap\"", "\"dear\"", "\"ch\\u0065ap\"", "null", "[]", "7"]),
        ),
        (&["stream", "stream", "Stream", "ſtream"], flag.clone()),
        (
            &["stream_options", "stream_options", "Stream_Options"],
            one_of(&[
                "{}",
                "null",
                "{\"include_usage\":false}",
                "{ \"include_usage\" : true , \"x\":[1] }",
                "{\"include_usage\":true,\"include_usage\":false}",
                "{\"include_usag\\u0065\":true}",
                "{\"Include_Usage\":false,\"include_usage\":true}",
                "{\"x\":{},\"x\":1}",
                "[]",
            ]),
        ),
        (&["max_tokens", "max_tokens", "Max_Tokens"], count.clone()),
        (&["max_completion_tokens", "max_output_tokens"], count.clone()),
        (&["n", "n", "N"], count),
        (
            &["tools", "tools", "Tools"],
            one_of(&[
                "[]",
                "null",
                "[{\"type\":\"function\"}]",
                "[{\"type\":\"web_search\"}, {\"typ\\u0065\":\"mcp\"}]",
                "[{\"type\":\"function\",\"type\":\"mcp\"}]",
                "[{\"type\":\"function\",\"TYPE\":\"mcp\"}]",
                "{}",
            ]),
        ),
        (&["service_tier", "Service_Tier"], one_of(&["\"auto\"", "\"priority\"", "null", "1"])),
        (&["background", "BACKGROUND"], flag),
        (
            &["messages", "x", "y", "é\"\\", "", "model_"],
            one_of(&[
                "[{\"role\":\"user\",\"content\":\"\\u00e9\\n\"}]",
                "1.50",
                "{ }",
                "{\"a\":{\"b\":1,\"b\":2}}",
                "\"]}\"",
                "-0",
                "1E400",
                "NaN",
                "\"\\ud800\"",
            ]),
        ),
    ];
    let one = prop::sample::select(pool);
    one.prop_flat_map(|(keys, value)| {
        (prop::sample::select(keys).prop_map(String::from), value.prop_map(String::from))
    })
}

/// A name in quotes, with some of its letters escaped.
fn quoted(key: &str, escaped: u16) -> String {
    let letter = |(at, letter): (usize, char)| match letter {
        _ if letter.is_ascii_alphabetic() && (escaped >> (at % 16)) & 1 == 0 => letter.to_string(),
        _ => letter.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect(),
    };
    format!("\"{}\"", key.chars().enumerate().map(letter).collect::<String>())
}

/// Documents that try to be read in two ways. About a fifth of them pass.
fn hostile() -> impl Strategy<Value = String> {
    // Mostly no letter is escaped.
    let escaped = prop_oneof![3 => Just(0_u16), 1 => any::<u16>()];
    let space = prop::sample::select(vec!["", "", " ", "\n\t", "\r\n"]);
    let fields = prop::collection::vec((field(), escaped, space), 0..5);
    (fields, 0_usize..5, prop::sample::select(vec!["", "", "", " ", "\u{feff}", "{}"])).prop_map(
        |(fields, at, end)| {
            let mut fields: Vec<_> = fields
                .into_iter()
                .map(|((key, value), escaped, space)| {
                    format!("{space}{}{space}:{value}{space}", quoted(&key, escaped))
                })
                .collect();
            // A model, so that most of them could pass.
            fields.insert(at.min(fields.len()), "\"model\":\"cheap\"".into());
            format!("{{{}}}{end}", fields.join(","))
        },
    )
}

/// What billing acts on, from the reader's point of view.
fn check(request: &Request, sent: &str, usage: bool) {
    for reader in [Reader::First, Reader::Last, Reader::Caseless] {
        let seen = understood(sent, reader);
        assert_eq!(seen["model"], "upstream", "{reader:?} {sent}");
        assert_eq!(seen["stream"].as_bool().unwrap_or(false), request.stream, "{reader:?} {sent}");
        assert_eq!(seen["n"].as_u64().unwrap_or(1), request.choices, "{reader:?} {sent}");
        assert_ne!(seen["background"], true, "{reader:?} {sent}");
        for name in ["max_tokens", "max_completion_tokens", "max_output_tokens"] {
            if !seen[name].is_null() {
                assert_eq!(seen[name].as_u64(), request.max_output, "{reader:?} {sent}");
            }
        }
        let tier = seen["service_tier"].as_str().filter(|tier| *tier != "auto");
        assert_eq!(tier, request.service_tier.as_deref(), "{reader:?} {sent}");
        let types = seen["tools"].as_array().into_iter().flatten().map(|tool| &tool["type"]);
        let mut hosted: Vec<_> =
            types.filter_map(Value::as_str).filter(|it| *it != "function").collect();
        hosted.sort_unstable();
        assert_eq!(hosted, request.hosted_tools, "{reader:?} {sent}");
        let asked = seen["stream_options"]["include_usage"].as_bool().unwrap_or(false);
        assert_eq!(asked, request.asks_usage || (usage && request.stream), "{reader:?} {sent}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    /// First-wins, last-wins and caseless readers see in what we send what we read.
    #[test]
    fn whatever_passes_reads_alike_to_every_reader(document in hostile(), usage in any::<bool>()) {
        let body = Bytes::from(document.clone());
        let Ok(request) = read(Endpoint::Chat, None, body, &Settings::default()) else {
            return Ok(());
        };
        let sent = String::from_utf8(request.upstream_body("upstream", usage).into()).unwrap();
        check(&request, &sent, usage);

        // Everything else is as it came, byte for byte, in order.
        let ours = |key: &str| key == "model" || key == "stream_options";
        let others = |document: &str| -> Vec<_> {
            let others = pairs(document).into_iter().filter(|(key, _)| !ours(key));
            others.map(|(key, value)| (key, value.get().to_owned())).collect()
        };
        prop_assert_eq!(others(&sent), others(&document));
    }

    /// No bytes make it panic, on any endpoint.
    #[test]
    fn arbitrary_bytes_are_an_answer_and_not_a_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..64),
        document in hostile(),
        cut in any::<prop::sample::Index>(),
        endpoint in prop::sample::select(vec![
            Endpoint::Chat, Endpoint::Completions, Endpoint::Embeddings, Endpoint::Responses,
            Endpoint::Messages, Endpoint::CountTokens, Endpoint::Generate, Endpoint::StreamGenerate,
        ]),
    ) {
        let mut spliced = document.clone().into_bytes();
        let at = cut.index(spliced.len());
        spliced.splice(at..at, bytes.iter().copied().take(3));
        for body in [bytes, document.into_bytes(), spliced] {
            if let Ok(request) = read(endpoint, Some("gemini"), body.into(), &Settings::default()) {
                for usage in [false, true] {
                    let sent = request.upstream_body("upstream", usage);
                    serde_json::from_slice::<Pairs>(&sent).unwrap();
                }
            }
        }
    }
}

/// The documents above must not all be refused, or they would prove nothing.
#[test]
fn enough_hostile_documents_pass_to_prove_something() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let passed = (0..1000).filter(|_| {
        let document = hostile().new_tree(&mut runner).unwrap().current();
        read(Endpoint::Chat, None, document.into(), &Settings::default()).is_ok()
    });
    let passed = passed.count();
    assert!((100..900).contains(&passed), "{passed} of 1000");
}
