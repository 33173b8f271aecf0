//! What a kernel expects of the pages that its allocator holds free, which decides what becomes of them.
//!
//! Most kernels expect nothing: they write a page before they read it, or zero it when they hand it out. Two options
//! change that (Linux 6.12, mm/page_alloc.c `post_alloc_hook`, mm/mm_init.c `mem_debugging_and_hardening_init`):
//!
//! - `init_on_free`: pages are zeroed when they are freed, and therefore not when they are handed out.
//! - `page_poison`: pages are filled with a pattern when they are freed, which is compared when they are handed out.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;

use crate::cmdline::arguments;

/// The longest configuration that is read, in bytes. Those of distributions have 300 KB.
const CONFIG_MAX: u64 = 16 << 20;

/// What a kernel expects to find in a page that it held free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FreeContent {
    /// Nothing: what is in it does not matter.
    Anything,
    /// Zeroes; or it is not known what, and zeroes are what leaks nothing.
    Zero,
    /// A pattern, which only the page as it was surely has.
    Pattern,
}

impl FreeContent {
    /// What the running kernel expects, whose command line is `cmdline` and whose release, as `uname -r` has it, `release`.
    #[must_use]
    pub fn of_running_kernel(cmdline: &str, release: &str) -> FreeContent {
        FreeContent::new(cmdline, || configuration(&places(release)))
    }

    /// What a kernel with this command line expects; `configuration` is asked for its configuration where that decides.
    fn new(cmdline: &str, configuration: impl FnOnce() -> Option<String>) -> FreeContent {
        // On x86 `debug_pagealloc` unmaps pages and does not fill them; other kernels fill them (`__kernel_map_pages`). Who
        // debugs memory has time to store every page.
        if ["page_poison", "debug_pagealloc"].iter().any(|name| switch(cmdline, name) == Some(true)) {
            return FreeContent::Pattern;
        }
        let zeroed = switch(cmdline, "init_on_free").or_else(|| {
            let text = configuration()?;
            // Without a word of the option nothing is known: `None`.
            text.lines().find_map(|line| match line.trim() {
                "CONFIG_INIT_ON_FREE_DEFAULT_ON=y" => Some(true),
                "# CONFIG_INIT_ON_FREE_DEFAULT_ON is not set" => Some(false),
                _ => None,
            })
        });
        if zeroed == Some(false) { FreeContent::Anything } else { FreeContent::Zero }
    }

    /// The number that it is passed on as; never 0.
    #[must_use]
    pub fn code(self) -> u64 {
        match self {
            FreeContent::Anything => 1,
            FreeContent::Zero => 2,
            FreeContent::Pattern => 3,
        }
    }

    /// From that number.
    #[must_use]
    pub fn from_code(code: u64) -> Option<FreeContent> {
        [FreeContent::Anything, FreeContent::Zero, FreeContent::Pattern]
            .into_iter()
            .find(|content| content.code() == code)
    }
}

/// Whether the kernel's switch `name` is on, where the command line has it. The last one holds, and what is not surely off
/// is on: kernels differ in what they read as off (`kstrtobool`, lib/kstrtox.c: `f` is new in 6.3).
fn switch(cmdline: &str, name: &str) -> Option<bool> {
    let last = arguments(cmdline)
        .take_while(|argument| argument.name != "--")
        // The kernel takes dashes for underscores (kernel/params.c, `parameq`).
        .filter(|argument| argument.name.replace('-', "_") == name)
        .last()?;
    let mut letters = last.value.unwrap_or_default().chars().map(|letter| letter.to_ascii_lowercase());
    let off = match letters.next() {
        Some('0' | 'n') => true,
        Some('o') => letters.next() == Some('f'),
        _ => false,
    };
    Some(!off)
}

/// Where the configuration of the kernel with this release may be, the most trustworthy first.
fn places(release: &str) -> [PathBuf; 3] {
    [
        PathBuf::from("/proc/config.gz"),
        PathBuf::from(format!("/boot/config-{release}")),
        PathBuf::from(format!("/lib/modules/{release}/config")),
    ]
}

/// The text of the first of `places` that exists. One that exists and cannot be read is as good as none.
fn configuration(places: &[PathBuf]) -> Option<String> {
    let path = places.iter().find(|path| path.exists())?;
    read(path).map_err(|error| log::warn!("{}: {error}; free pages are restored as zeroes", path.display())).ok()
}

