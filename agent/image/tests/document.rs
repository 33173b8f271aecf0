//! `FORMAT.md` says what the code does: its tables are read and compared with encoded blocks.

#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "document/tables.rs"]
mod tables;

use dormouse_image::layout::{self, DATA_OFFSET, HEADER_OFFSET};
use dormouse_image::seal::{Nonce, SaveKey, Seal, Sealing, Suite, Wrap};
use dormouse_image::{
    Architecture, BLOCK, Block, COMMIT_MAGIC, Chunk, Codec, Commit, Cpu, DiskExtent, DiskPlace, EfiRange, Extent,
    FileKey, Filesystem, FirmwareKind, FirmwareRange, HEADER_MAGIC, Header, INDEX_MAGIC, IndexBuilder, KEYS_MAGIC,
    KeySlot, KeySource, Keys, LABEL_KINDS, LABEL_MAGIC, Label, Layer, LayerKind, Locator, Mailbox, PassphraseKey,
    PfnRange, PhysRange, SEALED, SESSION_KINDS, SESSION_MAGIC, SaveStats, SessionRecord, State, SwapArea, Totals,
    TpmKey, Uuid, VERSION, checksum,
};

use tables::{compare, compare_kinds, records, rows};

const ZERO: &[u8] = &[0; 4];

fn u16s(value: u16) -> [u8; 2] {
    value.to_le_bytes()
}

fn u32s(value: u32) -> [u8; 4] {
    value.to_le_bytes()
}

fn u64s(value: u64) -> [u8; 8] {
    value.to_le_bytes()
}

#[test]
fn constants() {
    let [first, second] = layout::SLOT_OFFSETS;
    let expected: [(&str, u64); 16] = [
        ("BLOCK", BLOCK as u64),
        ("LABEL_OFFSET", layout::LABEL_OFFSET),
        ("LABEL_MAX_EXTENTS", layout::LABEL_MAX_EXTENTS as u64),
        ("SLOT_1_OFFSET", first),
        ("SLOT_2_OFFSET", second),
        ("KEYS_OFFSET", layout::KEYS_OFFSET),
        ("HEADER_OFFSET", layout::HEADER_OFFSET),
        ("HEADER_MAX", layout::HEADER_MAX as u64),
        ("SESSION_MAX", layout::SESSION_MAX as u64),
        ("DATA_OFFSET", layout::DATA_OFFSET),
        ("INDEX_MAX", layout::INDEX_MAX as u64),
        ("INDEX_MAX_CHUNKS", layout::INDEX_MAX_CHUNKS as u64),
        ("CHUNK_PAGES", layout::CHUNK_PAGES.into()),
        ("CHUNK_MAX", layout::CHUNK_MAX as u64),
        ("PFN_LIMIT", layout::PFN_LIMIT),
        ("DEVICE_MIN", layout::DEVICE_MIN),
    ];
    let found: Vec<(String, u64)> =
        rows("Constants").iter().map(|row| (row[0].clone(), row[1].parse().unwrap())).collect();
    let expected: Vec<(String, u64)> = expected.iter().map(|(name, value)| ((*name).to_string(), *value)).collect();
    assert_eq!(found, expected);
    // The parts of the device do not overlap.
    assert!(HEADER_OFFSET + layout::HEADER_MAX as u64 <= DATA_OFFSET && second + BLOCK as u64 <= layout::KEYS_OFFSET);
    assert!(layout::KEYS_OFFSET + BLOCK as u64 <= HEADER_OFFSET);
    assert_eq!(checksum(&[]), 0x2d06_8005_38d3_94c2);
}

