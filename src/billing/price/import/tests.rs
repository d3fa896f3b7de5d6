//! Prices come over exactly, or are refused by name.

use proptest::prelude::*;

use super::*;
use crate::billing::price::read::read_file;

fn options() -> Options {
    Options {
        format: None,
        models: vec![],
        upstream: None,
        markup: None,
        source: None,
        today: "2026-11-21".into(),
    }
}

fn take(json: &str) -> Import {
    import(json, &options()).unwrap()
}

/// One model of a provider in LiteLLM's list, at 3 and 15 with what is added.
fn litellm(provider: &str, more: &str) -> String {
    format!(
        r#"{{"m": {{"litellm_provider": "{provider}", "mode": "chat",
        "input_cost_per_token": 3e-06, "output_cost_per_token": 1.5e-05{more}}}}}"#
    )
}

/// What an entry states beside its names, upstream, source and date.
fn facts(entry: &Entry) -> Vec<String> {
    entry.facts().into_iter().map(|(key, value)| format!("{key} = {value}")).collect()
}

#[test]
fn prices_per_token_become_rates_per_million_exactly() {
    for (text, rate) in [
        ("3e-06", "3"),
        ("1.5e-7", "0.15"),
        ("1.5E-7", "0.15"),
        ("0.00000125", "1.25"),
        ("0.0000012500", "1.25"),
        ("5e-09", "0.005"),
        ("1e-12", "0.000001"),
        ("0.0001", "100"),
        ("1E+1", "10000000"),
        ("0", "0"),
        ("0.0", "0"),
        ("0e-99", "0"),
    ] {
        assert_eq!(rate_per_token(text).map(|rate| rate.to_string()), Ok(rate.into()), "{text}");
    }
}

