#![allow(clippy::unwrap_used, clippy::panic)]
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex};

use dormouse_image::layout::DATA_OFFSET;
use dormouse_image::{Chunk, IndexBlock, IndexBuilder, PfnRange, Uuid};
use proptest::prelude::*;

use super::*;
use crate::pipeline::seams::{
    Batch, BlockRead, ChunkSource, Everything, Fate, PageFilter, PageSink, PageSource, Piece, PieceSink, StoreFailure,
    Work,
};
use crate::policy::Compression;

/// Memory by page frame.
#[derive(Debug, Default)]
struct Memory(Mutex<BTreeMap<u64, Vec<u8>>>);

impl PageSource for Memory {
    fn read<T>(&self, run: PfnRange, read: impl FnOnce(&[u8]) -> T) -> io::Result<T> {
        let pages = self.0.lock().unwrap();
        let bytes: Vec<u8> = (run.start..run.end).flat_map(|pfn| pages[&pfn].clone()).collect();
        drop(pages);
        Ok(read(&bytes))
    }
}

impl PageSink for Memory {
    fn write<T>(&self, run: PfnRange, write: impl FnOnce(&mut [u8]) -> T) -> io::Result<T> {
        let mut bytes = vec![0xee; usize::try_from(run.pages()).unwrap() * 4096];
        let result = write(&mut bytes);
        let mut pages = self.0.lock().unwrap();
        for (pfn, page) in (run.start..run.end).zip(bytes.chunks(4096)) {
            assert!(pages.insert(pfn, page.to_vec()).is_none(), "page {pfn:#x} twice");
        }
        Ok(result)
    }
}

/// A store in memory with one index block.
struct Store {
    stream: Vec<u8>,
    index: IndexBuilder,
    room: usize,
}

impl Store {
    fn new(room: usize) -> Store {
        Store { stream: Vec::new(), index: IndexBuilder::new(Uuid([1; 16])), room }
    }

    fn reader(mut self) -> Reader {
        let at = (DATA_OFFSET + self.stream.len() as u64).next_multiple_of(4096);
        let (block, _) = self.index.finish(at).unwrap();
        let index = Arc::new(IndexBlock::decode(&block, at).unwrap());
        let mut work: Vec<Work> = index.zero.iter().map(|run| Work::Zero(*run)).collect();
        for (at, view) in index.chunks().enumerate() {
            let offset = view.chunk.offset / 4096 * 4096;
            let end = (view.chunk.offset + u64::from(view.chunk.stored_len)).next_multiple_of(4096);
            let len = usize::try_from(end - offset).unwrap();
            work.push(Work::Chunks(Batch { offset, len, index: Arc::clone(&index), chunks: at..at + 1 }));
        }
        self.stream.resize(self.stream.len().next_multiple_of(4096), 0);
        Reader { work, stream: Stream(Arc::new(self.stream)) }
    }
}

impl PieceSink for Store {
    fn piece(&mut self, piece: Piece) -> Result<(), StoreFailure> {
        if self.stream.len() + piece.len > self.room {
            return Err("the store is full".into());
        }
        let start = DATA_OFFSET + self.stream.len() as u64;
        for (chunk, extents) in piece.chunks() {
            self.index.chunk(&Chunk { offset: start + chunk.offset, ..*chunk }, extents)?;
        }
        for run in &piece.zero {
            self.index.zero(*run)?;
        }
        self.stream.extend(piece.buffer.as_deref().map_or(&[][..], |bytes| &bytes[..piece.len]));
        Ok(())
    }

    fn room(&self) -> u64 {
        (self.room - self.stream.len()) as u64
    }
}

struct Reader {
    work: Vec<Work>,
    stream: Stream,
}

#[derive(Clone)]
struct Stream(Arc<Vec<u8>>);

impl ChunkSource for Reader {
    type Device = Stream;

    fn device(&self) -> Stream {
        self.stream.clone()
    }

    fn next(&mut self) -> Result<Option<Work>, StoreFailure> {
        Ok(self.work.pop())
    }
}

impl BlockRead for Stream {
    fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), StoreFailure> {
        let start = usize::try_from(offset - DATA_OFFSET)?;
        bytes.copy_from_slice(self.0.get(start..start + bytes.len()).ok_or("past the end")?);
        Ok(())
    }
}