#[test]
fn prologue_and_magics() {
    let label = label().encode().unwrap();
    let mut unsummed = label.clone();
    unsummed[16..24].fill(0);
    compare(
        "Prologue",
        &label,
        &[
            ("magic", &LABEL_MAGIC),
            ("major version", &u16s(VERSION.major)),
            // It has a layer.
            ("minor version", &u16s(1)),
            ("length", &u32s(4096)),
            ("checksum", &u64s(checksum(&unsummed))),
        ],
    );
    let magics: Vec<Vec<u8>> = rows("Prologue")
        .iter()
        .filter(|row| row[1].starts_with('`'))
        .map(|row| row[2].split(' ').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect())
        .collect();
    assert_eq!(magics, [LABEL_MAGIC, COMMIT_MAGIC, KEYS_MAGIC, SESSION_MAGIC, HEADER_MAGIC, INDEX_MAGIC]);
}

fn label() -> Label {
    Label {
        uuid: Uuid([1; 16]),
        created_unix: 2,
        extents: vec![DiskExtent { offset: 8192, len: 4096 }],
        mirror: None,
        stack: vec![Layer { kind: LayerKind::Linear, identity: "LVM-x".to_owned() }],
    }
}

#[test]
fn the_label() {
    let bytes = label().encode().unwrap();
    let expected: &[(&str, &[u8])] = &[
        ("prologue", &bytes[..24]),
        ("image", &[1; 16]),
        ("created", &u64s(2)),
        ("records", &u32s(3)),
        ("reserved", &[0; 20]),
        // The first record: its kind, no flags, its length.
        ("record list", &[1, 0, 0, 0, 16, 0, 0, 0]),
    ];
    compare("Label", &bytes, expected);
    compare_kinds("Label", LABEL_KINDS);
    let [extents, legs, stack] = records(LABEL_KINDS, &bytes[72..]);
    compare("Device extent", extents, &[("offset", &u64s(8192)), ("length", &u64s(4096))]);
    compare("Leg", legs, &[("identity", &[0; 16])]);
    let layer: &[(&str, &[u8])] =
        &[("length", &u32s(16)), ("kind", &[2, 0]), ("text length", &[5, 0]), ("identity", b"LVM-x\0\0\0")];
    compare("Layer", stack, layer);
    let described: Vec<(String, String)> =
        rows("Layer").iter().filter(|row| row.len() == 3).map(|row| (row[0].clone(), row[1].clone())).collect();
    assert_eq!(described, LayerKind::ALL.map(|kind| (kind.number().to_string(), kind.name().to_owned())));
}

#[test]
fn the_commit_record() {
    let commit = Commit {
        seq: 3,
        state: State::Failed,
        changed_unix: 18,
        attempts: 4,
        kept: 5,
        image: Uuid([5; 16]),
        save_id: Uuid([6; 16]),
        header: Locator { offset: HEADER_OFFSET, len: 8192, checksum: 7, ..Locator::default() },
        last_index: Locator { offset: DATA_OFFSET + 4096, len: 12288, checksum: 8, ..Locator::default() },
        data_end: DATA_OFFSET + 16384,
        totals: Totals {
            ram_pages: 60,
            stored_pages: 10,
            zero_pages: 20,
            omitted_pages: 30,
            chunks: 9,
            index_blocks: 11,
            stored_bytes: 12,
        },
        stats: SaveStats {
            started_unix: 13,
            millis: 14,
            threads: 15,
            agent_peak_kib: 16,
            least_available_kib: 17,
            spent: [100, 101, 102, 103, 104, 105, 106, 107, 108, 109, 110, 111],
        },
        reason: "why".to_string(),
        seal: None,
    };
    let bytes = commit.encode().unwrap();
    let spent: Vec<u8> = (100..112_u32).flat_map(u32::to_le_bytes).collect();
    let mut reason = [0; 1024];
    reason[..3].copy_from_slice(b"why");
    let expected: &[(&str, &[u8])] = &[
        ("prologue", &bytes[..24]),
        ("sequence number", &u64s(3)),
        ("state", b"FAILED  "),
        ("image", &[5; 16]),
        ("save", &[6; 16]),
        ("header offset", &u64s(HEADER_OFFSET)),
        ("header checksum", &u64s(7)),
        ("header length", &u32s(8192)),
        ("reserved", ZERO),
        ("last index offset", &u64s(DATA_OFFSET + 4096)),
        ("last index checksum", &u64s(8)),
        ("last index length", &u32s(12288)),
        ("reserved", ZERO),
        ("data end", &u64s(DATA_OFFSET + 16384)),
        ("memory pages", &u64s(60)),
        ("stored pages", &u64s(10)),
        ("zero pages", &u64s(20)),
        ("omitted pages", &u64s(30)),
        ("chunks", &u64s(9)),
        ("index blocks", &u64s(11)),
        ("stored bytes", &u64s(12)),
        ("save started", &u64s(13)),
        ("save duration", &u64s(14)),
        ("agent peak", &u64s(16)),
        ("least available", &u64s(17)),
        ("changed", &u64s(18)),
        ("threads", &u32s(15)),
        ("attempts", &4_u16.to_le_bytes()),
        ("kept", &5_u16.to_le_bytes()),
        ("reason length", &u32s(3)),
        ("suite", &[0; 2]),
        ("number of wraps", &[0; 2]),
        ("nonce", &[0; 16]),
        ("header tag", &[0; 16]),
        ("last index tag", &[0; 16]),
        ("mac", &[0; 32]),
        ("reason", &reason),
        ("wraps", &[0; 768]),
        ("times", &spent),
    ];
    compare("Commit record", &bytes, expected);
}

