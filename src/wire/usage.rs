//! From what an upstream reports, in any of its dialects, to counts in disjoint classes.
//!
//! The last snapshot holds: upstreams repeat cumulative counts, so nothing is ever summed
//! and nothing is taken as a maximum. Counts are read at fixed paths only.
//!
//! Elsewhere: which events are worth reading (`meter`), estimates (`estimate`).

mod gemini;
mod messages;
pub mod object;
mod openai;

use self::messages::Stage;
use self::object::{Invalid, Object};
use super::Endpoint;
use super::meter::Reading;
use crate::billing::Usage;

/// What one report says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Snapshot {
    usage: Usage,
    sub_usages: Vec<(String, Usage)>,
    provider_cost: Option<String>,
    /// A flag for what does not fit together.
    odd: Option<&'static str>,
}

impl Snapshot {
    /// Adds calls of a tool, if there were any.
    fn call(&mut self, name: &'static str, count: Option<u64>) {
        if let Some(count) = count.filter(|count| *count > 0) {
            let calls = self.usage.calls.entry(name).or_default();
            *calls = calls.saturating_add(count);
        }
    }
}

/// Where the bytes that are read come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// One event of a stream.
    Event,
    /// A whole reply.
    Whole,
}

/// What an event is in the course of its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// More follows.
    Amid,
    /// A client may take it for the end, although more can follow (Gemini's `finishReason`).
    MaybeLast,
    /// A client takes it for the end.
    Last,
}

/// Reads the reports of one reply.
#[derive(Debug)]
pub struct Tally {
    /// What has been read.
    pub reading: Reading,
    dialect: Dialect,
    largest_output: u64,
}

#[derive(Debug)]
enum Dialect {
    Chat(Chat),
    Responses,
    Messages(messages::Counts),
    Gemini(gemini::State),
}

#[derive(Debug, Default)]
struct Chat {
    cache: openai::Cache,
    /// A `usage` object has been seen, which is worth more than llama.cpp's `timings`.
    has_usage: bool,
    /// A `finish_reason` has been seen.
    finished: bool,
}

impl Tally {
    /// Nothing has been read.
    pub fn new(endpoint: Endpoint) -> Self {
        let dialect = match endpoint {
            Endpoint::Chat | Endpoint::Completions | Endpoint::Embeddings => {
                Dialect::Chat(Chat::default())
            }
            Endpoint::Responses => Dialect::Responses,
            Endpoint::Messages | Endpoint::CountTokens => {
                Dialect::Messages(messages::Counts::default())
            }
            Endpoint::Generate | Endpoint::StreamGenerate => {
                Dialect::Gemini(gemini::State::default())
            }
        };
        Self { reading: Reading::default(), dialect, largest_output: 0 }
    }

    /// Reads the JSON object of an event or of a whole reply.
    pub fn read(&mut self, root: &Object<'_>, source: Source) -> Place {
        if is_error(root) {
            self.reading.failed = true;
        }
        match self.dialect {
            Dialect::Chat(_) => self.read_chat(root, source),
            Dialect::Responses => self.read_response(root, source),
            Dialect::Messages(_) => self.read_message(root),
            Dialect::Gemini(_) => self.read_gemini(root),
        }
    }

    /// A report that cannot be read: what was known before it is no longer believed.
    pub fn distrust(&mut self) {
        self.reading.usage = None;
        self.reading.set_flag("usage_invalid", true);
    }

    /// A `finish_reason` has been seen (chat and completions).
    pub fn is_finished(&self) -> bool {
        matches!(&self.dialect, Dialect::Chat(chat) if chat.finished)
    }

