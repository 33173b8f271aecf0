//! Why bytes are not what they should be.

use std::fmt;

use thiserror::Error;

use crate::record::RecordError;
use crate::{State, Uuid, Version};

/// A part of an image, for messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Block {
    /// The label at the device's start.
    Label,
    /// The commit record.
    Commit,
    /// The keys of a sealed image.
    Keys,
    /// What a kernel tells another one to do.
    Order,
    /// The session record that the saved kernel hands to the save kernel.
    Session,
    /// The header of the saved session.
    Header,
    /// An index block.
    Index,
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Block::Label => "label",
            Block::Commit => "commit record",
            Block::Keys => "block of keys",
            Block::Order => "order",
            Block::Session => "session record",
            Block::Header => "header",
            Block::Index => "index block",
        })
    }
}

/// Why a part of an image cannot be read, or not be written.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The block does not start with its magic.
    #[error("no Dormouse {0} here")]
    Magic(Block),
    /// The block ends before it should.
    #[error("the {block} has {got} bytes, needs {needed}")]
    Truncated {
        /// Which block.
        block: Block,
        /// Bytes needed.
        needed: usize,
        /// Bytes found.
        got: usize,
    },
    /// Another major version of the format.
    #[error("the {block} has format version {found}, this program reads {}.x: use another one", crate::VERSION.major)]
    Version {
        /// Which block.
        block: Block,
        /// The version found.
        found: Version,
    },
    /// Something to which this version gives no meaning: a field that should be zero is not.
    #[error(
        "the {block} has {what}, which this program does not know (it writes format version {}, \
             the {block} has {written}): use a newer Dormouse",
        crate::VERSION
    )]
    Newer {
        /// Which block.
        block: Block,
        /// What it has.
        what: &'static str,
        /// The version that wrote the block.
        written: Version,
    },
    /// The session of another architecture.
    #[error("the {block} is of another architecture (ELF machine {machine}), this program restores x86-64 (62)")]
    Architecture {
        /// Which block.
        block: Block,
        /// The number of the architecture, as in ELF files.
        machine: u16,
    },
    /// The bytes are not those that were written.
    #[error("the {block} is damaged: its checksum is {found:016x}, its content has {computed:016x}")]
    Checksum {
        /// Which block.
        block: Block,
        /// The checksum that it carries.
        found: u64,
        /// The checksum of what was found.
        computed: u64,
    },
    /// A field with a value outside its range.
    #[error("the {block}'s {field} is {value}, which cannot be: {why}")]
    Field {
        /// Which block.
        block: Block,
        /// The field, for people; FORMAT.md has it under the same or nearly the same name.
        field: &'static str,
        /// The value found.
        value: u64,
        /// The rule that it breaks.
        why: &'static str,
    },
    /// Text that is not UTF-8, or too long for its place.
    #[error("the {block}'s {field} is not valid text")]
    Text {
        /// Which block.
        block: Block,
        /// The field, for people; FORMAT.md has it under the same or nearly the same name.
        field: &'static str,
    },
    /// Something is wrong with a block's records.
    #[error("the {block}: {error}")]
    Record {
        /// Which block.
        block: Block,
        /// What is wrong.
        error: RecordError,
    },
    /// Something is larger than the format allows.
    #[error("the {block} would have {size} bytes, at most {max} are allowed")]
    TooLarge {
        /// Which block.
        block: Block,
        /// What it would take.
        size: usize,
        /// What is allowed.
        max: usize,
    },
    /// A block of another save or another device.
    #[error("the {block} belongs to {found}, not to {expected}")]
    Foreign {
        /// Which block.
        block: Block,
        /// The identity expected.
        expected: Uuid,
        /// The identity found.
        found: Uuid,
    },
    /// A page outside the memory that was saved.
    #[error("page frames {start:#x} to {end:#x} are outside the saved memory")]
    OutsideRam {
        /// First page frame.
        start: u64,
        /// The one after the last.
        end: u64,
    },
    /// A page that the image holds twice.
    #[error("page frame {0:#x} is in the image twice")]
    Twice(u64),
    /// The image holds another number of pages than it says.
    #[error("the image holds {found} {what}, its commit record says {expected}")]
    Count {
        /// What was counted.
        what: &'static str,
        /// The number in the commit record.
        expected: u64,
        /// The number found.
        found: u64,
    },
    /// A sealed image, and no key.
    #[error("the image is sealed, and there is no key for it")]
    Sealed,
    /// An image that anybody could have made where a sealed one is expected.
    #[error("the image is not sealed, and only a sealed one will do here: anybody could have written it")]
    NotSealed,
    /// A sealed image that nothing opens any more.
    #[error("the image is sealed, and the keys that open it are not in it any more (it is {0})")]
    KeyWiped(State),
    /// Something that was not sealed with the key at hand.
    #[error("the {0} was not sealed with this key: it is damaged, forged, or of another image")]
    Forged(Block),
    /// The cipher did not do what it was asked for; it does so for more than 64 GiB only.
    #[error("the cipher cannot encrypt that much at once")]
    Cipher,
    /// A change of state that the rules forbid.
    #[error("an image that is {from} cannot become {to}")]
    Transition {
        /// Its state.
        from: State,
        /// The state asked for.
        to: State,
    },
}