#[test]
fn sealed_images() {
    let suites = rows("Sealed images");
    for (row, suite) in suites.iter().zip([Suite::Aes256Gcm, Suite::ChaCha20Poly1305]) {
        assert_eq!(row[0], suite.number().to_string());
        assert!(row[1].starts_with(&suite.to_string()), "{row:?}");
    }
    assert_eq!(suites.len(), 2);
    let mut sealed = [0x44; 48];
    sealed[32..].fill(0x55);
    let wrap = Wrap { slot: 1, kind: 2, ephemeral: [3; 32], sealed };
    let bytes = wrap.encode();
    let expected: &[(&str, &[u8])] = &[
        ("slot", &u32s(1)),
        ("kind", &u32s(2)),
        ("ephemeral", &[3; 32]),
        ("encrypted key", &[0x44; 32]),
        ("key tag", &[0x55; 16]),
        ("reserved", &[0; 8]),
    ];
    compare("Wrapped key", &bytes, expected);
    let (key, nonce) = (SaveKey::new(&[6; 32]), Nonce([7; 16]));
    let sealing = Sealing { key, nonce, suite: Suite::ChaCha20Poly1305, wraps: vec![wrap] };
    let expected: &[(&str, &[u8])] = &[
        ("key", &[6; 32]),
        ("nonce", &[7; 16]),
        ("suite", &u16s(2)),
        ("wraps", &u16s(1)),
        ("reserved", ZERO),
        ("wrapped keys", &bytes),
    ];
    compare("Sealing", &sealing.encode().unwrap(), expected);
    // What a commit record has of it, at the same places.
    let locator = |offset, tag| Locator { offset, len: 4096, checksum: 1, tag: [tag; 16] };
    let seal = Seal { suite: Suite::ChaCha20Poly1305, nonce, mac: [8; 32], wraps: vec![wrap] };
    let commit = Commit {
        state: State::Complete,
        header: locator(HEADER_OFFSET, 9),
        last_index: locator(DATA_OFFSET, 10),
        data_end: DATA_OFFSET + 4096,
        seal: Some(seal),
        ..Commit::empty(Uuid::default())
    };
    let found = commit.encode().unwrap();
    let expected = [&u16s(2)[..], &u16s(1), &nonce.0, &[9; 16], &[10; 16], &[8; 32]].concat();
    assert_eq!((&found[236..320], &found[1344..1440]), (&expected[..], &bytes[..]));
    assert_eq!(found[10..12], u16s(SEALED));
}

