//! The order: everything that a kernel hands to the one that it starts. A gives B one to save, or one to wait for that;
//! C gives D one to restore; and A leaves one to look for D that a boot loader starts.
//!
//! It is one block of the image format with tagged records; FORMAT.md has its bytes. It travels as a file of its own in
//! an archive before the other kernel's initramfs, because a command line is short, and open to every process. A kernel
//! that waits finds its next one in memory: [`crate::handoff::next_order`].

use dormouse_image::block::{self, Frame};
use dormouse_image::record::{Kind, RecordError, Records, Writer};
use dormouse_image::seal::{SaveKey, Sealing};
use dormouse_image::{BLOCK, Block, FormatError, ImageDevice, LOADER, NETWORK, PhysRange, SEALED, SessionRecord, Uuid};
use dormouse_linux::link::Link;
use zeroize::Zeroizing;

use crate::policy::Then;

/// Where the order is in the other kernel's initramfs, a path from its root.
pub const FILE: &str = "dormouse-order";

/// The first eight bytes of an order.
pub const MAGIC: [u8; 8] = *b"DMORDER\0";

/// The longest order, in bytes.
pub const MAX: usize = 1 << 20;

/// What a kernel is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// B: save A.
    Save(Box<SaveOrder>),
    /// D: restore A.
    Restore(RestoreOrder),
    /// B: get ready, go back to A, and be entered again.
    Wait(WaitOrder),
    /// D, started by a boot loader: look for the image, and restore A if it may be resumed.
    Look(LookOrder),
}

/// How B is to save.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaveOrder {
    /// The image device, by a name that is the same in every kernel.
    pub image: ImageDevice,
    /// The session that is to be saved.
    pub session: SessionRecord,
    /// What follows.
    pub then: Then,
    /// Where the machine has the disks that B flushes before the power goes off, as
    /// [`dormouse_linux::block::Disk`] names a place.
    pub disks: Vec<String>,
    /// With what the image is to be sealed, where it is. A key is good for one save.
    pub sealing: Option<Sealing>,
    /// By what the boot loader is told to start D itself at the next power-on, where it is to do that.
    pub arming: Option<LoaderBlock>,
    /// How the server is reached that has the image, where one has it.
    pub link: Option<Link>,
}

/// A block of a disk that the boot loader reads at every boot, as A has left it: disarmed. One byte makes it say that D
/// is to be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoaderBlock {
    /// The disk or partition, by a name of [`dormouse_linux::block::Names`].
    pub disk: String,
    /// Where the block begins on it, in bytes: whole blocks.
    pub offset: u64,
    /// Its content.
    pub disarmed: Vec<u8>,
    /// Which of its bytes arms it.
    pub at: usize,
}

impl LoaderBlock {
    /// What that byte is in an armed block.
    const ARMED: u8 = b'1';
    /// And in one that is not.
    const DISARMED: u8 = b'0';

    /// Its content as it tells the boot loader to start D.
    #[must_use]
    pub fn armed(&self) -> Vec<u8> {
        let mut armed = self.disarmed.clone();
        armed.iter_mut().skip(self.at).take(1).for_each(|byte| *byte = LoaderBlock::ARMED);
        armed
    }

    fn encode(&self) -> Vec<u8> {
        let at = u32::try_from(self.at).unwrap_or(u32::MAX);
        [&self.offset.to_le_bytes()[..], &at.to_le_bytes(), &[0; 4], &self.disarmed, self.disk.as_bytes()].concat()
    }

    fn decode(content: &[u8]) -> Option<LoaderBlock> {
        let (offset, rest) = content.split_first_chunk()?;
        let (at, rest) = rest.split_first_chunk()?;
        let (reserved, rest) = rest.split_first_chunk::<4>()?;
        let (disarmed, disk) = rest.split_at_checked(BLOCK)?;
        let (offset, at) = (u64::from_le_bytes(*offset), usize::try_from(u32::from_le_bytes(*at)).ok()?);
        let disk = std::str::from_utf8(disk).ok().filter(|disk| !disk.is_empty())?.to_owned();
        let is_whole = *reserved == [0; 4] && offset.is_multiple_of(BLOCK as u64);
        let is_disarmed = disarmed.get(at) == Some(&LoaderBlock::DISARMED);
        (is_whole && is_disarmed).then(|| LoaderBlock { disk, offset, disarmed: disarmed.to_vec(), at })
    }
}

/// What D is to look for that a boot loader has started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LookOrder {
    /// The image device, by a name that is the same in every kernel.
    pub image: ImageDevice,
    /// By what the boot loader was told to start it, where that is a block.
    pub block: Option<LoaderBlock>,
    /// Where it must be: the session's region.
    pub region: PhysRange,
    /// The low memory that it may have beside.
    pub low: Vec<PhysRange>,
    /// How the server is reached that has the image, where one has it.
    pub link: Option<Link>,
}

