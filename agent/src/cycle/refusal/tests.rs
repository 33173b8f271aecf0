//! Each refusal has an identifier, a text and a remedy, and each is printed once.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use dormouse_image::{Block, FormatError, ImageDevice, State};
use dormouse_linux::ask::AskError;
use dormouse_linux::tpm::TpmError;

use super::*;
use crate::cycle::last::Event;
use crate::cycle::verdict::Reason;
use crate::launch::arch::boot_params::BootParamsError;
use crate::machine::compat::Mismatch;
use crate::memory::physmem::PhysmemError;
use crate::memory::select::SelectError;
use crate::memory::vmcore::VmcoreError;
use crate::pipeline::PipelineError;
use crate::target::Target;

#[test]
fn each_obstacle_has_a_text_and_a_remedy() {
    let errno = |errno: Errno| io::Error::from_raw_os_error(errno as i32);
    let thin = ["/ (thin)".to_owned()];
    let cases = [
        (in_jump(&Ok(false)), "kernel-jump", "CONFIG_KEXEC_JUMP; install the package dormouse-dkms"),
        (
            in_jump(&Err(errno(Errno::EPERM))),
            "kexec-allowed",
            "kexec_load was refused: Operation not permitted; run as root",
        ),
        (in_jump(&Err(errno(Errno::ENOSYS))), "kernel-jump", "lacks CONFIG_KEXEC"),
        (in_release("6.1.0-30-amd64"), "kernel-return", "kernel 6.1.0-30-amd64 hangs"),
        (in_command_line("quiet mem_encrypt=on ro"), "memory-encryption", "memory encryption"),
        (in_power_disk("[disabled]\n"), "kernel-hibernation", "hibernation now (/sys/power/disk)"),
        (in_boot(None, Then::PowerOff), "resume-hook", "and reboot once"),
        (in_resume("quiet noresume", true, Then::PowerOff), "command-line", "take noresume"),
        (in_resume("dormouse=off", true, Then::Reboot), "command-line", "--trust-boot"),
        (in_resume("dormouse=maybe noresume", true, Then::PowerOff), "command-line", "take noresume"),
        (in_resume("quiet", false, Then::PowerOff), "resume-disabled", "resume.enabled = true"),
        (in_filesystems(&thin, Unsure::Refuse, Then::PowerOff), "filesystems", "written to / (thin); unmount it"),
        (in_memory(128 << 20, 159 << 20), "memory", "159 MiB of memory are available, and 160 MiB are needed"),
    ];
    for (obstacle, id, expected) in cases {
        let complaint = Complaint::of(&anyhow::Error::new(obstacle.unwrap()));
        assert_eq!((complaint.class, complaint.id), (Class::Refused, Some(id)));
        let text = complaint.to_string();
        assert!(text.contains(expected), "{expected:?} is not in {text:?}");
    }
}

#[test]
fn more_low_memory_than_the_kernel_takes_is_for_the_module() {
    let complaint = |most| Complaint::of(&LoaderError::TooManySegments { low: 14, segments: 20, most }.into());
    assert!(complaint(16).to_string().contains("save.jump = \"module\""), "{}", complaint(16));
    assert_eq!((complaint(16).id, complaint(256).remedy), (Some("low-memory"), None));
}

#[test]
fn a_machine_without_obstacles_passes() {
    let thin = ["/ (thin)".to_owned()];
    assert_eq!(in_jump(&Ok(true)), None);
    assert_eq!(in_release("6.12.117"), None);
    assert_eq!(in_command_line("quiet mem_encrypt=off"), None);
    assert_eq!(in_power_disk("[platform] shutdown reboot suspend test_resume \n"), None);
    assert_eq!(in_memory(128 << 20, 160 << 20), None);
    assert_eq!(in_boot(None, Then::Return), None);
    assert_eq!(in_filesystems(&thin, Unsure::Resume, Then::PowerOff), None);
    assert_eq!(in_filesystems(&thin, Unsure::Refuse, Then::Return), None);
    assert_eq!(in_filesystems(&[], Unsure::Refuse, Then::PowerOff), None);
    assert_eq!(in_resume("quiet dormouse=on", true, Then::PowerOff), None);
    assert_eq!(in_resume("noresume", false, Then::Return), None);
    // A mistake changes nothing.
    assert_eq!(in_resume("dormouse=maybe dormouse.x=y", true, Then::PowerOff), None);
    let looked =
        Last { event: Event::Resume, at_unix: 0, id: String::new(), text: String::new(), report: None, found: None };
    assert_eq!(in_boot(Some(&looked), Then::PowerOff), None);
}

fn io_error() -> io::Error {
    io::Error::from_raw_os_error(Errno::EIO as i32)
}

