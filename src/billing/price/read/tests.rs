//! Each kind of problem is told at its line.

use super::*;
use crate::billing::price::problem::render;

const GOOD: &str = r#"[models."claude-sonnet-4.5"]
upstream = "anthropic"
input = "3.3"
output = "16.5"
aliases = ["sonnet"]

[models."grok-4"]
upstream = "xai"
input = "3"
output = "15"
"#;

/// What is told of a file that is `GOOD` with `from` replaced by `to`.
fn told(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from}");
    let text = GOOD.replacen(from, to, 1);
    match PriceTable::read(&text) {
        Ok((_, warnings)) => render(&warnings, "pricing.toml", &text),
        Err(problems) => render(&problems, "pricing.toml", &text),
    }
}

/// The message, the place and the label of each problem, without its line.
fn brief(from: &str, to: &str) -> String {
    let told = told(from, to);
    let lines = told.lines().filter(|line| !line.chars().next().unwrap().is_ascii_digit());
    let lines = lines.map(|line| {
        let line = line.trim_start();
        let line = line.strip_prefix("┌─ pricing.toml:").unwrap_or(line);
        line.trim_start_matches(['│', ' ', '^', '=']).trim()
    });
    lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" | ")
}

#[test]
fn a_good_file_has_no_problems() {
    assert_eq!(told("sonnet", "sonnet"), "");
}

#[test]
fn a_misspelt_rate_is_one_error_with_what_follows_from_it() {
    assert_eq!(
        told("output = \"16.5\"", "ouput = \"16.5\""),
        "\
error: unknown key `ouput`
 ┌─ pricing.toml:4:1
4│ ouput = \"16.5\"
 │ ^^^^^ did you mean `output`?
 = model \"claude-sonnet-4.5\" has no output price, so it cannot be served
"
    );
}

#[test]
fn every_error_of_the_file_is_told_at_once_and_in_order() {
    let told = brief("\"3.3\"\noutput = \"16.5\"", "3.3\noutput = \"-16.5\"\nmargin = 1");
    assert_eq!(
        told,
        "error: `input` is a bare number, and amounts are exact texts | 3:9 | \
             put it in quotes: \"3.3\" | \
             error: `output` is negative | 4:10 | \
             error: unknown key `margin` | 5:1"
    );
}

#[test]
fn each_kind_of_wrong_rate_is_told_at_its_line() {
    for (rate, expected) in [
        (
            "3",
            "error: `input` is a bare number, and amounts are exact texts | 3:9 | put it in quotes: \"3\"",
        ),
        (
            "\"3.1234567\"",
            "error: `input` has more than six decimals | 3:9 | rates are exact to six decimals per 1,000,000 tokens",
        ),
        ("\"3,3\"", "error: `input` is not a decimal number | 3:9 | write it as in \"3.3\""),
        ("\"3e-6\"", "error: `input` is not a decimal number | 3:9 | write it as in \"3.3\""),
        ("\"-3\"", "error: `input` is negative | 3:9"),
        (
            "\"10000.000001\"",
            "error: `input` is more than 10000 credits, which is not believed | 3:9 | rates are per 1,000,000 tokens",
        ),
        (
            "\"0.000003\"",
            "error: `input` looks like a price per token | 3:9 | rates are per 1,000,000 tokens",
        ),
        ("true", "error: `input` is true or false, not a decimal number in quotes | 3:9"),
    ] {
        assert_eq!(brief("\"3.3\"", rate), expected);
    }
}

#[test]
fn prices_per_thousand_tokens_are_suspected() {
    assert_eq!(
        brief("\"3.3\"\noutput = \"16.5\"", "\"0.0033\"\noutput = \"0.009\""),
        "warning: every rate of model \"claude-sonnet-4.5\" is below 0.01 | 3:9 | \
             is this a price per 1,000 tokens? Rates are per 1,000,000"
    );
}

