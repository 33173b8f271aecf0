//! Sealed images: written and read through the pipeline, and in the hands of somebody who can write the device.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::io;
use std::sync::Mutex;

use dormouse_image::layout::{DATA_OFFSET, HEADER_OFFSET, SLOT_OFFSETS};
use dormouse_image::seal::{Nonce, Save, SaveKey, Sealing, Suite, wrap};
use dormouse_image::{BLOCK, Block, Commit, FormatError, PfnRange, SaveStats, State};
use proptest::prelude::*;

use super::faulty::{Fault, Faulty};
use super::tests::{LABEL, header, open, verify};
use super::*;
use crate::pipeline::seams::{Everything, PageSink, PageSource};
use crate::pipeline::{self, Counts, Limits, Task};
use crate::policy::Compression;

/// The first page of the saved memory.
const FIRST: u64 = 0x100;
/// Of the devices.
const SIZE: u64 = 3 << 20;
const MARK: &[u8] = b"a word that is in memory alone";

fn key() -> SaveKey {
    SaveKey::new(&[0x17; 32])
}

fn sealing(suite: Suite) -> Sealing {
    let save = Save { image: LABEL.uuid, save_id: header(1).session.save_id, nonce: Nonce([5; 16]) };
    let wraps = vec![wrap(&[3; 32], &save, 1, 1, [0; 32], &key()).unwrap()];
    Sealing { key: key(), nonce: save.nonce, suite, wraps }
}

/// What is in a page: text, the same byte again and again, noise, or zeroes.
fn page(pfn: u64) -> Vec<u8> {
    let mut state = pfn.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        (state >> 32).to_le_bytes()[0]
    });
    match pfn % 5 {
        0 => vec![0; BLOCK],
        1 => MARK.iter().copied().cycle().take(BLOCK).collect(),
        2 => vec![pfn.to_le_bytes()[0]; BLOCK],
        _ => noise.by_ref().take(BLOCK).collect(),
    }
}

struct Source;

impl PageSource for Source {
    fn read<T>(&self, run: PfnRange, read: impl FnOnce(&[u8]) -> T) -> io::Result<T> {
        Ok(read(&(run.start..run.end).flat_map(page).collect::<Vec<u8>>()))
    }
}

#[derive(Default)]
struct Sink(Mutex<BTreeMap<u64, Vec<u8>>>);

impl PageSink for Sink {
    fn write<T>(&self, run: PfnRange, write: impl FnOnce(&mut [u8]) -> T) -> io::Result<T> {
        let mut bytes = vec![0xee; usize::try_from(run.pages()).unwrap() * BLOCK];
        let result = write(&mut bytes);
        let pages = (run.start..run.end).zip(bytes.chunks(BLOCK).map(<[u8]>::to_vec));
        self.0.lock().unwrap().extend(pages);
        Ok(result)
    }
}

fn fill(writer: &mut Writer, pages: u64, threads: usize) -> Counts {
    let memory = [PfnRange { start: FIRST, end: FIRST + pages }];
    let task = Task { memory: &memory, filter: &Everything, most: pages };
    let limits = Limits { threads, memory: 6 << 20 };
    pipeline::save(&Source, &task, Compression::Zstd { level: 1 }, limits, writer, |_| ()).unwrap()
}

/// Saves `pages` pages into `image`, and compares what can be read back before it is complete.
fn save_into(image: Image, sealing: Option<&Sealing>, pages: u64) -> Result<Image, StoreError> {
    let mut writer = Writer::begin(image, &header(pages), sealing)?;
    fill(&mut writer, pages, 2);
    let check = |image: &Image| {
        assert_eq!(restored(image).unwrap().len() as u64, pages);
        Ok(())
    };
    writer.finish(State::Complete, 0, check, |_| SaveStats::default())
}

fn saved(suite: Suite, pages: u64) -> Faulty {
    let device = Faulty::new(SIZE);
    save_into(Image::create(device.disk(), LABEL).unwrap(), Some(&sealing(suite)), pages).unwrap();
    device
}

/// The pages of an image that is unlocked.
fn restored(image: &Image) -> anyhow::Result<BTreeMap<u64, Vec<u8>>> {
    let sink = Sink::default();
    let mut reader = Reader::open(image, &image.header()?)?;
    pipeline::restore(&mut reader, &sink, Limits { threads: 2, memory: 6 << 20 }, |_| ())?;
    Ok(sink.0.into_inner().unwrap())
}

fn unlocked(device: &Faulty) -> Result<Image, StoreError> {
    let mut image = open(device)?;
    image.unlock(Some(&key()))?;
    Ok(image)
}

/// What a restore comes to, and whether memory was written before it failed.
fn restore(device: &Faulty) -> (anyhow::Result<Counts>, bool) {
    let sink = Sink::default();
    let run = || -> anyhow::Result<Counts> {
        let image = unlocked(device)?;
        let mut reader = Reader::open(&image, &image.header()?)?;
        Ok(pipeline::restore(&mut reader, &sink, Limits { threads: 1, memory: 6 << 20 }, |_| ())?)
    };
    let result = run();
    let is_written = !sink.0.lock().unwrap().is_empty();
    (result, is_written)
}

