//! Where a kernel that waits finds its next order: a page of A's memory, which names the pages that hold it.
//!
//! It is the page of the mailbox in which that kernel has reported that it waits. FORMAT.md has the bytes.

use thiserror::Error;

use crate::handoff::mailbox::{Nonce, SIZE};
use crate::handoff::order;

/// What follows the nonce, in place of a mailbox's version.
const MAGIC: [u8; 8] = *b"DMNEXT\0\0";
/// Nonce, magic, and the order's length.
const FIXED: usize = 16 + 8 + 8;

/// Where an order lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its length in bytes.
    pub len: usize,
    /// The page frames that hold it, one after another. No page frame twice.
    pub pages: Vec<u64>,
}

/// Why there is no next order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NoOrder {
    /// The page is not the one that was named, or holds something else.
    #[error("the page for the next order does not name one")]
    None,
    /// It names an order that cannot be.
    #[error("the next order would have {len} bytes in {pages} pages")]
    Impossible {
        /// Bytes.
        len: u64,
        /// Pages.
        pages: usize,
    },
}

impl Place {
    /// How many pages an order of `len` bytes takes.
    #[must_use]
    pub fn pages_of(len: usize) -> usize {
        len.div_ceil(SIZE)
    }

    /// The page that names it.
    ///
    /// # Errors
    /// [`NoOrder::Impossible`].
    pub fn to_page(&self, nonce: &Nonce) -> Result<Vec<u8>, NoOrder> {
        self.check()?;
        let mut page = Vec::with_capacity(SIZE);
        page.extend(nonce);
        page.extend(MAGIC);
        page.extend((self.len as u64).to_le_bytes());
        page.extend(self.pages.iter().flat_map(|pfn| pfn.to_le_bytes()));
        page.resize(SIZE, 0);
        Ok(page)
    }

    /// What the page with `nonce` names.
    ///
    /// # Errors
    /// [`NoOrder`] says what is wrong with it.
    pub fn of_page(page: &[u8], nonce: &Nonce) -> Result<Place, NoOrder> {
        let Some((fixed, list)) = page.split_at_checked(FIXED) else { return Err(NoOrder::None) };
        let Some(len) = fixed.strip_prefix(nonce).and_then(|rest| rest.strip_prefix(&MAGIC)) else {
            return Err(NoOrder::None);
        };
        let len = u64::from_le_bytes(len.try_into().map_err(|_| NoOrder::None)?);
        let impossible = NoOrder::Impossible { len, pages: 0 };
        let len = usize::try_from(len).map_err(|_| impossible)?;
        let listed = list.chunks_exact(8).take(Place::pages_of(len));
        let pages = listed.filter_map(|pfn| pfn.try_into().ok()).map(u64::from_le_bytes).collect();
        let place = Place { len, pages };
        place.check()?;
        Ok(place)
    }

    fn check(&self) -> Result<(), NoOrder> {
        let mut sorted = self.pages.clone();
        sorted.sort_unstable();
        sorted.dedup();
        let is_possible = (1..=order::MAX).contains(&self.len)
            && Place::pages_of(self.len) == self.pages.len()
            && sorted.len() == self.pages.len();
        let impossible = NoOrder::Impossible { len: self.len as u64, pages: self.pages.len() };
        if is_possible { Ok(()) } else { Err(impossible) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const NONCE: Nonce = [7; 16];

    #[test]
    fn a_place_is_read_back() {
        for len in [1, SIZE, SIZE + 1, order::MAX] {
            let pages = (0..Place::pages_of(len) as u64).map(|page| 1000 - page).collect();
            let place = Place { len, pages };
            let page = place.to_page(&NONCE).unwrap();
            assert_eq!(page.len(), SIZE);
            assert_eq!(Place::of_page(&page, &NONCE), Ok(place));
            assert_eq!(Place::of_page(&page, &[8; 16]), Err(NoOrder::None));
        }
    }

    #[test]
    fn rejects_what_is_no_place() {
        assert_eq!(Place::of_page(&crate::handoff::mailbox::start(&NONCE), &NONCE), Err(NoOrder::None));
        assert_eq!(Place::of_page(&[0; SIZE], &NONCE), Err(NoOrder::None));
        let impossible = |len, pages: &[u64]| {
            let place = Place { len, pages: pages.to_vec() };
            matches!(place.to_page(&NONCE), Err(NoOrder::Impossible { .. }))
        };
        assert!(impossible(0, &[]) && impossible(1, &[]) && impossible(1, &[5, 6]) && impossible(SIZE + 1, &[5, 5]));
        assert!(impossible(order::MAX + 1, &(0..257).collect::<Vec<_>>()));
        let mut page = Place { len: 10, pages: vec![5] }.to_page(&NONCE).unwrap();
        page[24..32].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(matches!(Place::of_page(&page, &NONCE), Err(NoOrder::Impossible { len: u64::MAX, .. })));
    }
}
