//! Where orders come from. The loader has put an order into an archive before this kernel's initramfs, and the rest is
//! on the command line. A kernel that was told to wait finds its next one in A's memory.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use dormouse_image::SessionRecord;
use zeroize::Zeroizing;

use crate::handoff::arguments::LoaderArguments;
use crate::handoff::order::{self, Order};
use crate::memory::next_order;

/// This kernel's orders.
#[derive(Debug)]
pub(super) struct Inbox {
    arguments: LoaderArguments,
    file: PathBuf,
    /// Where the next order is to be found that is in no file.
    session: Option<SessionRecord>,
}

impl Inbox {
    /// That of the kernel with this command line. Never fails, so that the way back is known before anything can go
    /// wrong.
    pub(super) fn new(cmdline: &str) -> Inbox {
        Inbox { arguments: LoaderArguments::parse(cmdline), file: Path::new("/").join(order::FILE), session: None }
    }

    /// What the loader wrote beside the order. Known whatever is wrong with the order.
    pub(super) fn arguments(&self) -> LoaderArguments {
        self.arguments
    }

    /// Has the next order come through the memory of `session`, which has told this kernel to wait.
    pub(super) fn expect(&mut self, session: SessionRecord) {
        self.session = Some(session);
    }

    /// Takes the next order. It is taken once: nothing is left of it in the filesystem, or in A's memory.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub(super) fn next(&mut self) -> anyhow::Result<Order> {
        if let Some(session) = self.session.take() {
            return Order::decode(&next_order::take(&session)?).context("the next order");
        }
        let path = self.file.display();
        let bytes = match fs::read(&self.file) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                bail!("{path}: no order; this initramfs is started by `dormouse`, not by a boot loader")
            }
            // A key may be in it.
            result => Zeroizing::new(result.with_context(|| format!("{path}: cannot read the order"))?),
        };
        erase(&self.file, bytes.len()).with_context(|| format!("{path}: cannot remove the order"))?;
        Order::decode(&bytes).with_context(|| format!("{path}"))
    }
}

/// Removes a file of `len` bytes from memory: without the zeroes its content would stay in free pages.
fn erase(path: &Path, len: usize) -> std::io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(&vec![0; len])?;
    fs::remove_file(path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::handoff::order::tests::{restore_order, save_order};

    #[test]
    fn takes_an_order_once() {
        let directory = tempfile::tempdir().unwrap();
        let mut inbox = Inbox { file: directory.path().join("order"), ..Inbox::new("dormouse.bridge=0x8ff0000") };
        for order in [Order::Save(Box::new(save_order())), Order::Restore(restore_order())] {
            fs::write(&inbox.file, order.encode().unwrap()).unwrap();
            assert_eq!(inbox.next().unwrap(), order);
            assert!(!inbox.file.exists());
            assert!(inbox.next().unwrap_err().to_string().contains("not by a boot loader"));
        }
    }

    #[test]
    fn broken_order_is_removed_and_leaves_the_way_back() {
        let directory = tempfile::tempdir().unwrap();
        let line = "quiet dormouse.bridge=0x8ff0000 dormouse.entry=0x000000002f1e3050";
        let mut inbox = Inbox { file: directory.path().join("order"), ..Inbox::new(line) };
        fs::write(&inbox.file, b"nonsense").unwrap();
        let error = inbox.next().unwrap_err();
        assert!(error.downcast_ref::<dormouse_image::FormatError>().is_some(), "{error:?}");
        assert!(!inbox.file.exists());
        assert_eq!(inbox.arguments().way_back().map(|way| way.entry), Some(0x2f1e_3050));
    }

    #[test]
    fn content_is_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let (path, link) = (directory.path().join("order"), directory.path().join("link"));
        fs::write(&path, b"secret").unwrap();
        fs::hard_link(&path, &link).unwrap();
        erase(&path, 6).unwrap();
        assert!(!path.exists());
        assert_eq!(fs::read(link).unwrap(), [0; 6]);
    }
}