fn format_error(error: &StoreError) -> FormatError {
    match error {
        StoreError::Format { source, .. } => source.clone(),
        other => panic!("{other}"),
    }
}

fn is_in(device: &Faulty, text: &[u8]) -> bool {
    device.bytes(0..SIZE).windows(text.len()).any(|bytes| bytes == text)
}

#[test]
fn a_sealed_session_comes_back_with_its_key_alone() {
    for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
        let device = saved(suite, 400);
        assert!(!is_in(&device, MARK) && !is_in(&device, b"DMHEADER") && !is_in(&device, b"DMINDEX"), "{suite}");
        let image = unlocked(&device).unwrap();
        let pages = restored(&image).unwrap();
        assert!(pages.len() == 400 && pages.iter().all(|(pfn, bytes)| *bytes == page(*pfn)), "{suite}");
        let counts = verify(&image).unwrap();
        assert_eq!(counts.stored + counts.zero, 400);

        let mut image = open(&device).unwrap();
        assert!(image.is_sealed());
        assert_eq!(format_error(&image.header().unwrap_err()), FormatError::Sealed);
        assert_eq!(format_error(&image.unlock(None).unwrap_err()), FormatError::Sealed);
        let other = image.unlock(Some(&SaveKey::new(&[1; 32]))).unwrap_err();
        assert_eq!(format_error(&other), FormatError::Forged(Block::Commit));
        assert!(image.header().is_err());
    }
    // The marker is found where nothing is sealed.
    let device = Faulty::new(SIZE);
    let mut image = save_into(Image::create(device.disk(), LABEL).unwrap(), None, 100).unwrap();
    assert!(is_in(&device, &MARK[..10]) && is_in(&device, b"DMHEADER"));
    assert_eq!(format_error(&image.unlock(Some(&key())).unwrap_err()), FormatError::NotSealed);
    assert!(image.unlock(None).is_ok() && restored(&image).is_ok());
}

#[test]
fn nothing_opens_an_image_that_was_used_up_or_given_up() {
    let both_slots = |device: &Faulty| SLOT_OFFSETS.map(|slot| device.bytes(slot..slot + 4096));
    for state in [State::Consumed, State::Discarded, State::Failed, State::Saving] {
        let device = saved(Suite::Aes256Gcm, 100);
        let before = both_slots(&device);
        assert!(before.iter().all(|slot| slot[238..320].iter().any(|byte| *byte != 0)));
        let mut image = unlocked(&device).unwrap();
        match state {
            State::Consumed => {
                image.begin_restore().unwrap();
                // Another try needs the key again.
                assert!(unlocked(&device).is_ok() && image.header().is_ok());
                assert!(image.consume().unwrap().is_none());
            }
            State::Saving => {
                drop(Writer::begin(open(&device).unwrap(), &header(100), Some(&sealing(Suite::Aes256Gcm))))
            }
            state => image.transition(state, "a test").unwrap(),
        }
        for slot in both_slots(&device) {
            // Neither nonce, tags, mac nor wraps; the suite tells that it was sealed.
            assert!(slot[236] == 1 && slot[237..320].iter().chain(&slot[1344..]).all(|byte| *byte == 0), "{state}");
        }
        let error = format_error(&unlocked(&device).unwrap_err());
        assert_eq!(error, FormatError::KeyWiped(state));
        assert_eq!(format_error(&open(&device).unwrap().unlock(None).unwrap_err()), error);
        if state != State::Saving {
            assert!(image.header().is_err());
        }
        // By hand: both slots say that a session waits.
        let mut commit = open(&device).unwrap().commit().clone();
        if commit.header.is_some() {
            (commit.seq, commit.state) = (commit.seq + 1, State::Complete);
            SLOT_OFFSETS.iter().for_each(|slot| device.put(*slot, &commit.encode().unwrap()));
            let (result, is_written) = restore(&device);
            assert!(result.is_err() && !is_written, "{state}");
            // Nor does a record of before, of which somebody has kept the wrapped key, come without the rest.
            commit.seal = Commit::decode(&before[0]).unwrap().seal;
            SLOT_OFFSETS.iter().for_each(|slot| device.put(*slot, &commit.encode().unwrap()));
            assert!(restore(&device).0.is_err());
        }
    }
}

#[test]
fn a_save_that_fails_leaves_no_key() {
    let device = Faulty::new(SIZE);
    let image = Image::create(device.disk(), LABEL).unwrap();
    let mut writer = Writer::begin(image, &header(100), Some(&sealing(Suite::Aes256Gcm))).unwrap();
    fill(&mut writer, 100, 1);
    let result = writer.finish(State::Complete, 0, |_| Err("it differs".into()), |_| SaveStats::default());
    assert!(matches!(result, Err(StoreError::Unverified { .. })));
    let commit = open(&device).unwrap().commit().clone();
    assert!(commit.state == State::Failed && commit.seal.unwrap().is_wiped());
    assert!(!is_in(&device, &key().bytes()[..]));
}

