#![allow(clippy::unwrap_used, clippy::panic)]
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use dormouse_image::layout::DATA_OFFSET;
use dormouse_image::{Chunk, Extent, IndexBlock, IndexBuilder, PfnRange, Uuid};
use proptest::prelude::*;

use super::*;
use crate::policy::Compression;
use crate::stage::{
    Batch, Buffers, ChunkSink, ChunkSource, Encoded, Everything, Fate, PageFilter, PageSink, PageSource, StoreFailure,
    Work,
};

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
            let start = usize::try_from(view.chunk.offset - DATA_OFFSET).unwrap();
            let stored = &self.stream[start..start + view.chunk.stored_len as usize];
            let mut bytes = Buffers::new(1 << 20).take().unwrap();
            bytes[..stored.len()].copy_from_slice(stored);
            let index = Arc::clone(&index);
            work.push(Work::Chunks(Batch { bytes, offset: view.chunk.offset, index, chunks: at..at + 1 }));
        }
        Reader(work)
    }
}

impl ChunkSink for Store {
    fn chunk(&mut self, chunk: &Encoded) -> Result<(), StoreFailure> {
        if self.stream.len() + chunk.bytes.len() > self.room {
            return Err("the store is full".into());
        }
        let record = Chunk {
            offset: DATA_OFFSET + self.stream.len() as u64,
            stored_len: u32::try_from(chunk.bytes.len())?,
            codec: chunk.codec,
            checksum: chunk.checksum,
        };
        self.stream.extend(&chunk.bytes);
        Ok(self.index.chunk(&record, &chunk.extents)?)
    }

    fn zero(&mut self, run: Extent) -> Result<(), StoreFailure> {
        Ok(self.index.zero(run)?)
    }
}

struct Reader(Vec<Work>);

impl ChunkSource for Reader {
    fn next(&mut self, _: &Buffers) -> Result<Option<Work>, StoreFailure> {
        Ok(self.0.pop())
    }
}

/// Pages of three kinds: zero, compressible, random.
fn page(kind: u8, pfn: u64) -> Vec<u8> {
    match kind {
        0 => vec![0; 4096],
        1 => pfn.to_le_bytes().repeat(512),
        _ => {
            let mut state = pfn.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let words = std::iter::repeat_with(|| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_le_bytes()
            });
            words.take(512).flatten().collect()
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn what_was_saved_comes_back(
        kinds in proptest::collection::vec(0_u8..3, 1..200),
        lens in proptest::collection::vec((1_u64..300, 1_u64..400), 1..4),
        level in prop_oneof![Just(None), Just(Some(1)), Just(Some(-3))],
        threads in 1_usize..4,
    ) {
        let mut ranges = Vec::new();
        let mut at = 0xff00;
        for (gap, len) in lens {
            ranges.push(PfnRange { start: at + gap, end: at + gap + len });
            at += gap + len;
        }
        let before = memory(&ranges, &kinds);
        let compression = level.map_or(Compression::Store, zstd);
        let mut store = Store::new(usize::MAX);
        let saved = save(&before, &ranges, &Everything, compression, threads, &mut store, |_| ()).unwrap();
        let after = Memory::default();
        let restored = restore(&mut store.reader(), &after, threads, |_| ()).unwrap();
        prop_assert_eq!(saved, restored);
        prop_assert_eq!(saved.stored + saved.zero, ranges.iter().map(PfnRange::pages).sum::<u64>());
        prop_assert!(before.0.into_inner().unwrap() == after.0.into_inner().unwrap());
    }
}

#[test]
fn a_store_that_fails_stops_the_save_with_its_words() {
    let ranges = [PfnRange { start: 0, end: 5000 }];
    let error =
        save(&memory(&ranges, &[2]), &ranges, &Everything, zstd(1), 3, &mut Store::new(1 << 20), |_| ()).unwrap_err();
    assert_eq!(error.to_string(), "the store is full");
}

#[test]
fn a_damaged_chunk_stops_the_restore() {
    let ranges = [PfnRange { start: 0, end: 4096 }];
    for kind in [1, 2] {
        let mut store = Store::new(usize::MAX);
        save(&memory(&ranges, &[kind]), &ranges, &Everything, zstd(1), 2, &mut store, |_| ()).unwrap();
        let middle = store.stream.len() / 2;
        store.stream[middle] ^= 0x10;
        let error = restore(&mut store.reader(), &Memory::default(), 2, |_| ()).unwrap_err();
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
    let error = save(&Broken, &ranges, &Everything, zstd(1), 2, &mut Store::new(usize::MAX), |_| ()).unwrap_err();
    assert!(error.to_string().starts_with("memory at page frame 0x"), "{error}");
}

#[test]
fn what_does_not_matter_is_restored_as_zeroes_or_not_at_all() {
    struct ByNumber;
    impl PageFilter for ByNumber {
        fn fate(&self, pfn: u64) -> Fate {
            [Fate::Store, Fate::Zero, Fate::Leave][usize::try_from(pfn % 3).unwrap()]
        }
    }
    let ranges = [PfnRange { start: 0x30, end: 0x30 + 3000 }];
    let before = memory(&ranges, &[1]);
    let mut store = Store::new(usize::MAX);
    let counts = save(&before, &ranges, &ByNumber, zstd(1), 2, &mut store, |_| ()).unwrap();
    assert_eq!((counts.stored, counts.zero, counts.left), (1000, 1000, 1000));
    let after = Memory::default();
    restore(&mut store.reader(), &after, 2, |_| ()).unwrap();
    let (before, after) = (before.0.into_inner().unwrap(), after.0.into_inner().unwrap());
    for (pfn, page) in before {
        match pfn % 3 {
            0 => assert_eq!(after[&pfn], page),
            1 => assert_eq!(after[&pfn], vec![0; 4096]),
            _ => assert!(!after.contains_key(&pfn)),
        }
    }
}
