//! What `FORMAT.md` says of order and mailbox is what the code does.

#![allow(clippy::unwrap_used)]

#[path = "../image/tests/document/tables.rs"]
mod tables;

use dormouse::handoff::arguments::LoaderArguments;
use dormouse::handoff::mailbox::{self, ArmedWatchdog, FreePages};
use dormouse::handoff::next_order;
use dormouse::handoff::order::{
    FILE, LOOK_KINDS, LoaderBlock, LookOrder, MAGIC, MAX, Order, RESTORE_KINDS, RestoreOrder, SAVE_KINDS, SaveOrder,
    WAIT_KINDS, WaitOrder,
};
use dormouse::handoff::report::{Half, Report};
use dormouse::machine::free_content::FreeContent;
use dormouse::policy::Then;
use dormouse_image::seal::{Nonce, SaveKey, Sealing, Suite};
use dormouse_image::{PfnRange, PhysRange, SessionRecord, Uuid};
use tables::{compare, compare_kinds, records, rows};

fn save_order() -> SaveOrder {
    SaveOrder {
        image: "/dev/vda".parse().unwrap(),
        session: SessionRecord {
            region: PhysRange { start: 0x100_0000, end: 0x200_0000 },
            low: vec![PhysRange { start: 0x1000, end: 0x9000 }],
            ram: vec![PfnRange { start: 0x500, end: 0x700 }],
            ..SessionRecord::default()
        },
        then: Then::Reboot,
        disks: vec!["pci0000:00/0000:00:05.0/virtio".to_owned(), "other".to_owned()],
        sealing: None,
        arming: None,
        link: None,
    }
}

/// Compares the fixed part of an order with the document.
fn compare_order(bytes: &[u8], task: u16, count: u32) {
    let expected: &[(&str, &[u8])] = &[
        ("prologue", &bytes[..24]),
        ("task", &task.to_le_bytes()),
        ("reserved", &[0; 2]),
        ("records", &count.to_le_bytes()),
        ("record list", &[1, 0, 0, 0, 8, 0, 0, 0]),
    ];
    compare("Order", bytes, expected);
    assert_eq!((&bytes[..8], MAGIC, FILE, MAX), (&b"DMORDER\0"[..], *b"DMORDER\0", "dormouse-order", 1_048_576));
}

#[test]
fn order_to_save() {
    let order = save_order();
    let session = order.session.encode().unwrap();
    let bytes = Order::Save(Box::new(order)).encode().unwrap();
    compare_order(&bytes, 1, 4);
    compare_kinds("Order to save", SAVE_KINDS);
    // Without a key it is one of version 1.0, which has no record for it.
    let kinds = &SAVE_KINDS[..4];
    let [image, found, then, disks] = records(kinds, &bytes[32..]);
    assert_eq!((image, found, then), (&b"/dev/vda"[..], &session[..], &[2, 0][..]));
    assert_eq!(disks, b"pci0000:00/0000:00:05.0/virtio\nother");
    for (number, then) in (1_u16..).zip([Then::PowerOff, Then::Reboot, Then::Return]) {
        let bytes = Order::Save(Box::new(SaveOrder { then, ..save_order() })).encode().unwrap();
        let [_, _, found, _] = records(kinds, &bytes[32..]);
        assert_eq!(found, number.to_le_bytes());
    }
}

#[test]
fn order_to_wait() {
    let SaveOrder { image, session, .. } = save_order();
    let expected = session.encode().unwrap();
    let order = WaitOrder { image, session: Box::new(session), by_module: false, link: None };
    let bytes = Order::Wait(order.clone()).encode().unwrap();
    compare_order(&bytes, 3, 3);
    compare_kinds("Order to wait", WAIT_KINDS);
    let [image, session, jump] = records(&WAIT_KINDS[..3], &bytes[32..]);
    assert_eq!((image, session, jump), (&b"/dev/vda"[..], &expected[..], &[1, 0][..]));
    let bytes = Order::Wait(WaitOrder { by_module: true, ..order }).encode().unwrap();
    let [_, _, jump] = records(&WAIT_KINDS[..3], &bytes[32..]);
    assert_eq!(jump, [2, 0]);

    let page = next_order::Place { len: 5000, pages: vec![0x1234, 7] }.to_page(&[3; 16]).unwrap();
    let expected: &[(&str, &[u8])] = &[
        ("nonce", &[3; 16]),
        ("magic", b"DMNEXT\0\0"),
        ("length", &[0x88, 0x13, 0, 0, 0, 0, 0, 0]),
        ("pages", &[0x34, 0x12, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]),
    ];
    compare("Order to wait", &page[..48], expected);
}