/// A byte of each block that is used, and what is looked at before memory is written.
#[test]
fn rejects_damage_and_forgery_before_memory_is_written() {
    let device = saved(Suite::Aes256Gcm, 150);
    let commit = open(&device).unwrap().commit().clone();
    let header_end = HEADER_OFFSET + u64::from(commit.header.len);
    let last = commit.last_index.offset;
    let before_memory = (HEADER_OFFSET..header_end).chain(last..commit.data_end).step_by(137);
    for at in before_memory {
        let good = device.bytes(at..at + 1)[0];
        device.put(at, &[good ^ 2]);
        let (result, is_written) = restore(&device);
        assert!(result.is_err() && !is_written, "{at}");
        device.put(at, &[good]);
    }
    for at in (DATA_OFFSET + 5..last).step_by(4096) {
        let good = device.bytes(at..at + 1)[0];
        device.put(at, &[good ^ 2]);
        let result = restore(&device).0;
        // What follows the last chunk of a piece is nothing.
        let is_padding = device.bytes(at..at + 1)[0] == 2 && good == 0;
        assert!(result.is_err() || is_padding, "{at}");
        device.put(at, &[good]);
    }
    assert!(restore(&device).0.is_ok());
}

#[test]
fn rejects_chunks_that_were_exchanged_and_parts_of_other_saves() {
    let first = saved(Suite::Aes256Gcm, 300);
    let end = open(&first).unwrap().commit().data_end;
    // Two blocks of noise.
    let blocks = [DATA_OFFSET, DATA_OFFSET + 64 * 4096].map(|at| (at, first.bytes(at..at + 4096)));
    let exchanged = saved(Suite::Aes256Gcm, 300);
    exchanged.put(blocks[0].0, &blocks[1].1);
    exchanged.put(blocks[1].0, &blocks[0].1);
    assert!(restore(&exchanged).0.is_err());

    // The same session sealed with another key, and with the same key once more: each part of the one in the other.
    let other_key = Sealing { key: SaveKey::new(&[9; 32]), ..sealing(Suite::Aes256Gcm) };
    let other_nonce = Sealing { nonce: Nonce([6; 16]), ..sealing(Suite::Aes256Gcm) };
    for other in [other_key, other_nonce] {
        let device = Faulty::new(SIZE);
        save_into(Image::create(device.disk(), LABEL).unwrap(), Some(&other), 300).unwrap();
        for part in [4096..12288, HEADER_OFFSET..DATA_OFFSET, DATA_OFFSET..end] {
            let bytes = device.bytes(part.clone());
            let victim = saved(Suite::Aes256Gcm, 300);
            victim.put(part.start, &bytes);
            let (result, is_written) = restore(&victim);
            assert!(result.is_err() && (!is_written || part.start == DATA_OFFSET), "{part:?}");
        }
        if other.key != key() {
            assert_eq!(format_error(&unlocked(&device).unwrap_err()), FormatError::Forged(Block::Commit));
        }
    }
}

#[test]
fn at_whatever_write_the_power_goes_only_a_whole_sealed_image_is_complete() {
    let device = Faulty::new(4 << 20);
    let save = |device: &Faulty| {
        let sealing = sealing(Suite::ChaCha20Poly1305);
        Image::create(device.disk(), LABEL).and_then(|image| {
            let mut writer = Writer::begin(image, &header(40), Some(&sealing))?;
            fill(&mut writer, 40, 1);
            writer.finish(State::Complete, 0, |_| Ok(()), |_| SaveStats::default())
        })
    };
    device.fail(Fault::Death(usize::MAX));
    save(&device).unwrap();
    let total = device.writes();
    let mut complete = 0;
    for (writes, is_lost) in (0..=total).flat_map(|writes| [(writes, false), (writes, true)]) {
        let device = Faulty::new(4 << 20);
        device.fail(Fault::Death(writes));
        assert_eq!(save(&device).is_ok(), writes == total);
        device.power_cycle(is_lost);
        let Ok(image) = open(&device) else { continue };
        match image.commit().state {
            State::Complete => {
                complete += 1;
                assert_eq!(restored(&unlocked(&device).unwrap()).unwrap().len(), 40);
            }
            _ => assert!(unlocked(&device).is_err()),
        }
    }
    assert!(complete >= 3, "{complete}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    /// As [`super::tests`] has it for what is not sealed: here no checksum can be corrected either.
    #[test]
    fn any_forged_byte_is_noticed_or_harmless(at in any::<prop::sample::Index>(), flip in 1_u8..) {
        let device = saved(Suite::Aes256Gcm, 20);
        let end = open(&device).unwrap().commit().data_end;
        let places: Vec<u64> = (0..12288).chain(65536..65536 + 4096).chain(DATA_OFFSET..end).collect();
        let at = places[at.index(places.len())];
        device.put(at, &[device.bytes(at..at + 1)[0] ^ flip]);
        match restore(&device).0 {
            Err(_) => {}
            Ok(counts) => {
                // A slot of the commit record, or the zeroes before an index block.
                prop_assert!((4096..12288).contains(&at) || at >= DATA_OFFSET);
                prop_assert_eq!((counts.stored, counts.zero), (16, 4));
            }
        }
    }
}
