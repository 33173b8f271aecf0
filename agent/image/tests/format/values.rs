//! Values that the format can hold: one of each for boundary tests, and all of them for property tests.

use dormouse_image::layout::{
    CHUNK_PAGES, DATA_OFFSET, HEADER_MAX, HEADER_OFFSET, INDEX_MAX, LABEL_MAX_EXTENTS, PFN_LIMIT,
};
use dormouse_image::seal::{Nonce, Seal, Suite, Tag, WRAPS_MAX, Wrap};
use dormouse_image::{
    Architecture, BLOCK, Chunk, Codec, Commit, Cpu, DiskExtent, DiskPlace, EfiRange, Extent, Filesystem, FirmwareKind,
    FirmwareRange, Header, Label, Layer, LayerKind, Locator, Mailbox, PfnRange, PhysRange, SPENT, SaveStats,
    SessionRecord, State, SwapArea, Totals, Uuid, Version,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

/// The version of blocks that have nothing new.
pub(crate) const WRITTEN: Version = Version { major: 1, minor: 0 };

pub(crate) fn label() -> Label {
    let extents = vec![DiskExtent { offset: 0x8000, len: 0x3000 }, DiskExtent { offset: 0x1000, len: 0x7000 }];
    Label { uuid: Uuid([0x11; 16]), created_unix: 1_700_000_000, extents, mirror: None, stack: Vec::new() }
}

pub(crate) fn commit() -> Commit {
    Commit {
        seq: 7,
        state: State::Complete,
        changed_unix: 1_700_000_002,
        attempts: 0,
        kept: 0,
        image: Uuid([0x11; 16]),
        save_id: Uuid([0x22; 16]),
        header: Locator { offset: HEADER_OFFSET, len: 4096, checksum: 0x0123_4567_89ab_cdef, ..Locator::default() },
        last_index: Locator {
            offset: DATA_OFFSET + 8192,
            len: 4096,
            checksum: 0xfedc_ba98_7654_3210,
            ..Locator::default()
        },
        data_end: DATA_OFFSET + 12288,
        totals: Totals {
            ram_pages: 10,
            stored_pages: 2,
            zero_pages: 3,
            omitted_pages: 5,
            chunks: 1,
            index_blocks: 1,
            stored_bytes: 8192,
        },
        stats: SaveStats {
            started_unix: 1_700_000_001,
            millis: 1234,
            threads: 2,
            agent_peak_kib: 9000,
            least_available_kib: 60_000,
            spent: [0; SPENT],
        },
        reason: "asked for".to_string(),
        seal: None,
    }
}

pub(crate) fn header() -> Header {
    Header { session: session(), entry: 0x20_0100 }
}

pub(crate) fn session() -> SessionRecord {
    SessionRecord {
        image: Uuid([0x11; 16]),
        save_id: Uuid([0x22; 16]),
        boot_id: Uuid([0x33; 16]),
        machine: Uuid([0x55; 16]),
        created_unix: 1_700_000_000,
        architecture: Architecture::X86_64,
        region: PhysRange { start: 16 << 20, end: 144 << 20 },
        low: vec![PhysRange { start: 0x1000, end: 0x8000 }, PhysRange { start: 0x9000, end: 0x9_f000 }],
        mailbox: Some(Mailbox { pfn: 0x201, nonce: [0x44; 16] }),
        ram: vec![PfnRange { start: 0x100, end: 0x1000 }, PfnRange { start: 0x9000, end: 0x3_0000 }],
        firmware: vec![FirmwareRange { start: 0xf_0000, end: 0x10_0000, kind: FirmwareKind::Reserved }],
        efi: vec![EfiRange { start: 0x7e_0000, end: 0x7f_0000, mapped: 0xffff_fffe_ff00_0000 }],
        filesystems: vec![Filesystem {
            kind: "ext4".to_string(),
            uuid: "0a1b2c3d-0000-4000-8000-000000000001".to_string(),
            mount: "/".to_string(),
            mount_digest: 0x1111,
            quiesced_digest: Some(0x2222),
            superblock: Some(DiskPlace { disk: "PARTUUID=12".to_string(), offset: 1024 }),
        }],
        swap_areas: vec![SwapArea {
            uuid: "0a1b2c3d-0000-4000-8000-000000000002".to_string(),
            mount_digest: 0x3333,
            quiesced_digest: None,
            superblock: None,
        }],
        cpu: Cpu {
            vendor: "GenuineIntel".to_string(),
            family: 6,
            model: 42,
            stepping: 7,
            name: "A processor".to_string(),
            features: "fpu sse2 lm".to_string(),
            // Without: a block of version 1.0.
            microcode: 0,
            online: 4,
            la57: false,
        },
        kernel_release: "6.12.117".to_string(),
        kernel_version: "#1 SMP".to_string(),
        hostname: "burrow".to_string(),
        cmdline: "root=/dev/vda1 quiet".to_string(),
    }
}

pub(crate) fn extent(pfn: u64, pages: u32) -> Extent {
    Extent { pfn, pages }
}

/// A chunk that is stored as it is, for `pages` pages.
pub(crate) fn stored(offset: u64, pages: u32) -> Chunk {
    Chunk { offset, stored_len: pages * 4096, codec: Codec::Store, checksum: 0x5555_5555_5555_5555, ..Chunk::default() }
}

pub(crate) fn any_uuid() -> impl Strategy<Value = Uuid> {
    any::<[u8; 16]>().prop_map(Uuid)
}

pub(crate) fn any_label() -> impl Strategy<Value = Label> {
    let parts = (any_uuid(), any::<u64>(), any_map(), any::<bool>(), vec(any_layer(), 0..6));
    parts.prop_map(|(uuid, created_unix, extents, is_mirrored, layers)| {
        let is_mapped = !extents.is_empty();
        let mirror = (is_mapped && is_mirrored).then_some([Uuid([1; 16]), Uuid([2; 16])]);
        Label { uuid, created_unix, mirror, stack: if is_mapped { layers } else { Vec::new() }, extents }
    })
}

fn any_layer() -> impl Strategy<Value = Layer> {
    (select(LayerKind::ALL.to_vec()), "[ -~]{1,100}").prop_map(|(kind, identity)| Layer { kind, identity })
}

/// A map of a file: extents with gaps between them or none, in any order.
pub(crate) fn any_map() -> impl Strategy<Value = Vec<DiskExtent>> {
    let blocks = vec((0_u64..1 << 30, 1_u64..1 << 30), 0..=LABEL_MAX_EXTENTS);
    let placed = blocks.prop_map(|blocks| {
        let mut next = 1;
        let place = |(gap, len): (u64, u64)| {
            let offset = next + gap;
            next = offset + len;
            DiskExtent { offset: offset * 4096, len: len * 4096 }
        };
        blocks.into_iter().map(place).collect::<Vec<_>>()
    });
    placed.prop_shuffle()
}

/// A locator of a block of at most `max` bytes at `offset`.
fn any_locator(offset: impl Strategy<Value = u64>, max: usize) -> impl Strategy<Value = Locator> {
    let blocks = u32::try_from(max / BLOCK).unwrap();
    (offset, 1..=blocks, any::<u64>()).prop_map(|(offset, blocks, checksum)| Locator {
        offset,
        len: blocks * 4096,
        checksum,
        ..Locator::default()
    })
}

fn any_totals() -> impl Strategy<Value = Totals> {
    let count = 0..PFN_LIMIT;
    let counts = [count.clone(), count.clone(), count];
    (counts, any::<[u64; 3]>()).prop_map(|([stored, zero, omitted], [chunks, index_blocks, stored_bytes])| Totals {
        ram_pages: stored + zero + omitted,
        stored_pages: stored,
        zero_pages: zero,
        omitted_pages: omitted,
        chunks,
        index_blocks,
        stored_bytes,
    })
}

fn any_stats() -> impl Strategy<Value = SaveStats> {
    let stats = (any::<[u64; 4]>(), any::<u32>(), any::<[u32; SPENT]>());
    stats.prop_map(|([started_unix, millis, peak, least], threads, spent)| SaveStats {
        started_unix,
        millis,
        threads,
        agent_peak_kib: peak,
        least_available_kib: least,
        spent,
    })
}

/// A tag or a nonce.
fn any_tag() -> impl Strategy<Value = Tag> {
    any::<Tag>()
}

pub(crate) fn any_seal() -> impl Strategy<Value = Seal> {
    let suite = select(vec![Suite::Aes256Gcm, Suite::ChaCha20Poly1305]);
    let wrap = (any::<[u32; 2]>(), any::<[u8; 32]>(), any::<([u8; 32], Tag)>());
    let wrap = wrap.prop_map(|([slot, kind], ephemeral, (key, tag))| {
        let mut sealed = [0; 48];
        sealed[..32].copy_from_slice(&key);
        sealed[32..].copy_from_slice(&tag);
        Wrap { slot, kind, ephemeral, sealed }
    });
    let wraps = prop::collection::vec(wrap, 0..=WRAPS_MAX);
    (suite, any_tag(), any::<[u8; 32]>(), wraps).prop_map(|(suite, nonce, mac, wraps)| Seal {
        suite,
        nonce: Nonce(nonce),
        mac,
        wraps,
    })
}

/// A record of an image that is sealed, or is not.
pub(crate) fn any_commit() -> impl Strategy<Value = Commit> {
    let seal = prop::option::of((any_seal(), any_tag(), any_tag()));
    (any_unsealed_commit(), seal).prop_map(|(commit, sealed)| {
        let Some((seal, header_tag, index_tag)) = sealed else { return commit };
        let header = Locator { tag: header_tag, ..commit.header };
        let last_index = Locator { tag: index_tag, ..commit.last_index };
        let commit = Commit { header, last_index, seal: Some(seal), ..commit };
        if commit.state.holds_a_session() { commit } else { commit.without_key() }
    })
}

fn any_unsealed_commit() -> impl Strategy<Value = Commit> {
    let index_offset = (DATA_OFFSET / 4096..1 << 51).prop_map(|block| block * 4096);
    let places = (any_locator(Just(HEADER_OFFSET), HEADER_MAX), any_locator(index_offset, INDEX_MAX));
    let identity = (any::<[u64; 2]>(), select(State::ALL.to_vec()), any::<[u16; 2]>(), any_uuid(), any_uuid());
    (identity, places, any_totals(), any_stats(), ".{0,256}").prop_map(
        |(
            ([seq, changed_unix], state, [attempts, kept], image, save_id),
            (header, last_index),
            totals,
            stats,
            reason,
        )| {
            Commit {
                seq,
                state,
                changed_unix,
                attempts,
                kept,
                image,
                save_id,
                header,
                last_index,
                data_end: last_index.offset + u64::from(last_index.len),
                totals,
                stats,
                reason,
                seal: None,
            }
        },
    )
}

/// Ranges of pages from `first` upward: a gap and a length for each.
pub(crate) fn ranges(first: u64, steps: &[(u64, u64)]) -> Vec<PfnRange> {
    let mut next = first;
    let mut ranges = Vec::new();
    for (gap, pages) in steps {
        let start = next + gap;
        next = start + pages;
        ranges.push(PfnRange { start, end: next });
    }
    ranges
}

/// Memory above the region of [`header`], with A's own pages in it.
fn any_ram() -> impl Strategy<Value = Vec<PfnRange>> {
    vec((0_u64..1 << 20, 1_u64..1 << 20), 1..40).prop_map(|steps| ranges(0x9000, &steps))
}

fn any_firmware() -> impl Strategy<Value = Vec<FirmwareRange>> {
    let kind = prop_oneof![
        Just(FirmwareKind::Reserved),
        Just(FirmwareKind::AcpiTables),
        Just(FirmwareKind::AcpiNvs),
        Just(FirmwareKind::Unusable),
        Just(FirmwareKind::Persistent),
        (8..=u32::MAX).prop_map(FirmwareKind::Other),
    ];
    vec((0..u64::MAX / 2, 1..u64::MAX / 2, kind), 0..20).prop_map(|mut entries| {
        entries.sort_by_key(|(start, ..)| *start);
        let range = |(start, len, kind)| FirmwareRange { start, end: start + len, kind };
        entries.into_iter().map(range).collect()
    })
}

fn any_efi() -> impl Strategy<Value = Vec<EfiRange>> {
    let range = (0..u64::MAX / 2, 1..u64::MAX / 2, any::<u64>());
    vec(range.prop_map(|(start, len, mapped)| EfiRange { start, end: start + len, mapped }), 0..20)
}

fn any_filesystems() -> impl Strategy<Value = Vec<Filesystem>> {
    // All but control characters: those that the records are made of.
    let texts = ["[^\\p{Cc}]{0,8}", "[0-9a-f-]{0,36}", "[^\\p{Cc}]{0,32}"];
    let found = (texts, any::<u64>(), any::<Option<u64>>(), any_place()).prop_map(
        |([kind, uuid, mount], mount_digest, quiesced_digest, superblock)| Filesystem {
            kind,
            uuid,
            mount,
            mount_digest,
            quiesced_digest,
            superblock,
        },
    );
    vec(found, 0..8)
}

fn any_place() -> impl Strategy<Value = Option<DiskPlace>> {
    let place = ("[^\\p{Cc}]{1,40}", any::<u64>()).prop_map(|(disk, offset)| DiskPlace { disk, offset });
    proptest::option::of(place)
}

fn any_swap_areas() -> impl Strategy<Value = Vec<SwapArea>> {
    let found = ("[0-9a-f-]{0,36}", any::<u64>(), any::<Option<u64>>(), any_place()).prop_map(
        |(uuid, mount_digest, quiesced_digest, superblock)| SwapArea {
            uuid,
            mount_digest,
            quiesced_digest,
            superblock,
        },
    );
    vec(found, 0..4)
}

/// Low memory below the memory of [`any_ram`], apart from the region of [`header`].
fn any_low() -> impl Strategy<Value = Vec<PhysRange>> {
    let steps = vec((0_u64..4, 1_u64..60), 1..40);
    steps.prop_map(|steps| ranges(0, &steps).iter().map(PfnRange::bytes).collect())
}

fn any_cpu() -> impl Strategy<Value = Cpu> {
    let texts = [".{0,16}", ".{0,64}", "[a-z0-9_ ]{0,2000}"];
    (texts, any::<[u32; 5]>(), any::<bool>()).prop_map(
        |([vendor, name, features], [family, model, stepping, online, microcode], la57)| Cpu {
            vendor,
            family,
            model,
            stepping,
            name,
            features,
            microcode,
            online,
            la57,
        },
    )
}

pub(crate) fn any_session() -> impl Strategy<Value = SessionRecord> {
    let identity = (any::<[[u8; 16]; 4]>(), any::<u64>());
    let texts = [".{0,64}", ".{0,64}", ".{0,64}", ".{0,2048}"];
    let own = (any::<bool>(), any::<[u8; 16]>());
    let described = (any_firmware(), any_efi(), any_filesystems(), any_swap_areas());
    (identity, (any_ram(), any_low()), described, any_cpu(), texts, own).prop_map(
        |(
            (identities, created_unix),
            (ram, low),
            (firmware, efi, filesystems, swap_areas),
            cpu,
            texts,
            (with_mailbox, nonce),
        )| {
            let [kernel_release, kernel_version, hostname, cmdline] = texts;
            let [image, save_id, boot_id, machine] = identities.map(Uuid);
            let first = ram[0].start;
            SessionRecord {
                image,
                save_id,
                boot_id,
                machine,
                created_unix,
                low,
                mailbox: with_mailbox.then_some(Mailbox { pfn: first, nonce }),
                ram,
                firmware,
                efi,
                filesystems,
                swap_areas,
                cpu,
                kernel_release,
                kernel_version,
                hostname,
                cmdline,
                ..session()
            }
        },
    )
}

pub(crate) fn any_header() -> impl Strategy<Value = Header> {
    (any_session(), 0_u64..4096).prop_map(|(session, at)| Header { entry: session.ram[0].start * 4096 + at, session })
}

/// What an index block is built from: chunks, each after the one before, and runs of zero pages.
#[derive(Debug, Clone)]
pub(crate) struct IndexParts {
    pub(crate) chunks: Vec<(Chunk, Vec<Extent>)>,
    pub(crate) zero: Vec<Extent>,
    /// The end of the last chunk.
    pub(crate) end: u64,
}

/// Extents of 1 to 64 pages in total, ascending.
fn any_extents() -> impl Strategy<Value = Vec<Extent>> {
    let step = (0_u64..1 << 20, 1_u32..16);
    (0_u64..1 << 39, vec(step, 1..20)).prop_map(|(first, steps)| {
        let (mut next, mut left) = (first, CHUNK_PAGES);
        let mut extents = Vec::new();
        for (gap, pages) in steps {
            let pages = pages.min(left);
            if pages == 0 {
                break;
            }
            extents.push(extent(next + gap, pages));
            next += gap + u64::from(pages);
            left -= pages;
        }
        extents
    })
}

pub(crate) fn any_index_parts() -> impl Strategy<Value = IndexParts> {
    let zero = (0..PFN_LIMIT / 2, any::<u32>()).prop_map(|(pfn, pages)| extent(pfn, pages.max(1)));
    // A chunk: its pages, the gap before it, whether it is compressed, and how well.
    let chunk = (any_extents(), 0_u64..10_000, any::<bool>(), any::<u32>(), any::<u64>());
    (vec(chunk, 0..40), vec(zero, 0..40)).prop_map(|(described, zero)| {
        let mut end = DATA_OFFSET;
        let mut chunks = Vec::new();
        for (extents, gap, compressed, length, checksum) in described {
            let raw_len = extents.iter().map(|extent| extent.pages * 4096).sum::<u32>();
            let (codec, stored_len) = match compressed {
                true => (Codec::Zstd, 1 + length % (raw_len - 1)),
                false => (Codec::Store, raw_len),
            };
            let offset = end + gap;
            end = offset + u64::from(stored_len);
            let chunk = Chunk { offset, stored_len, codec, checksum, ..Chunk::default() };
            chunks.push((chunk, extents));
        }
        IndexParts { chunks, zero, end }
    })
}
