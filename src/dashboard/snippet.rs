//! What to paste where, with the real address and the real key.

/// Something to paste.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snippet {
    /// Names it in the page.
    pub id: &'static str,
    /// Where it goes.
    pub title: &'static str,
    /// What to know about it; may be empty.
    pub note: &'static str,
    /// The text.
    pub text: String,
}

/// The snippets for a key, the likeliest first.
pub fn snippets(base_url: &str, key: &str, model: &str, is_heartbeat: bool) -> Vec<Snippet> {
    let openclaw = if is_heartbeat {
        openclaw_heartbeat(base_url, key, model)
    } else {
        openclaw(base_url, key, model)
    };
    vec![
        Snippet {
            id: "openclaw",
            title: "OpenClaw",
            note: "Into openclaw.json. Keep the key inline or in an environment variable, not in \
                   a stored profile. A private address may need request.allowPrivateNetwork: true.",
            text: openclaw,
        },
        Snippet {
            id: "n8n",
            title: "n8n",
            note: "In the OpenAI credential. Save tests it by listing the models. Older versions \
                   take the base URL in the options of the node.",
            text: format!("API Key   {key}\nBase URL  {base_url}"),
        },
        Snippet {
            id: "curl",
            title: "curl",
            note: "",
            text: format!(
                "curl {base_url}/chat/completions \\\n  -H \"Authorization: Bearer {key}\" \\\n  \
                 -H \"Content-Type: application/json\" \\\n  -d '{{\"model\": \"{model}\", \
                 \"messages\": [{{\"role\": \"user\", \"content\": \"Say hello\"}}]}}'"
            ),
        },
        Snippet {
            id: "python",
            title: "Python",
            note: "pip install openai",
            text: format!(
                "from openai import OpenAI\n\nclient = OpenAI(base_url=\"{base_url}\", \
                 api_key=\"{key}\")\nreply = client.chat.completions.create(\n    \
                 model=\"{model}\",\n    messages=[{{\"role\": \"user\", \"content\": \"Say \
                 hello\"}}],\n)\nprint(reply.choices[0].message.content)"
            ),
        },
        Snippet {
            id: "javascript",
            title: "JavaScript",
            note: "npm install openai",
            text: format!(
                "import OpenAI from \"openai\";\n\nconst client = new OpenAI({{ baseURL: \
                 \"{base_url}\", apiKey: \"{key}\" }});\nconst reply = await \
                 client.chat.completions.create({{\n  model: \"{model}\",\n  messages: [{{ role: \
                 \"user\", content: \"Say hello\" }}],\n}});\n\
                 console.log(reply.choices[0].message.content);"
            ),
        },
        Snippet {
            id: "environment",
            title: "Environment",
            note: "Most tools read these two.",
            text: format!("export OPENAI_BASE_URL={base_url}\nexport OPENAI_API_KEY={key}"),
        },
    ]
}

fn openclaw(base_url: &str, key: &str, model: &str) -> String {
    format!(
        "{{\n  models: {{ providers: {{\n    farebox: {{\n      baseUrl: \"{base_url}\",\n      \
         apiKey: \"{key}\",\n      api: \"openai-completions\",\n      models: [\n        {{ id: \
         \"{model}\", name: \"{model}\", compat: {{ supportsUsageInStreaming: true }} }},\n      \
         ],\n    }},\n  }} }},\n  agents: {{ defaults: {{ model: {{ primary: \
         \"farebox/{model}\" }} }} }},\n}}"
    )
}

/// A provider entry of its own for heartbeats, on a lighter model, rarely, and alone.
pub fn openclaw_heartbeat(base_url: &str, key: &str, model: &str) -> String {
    format!(
        "{{\n  models: {{ providers: {{\n    farebox_hb: {{\n      baseUrl: \"{base_url}\",\n      \
         apiKey: \"{key}\",\n      api: \"openai-completions\",\n      models: [\n        {{ id: \
         \"{model}\", name: \"Heartbeat\", compat: {{ supportsUsageInStreaming: true }} }},\n      \
         ],\n    }},\n  }} }},\n  agents: {{ defaults: {{ heartbeat: {{\n    every: \"1h\",\n    \
         model: \"farebox_hb/{model}\",\n    isolatedSession: true,\n    lightContext: true,\n  \
         }} }} }},\n}}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_snippet_holds_the_key_and_the_address() {
        for is_heartbeat in [false, true] {
            for snippet in snippets("http://h:8080/v1", "fbx_live_x", "m", is_heartbeat) {
                assert!(snippet.text.contains("http://h:8080/v1"), "{}", snippet.title);
                assert!(snippet.text.contains("fbx_live_x"), "{}", snippet.title);
            }
        }
    }
}
