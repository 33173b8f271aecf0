//! The builder joins zero runs, is full in time, and never makes a block that a reader refuses.

use dormouse_image::layout::{DATA_OFFSET, INDEX_MAX, INDEX_MAX_CHUNKS, PFN_LIMIT};
use dormouse_image::{BLOCK, Chunk, Codec, Extent, FormatError, IndexBlock, IndexBuilder, Uuid};

use crate::values::{extent, stored};

fn builder() -> IndexBuilder {
    IndexBuilder::new(Uuid([0x22; 16]))
}

/// The zero runs of a block that was given `runs`.
fn joined(runs: &[Extent]) -> Vec<Extent> {
    let mut builder = builder();
    for run in runs {
        builder.zero(*run).unwrap();
    }
    let bytes = builder.finish(DATA_OFFSET).unwrap().0;
    IndexBlock::decode(&bytes, DATA_OFFSET).unwrap().zero
}

fn field_of<T: std::fmt::Debug>(result: Result<T, FormatError>) -> &'static str {
    match result {
        Err(FormatError::Field { field, .. }) => field,
        other => panic!("{other:?}"),
    }
}

#[test]
fn chunks_that_a_reader_would_refuse_are_refused() {
    let good = stored(DATA_OFFSET, 2);
    let pages = [extent(7, 2)];
    let zstd = |stored_len| Chunk { stored_len, codec: Codec::Zstd, ..good };
    let cases: &[(Chunk, &[Extent], &str)] = &[
        (good, &[], "chunk's pages"),
        (stored(DATA_OFFSET, 65), &[extent(7, 65)], "chunk's pages"),
        (good, &[extent(7, 0), extent(8, 2)], "extent"),
        (good, &[extent(PFN_LIMIT - 1, 2)], "extent"),
        (good, &[extent(u64::MAX, 2)], "extent"),
        (good, &[extent(7, u32::MAX)], "chunk's pages"),
        (good, &[extent(8, 1), extent(7, 1)], "chunk's extents"),
        (good, &[extent(7, 1), extent(7, 1)], "chunk's extents"),
        (stored(DATA_OFFSET, 1), &pages, "chunk's length"),
        (zstd(0), &pages, "chunk's length"),
        (zstd(8192), &pages, "chunk's length"),
        (stored(DATA_OFFSET - 1, 2), &pages, "chunk's offset"),
        (stored(u64::MAX, 2), &pages, "chunk's offset"),
    ];
    for (chunk, extents, field) in cases {
        let mut builder = builder();
        assert_eq!(field_of(builder.chunk(chunk, extents)), *field, "{chunk:?} {extents:?}");
        assert!(builder.is_empty());
    }
    for chunk in [good, zstd(1), zstd(8191)] {
        builder().chunk(&chunk, &pages).unwrap();
    }
    builder().chunk(&stored(DATA_OFFSET, 64), &[extent(PFN_LIMIT - 64, 64)]).unwrap();
}

#[test]
fn a_chunk_or_block_that_overlaps_what_is_before_it_is_refused() {
    let mut builder = builder();
    builder.chunk(&stored(DATA_OFFSET, 2), &[extent(7, 2)]).unwrap();
    assert_eq!(field_of(builder.chunk(&stored(DATA_OFFSET + 8191, 1), &[extent(9, 1)])), "chunk's offset");
    assert_eq!(field_of(builder.finish(DATA_OFFSET + 4096)), "offset");
    assert_eq!(field_of(builder.finish(DATA_OFFSET + 8193)), "offset");
    builder.finish(DATA_OFFSET + 8192).unwrap();
    // The next block begins after this one.
    assert_eq!(field_of(builder.chunk(&stored(DATA_OFFSET + 8192, 1), &[extent(9, 1)])), "chunk's offset");
    assert_eq!(field_of(builder.finish(DATA_OFFSET + 8192)), "offset");
    builder.chunk(&stored(DATA_OFFSET + 12288, 1), &[extent(9, 1)]).unwrap();
    builder.finish(DATA_OFFSET + 16384).unwrap();
}

#[test]
fn zero_runs_that_are_none_are_refused() {
    for run in [extent(5, 0), extent(PFN_LIMIT, 1), extent(PFN_LIMIT - 1, 2), extent(u64::MAX, 1)] {
        assert_eq!(field_of(builder().zero(run)), "extent");
    }
    assert_eq!(joined(&[extent(PFN_LIMIT - 1, 1)]), [extent(PFN_LIMIT - 1, 1)]);
}

#[test]
fn zero_runs_that_touch_are_joined() {
    assert_eq!(joined(&[extent(5, 3), extent(8, 1), extent(9, 1)]), [extent(5, 5)]);
    // A gap, a step back, and a run that would touch another than the last.
    assert_eq!(joined(&[extent(5, 3), extent(9, 1)]), [extent(5, 3), extent(9, 1)]);
    assert_eq!(joined(&[extent(5, 3), extent(4, 1)]), [extent(5, 3), extent(4, 1)]);
    assert_eq!(joined(&[extent(5, 1), extent(9, 1), extent(6, 1)]), [extent(5, 1), extent(9, 1), extent(6, 1)]);
    // More pages than one run can count.
    let most = extent(0, u32::MAX);
    assert_eq!(joined(&[most, extent(u64::from(u32::MAX), 1)]), [most, extent(u64::from(u32::MAX), 1)]);
}

