//! What kernel command lines hold for Dormouse: text to values and back. No I/O; the caller reads `/proc/cmdline`.
//!
//! There are two readers. A boot (C) has what its user typed at the boot loader: [`BootSwitches`]. A kernel that
//! Dormouse started (B, D) has what the loader and its entry stub wrote: [`LoaderArguments`]. All else is in its order.

use std::fmt;

use dormouse_linux::kernel_args::{arguments, join};
use thiserror::Error;

const ENTRY: &str = "dormouse.entry";
const BRIDGE: &str = "dormouse.bridge";

/// What a boot was told about resuming.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BootSwitches {
    /// `dormouse=off`: this boot does not resume.
    pub off: bool,
    /// `noresume`: this boot does not resume, as the kernel's own hibernation has it.
    pub noresume: bool,
    /// The first argument for Dormouse that means nothing. It changes nothing: a slip of the pen must not cost a
    /// session, and a resume is as safe with it as without.
    pub mistake: Option<ArgumentError>,
}

/// An argument for Dormouse that means nothing.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ArgumentError {
    /// `dormouse.` with an unknown name.
    #[error("kernel argument `{0}`: Dormouse has no such argument")]
    Unknown(String),
    /// An argument without the value that it needs.
    #[error("kernel argument `{0}` needs a value")]
    NoValue(String),
    /// `dormouse=` with another word.
    #[error("kernel argument dormouse: `{0}` is none of on, off")]
    Switch(String),
}

impl BootSwitches {
    /// Reads them from a kernel command line. Where one occurs twice, the last one holds, so that what a user types at
    /// the boot loader's prompt overrides what is configured there.
    #[must_use]
    pub fn parse(text: &str) -> BootSwitches {
        let mut switches = BootSwitches::default();
        for argument in arguments(text).take_while(|argument| argument.name != "--") {
            if argument.name == "noresume" {
                switches.noresume = true;
            }
            // A loader's own arguments mean nothing here: they may be left from the kernel before this one.
            if !argument.is_ours() || [ENTRY, BRIDGE].contains(&argument.name) {
                continue;
            }
            let mistake = match (argument.name, argument.value) {
                ("dormouse", Some("on")) => {
                    switches.off = false;
                    continue;
                }
                ("dormouse", Some("off")) => {
                    switches.off = true;
                    continue;
                }
                ("dormouse", Some(word)) => ArgumentError::Switch(word.to_owned()),
                ("dormouse", None) => ArgumentError::NoValue(argument.raw.to_owned()),
                _ => ArgumentError::Unknown(argument.raw.to_owned()),
            };
            switches.mistake.get_or_insert(mistake);
        }
        switches
    }

    /// Whether this boot is not to resume.
    #[must_use]
    pub fn forbids(&self) -> bool {
        self.off || self.noresume
    }
}

/// Where a stopped kernel is re-entered, and from where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WayBack {
    /// Its jump-back entry, a physical address inside its kexec control page.
    pub entry: u64,
    /// The bytes inside the region that are reserved for the bridge, a physical address.
    pub bridge: u64,
}

/// What the loader puts on the command line of a kernel that it starts: what the entry stub must write, and what must
/// be known even if the order is broken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LoaderArguments {
    /// `dormouse.entry=0x<16 digits>`: the jump-back entry of the kernel that was left, written by the entry stub.
    pub entry: Option<u64>,
    /// `dormouse.bridge=0x<address>`: where the bridge's pages are.
    pub bridge: Option<u64>,
}

impl LoaderArguments {
    /// Reads them from a kernel command line. Whatever else is wrong with it, B must find the way back into A: what
    /// does not mean anything counts as missing.
    #[must_use]
    pub fn parse(text: &str) -> LoaderArguments {
        let number = |name| {
            let last = arguments(text).filter(|argument| argument.name == name).last();
            last.and_then(|argument| argument.value).and_then(hexadecimal)
        };
        LoaderArguments { entry: number(ENTRY), bridge: number(BRIDGE) }
    }

    /// The way back into the kernel that was left, if there is one. An entry of 0 was not filled in.
    #[must_use]
    pub fn way_back(&self) -> Option<WayBack> {
        let entry = self.entry.filter(|entry| *entry != 0)?;
        Some(WayBack { entry, bridge: self.bridge? })
    }
}

/// As on a command line. The entry comes last and always has 16 digits, so that the entry stub can overwrite the last
/// 16 characters.
impl fmt::Display for LoaderArguments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let written = [
            self.bridge.map(|bridge| format!("{BRIDGE}={bridge:#x}")),
            self.entry.map(|entry| format!("{ENTRY}={entry:#018x}")),
        ];
        f.write_str(&join(written.iter().flatten().map(String::as_str)))
    }
}

fn hexadecimal(text: &str) -> Option<u64> {
    let digits = text.strip_prefix("0x")?;
    // `from_str_radix` would also take a sign.
    let plain = digits.bytes().all(|b| b.is_ascii_hexdigit());
    if plain { u64::from_str_radix(digits, 16).ok() } else { None }
}

#[cfg(test)]
mod tests;
