//! The kernel command line: text to values and back. No I/O; whoever reads `/proc/cmdline` hands the text in.

use std::fmt;

use dormouse_image::{ImageDevice, ImageDeviceError, Uuid};
use dormouse_linux::kernel_args::{Argument, arguments, join, quoted};
use thiserror::Error;

use crate::policy::{Then, WordError};

/// What the command line says to Dormouse. `None` and `false` where it says nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cmdline {
    /// `dormouse.mode=save|restore`: what the loader started this kernel for.
    pub mode: Option<BootMode>,
    /// `dormouse.image=`: the image device, in place of the policy's.
    pub image: Option<ImageDevice>,
    /// `dormouse.then=`: what follows a completed save, in place of the policy's.
    pub then: Option<Then>,
    /// `dormouse.bridge=0x<address>`: where the bridge's pages are.
    pub bridge: Option<u64>,
    /// `dormouse.entry=0x<16 digits>`: A's jump-back entry, written by the entry stub.
    pub entry: Option<u64>,
    /// `dormouse.session=<uuid>`: the nonce that ties a boot to the session that started it.
    pub session: Option<Uuid>,
    /// `dormouse=off`: this boot does not resume.
    pub off: bool,
    /// `noresume`: this boot does not resume, as the kernel's own hibernation has it.
    pub noresume: bool,
}

/// What the loader started a kernel for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootMode {
    /// Kernel B: save A.
    Save,
    /// Kernel D: restore A.
    Restore,
}

impl BootMode {
    /// The word it is written as.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Save => "save",
            Self::Restore => "restore",
        }
    }
}

/// An argument for Dormouse that does not say anything possible.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CmdlineError {
    /// `dormouse.` with a name that is none.
    #[error("kernel argument `{0}`: there is no such argument of Dormouse")]
    Unknown(String),
    /// An argument without the value that it needs.
    #[error("kernel argument `{0}` needs a value")]
    NoValue(String),
    /// A word that is none of the allowed ones.
    #[error("kernel argument {name}: `{text}` is none of {allowed}")]
    Word {
        /// The argument.
        name: &'static str,
        /// Its value as written.
        text: String,
        /// What is allowed.
        allowed: &'static str,
    },
    /// `dormouse.image`.
    #[error("kernel argument dormouse.image: {0}")]
    Image(ImageDeviceError),
    /// `dormouse.then`.
    #[error("kernel argument dormouse.then: {0}")]
    Then(WordError),
    /// Not a hexadecimal number of at most 64 bits.
    #[error("kernel argument {name}: `{text}` is not a hexadecimal number such as 0x1f000000")]
    Number {
        /// The argument.
        name: &'static str,
        /// Its value as written.
        text: String,
    },
    /// `dormouse.session`.
    #[error("kernel argument dormouse.session: `{0}` is not a UUID")]
    Session(String),
}

impl Cmdline {
    /// Reads no more than where to jump back to. For a command line that [`Cmdline::parse`] refuses: whatever is wrong with
    /// the rest of it, B must find the way back into A.
    #[must_use]
    pub fn parse_way_back(text: &str) -> Self {
        let number = |name| {
            let last = arguments(text).filter(|argument| argument.name == name).last();
            last.and_then(|argument| argument.value).and_then(hexadecimal)
        };
        Self { entry: number("dormouse.entry"), bridge: number("dormouse.bridge"), ..Self::default() }
    }

    /// Reads what a kernel command line says to Dormouse. Where it says something twice, the last one holds,
    /// so that what a user types at the boot loader's prompt overrides what is configured there.
    ///
    /// # Errors
    /// An argument of Dormouse is unknown or has an impossible value; the error names it and quotes its text.
    pub fn parse(text: &str) -> Result<Self, CmdlineError> {
        let mut parsed = Self::default();
        for argument in arguments(text).take_while(|argument| argument.name != "--") {
            parsed.take(&argument)?;
        }
        Ok(parsed)
    }

    fn take(&mut self, argument: &Argument<'_>) -> Result<(), CmdlineError> {
        if argument.name == "noresume" {
            self.noresume = true;
            return Ok(());
        }
        if !argument.is_ours() {
            return Ok(());
        }
        let text = argument.value.ok_or_else(|| CmdlineError::NoValue(argument.raw.to_owned()))?;
        match argument.name {
            "dormouse" => self.off = word("dormouse", text, "on, off", &[("on", false), ("off", true)])?,
            "dormouse.mode" => {
                let modes = [("save", BootMode::Save), ("restore", BootMode::Restore)];
                self.mode = Some(word("dormouse.mode", text, "save, restore", &modes)?);
            }
            "dormouse.image" => self.image = Some(text.parse().map_err(CmdlineError::Image)?),
            "dormouse.then" => self.then = Some(text.parse().map_err(CmdlineError::Then)?),
            "dormouse.bridge" => self.bridge = Some(number("dormouse.bridge", text)?),
            "dormouse.entry" => self.entry = Some(number("dormouse.entry", text)?),
            "dormouse.session" => {
                self.session = Some(text.parse().map_err(|_| CmdlineError::Session(text.to_owned()))?);
            }
            _ => return Err(CmdlineError::Unknown(argument.raw.to_owned())),
        }
        Ok(())
    }
}

/// Writes the arguments that [`Cmdline::parse`] reads, separated by blanks and quoted where needed.
impl fmt::Display for Cmdline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let written = [
            self.mode.map(|mode| format!("dormouse.mode={}", mode.as_str())),
            self.image.as_ref().map(|image| quoted("dormouse.image", &image.to_string())),
            self.then.map(|then| format!("dormouse.then={then}")),
            self.bridge.map(|bridge| format!("dormouse.bridge={bridge:#x}")),
            // Always 16 digits: the entry stub overwrites them in place.
            self.entry.map(|entry| format!("dormouse.entry={entry:#018x}")),
            self.session.map(|session| format!("dormouse.session={session}")),
            self.off.then(|| "dormouse=off".to_owned()),
            self.noresume.then(|| "noresume".to_owned()),
        ];
        f.write_str(&join(written.iter().flatten().map(String::as_str)))
    }
}

fn word<T: Copy>(
    name: &'static str,
    text: &str,
    allowed: &'static str,
    words: &[(&str, T)],
) -> Result<T, CmdlineError> {
    let known = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
    known.ok_or_else(|| CmdlineError::Word { name, text: text.to_owned(), allowed })
}

fn number(name: &'static str, text: &str) -> Result<u64, CmdlineError> {
    hexadecimal(text).ok_or_else(|| CmdlineError::Number { name, text: text.to_owned() })
}

fn hexadecimal(text: &str) -> Option<u64> {
    let digits = text.strip_prefix("0x")?;
    // `from_str_radix` would also take a sign.
    let plain = digits.bytes().all(|b| b.is_ascii_hexdigit());
    if plain { u64::from_str_radix(digits, 16).ok() } else { None }
}

#[cfg(test)]
mod tests;
