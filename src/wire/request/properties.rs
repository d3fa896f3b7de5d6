//! Hostile documents against other readers: whatever passes the gate reads alike everywhere.

use std::fmt;

use bytes::Bytes;
use proptest::prelude::*;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::{IncludeUsage, Request, Settings, read};
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

/// How readers differ: in which of two equal names counts, and in which names are equal.
#[derive(Clone, Copy)]
struct Reader {
    first_wins: bool,
    /// A name as the reader compares it.
    name: fn(&str) -> String,
}

const EXACT: [Reader; 2] = [
    Reader { first_wins: true, name: str::to_owned },
    Reader { first_wins: false, name: str::to_owned },
];

const CASELESS: [Reader; 2] =
    [Reader { first_wins: true, name: caseless }, Reader { first_wins: false, name: caseless }];

const SPELLED: [Reader; 2] =
    [Reader { first_wins: true, name: spelled }, Reader { first_wins: false, name: spelled }];

/// A name without case, as Go compares it.
fn caseless(name: &str) -> String {
    name.to_lowercase().replace('ſ', "s")
}

/// A name in neither `camelCase` nor `snake_case`, as Protocol Buffers take both.
fn spelled(name: &str) -> String {
    caseless(name).replace('_', "")
}

impl Reader {
    /// A document as this reader understands it.
    fn understood(self, raw: &str) -> Value {
        if raw.starts_with('[') {
            let items: Vec<Box<RawValue>> = serde_json::from_str(raw).unwrap();
            return items.iter().map(|item| self.understood(item.get())).collect();
        }
        if !raw.starts_with('{') {
            // A number beyond what the other parser takes counts as none.
            return serde_json::from_str(raw).unwrap_or_default();
        }
        let mut object = serde_json::Map::new();
        for (key, value) in pairs(raw) {
            let (key, value) = ((self.name)(&key), self.understood(value.get()));
            if self.first_wins {
                object.entry(key).or_insert(value);
            } else {
                object.insert(key, value);
            }
        }
        object.into()
    }
}

/// Fields, each with names and with values that fit it or do not.
type Pool = Vec<(Vec<&'static str>, BoxedStrategy<&'static str>)>;

