//! The binary: hands the process's arguments and variables to the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    branchline::cli::main(std::env::args_os(), std::env::vars_os())
}
