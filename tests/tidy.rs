//! Rules of the house that no compiler checks: who may know what, and what must not be here.

use std::path::{Path, PathBuf};

/// A file of the repository: its path from the top, and its text.
struct File {
    path: String,
    text: String,
}

impl File {
    fn is_in(&self, places: &[&str]) -> bool {
        places.iter().any(|place| {
            let rest = self.path.strip_prefix(place);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '.']))
        })
    }

    /// Numbered lines of the program: no comments, and no tests, which follow the code.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.text.lines().enumerate();
        lines
            .take_while(|(_, line)| !line.starts_with("mod tests {"))
            .filter(|(_, line)| !line.trim_start().starts_with("//"))
            .map(|(at, line)| (at + 1, line))
    }
}

/// Whether a file, or one that it is a part of, is a module for tests alone.
fn is_test(path: &str, all: &[File]) -> bool {
    let Some((folder, name)) = path.trim_end_matches(".rs").rsplit_once('/') else { return false };
    let parent = if folder == "src" { "src/lib.rs".into() } else { format!("{folder}.rs") };
    let Some(parent) = all.iter().find(|file| file.path == parent) else { return false };
    let declared = format!("#[cfg(test)]\nmod {name};");
    parent.text.contains(&declared) || (folder != "src" && is_test(&parent.path, all))
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every text below a folder, by its path.
fn files(below: &str) -> Vec<File> {
    let mut found = Vec::new();
    collect(&root().join(below), &mut found);
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(!found.is_empty(), "nothing in {below}");
    found
}

fn collect(dir: &Path, found: &mut Vec<File>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() {
            // What is built or fetched is not ours, and a worktree may hold others.
            if !["target", ".git", "node_modules", ".venv"].contains(&name) {
                collect(&path, found);
            }
        } else if let Ok(text) = std::fs::read_to_string(&path) {
            let path = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
            found.push(File { path, text });
        }
    }
}

/// Fails with each line of code, in files of `src` that `where_` picks, that `breaks` a rule.
fn assert_nowhere(rule: &str, where_: impl Fn(&File) -> bool, breaks: impl Fn(&str) -> bool) {
    let mut broken = Vec::new();
    let all = files("src");
    let picked: Vec<_> =
        all.iter().filter(|file| where_(file) && !is_test(&file.path, &all)).collect();
    assert!(!picked.is_empty(), "no file is left for the rule: {rule}");
    for file in picked {
        let lines = file.code().filter(|(_, line)| breaks(line));
        broken.extend(lines.map(|(at, line)| format!("{}:{at}: {}", file.path, line.trim())));
    }
    assert!(broken.is_empty(), "{rule}:\n{}", broken.join("\n"));
}

/// Whether a word stands in a line, and not as a part of another.
fn has_word(line: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        !line[..at].ends_with(is_part) && !line[at + word.len()..].starts_with(is_part)
    })
}

#[test]
fn every_file_opens_by_saying_what_it_is_for() {
    for file in files("src").iter().chain(&files("tests")) {
        if file.path.ends_with(".rs") {
            assert!(file.text.starts_with("//! "), "{}", file.path);
        }
    }
}

#[test]
fn money_and_tokens_never_pass_through_a_float() {
    assert_nowhere(
        "no floats where money and tokens are counted",
        |file| file.is_in(&["src/billing", "src/store", "src/proxy", "src/wire/usage"]),
        |line| has_word(line, "f32") || has_word(line, "f64"),
    );
}

#[test]
fn billing_does_no_io_reads_no_clock_and_knows_nobody_else() {
    let outside = ["std::fs", "std::net", "std::io", "std::env", "std::thread"];
    // Moments and lengths of time are values; what reads a clock is not.
    let clocks = ["Instant", "SystemTime", "time::now", "Timestamp::now", "Zoned::now"];
    let crates = ["tokio", "hyper", "axum", "reqwest", "rusqlite"];
    assert_nowhere(
        "rules are pure",
        |file| file.is_in(&["src/billing"]),
        |line| {
            let known = line.contains("crate::billing") || line.contains("crate::time");
            let others = line.contains("crate::") && !known;
            others
                || outside.iter().any(|module| line.contains(module))
                || crates.iter().any(|name| has_word(line, name))
                || clocks.iter().any(|clock| line.contains(clock))
        },
    );
}

