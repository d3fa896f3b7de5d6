//! Usage in Anthropic's shape: input, cache reads and cache writes are counted apart.
//!
//! A stream gives the input at its start, beside an output count that is a placeholder, and
//! totals so far in each `message_delta`.

use super::object::{Invalid, Object};
use super::{Snapshot, split_writes};
use crate::billing::Usage;

/// The counts of a message as far as they have come; a later one replaces an earlier one.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    input: Option<u64>,
    cached: Option<u64>,
    written: Option<u64>,
    written_5m: Option<u64>,
    written_1h: Option<u64>,
    output: Option<u64>,
    thinking: Option<u64>,
    web_searches: Option<u64>,
    web_fetches: Option<u64>,
    code_executions: Option<u64>,
    /// Its own passes, summed, where the top level leaves some out.
    passes: Option<Passes>,
    /// Other models that worked on the message.
    advisors: Vec<(String, Usage)>,
}

#[derive(Clone, Debug, Default)]
struct Passes {
    input: u64,
    cached: u64,
    written: u64,
    written_5m: Option<u64>,
    written_1h: Option<u64>,
    output: u64,
}

/// Which of its counts a usage object may be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// `message_start`: the output is a placeholder.
    Start,
    /// `message_delta`, or a whole message.
    Totals,
}

impl Counts {
    /// Takes over what a usage object says.
    ///
    /// # Errors
    ///
    /// [`Invalid`] if a count cannot be one; then nothing has been taken over.
    pub fn update(&mut self, usage: &Object<'_>, stage: Stage) -> Result<(), Invalid> {
        let split = usage.any_object(&["cache_creation"]);
        let tools = usage.any_object(&["server_tool_use"]);
        let mut new = Self {
            input: usage.count("input_tokens")?.or(self.input),
            cached: usage.count("cache_read_input_tokens")?.or(self.cached),
            written: usage.count("cache_creation_input_tokens")?.or(self.written),
            written_5m: split.count("ephemeral_5m_input_tokens")?.or(self.written_5m),
            written_1h: split.count("ephemeral_1h_input_tokens")?.or(self.written_1h),
            output: self.output,
            thinking: self.thinking,
            web_searches: tools.count("web_search_requests")?.or(self.web_searches),
            web_fetches: tools.count("web_fetch_requests")?.or(self.web_fetches),
            code_executions: tools.count("code_execution_requests")?.or(self.code_executions),
            passes: self.passes.clone(),
            advisors: self.advisors.clone(),
        };
        if stage == Stage::Totals {
            let details = usage.any_object(&["output_tokens_details"]);
            new.output = usage.count("output_tokens")?.or(new.output);
            new.thinking = details.count("thinking_tokens")?.or(new.thinking);
            if usage.has("iterations") {
                new.read_iterations(&usage.objects("iterations"))?;
            }
        }
        *self = new;
        Ok(())
    }

