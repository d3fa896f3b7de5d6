//! Farebox from outside: the real program, over real sockets, in front of a scripted upstream.
//!
//! One test binary. [`support`] starts the parts; every other module is a subject with its
//! tests. Nothing of Farebox itself is replaced: what these tests see, a client sees.

mod admission;
mod alerts;
mod audit;
mod billing;
mod cases;
mod cli;
mod crash;
mod cuts;
mod demo;
mod disk;
mod docs;
mod endpoints;
mod evasion;
mod export;
mod hangups;
mod harness;
mod health;
mod heartbeats;
mod hostile;
mod http;
mod idempotency;
mod io;
mod limits;
mod manage;
mod modes;
mod pages;
mod pricing;
mod reload;
mod roles;
mod secrets;
mod settlement;
mod shared;
mod shutdown;
mod store;
mod streams;
mod support;
mod upstreams;