fn session() -> SessionRecord {
    SessionRecord {
        image: Uuid([1; 16]),
        save_id: Uuid([2; 16]),
        boot_id: Uuid([3; 16]),
        machine: Uuid([4; 16]),
        created_unix: 4,
        architecture: Architecture::X86_64,
        region: PhysRange { start: 0x100_0000, end: 0x200_0000 },
        low: vec![PhysRange { start: 0x1000, end: 0x9000 }],
        mailbox: Some(Mailbox { pfn: 0x601, nonce: [5; 16] }),
        ram: vec![PfnRange { start: 0x500, end: 0x700 }],
        firmware: vec![FirmwareRange { start: 6, end: 7, kind: FirmwareKind::AcpiNvs }],
        efi: vec![EfiRange { start: 8, end: 9, mapped: 10 }],
        filesystems: vec![Filesystem {
            kind: "ext4".to_string(),
            uuid: "1-2".to_string(),
            mount: "/".to_string(),
            mount_digest: 0x12,
            quiesced_digest: Some(0x13),
            superblock: Some(DiskPlace { disk: "a disk".to_string(), offset: 1024 }),
        }],
        swap_areas: vec![SwapArea {
            uuid: "3-4".to_string(),
            mount_digest: 0x14,
            quiesced_digest: None,
            superblock: None,
        }],
        cpu: Cpu {
            vendor: "vendor".to_string(),
            family: 8,
            model: 9,
            stepping: 10,
            name: "name".to_string(),
            features: "features".to_string(),
            microcode: 12,
            online: 11,
            la57: true,
        },
        kernel_release: "release".to_string(),
        kernel_version: "version".to_string(),
        hostname: "host".to_string(),
        cmdline: "cmdline".to_string(),
    }
}

/// The session in a session record.
fn session_bytes() -> Vec<u8> {
    session().encode().unwrap()[24..].to_vec()
}

#[test]
fn the_keys() {
    let sources = [
        KeySource::File(FileKey { device: "dm:x".into(), secret: 4096, expected: 8192 }),
        KeySource::Passphrase(PassphraseKey {
            salt: [1; 16],
            memory_kib: 8192,
            passes: 3,
            lanes: 2,
            public: [4; 32],
            private: [5; 48],
        }),
        KeySource::Tpm2(TpmKey { public: [6; 32], pcrs: 7, blob: vec![8; 16] }),
    ];
    let encode = |source: &KeySource| {
        let slots = vec![KeySlot { id: 3, source: source.clone() }];
        Keys { image: Uuid([9; 16]), slots }.encode().unwrap()
    };
    let blocks = sources.each_ref().map(encode);
    let block = &blocks[0];
    compare(
        "Keys",
        block,
        &[
            ("prologue", &block[..24]),
            ("image", &[9; 16]),
            ("slots", &u32s(1)),
            ("reserved", &[0; 20]),
            ("slots", &block[64..]),
        ],
    );
    for (at, (block, len)) in blocks.iter().zip([32, 112, 56]).enumerate() {
        let kind = u16::try_from(at).unwrap() + 1;
        let content = &block[72..72 + usize::from(len)];
        compare(
            "Slot",
            &block[64..],
            &[("kind", &u16s(kind)), ("length", &u16s(len)), ("number", &u32s(3)), ("content", content)],
        );
    }
    let [file, passphrase, tpm] = blocks.each_ref().map(|block| &block[72..]);
    compare(
        "File",
        file,
        &[
            ("secret", &u64s(4096)),
            ("expected", &u64s(8192)),
            ("name length", &u16s(4)),
            ("reserved", &[0; 6]),
            ("device", b"dm:x"),
        ],
    );
    compare(
        "Passphrase",
        passphrase,
        &[
            ("salt", &[1; 16]),
            ("memory", &u32s(8192)),
            ("passes", &u32s(3)),
            ("lanes", &u32s(2)),
            ("reserved", ZERO),
            ("public", &[4; 32]),
            ("private", &[5; 48]),
        ],
    );
    compare(
        "TPM",
        tpm,
        &[
            ("public", &[6; 32]),
            ("registers", &u32s(7)),
            ("blob length", &u16s(16)),
            ("reserved", &[0; 2]),
            ("blob", &[8; 16]),
        ],
    );
}