    fn read_chat(&mut self, root: &Object<'_>, source: Source) -> Place {
        let Dialect::Chat(chat) = &mut self.dialect else { return Place::Amid };
        self.reading.note_model(root);
        self.reading.note_tier(root);
        let choices = root.objects("choices");
        for choice in &choices {
            let reason = choice.text("finish_reason").filter(|reason| !reason.is_empty());
            chat.finished |= reason.is_some();
            self.reading.failed |= reason.as_deref() == Some("error") || is_error(choice);
        }

        let counted = |usage: &Object<'_>| usage.has("prompt_tokens") || usage.has("total_tokens");
        let usage = root
            .object("usage")
            .filter(|usage| {
                counted(usage) || usage.has("input_tokens") || usage.has("billed_units")
            })
            .or_else(|| root.object("x_groq")?.object("usage"))
            .or_else(|| choices.iter().find_map(|choice| choice.object("usage")));
        let snapshot = match (&usage, root.object("timings")) {
            (Some(usage), _) if is_exclusive(usage) => exclusive(usage),
            (Some(usage), _) => openai::read(usage, &mut chat.cache),
            (None, Some(timings)) if !chat.has_usage => openai::timings(&timings),
            (None, _) => return Place::Amid,
        };
        // Zeros on early chunks, as Ollama sends them, are not counts yet.
        let early = source == Source::Event && !choices.is_empty() && !chat.finished;
        match snapshot {
            Ok(Some(snapshot)) if early && snapshot.usage == Usage::default() => {}
            Ok(Some(snapshot)) => {
                chat.has_usage |= usage.is_some();
                self.publish(snapshot);
            }
            Ok(None) => {}
            Err(Invalid) => self.distrust(),
        }
        Place::Amid
    }

    fn read_response(&mut self, root: &Object<'_>, source: Source) -> Place {
        let kind = root.text("type").unwrap_or_default();
        let ends = matches!(
            kind.as_ref(),
            "response.completed" | "response.incomplete" | "response.failed" | "error"
        );
        let place = if ends { Place::Last } else { Place::Amid };
        let inner = match source {
            Source::Event => root.object("response"),
            Source::Whole => None,
        };
        let response = match (&inner, source) {
            (Some(response), _) => response,
            (None, Source::Whole) => root,
            (None, Source::Event) => return place,
        };
        self.reading.note_model(response);
        self.reading.note_tier(response);
        if let Some(id) = response.text("id") {
            self.reading.response_id = Some(id.into_owned());
        }
        let status = response.text("status").unwrap_or_default();
        let unfinished = matches!(status.as_ref(), "queued" | "in_progress");
        // A whole body that says it is not done is no reply: nothing was delivered.
        let no_reply = unfinished && source == Source::Whole;
        self.reading.failed |= is_error(response) || status == "failed" || no_reply;
        // Some upstreams send zeros until the end.
        if unfinished || (source == Source::Event && !ends) {
            return place;
        }
        if let Some(usage) = response.object("usage") {
            match openai::read(&usage, &mut openai::Cache::default()) {
                Ok(Some(mut snapshot)) => {
                    openai::count_items(&response.objects("output"), &mut snapshot);
                    self.publish(snapshot);
                }
                Ok(None) => {}
                Err(Invalid) => self.distrust(),
            }
        }
        place
    }

    fn read_message(&mut self, root: &Object<'_>) -> Place {
        let Dialect::Messages(counts) = &mut self.dialect else { return Place::Amid };
        let kind = root.text("type").unwrap_or_default();
        let (message, stage) = match kind.as_ref() {
            "message_stop" | "error" => return Place::Last,
            "message_start" => (root.any_object(&["message"]), Stage::Start),
            _ => (Object::default(), Stage::Totals),
        };
        let holder = if stage == Stage::Start { &message } else { root };
        self.reading.note_model(holder);
        let Some(usage) = holder.object("usage") else { return Place::Amid };
        self.reading.note_tier(&usage);
        if let Some(model) = messages::fallback_model(&usage) {
            self.reading.model = Some(model);
        }
        if let Some(geo) = usage.text("inference_geo") {
            self.reading.inference_geo = Some(geo.to_ascii_lowercase());
        }
        if usage.text("speed").as_deref() == Some("fast") {
            self.reading.service_tier = Some("fast".into());
        }
        if counts.update(&usage, stage).is_err() {
            self.distrust();
            return Place::Amid;
        }
        let snapshot = counts.snapshot();
        self.reading.cache_unsplit = counts.is_unsplit();
        if counts.has_input() {
            let input = Usage { output: 0, reasoning: 0, ..snapshot.usage.clone() };
            self.reading.input = Some(input);
        }
        if counts.is_complete() {
            self.publish(snapshot);
        }
        Place::Amid
    }

