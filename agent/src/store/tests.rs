#![allow(clippy::unwrap_used, clippy::panic)]
use std::io::ErrorKind;

use dormouse_image::layout::{DATA_OFFSET, DEVICE_MIN, HEADER_OFFSET, SLOT_OFFSETS};
use dormouse_image::{
    Chunk, Codec, Extent, Header, Label, PfnRange, PhysRange, SaveStats, SessionRecord, State, Uuid, checksum,
};
use dormouse_linux::error_chain::in_full;
use proptest::prelude::*;

use super::faulty::{Fault, Faulty};
use super::*;
use crate::pipeline::buffers::Buffers;
use crate::pipeline::seams::{ChunkSource, Piece, PieceSink, Work};
use crate::pipeline::{self, Limits};

pub(super) const LABEL: Label =
    Label { uuid: Uuid([7; 16]), created_unix: 1, extents: Vec::new(), mirror: None, stack: Vec::new() };

pub(crate) fn open(device: &Faulty) -> Result<Image, StoreError> {
    Image::open(device.disk())
}

pub(super) fn header(pages: u64) -> Header {
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
            piece.chunks.push(Chunk { offset, stored_len: 4096, codec: Codec::Store, checksum, ..Chunk::default() });
            piece.extents.push(Extent { pfn: 0x100 + number, pages: 1 });
            piece.extent_counts.push(1);
            piece.len += 4096;
        }
        piece
    })
}

/// An image of `stored` pages in chunks of one, and 100 zero pages after them.
fn write(device: &Faulty, stored: u64, state: State) -> Result<Image, StoreError> {
    save(Image::create(device.disk(), LABEL)?, stored, state)
}

fn save(image: Image, stored: u64, state: State) -> Result<Image, StoreError> {
    let mut writer = Writer::begin(image, &header(stored + 100), None)?;
    let zero = Piece { zero: vec![Extent { pfn: 0x100 + stored, pages: 100 }], ..Piece::default() };
    for piece in pieces(stored).chain([zero]) {
        writer.piece(piece).map_err(|error| *error.downcast::<StoreError>().unwrap())?;
    }
    writer.finish(state, 0, |_| Ok(()), |_| SaveStats::default())
}

/// A small image in memory that has this state.
pub(crate) fn saved(state: State) -> Image {
    open(&device_with(state, 10)).unwrap()
}

/// A device with an image of `stored` pages that has this state; of one that failed nobody knows how far it came.
pub(crate) fn device_with(state: State, stored: u64) -> Faulty {
    let device = Faulty::new(64 << 20);
    let image = Image::create(device.disk(), LABEL).unwrap();
    if state == State::Failed {
        let mut writer = Writer::begin(image, &header(stored + 100), None).unwrap();
        pieces(stored).for_each(|piece| writer.piece(piece).unwrap());
        writer.fail("a test").unwrap();
        return device;
    }
    match state {
        State::Empty => {}
        State::Snapshot => drop(save(image, stored, state).unwrap()),
        _ => {
            let mut image = save(image, stored, State::Complete).unwrap();
            match state {
                State::Consumed => {
                    image.begin_restore().unwrap();
                    image.consume().unwrap();
                }
                State::Restoring => image.begin_restore().unwrap(),
                State::Discarded => image.transition(State::Discarded, "a test").unwrap(),
                _ => {}
            }
        }
    }
    device
}

/// An image on this disk that is saved, and then read in another opening of it.
pub(super) fn save_and_verify(disk: &Disk) {
    save(Image::create(disk.clone(), LABEL).unwrap(), 300, State::Complete).unwrap();
    let counts = verify(&Image::open(disk.clone()).unwrap()).unwrap();
    assert_eq!((counts.stored, counts.zero), (300, 100));
}

/// The same image with another save in it.
pub(crate) fn save_again(image: Image) -> Image {
    save(image, 500, State::Complete).unwrap()
}

pub(super) fn verify(image: &Image) -> anyhow::Result<pipeline::Counts> {
    let header = image.header()?;
    Ok(pipeline::discard(&mut Reader::open(image, &header)?, Limits::of_threads(2), |_| ())?)
}

#[test]
fn reads_what_was_written_over_several_index_blocks() {
    let device = Faulty::new(64 << 20);
    write(&device, 9000, State::Complete).unwrap();
    let image = open(&device).unwrap();
    let commit = image.commit();
    assert_eq!((commit.state, commit.totals.chunks, commit.totals.index_blocks), (State::Complete, 9000, 3));
    let counts = verify(&image).unwrap();
    assert_eq!((counts.stored, counts.zero), (9000, 100));
}