#[test]
fn session_record_and_header() {
    let (session, record) = (session_bytes(), session().encode().unwrap());
    compare("Session record", &record, &[("prologue", &record[..24]), ("session", &session)]);
    let bytes = Header { session: self::session(), entry: 0x60_0000 }.encode().unwrap();
    let session = &session[..bytes.len() - 40];
    let expected: &[(&str, &[u8])] =
        &[("prologue", &bytes[..24]), ("entry", &u64s(0x60_0000)), ("reserved", &[0; 8]), ("session", session)];
    compare("Header", &bytes, expected);
}

#[test]
fn the_session() {
    let bytes = session_bytes();
    let expected: &[(&str, &[u8])] = &[
        ("image", &[1; 16]),
        ("save", &[2; 16]),
        ("boot", &[3; 16]),
        ("machine", &[4; 16]),
        ("mailbox nonce", &[5; 16]),
        ("created", &u64s(4)),
        ("region start", &u64s(0x100_0000)),
        ("region end", &u64s(0x200_0000)),
        ("mailbox", &u64s(0x601)),
        ("architecture", &u16s(62)),
        ("reserved", &[0; 2]),
        ("page size", &u32s(4096)),
        ("cpus", &u32s(11)),
        ("records", &u32s(12)),
        ("reserved", &[0; 32]),
        ("record list", &[1, 0, 0, 0, 16, 0, 0, 0]),
    ];
    compare("Session", &bytes, expected);
    compare_kinds("Session", SESSION_KINDS);
}

#[test]
fn the_sessions_records() {
    let bytes = session_bytes();
    let [ram, low, firmware, efi, filesystem, swap, cpu, texts @ ..] = records::<12>(SESSION_KINDS, &bytes[160..]);
    compare("Memory range", ram, &[("start", &u64s(0x500)), ("end", &u64s(0x700))]);
    compare("Physical range", low, &[("start", &u64s(0x1000)), ("end", &u64s(0x9000))]);
    let expected: &[(&str, &[u8])] = &[("start", &u64s(6)), ("end", &u64s(7)), ("type", &u32s(4)), ("reserved", ZERO)];
    compare("Firmware range", firmware, expected);
    compare("EFI range", efi, &[("start", &u64s(8)), ("end", &u64s(9)), ("mapped", &u64s(10))]);
    let expected: &[(&str, &[u8])] = &[
        ("length", &u32s(72)),
        ("type length", &u16s(4)),
        ("UUID length", &u16s(3)),
        ("mount point length", &u16s(1)),
        ("disk length", &u16s(6)),
        ("flags", &u32s(1)),
        ("mount digest", &u64s(0x12)),
        ("quiesced digest", &u64s(0x13)),
        ("superblock", &u64s(1024)),
        ("reserved", &[0; 16]),
        ("texts", b"ext41-2/a disk"),
    ];
    compare("Filesystem", filesystem, expected);
    let expected: &[(&str, &[u8])] = &[
        ("length", &u32s(64)),
        ("type length", &u16s(4)),
        ("UUID length", &u16s(3)),
        ("mount point length", &u16s(0)),
        ("disk length", &u16s(0)),
        ("flags", ZERO),
        ("mount digest", &u64s(0x14)),
        ("quiesced digest", &u64s(0)),
        ("superblock", &u64s(0)),
        ("reserved", &[0; 16]),
        ("texts", b"swap3-4\0"),
    ];
    compare("Filesystem", swap, expected);
    let expected: &[(&str, &[u8])] = &[
        ("family", &u32s(8)),
        ("model", &u32s(9)),
        ("stepping", &u32s(10)),
        ("paging levels", &u32s(5)),
        ("vendor length", &u32s(6)),
        ("name length", &u32s(4)),
        ("features length", &u32s(8)),
        ("reserved", ZERO),
        ("texts", b"vendornamefeatures"),
    ];
    compare("X86 CPU", cpu, expected);
    assert_eq!(texts, [&b"release"[..], b"version", b"host", b"cmdline", &u32s(12)]);
}