#[test]
fn a_block_of_the_most_chunks_is_full_and_fits() {
    let mut builder = builder();
    let mut offset = DATA_OFFSET;
    for at in 0..INDEX_MAX_CHUNKS as u64 {
        assert!(!builder.is_full());
        builder.chunk(&stored(offset, 1), &[extent(at * 2, 1)]).unwrap();
        offset += 4096;
    }
    assert!(builder.is_full());
    let refused = builder.chunk(&stored(offset, 1), &[extent(1, 1)]);
    assert!(matches!(refused, Err(FormatError::TooLarge { .. })), "{refused:?}");
    let bytes = builder.finish(offset).unwrap().0;
    assert_eq!(IndexBlock::decode(&bytes, offset).unwrap().chunks().len(), INDEX_MAX_CHUNKS);
    assert!(!builder.is_full() && builder.is_empty());
}

#[test]
fn a_block_of_scattered_pages_is_full_before_it_is_too_large() {
    let scattered = |chunk: u64| (0..64).map(|at| extent((chunk * 64 + at) * 2, 1)).collect::<Vec<_>>();
    let mut builder = builder();
    let mut offset = DATA_OFFSET;
    let mut chunks = 0;
    while !builder.is_full() {
        builder.chunk(&stored(offset, 64), &scattered(chunks)).unwrap();
        offset += 64 * 4096;
        chunks += 1;
    }
    assert!(chunks < INDEX_MAX_CHUNKS as u64);
    let refused = builder.chunk(&stored(offset, 64), &scattered(chunks));
    assert!(matches!(refused, Err(FormatError::TooLarge { .. })), "{refused:?}");
    let bytes = builder.finish(offset).unwrap().0;
    // Full, but not early: no further chunk would have fitted.
    let largest = 48 + 64 * 12;
    assert!(bytes.len() <= INDEX_MAX && bytes.len() + largest + BLOCK > INDEX_MAX, "{}", bytes.len());
    assert_eq!(IndexBlock::decode(&bytes, offset).unwrap().chunks().len() as u64, chunks);
}

/// A piece that fits is taken whole, also as the last one: its chunks need no more room than they have extents, and its
/// zero runs none of the room for chunks.
#[test]
fn what_has_room_is_taken() {
    // The last chunk that there may be, and zero runs after it.
    let mut last = builder();
    for at in 0..INDEX_MAX_CHUNKS as u64 - 1 {
        last.chunk(&stored(DATA_OFFSET + at * 4096, 1), &[extent(at * 2, 1)]).unwrap();
    }
    // The last bytes that there are.
    let mut bytes = builder();
    let mut runs = 0;
    while bytes.has_room(1, 1, 4) {
        bytes.zero(extent((1 << 20) + runs * 2, 1)).unwrap();
        runs += 1;
    }
    let mut few = builder();
    for at in 0..runs - 1 {
        few.zero(extent((1 << 20) + at * 2, 1)).unwrap();
    }
    for (mut builder, chunks) in [(last, INDEX_MAX_CHUNKS as u64 - 1), (few, 0)] {
        assert!(builder.has_room(1, 1, 3));
        builder.chunk(&stored(DATA_OFFSET + chunks * 4096, 1), &[extent(chunks * 2, 1)]).unwrap();
        for run in 0..3 {
            builder.zero(extent((1 << 30) + run * 2, 1)).unwrap();
        }
        let at = DATA_OFFSET + (chunks + 1) * 4096;
        let (block, _) = builder.finish(at).unwrap();
        assert_eq!(IndexBlock::decode(&block, at).unwrap().chunks().len() as u64, chunks + 1);
    }
}

#[test]
fn a_block_of_scattered_zero_runs_is_full_before_it_is_too_large() {
    let mut builder = builder();
    let mut runs = 0;
    while builder.has_room(0, 0, 1) {
        builder.zero(extent(runs * 2, 1)).unwrap();
        runs += 1;
    }
    let refused = builder.zero(extent(runs * 2, 1));
    assert!(matches!(refused, Err(FormatError::TooLarge { max: INDEX_MAX, .. })), "{refused:?}");
    // A run that joins the last one takes no room.
    builder.zero(extent(runs * 2 - 1, 1)).unwrap();
    let bytes = builder.finish(DATA_OFFSET).unwrap().0;
    assert!(bytes.len() <= INDEX_MAX);
    let zero = IndexBlock::decode(&bytes, DATA_OFFSET).unwrap().zero;
    assert_eq!((zero.len() as u64, zero.last()), (runs, Some(&extent(runs * 2 - 2, 2))));
}
