//! Orders as bytes: there and back, what they look like, and what is refused.

#![allow(clippy::unwrap_used, clippy::panic)]

use dormouse_image::{BLOCK, PfnRange, PhysRange, Version, checksum};
use proptest::prelude::*;

use super::*;

/// The version of an order that has nothing new.
const WRITTEN: Version = Version { major: 1, minor: 0 };

pub(crate) fn save_order() -> SaveOrder {
    SaveOrder {
        image: "PARTLABEL=my image".parse().unwrap(),
        session: SessionRecord {
            save_id: Uuid([2; 16]),
            region: PhysRange { start: 0x100_0000, end: 0x900_0000 },
            low: vec![PhysRange { start: 0x1000, end: 0x9_f000 }],
            ram: vec![PfnRange { start: 0x100, end: 0x1000 }, PfnRange { start: 0x9000, end: 0x3_0000 }],
            hostname: "host".to_owned(),
            ..SessionRecord::default()
        },
        then: Then::Reboot,
        disks: vec!["pci0000:00/0000:00:05.0/ata1".to_owned(), "pci0000:00/0000:00:06.0/nvme/n1".to_owned()],
        sealing: None,
        arming: None,
        link: None,
    }
}

pub(crate) fn restore_order() -> RestoreOrder {
    RestoreOrder { image: "/dev/vda".parse().unwrap(), save_id: Uuid([3; 16]), key: None, link: None }
}

pub(crate) fn wait_order() -> WaitOrder {
    let SaveOrder { image, session, .. } = save_order();
    WaitOrder { image, session: Box::new(session), by_module: true, link: None }
}

fn block() -> LoaderBlock {
    let mut disarmed = vec![b'#'; BLOCK];
    disarmed[40] = b'0';
    LoaderBlock { disk: "PARTUUID=0a1b-01".to_owned(), offset: 0x50_1000, disarmed, at: 40 }
}

pub(crate) fn look_order() -> LookOrder {
    let SaveOrder { image, session, .. } = save_order();
    LookOrder { image, block: Some(block()), region: session.region, low: session.low, link: None }
}

fn link() -> Option<Link> {
    let text = "mac=52:54:00:12:34:56 place=pci0000:00/0000:00:03.0/virtio address=10.0.2.15 mtu=1500";
    Some(text.parse().unwrap())
}

fn sealing() -> Sealing {
    let nonce = dormouse_image::seal::Nonce([8; 16]);
    Sealing { key: SaveKey::new(&[4; 32]), nonce, suite: dormouse_image::seal::Suite::Aes256Gcm, wraps: Vec::new() }
}

/// Of each task one, and each again with what is optional.
fn orders() -> [Order; 14] {
    [
        Order::Save(Box::new(save_order())),
        Order::Restore(restore_order()),
        Order::Save(Box::new(SaveOrder { sealing: Some(sealing()), ..save_order() })),
        Order::Restore(RestoreOrder { key: Some(sealing().key), ..restore_order() }),
        Order::Wait(wait_order()),
        Order::Look(look_order()),
        Order::Look(LookOrder { block: None, ..look_order() }),
        Order::Save(Box::new(SaveOrder { arming: Some(block()), ..save_order() })),
        Order::Save(Box::new(SaveOrder { arming: Some(block()), sealing: Some(sealing()), ..save_order() })),
        Order::Save(Box::new(SaveOrder { link: link(), ..save_order() })),
        Order::Restore(RestoreOrder { link: link(), ..restore_order() }),
        Order::Restore(RestoreOrder { key: Some(sealing().key), link: link(), ..restore_order() }),
        Order::Wait(WaitOrder { link: link(), ..wait_order() }),
        Order::Look(LookOrder { link: link(), ..look_order() }),
    ]
}

