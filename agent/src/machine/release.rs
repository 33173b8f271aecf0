//! The one thing that is decided by a kernel's version.

/// Whether a kernel with this release, as `uname -r` gives it, survives being returned to.
///
/// Kernels before Linux kernel commit 07fa619f2a40 ("x86/kexec: Restore GDT on return from ::preserve_context kexec",
/// in v6.13 and v6.12.5) do not load their descriptor table again on the way back, and hang: the session would be lost.
/// There is no way to ask a kernel for it, hence the one version check of this program.
#[must_use]
pub fn can_be_returned_to(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse::<u32>().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    let version = (next(), next(), next());
    version >= (6, 12, 5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_before_the_fix_are_known_by_their_version() {
        for release in ["6.12.5", "6.12.117", "6.13.0-rc1", "7.0.1-arch1-1", "6.14"] {
            assert!(can_be_returned_to(release), "{release}");
        }
        for release in ["6.12.4", "6.12.0-55.el10", "6.1.0-30-amd64", "5.15.0", "6.12", "custom"] {
            assert!(!can_be_returned_to(release), "{release}");
        }
    }
}
