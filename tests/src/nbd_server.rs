//! A real NBD server on the host, nbdkit, which guests reach too.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// The host as guests see it, whose link leads there (QEMU's user network).
pub const HOST: &str = "10.0.2.2";

/// A server, which ends with this.
#[derive(Debug)]
pub struct Server {
    arguments: Vec<String>,
    child: Child,
    port: u16,
}

impl Server {
    /// A server on a free port. `arguments` say what is exported.
    ///
    /// # Errors
    /// Fails where nbdkit cannot be started, or does not listen.
    pub fn start(arguments: &[&str]) -> Result<Server> {
        // Free a moment ago.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        Ok(Server { child: spawn(&arguments, port)?, arguments, port })
    }

    /// Ends it, with all connections.
    pub fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again after it was stopped.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn start_again(&mut self) -> Result<()> {
        self.stop();
        self.child = spawn(&self.arguments, self.port)?;
        Ok(())
    }

    /// What it exports under this name, for the host.
    #[must_use]
    pub fn url(&self, export: &str) -> String {
        format!("nbd://{}:{}/{export}", Ipv4Addr::LOCALHOST, self.port)
    }

    /// The same for a guest.
    #[must_use]
    pub fn url_for_guest(&self, export: &str) -> String {
        format!("nbd://{HOST}:{}/{export}", self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn spawn(arguments: &[String], port: u16) -> Result<Child> {
    let mut nbdkit = Command::new("nbdkit");
    nbdkit.args(["--foreground", "--exit-with-parent", "--ipaddr", "127.0.0.1", "--port", &port.to_string()]);
    let child = nbdkit.args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).spawn();
    let child = child.context("nbdkit cannot be started; scripts/test installs it")?;
    let began = Instant::now();
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        ensure!(began.elapsed() < Duration::from_secs(20), "nbdkit {arguments:?} does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(child)
}
