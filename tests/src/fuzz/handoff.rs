//! What one kernel hands to another: an order, and the mailbox with its report.
//!
//! The first byte of an input, modulo 4, says what the others are. Blocks are given the prologue and the checksum that
//! fit, so that not every change ends there.
//!
//! ```text
//!   0   an order, as it is
//!   1   the body of an order
//!   2   1 byte    what follows the save
//!       1 byte    length of the image device's name
//!       n bytes   the name
//!       n bytes   the body of a session record
//!   3   a mailbox after its nonce and version: up to a page
//! ```

use dormouse::handoff::mailbox;
use dormouse::handoff::order::{MAGIC, MAX, Order, SAVE_KINDS};
use dormouse_image::layout::SESSION_MAX;
use dormouse_image::record::Writer;
use dormouse_image::{Block, SESSION_MAGIC, block};

const NONCE: mailbox::Nonce = [5; 16];

/// Reads any bytes as an order or as a mailbox.
pub(super) fn run(input: &[u8]) {
    let Some((kind, rest)) = input.split_first() else { return };
    match kind % 4 {
        0 => order(rest),
        1 => framed(rest),
        2 => order_to_save(rest),
        _ => mailbox(rest),
    }
}

fn order(bytes: &[u8]) {
    match Order::decode(bytes) {
        Ok(order) => {
            if let Order::Save(order) = &order {
                assert!(super::ascending(&order.session.ram) && !order.session.low.is_empty());
            }
            let written = order.encode().expect("what was read can be written");
            assert_eq!(Order::decode(&written), Ok(order));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn framed(body: &[u8]) {
    if let Ok(bytes) = block::frame(Block::Order, MAGIC, body, MAX) {
        order(&bytes);
    }
}

fn order_to_save(input: &[u8]) {
    let [then, len, rest @ ..] = input else { return };
    let Some((name, session)) = rest.split_at_checked(usize::from(*len)) else { return };
    let Ok(session) = block::frame(Block::Session, SESSION_MAGIC, session, SESSION_MAX) else { return };
    let mut records = Writer::new();
    let contents: [&[u8]; 4] = [name, &session, &[*then, 0], name];
    for (kind, content) in SAVE_KINDS.iter().zip(contents) {
        records.push(kind, content).expect("short records can be written");
    }
    let mut body = vec![1, 0, 0, 0];
    body.extend(records.count().to_le_bytes());
    body.extend(records.into_bytes());
    framed(&body);
}

fn mailbox(rest: &[u8]) {
    let mut page = mailbox::start(&NONCE);
    page.extend(rest);
    page.resize(mailbox::SIZE, 0);
    let free_pages = mailbox::free_pages(&page, &NONCE);
    match mailbox::read(&page, &NONCE) {
        Ok(report) => {
            assert!(!report.to_string().is_empty() || report.reason.is_empty());
            // Numbers may be written with other digits, and so with more.
            if mailbox::write(&mut page, &NONCE, &report).is_ok() {
                assert_eq!(mailbox::read(&page, &NONCE).expect("what was written is read"), report);
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    assert_eq!(mailbox::free_pages(&page, &NONCE), free_pages);
    assert!(mailbox::read(&page, &[0; 16]).is_err());
}