#[test]
fn too_small_a_device_reports_what_is_needed() {
    let device = Faulty::new(DEVICE_MIN);
    let error = write(&device, 2000, State::Complete).unwrap_err();
    let StoreError::TooSmall { size, needed, .. } = error else { panic!("{error}") };
    assert_eq!(size, DEVICE_MIN);
    let commit = open(&device).unwrap().commit().clone();
    assert_eq!(commit.state, State::Failed);
    assert!(commit.reason.contains("the image needs"), "{}", commit.reason);

    // What is reported as needed is enough, to the byte.
    let device = Faulty::new(needed);
    write(&device, 2000, State::Complete).unwrap();
    assert!(verify(&open(&device).unwrap()).is_ok());
    assert!(matches!(write(&Faulty::new(needed - 4096), 2000, State::Complete), Err(StoreError::TooSmall { .. })));
}

#[test]
fn a_new_save_makes_the_old_image_unusable_at_once() {
    let device = Faulty::new(16 << 20);
    let image = write(&device, 10, State::Complete).unwrap();
    drop(Writer::begin(image, &header(50), None).unwrap());
    let image = open(&device).unwrap();
    assert_eq!(image.commit().state, State::Saving);
    assert!(matches!(image.header(), Err(StoreError::Incomplete { state: State::Saving, .. })));
}

#[test]
fn a_failed_save_records_why() {
    let device = Faulty::new(16 << 20);
    let image = Image::create(device.disk(), LABEL).unwrap();
    Writer::begin(image, &header(50), None).unwrap().fail("the disk is on fire").unwrap();
    let image = open(&device).unwrap();
    assert_eq!((image.commit().state, image.commit().reason.as_str()), (State::Failed, "the disk is on fire"));
}

#[test]
fn an_image_that_fails_its_check_is_not_complete() {
    let device = Faulty::new(16 << 20);
    let image = Image::create(device.disk(), LABEL).unwrap();
    let mut writer = Writer::begin(image, &header(10), None).unwrap();
    pieces(10).for_each(|piece| writer.piece(piece).unwrap());
    let error = writer.finish(
        State::Complete,
        0,
        |image| {
            // It is all there already, but on the device no image yet.
            assert_eq!(verify(image).unwrap().stored, 10);
            assert_eq!(open(&device).unwrap().commit().state, State::Saving);
            Err("a page differs".into())
        },
        |_| SaveStats::default(),
    );
    let error = in_full(&error.unwrap_err());
    assert!(error.contains("what was read back") && error.contains("a page differs"), "{error}");
    let image = open(&device).unwrap();
    assert_eq!((image.commit().state, image.commit().reason.as_str()), (State::Failed, error.as_str()));
}

#[test]
fn a_change_of_state_has_its_time() {
    let device = Faulty::new(16 << 20);
    assert_eq!(Image::create(device.disk(), LABEL).unwrap().commit().changed_unix, 1);
    let before = dormouse_linux::procfs::now_unix();
    let image = write(&device, 10, State::Complete).unwrap();
    assert!((before..=before + 60).contains(&image.commit().changed_unix));
}

#[test]
fn a_restore_is_counted_and_an_image_is_consumed_once() {
    let device = Faulty::new(16 << 20);
    let mut image = write(&device, 10, State::Complete).unwrap();
    image.begin_restore().unwrap();
    image.begin_restore().unwrap();
    assert_eq!(open(&device).unwrap().commit().attempts, 2);
    image.transition(State::Consumed, "").unwrap();
    assert!(image.begin_restore().is_err());
    assert!(image.transition(State::Complete, "").is_err());
    let mut snapshot = write(&device, 10, State::Snapshot).unwrap();
    assert!(snapshot.begin_restore().is_err());
}

#[test]
fn a_torn_slot_does_not_bring_an_older_state_back() {
    for slot in [4096, 8192] {
        let device = Faulty::new(16 << 20);
        let mut image = write(&device, 10, State::Complete).unwrap();
        image.begin_restore().unwrap();
        image.transition(State::Consumed, "").unwrap();
        device.put(slot, &[0xff; 512]);
        assert_eq!(open(&device).unwrap().commit().state, State::Consumed);
    }
}

