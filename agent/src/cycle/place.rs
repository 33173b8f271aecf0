//! Where the save kernel goes in this machine, and what of its memory is saved.

use anyhow::Context;
use dormouse_image::{Architecture, Mailbox, PfnRange, PhysRange, SessionRecord, Uuid};
use dormouse_linux::system::Uname;
use dormouse_linux::{memory_watch, procfs};
use dormouse_sys::pin::PinnedPage;

use crate::console::phase::Phase;
use crate::cycle::refusal::{self, Obstacle};
use crate::cycle::region_size;
use crate::filesystems::Mounted;
use crate::handoff::mailbox;
use crate::handoff::order::Order;
use crate::launch::{SecondKernel, region};
use crate::machine::{Machine, acpi};
use crate::policy::Policy;

/// What is allocated beyond the size of the swapped ranges, in bytes, before the search for a page outside them ends.
const SLACK: u64 = 16 << 20;

/// The place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// Where it runs.
    pub(super) region: PhysRange,
    /// The low memory that it gets.
    pub(super) low: Vec<PhysRange>,
    /// The memory that it saves.
    pub(super) memory: Vec<PfnRange>,
}

impl Place {
    /// Chooses it.
    ///
    /// # Errors
    /// The memory has no room for it.
    pub(super) fn choose(machine: &Machine, policy: &Policy) -> anyhow::Result<Place> {
        let ram = machine.iomem.whole_ram();
        let size = region_size::Needs::read(policy, machine.iomem.ram_pages()).size(policy.region.size)?;
        let region = region::choose(&ram, &machine.iomem.kernel, size, policy.region.address)?;
        let low = region::low_memory(&ram)?;
        let memory = acpi::saved_frames(&machine.iomem, &region);
        Ok(Place { region, low, memory })
    }

    /// What the jump exchanges.
    fn swapped(&self) -> impl Iterator<Item = &PhysRange> {
        self.low.iter().chain([&self.region])
    }

    /// The same, in bytes: what a save kernel takes while it waits.
    pub(super) fn swapped_len(&self) -> u64 {
        self.swapped().map(PhysRange::len).sum()
    }

    /// Refuses a machine in which setting aside what the region holds would drive programs out of memory.
    ///
    /// # Errors
    /// The obstacle.
    pub(super) fn refuse_little_memory(&self) -> Result<(), Obstacle> {
        // A kernel that does not say is let through.
        let available = memory_watch::available_kib().map(|kib| kib.saturating_mul(1024));
        refusal::refuse(available.and_then(|available| refusal::in_memory(self.region.len(), available)))
    }

    /// The save kernel, planned for who loads it and takes `most_segments`.
    ///
    /// # Errors
    /// A file that cannot be read or is not a kernel, or what does not fit.
    pub(super) fn plan(
        &self,
        machine: &Machine,
        policy: &Policy,
        order: &Order,
        most_segments: usize,
    ) -> anyhow::Result<SecondKernel> {
        let kernel = SecondKernel::plan(machine, policy, order, self.region, &self.low, most_segments)?;
        log::debug!("{}: command line of B: {}", Phase::HibernateLoad, kernel.command_line());
        Ok(kernel)
    }

    /// A pinned page with `content` that the jump does not swap: the other kernel sees it where it is.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn pin(&self, content: &[u8]) -> anyhow::Result<PinnedPage> {
        // All of what is swapped may be free and be handed out first.
        let limit = usize::try_from(self.swapped_len() + SLACK)?;
        PinnedPage::new(content, limit, |pfn| {
            let bytes = PfnRange { start: pfn, end: pfn + 1 }.bytes();
            !self.swapped().any(|range| range.overlaps(&bytes))
        })
        .context("cannot pin a page outside the region")
    }

    /// A page for the other kernel's report, with a fresh nonce.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn mailbox(&self) -> anyhow::Result<(PinnedPage, Mailbox)> {
        let nonce = procfs::random()?;
        let page = self.pin(&mailbox::start(&nonce)).context("for the report")?;
        let mailbox = Mailbox { pfn: page.pfn(), nonce };
        Ok((page, mailbox))
    }

    /// The session that is to be saved: what B writes into the image's header, and what a resume is checked against.
    ///
    /// # Errors
    /// What this machine says of itself cannot be read.
    pub(super) fn session(
        &self,
        machine: &Machine,
        image: Uuid,
        mailbox: Mailbox,
        mounted: Mounted,
    ) -> anyhow::Result<SessionRecord> {
        let uname = Uname::read()?;
        Ok(SessionRecord {
            image,
            save_id: procfs::random().map(Uuid::from_random)?,
            boot_id: procfs::boot_id()?.parse()?,
            machine: machine.product,
            created_unix: procfs::now_unix(),
            architecture: Architecture::default(),
            region: self.region,
            low: self.low.clone(),
            mailbox: Some(mailbox),
            ram: self.memory.clone(),
            firmware: machine.iomem.firmware.clone(),
            efi: machine.efi.clone(),
            filesystems: mounted.filesystems,
            swap_areas: mounted.swap_areas,
            cpu: machine.cpu.clone(),
            kernel_release: uname.release,
            kernel_version: uname.version,
            hostname: uname.nodename,
            cmdline: machine.cmdline.clone(),
        })
    }
}
