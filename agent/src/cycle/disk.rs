//! The disk that this boot's initramfs looks for the image on. The policy of the running system seldom names it: each
//! initramfs records it when it is built, and the boot leaves it where the running system finds it.

use std::path::Path;
use std::time::Duration;

use dormouse_linux::atomic_file::replace;
use dormouse_linux::disk::DiskIdentity;
use dormouse_linux::procfs;

use crate::cycle::last::DIRECTORY;
use crate::policy::Policy;
use crate::store::Access;
use crate::target::{self, IfFile, Opened, Opening, TargetError};

const NAME: &str = "disk";

/// Leaves it for the running system. A system without a place for it has none.
pub(crate) fn record(policy: &Policy) {
    let Some(disk) = &policy.image.disk else { return };
    if let Err(error) = replace(&Path::new(DIRECTORY).join(NAME), format!("{disk}\n").as_bytes(), 0o644) {
        log::debug!("{DIRECTORY}/{NAME}: {error}");
    }
}

/// Opens the policy's image on the disk that is expected, without waiting. One in a file, whatever the policy calls it,
/// must lie where its label says.
///
/// # Errors
/// As [`target::open_on`].
pub(super) fn open_image(policy: &Policy, access: Access) -> Result<Opened, TargetError> {
    let how = Opening { access, wait: Duration::ZERO, if_file: IfFile::Check };
    target::open_on(&policy.image.device, expected(policy).as_ref(), how)
}

/// What the policy names, or else what this boot's initramfs has recorded; `None` for any disk.
#[must_use]
pub fn expected(policy: &Policy) -> Option<DiskIdentity> {
    let recorded = || procfs::text(Path::new(DIRECTORY).join(NAME)).ok()?.trim_end().parse().ok();
    policy.image.disk.clone().or_else(recorded)
}