/// Memory is A's by then. A slot that has the new state, durably, keeps every boot from resuming it again.
#[test]
fn one_durable_slot_consumes_an_image() {
    for (fault, is_consumed) in [(0, false), (1, true)] {
        let device = Faulty::new(16 << 20);
        let mut image = write(&device, 10, State::Complete).unwrap();
        image.begin_restore().unwrap();
        device.fail(Fault::Flush(fault));
        let result = image.consume();
        assert_eq!(matches!(result, Ok(Some(StoreError::Flush { .. }))), is_consumed, "{result:?}");
        assert_eq!(result.is_err(), !is_consumed);
        assert_eq!(image.commit().state == State::Consumed, is_consumed);
        if is_consumed {
            device.power_cycle(true);
            assert_eq!(open(&device).unwrap().commit().state, State::Consumed);
        }
    }
    for slot in SLOT_OFFSETS {
        let device = Faulty::new(16 << 20);
        let mut image = write(&device, 10, State::Complete).unwrap();
        image.begin_restore().unwrap();
        device.fail(Fault::Write(slot + 100));
        let is_consumed = image.consume().is_ok();
        device.power_cycle(true);
        let state = open(&device).unwrap().commit().state;
        assert_eq!(state, if is_consumed { State::Consumed } else { State::Restoring });
    }
}

#[test]
fn rejects_a_device_that_was_cut_short() {
    let device = Faulty::new(16 << 20);
    let end = write(&device, 300, State::Complete).unwrap().commit().data_end;
    device.cut(end - 4096);
    let error = verify(&open(&device).unwrap()).unwrap_err().to_string();
    assert!(error.contains("cut short"), "{error}");
}

#[test]
fn rejects_uninitialised_and_small_devices() {
    let device = Faulty::new(16 << 20);
    assert!(matches!(open(&device), Err(StoreError::NotInitialised { .. })));
    let small = Faulty::new(8192);
    assert!(matches!(open(&small), Err(StoreError::TooSmall { .. })));
}

#[test]
fn chunks_of_one_batch_are_read_together() {
    let device = Faulty::new(16 << 20);
    let image = write(&device, 300, State::Complete).unwrap();
    let mut reader = Reader::open(&image, &image.header().unwrap()).unwrap();
    let blocks = reader.device();
    let (mut batches, mut zero) = (Vec::new(), 0);
    while let Some(work) = reader.next().unwrap() {
        match work {
            Work::Zero(run) => zero += run.pages,
            Work::Chunks(batch) => {
                batches.push(batch.chunks.len());
                let bytes = blocks.read(batch.offset, batch.len).unwrap();
                for (view, place) in batch.chunks() {
                    assert_eq!(checksum(&bytes[place.unwrap()]), view.chunk.checksum);
                }
            }
        }
    }
    assert_eq!(zero, 100);
    let chunks: usize = batches.iter().sum();
    assert_eq!(chunks as u64, image.commit().totals.chunks);
    // Ever fewer at once, so that no worker is left alone with many in the end.
    assert!(batches[0] > 1 && batches.last() == Some(&1) && batches.is_sorted_by(|a, b| a >= b), "{batches:?}");
}

/// No boot resumes what is on the device, now that it works again.
fn is_not_resumed(device: &Faulty) -> State {
    device.mend();
    let image = open(device).unwrap();
    assert!(!image.commit().state.is_waiting(), "{:?}", image.commit());
    assert!(image.header().is_err());
    image.commit().state
}

#[test]
fn a_header_that_cannot_be_written_leaves_an_unfinished_save() {
    let device = Faulty::new(16 << 20);
    device.fail(Fault::Write(HEADER_OFFSET));
    let error = write(&device, 10, State::Complete).unwrap_err();
    assert!(matches!(error, StoreError::Io { what: "writing", offset: HEADER_OFFSET, .. }), "{error}");
    assert_eq!(in_full(&error).matches("Input/output error").count(), 1, "{}", in_full(&error));
    assert_eq!(is_not_resumed(&device), State::Saving);
}

#[test]
fn a_piece_that_cannot_be_written_fails_the_save() {
    for fault in [Fault::Write, Fault::TornWrite] {
        let device = Faulty::new(16 << 20);
        let image = Image::create(device.disk(), LABEL).unwrap();
        device.fail(fault(DATA_OFFSET + (1 << 20) + 5000));
        let error = save(image, 1000, State::Complete).unwrap_err();
        let offset = DATA_OFFSET + (1 << 20);
        assert!(matches!(error, StoreError::Io { what: "writing", offset: at, .. } if at == offset), "{error}");
        // Whether a later piece or the end has met the error.
        assert!(matches!(is_not_resumed(&device), State::Failed | State::Saving));
    }
}