/// How B is to wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitOrder {
    /// The image device, which must be there.
    pub image: ImageDevice,
    /// The session that is to be saved, as it is now. Its mailbox is where B reports, and finds its next order.
    pub session: Box<SessionRecord>,
    /// Whether Dormouse's module makes the jumps between the two, in the kernels' place.
    pub by_module: bool,
    /// How the server is reached that has the image, where one has it.
    pub link: Option<Link>,
}

/// What D is to restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreOrder {
    /// The image device, by a name that is the same in every kernel.
    pub image: ImageDevice,
    /// The save that C has looked at and decided to resume.
    pub save_id: Uuid,
    /// The key of that save, where its image must be sealed.
    pub key: Option<SaveKey>,
    /// How the server is reached that has the image, where one has it.
    pub link: Option<Link>,
}

/// The kinds of records in an order to save, in the order in which they are written.
pub const SAVE_KINDS: &[Kind] = &[IMAGE, SESSION, THEN, DISKS, SEALING, ARMING, LINK];
/// The kinds of records in an order to wait.
pub const WAIT_KINDS: &[Kind] = &[IMAGE, SESSION, JUMP, LINK];
/// The kinds of records in an order to restore.
pub const RESTORE_KINDS: &[Kind] = &[IMAGE, SAVE, KEY, LINK];
/// The kinds of records in an order to look.
pub const LOOK_KINDS: &[Kind] = &[IMAGE, BLOCK_OF_LOADER, PLACE, LINK];

const IMAGE: Kind = Kind::mandatory(1, "image", 0);
const SESSION: Kind = Kind::mandatory(2, "session", 0);
const THEN: Kind = Kind::mandatory(3, "then", 0);
const SAVE: Kind = Kind::mandatory(4, "save", 0);
const DISKS: Kind = Kind::mandatory(5, "disks", 0);
const SEALING: Kind = Kind::mandatory(6, "sealing", SEALED);
const KEY: Kind = Kind::mandatory(7, "key", SEALED);
/// An older B does not arm the boot loader, and C resumes.
const ARMING: Kind = Kind::skippable(8, "arming", LOADER);
const BLOCK_OF_LOADER: Kind = Kind::mandatory(9, "block", LOADER);
const PLACE: Kind = Kind::mandatory(11, "place", LOADER);
const JUMP: Kind = Kind::mandatory(10, "jump", 0);
const LINK: Kind = Kind::mandatory(12, "link", NETWORK);

/// What is to be done, as a number.
const TO_SAVE: u16 = 1;
const TO_RESTORE: u16 = 2;
const TO_WAIT: u16 = 3;
const TO_LOOK: u16 = 4;
/// What a reader says of any other.
const TASKS: &str = "1 (save), 2 (restore), 3 (wait) or 4 (look)";
/// What a reader says of a block that it cannot use.
const NO_BLOCK: &str = "it is not the place of a block, a disarmed block and the name of a disk";
/// What is to be done, two reserved bytes, and the number of records.
const FIXED: usize = 8;

impl Order {
    /// The order's block. It may hold a key.
    ///
    /// # Errors
    /// [`FormatError::TooLarge`], and whatever [`Order::decode`] would find wrong with the values.
    pub fn encode(&self) -> Result<Zeroizing<Vec<u8>>, FormatError> {
        let mut records = Writer::new();
        let mut push = |kind: &Kind, content: &[u8]| {
            records.push(kind, content).map_err(|error| FormatError::Record { block: Block::Order, error })
        };
        let task = match self {
            Order::Save(order) => {
                push(&IMAGE, order.image.to_string().as_bytes())?;
                push(&SESSION, &order.session.encode()?)?;
                push(&THEN, &then_code(order.then).to_le_bytes())?;
                push(&DISKS, order.disks.join("\n").as_bytes())?;
                let sealing = order.sealing.as_ref().map(Sealing::encode).transpose()?;
                // A version that has a later record has all before it.
                if sealing.is_some() || order.arming.is_some() || order.link.is_some() {
                    push(&SEALING, sealing.as_deref().map_or(&[], Vec::as_slice))?;
                }
                if order.arming.is_some() || order.link.is_some() {
                    push(&ARMING, &order.arming.as_ref().map(LoaderBlock::encode).unwrap_or_default())?;
                }
                TO_SAVE
            }
            Order::Restore(order) => {
                push(&IMAGE, order.image.to_string().as_bytes())?;
                push(&SAVE, &order.save_id.0)?;
                if order.key.is_some() || order.link.is_some() {
                    push(&KEY, order.key.as_ref().map_or(&[], |key| key.bytes()))?;
                }
                TO_RESTORE
            }
            Order::Wait(order) => {
                push(&IMAGE, order.image.to_string().as_bytes())?;
                push(&SESSION, &order.session.encode()?)?;
                push(&JUMP, &jump_code(order.by_module).to_le_bytes())?;
                TO_WAIT
            }
            Order::Look(order) => {
                push(&IMAGE, order.image.to_string().as_bytes())?;
                push(&BLOCK_OF_LOADER, &order.block.as_ref().map(LoaderBlock::encode).unwrap_or_default())?;
                push(&PLACE, &place_bytes(order))?;
                TO_LOOK
            }
        };
        if let Some(link) = self.link() {
            push(&LINK, link.to_string().as_bytes())?;
        }
        let (count, records) = (records.count(), Zeroizing::new(records.into_bytes()));
        let mut body = Zeroizing::new(Vec::with_capacity(FIXED + records.len()));
        body.extend(task.to_le_bytes());
        body.extend([0; 2]);
        body.extend(count.to_le_bytes());
        body.extend(records.iter());
        let minor = match self {
            _ if self.link().is_some() => NETWORK,
            Order::Look(_) => LOADER,
            Order::Save(order) if order.arming.is_some() => LOADER,
            _ if self.is_secret() => SEALED,
            _ => 0,
        };
        block::frame_since(minor, Block::Order, MAGIC, &body, MAX).map(Zeroizing::new)
    }

