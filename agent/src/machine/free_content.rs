//! What a kernel expects of the pages that its allocator holds free, which decides what becomes of them.
//!
//! Most kernels expect nothing: they write a page before they read it, or zero it when they hand it out. Two options
//! change that (Linux 6.12, mm/page_alloc.c `post_alloc_hook`, mm/mm_init.c `mem_debugging_and_hardening_init`):
//!
//! - `init_on_free`: pages are zeroed when they are freed, and therefore not when they are handed out.
//! - `page_poison`: pages are filled with a pattern when they are freed, which is compared when they are handed out.

use dormouse_linux::kernel_args::arguments;
use dormouse_linux::kernel_config::KernelConfig;

/// What a kernel expects to find in a page that it held free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FreeContent {
    /// Nothing: what is in it does not matter.
    Anything,
    /// Zeroes; or it is not known what, and zeroes leak nothing.
    Zero,
    /// A pattern, which only the page as it was surely has.
    Pattern,
}

impl FreeContent {
    /// What the running kernel expects. `cmdline` is its command line, `release` its release as `uname -r` prints it.
    #[must_use]
    pub fn of_running_kernel(cmdline: &str, release: &str) -> FreeContent {
        FreeContent::new(cmdline, || KernelConfig::of_running(release))
    }

    /// What a kernel with this command line expects; `configuration` is asked for its configuration where that decides.
    fn new(cmdline: &str, configuration: impl FnOnce() -> Option<KernelConfig>) -> FreeContent {
        // On x86 `debug_pagealloc` unmaps pages and does not fill them; other kernels fill them
        // (`__kernel_map_pages`). Debugging memory leaves time to store every page.
        if ["page_poison", "debug_pagealloc"].iter().any(|name| switch(cmdline, name) == Some(true)) {
            return FreeContent::Pattern;
        }
        // A configuration that does not mention the option leaves it unknown: `None`.
        let configured = || configuration()?.has("INIT_ON_FREE_DEFAULT_ON");
        let zeroed = switch(cmdline, "init_on_free").or_else(configured);
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

/// How many pages the kernel's page allocator holds free now; 0 if it does not report it.
#[must_use]
pub fn free_pages() -> u64 {
    let text = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("nr_free_pages "));
    line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// Whether the kernel's switch `name` is on, if the command line has it. The last one holds, and one that is not surely
/// off is on: kernels differ in what they read as off (`kstrtobool`, lib/kstrtox.c: `f` is new in 6.3).
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

#[cfg(test)]
mod tests {
    use super::*;

    const OFF: &str = "CONFIG_X=y\n# CONFIG_INIT_ON_FREE_DEFAULT_ON is not set\n";
    const ON: &str = "CONFIG_X=y\nCONFIG_INIT_ON_FREE_DEFAULT_ON=y\n";

    fn expects(cmdline: &str, config: Option<&str>) -> FreeContent {
        FreeContent::new(cmdline, || config.map(KernelConfig::new))
    }

    #[test]
    fn the_configuration_decides_where_the_command_line_says_nothing() {
        assert_eq!(expects("quiet", Some(OFF)), FreeContent::Anything);
        assert_eq!(expects("quiet", Some(ON)), FreeContent::Zero);
        // A configuration that does not mention it is as good as none.
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
}