fn store_errors() -> Vec<StoreError> {
    let name = || "/dev/x".to_owned();
    let source = FormatError::Magic(Block::Header);
    vec![
        StoreError::Busy { name: name() },
        StoreError::Held { name: name(), by: "/dev/mapper/y".to_owned() },
        StoreError::Open { name: name(), source: io_error() },
        io_failure(),
        StoreError::Flush { name: name(), source: io_error() },
        StoreError::Format { name: name(), source },
        StoreError::Misplaced { name: name(), offset: 0, expected: 1 },
        StoreError::Gone { name: name() },
        StoreError::NotInitialised { name: name() },
        StoreError::TooSmall { name: name(), size: 0, needed: 1 },
        StoreError::Incomplete { name: name(), state: State::Failed },
        StoreError::Beyond { name: name(), end: 1, size: 0 },
        StoreError::Unverified { name: name(), source: PipelineError::Memory { pfn: 1, source: io_error() }.into() },
        StoreError::Threads { name: name(), source: io_error() },
        StoreError::WriterGone { name: name() },
    ]
}

fn io_failure() -> StoreError {
    StoreError::Io { name: "/dev/x".into(), what: "writing", offset: 0, len: 1, source: io_error() }
}

fn target_errors() -> Vec<TargetError> {
    let name = || ImageDevice::Path("/dev/x".into());
    vec![
        TargetError::NotFound { name: name(), seconds: 1 },
        TargetError::NoFile { path: "/x".into() },
        TargetError::Ambiguous {
            name: name(),
            first: Target::device("/dev/a").into(),
            second: Target::device("/dev/b").into(),
        },
        TargetError::Mounted { path: "/x".into() },
        TargetError::NoLeg { target: Target::device("/dev/a").into() },
        TargetError::Store(io_failure()),
        TargetError::Moved(anyhow::Error::new(io_error()).context("image device /x: it was moved")),
    ]
}

fn key_errors() -> Vec<KeyError> {
    let source = || anyhow::Error::new(io_error());
    vec![
        KeyError::NoKey { why: "image.key = \"file\"".into(), kind: SealKey::File },
        KeyError::NoKey { why: "it must".into(), kind: SealKey::None },
        KeyError::Foreign("/x".into()),
        KeyError::File { path: "/x".into(), source: source() },
        KeyError::Ring { path: "/x".into(), source: source() },
        KeyError::Waiting,
        KeyError::NoSlot(1),
        KeyError::Twice(1),
        KeyError::NotOpened(vec!["key 1 (file): none".into()]),
        KeyError::Replayed,
        KeyError::Passphrase("it is empty"),
        KeyError::Ask(AskError::TooLong),
        KeyError::Tpm(TpmError::Policy),
        KeyError::Tpm(TpmError::Io(io_error())),
        KeyError::Memory { needed: 2, available: 1 },
        KeyError::Make(source()),
        KeyError::Format(FormatError::Forged(Block::Commit)),
        KeyError::Store(io_failure()),
    ]
}