#[test]
fn a_model_without_a_price_is_refused_unless_it_is_free_on_purpose() {
    assert_eq!(
        brief("output = \"16.5\"\n", ""),
        "error: model \"claude-sonnet-4.5\" has no output price, so it cannot be served | 1:9 | \
             add `output = \"…\"`, or `free = true` if it costs nothing"
    );
    assert_eq!(
        brief("\"3.3\"\noutput = \"16.5\"", "\"0\"\noutput = \"0\""),
        "error: model \"claude-sonnet-4.5\" costs nothing | 1:9 | \
             state its price, or `free = true` if this is meant"
    );
    assert_eq!(brief("input = \"3.3\"\noutput = \"16.5\"", "free = true"), "");
    assert_eq!(
        brief("input", "free = true\ninput"),
        "error: model \"claude-sonnet-4.5\" is free, and has a price | 3:8 | \
             leave out one or the other"
    );
}

#[test]
fn an_id_means_one_model() {
    for (aliases, expected) in [
        ("\"grok-4\"", "error: `grok-4` is the name of another model | 5:12 | remove one"),
        (
            "\"claude-sonnet-4.5\"",
            "error: `claude-sonnet-4.5` is the model's own name | 5:12 | remove one",
        ),
        (
            "\"a\", \"a\"",
            "error: `a` is already an alias of model \"claude-sonnet-4.5\" | 5:17 | remove one",
        ),
        ("\"\"", "error: \"\" is empty or has a space in it, and cannot be a name | 5:12"),
        ("1", "error: `aliases` is a number, not a text | 5:12"),
    ] {
        assert_eq!(brief("\"sonnet\"", aliases), expected);
    }
}

#[test]
fn a_model_that_stands_twice_is_told_where_it_stands_again() {
    let told = brief("\"grok-4\"", "\"claude-sonnet-4.5\"");
    assert!(told.starts_with("error: not TOML: duplicate key | 7:9"), "{told}");
}

#[test]
fn what_is_not_toml_is_told_at_its_line() {
    let told = brief("\"anthropic\"", "anthropic");
    assert!(told.starts_with("error: not TOML: "), "{told}");
    assert!(told.contains("| 2:12"), "{told}");
}

#[test]
fn a_file_without_models_is_refused_since_it_may_be_half_written() {
    for text in ["", "# nothing\n", "[models]\n", "markup = \"1\"\n"] {
        let problems = PriceTable::read(text).unwrap_err();
        assert_eq!(problems[0].message, "no model has a price, so none can be served");
    }
}

#[test]
fn every_upstream_has_its_name_of_the_model() {
    let pairs = |to| {
        let text = GOOD.replace("\"anthropic\"", to);
        let (table, _) = PriceTable::read(&text).unwrap();
        table.find("sonnet").unwrap().upstreams.clone()
    };
    let pair = |u: &str, m: &str| (u.to_owned(), m.to_owned());
    assert_eq!(pairs("\"a\""), [pair("a", "claude-sonnet-4.5")]);
    assert_eq!(pairs("[\"a\", \"b\"]\nupstream_model = \"m\""), [pair("a", "m"), pair("b", "m")]);
    assert_eq!(
        pairs("[\"a\", \"b\"]\nupstream_model = [\"m\", \"n\"]"),
        [pair("a", "m"), pair("b", "n")]
    );
}

#[test]
fn upstreams_are_there_and_match_their_models() {
    for (from, to, expected) in [
        (
            "upstream = \"anthropic\"\n",
            "",
            "error: model \"claude-sonnet-4.5\" has no upstream | 1:9 | add `upstream = \"…\"`",
        ),
        (
            "\"anthropic\"",
            "\"\"",
            "error: \"\" is empty or has a space in it, and cannot be a name | 2:12",
        ),
        ("\"anthropic\"", "[]", "error: `upstream` is empty | 2:12"),
        (
            "\"anthropic\"",
            "\"a\"\nupstream_model = [\"b\", \"c\"]",
            "error: 2 upstream models for 1 upstreams | 3:18 | one for each, or one for all",
        ),
    ] {
        assert_eq!(brief(from, to), expected);
    }
}

#[test]
fn bands_ascend_and_say_from_where_they_hold() {
    let input = "input = \"3.3\"";
    let with = |bands: &str| brief(input, &format!("{input}\nbands = [{bands}]"));
    assert_eq!(with("{ above = 200_000, input = \"6.6\" }"), "");
    assert_eq!(
        with("{ above = 2, input = \"4\" }, { above = 2, input = \"5\" }"),
        "error: bands are not in ascending order | 4:48 | put the smaller threshold first"
    );
    assert_eq!(
        with("{ input = \"4\" }"),
        "error: a band does not say from where it holds | 4:10 | add `above = …`, in tokens"
    );
    assert_eq!(
        with("{ above = 0, inptu = \"4\" }"),
        "error: `above` is not a number of tokens above 0 | 4:20 | \
             error: unknown key `inptu` | 4:23 | did you mean `input`?"
    );
}

