//! The `dormouse` command. Everything is in [`dormouse::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    dormouse::cli::main()
}
