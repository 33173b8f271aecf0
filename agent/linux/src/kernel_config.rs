//! The configuration that a kernel was built with, where its distribution or the kernel itself keeps it.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;

/// What B and D need of their kernel's configuration.
pub const SAVE_KERNEL: [&str; 8] =
    ["KEXEC", "CRASH_DUMP", "PROC_VMCORE", "DEVMEM", "DEVTMPFS", "RELOCATABLE", "BLK_DEV_INITRD", "RD_ZSTD"];

/// The longest configuration that is read, in bytes. Those of distributions have 300 KB.
const MAX: u64 = 16 << 20;

/// The text of a kernel's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelConfig(String);

impl KernelConfig {
    /// A configuration from its text.
    #[must_use]
    pub fn new(text: impl Into<String>) -> KernelConfig {
        KernelConfig(text.into())
    }

    /// The configuration of the running kernel, whose release, as `uname -r` has it, is `release`.
    #[must_use]
    pub fn of_running(release: &str) -> Option<KernelConfig> {
        let [boot, modules] = places(release);
        first(&[PathBuf::from("/proc/config.gz"), boot, modules])
    }

    /// The configuration of an installed kernel.
    #[must_use]
    pub fn of_installed(release: &str) -> Option<KernelConfig> {
        first(&places(release))
    }

    /// What it lacks of [`SAVE_KERNEL`]. D needs no `/dev/mem` where Dormouse's module is there for it, and its
    /// `/dev/oldmem`.
    pub fn lacking(&self, has_module: bool) -> impl Iterator<Item = &'static str> {
        let is_needed = move |option: &&str| !(has_module && *option == "DEVMEM");
        SAVE_KERNEL.into_iter().filter(is_needed).filter(|option| self.has(option) != Some(true))
    }

    /// Its text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.0
    }

    /// Whether it has `option` (without `CONFIG_`), built in or as a module; `None` if it does not mention it.
    #[must_use]
    pub fn has(&self, option: &str) -> Option<bool> {
        self.0.lines().find_map(|line| {
            let line = line.trim();
            if let Some(name) = line.strip_prefix("# CONFIG_").and_then(|rest| rest.strip_suffix(" is not set")) {
                return (name == option).then_some(false);
            }
            let (name, value) = line.strip_prefix("CONFIG_")?.split_once('=')?;
            (name == option).then_some(matches!(value, "y" | "m"))
        })
    }
}

/// Where the configuration of the kernel with this release may be, as its distribution installs it.
fn places(release: &str) -> [PathBuf; 2] {
    [PathBuf::from(format!("/boot/config-{release}")), PathBuf::from(format!("/lib/modules/{release}/config"))]
}

/// The first of `places` that exists, the most trustworthy first. One that exists and cannot be read is as good as
/// none.
fn first(places: &[PathBuf]) -> Option<KernelConfig> {
    let path = places.iter().find(|path| path.exists())?;
    read(path).map_err(|error| log::warn!("{}: {error}", path.display())).ok().map(KernelConfig)
}

fn read(path: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    let mut text = String::new();
    if path.extension().is_some_and(|extension| extension == "gz") {
        GzDecoder::new(file).take(MAX).read_to_string(&mut text)?;
    } else {
        file.take(MAX).read_to_string(&mut text)?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;

    use super::*;

    const OFF: &str = "CONFIG_X=y\n# CONFIG_KEXEC_JUMP is not set\n";
    const ON: &str = "CONFIG_X=m\nCONFIG_KEXEC_JUMP=y\n";

    #[test]
    fn an_option_is_on_off_or_not_mentioned() {
        let (on, off) = (KernelConfig::new(ON), KernelConfig::new(OFF));
        assert_eq!((on.has("KEXEC_JUMP"), off.has("KEXEC_JUMP")), (Some(true), Some(false)));
        assert_eq!((on.has("X"), on.has("KEXEC"), off.has("KEXEC_JUMPER")), (Some(true), None, None));
        assert_eq!(KernelConfig::new("CONFIG_HZ=250\nCONFIG_V=\"y\"\n").has("V"), Some(false));
    }

    #[test]
    fn the_first_configuration_that_exists_is_read_plain_or_compressed() {
        let dir = tempfile::tempdir().unwrap();
        let [missing, packed, plain] = ["missing", "config.gz", "config"].map(|name| dir.path().join(name));
        let mut gzip = flate2::write::GzEncoder::new(File::create(&packed).unwrap(), flate2::Compression::fast());
        gzip.write_all(ON.as_bytes()).unwrap();
        gzip.finish().unwrap();
        std::fs::write(&plain, OFF).unwrap();
        assert_eq!(first(&[missing.clone(), packed.clone(), plain.clone()]).unwrap(), KernelConfig::new(ON));
        assert_eq!(first(&[missing.clone(), plain.clone(), packed.clone()]).unwrap(), KernelConfig::new(OFF));
        // A damaged one does not let the next one decide: it is more trustworthy than that.
        std::fs::write(&packed, b"\x1f\x8bnonsense").unwrap();
        assert_eq!(first(&[packed, plain]), None);
        assert_eq!(first(&[missing]), None);
        assert_eq!(places("6.1")[0], Path::new("/boot/config-6.1"));
    }
}
