//! How many free pages a stopped kernel counts itself: the sum over the free lists of its zones.
//!
//! Each list counts its blocks (`free_area.nr_free`, the structure's last field in include/linux/mmzone.h, Linux 6.1 to
//! 7.2), under the lock under which blocks come and go. So the sum is exact at every moment, also after drivers have
//! given pages back while they froze, as a balloon does (drivers/virtio/virtio_balloon.c, `virtballoon_freeze`).

use dormouse_linux::vmcoreinfo::VmcoreInfo;
use dormouse_sys::PAGE_SIZE;

use crate::memory::select::address_space::Virtual;
use crate::memory::select::{Physical, SelectError};

/// More nodes or zones than any kernel has.
const MOST_NODES: usize = 1 << 10;
const MOST_ZONES: u64 = 16;

/// Where the free lists are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Zones {
    nodes: Nodes,
    /// Offset of the zones in a node, and of their number.
    zones: u64,
    zone_count: u64,
    /// Bytes of a zone.
    zone_size: u64,
    /// Offset of the free lists in a zone.
    lists: u64,
    /// Bytes of a free list.
    list_size: u64,
}

/// Virtual addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Nodes {
    /// Of the only node.
    One(u64),
    /// Of an array of pointers to nodes, some of which may be null, and how many it has.
    Table(u64, usize),
}

impl Zones {
    /// Reads it. `None` where VMCOREINFO lacks something, or has what cannot be.
    pub(super) fn new(info: &VmcoreInfo) -> Option<Zones> {
        let nodes = match info.symbol("node_data") {
            Some(table) => Nodes::Table(table, info.measure("LENGTH", "node_data")?.min(MOST_NODES)),
            None => Nodes::One(info.symbol("contig_page_data")?),
        };
        let bytes = |kind, name| u64::try_from(info.measure(kind, name)?).ok().filter(|bytes| *bytes <= 1 << 20);
        let zones = Zones {
            nodes,
            zones: bytes("OFFSET", "pglist_data.node_zones")?,
            zone_count: bytes("OFFSET", "pglist_data.nr_zones")?,
            zone_size: bytes("SIZE", "zone")?,
            lists: bytes("OFFSET", "zone.free_area")?,
            list_size: bytes("SIZE", "free_area")?,
        };
        (zones.list_size >= 8).then_some(zones)
    }

    /// How many pages the free lists of all zones have, of blocks up to `orders`.
    ///
    /// # Errors
    /// The kernel's data cannot be read, or are none.
    pub(super) fn count<M: Physical>(&self, kernel: &Virtual<'_, M>, orders: u64) -> Result<u64, SelectError> {
        let nodes = match self.nodes {
            Nodes::One(node) => vec![node],
            Nodes::Table(table, len) => {
                let pointer = |number: u64| kernel.word(table.wrapping_add(number * 8));
                (0..len as u64).map(pointer).collect::<Result<Vec<u64>, _>>()?
            }
        };
        let mut free = 0_u64;
        for node in nodes.into_iter().filter(|node| *node != 0) {
            // An int, which shares its word with the next field.
            let at = node.wrapping_add(self.zone_count);
            let zones = kernel.word(at & !7)? >> (at % 8 * 8) & u64::from(u32::MAX);
            if zones > MOST_ZONES {
                return Err(SelectError::Value("pglist_data.nr_zones", zones));
            }
            for zone in 0..zones {
                let lists = node.wrapping_add(self.zones + zone * self.zone_size + self.lists);
                for order in 0..orders {
                    let blocks = kernel.word(lists.wrapping_add((order + 1) * self.list_size - 8))?;
                    let pages = blocks.checked_mul(1 << order).filter(|pages| *pages <= u64::MAX / PAGE_SIZE);
                    free = pages
                        .and_then(|pages| free.checked_add(pages))
                        .ok_or(SelectError::Value("free_area.nr_free", blocks))?;
                }
            }
        }
        Ok(free)
    }
}
