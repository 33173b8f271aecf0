//! A file that a server exports by NFS, as blocks.
//!
//! Its directory is mounted for the moment in which the file is opened, and then only the open file keeps it mounted:
//! nobody finds it in the table of mounts, and it goes with the file. Errors are reported after some tries and not
//! waited out forever, so that a dead server ends in the session.
//!
//! Version 3 comes first: it has no state on the server that a client could lose to another of the same name. Source:
//! nfs(5); fs/nfs/fs_context.c.

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use dormouse_image::{NfsFile, Remote};
use dormouse_linux::network::own_address_towards;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::store::{Access, Blocks, Device, StoreError};

/// Bytes that are written at a time to a new file.
const PIECE: usize = 1 << 20;

/// The file.
#[derive(Debug)]
pub struct Nfs {
    device: Device,
    remote: Remote,
}

/// A directory that is mounted, until this is dropped.
struct Mounted {
    place: PathBuf,
}

impl Nfs {
    /// The kernel modules of the client: a kernel needs one of them.
    pub(crate) const MODULES: [&'static str; 2] = ["nfsv3", "nfsv4"];

    /// Opens it.
    ///
    /// # Errors
    /// [`StoreError::Open`]: the server cannot be reached, or does not let it be opened.
    pub fn open(file: &NfsFile, access: Access) -> Result<Nfs, StoreError> {
        let name = file.to_string();
        let failed = |source| StoreError::Open { name: name.clone(), source };
        let mounted = Mounted::new(file).map_err(failed)?;
        let device = Device::open(&mounted.place.join(file.directory_and_name().1), access);
        let device = device.map_err(|error| match error {
            StoreError::Open { source, .. } => failed(source),
            other => other,
        })?;
        drop(mounted);
        Ok(Nfs { device: device.named(Path::new(&name)), remote: Remote::Nfs(file.clone()) })
    }

    /// Makes it, with `size` bytes that are zero and have their room.
    ///
    /// # Errors
    /// It is there already, or the server does not take it. Then nothing is left of it.
    pub fn create(file: &NfsFile, size: u64) -> io::Result<()> {
        let mounted = Mounted::new(file)?;
        let path = mounted.place.join(file.directory_and_name().1);
        let made = File::create_new(&path)?;
        let zeroes = vec![0; PIECE];
        let fill = || -> io::Result<()> {
            let mut at = 0;
            while at < size {
                let len = (size - at).min(PIECE as u64);
                std::os::unix::fs::FileExt::write_all_at(&made, &zeroes[..usize::try_from(len).unwrap_or(PIECE)], at)?;
                at += len;
            }
            made.sync_all()
        };
        fill().inspect_err(|_| {
            let _ = fs::remove_file(&path);
        })
    }
}

impl Mounted {
    fn new(file: &NfsFile) -> io::Result<Mounted> {
        let place = PathBuf::from(format!("/run/dormouse-nfs.{}", std::process::id()));
        match fs::DirBuilder::new().mode(0o700).create(&place) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let exported = format!("{}:{}", file.host(), file.directory_and_name().0);
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let mut last = io::Error::from(Errno::ENODEV);
        for options in options(file.server)? {
            match mount(Some(exported.as_str()), &place, Some("nfs"), flags, Some(options.as_str())) {
                Ok(()) => return Ok(Mounted { place }),
                Err(error) => {
                    log::debug!("{exported} with {options}: {error}");
                    last = reason(error);
                }
            }
        }
        let _ = fs::remove_dir(&place);
        Err(last)
    }
}

impl Drop for Mounted {
    /// What is open in it stays mounted.
    fn drop(&mut self) {
        let _ = umount2(&self.place, MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(&self.place);
    }
}

/// What the kernel is told, one after the other until a server takes it.
///
/// Version 4.1 comes before 4.2, which reads by READ_PLUS: what nfs-ganesha 4.3 answers to that, Linux 6.12 takes for
/// an error (seen).
fn options(server: IpAddr) -> io::Result<[String; 3]> {
    // What version 4 is called back at.
    let own = own_address_towards(SocketAddr::new(server, NfsFile::PORT))?;
    let common = format!("addr={server},proto=tcp,softerr,timeo=100,retrans=2");
    Ok([
        format!("vers=3,{common},mountaddr={server},mountproto=tcp,nolock"),
        format!("vers=4.1,{common},clientaddr={own}"),
        format!("vers=4.2,{common},clientaddr={own}"),
    ])
}

/// An errno of mount(2) in the words of what it means here.
fn reason(error: Errno) -> io::Error {
    match error {
        Errno::ENODEV => io::Error::other("this kernel has no client for NFS (the modules nfs, nfsv3, nfsv4)"),
        Errno::EACCES | Errno::EPERM => {
            io::Error::new(io::ErrorKind::PermissionDenied, "the server does not export it to this machine")
        }
        Errno::ENOENT => io::Error::new(io::ErrorKind::NotFound, "the server has no such directory"),
        error => error.into(),
    }
}

impl Blocks for Nfs {
    fn name(&self) -> &str {
        self.device.name()
    }

    fn size(&self) -> u64 {
        self.device.size()
    }

    fn origin(&self) -> Option<u64> {
        Some(0)
    }

    fn remote(&self) -> Option<&Remote> {
        Some(&self.remote)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.device.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.device.write_at(offset, bytes)
    }

    fn clear_at(&self, offset: u64, len: usize) -> io::Result<()> {
        self.device.clear_at(offset, len)
    }

    fn flush(&self) -> io::Result<()> {
        self.device.flush()
    }
}