fn read(path: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    let mut text = String::new();
    if path.extension().is_some_and(|extension| extension == "gz") {
        GzDecoder::new(file).take(CONFIG_MAX).read_to_string(&mut text)?;
    } else {
        file.take(CONFIG_MAX).read_to_string(&mut text)?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;

    use super::*;

    const OFF: &str = "CONFIG_X=y\n# CONFIG_INIT_ON_FREE_DEFAULT_ON is not set\n";
    const ON: &str = "CONFIG_X=y\nCONFIG_INIT_ON_FREE_DEFAULT_ON=y\n";

    fn expects(cmdline: &str, config: Option<&str>) -> FreeContent {
        FreeContent::new(cmdline, || config.map(str::to_owned))
    }

    #[test]
    fn the_configuration_decides_where_the_command_line_says_nothing() {
        assert_eq!(expects("quiet", Some(OFF)), FreeContent::Anything);
        assert_eq!(expects("quiet", Some(ON)), FreeContent::Zero);
        // Neither a configuration nor one that has no word of it tells anything.
        assert_eq!(expects("quiet", Some("CONFIG_INIT_ON_FREE_DEFAULT_ONLY=y\n")), FreeContent::Zero);
        assert_eq!(expects("quiet", None), FreeContent::Zero);
    }

    #[test]
    fn the_command_line_decides_before_the_configuration() {
        for off in ["0", "n", "N", "no", "off", "OFF", "0x", "\"off\""] {
            assert_eq!(expects(&format!("a init_on_free={off} b"), Some(ON)), FreeContent::Anything, "{off}");
            assert_eq!(expects(&format!("init-on-free={off}"), None), FreeContent::Anything, "{off}");
        }
        for on in ["=1", "=y", "=Y", "=on", "=true", "=f", "=o", "=", "", "=maybe"] {
            assert_eq!(expects(&format!("init_on_free{on}"), Some(OFF)), FreeContent::Zero, "{on}");
        }
        assert_eq!(expects("init_on_free=0 init_on_free=1", Some(OFF)), FreeContent::Zero);
        assert_eq!(expects("init_on_free=1 init_on_free=0", Some(ON)), FreeContent::Anything);
        // What follows `--` is not the kernel's.
        assert_eq!(expects("init_on_free=1 -- init_on_free=0", Some(OFF)), FreeContent::Zero);
        assert_eq!(expects("xinit_on_free=1 init_on_freedom=1", Some(OFF)), FreeContent::Anything);
    }

    #[test]
    fn a_kernel_that_checks_a_pattern_is_recognised() {
        for line in ["page_poison=1", "page_poison=on", "page-poison=Y", "page_poison", "debug_pagealloc=on"] {
            assert_eq!(expects(line, Some(OFF)), FreeContent::Pattern, "{line}");
            assert_eq!(expects(&format!("init_on_free=0 {line}"), Some(OFF)), FreeContent::Pattern, "{line}");
        }
        for line in ["page_poison=0", "page_poison=off debug_pagealloc=off", "page_poison=1 page_poison=n"] {
            assert_eq!(expects(line, Some(OFF)), FreeContent::Anything, "{line}");
        }
    }

    #[test]
    fn it_is_passed_on_as_a_number() {
        for content in [FreeContent::Anything, FreeContent::Zero, FreeContent::Pattern] {
            assert_eq!(FreeContent::from_code(content.code()), Some(content));
        }
        assert!([0, 4, u64::MAX].iter().all(|code| FreeContent::from_code(*code).is_none()));
    }

    #[test]
    fn the_first_configuration_that_exists_is_read_plain_or_compressed() {
        let folder = tempfile::tempdir().unwrap();
        let [missing, packed, plain] = ["missing", "config.gz", "config"].map(|name| folder.path().join(name));
        let mut gzip = flate2::write::GzEncoder::new(File::create(&packed).unwrap(), flate2::Compression::fast());
        gzip.write_all(ON.as_bytes()).unwrap();
        gzip.finish().unwrap();
        std::fs::write(&plain, OFF).unwrap();
        assert_eq!(configuration(&[missing.clone(), packed.clone(), plain.clone()]).unwrap(), ON);
        assert_eq!(configuration(&[missing.clone(), plain.clone(), packed.clone()]).unwrap(), OFF);
        // A damaged one does not let the next one decide: it is more trustworthy than that.
        std::fs::write(&packed, b"\x1f\x8bnonsense").unwrap();
        assert_eq!(configuration(&[packed, plain]), None);
        assert_eq!(configuration(&[missing]), None);
        assert_eq!(places("6.1")[1], Path::new("/boot/config-6.1"));
    }
}
