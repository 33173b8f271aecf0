//! The values of the golden image: a machine with little memory, saved in three chunks.

use std::sync::Arc;

use dormouse_image::layout::{DATA_OFFSET, HEADER_OFFSET, LABEL_OFFSET};
use dormouse_image::seal::{Nonce, Save, SaveKey, Seal, Sealer, Sealing, Suite, wrap};
use dormouse_image::{
    Architecture, BLOCK, Block, Chunk, Codec, Commit, Cpu, DiskExtent, DiskPlace, EfiRange, Extent, Filesystem,
    FirmwareKind, FirmwareRange, Header, IndexBuilder, Label, Locator, Mailbox, PfnRange, PhysRange, SaveStats,
    SessionRecord, Slot, State, SwapArea, Totals, Uuid, checksum,
};

/// One zstd frame (RFC 8878): single segment, 8192 bytes of content, one RLE block of the byte 0x5a.
const ZSTD_FRAME: [u8; 13] = [0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0, 0x20, 0, 0, 0x03, 0x00, 0x01, 0x5a];

/// Where the index blocks lie.
pub(crate) const INDEX_OFFSETS: [u64; 2] = [DATA_OFFSET + 2 * 4096, DATA_OFFSET + 5 * 4096];

/// A chunk with its pages and the bytes that are stored of it.
pub(crate) struct Stored {
    pub(crate) chunk: Chunk,
    pub(crate) extents: Vec<Extent>,
    pub(crate) bytes: Vec<u8>,
}

fn uuid(text: &str) -> Uuid {
    text.parse().unwrap()
}

fn extent(pfn: u64, pages: u32) -> Extent {
    Extent { pfn, pages }
}

/// What is in page `pfn`: a line of text, repeated.
fn page(pfn: u64) -> Vec<u8> {
    format!("{pfn:#06x} is a page").into_bytes().repeat(BLOCK / 16)
}

pub(crate) fn label() -> Label {
    Label {
        uuid: uuid("01234567-89ab-cdef-0123-456789abcdef"),
        created_unix: 1_700_000_000,
        extents: vec![
            DiskExtent { offset: 0x1234_5000, len: 0x10_0000 },
            DiskExtent { offset: 0x2000, len: 0x10_0000 },
        ],
        mirror: None,
        stack: Vec::new(),
    }
}

fn save_id() -> Uuid {
    uuid("76543210-fedc-ba98-7654-3210fedcba98")
}

pub(crate) fn header() -> Header {
    Header { session: session(), entry: 0x30_1050 }
}

fn session() -> SessionRecord {
    SessionRecord {
        image: label().uuid,
        save_id: save_id(),
        boot_id: uuid("00112233-4455-6677-8899-aabbccddeeff"),
        machine: uuid("4c4c4544-0000-2010-8020-80c04f202020"),
        created_unix: 1_750_000_000,
        architecture: Architecture::X86_64,
        region: PhysRange { start: 0x100_0000, end: 0x900_0000 },
        low: vec![PhysRange { start: 0x1000, end: 0x9_0000 }, PhysRange { start: 0x9_1000, end: 0x9_f000 }],
        mailbox: Some(Mailbox { pfn: 0x302, nonce: *b"sixteen bytes ok" }),
        ram: vec![PfnRange { start: 0x100, end: 0x1000 }, PfnRange { start: 0x9000, end: 0x9100 }],
        firmware: vec![
            FirmwareRange { start: 0xf_0000, end: 0x10_0000, kind: FirmwareKind::Reserved },
            FirmwareRange { start: 0x910_0000, end: 0x910_2345, kind: FirmwareKind::AcpiTables },
            FirmwareRange { start: 0x920_0000, end: 0x930_0000, kind: FirmwareKind::Other(12) },
        ],
        efi: vec![EfiRange { start: 0x7e_0000, end: 0x7f_0000, mapped: 0xffff_fffe_ff00_0000 }],
        filesystems: vec![
            Filesystem {
                kind: "ext4".to_string(),
                uuid: "89abcdef-0123-4567-89ab-cdef01234567".to_string(),
                mount: "/".to_string(),
                mount_digest: 0x0123_4567_89ab_cdef,
                quiesced_digest: Some(0xfedc_ba98_7654_3210),
                superblock: Some(DiskPlace { disk: "PARTUUID=5ca1ab1e-02".to_string(), offset: 1024 }),
            },
            Filesystem {
                kind: "vfat".to_string(),
                uuid: "1234-ABCD".to_string(),
                mount: "/boot/efi".to_string(),
                mount_digest: 1,
                quiesced_digest: None,
                superblock: None,
            },
        ],
        swap_areas: vec![SwapArea {
            uuid: "deadbeef-0123-4567-89ab-cdef01234567".to_string(),
            mount_digest: 2,
            quiesced_digest: Some(3),
            superblock: Some(DiskPlace { disk: "PARTUUID=5ca1ab1e-03".to_string(), offset: 0 }),
        }],
        cpu: Cpu {
            vendor: "GenuineDormouse".to_string(),
            family: 6,
            model: 85,
            stepping: 4,
            name: "Dormouse CPU @ 1.00GHz".to_string(),
            features: "fpu sse2 lm la57".to_string(),
            microcode: 0,
            online: 2,
            la57: true,
        },
        kernel_release: "6.12.117".to_string(),
        kernel_version: "#1 SMP PREEMPT_DYNAMIC".to_string(),
        hostname: "höhle".to_string(),
        cmdline: "console=ttyS0 root=/dev/vda1".to_string(),
    }
}