    fn read_gemini(&mut self, root: &Object<'_>) -> Place {
        let Dialect::Gemini(state) = &mut self.dialect else { return Place::Amid };
        if let Some(model) = root.text("modelVersion").filter(|model| !model.is_empty()) {
            self.reading.model = Some(model.into_owned());
        }
        let candidates = root.objects("candidates");
        state.note_grounding(&candidates);
        if let Some(metadata) = root.object("usageMetadata") {
            if let Some(tier) = gemini::service_tier(&metadata) {
                self.reading.service_tier = Some(tier);
            }
            match state.read(&metadata) {
                Ok(Some(snapshot)) => self.publish(snapshot),
                Ok(None) => {}
                Err(Invalid) => self.distrust(),
            }
        }
        if let (Dialect::Gemini(state), Some(usage)) = (&self.dialect, &mut self.reading.usage) {
            usage.calls = state.calls();
        }
        let blocked = root.object("promptFeedback").is_some_and(|it| it.has("blockReason"));
        let finished = candidates.iter().any(|candidate| candidate.has("finishReason"));
        if finished || blocked { Place::MaybeLast } else { Place::Amid }
    }

    /// The newest snapshot replaces what was known.
    fn publish(&mut self, snapshot: Snapshot) {
        let output = snapshot.usage.output;
        self.reading.set_flag("usage_regressed", output < self.largest_output);
        self.largest_output = self.largest_output.max(output);
        self.reading.set_flag("usage_inconsistent", snapshot.odd.is_some());
        self.reading.usage = Some(snapshot.usage);
        self.reading.sub_usages = snapshot.sub_usages;
        if snapshot.provider_cost.is_some() {
            self.reading.provider_cost = snapshot.provider_cost;
        }
    }
}

impl Reading {
    /// Notes something odd, or that it is so no longer.
    pub(super) fn set_flag(&mut self, flag: &'static str, on: bool) {
        self.flags.retain(|known| *known != flag);
        if on {
            self.flags.push(flag);
        }
    }

    /// Azure's first chunk has an empty name, which names nothing.
    fn note_model(&mut self, holder: &Object<'_>) {
        if let Some(model) = holder.text("model").filter(|model| !model.is_empty()) {
            self.model = Some(model.into_owned());
        }
    }

    fn note_tier(&mut self, holder: &Object<'_>) {
        if let Some(tier) = holder.text("service_tier").filter(|tier| !tier.is_empty()) {
            self.service_tier = Some(tier.to_ascii_lowercase());
        }
    }
}

/// Whether an object is or holds an error, whatever the HTTP status says.
fn is_error(object: &Object<'_>) -> bool {
    let error = object.get("error");
    error.is_some_and(|error| !matches!(error, "\"\"" | "{}" | "false"))
        || object.text("object").as_deref() == Some("error")
        || object.text("type").as_deref() == Some("error")
}

/// A usage object in Anthropic's shape on an endpoint of OpenAI's.
fn is_exclusive(usage: &Object<'_>) -> bool {
    let names = ["cache_read_input_tokens", "cache_creation_input_tokens"];
    !usage.has("prompt_tokens") && names.iter().any(|name| usage.has(name))
}

fn exclusive(usage: &Object<'_>) -> Result<Option<Snapshot>, Invalid> {
    let mut counts = messages::Counts::default();
    counts.update(usage, Stage::Totals)?;
    Ok(counts.is_complete().then(|| counts.snapshot()))
}