#[test]
fn an_order_with_a_key_needs_a_program_that_knows_what_it_is_for() {
    for mut order in orders() {
        let bytes = order.encode().unwrap();
        let has_key = bytes.windows(32).any(|bytes| bytes == [4; 32]);
        // One with a block has later records.
        let minor = if bytes[10] >= 3 { bytes[10] } else { u8::from(has_key) };
        assert_eq!((order.is_secret(), bytes[10]), (has_key, minor));
        assert!(!format!("{order:?}").contains("4, 4, 4"));
        order.forget_key();
        assert!(!order.is_secret() && order.encode().unwrap().windows(32).all(|bytes| bytes != [4; 32]));
        let kinds = match order {
            Order::Save(_) => SAVE_KINDS,
            Order::Restore(_) => RESTORE_KINDS,
            Order::Wait(_) => WAIT_KINDS,
            Order::Look(_) => LOOK_KINDS,
        };
        assert!(kinds.iter().all(|kind| !kind.skippable || *kind == ARMING));
    }
}

/// `bytes` with `value` at `at` and the checksum that fits.
fn with(bytes: &[u8], at: usize, value: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at..at + value.len()].copy_from_slice(value);
    bytes[16..24].fill(0);
    let sum = checksum(&bytes);
    bytes[16..24].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// An order of version 1.`minor` with this fixed part and these records.
fn order(minor: u16, fixed: [u8; 4], records: &[(Kind, &[u8])]) -> Vec<u8> {
    let mut writer = Writer::new();
    records.iter().for_each(|(kind, content)| writer.push(kind, content).unwrap());
    let mut body = fixed.to_vec();
    body.extend(writer.count().to_le_bytes());
    body.extend(writer.into_bytes());
    with(&block::frame(Block::Order, MAGIC, &body, MAX).unwrap(), 10, &minor.to_le_bytes())
}

#[test]
fn orders_are_read_back() {
    for order in orders() {
        let bytes = order.encode().unwrap();
        assert_eq!(Order::decode(&bytes), Ok(order.clone()));
        // A file may be longer than the block in it.
        assert_eq!(Order::decode(&[&bytes[..], &[7; 100]].concat()), Ok(order));
    }
    for then in Then::ALL {
        let order = Order::Save(Box::new(SaveOrder { then, ..save_order() }));
        assert_eq!(Order::decode(&order.encode().unwrap()), Ok(order));
    }
}

fn compare(order: &Order, golden: &[u8]) {
    let encoded = order.encode().unwrap();
    let difference = golden.iter().zip(encoded.iter()).position(|(golden, encoded)| golden != encoded);
    assert_eq!(difference.map(|at| (at, encoded[at])), None, "the first byte that differs");
    assert_eq!(golden.len(), encoded.len());
    assert_eq!(Order::decode(golden).as_ref(), Ok(order));
}

/// What was written once is always read, and is still written the same. A change here is a change of the format.
#[test]
fn golden_order_to_restore() {
    let mut golden = b"DMORDER\0\x01\0\0\0\0\x10\0\0".to_vec();
    golden.extend(0xd20c_bf14_4039_fdd3_u64.to_le_bytes());
    golden.extend([2, 0, 0, 0, 2, 0, 0, 0]);
    golden.extend(b"\x01\0\0\0\x08\0\0\0/dev/vda");
    golden.extend([4, 0, 0, 0, 16, 0, 0, 0]);
    golden.extend([3; 16]);
    golden.resize(BLOCK, 0);
    compare(&Order::Restore(restore_order()), &golden);
}

