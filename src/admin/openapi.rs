//! The description of the control plane for programs: OpenAPI, from the routes themselves.

use std::sync::LazyLock;

use axum::http::header;
use axum::response::IntoResponse;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::{Modify, OpenApi};

use super::Description;

const SCHEME: &str = "admin_key";

static JSON: LazyLock<String> =
    LazyLock::new(|| serde_json::to_string(&Description::openapi()).expect("it has string keys"));

/// Says that routes need the admin key unless they say otherwise.
pub(super) struct AdminKey;

impl Modify for AdminKey {
    fn modify(&self, description: &mut utoipa::openapi::OpenApi) {
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        let components = description.components.get_or_insert_with(Default::default);
        components.add_security_scheme(SCHEME, SecurityScheme::Http(bearer));
        let no_scopes: [&str; 0] = [];
        description.security = Some(vec![SecurityRequirement::new(SCHEME, no_scopes)]);
    }
}

/// This description.
#[utoipa::path(
    get, path = "/admin/v1/openapi.json", tag = "health",
    responses((status = 200, description = "OpenAPI 3.1", content_type = "application/json"))
)]
pub async fn describe() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], JSON.as_str())
}
