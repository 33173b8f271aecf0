//! What the kernel has logged since a moment.
//!
//! The records are those of `/dev/kmsg` (Linux 6.12, Documentation/ABI/testing/dev-kmsg).

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::libc;

/// More than a record has, escaped and with its dictionary (`PRINTK_MESSAGE_MAX`, kernel/printk/internal.h).
const RECORD_MAX: usize = 16 << 10;
/// The most lines that are read: a log that is written without an end is not followed.
const LINES_MAX: usize = 20_000;

/// A moment in the kernel's log.
#[derive(Debug)]
pub struct Mark {
    /// Nothing where the log cannot be read.
    log: Option<File>,
}

impl Mark {
    /// Now.
    #[must_use]
    pub fn now() -> Mark {
        let open = || -> io::Result<File> {
            let mut log = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg")?;
            log.seek(SeekFrom::End(0))?;
            Ok(log)
        };
        Mark { log: open().ok() }
    }

    /// The lines that the kernel itself has logged since then, or since this was called last.
    pub fn lines(&mut self) -> Vec<String> {
        self.log.as_mut().map(read).unwrap_or_default()
    }
}

fn read(log: &mut impl Read) -> Vec<String> {
    let mut lines = Vec::new();
    let mut record = vec![0; RECORD_MAX];
    for _ in 0..LINES_MAX {
        match log.read(&mut record) {
            Ok(0) => break,
            Ok(length) => lines.extend(kernels_own(&String::from_utf8_lossy(&record[..length]))),
            // Records that were overwritten before they were read.
            Err(error) if error.raw_os_error() == Some(Errno::EPIPE as i32) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // There are no more.
            Err(_) => break,
        }
    }
    lines
}

/// The text of a record, unless a program has written it.
fn kernels_own(record: &str) -> Option<String> {
    let (prefix, rest) = record.split_once(';')?;
    let priority: u32 = prefix.split(',').next()?.parse().ok()?;
    // Above the three bits of the level is the facility: the kernel's is 0 (LOG_FACILITY, kernel/printk/printk.c).
    (priority >> 3 == 0).then(|| rest.lines().next().unwrap_or_default().trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log that gives a record at each read, or an error, and then would block.
    struct Records(Vec<Result<&'static str, Errno>>);

    impl Read for Records {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Err(Errno::EAGAIN.into());
            }
            let text = self.0.remove(0)?;
            buffer[..text.len()].copy_from_slice(text.as_bytes());
            Ok(text.len())
        }
    }

    #[test]
    fn reads_the_kernels_own_lines() {
        let mut log = Records(vec![
            Ok("6,339,5140900,-;NET: Registered\n SUBSYSTEM=x\n DEVICE=+y\n"),
            Err(Errno::EPIPE),
            Ok("12,340,5140901,-;systemd[1]: a program's\n"),
            Ok("3,341,5140902,-;virtio_mem virtio2: hibernation is not supported.\n"),
        ]);
        assert_eq!(read(&mut log), ["NET: Registered", "virtio_mem virtio2: hibernation is not supported."]);
        assert!(read(&mut log).is_empty());
    }

    #[test]
    fn ignores_what_is_no_record() {
        assert_eq!(kernels_own("x,1,2,-;text"), None);
        assert_eq!(kernels_own("text"), None);
        assert_eq!(kernels_own("3,1,2,-;").as_deref(), Some(""));
    }
}