#[test]
fn golden_order_to_save() {
    // The golden bytes of a session record are the image crate's.
    let session = save_order().session.encode().unwrap();
    assert_eq!(session.len(), BLOCK);
    let mut golden = b"DMORDER\0\x01\0\0\0\0\x20\0\0".to_vec();
    golden.extend(0x7cec_8e77_5c58_8f94_u64.to_le_bytes());
    golden.extend([1, 0, 0, 0, 4, 0, 0, 0]);
    golden.extend(b"\x01\0\0\0\x12\0\0\0PARTLABEL=my image\0\0\0\0\0\0");
    golden.extend([2, 0, 0, 0, 0, 16, 0, 0]);
    golden.extend(session);
    golden.extend([3, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    golden.extend([5, 0, 0, 0, 60, 0, 0, 0]);
    golden.extend(b"pci0000:00/0000:00:05.0/ata1\npci0000:00/0000:00:06.0/nvme/n1\0\0\0\0");
    golden.resize(2 * BLOCK, 0);
    compare(&Order::Save(Box::new(save_order())), &golden);
}

#[test]
fn damage_is_noticed() {
    for order in orders() {
        let bytes = order.encode().unwrap();
        for at in (0..bytes.len()).step_by(7) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 4;
            assert!(Order::decode(&damaged).is_err(), "{at}");
        }
        for len in [0, 7, 23, 24, 31, bytes.len() - 1] {
            assert!(Order::decode(&bytes[..len]).is_err(), "{len}");
        }
    }
    let session = save_order().session.encode().unwrap();
    assert_eq!(Order::decode(&session), Err(FormatError::Magic(Block::Order)));
}

#[test]
fn rejects_other_major_versions() {
    let bytes = Order::Restore(restore_order()).encode().unwrap();
    for major in [0_u16, 2, u16::MAX] {
        let found = Version { major, ..WRITTEN };
        let error = FormatError::Version { block: Block::Order, found };
        assert_eq!(Order::decode(&with(&bytes, 8, &major.to_le_bytes())), Err(error));
    }
}

#[test]
fn newer_minor_version_is_read_if_what_it_adds_may_be_skipped() {
    let known: [(Kind, &[u8]); 2] = [(IMAGE, b"/dev/vda"), (SAVE, &[3; 16])];
    // Of that version, also an order without a key has its record.
    let with_news =
        |news: Kind| order(5, [2, 0, 0, 0], &[known[0], known[1], (KEY, b""), (LINK, b""), (news, b"news")]);
    let read = Order::decode(&with_news(Kind::skippable(99, "news", 5)));
    assert_eq!(read, Ok(Order::Restore(restore_order())));
    let error = RecordError::Unknown { kind: 99, written: Version { major: 1, minor: 5 } };
    let read = Order::decode(&with_news(Kind::mandatory(99, "news", 5)));
    assert_eq!(read, Err(FormatError::Record { block: Block::Order, error }));
}

#[test]
fn rejects_what_breaks_a_rule() {
    let field = |field, value, why| FormatError::Field { block: Block::Order, field, value, why };
    let record = |error| FormatError::Record { block: Block::Order, error };
    let [image, save, then]: [(Kind, &[u8]); 3] = [(IMAGE, b"/dev/vda"), (SAVE, &[3; 16]), (THEN, &[1, 0])];
    let disks: (Kind, &[u8]) = (DISKS, b"");
    let session = save_order().session.encode().unwrap();
    let session: (Kind, &[u8]) = (SESSION, &session);
    let task = |value| field("task", value, TASKS);
    let code = |value| field("then", value, "1 (power off), 2 (reboot) or 3 (return)");
    let missing = |kind: Kind| record(RecordError::Missing { kind: kind.number, name: kind.name });
    let unknown = |kind: Kind| record(RecordError::Unknown { kind: kind.number, written: WRITTEN });
    let twice = record(RecordError::Twice { kind: 1, name: "image" });
    let no_device = record(IMAGE.wrong("it does not name an image device"));
    type Case<'a> = ([u8; 4], &'a [(Kind, &'a [u8])], FormatError);
    let table: [Case<'_>; 18] = [
        ([0, 0, 0, 0], &[image, save], task(0)),
        ([5, 0, 0, 0], &[image, save], task(5)),
        ([3, 0, 0, 0], &[image], missing(SESSION)),
        ([3, 0, 0, 0], &[image, session, then], unknown(THEN)),
        ([1, 1, 0, 0], &[image, session, then, disks], task(0x101)),
        ([2, 0, 0, 0], &[image], missing(SAVE)),
        ([2, 0, 0, 0], &[save], missing(IMAGE)),
        ([1, 0, 0, 0], &[image, session, disks], missing(THEN)),
        ([1, 0, 0, 0], &[image, session, then], missing(DISKS)),
        ([1, 0, 0, 0], &[image, then, disks], missing(SESSION)),
        // Of the other kind of order.
        ([2, 0, 0, 0], &[image, save, then], unknown(THEN)),
        ([1, 0, 0, 0], &[image, session, then, disks, save], unknown(SAVE)),
        ([2, 0, 0, 0], &[image, save, image], twice),
        ([2, 0, 0, 0], &[(IMAGE, b"vda"), save], no_device.clone()),
        ([2, 0, 0, 0], &[(IMAGE, b"/dev/\xff"), save], no_device),
        ([2, 0, 0, 0], &[image, (SAVE, &[3; 15])], record(SAVE.wrong("it is not 16 bytes long"))),
        ([1, 0, 0, 0], &[image, session, (THEN, &[0, 1]), disks], code(256)),
        ([1, 0, 0, 0], &[image, session, then, (DISKS, b"\xff")], record(DISKS.wrong("it is not text"))),
    ];
    for (number, (fixed, records, expected)) in table.into_iter().enumerate() {
        assert_eq!(Order::decode(&order(0, fixed, records)), Err(expected), "{number}");
    }
    let (sealing, key) = ((SEALING, &[1; 55][..]), (KEY, &[1; 31][..]));
    let found = Order::decode(&order(1, [1, 0, 0, 0], &[image, (SESSION, session.1), then, disks, sealing]));
    let why = "it is not a key, a nonce, a suite and at most 8 wrapped keys";
    assert_eq!(found, Err(record(SEALING.wrong(why))));
    let found = Order::decode(&order(1, [2, 0, 0, 0], &[image, save, key]));
    assert_eq!(found, Err(record(KEY.wrong("it is not 32 bytes long"))));
    assert_eq!(Order::decode(&order(1, [2, 0, 0, 0], &[image, save])), Err(missing(KEY)));
    let lists = [(IMAGE, &b"/dev/vda"[..]), (BLOCK_OF_LOADER, &[0; 4200][..]), (PLACE, &[0; 16][..])];
    assert_eq!(Order::decode(&order(3, [4, 0, 0, 0], &lists)), Err(record(BLOCK_OF_LOADER.wrong(NO_BLOCK))));
    let content = block().encode();
    for content in
        [&[][..], &content[..4112], &[&[1], &content[1..]].concat(), &[&content[..8], &[9], &content[9..]].concat()]
    {
        assert_eq!(LoaderBlock::decode(content), None);
    }
    let lists = [lists[0], (BLOCK_OF_LOADER, &content[..]), lists[2]];
    assert_eq!(Order::decode(&order(3, [4, 0, 0, 0], &lists)), Err(record(PLACE.wrong("it is not a list of ranges"))));
    let newer = |what| FormatError::Newer { block: Block::Order, what, written: WRITTEN };
    assert_eq!(Order::decode(&order(0, [2, 0, 0, 1], &[image, save])), Err(newer("a reserved field")));
    let padded = with(&order(0, [2, 0, 0, 0], &[image, save]), BLOCK - 1, &[1]);
    assert_eq!(Order::decode(&padded), Err(newer("padding that is not zero")));
    let (key, link) = ((KEY, &b""[..]), (LINK, &b"mac=52:54:00"[..]));
    let found = Order::decode(&order(4, [2, 0, 0, 0], &[image, save, key, link]));
    assert_eq!(found, Err(record(LINK.wrong("it is not an interface"))));
    assert_eq!(Order::decode(&order(4, [2, 0, 0, 0], &[image, save, key])), Err(missing(LINK)));
    let session = (SESSION, &[7; 4096][..]);
    let broken = Order::decode(&order(0, [1, 0, 0, 0], &[image, session, then, disks]));
    assert_eq!(broken, Err(FormatError::Magic(Block::Session)));
}

#[test]
fn session_that_breaks_a_rule_is_not_written() {
    let session = SessionRecord { low: Vec::new(), ..save_order().session };
    let order = Order::Save(Box::new(SaveOrder { session, ..save_order() }));
    assert!(matches!(order.encode(), Err(FormatError::Field { block: Block::Session, .. })));
}

proptest! {
    #[test]
    fn noise_never_panics(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        places in prop::collection::vec((24_usize..4096, any::<u8>()), 1..4),
    ) {
        let _ = Order::decode(&bytes);
        for order in orders() {
            let changed = order.encode().unwrap();
            let changed = places.iter().fold(changed.to_vec(), |bytes, (at, value)| with(&bytes, *at, &[*value]));
            if let Ok(read) = Order::decode(&changed) {
                prop_assert_eq!(Order::decode(&read.encode().unwrap()), Ok(read));
            }
        }
    }
}