/// Cache writes by lifetime. The flat count decides where the split does not add up to it:
/// growth, which later reports do not split, goes where the first report put its writes.
fn split_writes(flat: Option<u64>, short: Option<u64>, long: Option<u64>) -> (u64, u64) {
    let (short, long) = (short.unwrap_or(0), long.unwrap_or(0));
    match flat {
        None => (short, long),
        Some(flat) if short == 0 && long > 0 => (0, flat),
        Some(flat) => (flat.saturating_sub(long), long.min(flat)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flat_count_of_cache_writes_decides() {
        assert_eq!(split_writes(Some(2800), None, None), (2800, 0));
        assert_eq!(split_writes(None, Some(9), Some(3)), (9, 3));
        assert_eq!(split_writes(Some(12), Some(9), Some(3)), (9, 3));
        assert_eq!(split_writes(Some(1000), Some(1000), Some(1000)), (0, 1000));
        assert_eq!(split_writes(Some(5000), Some(0), Some(3000)), (0, 5000));
    }

    fn read(endpoint: Endpoint, events: &[&str]) -> Reading {
        let mut tally = Tally::new(endpoint);
        for event in events {
            tally.read(&Object::parse(event).unwrap(), Source::Event);
        }
        tally.reading
    }

    #[test]
    fn a_negative_count_is_not_billed_but_flagged_even_after_a_good_one() {
        let good = r#"{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}"#;
        let bad = r#"{"choices":[],"usage":{"prompt_tokens":-5,"completion_tokens":1}}"#;
        let reading = read(Endpoint::Chat, &[good, bad]);
        assert_eq!((reading.usage, reading.flags), (None, vec!["usage_invalid"]));
    }

    #[test]
    fn repeating_a_snapshot_changes_nothing() {
        let event = r#"{"choices":[],"usage":{"prompt_tokens":20,"completion_tokens":3,
            "total_tokens":223,"completion_tokens_details":{"reasoning_tokens":200}}}"#;
        assert_eq!(read(Endpoint::Chat, &[event]), read(Endpoint::Chat, &[event, event, event]));
    }

    #[test]
    fn zeros_before_the_end_are_not_counts_and_zeros_at_the_end_are() {
        let early = r#"{"choices":[{"delta":{"content":"a"}}],
            "usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}}"#;
        let late = r#"{"choices":[],"usage":{"prompt_tokens":0,"completion_tokens":0}}"#;
        assert_eq!(read(Endpoint::Chat, &[early]).usage, None);
        assert_eq!(read(Endpoint::Chat, &[early, late]).usage, Some(Usage::default()));
    }

    #[test]
    fn a_usage_object_of_anthropics_shape_is_read_as_such_on_any_endpoint() {
        let event = r#"{"usage":{"input_tokens":5,"cache_read_input_tokens":100,
            "cache_creation_input_tokens":0,"output_tokens":7}}"#;
        let usage = read(Endpoint::Chat, &[event]).usage.unwrap();
        assert_eq!((usage.input, usage.cached, usage.output), (5, 100, 7));
    }

    #[test]
    fn usage_is_found_where_groq_and_moonshot_put_it() {
        for event in [
            r#"{"choices":[],"x_groq":{"usage":{"prompt_tokens":4,"completion_tokens":2}}}"#,
            r#"{"choices":[{"usage":{"prompt_tokens":4,"completion_tokens":2}}]}"#,
        ] {
            let usage = read(Endpoint::Chat, &[event]).usage.unwrap();
            assert_eq!((usage.input, usage.output), (4, 2));
        }
    }

    #[test]
    fn cached_input_stays_cached_where_a_later_snapshot_is_silent_on_it() {
        let first = r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":1,
            "prompt_tokens_details":{"cached_tokens":4,"cache_write_tokens":3}}}"#;
        let second = r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2}}"#;
        let usage = read(Endpoint::Chat, &[first, second]).usage.unwrap();
        assert_eq!((usage.input, usage.cached, usage.cache_creation_5m), (2, 4, 3));
    }

    #[test]
    fn an_advisor_is_billed_apart_at_its_own_model() {
        let event = r#"{"type":"message_delta","usage":{"output_tokens":1,"iterations":[
            {"type":"message","input_tokens":1,"output_tokens":1},
            {"type":"advisor_message","model":"m","input_tokens":2,"output_tokens":3}]}}"#;
        let reading = read(Endpoint::Messages, &[event]);
        let advisor = Usage { input: 2, output: 3, ..Usage::default() };
        assert_eq!(reading.sub_usages, [("m".to_owned(), advisor)]);
    }

    #[test]
    fn gemini_searches_are_counted_by_distinct_query() {
        let event = r#"{"candidates":[{"groundingMetadata":{"webSearchQueries":["a","b","a"]}}],
            "usageMetadata":{"promptTokenCount":1,"totalTokenCount":1}}"#;
        let usage = read(Endpoint::StreamGenerate, &[event, event]).usage.unwrap();
        assert_eq!(
            usage.calls.into_iter().collect::<Vec<_>>(),
            [("grounding", 1), ("web_search", 2)]
        );
    }
}
