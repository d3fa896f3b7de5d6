//! Why a command ended without doing its work: an exit code, a sentence, the next command.

use std::fmt;
use std::process::ExitCode;

/// Exit codes, the same for every command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Something else went wrong.
    Failed = 1,
    /// The command line or a value in it.
    Usage = 2,
    /// The configuration.
    Config = 3,
    /// No admin key, or not the right one.
    Auth = 4,
    /// No such account, key or entry.
    NotFound = 5,
    /// Understood and not done: a conflict, a limit, a balance that would go negative.
    Refused = 6,
    /// Farebox does not answer, or cannot reach its store.
    Unreachable = 7,
    /// What was counted does not add up.
    Integrity = 8,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A command that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// What happened, for people.
    pub message: String,
    /// The command to run next, where there is one.
    pub next: Option<String>,
}

impl Failure {
    /// A failure that suggests nothing.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), next: None }
    }

    /// Suggests the command to run next.
    #[must_use]
    pub fn next(mut self, command: impl Into<String>) -> Self {
        self.next = Some(command.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Configurations have several problems, each with its place: a line stays a line.
        let lines: Vec<_> = self.message.lines().map(super::table::printable).collect();
        write!(f, "error: {}", lines.join("\n"))?;
        match &self.next {
            Some(command) => write!(f, "\n next: {command}"),
            None => Ok(()),
        }
    }
}

/// A word as a shell reads it back.
pub fn shell_word(word: &str) -> String {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.,:/@%+=".contains(&b);
    if !word.is_empty() && word.bytes().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_ends_with_the_command_to_run_next() {
        let failure = Failure::new(Exit::NotFound, "There is no account `x`.");
        assert_eq!(failure.to_string(), "error: There is no account `x`.");
        let text = failure.next("farebox account list").to_string();
        assert_eq!(text, "error: There is no account `x`.\n next: farebox account list");
    }

    #[test]
    fn a_message_keeps_its_lines_and_no_other_control_character() {
        let failure = Failure::new(Exit::Config, "line 2:\n  x = 1\u{1b}[2J\nNot started.");
        assert_eq!(failure.to_string(), "error: line 2:\n  x = 1\u{fffd}[2J\nNot started.");
    }

    #[test]
    fn a_suggested_command_survives_the_shell() {
        assert_eq!(shell_word("inv-17"), "inv-17");
        assert_eq!(shell_word("invoice 17"), "'invoice 17'");
        assert_eq!(shell_word("it's; rm"), r"'it'\''s; rm'");
        assert_eq!(shell_word(""), "''");
    }
}
