//! The upstreams: how they are doing, as requests have found them.

use std::sync::Arc;

use axum::Json;
use axum::extract::State as Shared;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::State;
use crate::billing::price::Model;
use crate::proxy::Context;
use crate::proxy::health::Report;
use crate::store::Millis;
use crate::wire::Kind;

/// The upstreams of this process. Each process counts for itself.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Upstreams {
    /// When this process began to count.
    #[serde(with = "crate::time::millis")]
    #[schema(value_type = String, format = DateTime)]
    pub since: Millis,
    /// In the order of the configuration.
    pub data: Vec<Upstream>,
}

/// An upstream and how it is doing.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Upstream {
    /// Its name.
    pub name: String,
    /// Which formats it speaks: `openai`, `anthropic` or `gemini`.
    #[schema(value_type = String)]
    pub kind: Kind,
    /// Models of the price table that go to it.
    pub models: usize,
    /// How it is doing.
    #[serde(flatten)]
    pub health: Report,
}

impl Upstreams {
    /// As they are now.
    pub fn of(ctx: &Context, since: Millis) -> Self {
        let table = ctx.prices.table();
        let models = |name: &str| {
            let goes_there =
                |model: &&Arc<Model>| model.upstreams.iter().any(|(upstream, _)| upstream == name);
            table.models.iter().filter(goes_there).count()
        };
        let upstreams = ctx.health().into_iter().map(|(config, health)| Upstream {
            name: config.name.clone(),
            kind: config.kind,
            models: models(&config.name),
            health,
        });
        Self { since, data: upstreams.collect() }
    }
}

/// How the upstreams are doing, since the start and over the last hour.
#[utoipa::path(
    get, path = "/admin/v1/upstreams", tag = "upstreams",
    responses((status = 200, description = "Every upstream", body = Upstreams))
)]
pub async fn list(Shared(state): Shared<State>) -> Json<Upstreams> {
    Json((state.upstreams)())
}