#[test]
fn order_to_restore() {
    let order = RestoreOrder { image: "/dev/vda".parse().unwrap(), save_id: Uuid([7; 16]), key: None, link: None };
    let bytes = Order::Restore(order).encode().unwrap();
    compare_order(&bytes, 2, 2);
    compare_kinds("Order to restore", RESTORE_KINDS);
    let [image, save] = records(&RESTORE_KINDS[..2], &bytes[32..]);
    assert_eq!((image, save), (&b"/dev/vda"[..], &[7; 16][..]));

    let key = SaveKey::new(&[8; 32]);
    let sealing = Sealing { key: key.clone(), nonce: Nonce([9; 16]), suite: Suite::Aes256Gcm, wraps: Vec::new() };
    let expected = sealing.encode().unwrap().to_vec();
    let order = Order::Save(Box::new(SaveOrder { sealing: Some(sealing), ..save_order() })).encode().unwrap();
    let [_, _, _, _, sealing] = records(&SAVE_KINDS[..5], &order[32..]);
    assert_eq!((sealing, order[10]), (&expected[..], 1));
    let order = RestoreOrder { image: "/dev/vda".parse().unwrap(), save_id: Uuid([7; 16]), key: Some(key), link: None };
    let order = Order::Restore(order).encode().unwrap();
    let [_, _, key] = records(&RESTORE_KINDS[..3], &order[32..]);
    assert_eq!((key, order[10]), (&[8; 32][..], 1));
}

#[test]
fn order_to_look() {
    let disarmed = [vec![b'#'; 40], vec![b'0'], vec![b'#'; 4055]].concat();
    let block = LoaderBlock { disk: "PARTUUID=a-01".to_owned(), offset: 0x50_1000, disarmed: disarmed.clone(), at: 40 };
    let SaveOrder { image, session, .. } = save_order();
    let (region, low) = (session.region, session.low);
    let order = LookOrder { image, block: Some(block.clone()), region, low, link: None };
    let bytes = Order::Look(order.clone()).encode().unwrap();
    compare_order(&bytes, 4, 3);
    compare_kinds("Order to look", LOOK_KINDS);
    let [image, found, place] = records(&LOOK_KINDS[..3], &bytes[32..]);
    assert_eq!((image, bytes[10]), (&b"/dev/vda"[..], 3));
    let expected = [0x100_0000_u64, 0x200_0000, 0x1000, 0x9000];
    assert_eq!(place, expected.map(u64::to_le_bytes).concat());
    let expected: &[(&str, &[u8])] = &[
        ("offset", &0x50_1000_u64.to_le_bytes()),
        ("byte", &40_u32.to_le_bytes()),
        ("reserved", &[0; 4]),
        ("block", &disarmed),
        ("disk", b"PARTUUID=a-01"),
    ];
    compare("Order to look", found, expected);
    let without = Order::Look(LookOrder { block: None, ..order }).encode().unwrap();
    let [_, none, same] = records(&LOOK_KINDS[..3], &without[32..]);
    assert_eq!((none, same), (&b""[..], place));
    let armed = block.armed();
    assert_eq!((armed[40], &armed[..40], &armed[41..]), (b'1', &disarmed[..40], &disarmed[41..]));

    let order = Order::Save(Box::new(SaveOrder { arming: Some(block), ..save_order() })).encode().unwrap();
    let [_, _, _, _, sealing, arming] = records(&SAVE_KINDS[..6], &order[32..]);
    assert_eq!((sealing, arming, order[10]), (&b""[..], found, 3));
}

