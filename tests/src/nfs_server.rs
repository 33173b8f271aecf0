//! A real NFS server on the host, nfs-ganesha, which guests reach too. There can be one at a time: NFS has a port.

use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::nbd_server::HOST;

/// The ports of rpcbind and of NFS.
const RPCBIND: u16 = 111;
const NFS: u16 = 2049;

/// Which version is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// Version 3 alone.
    Three,
    /// Version 4 alone, 4.1 and 4.2.
    Four,
}

/// A server, which ends with this.
#[derive(Debug)]
pub struct Server {
    child: Child,
    rpcbind: Option<Child>,
    directory: tempfile::TempDir,
}

impl Server {
    /// Exports an empty directory.
    ///
    /// # Errors
    /// Fails where a program is missing, or another server has the port.
    pub fn start(version: Version) -> Result<Server> {
        let directory = tempfile::tempdir().context("a directory to export")?;
        let rpcbind = if listens(RPCBIND) { None } else { Some(rpcbind()?) };
        let child = ganesha(directory.path(), version)?;
        Ok(Server { child, rpcbind, directory })
    }

    /// Ends it, and serves the same directory by another version.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn start_again(&mut self, version: Version) -> Result<()> {
        self.stop();
        self.child = ganesha(self.directory.path(), version)?;
        Ok(())
    }

    /// Ends it, with all connections.
    pub fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// What is exported, on the host.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A file in it, for a guest.
    #[must_use]
    pub fn url_for_guest(&self, name: &str) -> String {
        format!("nfs://{HOST}{}/{name}", self.directory.path().display())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        if let Some(rpcbind) = &mut self.rpcbind {
            let _ = rpcbind.kill();
            let _ = rpcbind.wait();
        }
    }
}

fn listens(port: u16) -> bool {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
}

fn wait_for(port: u16, is_up: bool, what: &str) -> Result<()> {
    let began = Instant::now();
    while listens(port) != is_up {
        ensure!(began.elapsed() < Duration::from_secs(60), "{what}: port {port}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn rpcbind() -> Result<Child> {
    let mut rpcbind = Command::new("/usr/sbin/rpcbind");
    let child = rpcbind.args(["-f", "-s"]).stdin(Stdio::null()).stderr(Stdio::null()).spawn();
    let child = child.context("rpcbind cannot be started; scripts/test installs it")?;
    wait_for(RPCBIND, true, "rpcbind does not listen")?;
    Ok(child)
}

fn ganesha(directory: &Path, version: Version) -> Result<Child> {
    wait_for(NFS, false, "another server has the port")?;
    let versions = match version {
        Version::Three => "3",
        Version::Four => "4",
    };
    let own = directory.with_extension("ganesha");
    std::fs::create_dir_all(&own).context("a directory for ganesha")?;
    let config = format!(
        "NFS_CORE_PARAM {{ Protocols = {versions}; Bind_addr = {localhost}; NFS_Port = {NFS}; MNT_Port = 20048; \
         Enable_NLM = false; Enable_RQUOTA = false; Enable_UDP = false; }}\n\
         NFSv4 {{ Graceless = true; RecoveryBackend = fs; RecoveryRoot = {own}; Minor_Versions = 1, 2; }}\n\
         EXPORT {{ Export_Id = 1; Path = {directory}; Pseudo = {directory}; Access_Type = RW; \
         Squash = No_Root_Squash; Protocols = {versions}; Transports = TCP; SecType = sys; PrivilegedPort = false; \
         FSAL {{ Name = VFS; }} }}\n",
        localhost = Ipv4Addr::LOCALHOST,
        own = own.display(),
        directory = directory.display(),
    );
    let file = own.join("ganesha.conf");
    std::fs::write(&file, config).context("ganesha's configuration")?;
    let mut ganesha = Command::new("ganesha.nfsd");
    ganesha.arg("-F").arg("-f").arg(&file).arg("-L").arg(own.join("log")).arg("-p").arg(own.join("pid"));
    let child = ganesha.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let child = child.context("ganesha.nfsd cannot be started; scripts/test installs it")?;
    wait_for(NFS, true, "ganesha does not listen")?;
    Ok(child)
}
