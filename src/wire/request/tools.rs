//! Tools that the upstream runs, and so bills by the call: the names of the fees that a
//! request may cause.
//!
//! Tools that the client runs cost nothing but tokens. A type that we do not know is
//! listed by its own name, so it is refused until the operator sets a fee for it.

use std::collections::BTreeSet;

use super::Invalid;
use super::known::{Known, bounded};
use crate::wire::Kind;
use crate::wire::json::Value;

/// The fees that a request of this kind may cause, each once.
pub fn hosted(kind: Kind, top: &Known<'_>) -> Result<Vec<String>, Invalid> {
    let mut fees = BTreeSet::new();
    for tool in top.items("tools")? {
        match kind {
            Kind::Openai | Kind::Anthropic => typed(kind, tool, &mut fees)?,
            Kind::Gemini => keyed(tool, &mut fees)?,
        }
    }
    // Chat completions of OpenAI, xAI (whose search is on unless it says `off`) and OpenRouter.
    if top.get("web_search_options").is_some() {
        fees.insert("web_search".into());
    }
    let search = top.object("search_parameters", "search_parameters", &["mode"])?;
    if top.get("search_parameters").is_some() && search.text("mode")?.as_deref() != Some("off") {
        fees.insert("web_search".into());
    }
    for plugin in top.items("plugins")? {
        self::plugin(plugin, &mut fees)?;
    }
    if top.items("mcp_servers")?.next().is_some() {
        fees.insert("mcp".into());
    }
    Ok(fees.into_iter().collect())
}

/// A tool of OpenAI or Anthropic: its `type` says what it is.
fn typed(kind: Kind, tool: Value<'_>, fees: &mut BTreeSet<String>) -> Result<(), Invalid> {
    let names = ["type", "name", "function", "tools", "environment"];
    let known = object("tools[]", tool, &names)?;
    let Some(name) = known.text("type")? else {
        // A named tool without a type is the client's; one without a name is of Gemini's
        // form, which some compatible upstreams take too.
        return match known.get("name").or_else(|| known.get("function")) {
            Some(_) => Ok(()),
            None => keyed(tool, fees),
        };
    };
    match (kind, &*name) {
        (_, "function" | "custom") => {}
        (Kind::Openai, "local_shell" | "apply_patch" | "tool_search") => {}
        (Kind::Openai, "shell") if is_local(&known)? => {}
        (Kind::Openai, "namespace") => {
            for tool in known.items("tools")? {
                typed(kind, tool, fees)?;
            }
        }
        (Kind::Anthropic, name) if is_run_by_client(name) => {}
        (_, name) => {
            fees.insert(fee(name));
        }
    }
    Ok(())
}

