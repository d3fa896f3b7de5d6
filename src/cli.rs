//! Commands of the program.

pub mod price;