#[test]
fn a_commit_record_that_cannot_be_written_is_not_believed() {
    for slot in SLOT_OFFSETS {
        for fault in [Fault::Write, Fault::TornWrite] {
            let device = Faulty::new(16 << 20);
            let mut writer = Writer::begin(Image::create(device.disk(), LABEL).unwrap(), &header(10), None).unwrap();
            pieces(10).for_each(|piece| writer.piece(piece).unwrap());
            device.fail(fault(slot + 100));
            let error = writer.finish(State::Complete, 0, |_| Ok(()), |_| SaveStats::default()).unwrap_err();
            assert!(matches!(error, StoreError::Io { what: "writing", offset, .. } if offset == slot), "{error}");
            is_not_resumed(&device);
        }
    }
}

#[test]
fn a_flush_that_fails_at_the_commit_fails_the_save() {
    // That of the data, and that of each slot.
    for number in 0..3 {
        let device = Faulty::new(16 << 20);
        let mut writer = Writer::begin(Image::create(device.disk(), LABEL).unwrap(), &header(10), None).unwrap();
        pieces(10).for_each(|piece| writer.piece(piece).unwrap());
        device.fail(Fault::Flush(number));
        let error = writer.finish(State::Complete, 0, |_| Ok(()), |_| SaveStats::default()).unwrap_err();
        assert!(matches!(error, StoreError::Flush { .. }), "{error}");
        assert_eq!(is_not_resumed(&device), State::Failed);
        assert!(open(&device).unwrap().commit().reason.ends_with("Input/output error (os error 5)"));
    }
}

#[test]
fn an_index_that_cannot_be_read_is_an_error() {
    let device = Faulty::new(64 << 20);
    let image = write(&device, 9000, State::Complete).unwrap();
    let header = image.header().unwrap();
    let last = image.commit().last_index.offset;
    for (fault, kind) in
        [(Fault::Read(last + 4096), None), (Fault::ShortRead(last + 4096), Some(ErrorKind::UnexpectedEof))]
    {
        device.fail(fault);
        let error = Reader::open(&image, &header).unwrap_err();
        let StoreError::Io { what: "reading", offset, source, .. } = &error else { panic!("{error}") };
        assert!(*offset == last && kind.is_none_or(|kind| source.kind() == kind), "{error:?}");
        device.mend();
        // Once it was opened, blocks are read again.
        let mut reader = Reader::open(&image, &header).unwrap();
        device.fail(fault);
        let mut work = std::iter::from_fn(|| reader.next().transpose());
        assert!(work.any(|work| work.is_err()));
        device.mend();
    }
}

#[test]
fn at_whatever_write_the_power_goes_only_a_whole_image_is_complete() {
    let device = Faulty::new(4 << 20);
    device.fail(Fault::Death(usize::MAX));
    write(&device, 300, State::Complete).unwrap();
    let total = device.writes();
    assert!(total > 10, "{total}");
    let mut complete = 0;
    for (writes, is_lost) in (0..=total).flat_map(|writes| [(writes, false), (writes, true)]) {
        let device = Faulty::new(4 << 20);
        device.fail(Fault::Death(writes));
        let result = write(&device, 300, State::Complete);
        assert_eq!(result.is_ok(), writes == total);
        device.power_cycle(is_lost);
        // Before it has its label it is not an image at all.
        let Ok(image) = open(&device) else { continue };
        if image.commit().state == State::Complete {
            complete += 1;
            let counts = verify(&image).unwrap();
            assert_eq!((counts.stored, counts.zero), (300, 100));
        } else {
            assert!(image.header().is_err(), "{:?}", image.commit());
        }
    }
    // In the end, and where the first of the two slots has been written.
    assert!(complete >= 3, "{complete}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Anywhere in what the image uses, a byte that is not what was written is noticed, or nothing depends on it.
    #[test]
    fn any_damaged_byte_is_noticed_or_harmless(at in any::<prop::sample::Index>(), flip in 1_u8..) {
        let device = Faulty::new(4 << 20);
        let end = write(&device, 40, State::Complete).unwrap().commit().data_end;
        let places: Vec<u64> = (0..12288).chain(65536..65536 + 4096).chain(DATA_OFFSET..end).collect();
        let at = places[at.index(places.len())];
        device.put(at, &[device.bytes(at..at + 1)[0] ^ flip]);
        match open(&device).map_err(anyhow::Error::from).and_then(|image| Ok((verify(&image)?, image))) {
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
