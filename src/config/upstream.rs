//! The providers that requests go to, and the addresses of their endpoints.
//!
//! An address comes from here alone: nothing that a client sends can move a connection.

use std::collections::BTreeMap;
use std::time::Duration;

use http::Uri;
use serde::{Deserialize, Serialize};

use super::{Env, secret, secret_file};
use crate::key::Secret;
use crate::wire::{Endpoint, Kind};

/// A provider.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// How models name it.
    pub name: String,
    /// Which formats it speaks.
    pub kind: Kind,
    /// What the endpoints' paths are appended to, such as `https://api.openai.com/v1`. A query,
    /// such as Azure's `?api-version=…`, stays at the end.
    pub base_url: String,
    /// The variable that holds its key; also read as `…_FILE`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_env: Option<String>,
    /// The file that holds its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_file: Option<String>,
    /// Whether it takes `stream_options.include_usage`. Kind `openai` only.
    #[serde(default = "yes")]
    pub include_usage: bool,
    /// Headers to send besides our own.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// `true` to offer HTTP/2: fewer connections, but streams beyond the peer's limit wait.
    #[serde(default)]
    pub http2: bool,
    /// Allows plain `http` to a host that is not this machine.
    #[serde(default)]
    pub allow_http: bool,
    /// Overrides `connect_timeout`.
    #[serde(default, with = "humantime_serde::option")]
    pub connect_timeout: Option<Duration>,
    /// Overrides `first_byte_timeout`.
    #[serde(default, with = "humantime_serde::option")]
    pub first_byte_timeout: Option<Duration>,
    /// Overrides `idle_timeout`.
    #[serde(default, with = "humantime_serde::option")]
    pub idle_timeout: Option<Duration>,
    /// The key, once read.
    #[serde(skip)]
    pub api_key: Option<Secret>,
}

const fn yes() -> bool {
    true
}