    /// Whether there is a key in it.
    #[must_use]
    pub fn is_secret(&self) -> bool {
        match self {
            Order::Save(order) => order.sealing.is_some(),
            Order::Restore(order) => order.key.is_some(),
            Order::Wait(_) | Order::Look(_) => false,
        }
    }

    /// The image device, by a name that is the same in every kernel.
    #[must_use]
    pub fn image(&self) -> &ImageDevice {
        match self {
            Order::Save(order) => &order.image,
            Order::Restore(order) => &order.image,
            Order::Wait(order) => &order.image,
            Order::Look(order) => &order.image,
        }
    }

    /// How the server is reached that has the image, where one has it.
    #[must_use]
    pub fn link(&self) -> Option<&Link> {
        match self {
            Order::Save(order) => order.link.as_ref(),
            Order::Restore(order) => order.link.as_ref(),
            Order::Wait(order) => order.link.as_ref(),
            Order::Look(order) => order.link.as_ref(),
        }
    }

    /// Overwrites the key in it, where there is one: for whom the rest is enough.
    pub fn forget_key(&mut self) {
        match self {
            Order::Save(order) => order.sealing = None,
            Order::Restore(order) => order.key = None,
            Order::Wait(_) | Order::Look(_) => {}
        }
    }

    /// Reads an order.
    ///
    /// # Errors
    /// [`FormatError`] says what is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<Order, FormatError> {
        let frame = block::unframe(Block::Order, MAGIC, bytes, MAX)?;
        // A frame's body is longer: it is a block less its prologue.
        let Some(([task @ .., r0, r1, c0, c1, c2, c3], rest)) = frame.body.split_first_chunk::<FIXED>() else {
            return Err(FormatError::Truncated { block: Block::Order, needed: FIXED, got: frame.body.len() });
        };
        let (task, count) = (u16::from_le_bytes(*task), u32::from_le_bytes([*c0, *c1, *c2, *c3]));
        frame.zero("a reserved field", &[*r0, *r1])?;
        let kinds = match task {
            TO_SAVE => SAVE_KINDS,
            TO_RESTORE => RESTORE_KINDS,
            TO_WAIT => WAIT_KINDS,
            TO_LOOK => LOOK_KINDS,
            _ => return Err(frame.field("task", task.into(), TASKS)),
        };
        let records = Records::read(kinds, frame.written, count, rest).map_err(|error| frame.record(error))?;
        frame.zero("padding that is not zero", records.rest)?;
        let image = image(records.content(&IMAGE)).map_err(|error| frame.record(error))?;
        let link = link(records.content(&LINK)).map_err(|error| frame.record(error))?;
        Ok(match task {
            TO_SAVE => Order::Save(Box::new(SaveOrder {
                image,
                session: SessionRecord::decode(records.content(&SESSION))?,
                then: then(&frame, records.content(&THEN))?,
                disks: disks(records.content(&DISKS)).map_err(|error| frame.record(error))?,
                sealing: sealing(records.content(&SEALING)).map_err(|error| frame.record(error))?,
                arming: block_of_loader(&ARMING, records.get(&ARMING).unwrap_or_default())
                    .map_err(|error| frame.record(error))?,
                link,
            })),
            TO_WAIT => {
                let session = Box::new(SessionRecord::decode(records.content(&SESSION))?);
                let by_module = is_by_module(&frame, records.content(&JUMP))?;
                Order::Wait(WaitOrder { image, session, by_module, link })
            }
            TO_LOOK => {
                let block = block_of_loader(&BLOCK_OF_LOADER, records.content(&BLOCK_OF_LOADER))
                    .map_err(|error| frame.record(error))?;
                let place = place(records.content(&PLACE));
                let (region, low) = place.ok_or_else(|| frame.record(PLACE.wrong("it is not a list of ranges")))?;
                Order::Look(LookOrder { image, block, region, low, link })
            }
            _ => {
                let save_id: Result<[u8; 16], _> = records.content(&SAVE).try_into();
                let save_id = save_id.map_err(|_| frame.record(SAVE.wrong("it is not 16 bytes long")))?;
                let key = key(records.content(&KEY)).map_err(|error| frame.record(error))?;
                Order::Restore(RestoreOrder { image, save_id: Uuid(save_id), key, link })
            }
        })
    }
}