/// Three chunks: a page as it is, two pages compressed after it, and after the first index block two scattered pages.
pub(crate) fn chunks() -> [Stored; 3] {
    let stored = |offset, codec, extents, pages: &[u8], bytes: Vec<u8>| Stored {
        chunk: Chunk {
            offset,
            stored_len: u32::try_from(bytes.len()).unwrap(),
            codec,
            checksum: checksum(pages),
            ..Chunk::default()
        },
        extents,
        bytes,
    };
    let first = page(0x100);
    let last = [page(0x300), page(0x9000)].concat();
    [
        stored(DATA_OFFSET, Codec::Store, vec![extent(0x100, 1)], &first.clone(), first),
        stored(DATA_OFFSET + 4096, Codec::Zstd, vec![extent(0x102, 2)], &[0x5a; 2 * BLOCK], ZSTD_FRAME.to_vec()),
        stored(DATA_OFFSET + 3 * 4096, Codec::Store, vec![extent(0x300, 1), extent(0x9000, 1)], &last.clone(), last),
    ]
}

/// The zero runs of each index block.
pub(crate) fn zero_runs() -> [Vec<Extent>; 2] {
    [vec![extent(0x200, 16), extent(0x400, 1)], vec![extent(0x9001, 255)]]
}

/// With what the sealed image is sealed: two slots have its key.
pub(crate) fn sealing() -> Sealing {
    let key = SaveKey::new(b"a key that is not a secret, ever");
    let save = Save { image: label().uuid, save_id: save_id(), nonce: Nonce(*b"sixteen for once") };
    let wrap = |slot, kind, kek| wrap(kek, &save, slot, kind, [0; 32], &key).unwrap();
    let wraps = vec![wrap(1, 1, &[1; 32]), wrap(7, 2, &[2; 32])];
    Sealing { suite: Suite::Aes256Gcm, nonce: save.nonce, wraps, key }
}

/// The image as bytes, as encoded, up to the end of the stream; sealed where that is asked for.
pub(crate) fn encode(sealing: Option<&Sealing>) -> Vec<u8> {
    let sealer = sealing.map(|sealing| Arc::new(Sealer::new(sealing, label().uuid, save_id()).unwrap()));
    let data_end = INDEX_OFFSETS[1] + 4096;
    let mut image = vec![0; usize::try_from(data_end).unwrap()];
    let mut put = |offset: u64, bytes: &[u8]| {
        let offset = usize::try_from(offset).unwrap();
        image[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    put(LABEL_OFFSET, &label().encode().unwrap());
    let (header, at_header) = match &sealer {
        Some(sealer) => sealer.header(&header()).unwrap(),
        None => {
            let header = header().encode().unwrap();
            let locator = Locator::of(Block::Header, HEADER_OFFSET, &header).unwrap();
            (header, locator)
        }
    };
    put(HEADER_OFFSET, &header);

    let mut builder = IndexBuilder::with(save_id(), sealer.clone());
    let mut last_index = Locator::default();
    let all = chunks();
    let parts = [&all[..2], &all[2..]];
    for ((chunks, zero), at) in parts.into_iter().zip(zero_runs()).zip(INDEX_OFFSETS) {
        for stored in chunks {
            let (mut chunk, mut bytes) = (stored.chunk, stored.bytes.clone());
            if let Some(sealer) = &sealer {
                let pages = stored.extents.iter().map(|extent| extent.pages as usize).sum();
                sealer.chunk(&mut chunk, pages, &mut bytes).unwrap();
            }
            put(chunk.offset, &bytes);
            builder.chunk(&chunk, &stored.extents).unwrap();
        }
        for run in zero {
            builder.zero(run).unwrap();
        }
        let bytes;
        (bytes, last_index) = builder.finish(at).unwrap();
        put(at, &bytes);
    }

    let [mut older, mut newer] = commits(at_header, last_index);
    if let Some(sealer) = &sealer {
        newer = sealer.commit(newer).unwrap();
        older.seal = newer.seal.as_ref().map(Seal::wiped);
    }
    put(Slot::First.offset(), &older.encode().unwrap());
    put(Slot::Second.offset(), &newer.encode().unwrap());
    image
}

/// The records of both slots. Power was lost after the new one was durable and before it was written again.
pub(crate) fn commits(header: Locator, last_index: Locator) -> [Commit; 2] {
    let older = Commit { seq: 4, state: State::Saving, save_id: save_id(), ..Commit::empty(label().uuid) };
    let newer = Commit {
        seq: 5,
        state: State::Complete,
        changed_unix: 1_750_000_009,
        header,
        last_index,
        data_end: INDEX_OFFSETS[1] + 4096,
        totals: Totals {
            ram_pages: 0xf00 + 0x100,
            stored_pages: 5,
            zero_pages: 16 + 1 + 255,
            omitted_pages: 0x1000 - 5 - 272,
            chunks: 3,
            index_blocks: 2,
            stored_bytes: 4096 + 13 + 8192,
        },
        stats: SaveStats {
            started_unix: 1_750_000_001,
            millis: 1234,
            threads: 2,
            agent_peak_kib: 9876,
            least_available_kib: 54_321,
            spent: [0; 12],
        },
        reason: "lid closed".to_string(),
        ..older.clone()
    };
    [older, newer]
}