/// Name, kind, base URL and the variable whose presence switches it on.
const BUILT_IN: [(&str, Kind, &str, &str); 5] = [
    ("openai", Kind::Openai, "https://api.openai.com/v1", "OPENAI_API_KEY"),
    ("anthropic", Kind::Anthropic, "https://api.anthropic.com", "ANTHROPIC_API_KEY"),
    ("gemini", Kind::Gemini, "https://generativelanguage.googleapis.com", "GEMINI_API_KEY"),
    ("xai", Kind::Openai, "https://api.x.ai/v1", "XAI_API_KEY"),
    ("openrouter", Kind::Openai, "https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
];

/// Adds each built-in upstream whose key is in the environment and whose name is free.
pub(super) fn add_built_in(upstreams: &mut Vec<Upstream>, env: Env) {
    for (name, kind, base_url, variable) in BUILT_IN {
        let has_key = env(variable).is_some() || env(&format!("{variable}_FILE")).is_some();
        if has_key && !upstreams.iter().any(|upstream| upstream.name == name) {
            upstreams.push(Upstream::new(name, kind, base_url, Some(variable)));
        }
    }
}

impl Upstream {
    /// An upstream with default settings.
    pub fn new(name: &str, kind: Kind, base_url: &str, api_key_env: Option<&str>) -> Self {
        Self {
            name: name.into(),
            kind,
            base_url: base_url.into(),
            api_key_env: api_key_env.map(String::from),
            api_key_file: None,
            include_usage: true,
            headers: BTreeMap::new(),
            http2: false,
            allow_http: false,
            connect_timeout: None,
            first_byte_timeout: None,
            idle_timeout: None,
            api_key: None,
        }
    }

    /// Reads the key and checks what types cannot.
    pub(super) fn complete(&mut self, env: Env, problems: &mut Vec<String>) {
        let mut problem =
            |text: String| problems.push(format!("upstream \"{}\": {text}", self.name));
        let bad_name = |c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_' && c != '.';
        if self.name.is_empty() || self.name.contains(bad_name) {
            problem("the name must be letters, digits, - _ or .".into());
        }
        match self.base_url.parse::<Uri>() {
            Ok(uri) if uri.host().is_some_and(is_link_local) => {
                problem(
                    "base_url is an address of cloud metadata services, never a provider".into(),
                );
            }
            Ok(uri) if uri.host().is_some() => {
                let local = uri.host().is_some_and(is_loopback);
                match uri.scheme_str() {
                    Some("https") => {}
                    Some("http") if local || self.allow_http => {}
                    Some("http") => problem(
                        "base_url must be https; set allow_http = true for a network you trust"
                            .into(),
                    ),
                    _ => problem("base_url must begin with https://".into()),
                }
            }
            _ => problem("base_url must be a URL such as https://api.openai.com/v1".into()),
        }
        for name in self.headers.keys() {
            if name.parse::<http::HeaderName>().is_err() {
                problem(format!("\"{name}\" is not a header's name"));
            }
        }
        if self.headers.values().any(|value| value.parse::<http::HeaderValue>().is_err()) {
            problem("a header's value holds characters that headers cannot".into());
        }
        self.api_key = match (&self.api_key_file, &self.api_key_env) {
            (Some(path), _) => secret_file(path).map(Some).unwrap_or_else(|why| {
                problem(format!("api_key_file {why}"));
                None
            }),
            (None, Some(variable)) => match secret(env, variable) {
                Ok(Some(key)) => Some(key),
                Ok(None) => {
                    problem(format!("the variable {variable} is empty: set it to the key"));
                    None
                }
                Err(why) => {
                    problem(why);
                    None
                }
            },
            (None, None) => None,
        };
        if self
            .api_key
            .as_ref()
            .is_some_and(|key| key.expose().parse::<http::HeaderValue>().is_err())
        {
            problem("the key holds characters that a header cannot".into());
        }
    }

    /// The address of an endpoint, or `None` where this kind of upstream does not serve it.
    /// Anthropic and Gemini also speak chat completions, each under a path of its own.
    pub fn url(&self, endpoint: Endpoint, model: &str) -> Option<String> {
        let (base, query) = match self.base_url.split_once('?') {
            Some((base, query)) => (base, format!("?{query}")),
            None => (self.base_url.as_str(), String::new()),
        };
        let base = base.trim_end_matches('/');
        let path = match (self.kind, endpoint) {
            (Kind::Openai, Endpoint::Chat) => "/chat/completions".into(),
            (Kind::Openai, Endpoint::Completions) => "/completions".into(),
            (Kind::Openai, Endpoint::Embeddings) => "/embeddings".into(),
            (Kind::Openai, Endpoint::Responses) => "/responses".into(),
            (Kind::Anthropic, Endpoint::Messages) => "/v1/messages".into(),
            (Kind::Anthropic, Endpoint::CountTokens) => "/v1/messages/count_tokens".into(),
            (Kind::Anthropic, Endpoint::Chat) => "/v1/chat/completions".into(),
            (Kind::Gemini, Endpoint::Generate) => format!("/models/{model}:generateContent"),
            (Kind::Gemini, Endpoint::StreamGenerate) => {
                format!("/models/{model}:streamGenerateContent")
            }
            (Kind::Gemini, Endpoint::Chat) => "/openai/chat/completions".into(),
            (Kind::Gemini, Endpoint::Embeddings) => "/openai/embeddings".into(),
            _ => return None,
        };
        let base = match self.kind {
            Kind::Openai => base.to_owned(),
            Kind::Anthropic => base.trim_end_matches("/v1").to_owned(),
            Kind::Gemini if self.has_path() => base.to_owned(),
            Kind::Gemini => format!("{base}/v1beta"),
        };
        Some(base + &path + &query)
    }

    fn has_path(&self) -> bool {
        self.base_url.parse::<Uri>().is_ok_and(|uri| !uri.path().trim_matches('/').is_empty())
    }
}

fn is_link_local(host: &str) -> bool {
    match host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().map(|ip| ip.to_canonical()) {
        Ok(std::net::IpAddr::V4(ip)) => ip.is_link_local(),
        Ok(std::net::IpAddr::V6(ip)) => ip.is_unicast_link_local(),
        Err(_) => false,
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host
            .trim_matches(['[', ']'])
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn load(text: &str, key: &str) -> Result<Config, crate::config::ConfigError> {
        Config::read(text, "farebox.toml", &|name| {
            (!key.is_empty() && name == key).then(|| String::from("sk-of-a-test"))
        })
    }

    #[test]
    fn a_key_alone_switches_on_its_upstream() {
        for (name, kind, _, variable) in BUILT_IN {
            let config = load("", variable).unwrap();
            assert_eq!(config.upstreams.len(), 1);
            assert_eq!((config.upstreams[0].name.as_str(), config.upstreams[0].kind), (name, kind));
            assert!(config.upstreams[0].api_key.is_some());
        }
        assert!(load("", "").unwrap().upstreams.is_empty());
    }

    #[test]
    fn an_upstream_of_the_file_takes_the_place_of_the_built_in_one() {
        let text = "[[upstream]]\nname = \"openai\"\nkind = \"openai\"\n\
                    base_url = \"https://eu.api.openai.com/v1\"\napi_key_env = \"OPENAI_API_KEY\"";
        let config = load(text, "OPENAI_API_KEY").unwrap();
        assert_eq!(config.upstreams.len(), 1);
        assert_eq!(config.upstreams[0].base_url, "https://eu.api.openai.com/v1");
    }

    #[test]
    fn plain_http_is_for_this_machine_alone() {
        let at = |url: &str| {
            load(
                &format!("[[upstream]]\nname = \"x\"\nkind = \"openai\"\nbase_url = \"{url}\""),
                "",
            )
        };
        assert!(at("http://127.0.0.1:9/v1").is_ok());
        assert!(at("http://localhost:9/v1").is_ok());
        assert!(at("http://[::1]:9/v1").is_ok());
        assert!(at("http://example.com/v1").unwrap_err().to_string().contains("allow_http"));
        assert!(at("http://169.254.169.254/latest").is_err());
        assert!(at("ftp://example.com").is_err());
        assert!(at("example.com").is_err());
    }

    #[test]
    fn each_kind_has_its_own_paths() {
        let url = |kind, base, endpoint| Upstream::new("u", kind, base, None).url(endpoint, "m-1");
        let is = |got: Option<String>, want: &str| assert_eq!(got.as_deref(), Some(want));
        is(url(Kind::Openai, "https://a/v1/", Endpoint::Chat), "https://a/v1/chat/completions");
        is(
            url(Kind::Openai, "https://a/openai/deployments/d?api-version=1", Endpoint::Chat),
            "https://a/openai/deployments/d/chat/completions?api-version=1",
        );
        is(url(Kind::Anthropic, "https://a", Endpoint::Messages), "https://a/v1/messages");
        is(url(Kind::Anthropic, "https://a/v1", Endpoint::Messages), "https://a/v1/messages");
        is(
            url(Kind::Gemini, "https://a", Endpoint::Generate),
            "https://a/v1beta/models/m-1:generateContent",
        );
        is(
            url(Kind::Gemini, "https://a/v1beta", Endpoint::Chat),
            "https://a/v1beta/openai/chat/completions",
        );
        is(
            url(Kind::Gemini, "https://a/v1/projects/p/publishers/google", Endpoint::Generate),
            "https://a/v1/projects/p/publishers/google/models/m-1:generateContent",
        );
        assert_eq!(url(Kind::Openai, "https://a/v1", Endpoint::Messages), None);
    }

    #[test]
    fn a_key_never_shows_in_messages() {
        let config = load("", "OPENAI_API_KEY").unwrap();
        assert!(!format!("{config:?}").contains("sk-of-a-test"));
    }
}
