//! The kernels that are installed.

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// The file of the kernel with this release, where distributions put it.
///
/// # Errors
/// It is in none of these places.
pub fn file_of(root: &Path, release: &str) -> anyhow::Result<PathBuf> {
    let places = ["boot/vmlinuz-RELEASE", "lib/modules/RELEASE/vmlinuz", "usr/lib/modules/RELEASE/vmlinuz"];
    let found = places.iter().map(|place| root.join(place.replace("RELEASE", release))).find(|path| path.exists());
    found.with_context(|| {
        format!(
            "kernel {release} is neither /boot/vmlinuz-{release} nor /lib/modules/{release}/vmlinuz: name a --kernel"
        )
    })
}

/// The releases of the kernels that have both a file and modules, the newest first.
#[must_use]
pub fn releases(root: &Path) -> Vec<String> {
    let entries = fs::read_dir(root.join("lib/modules")).into_iter().flatten().flatten();
    let with_modules = entries.filter(|entry| entry.path().join("modules.dep").is_file());
    let mut releases: Vec<String> = with_modules.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    releases.retain(|release| file_of(root, release).is_ok());
    releases.sort_by(|a, b| compare(b, a));
    releases
}

/// The releases of the kernels that may boot next: those of [`releases`], and those whose file in `/boot` has a release
/// in its name. What only somebody at the boot menu chooses is none of them: Fedora's rescue kernel
/// (51-dracut-rescue.install of dracut) and what an installation has set aside.
#[must_use]
pub fn next(root: &Path) -> Vec<String> {
    let entries = fs::read_dir(root.join("boot")).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let of_file = |name: String| {
        let release = name.strip_prefix("vmlinuz-")?;
        let is_aside = [".old", ".bak", "~"].iter().any(|end| release.ends_with(end)) || release.contains(".dpkg-");
        let is_release = release.starts_with(|first: char| first.is_ascii_digit()) && !release.starts_with("0-rescue");
        (is_release && !is_aside).then(|| release.to_owned())
    };
    let mut all = releases(root);
    all.extend(names.filter_map(of_file));
    all.sort_by(|a, b| compare(b, a));
    all.dedup();
    all
}

/// The initramfs that boots the kernel with this release, where distributions put it.
#[must_use]
pub fn initramfs_of(root: &Path, release: &str) -> Option<PathBuf> {
    // Arch names its files after the package (kernel-install(8) and mkinitcpio's presets both know it from here).
    let package = fs::read_to_string(root.join(format!("usr/lib/modules/{release}/pkgbase")));
    let package = package.as_deref().map_or("linux", str::trim);
    let machine = fs::read_to_string(root.join("etc/machine-id")).unwrap_or_default();
    let machine = machine.trim();
    let mut places = vec![
        format!("boot/initrd.img-{release}"),
        format!("boot/initramfs-{release}.img"),
        format!("boot/initramfs-{package}.img"),
    ];
    if !machine.is_empty() {
        // kernel-install(8): a directory for the machine on the boot or EFI partition.
        let named = |boot: &str| format!("{boot}/{machine}/{release}/initrd");
        places.extend(["boot", "boot/efi", "efi"].map(named));
    }
    places.into_iter().map(|place| root.join(place)).find(|path| path.exists())
}

/// Which of two releases is the older one: numbers count as numbers, so that 6.9 comes before 6.12.
fn compare(a: &str, b: &str) -> Ordering {
    parts(a).cmp(parts(b))
}

/// The numbers of a release and the words between them; a number comes after a word.
fn parts(release: &str) -> impl Iterator<Item = (bool, u64, &str)> {
    let runs = release.as_bytes().chunk_by(|a, b| a.is_ascii_digit() == b.is_ascii_digit());
    runs.map(|run| {
        // Cut at ASCII digits, it is as good UTF-8 as the whole.
        let text = std::str::from_utf8(run).unwrap_or_default();
        text.parse().map_or((false, 0, text), |number| (true, number, ""))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A root with a kernel of each of these releases: with its file in `/boot`, or among its modules.
    fn root(in_boot: &[&str], in_modules: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("boot")).unwrap();
        for release in in_boot.iter().chain(in_modules) {
            let modules = root.path().join("lib/modules").join(release);
            fs::create_dir_all(&modules).unwrap();
            fs::write(modules.join("modules.dep"), "").unwrap();
        }
        for release in in_boot {
            fs::write(root.path().join(format!("boot/vmlinuz-{release}")), "").unwrap();
        }
        for release in in_modules {
            fs::write(root.path().join("lib/modules").join(release).join("vmlinuz"), "").unwrap();
        }
        root
    }

    #[test]
    fn a_kernel_is_found_or_asked_for() {
        let root = root(&["6.1"], &["6.12"]);
        assert_eq!(file_of(root.path(), "6.1").unwrap(), root.path().join("boot/vmlinuz-6.1"));
        assert_eq!(file_of(root.path(), "6.12").unwrap(), root.path().join("lib/modules/6.12/vmlinuz"));
        assert!(file_of(root.path(), "6.13").unwrap_err().to_string().contains("--kernel"));
    }

    #[test]
    fn the_newest_comes_first() {
        let root = root(&["6.9.0-1-amd64", "6.12.9-arch1", "6.12.117", "6.12.117-rt2"], &["6.12.10-200.fc41.x86_64"]);
        fs::create_dir(root.path().join("lib/modules/7.0-removed")).unwrap();
        let expected = ["6.12.117-rt2", "6.12.117", "6.12.10-200.fc41.x86_64", "6.12.9-arch1", "6.9.0-1-amd64"];
        assert_eq!(releases(root.path()), expected);
        assert!(releases(Path::new("/nonexistent")).is_empty());
    }

    #[test]
    fn kernels_that_may_boot_next() {
        let root = root(&["6.1.0-30-amd64"], &["6.12.9-arch1"]);
        for name in [
            "vmlinuz-linux",
            "vmlinuz-0-rescue-0123456789abcdef",
            "vmlinuz-6.12.9-arch1",
            "vmlinuz-6.12.1.old",
            "vmlinuz-6.13.0",
            "vmlinuz-6.13.0.dpkg-bak",
            "initrd.img-6.14",
        ] {
            fs::write(root.path().join("boot").join(name), "").unwrap();
        }
        assert_eq!(next(root.path()), ["6.13.0", "6.12.9-arch1", "6.1.0-30-amd64"]);
        assert!(next(Path::new("/nonexistent")).is_empty());
    }

    #[test]
    fn initramfs_is_found_where_the_distribution_has_it() {
        let found = |files: &[(&str, &str)]| {
            let tree = tempfile::tempdir().unwrap();
            for (path, text) in files {
                let path = tree.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            initramfs_of(tree.path(), "6.12").map(|path| path.strip_prefix(tree.path()).unwrap().to_owned())
        };
        assert_eq!(found(&[]), None);
        assert_eq!(found(&[("boot/initrd.img-6.12", "")]).unwrap(), Path::new("boot/initrd.img-6.12"));
        let arch = [("boot/initramfs-linux-lts.img", ""), ("usr/lib/modules/6.12/pkgbase", "linux-lts\n")];
        assert_eq!(found(&arch).unwrap(), Path::new("boot/initramfs-linux-lts.img"));
        let entry = [("etc/machine-id", "abc\n"), ("efi/abc/6.12/initrd", "")];
        assert_eq!(found(&entry).unwrap(), Path::new("efi/abc/6.12/initrd"));
    }
}
