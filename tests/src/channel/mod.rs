//! The command channel: the host runs commands in guest A over A's second serial port.
//!
//! A serial line loses and garbles bytes: across a power cycle half a line may be left in the UART, and what either
//! side writes while the other is absent is lost. So every message is one line with a checksum ([`frame`]), every
//! request has a number and is repeated until it is answered, and the server ([`server`]) runs each number once and
//! keeps its answer. A command that is under way while the machine is powered off (`dormouse hibernate` is one) is
//! answered after the resume, as if nothing had happened.
//!
//! The server names itself in every answer. A request that was meant for another boot is refused, so that a repeated
//! `dormouse hibernate` never runs in a guest that booted afresh.

pub mod client;
pub mod frame;
pub mod server;

use serde::{Deserialize, Serialize};

/// What goes over the line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case")]
pub enum Message {
    /// To the guest: a greeting, which it answers.
    Hello,
    /// To the host: this server is.
    Here {
        /// The server's name, different in every boot.
        server: String,
    },
    /// To the guest: run a shell command, or report how far it is.
    Run {
        /// The server that is meant.
        server: String,
        /// The request's number.
        request: u64,
        /// For `/bin/sh -c`.
        command: String,
    },
    /// To the host: the command is still running.
    Running {
        /// The server.
        server: String,
        /// The request's number.
        request: u64,
    },
    /// To the host: the command has ended.
    Done {
        /// The server.
        server: String,
        /// The request's number.
        request: u64,
        /// How it ended.
        output: Output,
    },
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// Its exit status; 128 plus the number of the signal that killed it.
    pub status: i32,
    /// Its standard output, as text.
    pub stdout: String,
    /// Its standard error, as text.
    pub stderr: String,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use std::io::Write;
    use std::os::unix::net::UnixListener;
    use std::path::{Path, PathBuf};
    use std::time::{Duration, Instant};

    use super::client::{Client, Request};
    use super::{Output, server};

    const SOON: Duration = Duration::from_secs(20);

    /// A server at a socket like QEMU's, which serves one connection after another and writes garbage first.
    fn serve(dir: &Path, boots: &[&str]) -> PathBuf {
        let path = dir.join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let boots: Vec<String> = boots.iter().map(|&name| name.to_owned()).collect();
        std::thread::spawn(move || {
            let mut servers = std::collections::HashMap::new();
            for boot in boots {
                let (mut stream, _) = listener.accept().unwrap();
                stream.write_all(b"\x00\xffgarbage, then half a ~dm1 0011").unwrap();
                let server = servers.entry(boot.clone()).or_insert_with(|| server::Server::new(boot));
                server.serve(stream.try_clone().unwrap(), stream).unwrap();
            }
        });
        path
    }

    fn client(path: &Path) -> Client {
        let mut client = Client::new(path);
        client.connect(SOON).unwrap();
        client
    }

    fn wait(client: &mut Client, request: Request) -> anyhow::Result<Output> {
        let deadline = Instant::now() + SOON;
        loop {
            assert!(Instant::now() < deadline, "no answer");
            if let Some(output) = client.poll(request)? {
                return Ok(output);
            }
        }
    }

    fn run(client: &mut Client, command: &str) -> Output {
        let request = client.send(command, SOON).unwrap();
        wait(client, request).unwrap()
    }

    #[test]
    fn commands_run_and_are_answered() {
        let dir = tempfile::tempdir().unwrap();
        let mut client = client(&serve(dir.path(), &["boot"]));
        let output = run(&mut client, "echo out; echo \"err: ü\" >&2; exit 3");
        assert_eq!((output.status, output.stdout.as_str(), output.stderr.as_str()), (3, "out\n", "err: ü\n"));
        assert_eq!(run(&mut client, "kill -9 $$").status, 128 + 9);
        assert_eq!(run(&mut client, "head -c 300000 /dev/zero | tr '\\0' x").stdout.len(), 300_000);
    }

    #[test]
    fn a_request_outlives_its_connection_and_runs_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut client = client(&serve(dir.path(), &["boot", "boot"]));
        let file = dir.path().join("runs");
        let request = client.send(&format!("sleep 0.4; echo run >>{}", file.display()), SOON).unwrap();
        // The command must have been taken before the line is cut.
        run(&mut client, "true");
        client.disconnect();
        client.connect(SOON).unwrap();
        assert_eq!(wait(&mut client, request).unwrap().status, 0);
        assert_eq!(std::fs::read_to_string(file).unwrap(), "run\n");
    }

    #[test]
    fn another_boot_is_recognised_and_runs_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut client = client(&serve(dir.path(), &["first", "second"]));
        let file = dir.path().join("runs");
        let request = client.send(&format!("echo run >>{}; sleep 60", file.display()), SOON).unwrap();
        run(&mut client, "true");
        client.disconnect();
        client.connect(SOON).unwrap();
        let error = wait(&mut client, request).unwrap_err().to_string();
        assert!(error.contains("first") && error.contains("second"), "{error}");
        assert_eq!(run(&mut client, "echo another").stdout, "another\n");
        assert_eq!(std::fs::read_to_string(file).unwrap(), "run\n");
    }

    #[test]
    fn a_running_command_is_not_answered_yet_and_a_silent_guest_never() {
        let dir = tempfile::tempdir().unwrap();
        let mut client = client(&serve(dir.path(), &["boot"]));
        let request = client.send("sleep 60", SOON).unwrap();
        assert_eq!(client.poll(request).unwrap(), None);
        let silent = dir.path().join("silent");
        let _listener = UnixListener::bind(&silent).unwrap();
        let error = self::client(&silent).send("true", Duration::from_millis(300)).unwrap_err().to_string();
        assert!(error.contains("nobody answers"), "{error}");
    }
}
