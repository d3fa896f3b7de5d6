//! Farebox: an OpenAI-compatible metering reverse proxy.
//!
//! The tree is the life of a request: accept → authenticate → read → admit → route →
//! forward → meter → price → settle. `docs/architecture.md` walks through it.
//!
//! Invariants:
//! - `billing` does no I/O, and money in it is whole nano-credits, never a float.
//! - Only `wire` knows JSON shapes of clients and upstreams.
//! - Only `proxy::error` makes error replies to clients.
//! - Only `store` changes balances.
//! - No frame of a reply is changed or held back, the last one and the usage chunk that we
//!   asked for aside.
//! - Prompts, replies and secrets are never stored or logged.

#![cfg_attr(test, allow(clippy::duplicate_mod, reason = "each store is held to the same tests"))]

pub mod admin;
pub mod alerts;
pub mod archive;
pub mod billing;
pub mod cli;
pub mod commands;
pub mod config;
pub mod dashboard;
pub mod demo;
pub mod export;
pub mod key;
pub mod net;
pub mod prices;
pub mod proxy;
pub mod server;
pub mod store;
pub mod telemetry;
pub mod time;
pub mod wire;
