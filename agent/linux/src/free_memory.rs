//! Memory that is free at once, and reclaiming until there is enough of it.
//!
//! Drivers allocate memory while they freeze. The kernel's own hibernation and suspend forbid such an allocation to
//! wait for a disk (Linux 6.12, kernel/power/main.c, `pm_restrict_gfp_mask`), because the disk may be frozen already; a
//! jump by kexec does not. So there must be so much that nothing has to be reclaimed meanwhile: more than the zones'
//! high watermarks, above which not even kswapd begins.

use std::fs;
use std::hint::black_box;
use std::io;
use std::thread::sleep;
use std::time::{Duration, Instant};

use dormouse_sys::PAGE_SIZE;

use crate::procfs;

const SCALE: &str = "/proc/sys/vm/watermark_scale_factor";
/// The bounds of that file (mm/page_alloc.c, `page_alloc_sysctl_table`).
const SCALES: std::ops::RangeInclusive<u64> = 1..=3000;
const PAUSE: Duration = Duration::from_millis(50);

/// How much is free, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Free {
    /// What was free before anything was reclaimed.
    pub before: u64,
    /// What is free now.
    pub now: u64,
    /// What was asked for, the watermarks included.
    pub wanted: u64,
}

impl Free {
    /// Whether there is enough.
    #[must_use]
    pub fn is_enough(&self) -> bool {
        self.now >= self.wanted
    }
}

/// What `/proc/zoneinfo` reports of the zones that the kernel itself allocates from, in pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Zones {
    free: u64,
    min: u64,
    high: u64,
    managed: u64,
}

impl Zones {
    fn read() -> anyhow::Result<Zones> {
        Ok(Zones::parse(&procfs::text("/proc/zoneinfo")?))
    }

    /// Not of ZONE_DMA, which is kept back for devices that need it, and not of ZONE_MOVABLE, which drivers cannot
    /// allocate from.
    fn parse(text: &str) -> Zones {
        let mut zones = Zones::default();
        let mut is_counted = false;
        for line in text.lines() {
            if let Some((_, name)) = line.strip_prefix("Node ").and_then(|rest| rest.split_once(", zone ")) {
                is_counted = matches!(name.trim(), "DMA32" | "Normal");
                continue;
            }
            let line = line.trim_start();
            let mut words = line.strip_prefix("pages ").unwrap_or(line).split_whitespace();
            let (Some(name), Some(number), None) = (words.next(), words.next(), words.next()) else { continue };
            let field = match name {
                "free" => &mut zones.free,
                "min" => &mut zones.min,
                "high" => &mut zones.high,
                "managed" => &mut zones.managed,
                _ => continue,
            };
            if is_counted {
                *field += number.parse::<u64>().unwrap_or(0);
            }
        }
        zones
    }

    /// The `watermark_scale_factor` at which the high watermarks together are `pages` or more: high is min plus twice
    /// the managed pages by it (mm/page_alloc.c, `__setup_per_zone_wmarks`).
    fn scale(&self, pages: u64) -> u64 {
        let half = pages.saturating_sub(self.min).div_ceil(2);
        let scale = (half.saturating_mul(10_000)).div_ceil(self.managed.max(1));
        scale.clamp(*SCALES.start(), *SCALES.end())
    }
}

/// Sees to it that `reserve` bytes above the watermarks are free, and returns how much is. It takes `limit` at most.
///
/// What is reclaimed is what the kernel takes to be the least used: the watermarks from which kswapd works are raised
/// for a moment. That needs no control groups, and cannot make the kernel kill a process, because the watermark below
/// which allocations fail stays. Where that does not help, the clean page cache is dropped.
///
/// # Errors
/// The kernel does not report what is free.
pub fn make(reserve: u64, limit: Duration) -> anyhow::Result<Free> {
    let began = Zones::read()?;
    let wanted = began.high + reserve.div_ceil(PAGE_SIZE);
    let result =
        |now: Zones| Free { before: began.free * PAGE_SIZE, now: now.free * PAGE_SIZE, wanted: wanted * PAGE_SIZE };
    if began.free >= wanted {
        return Ok(result(began));
    }
    if let Err(error) = by_kswapd(began, wanted, limit) {
        log::debug!("{SCALE}: {error}");
    }
    let mut now = Zones::read()?;
    if now.free < wanted {
        if let Err(error) = fs::write("/proc/sys/vm/drop_caches", "1") {
            log::debug!("/proc/sys/vm/drop_caches: {error}");
        }
        now = Zones::read()?;
    }
    Ok(result(now))
}