/// Pages of four kinds: zero, very compressible, random, text.
fn page(kind: u8, pfn: u64) -> Vec<u8> {
    let mut state = pfn.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut numbers = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    });
    match kind {
        0 => vec![0; 4096],
        1 => pfn.to_le_bytes().repeat(512),
        2 => numbers.take(512).flat_map(u64::to_le_bytes).collect(),
        _ => {
            const SYLLABLES: [&str; 16] = [
                "ka", "lo", "min", "ter", "us", "ed ", "ing ", "re", "the ", "of ", "page", "con", "al ", "ty, ", "in",
                "so ",
            ];
            let mut text = Vec::new();
            while text.len() < 4096 {
                let mut number = numbers.next().unwrap();
                for _ in 0..16 {
                    text.extend(SYLLABLES[usize::try_from(number % 16).unwrap()].bytes());
                    number /= 16;
                }
            }
            text.truncate(4096);
            text
        }
    }
}

fn memory(ranges: &[PfnRange], kinds: &[u8]) -> Memory {
    let frames = ranges.iter().flat_map(|range| range.start..range.end);
    let pages = frames.zip(kinds.iter().cycle()).map(|(pfn, kind)| (pfn, page(*kind, pfn)));
    Memory(Mutex::new(pages.collect()))
}

fn zstd(level: i32) -> Compression {
    Compression::Zstd { level }
}

/// Saves all pages of `ranges` that matter to `filter`, with so little memory for what is in flight that workers wait.
fn save_all(
    memory: &impl PageSource,
    ranges: &[PfnRange],
    filter: &impl PageFilter,
    compression: Compression,
    threads: usize,
    store: &mut Store,
) -> Result<Counts, PipelineError> {
    let task = Task { memory: ranges, filter, most: ranges.iter().map(PfnRange::pages).sum() };
    save(memory, &task, compression, Limits { threads, memory: 4 << 20 }, store, |_| ())
}

fn restore_all(store: Store, memory: &Memory, threads: usize) -> Result<Counts, PipelineError> {
    restore(&mut store.reader(), memory, Limits { threads, memory: 4 << 20 }, |_| ())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn saved_pages_come_back(
        kinds in proptest::collection::vec(0_u8..3, 1..200),
        lens in proptest::collection::vec((1_u64..300, 1_u64..400), 1..4),
        compression in prop_oneof![
            Just(Compression::Auto), Just(Compression::Store), Just(zstd(1)), Just(zstd(-3))
        ],
        threads in 1_usize..4,
    ) {
        let mut ranges = Vec::new();
        let mut at = 0xff00;
        for (gap, len) in lens {
            ranges.push(PfnRange { start: at + gap, end: at + gap + len });
            at += gap + len;
        }
        let before = memory(&ranges, &kinds);
        let mut store = Store::new(usize::MAX);
        let saved = save_all(&before, &ranges, &Everything, compression, threads, &mut store).unwrap();
        let after = Memory::default();
        let restored = restore_all(store, &after, threads).unwrap();
        prop_assert_eq!(saved.pages(), restored.pages());
        prop_assert_eq!(saved.stored + saved.zero, ranges.iter().map(PfnRange::pages).sum::<u64>());
        prop_assert!(before.0.into_inner().unwrap() == after.0.into_inner().unwrap());
    }
}

#[test]
fn a_store_that_fails_stops_the_save_with_its_words() {
    let ranges = [PfnRange { start: 0, end: 5000 }];
    let error =
        save_all(&memory(&ranges, &[2]), &ranges, &Everything, zstd(1), 3, &mut Store::new(1 << 20)).unwrap_err();
    assert_eq!(error.to_string(), "the store is full");
}

#[test]
fn a_damaged_chunk_stops_the_restore() {
    let ranges = [PfnRange { start: 0, end: 4096 }];
    for kind in [1, 2] {
        let mut store = Store::new(usize::MAX);
        save_all(&memory(&ranges, &[kind]), &ranges, &Everything, zstd(1), 2, &mut store).unwrap();
        let middle = store.stream.len() / 2;
        store.stream[middle] ^= 0x10;
        let error = restore_all(store, &Memory::default(), 2).unwrap_err();
        assert!(matches!(error, PipelineError::Chunk { .. }), "{error}");
    }
}

#[test]
fn memory_that_cannot_be_read_stops_the_save() {
    struct Broken;
    impl PageSource for Broken {
        fn read<T>(&self, _: PfnRange, _: impl FnOnce(&[u8]) -> T) -> io::Result<T> {
            Err(io::ErrorKind::PermissionDenied.into())
        }
    }
    let ranges = [PfnRange { start: 0x10, end: 5000 }];
    let error = save_all(&Broken, &ranges, &Everything, zstd(1), 2, &mut Store::new(usize::MAX)).unwrap_err();
    assert!(error.to_string().starts_with("memory at page frame 0x"), "{error}");
}

