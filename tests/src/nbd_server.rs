//! A real NBD server on the host, nbdkit, which guests reach too.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// The host as guests see it, whose link leads there (QEMU's user network).
pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The same by IPv6.
const HOST_V6: Ipv6Addr = Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 2);

/// A server, which ends with this.
#[derive(Debug)]
pub struct Server {
    arguments: Vec<String>,
    child: Child,
    address: SocketAddr,
}

impl Server {
    /// A server on a free port. `arguments` say what is exported.
    ///
    /// # Errors
    /// Fails where nbdkit cannot be started, or does not listen.
    pub fn start(arguments: &[&str]) -> Result<Server> {
        Server::start_at(Ipv4Addr::LOCALHOST.into(), arguments)
    }

    /// The same at an address of the host's.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn start_at(host: IpAddr, arguments: &[&str]) -> Result<Server> {
        // Free a moment ago.
        let address = TcpListener::bind((host, 0))?.local_addr()?;
        let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        Ok(Server { child: spawn(&arguments, address)?, arguments, address })
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
        self.child = spawn(&self.arguments, self.address)?;
        Ok(())
    }

    /// What it exports under this name, for the host.
    #[must_use]
    pub fn url(&self, export: &str) -> String {
        format!("nbd://{}/{export}", self.address)
    }

    /// The same for a guest.
    #[must_use]
    pub fn url_for_guest(&self, export: &str) -> String {
        let mut address = self.address;
        match address.ip() {
            IpAddr::V4(Ipv4Addr::LOCALHOST) => address.set_ip(HOST.into()),
            IpAddr::V6(Ipv6Addr::LOCALHOST) => address.set_ip(HOST_V6.into()),
            _ => {}
        }
        format!("nbd://{address}/{export}")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn spawn(arguments: &[String], address: SocketAddr) -> Result<Child> {
    let mut nbdkit = Command::new("nbdkit");
    nbdkit.args(["--foreground", "--exit-with-parent", "--ipaddr", &address.ip().to_string()]);
    nbdkit.args(["--port", &address.port().to_string()]);
    let child = nbdkit.args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).spawn();
    let child = child.context("nbdkit cannot be started; scripts/test installs it")?;
    let began = Instant::now();
    while TcpStream::connect(address).is_err() {
        ensure!(began.elapsed() < Duration::from_secs(20), "nbdkit {arguments:?} does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(child)
}
