//! The order that A has left in its memory for a kernel that waits.

use anyhow::Context;
use dormouse_image::{PfnRange, SessionRecord};
use zeroize::Zeroizing;

use crate::handoff::mailbox::{Nonce, SIZE};
use crate::handoff::next_order::Place;
use crate::memory::deliver;
use crate::pipeline::seams::PageSink;

/// Takes the order for a kernel that was told to wait for it by `session`. It is taken once: zeroes are left in its
/// place, since a key may be in it, and that memory is about to be saved.
///
/// # Errors
/// There is none, or its memory cannot be reached.
pub fn take(session: &SessionRecord) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let mailbox = session.mailbox.as_ref().context("there is no page for the next order")?;
    let place = {
        let memory = deliver::open(session, &[page(mailbox.pfn)])?;
        take_place(&memory, mailbox.pfn, &mailbox.nonce)?
    };
    let mut frames: Vec<PfnRange> = place.pages.iter().map(|pfn| page(*pfn)).collect();
    frames.sort_unstable_by_key(|range| range.start);
    take_order(&deliver::open(session, &frames)?, &place)
}

fn take_place(memory: &impl PageSink, pfn: u64, nonce: &Nonce) -> anyhow::Result<Place> {
    let about = || format!("the next order's place in page frame {pfn:#x}");
    Ok(memory.write(page(pfn), |bytes| Place::of_page(bytes, nonce)).with_context(about)??)
}

fn take_order(memory: &impl PageSink, place: &Place) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let mut order = Zeroizing::new(Vec::with_capacity(place.pages.len() * SIZE));
    for pfn in &place.pages {
        let taken = memory.write(page(*pfn), |bytes| {
            order.extend_from_slice(bytes);
            bytes.fill(0);
        });
        taken.with_context(|| format!("the next order in page frame {pfn:#x}"))?;
    }
    order.truncate(place.len);
    Ok(order)
}

fn page(pfn: u64) -> PfnRange {
    PfnRange { start: pfn, end: pfn + 1 }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    use super::*;

    struct Pages(Mutex<BTreeMap<u64, Vec<u8>>>);

    impl PageSink for Pages {
        fn write<T>(&self, run: PfnRange, write: impl FnOnce(&mut [u8]) -> T) -> std::io::Result<T> {
            let mut pages = self.0.lock().unwrap();
            pages.get_mut(&run.start).map(|page| write(page)).ok_or_else(|| std::io::ErrorKind::NotFound.into())
        }
    }

    #[test]
    fn an_order_is_taken_once_from_pages_in_any_order() {
        let nonce = [7; 16];
        let place = Place { len: SIZE + 5, pages: vec![9, 4] };
        let pages = BTreeMap::from([(2, place.to_page(&nonce).unwrap()), (4, vec![4; SIZE]), (9, vec![9; SIZE])]);
        let memory = Pages(Mutex::new(pages));
        assert_eq!(take_place(&memory, 2, &nonce).unwrap(), place);
        let order = take_order(&memory, &place).unwrap();
        assert_eq!((order.len(), order[0], order[SIZE - 1], order[SIZE]), (SIZE + 5, 9, 9, 4));
        assert!(take_order(&memory, &place).unwrap().iter().all(|byte| *byte == 0));
        assert!(take_place(&memory, 2, &[8; 16]).is_err() && take_place(&memory, 3, &nonce).is_err());
    }
}