#[test]
fn order_with_a_link() {
    let words =
        "mac=52:54:00:12:34:56 place=pci0000:00/0000:00:03.0/virtio address=10.0.2.15 gateway=10.0.2.2 mtu=1500";
    let link = Some(words.parse().unwrap());
    let listed: Vec<String> =
        rows("Link").into_iter().filter(|row| row[0].starts_with('`')).map(|row| row[0].replace('`', "")).collect();
    let written: Vec<String> = words.split(' ').map(|word| format!("{}=", word.split_once('=').unwrap().0)).collect();
    assert_eq!(listed, written);
    let order = Order::Save(Box::new(SaveOrder { link: link.clone(), ..save_order() })).encode().unwrap();
    let [_, _, _, _, sealing, arming, found] = records(SAVE_KINDS, &order[32..]);
    assert_eq!((sealing, arming, found, order[10]), (&b""[..], &b""[..], words.as_bytes(), 4));
    let order = RestoreOrder { image: "/dev/vda".parse().unwrap(), save_id: Uuid([7; 16]), key: None, link };
    let order = Order::Restore(order).encode().unwrap();
    let [_, _, key, found] = records(RESTORE_KINDS, &order[32..]);
    assert_eq!((key, found, order[10]), (&b""[..], words.as_bytes(), 4));
}

#[test]
fn arguments_of_the_loader() {
    let listed: Vec<String> =
        rows("Order").into_iter().filter(|row| row[0].starts_with('`')).map(|row| row[0].clone()).collect();
    let written = LoaderArguments { entry: Some(0), bridge: Some(0x1000) }.to_string();
    let names: Vec<&str> = written.split(' ').map(|argument| argument.split_once('=').unwrap().0).collect();
    assert_eq!(listed.len(), names.len());
    assert!(listed.iter().zip(&names).all(|(row, name)| row.starts_with(&format!("`{name}="))), "{listed:?} {names:?}");
}

#[test]
fn mailbox_page() {
    let nonce = [3; 16];
    let mut page = mailbox::start(&nonce);
    page.resize(mailbox::SIZE, 0);
    let free = FreePages { content: FreeContent::Zero, count: 77 };
    page[mailbox::FREE_PAGES..].copy_from_slice(&free.to_bytes());
    let watchdog = ArmedWatchdog::new("iTCO_wdt", 30).unwrap();
    page[mailbox::WATCHDOG..mailbox::FREE_PAGES].copy_from_slice(&watchdog.to_bytes());
    let report = Report::failed("why".to_owned());
    mailbox::write(&mut page, &nonce, &report).unwrap();
    let text = serde_json::to_vec(&report).unwrap();
    let mut padded = text.clone();
    padded.resize(4048, 0);
    let expected: &[(&str, &[u8])] = &[
        ("nonce", &nonce),
        ("major version", &mailbox::VERSION.major.to_le_bytes()),
        ("minor version", &mailbox::VERSION.minor.to_le_bytes()),
        ("length", &u32::try_from(text.len()).unwrap().to_le_bytes()),
        ("report", &padded),
        ("watchdog timeout", &30_u32.to_le_bytes()),
        ("watchdog", &dormouse_image::checksum(b"iTCO_wdt").to_le_bytes()[..4]),
        ("free content", &2_u64.to_le_bytes()),
        ("free count", &77_u64.to_le_bytes()),
    ];
    compare("Mailbox", &page, expected);
}

/// The keys of the document's tables, those of a report and those of a half.
#[test]
fn keys_of_a_report() {
    let report = serde_json::to_value(Report { restore: Some(Half::default()), ..Report::failed("why".to_owned()) });
    let report = report.unwrap();
    let keys = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let listed = rows("Mailbox").into_iter().filter(|row| row.len() == 2);
    let mut listed: Vec<String> = listed.map(|row| row[0].trim_matches('`').to_owned()).collect();
    let mut expected = [keys(&report), keys(&report["save"])].concat();
    assert_eq!(keys(&report["save"]), keys(&report["restore"]));
    listed.sort();
    expected.sort();
    assert_eq!(listed, expected);
}
