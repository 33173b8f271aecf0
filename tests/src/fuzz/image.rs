//! An image: each of its blocks by itself, and the whole as it is restored.
//!
//! An input describes an image device of 4 MiB: a byte of choices, then consecutive parts.
//!
//! ```text
//!   1 byte    what is mended (bits 0 to 4, see `Mend`), and the state that is tried at the end (bits 5 to 7)
//!   part:  2 bytes   number of the block at which it lies, modulo 1024
//!          2 bytes   bits 0 to 14: how many bytes follow; bit 15: they are repeated up to the end of the block
//!          n bytes
//! ```
//!
//! Every block of an image is checksummed, and points to others by their checksums. So that not every change ends
//! there, what was laid out is *mended* before it is read: checksums, pointers, sums and identities are made to fit
//! what exists.

pub(super) mod device;
pub(super) mod whole;

use device::Device;
use dormouse_image::layout::{DATA_OFFSET, HEADER_OFFSET, LABEL_OFFSET};
use dormouse_image::{
    BLOCK, Commit, FormatError, Header, INDEX_MAGIC, IndexBlock, IndexBuilder, LABEL_MAGIC, Label, PfnRange, Slot,
    newest,
};

/// Reads any bytes as a description of an image.
pub(super) fn run(input: &[u8]) {
    let (device, state) = Device::new(input);
    label(&device);
    commits(&device);
    header(&device);
    for offset in device.blocks().filter(|offset| *offset >= DATA_OFFSET) {
        index(&device, offset);
    }
    let file = device.file();
    for offset in device.blocks().filter(|offset| device.read(*offset, 8) == LABEL_MAGIC) {
        whole::mapped(&file, offset);
    }
    whole::restore(&file);
    whole::change(&file, state);
}

fn label(device: &Device) {
    if let Ok(label) = Label::decode(&device.read(LABEL_OFFSET, BLOCK)) {
        let bytes = label.encode().expect("what was read can be written");
        assert_eq!(Label::decode(&bytes), Ok(label));
    }
}

fn commits(device: &Device) {
    let blocks = [Slot::First, Slot::Second].map(|slot| device.read(slot.offset(), BLOCK));
    let records = blocks.each_ref().map(|block| Commit::decode(block));
    for commit in records.iter().flatten() {
        let bytes = commit.encode().expect("what was read can be written");
        assert_eq!(Commit::decode(&bytes).as_ref(), Ok(commit));
    }
    match newest(&blocks[0], &blocks[1]) {
        Ok((commit, slot)) => {
            let [first, second] = &records;
            let (this, other) = if slot == Slot::First { (first, second) } else { (second, first) };
            assert_eq!(this.as_ref(), Ok(&commit));
            assert!(other.iter().all(|other| other.seq <= commit.seq));
        }
        // A slot that needs a newer version may be the newest, so the other one does not count.
        Err(FormatError::Newer { .. }) => {}
        Err(error) => assert!(records.iter().all(Result::is_err) && !error.to_string().is_empty()),
    }
}

fn header(device: &Device) {
    match Header::decode(&device.block(HEADER_OFFSET)) {
        Ok(header) => {
            let bytes = header.encode().expect("what was read can be written");
            assert_eq!(Header::decode(&bytes).as_ref(), Ok(&header));
            let pages: u64 = header.session.ram.iter().map(PfnRange::pages).sum();
            assert!(header.session.ram_pages() == pages && super::ascending(&header.session.ram));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn index(device: &Device, offset: u64) {
    let block = device.block(offset);
    if !block.starts_with(&INDEX_MAGIC) {
        return;
    }
    let index = match IndexBlock::decode(&block, offset) {
        Ok(index) => index,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let mut builder = IndexBuilder::new(index.save_id);
    for view in index.chunks() {
        assert!(view.chunk.offset >= DATA_OFFSET && view.chunk.offset + u64::from(view.chunk.stored_len) <= offset);
        builder.chunk(view.chunk, view.extents).expect("a chunk that was read can be written");
    }
    for run in &index.zero {
        builder.zero(*run).expect("a run that was read can be written");
    }
    let (bytes, _) = builder.finish(offset).expect("a block that was read can be written");
    let again = IndexBlock::decode(&bytes, offset).expect("what was written can be read");
    assert!(again.chunks().eq(index.chunks()) && again.save_id == index.save_id);
    // Runs that touch are joined when they are written.
    assert_eq!(joined(&again), joined(&index));
}

fn joined(index: &IndexBlock) -> Vec<PfnRange> {
    let mut joined: Vec<PfnRange> = Vec::new();
    for run in &index.zero {
        match joined.last_mut() {
            Some(last) if last.end == run.pfn => last.end = run.range().end,
            _ => joined.push(run.range()),
        }
    }
    joined
}

#[cfg(test)]
mod tests;