/// Anthropic's tools that the client runs, or that only choose among tools.
fn is_run_by_client(name: &str) -> bool {
    ["bash_", "text_editor_", "computer_", "memory_", "tool_search_tool_"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

/// A shell on the client's machine, not in a container of the upstream.
fn is_local(tool: &Known<'_>) -> Result<bool, Invalid> {
    let environment = tool.object("environment", "tools[].environment", &["type"])?;
    Ok(environment.text("type")?.as_deref() == Some("local"))
}

/// The fee of a type, which may end in a version.
fn fee(name: &str) -> String {
    const FEES: [(&str, &str); 9] = [
        ("web_search", "web_search"),
        ("openrouter:web_search", "web_search"),
        ("web_fetch", "web_fetch"),
        ("file_search", "file_search"),
        ("code_interpreter", "code_interpreter"),
        ("code_execution", "code_interpreter"),
        ("image_generation", "image_generation"),
        ("mcp", "mcp"),
        ("computer", "computer_use"),
    ];
    let fee = FEES.iter().find(|(prefix, _)| name.starts_with(prefix));
    fee.map_or_else(|| bounded(name), |(_, fee)| (*fee).to_owned())
}

/// A tool of Gemini: each of its keys is one, in either spelling.
fn keyed(tool: Value<'_>, fees: &mut BTreeSet<String>) -> Result<(), Invalid> {
    let members = tool.members().ok_or_else(|| not_an_object("tools[]"))?;
    for member in members.filter(|member| !member.value.is_null()) {
        let fee = match member.key.replace('_', "").to_ascii_lowercase().as_str() {
            "functiondeclarations" => continue,
            "googlesearch" | "googlesearchretrieval" | "enterprisewebsearch" => "web_search",
            "codeexecution" => "code_interpreter",
            "urlcontext" => "url_context",
            "googlemaps" => "maps_grounding",
            "filesearch" => "file_search",
            "computeruse" => "computer_use",
            "mcpservers" => "mcp",
            _ => &bounded(&member.key),
        };
        fees.insert(fee.to_owned());
    }
    Ok(())
}

/// A plugin of OpenRouter.
fn plugin(plugin: Value<'_>, fees: &mut BTreeSet<String>) -> Result<(), Invalid> {
    let known = object("plugins[]", plugin, &["id", "enabled"])?;
    if known.flag("enabled")? == Some(false) {
        return Ok(());
    }
    match known.text("id")?.as_deref() {
        Some("web") => fees.insert("web_search".into()),
        Some("response-healing") => false,
        Some(other) => fees.insert(bounded(other)),
        None => return Err(known.problem("id", "is missing")),
    };
    Ok(())
}

fn object<'a>(
    path: &'static str,
    value: Value<'a>,
    names: &[&'static str],
) -> Result<Known<'a>, Invalid> {
    let members = value.members().ok_or_else(|| not_an_object(path))?;
    Known::of(path, members.map(|member| (member.key, member.value)), names)
}

fn not_an_object(path: &str) -> Invalid {
    Invalid::Parameter { parameter: path.into(), problem: "must be an object".into() }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::{Value, json};

    use crate::wire::Endpoint;
    use crate::wire::request::{Invalid, Settings, read};

    /// The fees that a request with these fields may cause.
    fn fees(endpoint: Endpoint, mut body: Value) -> Result<Vec<String>, Invalid> {
        body["model"] = "m".into();
        let body = Bytes::from(body.to_string());
        read(endpoint, Some("m"), body, &Settings::default()).map(|request| request.hosted_tools)
    }

    fn of_types(endpoint: Endpoint, types: &[&str]) -> Vec<String> {
        let tools: Vec<_> = types.iter().map(|name| json!({ "type": name })).collect();
        fees(endpoint, json!({ "tools": tools })).unwrap()
    }

    #[test]
    fn tools_that_the_client_runs_cause_no_fee() {
        let none: Vec<String> = vec![];
        assert_eq!(of_types(Endpoint::Chat, &["function", "custom"]), none);
        assert_eq!(of_types(Endpoint::Responses, &["local_shell", "apply_patch"]), none);
        let anthropic = [
            "custom",
            "bash_20250124",
            "text_editor_20250728",
            "computer_20250124",
            "memory_20250818",
        ];
        assert_eq!(of_types(Endpoint::Messages, &anthropic), none);
        let untyped = json!({ "tools": [{ "name": "ls", "input_schema": {} }] });
        assert_eq!(fees(Endpoint::Messages, untyped), Ok(none.clone()));
        let declared =
            json!({ "tools": [{ "functionDeclarations": [] }, { "function_declarations": [] }] });
        assert_eq!(fees(Endpoint::Generate, declared), Ok(none.clone()));
        let local = json!({ "tools": [{ "type": "shell", "environment": { "type": "local" } }] });
        assert_eq!(fees(Endpoint::Responses, local), Ok(none));
    }

    #[test]
    fn tools_that_the_upstream_runs_are_named_by_their_fee() {
        assert_eq!(
            of_types(
                Endpoint::Responses,
                &[
                    "web_search_preview_2025_03_11",
                    "web_search",
                    "file_search",
                    "code_interpreter",
                    "image_generation",
                    "mcp",
                    "computer_use_preview",
                    "shell",
                    "brand_new"
                ]
            ),
            [
                "brand_new",
                "code_interpreter",
                "computer_use",
                "file_search",
                "image_generation",
                "mcp",
                "shell",
                "web_search"
            ]
        );
        assert_eq!(
            of_types(
                Endpoint::Messages,
                &[
                    "web_search_20250305",
                    "web_fetch_20250910",
                    "code_execution_20250825",
                    "mcp_toolset"
                ]
            ),
            ["code_interpreter", "mcp", "web_fetch", "web_search"]
        );
        let gemini = json!({ "tools": [
            { "googleSearch": {}, "url_context": {}, "codeExecution": null },
            { "google_search_retrieval": {} }, { "google_maps": {} }, { "newThing": {} },
        ] });
        assert_eq!(
            fees(Endpoint::StreamGenerate, gemini).unwrap(),
            ["maps_grounding", "newThing", "url_context", "web_search"]
        );
    }

    #[test]
    fn a_hosted_tool_does_not_hide_in_another_place_or_spelling() {
        let web = Ok(vec!["web_search".to_owned()]);
        let hidden = [
            json!({ "web_search_options": {} }),
            json!({ "plugins": [{ "id": "web" }] }),
            json!({ "search_parameters": {} }),
            json!({ "search_parameters": { "mode": "auto" } }),
            json!({ "tools": [{ "type": "namespace", "tools": [{ "type": "web_search" }] }] }),
            json!({ "tools": [{ "google_search": {} }] }),
        ];
        for body in hidden {
            assert_eq!(fees(Endpoint::Chat, body.clone()), web, "{body}");
        }
        assert_eq!(of_types(Endpoint::Chat, &["Function", "function "]), ["Function", "function "]);
        let twin = json!({ "tools": [{ "type": "function", "Type": "web_search" }] });
        assert!(fees(Endpoint::Chat, twin).is_err());
        let servers = json!({ "mcp_servers": [{ "url": "https://example.com" }] });
        assert_eq!(fees(Endpoint::Messages, servers), Ok(vec!["mcp".to_owned()]));
    }

    #[test]
    fn what_is_switched_off_causes_no_fee() {
        let off = [
            json!({ "web_search_options": null, "tools": null }),
            json!({ "plugins": [{ "id": "web", "enabled": false }, { "id": "response-healing" }] }),
            json!({ "search_parameters": { "mode": "off" } }),
            json!({ "tools": [] }),
        ];
        for body in off {
            assert_eq!(fees(Endpoint::Chat, body.clone()), Ok(vec![]), "{body}");
        }
    }

    #[test]
    fn tools_that_are_no_list_of_objects_are_refused() {
        for tools in
            [json!({ "type": "web_search" }), json!(["web_search"]), json!([{ "type": 1 }])]
        {
            assert!(fees(Endpoint::Chat, json!({ "tools": tools })).is_err(), "{tools}");
            assert!(fees(Endpoint::Messages, json!({ "tools": tools })).is_err(), "{tools}");
        }
    }
}