/// An error of every kind that has an identifier.
fn refusals() -> Vec<anyhow::Error> {
    let obstacles = [
        Obstacle::NoJump,
        Obstacle::NoModule(crate::cycle::jump::NoModule::Missing),
        Obstacle::NoReturn { release: "6.1".into() },
        Obstacle::LoadRefused(Some(Errno::EPERM as i32)),
        Obstacle::MemoryEncryption,
        Obstacle::Forbidden,
        Obstacle::NoHook,
        Obstacle::BootForbids,
        Obstacle::PolicyForbids,
        Obstacle::VolatileMemory { node: "/dev/pmem0".into(), by: "it is in use".into() },
        Obstacle::NotComparable("/".to_owned()),
        Obstacle::LittleMemory { available: 1, needed: 2 },
        Obstacle::LittleFree { free: 1, needed: 2 },
        Obstacle::KernelLoaded,
        Obstacle::Hibernating,
        Obstacle::Driver { errno: Some(Errno::EPERM as i32), log: vec!["virtio_mem virtio1: no".into()] },
    ];
    let regions = [
        RegionError::NoPlace { size: 2, longest: 1 },
        RegionError::AddressNotRam { address: 0, size: 1 },
        RegionError::NoLowMemory,
    ];
    let maps = [
        IomemError::Malformed { line: 1, text: "x".into() },
        IomemError::Hidden,
        IomemError::DriverMemory { line: 1, name: "x".into() },
        IomemError::NoRam,
    ];
    let loaders = [
        LoaderError::RegionTooSmall { region: 1, needed: 2 },
        LoaderError::CommandLine { len: 2, max: 1 },
        LoaderError::BootParams(BootParamsError::WrongLength(1)),
        LoaderError::TooManySegments { low: 14, segments: 20, most: 16 },
        LoaderError::TooManySegments { low: 79, segments: 300, most: 256 },
        LoaderError::TooManyRanges(9),
    ];
    let hardware = [
        NoHardware::NoDevice { place: "/x".into(), source: io_error() },
        NoHardware::Virtual { node: "/dev/dm-0".into(), what: "made up" },
    ];
    let policies = [
        PolicyError::Missing { file: "/x".into() },
        PolicyError::Read { file: "/x".into(), source: io_error() },
        PolicyError::MissingKey { file: "/x".into(), key: "image.device" },
    ];
    let unready = [
        Unready::Busy,
        Unready::Lock { path: "/x".into(), source: io_error() },
        Unready::Stopped("SIGTERM"),
        Unready::Machine,
        Unready::ImageReplaced,
    ];
    let jumps = [
        JumpError::Freeze(NotFrozen::Unknown),
        JumpError::Freeze(NotFrozen::Devices(vec!["usb 1-1: failed to freeze: error -16".into()])),
        JumpError::Freeze(NotFrozen::Processes(Vec::new())),
        JumpError::Jump(io_error()),
        JumpError::NoReport(MailboxError::Empty),
        JumpError::NotInvalidated { reason: "no room".into(), source: anyhow::Error::new(io_error()).into() },
    ];
    let devices = [
        InitRefusal::Foreign { device: "/dev/x".into(), found: "ext4".into() },
        InitRefusal::Waiting { device: "/dev/x".into() },
    ];
    let mut all: Vec<anyhow::Error> = vec![BzImageError::Not64Bit.into()];
    all.extend(devices.map(Into::into));
    all.push(FileError::Kernel { path: "/x".into(), source: io_error() }.into());
    all.push(FileError::Initramfs { path: "/x".into(), source: io_error() }.into());
    all.push(anyhow::Error::new(io_error()).context(NotDiscarded));
    all.extend(obstacles.map(Into::into));
    all.extend(regions.map(Into::into));
    all.extend(maps.map(Into::into));
    all.extend(loaders.map(Into::into));
    all.extend(hardware.map(Into::into));
    all.extend(policies.map(Into::into));
    all.extend(unready.map(Into::into));
    all.extend(jumps.map(Into::into));
    all.extend(store_errors().into_iter().map(Into::into));
    all.extend(crate::cycle::evidence::tests::samples().into_iter().map(Into::into));
    all.push(Unsealed::sample().into());
    all.push(NoPlace::Target { node: "/dev/mapper/x".into(), kind: "thin".into() }.into());
    all.push(NoPlace::Raid { node: "/dev/md0".into(), level: "raid5".into() }.into());
    all.push(NoPlace::State { node: "/dev/md0".into(), why: "is degraded".into(), remedy: "wait" }.into());
    all.extend(target_errors().into_iter().map(Into::into));
    all.extend(key_errors().into_iter().map(Into::into));
    all
}

/// Errors without an identifier, but with a cause.
fn others() -> Vec<anyhow::Error> {
    vec![
        PipelineError::Threads { threads: 1, source: io_error() }.into(),
        PipelineError::Memory { pfn: 1, source: io_error() }.into(),
        PipelineError::Store(io_failure().into()).into(),
        SelectError::Memory { address: 1, source: io_error() }.into(),
        PhysmemError::Open { path: "/dev/mem", source: io_error() }.into(),
        VmcoreError::Io { path: "/proc/vmcore".into(), source: io_error() }.into(),
    ]
}

#[test]
fn causes_are_printed_once() {
    for error in refusals().into_iter().chain(others()) {
        let error = error.context("what was tried");
        let complaint = Complaint::of(&error);
        let text = complaint.to_string();
        for cause in error.chain().map(ToString::to_string) {
            assert_eq!(text.matches(cause.as_str()).count(), 1, "{cause:?} in {text:?}");
        }
        assert_eq!(complaint.message.matches("os error").count(), usize::from(text.contains("os error")), "{text}");
    }
}

/// An error with a source must not print it: whoever prints the chain would print it twice.
#[test]
fn texts_of_errors_leave_out_their_sources() {
    let mut files = 0;
    for file in glob::glob(concat!(env!("CARGO_MANIFEST_DIR"), "/**/src/**/*.rs")).unwrap() {
        let file = file.unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        files += 1;
        let is_text = |line: &&str| !line.trim_start().starts_with("//");
        let bad = text.lines().find(|line| is_text(line) && line.contains(concat!("{sour", "ce}")));
        assert_eq!(bad, None, "{}", file.display());
    }
    assert!(files > 100, "{files}");
}

