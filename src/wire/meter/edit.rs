//! The two documented edits: the usage chunk that only we asked for is left out, and the
//! charge is written into the usage that the client asked for.

use std::ops::Range;

use crate::wire::usage::object::Object;

/// Whether an event is nothing but the usage that `include_usage` adds at the end.
pub fn is_usage_chunk(data: &str) -> bool {
    let Some(root) = Object::parse(data) else { return false };
    let no_choices = root.items("choices").is_some_and(|list| list.is_empty());
    let others = ["error", "prompt_filter_results"];
    no_choices && root.object("usage").is_some() && !others.iter().any(|name| root.has(name))
}

/// Where the final usage of a stream stands in an event: beside no choices or after their
/// end. A usage that already has a cost is treated alike, so that the upstream's price for
/// us is never taken for ours.
pub fn final_usage(data: &str, finished: bool) -> Option<Range<usize>> {
    let root = Object::parse(data)?;
    let usage = root.get("usage")?;
    let object = Object::parse(usage)?;
    let no_choices = root.items("choices").is_none_or(|list| list.is_empty());
    let is_final = no_choices || finished || object.has("cost");
    is_final.then(|| range_in(data, usage))
}

/// A usage object with this cost, a decimal number, and without the upstream's own details
/// of one. Everything else stays as it is. `None`: the text is too odd to be changed safely.
pub fn with_cost(usage: &str, cost: &str) -> Option<String> {
    let object = Object::parse(usage)?;
    let members: Vec<_> = object
        .members()
        .map(|(name, value)| Member::find(usage, name, range_in(usage, value)))
        .collect::<Option<_>>()?;

    let mut changes = Vec::new();
    for (index, member) in members.iter().enumerate() {
        match member.name {
            "cost" => changes.push((member.value.clone(), cost.to_owned())),
            "cost_details" => changes.push((removal(&members, index), String::new())),
            _ => {}
        }
    }
    if !members.iter().any(|member| member.name == "cost") {
        let alone = members.iter().all(|member| member.name == "cost_details");
        let comma = if alone { "" } else { "," };
        let end = members.last().map_or(1, |member| member.value.end);
        changes.push((end..end, format!("{comma}\"cost\":{cost}")));
    }

    let mut edited = String::with_capacity(usage.len() + cost.len() + 8);
    let mut at = 0;
    for (range, replacement) in changes {
        edited.push_str(usage.get(at..range.start)?);
        edited.push_str(&replacement);
        at = range.end;
    }
    edited.push_str(usage.get(at..)?);
    Object::parse(&edited).is_some().then_some(edited)
}

/// A member of an object, by where it stands.
struct Member<'a> {
    name: &'a str,
    /// Where its name begins, with the quote.
    start: usize,
    value: Range<usize>,
}

impl<'a> Member<'a> {
    fn find(object: &str, name: &'a str, value: Range<usize>) -> Option<Self> {
        let before = object[..value.start].trim_end().strip_suffix(':')?.trim_end();
        let start = before.strip_suffix('"')?.rfind('"')?;
        Some(Self { name, start, value })
    }
}

/// A member with the one comma that goes with it.
fn removal(members: &[Member<'_>], index: usize) -> Range<usize> {
    let member = &members[index];
    match (index.checked_sub(1), members.get(index + 1)) {
        (Some(before), _) => members[before].value.end..member.value.end,
        (None, Some(after)) => member.start..after.start,
        (None, None) => member.start..member.value.end,
    }
}

/// Where a part of a text stands in it.
fn range_in(whole: &str, part: &str) -> Range<usize> {
    let start = part.as_ptr() as usize - whole.as_ptr() as usize;
    start..start + part.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cost_is_added_replaced_and_left_alone_in_its_details() {
        for (usage, expected) in [
            ("{}", r#"{"cost":0.1}"#),
            (r#"{"a": 1 }"#, r#"{"a": 1,"cost":0.1 }"#),
            (r#"{"cost":9,"a":1}"#, r#"{"cost":0.1,"a":1}"#),
            (r#"{"cost":{"x":[1,2]},"a":1}"#, r#"{"cost":0.1,"a":1}"#),
            (r#"{"a":1, "cost" : null, "cost_details":{"b":2}}"#, r#"{"a":1, "cost" : 0.1}"#),
            (r#"{"cost_details":{"b":2},"a":1}"#, r#"{"a":1,"cost":0.1}"#),
            (r#"{"cost_details":{"b":2}}"#, r#"{"cost":0.1}"#),
            (r#"{"a":1,"cost_details":2,"b":3,"cost":1}"#, r#"{"a":1,"b":3,"cost":0.1}"#),
        ] {
            assert_eq!(with_cost(usage, "0.1").as_deref(), Some(expected));
        }
    }

    #[test]
    fn an_object_that_names_everything_twice_stays_valid_or_untouched() {
        let usage = r#"{"cost_details":1,"cost_details":2,"cost":1,"cost":2,"a":1}"#;
        let edited = with_cost(usage, "0.1");
        assert!(edited.is_none_or(|edited| Object::parse(&edited).is_some()));
    }

    #[test]
    fn only_a_chunk_that_is_nothing_but_usage_is_hidden() {
        assert!(is_usage_chunk(r#"{"id":"x","choices":[ ],"usage":{"prompt_tokens":1}}"#));
        for kept in [
            r#"{"choices":[{"delta":{}}],"usage":{"prompt_tokens":1}}"#,
            r#"{"choices":[],"usage":null}"#,
            r#"{"choices":[],"prompt_filter_results":[]}"#,
            r#"{"choices":[],"usage":{},"error":{"message":"x"}}"#,
            r#"{"usage":{"prompt_tokens":1}}"#,
            "[DONE]",
        ] {
            assert!(!is_usage_chunk(kept), "{kept}");
        }
    }
}