fn image(content: &[u8]) -> Result<ImageDevice, RecordError> {
    let text = std::str::from_utf8(content).ok();
    text.and_then(|text| text.parse().ok()).ok_or(IMAGE.wrong("it does not name an image device"))
}

/// Empty where the image is this machine's own.
fn link(content: &[u8]) -> Result<Option<Link>, RecordError> {
    let text = std::str::from_utf8(content).map_err(|_| LINK.wrong("it is not text"))?;
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(|_| LINK.wrong("it is not an interface")) }
}

fn disks(content: &[u8]) -> Result<Vec<String>, RecordError> {
    let text = std::str::from_utf8(content).map_err(|_| DISKS.wrong("it is not text"))?;
    Ok(text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

/// Empty where the image is not sealed.
fn sealing(content: &[u8]) -> Result<Option<Sealing>, RecordError> {
    let wrong = SEALING.wrong("it is not a key, a nonce, a suite and at most 8 wrapped keys");
    if content.is_empty() { Ok(None) } else { Sealing::decode(content).map(Some).ok_or(wrong) }
}

/// Empty where the image is not sealed.
fn key(content: &[u8]) -> Result<Option<SaveKey>, RecordError> {
    match content {
        [] => Ok(None),
        content => match content.try_into() {
            Ok(bytes) => Ok(Some(SaveKey::new(bytes))),
            Err(_) => Err(KEY.wrong("it is not 32 bytes long")),
        },
    }
}

/// Empty where there is none.
fn block_of_loader(kind: &Kind, content: &[u8]) -> Result<Option<LoaderBlock>, RecordError> {
    let wrong = kind.wrong(NO_BLOCK);
    if content.is_empty() { Ok(None) } else { LoaderBlock::decode(content).map(Some).ok_or(wrong) }
}

/// The region, and then the ranges of low memory.
fn place_bytes(order: &LookOrder) -> Vec<u8> {
    let ranges = std::iter::once(&order.region).chain(&order.low);
    ranges.flat_map(|range| [range.start, range.end]).flat_map(u64::to_le_bytes).collect()
}

fn place(content: &[u8]) -> Option<(PhysRange, Vec<PhysRange>)> {
    let words: Vec<u64> =
        content.chunks(8).map(|word| word.try_into().map(u64::from_le_bytes)).collect::<Result<_, _>>().ok()?;
    let ranges = words.chunks(2).map(|pair| match *pair {
        [start, end] if start < end => Some(PhysRange { start, end }),
        _ => None,
    });
    let mut ranges = ranges.collect::<Option<Vec<_>>>()?;
    if ranges.is_empty() { None } else { Some((ranges.remove(0), ranges)) }
}

fn then_code(then: Then) -> u16 {
    match then {
        Then::PowerOff => 1,
        Then::Reboot => 2,
        Then::Return => 3,
    }
}

fn jump_code(by_module: bool) -> u16 {
    if by_module { 2 } else { 1 }
}

fn is_by_module(frame: &Frame<'_>, content: &[u8]) -> Result<bool, FormatError> {
    let code = number(frame, &JUMP, content)?;
    let known = [false, true].into_iter().find(|by_module| jump_code(*by_module) == code);
    known.ok_or_else(|| frame.field("jump", code.into(), "1 (the kernel) or 2 (the module)"))
}

fn then(frame: &Frame<'_>, content: &[u8]) -> Result<Then, FormatError> {
    let code = number(frame, &THEN, content)?;
    let known = Then::ALL.into_iter().find(|then| then_code(*then) == code);
    known.ok_or_else(|| frame.field("then", code.into(), "1 (power off), 2 (reboot) or 3 (return)"))
}

fn number(frame: &Frame<'_>, kind: &Kind, content: &[u8]) -> Result<u16, FormatError> {
    let number = content.try_into().map(u16::from_le_bytes);
    number.map_err(|_| frame.record(kind.wrong("it is not 2 bytes long")))
}

#[cfg(test)]
pub(crate) mod tests;
