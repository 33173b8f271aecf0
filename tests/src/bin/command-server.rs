//! Guest A's end of the command channel, on its standard input and output; see `dormouse_tests::channel`.

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result};
use dormouse_tests::channel::server::Server;

fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("command-server: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<()> {
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").context("boot_id")?;
    // A server that was started again in the same boot has none of the answers, so it is another one.
    let name = format!("{}/{}", boot_id.trim(), std::process::id());
    Server::new(name).serve(std::io::stdin(), std::io::stdout()).context("the line to the host")
}
