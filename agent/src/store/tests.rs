#![allow(clippy::unwrap_used, clippy::panic)]
use std::os::unix::fs::FileExt;

use dormouse_image::layout::{DATA_OFFSET, DEVICE_MIN};
use dormouse_image::{
    Chunk, Codec, Extent, Header, Label, PfnRange, PhysRange, SaveStats, SessionRecord, State, Uuid, checksum,
};
use dormouse_linux::error_chain::in_full;
use proptest::prelude::*;
use tempfile::NamedTempFile;

use super::*;
use crate::pipeline::buffers::Buffers;
use crate::pipeline::seams::{ChunkSource, Piece, PieceSink, Work};
use crate::pipeline::{self, Limits};

const LABEL: Label = Label { uuid: Uuid([7; 16]), created_unix: 1, extents: Vec::new() };

fn device(size: u64) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(size).unwrap();
    file
}

fn open(file: &NamedTempFile) -> Result<Image, StoreError> {
    Image::open(Disk::open(file.path(), Access::Write)?)
}

fn header(pages: u64) -> Header {
    let session = SessionRecord {
        image: LABEL.uuid,
        save_id: Uuid([9; 16]),
        region: PhysRange { start: 1 << 40, end: (1 << 40) + 4096 },
        low: vec![PhysRange { start: 0x1000, end: 0x9f000 }],
        ram: vec![PfnRange { start: 0x100, end: 0x100 + pages }],
        ..SessionRecord::default()
    };
    Header { session, entry: 0x10_0000 }
}

/// Pieces of stored chunks of one page each, up to 256 in a piece, whose bytes are all the same.
fn pieces(pages: u64) -> impl Iterator<Item = Piece> {
    let buffers = Buffers::new(4);
    let starts = (0..pages).step_by(256);
    starts.map(move |start| {
        let mut piece = Piece { buffer: Some(buffers.take().unwrap()), ..Piece::default() };
        for number in start..pages.min(start + 256) {
            let page = &mut piece.buffer.as_mut().unwrap()[piece.len..][..4096];
            page.fill(number.to_le_bytes()[0]);
            let (offset, checksum) = (piece.len as u64, checksum(page));
            piece.chunks.push(Chunk { offset, stored_len: 4096, codec: Codec::Store, checksum });
            piece.extents.push(Extent { pfn: 0x100 + number, pages: 1 });
            piece.extent_counts.push(1);
            piece.len += 4096;
        }
        piece
    })
}

/// An image of `stored` pages in chunks of one, and 100 zero pages behind them.
fn write(file: &NamedTempFile, stored: u64, state: State) -> Result<Image, StoreError> {
    let image = Image::create(Disk::open(file.path(), Access::Write)?, LABEL)?;
    let mut writer = Writer::begin(image, &header(stored + 100))?;
    for piece in pieces(stored) {
        writer.piece(piece).unwrap();
    }
    let zero = vec![Extent { pfn: 0x100 + stored, pages: 100 }];
    writer.piece(Piece { zero, ..Piece::default() }).unwrap();
    writer.finish(state, 0, |_| Ok(()), SaveStats::default)
}

fn verify(image: &Image) -> anyhow::Result<pipeline::Counts> {
    let header = image.header()?;
    Ok(pipeline::discard(&mut Reader::open(image, &header)?, Limits::of_threads(2), |_| ())?)
}

#[test]
fn what_was_written_is_read_over_several_index_blocks() {
    let file = device(64 << 20);
    write(&file, 9000, State::Complete).unwrap();
    let image = open(&file).unwrap();
    let commit = image.commit();
    assert_eq!((commit.state, commit.totals.chunks, commit.totals.index_blocks), (State::Complete, 9000, 3));
    let counts = verify(&image).unwrap();
    assert_eq!((counts.stored, counts.zero), (9000, 100));
}

#[test]
fn a_device_that_is_too_small_is_told_what_is_needed() {
    let file = device(DEVICE_MIN);
    let error = write(&file, 2000, State::Complete).unwrap_err();
    let StoreError::TooSmall { size, needed, .. } = error else { panic!("{error}") };
    assert_eq!(size, DEVICE_MIN);
    let commit = open(&file).unwrap().commit().clone();
    assert_eq!(commit.state, State::Failed);
    assert!(commit.reason.contains("the image needs"), "{}", commit.reason);

    // What is said to be needed is enough, to the byte.
    let file = device(needed);
    write(&file, 2000, State::Complete).unwrap();
    assert!(verify(&open(&file).unwrap()).is_ok());
    assert!(matches!(write(&device(needed - 4096), 2000, State::Complete), Err(StoreError::TooSmall { .. })));
}

#[test]
fn a_new_save_makes_the_old_image_unusable_at_once() {
    let file = device(16 << 20);
    let image = write(&file, 10, State::Complete).unwrap();
    drop(Writer::begin(image, &header(50)).unwrap());
    let image = open(&file).unwrap();
    assert_eq!(image.commit().state, State::Saving);
    assert!(matches!(image.header(), Err(StoreError::Incomplete { state: State::Saving, .. })));
}

#[test]
fn a_failed_save_says_why() {
    let file = device(16 << 20);
    let image = Image::create(Disk::open(file.path(), Access::Write).unwrap(), LABEL).unwrap();
    Writer::begin(image, &header(50)).unwrap().fail("the disk is on fire").unwrap();
    let image = open(&file).unwrap();
    assert_eq!((image.commit().state, image.commit().reason.as_str()), (State::Failed, "the disk is on fire"));
}

