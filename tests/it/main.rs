//! Farebox from outside: the real program, over real sockets, in front of a scripted upstream.
//!
//! One test binary. [`support`] starts the parts; every other module is a subject with its
//! tests. Nothing of Farebox itself is replaced: what these tests see, a client sees.

mod cases;
mod cli;
mod demo;
mod docs;
mod harness;
mod support;
