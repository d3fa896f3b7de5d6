//! The program: hands the command line to the library.

use std::process::ExitCode;

/// A request makes some eighty small allocations, and those of a debit end on another thread.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    farebox::cli::run(farebox::commands::HOST)
}