#[test]
fn a_price_that_is_not_exact_is_refused_and_not_rounded() {
    for text in ["1e-13", "3.0001999999999996E-7", "0.0000021429999999999996", "1e-99"] {
        assert_eq!(
            rate_per_token(text),
            Err("has more than six decimals per 1,000,000 tokens"),
            "{text}"
        );
    }
    for text in ["", "e", "1e", "1e9999999999", "1e99", "x", "1.2.3"] {
        assert_eq!(rate_per_token(text), Err("is not a number"), "{text}");
    }
    assert_eq!(rate_per_token("-1"), Err("is negative"));

    let import = take(&litellm("openai", r#", "cache_read_input_token_cost": 1.2345678e-7"#));
    assert_eq!(import.entries, []);
    let why = "cache_read_input_token_cost = 1.2345678e-7 has more than six decimals per 1,000,000 tokens";
    assert_eq!(import.skipped, [("m".into(), why.into())]);
}

proptest! {
    #[test]
    fn any_rate_survives_being_written_per_token(pico in 0..=10_000_000_000_i64) {
        let rate = Rate(pico);
        prop_assert_eq!(rate_per_token(&rate.per_token()), Ok(rate));
        prop_assert_eq!(rate_per_token(&format!("{pico}e-12")), Ok(rate));
    }
}

#[test]
fn every_class_of_litellm_has_its_key() {
    let import = take(&litellm(
        "anthropic",
        r#", "cache_read_input_token_cost": 3e-07,
        "cache_creation_input_token_cost": 3.75e-06,
        "cache_creation_input_token_cost_above_1hr": 6e-06,
        "output_cost_per_reasoning_token": 2e-05,
        "input_cost_per_audio_token": 4e-06, "cache_read_input_audio_token_cost": 4e-07,
        "output_cost_per_audio_token": 6e-05,
        "input_cost_per_image_token": 5e-06, "output_cost_per_image_token": 7e-05,
        "search_context_cost_per_query": {"search_context_size_low": 0.01, "search_context_size_high": 0.014},
        "google_maps_grounding_cost_per_query": 0.025,
        "max_input_tokens": 200000, "max_output_tokens": 64000"#,
    ));
    assert_eq!(
        facts(&import.entries[0]),
        [
            "audio_input = 4",
            "audio_output = 60",
            "cache_creation = 3.75",
            "cache_creation_1h = 6",
            "cached_audio_input = 0.4",
            "cached_input = 0.3",
            "context = 200000",
            "fees.maps_grounding = 0.025",
            "fees.web_search = 0.014",
            "image_input = 5",
            "image_output = 70",
            "input = 3",
            "max_output = 64000",
            "output = 15",
            "reasoning = 20",
        ]
    );
    assert_eq!((import.skipped, import.left_out), (vec![], vec![]));
}

#[test]
fn gemini_bills_searches_by_the_query_or_by_the_reply() {
    let fees = |more: &str| {
        let search = r#", "search_context_cost_per_query": {"search_context_size_low": 0.035}"#;
        let mut facts = facts(&take(&litellm("gemini", &format!("{search}{more}"))).entries[0]);
        facts.retain(|fact| fact.starts_with("fees."));
        facts
    };
    assert_eq!(fees(r#", "web_search_billing_unit": "per_query""#), ["fees.web_search = 0.035"]);
    // The zero says that searches are allowed, and cost nothing beside the fee of the reply.
    assert_eq!(fees(""), ["fees.grounding = 0.035", "fees.web_search = 0"]);
}

#[test]
fn thresholds_become_bands_and_suffixes_become_tiers() {
    let import = take(&litellm(
        "openai",
        r#", "input_cost_per_token_above_272k_tokens": 6e-06,
        "input_cost_per_token_above_1000k_tokens": 9e-06,
        "input_cost_per_token_priority": 5e-06,
        "output_cost_per_token_flex": 7.5e-06,
        "cache_creation_input_token_cost_above_12hr_above_272k_tokens_priority": 1e-05,
        "input_cost_per_token_batches": 1.5e-06,
        "input_cost_per_token_above_272k_tokens_batches": 1.5e-06"#,
    ));
    assert_eq!(
        facts(&import.entries[0]),
        [
            "above 1000000.input = 9",
            "above 272000.input = 6",
            "input = 3",
            "output = 15",
            "tiers.flex.output = 7.5",
            "tiers.priority.above 272000.cache_creation_1h = 10",
            "tiers.priority.input = 5",
        ]
    );
    let bands: Vec<_> = import.entries[0].bands.iter().map(|band| band.above).collect();
    assert_eq!(bands, [272_000, 1_000_000]);
}

#[test]
fn xai_charges_the_dearer_rates_from_the_threshold_on() {
    let import = take(&litellm("xai", r#", "input_cost_per_token_above_200k_tokens": 6e-06"#));
    assert_eq!(import.entries[0].bands[0].above, 199_999);
}

#[test]
fn anthropics_fast_mode_is_a_tier_at_a_multiple() {
    let more = r#", "input_cost_per_token_above_200k_tokens": 4e-06,
        "provider_specific_entry": {"us": 1.1, "fast": 2.5}"#;
    let facts = facts(&take(&litellm("anthropic", more)).entries[0]);
    assert!(facts.contains(&"tiers.fast.input = 7.5".into()), "{facts:?}");
    assert!(facts.contains(&"tiers.fast.above 200000.input = 10".into()), "{facts:?}");
}

#[test]
fn a_part_at_the_rate_of_its_class_is_not_repeated_so_that_bands_move_it_too() {
    let import = take(&litellm(
        "gemini",
        r#", "output_cost_per_reasoning_token": 1.5e-05,
        "output_cost_per_token_above_200k_tokens": 2.25e-05"#,
    ));
    assert_eq!(
        facts(&import.entries[0]),
        ["above 200000.output = 22.5", "input = 3", "output = 15"]
    );
}

#[test]
fn prices_that_have_no_key_are_told() {
    let import = take(&litellm(
        "gemini",
        r#", "input_cost_per_video_token": 1.2e-05, "input_cost_per_character": 0"#,
    ));
    assert_eq!(import.left_out, [("m".into(), "input_cost_per_video_token".into())]);
}

#[test]
fn what_cannot_be_served_is_skipped_with_the_reason() {
    let json = r#"{
        "sample_spec": {"litellm_provider": "openai", "input_cost_per_token": 0.0},
        "image": {"litellm_provider": "openai", "mode": "image_generation", "input_cost_per_token": 5e-06},
        "old": {"litellm_provider": "openai", "mode": "chat", "deprecation_date": "2026-11-21", "input_cost_per_token": 5e-06},
        "gift": {"litellm_provider": "openai", "mode": "chat", "input_cost_per_token": 0.0, "output_cost_per_token": 0},
        "half": {"litellm_provider": "openai", "mode": "chat", "input_cost_per_token": 5e-06},
        "wrong": {"litellm_provider": "openai", "mode": "chat", "input_cost_per_token": 5, "output_cost_per_token": 5e-06},
        "seconds": {"litellm_provider": "openai", "mode": "chat", "input_cost_per_second": 5},
        "ft:m": {"litellm_provider": "openai", "mode": "chat", "input_cost_per_token": 5e-06},
        "elsewhere": {"litellm_provider": "azure", "mode": "chat", "input_cost_per_token": 5e-06}
    }"#;
    let import = take(json);
    let skipped: Vec<_> = import.skipped.iter().map(|(id, why)| format!("{id}: {why}")).collect();
    assert_eq!(
        skipped,
        [
            "ft:m: a fine-tune has an id of its own",
            "gift: costs nothing; if so, write it by hand with `free = true`",
            "half: model \"half\" has no output price, so it cannot be served",
            "image: image_generation is not served",
            "old: retired 2026-11-21",
            "seconds: has no price per token",
            "wrong: `input` is more than 10000 credits, which is not believed",
        ]
    );
    assert_eq!(import.entries, []);
}

#[test]
fn names_lose_the_prefix_of_built_in_providers_and_globs_choose() {
    let model = |provider: &str| {
        format!(
            r#"{{"litellm_provider": "{provider}", "input_cost_per_token": 1e-06, "output_cost_per_token": 1e-06}}"#
        )
    };
    let json = format!(
        r#"{{"gemini/gemini-x": {0}, "gemini-x": {0}, "gemini/gemini-y": {0}, "deepseek/chat": {1}}}"#,
        model("gemini"),
        model("deepseek")
    );
    let names = |models: &[&str], upstream: Option<&str>| {
        let models = models.iter().map(ToString::to_string).collect();
        let upstream = upstream.map(str::to_owned);
        let import = import(&json, &Options { models, upstream, ..options() }).unwrap();
        let names = import.entries.into_iter().map(|entry| {
            let [(upstream, model)] = entry.upstreams.as_slice() else { panic!() };
            format!("{} = {upstream}: {model}", entry.name)
        });
        names.collect::<Vec<_>>()
    };
    let (x, y) = ("gemini-x = gemini: gemini-x", "gemini-y = gemini: gemini-y");
    assert_eq!(names(&[], None), [x, y]);
    assert_eq!(names(&["*-y"], None), [y]);
    assert_eq!(names(&["deepseek/*"], None), [""; 0]);
    assert_eq!(names(&["deepseek/*"], Some("mine")), ["deepseek/chat = mine: chat"]);
}

#[test]
fn stars_stand_for_anything() {
    for (pattern, text, expected) in [
        ("gpt-4*", "gpt-4.1", true),
        ("*", "", true),
        ("*mini*", "gpt-5-mini-2025", true),
        ("gpt-4", "gpt-4.1", false),
        ("a*b*c", "a-b-c-d", false),
        ("*ä", "xä", true),
    ] {
        assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
    }
}

const OPENROUTER: &str = r#"{"data": [
    {"id": "google/gemini-x", "context_length": 1048576,
     "top_provider": {"max_completion_tokens": 65536},
     "pricing": {"prompt": "0.00000125", "completion": "0.00001", "request": "0", "image": "0.00516",
       "web_search": "0.014", "internal_reasoning": "0", "input_cache_read": "0.000000125",
       "input_cache_write": "0.000001625", "audio": "0.00000125",
       "overrides": [{"min_prompt_tokens": 200000, "prompt": "0.0000025", "completion": "0.000015"}]}},
    {"id": "openrouter/auto", "pricing": {"prompt": "-1", "completion": "-1"}},
    {"id": "x/free:free", "pricing": {"prompt": "0", "completion": "0"}},
    {"id": "x/per-request", "pricing": {"prompt": "0.000001", "completion": "0.000001", "request": "0.005"}}
]}"#;

#[test]
fn openrouters_list_is_read_and_its_zeros_are_no_prices() {
    let import = take(OPENROUTER);
    assert_eq!(import.entries.len(), 1);
    assert_eq!(
        facts(&import.entries[0]),
        [
            "above 200000.input = 2.5",
            "above 200000.output = 15",
            "cache_creation = 1.625",
            "cached_input = 0.125",
            "context = 1048576",
            "fees.web_search = 0.014",
            "input = 1.25",
            "max_output = 65536",
            "output = 10",
        ]
    );
    let upstream = ("openrouter".to_owned(), "google/gemini-x".to_owned());
    assert_eq!(import.entries[0].upstreams, [upstream]);
    assert_eq!(import.left_out, [("google/gemini-x".into(), "image".into())]);
    let skipped: Vec<_> = import.skipped.iter().map(|(id, why)| format!("{id}: {why}")).collect();
    assert_eq!(
        skipped,
        [
            "openrouter/auto: prompt = -1 is negative",
            "x/free:free: costs nothing; if so, write it by hand with `free = true`",
            "x/per-request: has a price per request, which is not metered",
        ]
    );
}

#[test]
fn what_is_no_list_is_an_error() {
    for json in ["", "[]", "{\"data\": 1}", "not json"] {
        assert!(import(json, &options()).is_err(), "{json}");
    }
}

/// An operator's file with a model that the list knows by the upstream's name.
const OURS: &str = r#"# Our prices.
markup = "1.10"

# Dear friends pay this.
[models."nice"]
upstream = "openai" # the only one
upstream_model = "m"
aliases = ["n"]
input = "4"
output = "15"
fees = { file_search = "0.0025" }

[[models."nice".bands]]
above = 5
input = "5"

# Not ours to touch.
[models."other"]
upstream = "local"
free = true # on purpose
"#;

fn changes(json: &str) -> Vec<Change> {
    let (file, problems) = read_file(OURS);
    assert_eq!(problems, []);
    plan(&file, &take(json))
}

#[test]
fn an_entry_is_known_by_the_upstreams_name_and_keeps_what_the_operator_decided() {
    let json = litellm(
        "openai",
        r#", "search_context_cost_per_query": {"search_context_size_low": 0.01}"#,
    );
    let changes = changes(&json);
    let [Change::Changed(_, differences)] = changes.as_slice() else { panic!("{changes:?}") };
    let difference = |key: &str, old: &str, new: &str| (key.into(), old.into(), new.into());
    assert_eq!(
        *differences,
        [
            difference("above 5.input", "5", "–"),
            difference("fees.web_search", "–", "0.01"),
            difference("input", "4", "3"),
        ]
    );

    let merged = merge(OURS, &changes).unwrap();
    let (table, warnings) = PriceTable::read(&merged).unwrap();
    assert_eq!(warnings, []);
    let nice = table.find("n").unwrap();
    assert_eq!(nice.upstreams, [("openai".to_owned(), "m".to_owned())]);
    assert_eq!(nice.price.standard.rates.input.to_string(), "3.3");
    assert_eq!(nice.price.standard.bands, []);
    let fees: Vec<_> = nice.price.fees.keys().collect();
    assert_eq!(fees, ["file_search", "web_search"]);
    for kept in ["# Our prices.", "# Dear friends", "# the only one", "# Not ours", "# on purpose"]
    {
        assert!(merged.contains(kept), "{kept} is gone:\n{merged}");
    }
    assert_eq!(plan(&read_file(&merged).0, &take(&json)), [Change::Unchanged("nice".into())]);
}

#[test]
fn a_markup_of_an_entrys_own_stays_when_its_price_changes() {
    let ours = OURS.replace("output = \"15\"", "output = \"15\"\nmarkup = \"2\"");
    let (file, _) = read_file(&ours);
    let changes = plan(&file, &take(&litellm("openai", "")));
    let [Change::Changed(changed, differences)] = changes.as_slice() else { panic!("{changes:?}") };
    assert_eq!(changed.markup, file.entries[0].entry.markup);
    assert!(differences.iter().all(|(key, ..)| key != "markup"), "{differences:?}");
    let merged = merge(&ours, &changes).unwrap();
    let (table, _) = PriceTable::read(&merged).unwrap();
    assert_eq!(table.find("nice").unwrap().price.standard.rates.input.to_string(), "6");
}

#[test]
fn a_new_entry_comes_last_and_the_rest_of_the_file_is_untouched() {
    let json = litellm("openai", "").replace("\"m\"", "\"new\"");
    let merged = merge(OURS, &changes(&json)).unwrap();
    assert!(merged.starts_with(OURS));
    let (table, _) = PriceTable::read(&merged).unwrap();
    let names: Vec<_> = table.models.iter().map(|model| model.name.as_str()).collect();
    assert_eq!(names, ["nice", "other", "new"]);
}

#[test]
fn bands_and_tiers_of_a_changed_entry_stay_inside_it() {
    let more = r#", "input_cost_per_token_above_200k_tokens": 6e-06, "input_cost_per_token_priority": 5e-06,
        "input_cost_per_token_above_200k_tokens_priority": 9e-06"#;
    let merged = merge(OURS, &changes(&litellm("openai", more))).unwrap();
    let (table, _) = PriceTable::read(&merged).unwrap();
    let price = &table.find("nice").unwrap().price;
    assert_eq!(price.standard.rates(200_001).input.to_string(), "6.6");
    assert_eq!(price.tier(Some("priority")).rates(200_001).input.to_string(), "9.9");
    let [nice, priority, other] = ["[models.\"nice\"]", ".tiers.priority]", "[models.\"other\"]"]
        .map(|header| merged.find(header).unwrap());
    assert!(nice < priority && priority < other, "{merged}");
}

#[test]
fn an_alias_is_not_given_a_price_of_its_own() {
    let json = litellm("openai", "").replace("\"m\"", "\"n\"");
    assert_eq!(changes(&json), [Change::Skipped("n".into(), "is an alias of nice".into())]);
}