#[test]
fn an_image_that_does_not_pass_its_check_is_none() {
    let file = device(16 << 20);
    let image = Image::create(Disk::open(file.path(), Access::Write).unwrap(), LABEL).unwrap();
    let mut writer = Writer::begin(image, &header(10)).unwrap();
    pieces(10).for_each(|piece| writer.piece(piece).unwrap());
    let error = writer.finish(
        State::Complete,
        0,
        |image| {
            // It is all there already, but on the device no image yet.
            assert_eq!(verify(image).unwrap().stored, 10);
            assert_eq!(open(&file).unwrap().commit().state, State::Saving);
            Err("a page differs".into())
        },
        SaveStats::default,
    );
    let error = in_full(&error.unwrap_err());
    assert!(error.contains("what was read back") && error.contains("a page differs"), "{error}");
    let image = open(&file).unwrap();
    assert_eq!((image.commit().state, image.commit().reason.as_str()), (State::Failed, error.as_str()));
}

#[test]
fn a_change_of_state_has_its_time() {
    let file = device(16 << 20);
    assert_eq!(Image::create(Disk::open(file.path(), Access::Write).unwrap(), LABEL).unwrap().commit().changed_unix, 1);
    let before = dormouse_linux::procfs::now_unix();
    let image = write(&file, 10, State::Complete).unwrap();
    assert!((before..=before + 60).contains(&image.commit().changed_unix));
}

#[test]
fn a_restore_is_counted_and_an_image_is_consumed_once() {
    let file = device(16 << 20);
    let mut image = write(&file, 10, State::Complete).unwrap();
    image.begin_restore().unwrap();
    image.begin_restore().unwrap();
    assert_eq!(open(&file).unwrap().commit().attempts, 2);
    image.transition(State::Consumed, "").unwrap();
    assert!(image.begin_restore().is_err());
    assert!(image.transition(State::Complete, "").is_err());
    let mut snapshot = write(&file, 10, State::Snapshot).unwrap();
    assert!(snapshot.begin_restore().is_err());
}

#[test]
fn a_slot_that_is_torn_does_not_bring_an_older_state_back() {
    for slot in [4096, 8192] {
        let file = device(16 << 20);
        let mut image = write(&file, 10, State::Complete).unwrap();
        image.begin_restore().unwrap();
        image.transition(State::Consumed, "").unwrap();
        file.as_file().write_all_at(&[0xff; 512], slot).unwrap();
        assert_eq!(open(&file).unwrap().commit().state, State::Consumed);
    }
}

#[test]
fn a_device_that_was_cut_short_is_refused() {
    let file = device(16 << 20);
    let end = write(&file, 300, State::Complete).unwrap().commit().data_end;
    file.as_file().set_len(end - 4096).unwrap();
    let error = verify(&open(&file).unwrap()).unwrap_err().to_string();
    assert!(error.contains("cut short"), "{error}");
}

#[test]
fn devices_without_an_image_are_told_from_small_ones() {
    let file = device(16 << 20);
    assert!(matches!(open(&file), Err(StoreError::NotInitialised { .. })));
    let small = device(8192);
    assert!(matches!(open(&small), Err(StoreError::TooSmall { .. })));
}

#[test]
fn chunks_of_one_batch_are_read_together() {
    let file = device(16 << 20);
    let image = write(&file, 300, State::Complete).unwrap();
    let mut reader = Reader::open(&image, &image.header().unwrap()).unwrap();
    let device = reader.device();
    let (mut batches, mut zero) = (0, 0);
    while let Some(work) = reader.next().unwrap() {
        match work {
            Work::Zero(run) => zero += run.pages,
            Work::Chunks(batch) => {
                batches += 1;
                let bytes = device.read(batch.offset, batch.len).unwrap();
                for (view, stored) in batch.chunks(&bytes) {
                    assert_eq!(checksum(stored.unwrap()), view.chunk.checksum);
                }
            }
        }
    }
    assert_eq!(zero, 100);
    assert_eq!(batches, 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Anywhere in what the image uses, a byte that is not what was written is noticed, or nothing depends on it.
    #[test]
    fn any_damaged_byte_is_noticed_or_harmless(at in any::<prop::sample::Index>(), flip in 1_u8..) {
        let file = device(4 << 20);
        let end = write(&file, 40, State::Complete).unwrap().commit().data_end;
        let places: Vec<u64> = (0..12288).chain(65536..65536 + 4096).chain(DATA_OFFSET..end).collect();
        let at = places[at.index(places.len())];
        let mut byte = [0];
        file.as_file().read_exact_at(&mut byte, at).unwrap();
        file.as_file().write_all_at(&[byte[0] ^ flip], at).unwrap();
        match open(&file).map_err(anyhow::Error::from).and_then(|image| Ok((verify(&image)?, image))) {
            Err(_) => {}
            Ok((counts, image)) => {
                // A slot of the commit record, or the zeroes before an index block.
                prop_assert!((4096..12288).contains(&at) || at >= DATA_OFFSET);
                prop_assert_eq!((counts.stored, counts.zero), (40, 100));
                prop_assert_eq!(image.commit().state, State::Complete);
            }
        }
    }
}