#[test]
fn memory_that_is_shorter_than_it_should_be_stops_the_save() {
    struct Short;
    impl PageSource for Short {
        fn read<T>(&self, run: PfnRange, read: impl FnOnce(&[u8]) -> T) -> io::Result<T> {
            Ok(read(&vec![7; usize::try_from(run.pages() - 1).unwrap() * 4096]))
        }
    }
    let ranges = [PfnRange { start: 0, end: 300 }];
    let error = save_all(&Short, &ranges, &Everything, zstd(1), 1, &mut Store::new(usize::MAX)).unwrap_err();
    assert!(matches!(error, PipelineError::Memory { pfn: 255, .. }), "{error}");
}

#[test]
fn pages_without_content_are_restored_as_zeroes_or_not_at_all() {
    struct ByNumber;
    impl PageFilter for ByNumber {
        fn fate(&self, pfn: u64) -> Fate {
            [Fate::Store, Fate::Zero, Fate::Leave][usize::try_from(pfn % 3).unwrap()]
        }
    }
    let ranges = [PfnRange { start: 0x30, end: 0x30 + 3000 }];
    let before = memory(&ranges, &[1]);
    let mut store = Store::new(usize::MAX);
    let counts = save_all(&before, &ranges, &ByNumber, zstd(1), 2, &mut store).unwrap();
    assert_eq!((counts.stored, counts.zero, counts.left), (1000, 1000, 1000));
    let after = Memory::default();
    restore_all(store, &after, 2).unwrap();
    let (before, after) = (before.0.into_inner().unwrap(), after.0.into_inner().unwrap());
    for (pfn, page) in before {
        match pfn % 3 {
            0 => assert_eq!(after[&pfn], page),
            1 => assert_eq!(after[&pfn], vec![0; 4096]),
            _ => assert!(!after.contains_key(&pfn)),
        }
    }
}

#[test]
fn auto_uses_the_time_that_a_device_takes_and_the_room_that_a_small_one_has() {
    let ranges = [PfnRange { start: 0, end: 8192 }];
    let before = memory(&ranges, &[3]);
    let task = Task { memory: &ranges, filter: &Everything, most: 8192 };
    // One buffer is the worker's, and four are the device's.
    let limits = Limits { threads: 1, memory: 5 << 20 };
    let saved = |compression, sink: &mut dyn FnMut(Piece), room| {
        let mut sink = Taking { take: sink, room };
        save(&before, &task, compression, limits, &mut sink, |_| ()).unwrap();
    };
    let size = |compression, room| {
        let mut bytes = 0;
        saved(compression, &mut |piece| bytes += piece.len as u64, room);
        bytes
    };
    let (quick, dense) = (size(zstd(-1), u64::MAX), size(zstd(3), u64::MAX));
    assert!(dense * 50 < quick * 49, "{dense} {quick}");

    // Nothing ever waits for a device that takes no time.
    let stored = size(Compression::Store, u64::MAX);
    let idle = size(Compression::Auto, u64::MAX);
    assert!(idle > (quick + stored) / 2, "{idle} {quick} {stored}");

    // The first four fill its queue. From then on the worker always waits, and after two pieces each compresses better.
    let mut queue = VecDeque::new();
    let (mut first, mut slow, mut pages) = (0, 0, 0);
    let mut take = |piece: Piece| {
        first += 1;
        if first > 8 {
            (slow, pages) = (slow + piece.len as u64, pages + piece.stored());
        }
        queue.push_back(piece);
        if queue.len() > 4 {
            // So long that the worker asks for its next buffer before this one is free.
            std::thread::sleep(std::time::Duration::from_millis(50));
            queue.pop_front();
        }
    };
    saved(Compression::Auto, &mut take, u64::MAX);
    let per_page = |bytes: u64, pages: u64| bytes * 1000 / pages;
    let (slow, quick) = (per_page(slow, pages), per_page(quick, 8192));
    assert!(slow * 50 < quick * 49, "{slow} {quick}");

    // No room to waste: it is as if the device never had time.
    let tight = per_page(size(Compression::Auto, 0), 8192);
    assert!(tight * 50 < quick * 49, "{tight} {quick}");
}

/// A sink without a store.
struct Taking<'a> {
    take: &'a mut dyn FnMut(Piece),
    room: u64,
}

impl PieceSink for Taking<'_> {
    fn piece(&mut self, piece: Piece) -> Result<(), StoreFailure> {
        (self.take)(piece);
        Ok(())
    }

    fn room(&self) -> u64 {
        self.room
    }
}