#[test]
fn remedies_are_printed_once() {
    for error in refusals() {
        let complaint = Complaint::of(&error);
        let (text, remedy) = (complaint.to_string(), complaint.remedy.unwrap_or_else(|| complaint.message.clone()));
        assert_eq!(text.matches(&remedy).count(), 1, "{text}");
        assert!(complaint.id.is_some() && !text.contains('\n'), "{text}");
    }
}

/// Programs go by them, so the manual lists them.
#[test]
fn identifiers_are_documented() {
    let manual = include_str!("../../../../configs/man/dormouse.7").replace("\\-", "-");
    let mismatches = [
        Mismatch::Memory { start: 0, end: 0 },
        Mismatch::Firmware { what: "", start: 0, end: 0, here: String::new() },
        Mismatch::Cpu { saved: String::new(), here: String::new() },
        Mismatch::Microcode { saved: 2, here: 1 },
        Mismatch::Features { missing: String::new() },
        Mismatch::Paging { saved: 4, here: 5 },
        Mismatch::Cpus { saved: 2, here: 1 },
    ];
    let reasons = [
        Reason::SaveUnfinished,
        Reason::SaveFailed(String::new()),
        Reason::RestoreFailed(String::new()),
        Reason::BootArgument,
        Reason::PolicyDisabled,
        Reason::TooManyAttempts(2),
        Reason::HeaderDamaged(String::new()),
        Reason::HeaderUnreadable(String::new()),
        Reason::NoKey(String::new()),
        Reason::Forged(String::new()),
        Reason::Replayed(String::new()),
        Reason::NotSealed,
        Reason::MachineUnknown(String::new()),
        Reason::FilesystemWritten(String::new()),
        Reason::AmbiguousDevices(String::new()),
        Reason::SessionGoesOn,
        Reason::BootWentOn(String::new()),
        Reason::BootDidNotAsk,
    ];
    let mut ids: BTreeSet<&str> = refusals().iter().filter_map(|error| Complaint::of(error).id).collect();
    ids.extend(mismatches.iter().map(Mismatch::id));
    ids.extend(reasons.iter().map(Reason::id));
    ids.extend(["resumed", "returned", "no-image", "start-failed", "refused"]);
    for id in ids {
        assert!(manual.lines().any(|line| line == format!(".B {id}")), "{id} is not in dormouse.7");
        assert!(id.chars().all(|letter| letter.is_ascii_lowercase() || letter == '-'), "{id}");
    }
}

#[test]
fn a_driver_that_refuses_is_told_from_a_kernel_that_does() {
    let eperm = || Unannounced::Refused(io::Error::from_raw_os_error(Errno::EPERM as i32));
    let log = || vec!["virtio_mem virtio1: hibernation is not supported.".to_owned()];
    let driver = Obstacle::Driver { errno: Some(Errno::EPERM as i32), log: log() };
    assert_eq!(in_announcement(&eperm(), "[platform] shutdown\n", log()), driver);
    assert!(driver.to_string().contains("virtio_mem virtio1"), "{driver}");
    assert_eq!(in_announcement(&eperm(), "[disabled]\n", log()), Obstacle::Forbidden);
    assert_eq!(in_announcement(&Unannounced::Busy, "", log()), Obstacle::Hibernating);
}

#[test]
fn a_kernel_that_waits_and_little_free_memory_are_in_the_way() {
    assert_eq!(in_loaded("1\n"), Some(Obstacle::KernelLoaded));
    assert_eq!((in_loaded("0\n"), in_loaded("")), (None, None));
    let free = Free { before: 1, now: 2, wanted: 3 };
    assert_eq!(in_free_memory(free), Some(Obstacle::LittleFree { free: 2, needed: 3 }));
    assert_eq!(in_free_memory(Free { now: 3, ..free }), None);
}

#[test]
fn an_image_left_to_discard_by_hand_comes_first() {
    let error = anyhow::Error::new(io_failure()).context(NotDiscarded);
    let complaint = Complaint::of(&error);
    assert_eq!((complaint.class, complaint.id), (Class::DiscardByHand, Some("image-not-discarded")));
    // Any error before the jump is a refusal, also one of a disk.
    let refused = Complaint::refused(&io_failure().into());
    assert_eq!((refused.class, refused.id), (Class::Refused, Some("image-io")));
    assert_eq!(Complaint::refused(&anyhow::anyhow!("anything")).id, Some("refused"));
    let json = serde_json::to_value(&complaint).unwrap();
    assert_eq!((&json["outcome"], &json["id"]), (&"failed".into(), &"image-not-discarded".into()));
    // What travels as an error stays what it is.
    assert_eq!(Complaint::of(&anyhow::Error::new(complaint.clone())), complaint);
}