#[test]
fn only_wire_knows_how_providers_name_things() {
    let names = [
        "prompt_tokens",
        "completion_tokens",
        "prompt_tokens_details",
        "cache_read_input_tokens",
        "cache_creation_input_tokens",
        "usageMetadata",
        "promptTokenCount",
        "finish_reason",
        "finishReason",
        "message_delta",
        "choices",
    ];
    assert_nowhere(
        "provider's names belong into src/wire (the demonstration plays a provider)",
        |file| !file.is_in(&["src/wire", "src/demo"]),
        |line| names.iter().any(|name| line.contains(&format!("\"{name}\""))),
    );
}

#[test]
fn only_the_store_writes_sql_and_the_ledger_is_only_added_to() {
    let writes = ["INSERT INTO", "UPDATE ", "DELETE FROM"];
    assert_nowhere(
        "only src/store changes balances",
        |file| !file.is_in(&["src/store"]),
        |line| writes.iter().any(|sql| line.contains(sql)),
    );
    assert_nowhere(
        "a line of the ledger is never changed; a correction is a new one",
        // What is trimmed was exported, and a checkpoint stands for it.
        |file| file.is_in(&["src/store"]) && file.path != "src/store/embedded/trim.rs",
        |line| {
            let changes = ["UPDATE record", "DELETE FROM record", "REPLACE INTO"];
            // The row of an abandoned request ends when it is settled after all.
            let is_abandoned = line.contains("outcome = 'abandoned'");
            changes.iter().any(|sql| line.contains(sql)) && !is_abandoned
        },
    );
}

#[test]
fn only_what_talks_to_a_person_prints() {
    assert_nowhere(
        "logs go through tracing, where no secret and no prompt is written",
        |file| {
            let people = ["src/main", "src/cli", "src/commands", "src/server", "src/demo"];
            !file.is_in(&people)
        },
        |line| ["println!", "print!", "eprint!", "dbg!"].iter().any(|name| line.contains(name)),
    );
}

#[test]
fn what_cannot_fail_says_why_and_nothing_is_left_to_do() {
    assert_nowhere(
        "an invariant is stated by `expect`, anything else is an error with a reply",
        |_| true,
        |line| {
            let unfinished = ["todo!", "unimplemented!", "TODO", "FIXME", "XXX"];
            line.contains(".unwrap()") || unfinished.iter().any(|word| line.contains(word))
        },
    );
    for file in files("src") {
        assert!(!file.text.contains("TODO") && !file.text.contains("FIXME"), "{}", file.path);
    }
}

#[test]
fn nothing_points_to_the_machine_it_was_written_on() {
    let homes = ["home", "Users", "root"].map(|dir| format!("/{dir}/"));
    // What real clients sent is kept as it was.
    for file in files("").iter().filter(|file| !file.is_in(&["tests/cases"])) {
        for (at, line) in file.text.lines().enumerate() {
            let found = homes.iter().find(|home| {
                // Part of a URL or of a longer path it is something else.
                let starts = line.match_indices(home.as_str());
                starts.into_iter().any(|(at, _)| {
                    !line[..at].ends_with(|c: char| c.is_alphanumeric() || "}.-_~".contains(c))
                })
            });
            assert!(found.is_none(), "{}:{}: {line}", file.path, at + 1);
        }
    }
}

#[test]
fn the_pages_that_a_newcomer_looks_for_are_there_and_their_links_lead_somewhere() {
    for page in ["README.md", "CHANGELOG.md", "LICENSE", "docs/architecture.md"] {
        let text = std::fs::read_to_string(root().join(page));
        let text = text.unwrap_or_else(|error| panic!("{page}: {error}"));
        let folder = root().join(page).parent().unwrap().to_owned();
        for link in text.split("](").skip(1) {
            let link = link.split(')').next().unwrap();
            let path = link.split('#').next().unwrap();
            if !path.is_empty() && !path.contains("://") && !path.starts_with("mailto:") {
                assert!(folder.join(path).exists(), "{page} links to {link}");
            }
        }
    }
}

/// What `.cargo/config.toml` names as the compiler.
#[test]
fn release_builds_alone_are_laid_out_by_what_was_counted_under_load() {
    let compiler = root().join("pgo/rustc");
    let counts = root().join("pgo/farebox.profdata");
    assert!(counts.is_file(), "no counts: pgo/record");
    let told = |option: &str| {
        let run = std::process::Command::new(&compiler).args(["echo", "-C", option]).output();
        String::from_utf8(run.unwrap().stdout).unwrap()
    };
    let uses = format!("profile-use={}", counts.display());
    assert!(told("opt-level=3").contains(&uses), "{}", told("opt-level=3"));
    for other in ["opt-level=1", "debuginfo=2"] {
        assert_eq!(told(other), format!("-C {other}\n"));
    }
}
