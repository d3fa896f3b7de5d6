//! The rules of money: no I/O, no clock, no async, no float.
//!
//! Each rule is a pure function over plain values, so it can be read, tested and argued
//! about alone. What upstreams report is in [`usage`], what it costs in [`price`], what it
//! would cost otherwise in [`compare`], how a balance changes in [`ledger`], what may run in
//! [`limit`] and at what cost at most in [`hold`], and whether all of it adds up in [`audit`].

pub mod audit;
pub mod compare;
pub mod credits;
pub mod hold;
pub mod ledger;
pub mod limit;
pub mod price;
pub mod usage;

pub use credits::{Credits, Total};
pub use usage::Usage;