    /// The top level leaves out compaction and other models; with a fallback it already is
    /// the attempt that was served.
    fn read_iterations(&mut self, iterations: &[Object<'_>]) -> Result<(), Invalid> {
        let mut passes = Passes::default();
        let mut own = 0;
        let mut fell_back = false;
        self.advisors.clear();
        for iteration in iterations {
            match iteration.text("type").as_deref() {
                Some("message" | "compaction") => {
                    own += 1;
                    passes.add(iteration)?;
                }
                Some("fallback_message") => fell_back = true,
                Some("advisor_message") => {
                    let mut advisor = Self::default();
                    advisor.update(iteration, Stage::Totals)?;
                    let model = iteration.text("model").unwrap_or_default().into_owned();
                    self.advisors.push((model, advisor.snapshot().usage));
                }
                _ => {}
            }
        }
        self.passes = (own > 0 && !fell_back).then_some(passes);
        Ok(())
    }

    /// Some input has been reported.
    pub fn has_input(&self) -> bool {
        self.input.is_some() || self.passes.is_some()
    }

    /// Nothing says which lifetime the cache writes were made with.
    pub fn is_unsplit(&self) -> bool {
        let split = self.written_5m.or(self.written_1h);
        let passes = self.passes.as_ref().and_then(|it| it.written_5m.or(it.written_1h));
        split.is_none() && passes.is_none()
    }

    /// Input and output have been reported. Totals that came without the start of their
    /// message, which was lost, say nothing of the input, and missing is not zero.
    pub fn is_complete(&self) -> bool {
        let input = self.input.or(self.cached).or(self.written);
        (self.output.is_some() && input.is_some()) || self.passes.is_some()
    }

    /// The counts in their classes; a count that is missing is zero.
    pub fn snapshot(&self) -> Snapshot {
        let passes = self.passes.clone().unwrap_or_else(|| Passes {
            input: self.input.unwrap_or(0),
            cached: self.cached.unwrap_or(0),
            written: 0,
            written_5m: None,
            written_1h: None,
            output: self.output.unwrap_or(0),
        });
        let (written_5m, written_1h) = if self.passes.is_none() {
            split_writes(self.written, self.written_5m, self.written_1h)
        } else if passes.written_5m.is_none() && passes.written_1h.is_none() {
            split_writes(Some(passes.written), self.written_5m, self.written_1h)
        } else {
            split_writes(Some(passes.written), passes.written_5m, passes.written_1h)
        };
        let usage = Usage {
            input: passes.input,
            cached: passes.cached,
            cache_creation_5m: written_5m,
            cache_creation_1h: written_1h,
            output: passes.output,
            reasoning: self.thinking.unwrap_or(0).min(passes.output),
            ..Usage::default()
        };
        let mut snapshot =
            Snapshot { usage, sub_usages: self.advisors.clone(), ..Snapshot::default() };
        snapshot.call("web_search", self.web_searches);
        snapshot.call("web_fetch", self.web_fetches);
        snapshot.call("code_interpreter", self.code_executions);
        snapshot
    }
}

impl Passes {
    fn add(&mut self, iteration: &Object<'_>) -> Result<(), Invalid> {
        let add = |sum: &mut u64, name| {
            *sum = sum.saturating_add(iteration.count(name)?.unwrap_or(0));
            Ok(())
        };
        add(&mut self.input, "input_tokens")?;
        add(&mut self.cached, "cache_read_input_tokens")?;
        add(&mut self.written, "cache_creation_input_tokens")?;
        add(&mut self.output, "output_tokens")?;
        let split = iteration.any_object(&["cache_creation"]);
        let add_split = |sum: &mut Option<u64>, name| {
            if let Some(count) = split.count(name)? {
                *sum = Some(sum.unwrap_or(0).saturating_add(count));
            }
            Ok(())
        };
        add_split(&mut self.written_5m, "ephemeral_5m_input_tokens")?;
        add_split(&mut self.written_1h, "ephemeral_1h_input_tokens")
    }
}

/// The model that served in place of the one asked for.
pub fn fallback_model(usage: &Object<'_>) -> Option<String> {
    let iterations = usage.objects("iterations");
    let served = iterations
        .iter()
        .rev()
        .find(|iteration| iteration.text("type").as_deref() == Some("fallback_message"))?;
    served.text("model").map(|model| model.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(updates: &[(Stage, &str)]) -> Usage {
        let mut counts = Counts::default();
        for (stage, json) in updates {
            counts.update(&Object::parse(json).unwrap(), *stage).unwrap();
        }
        counts.snapshot().usage
    }

    #[test]
    fn growth_of_the_cache_goes_where_the_start_put_it() {
        let usage = counts(&[
            (
                Stage::Start,
                r#"{"input_tokens":5,"cache_creation_input_tokens":3000,"output_tokens":1,
                "cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":3000}}"#,
            ),
            (Stage::Totals, r#"{"cache_creation_input_tokens":3300,"output_tokens":9}"#),
        ]);
        assert_eq!((usage.cache_creation_5m, usage.cache_creation_1h), (0, 3300));
        assert_eq!(usage.output, 9);
    }

    #[test]
    fn totals_whose_start_was_lost_are_not_taken_for_free_input() {
        let mut counts = Counts::default();
        let totals = Object::parse(r#"{"output_tokens":15}"#).unwrap();
        counts.update(&totals, Stage::Totals).unwrap();
        assert!(!counts.is_complete());
        let cached = Object::parse(r#"{"cache_read_input_tokens":9,"output_tokens":15}"#).unwrap();
        counts.update(&cached, Stage::Totals).unwrap();
        assert!(counts.is_complete());
    }

    #[test]
    fn a_start_alone_tells_the_input_and_no_output() {
        let mut counts = Counts::default();
        let start = Object::parse(r#"{"input_tokens":5,"output_tokens":60}"#).unwrap();
        counts.update(&start, Stage::Start).unwrap();
        assert!(counts.has_input() && !counts.is_complete());
        assert_eq!(counts.snapshot().usage.output, 0);
    }
}
