//! What is wrong in `pricing.toml`, told with the line it is in.

use std::fmt::Write;
use std::ops::Range;

/// Whether a problem keeps the table from being used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The table is refused.
    Error,
    /// The table is used, but somebody should look.
    Warning,
}

/// One problem of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Error or warning.
    pub severity: Severity,
    /// What is wrong, in one sentence.
    pub message: String,
    /// Where, in bytes of the file.
    pub span: Range<usize>,
    /// What to write instead; stands under the line. May be empty.
    pub label: String,
    /// What follows from it.
    pub note: Option<String>,
}

impl Problem {
    /// An error at `span`.
    pub fn error(span: Range<usize>, message: impl Into<String>) -> Self {
        let (message, label) = (message.into(), String::new());
        Self { severity: Severity::Error, message, span, label, note: None }
    }

    /// A warning at `span`.
    pub fn warning(span: Range<usize>, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(span, message) }
    }

    /// With what to do, which stands under the line.
    #[must_use]
    pub fn label(self, label: impl Into<String>) -> Self {
        Self { label: label.into(), ..self }
    }

    /// With what follows from it.
    #[must_use]
    pub fn note(self, note: impl Into<String>) -> Self {
        Self { note: Some(note.into()), ..self }
    }
}

/// The problems of `file` as text for people: each with its line and column, both counted
/// from 1, and the line itself.
///
/// ```text
/// error: unknown key `ouput`
///   ┌─ pricing.toml:41:1
/// 41│ ouput = "16.5"
///   │ ^^^^^ did you mean `output`?
///   = model "claude-sonnet-4.5" has no output price, so it cannot be served
/// ```
pub fn render(problems: &[Problem], file: &str, text: &str) -> String {
    let mut out = String::new();
    for problem in problems {
        render_one(&mut out, problem, file, text);
    }
    out
}

fn render_one(out: &mut String, problem: &Problem, file: &str, text: &str) {
    let start = floor_char_boundary(text, problem.span.start);
    let before = &text[..start];
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    let line = text[line_start..].lines().next().unwrap_or("");
    let number = before.matches('\n').count() + 1;
    let column = text[line_start..start].chars().count();

    // What is marked ends with the line, and is at least one character.
    let end = floor_char_boundary(text, problem.span.end)
        .clamp(start, line_start + line.len().max(start - line_start));
    let marked = text[start..end].chars().count().max(1);

    let severity = match problem.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    };
    let gutter = number.to_string();
    let indent = " ".repeat(gutter.len());
    let line = line.replace('\t', " ");
    let (space, marks) = (" ".repeat(column), "^".repeat(marked));
    let label =
        if problem.label.is_empty() { String::new() } else { format!(" {}", problem.label) };
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{severity}: {}", problem.message);
    let _ = writeln!(out, "{indent}┌─ {file}:{number}:{}", column + 1);
    let _ = writeln!(out, "{gutter}│ {line}");
    let _ = writeln!(out, "{indent}│ {space}{marks}{label}");
    if let Some(note) = &problem.note {
        let _ = writeln!(out, "{indent}= {note}");
    }
}

/// The last border of characters at or before `at`: a parser may point into a character.
fn floor_char_boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_shown_under_its_line() {
        let text = "# ä\n[models.x]\nouput = \"1\"\n";
        let at = text.find("ouput").unwrap();
        let problem = Problem::error(at..at + 5, "unknown key `ouput`")
            .label("did you mean `output`?")
            .note("it cannot be served");
        let expected = "\
error: unknown key `ouput`
 ┌─ pricing.toml:3:1
3│ ouput = \"1\"
 │ ^^^^^ did you mean `output`?
 = it cannot be served
";
        assert_eq!(render(&[problem], "pricing.toml", text), expected);
    }

    #[test]
    fn places_at_or_beyond_the_end_and_inside_characters_are_shown_too() {
        let text = "a = \"ä";
        for at in 0..10 {
            let shown = render(&[Problem::error(at..at + 3, "x")], "f", text);
            assert!(shown.starts_with("error: x\n ┌─ f:1:"), "{shown}");
        }
    }

    #[test]
    fn only_the_first_line_of_a_long_place_is_marked() {
        let text = "k = [\n1,\n]\n";
        let shown = render(&[Problem::warning(4..10, "x")], "f", text);
        assert_eq!(shown, "warning: x\n ┌─ f:1:5\n1│ k = [\n │     ^\n");
    }
}
