//! Styles, the script and the icon: inside the binary, under names that change with them.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::admin::State;
use crate::key::KeyHash;

/// A file of the pages.
struct Asset {
    name: &'static str,
    mime: &'static str,
    text: &'static str,
}

const ASSETS: &[Asset] = &[
    Asset {
        name: "app.css",
        mime: "text/css; charset=utf-8",
        text: include_str!("assets/app.css"),
    },
    Asset {
        name: "app.js",
        mime: "text/javascript; charset=utf-8",
        text: include_str!("assets/app.js"),
    },
    Asset { name: "icon.svg", mime: "image/svg+xml", text: include_str!("assets/icon.svg") },
];

/// The start of the hash of them all.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    let all: String = ASSETS.iter().map(|asset| asset.text).collect();
    KeyHash::of(&all).0[..6].iter().map(|byte| format!("{byte:02x}")).collect()
});

/// Where a browser finds an asset.
pub fn path(state: &State, name: &str) -> String {
    format!("{}/assets/{}-{name}", state.site.base, *VERSION)
}

/// Serves one; since its name changes with it, it is never asked for twice.
pub async fn serve(Path(name): Path<String>) -> Response {
    let found =
        name.split_once('-').and_then(|(_, name)| ASSETS.iter().find(|asset| asset.name == name));
    let Some(asset) = found else { return StatusCode::NOT_FOUND.into_response() };
    let headers = [
        (header::CONTENT_TYPE, asset.mime),
        (header::CACHE_CONTROL, "public, max-age=31536000, immutable"),
    ];
    (headers, asset.text).into_response()
}

/// A text as a part of a query.
pub fn encode(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // A `String` takes everything.
            write!(out, "%{byte:02X}").expect("writing to memory");
        }
    }
    out
}
