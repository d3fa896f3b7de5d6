//! What each command prints, writes and returns.

use clap::Parser;

use super::*;

const OURS: &str = "[models.m]\nupstream = \"openai\"\ninput = \"4\"\noutput = \"15\"\n\n\
                    [models.gift]\nupstream = \"local\"\nfree = true\n";
const LIST: &str = r#"{
    "m": {"litellm_provider": "openai", "input_cost_per_token": 3e-06, "output_cost_per_token": 1.5e-05},
    "n": {"litellm_provider": "openai", "input_cost_per_token": 1.5e-7, "output_cost_per_token": 6e-07,
          "input_cost_per_video_token": 1e-06},
    "image": {"litellm_provider": "openai", "mode": "image_generation"}
}"#;

#[derive(Parser)]
struct Line {
    #[command(subcommand)]
    command: PriceCommand,
}

/// A directory with `pricing.toml` and `list.json`, in which commands are run.
struct Place(tempfile::TempDir);

impl Place {
    fn new(pricing: &str) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        std::fs::write(place.path("pricing.toml"), pricing).unwrap();
        std::fs::write(place.path("list.json"), LIST).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The exit code and what is written to both outputs, without the directory.
    fn run(&self, json: bool, line: &[&str]) -> (u8, String, String) {
        let words =
            line.iter().map(|word| match word.contains(".json") || word.contains(".toml") {
                true => self.path(word).display().to_string(),
                false => (*word).to_owned(),
            });
        let line = Line::parse_from(std::iter::once("price".to_owned()).chain(words));
        let (mut out, mut err) = (vec![], vec![]);
        let pricing = self.path("pricing.toml");
        let code =
            run(&line.command, Some(&pricing), json, Style::default(), &mut out, &mut err).unwrap();
        let directory = format!("{}/", self.0.path().display());
        let text = |bytes| String::from_utf8(bytes).unwrap().replace(&directory, "");
        (code, text(out), text(err))
    }
}

#[test]
fn prices_are_listed_for_people_and_for_programs() {
    let place = Place::new(&format!("markup = \"1.1\"\n{OURS}"));
    let (code, out, err) = place.run(false, &["list"]);
    assert_eq!((code, err.as_str()), (OK, ""));
    assert_eq!(
        out,
        "\
MODEL  UPSTREAM  INPUT  CACHED  WRITTEN  OUTPUT  CONTEXT
m      openai      4.4       –        –    16.5        –
gift   local      free       –        –    free        –
"
    );
    let (_, out, _) = place.run(true, &["list"]);
    let document: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(document["data"][0]["input"], "4.4");
    assert_eq!(document["data"][0]["upstreams"][0]["model"], "m");
    assert_eq!(document["data"][1]["free"], true);
}

#[test]
fn a_check_tells_all_problems_and_fails_on_errors() {
    let place = Place::new(OURS);
    let (code, out, err) = place.run(false, &["check", "pricing.toml"]);
    assert_eq!((code, err.as_str()), (OK, ""));
    assert_eq!(out, "pricing.toml: 2 models, 0 errors, 0 warnings\n");

    let place = Place::new(&OURS.replace("\"4\"", "4").replace("free", "fre"));
    let (code, out, err) = place.run(false, &["check"]);
    assert_eq!((code, out.as_str()), (CONFIG, ""));
    assert!(err.contains("┌─ pricing.toml:3:9\n"), "{err}");
    assert!(err.contains("did you mean `free`?"), "{err}");
    assert!(err.ends_with("pricing.toml: 2 errors, 0 warnings\n"), "{err}");
    assert_eq!(place.run(false, &["list"]).0, CONFIG);
}

#[test]
fn an_import_shows_what_would_change_and_writes_nothing() {
    let place = Place::new(OURS);
    let (code, out, err) = place.run(false, &["import", "list.json"]);
    assert_eq!(code, OK);
    assert_eq!(
        out,
        "\
MODEL  CHANGE   WHAT
m      changed  input 4 → 3
n      added    input 0.15, output 0.6
image  skipped  image_generation is not served
1 added, 1 changed, 0 unchanged, 1 skipped
"
    );
    assert_eq!(
        err,
        "\
not taken over: input_cost_per_video_token of n, which pricing.toml has no key for
compared with pricing.toml; nothing is written without --write FILE
"
    );
    assert_eq!(std::fs::read_to_string(place.path("pricing.toml")).unwrap(), OURS);
}

#[test]
fn an_import_is_written_on_demand_and_then_changes_nothing_more() {
    let place = Place::new(OURS);
    let line = ["import", "list.json", "--models", "m", "--write", "pricing.toml"];
    assert_eq!(place.run(false, &line).0, OK);
    let (_, out, _) = place.run(false, &line);
    assert!(out.ends_with("0 added, 0 changed, 1 unchanged, 0 skipped\n"), "{out}");
    let (_, out, _) = place.run(true, &["list"]);
    let document: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(document["data"][0]["input"], "3");
    assert_eq!(document["data"][1]["name"], "gift");
}

#[test]
fn an_import_can_start_a_new_file() {
    let place = Place::new(OURS);
    let line =
        ["import", "list.json", "--markup", "1.10", "--upstream", "eu", "--write", "new.toml"];
    assert_eq!(place.run(false, &line).0, OK);
    let (table, _) =
        PriceTable::read(&std::fs::read_to_string(place.path("new.toml")).unwrap()).unwrap();
    let model = table.find("n").unwrap();
    assert_eq!(model.price.standard.rates.input.to_string(), "0.165");
    assert_eq!(model.upstreams, [("eu".to_owned(), "n".to_owned())]);
}

#[test]
fn a_file_with_errors_is_not_written_to() {
    let broken = OURS.replace("\"4\"", "4");
    let place = Place::new(&broken);
    let (code, _, err) = place.run(false, &["import", "list.json", "--write", "pricing.toml"]);
    assert_eq!(code, CONFIG);
    assert!(err.contains("pricing.toml:3:9"), "{err}");
    assert_eq!(std::fs::read_to_string(place.path("pricing.toml")).unwrap(), broken);
    assert_eq!(place.run(false, &["import", "pricing.toml"]).0, CONFIG);
    assert_eq!(place.run(false, &["import", "nowhere.json"]).0, FAILED);
}