#[test]
fn the_index_block() {
    let mut builder = IndexBuilder::new(Uuid([1; 16]));
    let (_, prev) = builder.finish(DATA_OFFSET).unwrap();
    let chunk =
        Chunk { offset: DATA_OFFSET + 4096, stored_len: 77, codec: Codec::Zstd, checksum: 2, ..Chunk::default() };
    let extent = |pfn, pages| Extent { pfn, pages };
    builder.chunk(&chunk, &[extent(3, 4), extent(0x500, 6)]).unwrap();
    builder.zero(extent(0x700, 8)).unwrap();
    let bytes = builder.finish(DATA_OFFSET + 8192).unwrap().0;
    Locator::of(Block::Index, DATA_OFFSET + 8192, &bytes).unwrap();
    let expected: &[(&str, &[u8])] = &[
        ("prologue", &bytes[..24]),
        ("save", &[1; 16]),
        ("previous offset", &u64s(DATA_OFFSET)),
        ("previous checksum", &u64s(prev.checksum)),
        ("previous length", &u32s(4096)),
        ("chunks", &u32s(1)),
        ("extents", &u32s(2)),
        ("zero runs", &u32s(1)),
        ("previous tag", &[0; 16]),
        ("reserved", &[0; 8]),
        ("tables", &u64s(DATA_OFFSET + 4096)),
    ];
    compare("Index block", &bytes, expected);
    let (entry, extents) = bytes[96..].split_at(48);
    let expected: &[(&str, &[u8])] = &[
        ("chunk offset", &u64s(DATA_OFFSET + 4096)),
        ("chunk checksum", &u64s(2)),
        ("stored length", &u32s(77)),
        ("codec", &u16s(1)),
        ("extent count", &u16s(2)),
        ("counter", &[0; 8]),
        ("tag", &[0; 16]),
    ];
    compare("Chunk entry", entry, expected);
    for (at, (pfn, pages)) in [(3, 4), (0x500, 6), (0x700, 8)].into_iter().enumerate() {
        let expected: &[(&str, &[u8])] = &[("first page", &u64s(pfn)), ("pages", &u32s(pages))];
        compare("Extent", &extents[at * 12..(at + 1) * 12], expected);
    }
}

#[test]
fn the_states() {
    let rows = rows("States");
    let name = |state: State| format!("{state:?}").to_lowercase();
    assert_eq!(rows.iter().map(|row| row[0].clone()).collect::<Vec<_>>(), State::ALL.map(name));
    for (row, state) in rows.iter().zip(State::ALL) {
        let next: Vec<String> = row[2].split(", ").map(str::to_string).collect();
        let allowed: Vec<String> = State::ALL.into_iter().filter(|next| state.may_become(*next)).map(name).collect();
        assert_eq!(next, allowed, "{state:?}");
        let commit = Commit {
            state,
            header: Locator { offset: HEADER_OFFSET, len: 4096, checksum: 0, ..Locator::default() },
            last_index: Locator { offset: DATA_OFFSET, len: 4096, checksum: 0, ..Locator::default() },
            data_end: DATA_OFFSET + 4096,
            ..Commit::empty(Uuid::default())
        };
        let marker = &commit.encode().unwrap()[32..40];
        assert_eq!(row[1].trim_matches('`').as_bytes(), marker, "{state:?}");
    }
}
