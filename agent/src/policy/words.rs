//! Values that are one of a few words: in the policy, on a kernel's command line and as arguments of commands.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// A value that is one of a few words.
pub trait Word: Copy + FromStr<Err = WordError> + 'static {
    /// Every value, in the order in which documents list them.
    fn all() -> &'static [Self];

    /// The word that it is written as.
    fn word(self) -> &'static str;
}

/// A text that is not one of the words.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{word}` is not one of {allowed}")]
pub struct WordError {
    /// As written.
    pub word: String,
    /// The words, in quotes and separated by commas.
    pub allowed: String,
}

/// The value of a word.
fn find<T: Word>(text: &str) -> Result<T, WordError> {
    T::all().iter().copied().find(|value| value.word() == text).ok_or_else(|| {
        let quoted: Vec<String> = T::all().iter().map(|value| format!("\"{}\"", value.word())).collect();
        WordError { word: text.to_owned(), allowed: quoted.join(", ") }
    })
}

/// An enum whose values are words: `FromStr` reads what `Display` writes.
macro_rules! words {
    ($($(#[$about:meta])* pub enum $Name:ident { $($(#[$what:meta])* $Value:ident = $word:literal,)+ })+) => {$(
        $(#[$about])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $Name {
            $($(#[$what])* $Value,)+
        }

        impl $Name {
            /// Every value, in the order in which documents list them.
            pub const ALL: [Self; [$($word),+].len()] = [$(Self::$Value),+];

            /// The word that it is written as.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$Value => $word,)+
                }
            }
        }

        impl Word for $Name {
            fn all() -> &'static [Self] {
                &Self::ALL
            }

            fn word(self) -> &'static str {
                self.as_str()
            }
        }

        impl FromStr for $Name {
            type Err = WordError;

            fn from_str(text: &str) -> Result<Self, WordError> {
                find(text)
            }
        }

        impl fmt::Display for $Name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    )+};
}

words! {
    /// What happens after a completed save.
    pub enum Then {
        /// The machine powers off; the image is resumed at the next power-on.
        #[default]
        PowerOff = "poweroff",
        /// The machine reboots and resumes at once.
        Reboot = "reboot",
        /// B jumps back to A, which continues; the image is a snapshot and is never resumed.
        Return = "return",
    }

    /// How the power is switched off after a save.
    pub enum Power {
        /// As by `poweroff`.
        #[default]
        Shutdown = "shutdown",
        /// The firmware is told that the machine hibernates: ACPI's sleep state S4.
        Platform = "platform",
    }

    /// Who jumps into the save kernel.
    pub enum Jump {
        /// The kernel, where it can and can be returned to; Dormouse's module elsewhere.
        #[default]
        Auto = "auto",
        /// The kernel, with CONFIG_KEXEC_JUMP.
        Kernel = "kernel",
        /// Dormouse's module.
        Module = "module",
    }

    /// How the pages of an image are stored.
    pub enum Method {
        /// Each chunk as well as the device leaves time for.
        #[default]
        Auto = "auto",
        /// Compressed with zstd, at a given level.
        Zstd = "zstd",
        /// As they are.
        Store = "store",
    }

    /// How an image is verified before the power goes off, while the memory that was saved still exists.
    pub enum Verify {
        /// Not at all; a restore finds out.
        #[default]
        Off = "off",
        /// It is read back from the device, and every checksum is compared.
        Checksum = "checksum",
        /// It is read back, and every page is compared with the memory that it was made from.
        Memory = "memory",
    }

    /// What seals an image and opens it again.
    pub enum SealKey {
        /// Nothing is demanded: an image that has keys is sealed, another one is not, and both are resumed.
        #[default]
        None = "none",
        /// A secret in a file of an encrypted filesystem, which the boot opens before it resumes.
        File = "file",
        /// Something that somebody knows, and is asked for when the session is resumed.
        Passphrase = "passphrase",
        /// The machine's TPM, for as long as the machine boots as it did.
        Tpm2 = "tpm2",
    }

    /// What happens to an image that does not fit the machine or its filesystems.
    pub enum Unfit {
        /// It is discarded.
        Discard = "discard",
        /// It stays, and the next boot looks again.
        Keep = "keep",
        /// It stays for a few boots where the memory map or the microcode differs, which may be what it was at the next
        /// one, and is discarded where anything else does.
        #[default]
        Retry = "retry",
    }

    /// What happens to a session with a filesystem or a swap area of which it cannot be found out whether another
    /// system has written to it.
    pub enum Unsure {
        /// It is not saved: the reason comes before the jump, or the session goes on.
        #[default]
        Refuse = "refuse",
        /// It is saved and resumed all the same.
        Resume = "resume",
    }

    /// How much B and D print on their consoles. Their kernel log gets everything in any case.
    pub enum Verbosity {
        /// What begins, a bar, and how it ended; of the kernel, only errors.
        #[default]
        Quiet = "quiet",
        /// One line per phase, and warnings.
        Normal = "normal",
        /// Every decision and measurement.
        Verbose = "verbose",
    }
}

/// What is given up of the session's memory before it is saved, so that the image is smaller.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Shrink {
    /// Nothing.
    #[default]
    None,
    /// All clean cache.
    Cache,
    /// Caches, and then what can be swapped out, until so many bytes or less are in use.
    To(u64),
}

/// How the pages of an image are stored, with the level where there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Each chunk as the device leaves time for: the more chunks wait for it, the better they are compressed.
    Auto,
    /// As they are.
    Store,
    /// Compressed with zstd, each chunk independently.
    Zstd {
        /// zstd's level: -7 to 19, never 0.
        level: i32,
    },
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn words_are_read_as_they_are_written() {
        for then in Then::ALL {
            assert_eq!(then.to_string().parse(), Ok(then));
        }
        let error = "Poweroff".parse::<Then>().unwrap_err();
        assert_eq!(error.to_string(), "`Poweroff` is not one of \"poweroff\", \"reboot\", \"return\"");
        assert_eq!(Verify::all(), Verify::ALL);
    }
}