/// Has kswapd reclaim until `wanted` pages are free, or `limit` is over, or it makes no progress.
fn by_kswapd(began: Zones, wanted: u64, limit: Duration) -> io::Result<()> {
    let old = fs::read_to_string(SCALE)?;
    let deadline = Instant::now() + limit;
    // It stops as soon as one zone of a node is above its watermark, so that more may be needed.
    let mut scale = began.scale(wanted);
    let mut best = began.free;
    let mut idle = 0;
    let result = loop {
        if let Err(error) = fs::write(SCALE, scale.to_string()) {
            break Err(error);
        }
        // kswapd is woken by an allocation that finds too little.
        black_box(vec![1_u8; 1 << 20]);
        sleep(PAUSE);
        let free = Zones::read().map_or(0, |zones| zones.free);
        if free >= wanted || Instant::now() >= deadline {
            break Ok(());
        }
        idle = if free > best { 0 } else { idle + 1 };
        best = best.max(free);
        match idle {
            0..=5 => {}
            _ if scale == *SCALES.end() => break Ok(()),
            _ => {
                scale = (scale * 2).min(*SCALES.end());
                idle = 0;
            }
        }
    };
    fs::write(SCALE, old.trim()).and(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a machine with 4 GiB, cut to what is read and something beside it.
    const ZONEINFO: &str = "\
Node 0, zone      DMA
  per-node stats
      nr_inactive_anon 10
  pages free     3840
        boost    0
        min      66
        low      82
        high     98
        promo    114
        spanned  4095
        present  3998
        managed  3840
        protection: (0, 2860, 3855, 3855, 3855)
Node 0, zone    DMA32
  pages free     600000
        boost    0
        min      12000
        low      15000
        high     18000
        managed  750000
      nr_free_pages 600000
Node 0, zone   Normal
  pages free     5000
        min      4000
        low      5000
        high     6000
        managed  250000
  pagesets
    cpu: 0
              count: 30
              high:  100
Node 0, zone  Movable
  pages free     0
        min      32
        high     32
        managed  0
";

    #[test]
    fn counts_the_zones_that_drivers_allocate_from() {
        let zones = Zones { free: 605_000, min: 16_000, high: 24_000, managed: 1_000_000 };
        assert_eq!(Zones::parse(&ZONEINFO.replace("              high:  100\n", "")), zones);
        // The lists of a CPU have words that look alike.
        assert_eq!(Zones::parse(ZONEINFO), zones);
        assert_eq!(Zones::parse(""), Zones::default());
    }

    #[test]
    fn raises_the_watermarks_as_far_as_is_needed() {
        let zones = Zones { free: 1000, min: 16_000, high: 24_000, managed: 1_000_000 };
        // min + 2 * managed * scale / 10000 is enough.
        let high = |scale: u64| zones.min + 2 * (zones.managed * scale / 10_000);
        for wanted in [24_001, 32_192, 100_000, 500_000] {
            let scale = zones.scale(wanted);
            assert!(high(scale) >= wanted && high(scale - 1) < wanted, "{wanted}: {scale}");
        }
        assert_eq!(zones.scale(0), 1);
        assert_eq!(zones.scale(u64::MAX), 3000);
        assert_eq!(Zones::default().scale(10), 3000);
    }

    #[test]
    fn enough_is_what_was_asked_for() {
        let free = Free { before: 1, now: 10, wanted: 10 };
        assert!(free.is_enough() && !Free { now: 9, ..free }.is_enough());
    }
}