fn one_of(texts: &[&'static str]) -> BoxedStrategy<&'static str> {
    prop::sample::select(texts.to_vec()).boxed()
}

fn field(
    keys: &[&'static str],
    values: BoxedStrategy<&'static str>,
) -> (Vec<&'static str>, BoxedStrategy<&'static str>) {
    (keys.to_vec(), values)
}

fn chat() -> Pool {
    let count =
        one_of(&["1", "7", "null", "8", "1.0", "1e2", "-1", "\"7\"", "18446744073709551616", "01"]);
    let flag = one_of(&["true", "false", "true", "false", "null", "0", "\"true\""]);
    vec![
        field(
            &["model", "model", "Model", "MODEL", " model", "model\0", "models"],
            one_of(&["\"cheap\"", "\"dear\"", "\"ch\\u0065ap\"", "null", "[]", "7"]),
        ),
        field(&["stream", "stream", "Stream", "ſtream"], flag.clone()),
        field(
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
        field(&["max_tokens", "max_tokens", "Max_Tokens"], count.clone()),
        field(&["max_completion_tokens", "max_output_tokens"], count.clone()),
        field(&["n", "n", "N"], count),
        field(
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
        field(
            &["service_tier", "Service_Tier"],
            one_of(&["\"auto\"", "\"priority\"", "null", "1"]),
        ),
        field(&["background", "BACKGROUND"], flag),
        field(
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
    ]
}

fn gemini() -> Pool {
    vec![
        field(
            &["generationConfig", "generation_config", "GenerationConfig"],
            one_of(&[
                "{}",
                "{\"maxOutputTokens\":7}",
                "{\"max_output_tokens\":8,\"candidate_count\":2}",
                "{\"maxOutputTokens\":7,\"max_output_tokens\":8}",
                "{\"candidateCount\":3,\"candidatecount\":4}",
            ]),
        ),
        field(&["serviceTier", "service_tier", "servicetier"], one_of(&["\"priority\"", "null"])),
        field(
            &["tools", "Tools"],
            one_of(&["[{\"googleSearch\":{}}]", "[{\"google_search\":{}}]", "[{}]", "null"]),
        ),
        field(&["model", "contents"], one_of(&["\"gemini\"", "\"dear\"", "[]"])),
    ]
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
fn hostile(pool: Pool) -> impl Strategy<Value = String> {
    let field = prop::sample::select(pool)
        .prop_flat_map(|(keys, value)| (prop::sample::select(keys), value));
    // Mostly no letter is escaped.
    let escaped = prop_oneof![3 => Just(0_u16), 1 => any::<u16>()];
    let space = prop::sample::select(vec!["", "", " ", "\n\t", "\r\n"]);
    let fields = prop::collection::vec((field, escaped, space), 0..5);
    (fields, 0_usize..5, prop::sample::select(vec!["", "", "", " ", "\u{feff}", "{}"])).prop_map(
        |(fields, at, end)| {
            let mut fields: Vec<_> = fields
                .into_iter()
                .map(|((key, value), escaped, space)| {
                    format!("{space}{}{space}:{value}{space}", quoted(key, escaped))
                })
                .collect();
            // A model, so that most of them could pass.
            fields.insert(at.min(fields.len()), "\"model\":\"cheap\"".into());
            format!("{{{}}}{end}", fields.join(","))
        },
    )
}

/// What billing acts on is what the reader sees in what we send.
fn check_chat(request: &Request, sent: &str, usage: bool, reader: Reader) {
    let document = reader.understood(sent);
    let seen = |name: &str| &document[(reader.name)(name)];
    assert_eq!(seen("model"), "upstream", "{sent}");
    assert_eq!(seen("stream").as_bool().unwrap_or(false), request.stream, "{sent}");
    assert_eq!(seen("n").as_u64().unwrap_or(1), request.choices, "{sent}");
    assert_ne!(seen("background"), true, "{sent}");
    for name in ["max_tokens", "max_completion_tokens", "max_output_tokens"] {
        if !seen(name).is_null() {
            assert_eq!(seen(name).as_u64(), request.max_output, "{sent}");
        }
    }
    let tier = seen("service_tier").as_str().filter(|tier| *tier != "auto");
    assert_eq!(tier, request.service_tier.as_deref(), "{sent}");
    let types = seen("tools").as_array().into_iter().flatten().map(|tool| &tool["type"]);
    let mut hosted: Vec<_> =
        types.filter_map(Value::as_str).filter(|name| *name != "function").collect();
    hosted.sort_unstable();
    assert_eq!(hosted, request.hosted_tools, "{sent}");
    let asked = &seen("stream_options")[(reader.name)("include_usage")];
    let asked = asked.as_bool().unwrap_or(false);
    assert_eq!(asked, request.asks_usage || (usage && request.stream), "{sent}");
}

/// The same for Gemini's format, whose names come in two spellings.
fn check_gemini(request: &Request, sent: &str, reader: Reader) {
    let document = reader.understood(sent);
    let config = &document["generationconfig"];
    assert_eq!(config["maxoutputtokens"].as_u64(), request.max_output, "{sent}");
    assert_eq!(config["candidatecount"].as_u64().unwrap_or(1), request.choices, "{sent}");
    assert_eq!(document["servicetier"].as_str(), request.service_tier.as_deref(), "{sent}");
    let searches = !document["tools"][0]["googlesearch"].is_null();
    assert_eq!(searches, !request.hosted_tools.is_empty(), "{sent}");
    assert!(document["model"].is_null(), "{sent}");
}

fn include(usage: bool) -> IncludeUsage {
    if usage { IncludeUsage::Ask } else { IncludeUsage::AsGiven }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    /// First-wins, last-wins and caseless readers see in what we send what we read.
    #[test]
    fn whatever_passes_reads_alike_to_every_reader(document in hostile(chat()), usage in any::<bool>()) {
        let body = Bytes::from(document.clone());
        let Ok(request) = read(Endpoint::Chat, None, body, &Settings::default()) else {
            return Ok(());
        };
        let sent = String::from_utf8(request.upstream_body("upstream", include(usage)).into()).unwrap();
        for reader in EXACT.into_iter().chain(CASELESS) {
            check_chat(&request, &sent, usage, reader);
        }

        // Everything else is as it came, byte for byte, in order.
        let ours = |key: &str| key == "model" || key == "stream_options";
        let others = |document: &str| -> Vec<_> {
            let others = pairs(document).into_iter().filter(|(key, _)| !ours(key));
            others.map(|(key, value)| (key, value.get().to_owned())).collect()
        };
        prop_assert_eq!(others(&sent), others(&document));
    }

    /// So they do where names come in two spellings.
    #[test]
    fn whatever_passes_reads_alike_in_both_spellings(document in hostile(gemini())) {
        let body = Bytes::from(document.replace("\"model\":\"cheap\"", "\"x\":0"));
        if let Ok(request) = read(Endpoint::Generate, Some("gemini"), body, &Settings::default()) {
            let sent = String::from_utf8(request.upstream_body("m", IncludeUsage::AsGiven).into()).unwrap();
            for reader in SPELLED {
                check_gemini(&request, &sent, reader);
            }
        }
    }

    /// No bytes make it panic, on any endpoint.
    #[test]
    fn arbitrary_bytes_are_an_answer_and_not_a_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..64),
        document in hostile(chat()),
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
                    let sent = request.upstream_body("upstream", include(usage));
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
        let document = hostile(chat()).new_tree(&mut runner).unwrap().current();
        read(Endpoint::Chat, None, document.into(), &Settings::default()).is_ok()
    });
    let passed = passed.count();
    assert!((100..900).contains(&passed), "{passed} of 1000");
}