#[test]
fn a_part_that_keeps_its_old_rate_in_a_band_is_suspected() {
    let to = "output = \"16.5\"\nreasoning = \"17\"\nbands = [{ above = 9, output = \"20\" }]";
    assert_eq!(
        brief("output = \"16.5\"", to),
        "warning: the band above 9 of model \"claude-sonnet-4.5\" states `output` but not \
             `reasoning`, which stays at 17 | 1:9 | state both there"
    );
}

#[test]
fn a_tier_has_a_name_that_replies_can_give() {
    let with = |tier: &str| brief("input = \"3.3\"", &format!("input = \"3.3\"\ntiers.{tier}"));
    assert_eq!(with("priority.input = \"6\""), "");
    assert_eq!(
        with("default.input = \"6\""),
        "error: tier `default` is what the entry itself states | 4:7 | put its rates into the entry"
    );
    assert_eq!(with("Flex.input = \"6\""), "error: tier `Flex` is not a name in lower case | 4:7");
    assert_eq!(
        with("flex.outptu = \"6\""),
        "error: unknown key `outptu` | 4:12 | did you mean `output`?"
    );
}

#[test]
fn a_fee_is_an_amount_per_call_under_a_name_that_is_counted() {
    let with = |fee: &str| brief("input = \"3.3\"", &format!("input = \"3.3\"\nfees.{fee}"));
    assert_eq!(with("web_search = \"0.01\""), "");
    assert_eq!(
        with("web_serach = \"0.01\""),
        "warning: no call is counted under the name of fee `web_serach` | 4:6 | did you mean `web_search`?"
    );
    assert_eq!(with("web_search = \"-1\""), "error: fee `web_search` is negative | 4:19");
    assert_eq!(
        with("web_search = \"101\""),
        "error: fee `web_search` is above 100 credits | 4:19 | fees are credits per call"
    );
    assert_eq!(
        with("web_search = 0.01"),
        "error: `web_search` is a bare number, and amounts are exact texts | 4:19 | put it in quotes: \"0.01\""
    );
}

#[test]
fn serves_names_models_that_have_a_price() {
    let with =
        |id: &str| brief("input = \"3.3\"", &format!("input = \"3.3\"\nserves = [\"{id}\"]"));
    assert_eq!(with("grok-4"), "");
    assert_eq!(
        with("grok4"),
        "error: `serves` names `grok4`, which has no price | 4:11 | did you mean `grok-4`?"
    );
}

#[test]
fn two_prices_for_one_model_of_an_upstream_are_suspected() {
    let to = "upstream = \"anthropic\"\nupstream_model = \"claude-sonnet-4.5\"";
    assert_eq!(
        brief("upstream = \"xai\"", to),
        "warning: models \"claude-sonnet-4.5\" and \"grok-4\" are both anthropic's \
             `claude-sonnet-4.5`, at different prices | 7:9 | make it an alias, or give both one price"
    );
}

#[test]
fn limits_dates_and_markups_are_checked() {
    let with = |line: &str| brief("input = \"3.3\"", &format!("input = \"3.3\"\n{line}"));
    assert_eq!(
        with("context = \"9\""),
        "error: `context` is a text, not a whole number of tokens | 4:11"
    );
    assert_eq!(
        with("max_output = -1"),
        "error: `max_output` is not a number of tokens above 0 | 4:14"
    );
    assert_eq!(
        with("date = \"21.11.2026\""),
        "error: `date` is not a date | 4:8 | write it as in \"2026-11-21\""
    );
    for markup in ["0", "-1", "1001", "1.1234567", "10%"] {
        assert_eq!(
            with(&format!("markup = {markup:?}")),
            "error: `markup` is not a factor above 0 and up to 1000 | 4:10 | 10 % more is \"1.10\""
        );
    }
}

#[test]
fn the_version_is_the_start_of_the_files_sha256() {
    assert_eq!(version("abc"), "ba7816bf8f01");
}
