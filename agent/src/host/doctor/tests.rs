//! What doctor finds on machines as they were recorded.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use dormouse_image::State as Image;
use dormouse_linux::kernel_config::KernelConfig;

use super::*;
use crate::cycle::boots::Fault;
use crate::cycle::drivers::Undriven;
use crate::cycle::evidence::NoEvidence;
use crate::cycle::jump::NoModule;
use crate::cycle::last::{Event, Last};
use crate::cycle::region_size::TooSmall;
use crate::filesystems::Mounted;
use crate::host::boot_initramfs::Tool;
use crate::host::doctor::boot_loader::LoaderFacts;
use crate::host::doctor::devices::DeviceFacts;
use crate::host::doctor::drivers::Drivers;
use crate::host::doctor::facts::{
    Facts, ImageFacts, Memory, ModuleFacts, PolicyFault, SaveKernel, Swap, Systemd, Unseen,
};
use crate::host::doctor::judge::judge;
use crate::host::doctor::next_boot::NextBoot;
use crate::host::doctor::sealed::SealedFacts;
use crate::host::map_history::History;
use crate::host::systemd::Routing;
use crate::machine::iomem::{Iomem, IomemError};
use crate::policy::Policy;
use crate::target::Target;

const GIB: u64 = 1 << 30;

/// Of the test kernel: what decides.
const CONFIG: &str = "CONFIG_KEXEC=y\nCONFIG_KEXEC_JUMP=y\nCONFIG_HIBERNATION=y\nCONFIG_CRASH_DUMP=y\n\
                      CONFIG_PROC_VMCORE=y\nCONFIG_DEVMEM=y\nCONFIG_DEVTMPFS=y\nCONFIG_RELOCATABLE=y\n\
                      CONFIG_BLK_DEV_INITRD=y\nCONFIG_RD_ZSTD=y\n";

/// The same lines of Debian 12's own kernel 6.1.192-2 (linux-image-6.1.0-56-amd64), as linux-config-6.1 has them.
const DEBIAN_CONFIG: &str = "CONFIG_BLK_DEV_INITRD=y\nCONFIG_RD_ZSTD=y\nCONFIG_KEXEC=y\nCONFIG_KEXEC_FILE=y\n\
                             CONFIG_CRASH_DUMP=y\n# CONFIG_KEXEC_JUMP is not set\nCONFIG_RELOCATABLE=y\n\
                             CONFIG_HIBERNATION=y\nCONFIG_DEVTMPFS=y\nCONFIG_DEVMEM=y\nCONFIG_PROC_VMCORE=y\n";

/// A QEMU guest of 1 GiB (machine `pc`, SeaBIOS).
const IOMEM: &str = "00000000-00000fff : Reserved\n00001000-0009fbff : System RAM\n0009fc00-0009ffff : Reserved\n\
                     000f0000-000fffff : Reserved\n00100000-3ffdffff : System RAM\n  01000000-01e00000 : Kernel code\n\
                     3ffe0000-3fffffff : Reserved\nfeffc000-feffffff : Reserved\n";

fn time(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// The test kernel in a guest that is set up, and has asked for an image when it booted.
pub(super) fn ready() -> Facts {
    Facts {
        machine: "x86_64".into(),
        release: "6.12.117".into(),
        distribution: "debian".into(),
        config: Some(KernelConfig::new(CONFIG)),
        jump: Ok(true),
        module: ModuleFacts::default(),
        cmdline: "console=ttyS0 root=/dev/vda1 ro".into(),
        power_disk: Some("[platform] shutdown reboot suspend test_resume \n".into()),
        has_vmcoreinfo: true,
        lockdown: None,
        secure_boot: None,
        load_disabled: false,
        load_limit: None,
        is_loaded: false,
        is_crash_loaded: false,
        memory: Memory { total: GIB, free: GIB / 2, available: GIB * 3 / 4, swap_free: 0 },
        iomem: Iomem::parse(IOMEM),
        region_size: Some(Ok(128 << 20)),
        maps: Some(History::Same(3)),
        mounted: Ok(Mounted::default()),
        drivers: Drivers { can_be_told: true, ..Drivers::default() },
        policy: Ok(Policy::parse("policy", "[image]\ndevice = \"/dev/vdb\"\n").unwrap()),
        policy_changed: Some(time(1)),
        image: Some(Ok(ImageFacts {
            target: Target::device("/dev/vdb"),
            size: GIB,
            is_busy: false,
            unsealed: None,
            made: Some(time(0)),
            state: Ok((Image::Empty, String::new())),
            disk: "nvme serial=one".parse().ok(),
            expected: "nvme serial=one".parse().ok(),
        })),
        save_kernel: Some(Ok(SaveKernel {
            fault: None,
            release: Some("6.12.117".into()),
            changed: time(2),
            config: Some(KernelConfig::new(CONFIG)),
            has_modules: true,
            has_module: false,
        })),
        save_initramfs: Some(Ok(time(3))),
        agent_changed: Some(time(0)),
        tool: Some(Tool::InitramfsTools),
        hook: Ok(()),
        boot_initramfs: Some((PathBuf::from("/boot/initrd.img-6.12.117"), time(4))),
        resume: Some(Last {
            event: Event::Resume,
            at_unix: 5,
            id: "no-image".into(),
            text: "no image to resume: the one on /dev/vdb is empty".into(),
            report: None,
            found: None,
        }),
        next_boot: NextBoot { evidence: Some(Ok(())), kernels: Some(Vec::new()), open_volumes: Vec::new() },
        loader: LoaderFacts { systemd_boot: None, is_current: false, is_read: None, block: Ok(false), why_not: None },
        swap: Swap::default(),
        systemd: Some(Systemd {
            routing: Routing { is_dormouse: true, needs_no_swap: true },
            version: Some(252),
            is_allowed: None,
        }),
        is_efi: false,
        devices: DeviceFacts { undriven: Some(Undriven::default()), ..DeviceFacts::default() },
        sealed: SealedFacts::plain(),
    }
}

/// Debian 12 with its own kernel, when the package has just been installed.
fn debian() -> Facts {
    Facts {
        release: "6.1.0-56-amd64".into(),
        config: Some(KernelConfig::new(DEBIAN_CONFIG)),
        jump: Ok(false),
        module: ModuleFacts::default(),
        cmdline: "BOOT_IMAGE=/boot/vmlinuz-6.1.0-56-amd64 root=UUID=1234 ro quiet".into(),
        lockdown: Some("[none] integrity confidentiality\n".into()),
        secure_boot: Some(false),
        policy: Err(PolicyFault { is_missing: true, text: "/etc/dormouse.toml: there is no policy here".into() }),
        policy_changed: None,
        image: None,
        save_kernel: None,
        save_initramfs: None,
        boot_initramfs: Some((PathBuf::from("/boot/initrd.img-6.1.0-56-amd64"), time(4))),
        resume: None,
        next_boot: NextBoot::default(),
        swap: Swap { free: GIB, is_resume_set: true, has_session: false, active_anon: GIB / 4 },
        systemd: Some(Systemd::default()),
        is_efi: true,
        ..ready()
    }
}

/// Fedora as its installer leaves it, with Secure Boot; asked by a user who is not root.
fn fedora() -> Facts {
    Facts {
        release: "6.14.5-300.fc42.x86_64".into(),
        distribution: "fedora".into(),
        jump: Err(Unseen::NeedsRoot),
        module: ModuleFacts::default(),
        cmdline: "BOOT_IMAGE=(hd0,gpt2)/vmlinuz root=UUID=1234 ro rootflags=subvol=root rhgb quiet".into(),
        power_disk: Some("[disabled]\n".into()),
        lockdown: Some("none [integrity] confidentiality\n".into()),
        secure_boot: Some(true),
        is_crash_loaded: true,
        iomem: Err(IomemError::Hidden),
        image: Some(Err(Unseen::NeedsRoot)),
        save_kernel: Some(Ok(SaveKernel {
            fault: None,
            release: Some("6.13.9-200.fc41.x86_64".into()),
            changed: time(2),
            config: None,
            has_modules: false,
            has_module: false,
        })),
        save_initramfs: Some(Err(Unseen::NeedsRoot)),
        tool: Some(Tool::Dracut),
        hook: Err(
            "dracut has no hook of Dormouse: /usr/lib/dracut/modules.d/55dormouse/module-setup.sh is missing".into()
        ),
        boot_initramfs: None,
        resume: None,
        next_boot: NextBoot::default(),
        is_efi: true,
        ..ready()
    }
}

fn check(facts: &Facts, id: &str) -> Check {
    judge(facts).into_iter().find(|check| check.id == id).unwrap()
}

/// The ids of the checks in a state.
fn ids(facts: &Facts, state: State) -> Vec<&'static str> {
    judge(facts).iter().filter(|check| check.state == state).map(|check| check.id).collect()
}

#[test]
fn a_machine_that_is_set_up_is_ready() {
    let diagnosis = Diagnosis::new(judge(&ready()));
    assert_eq!(diagnosis.verdict(), "this machine can be hibernated");
    assert!(diagnosis.ready && diagnosis.problems().is_empty(), "{diagnosis}");
    assert!(diagnosis.to_string().lines().all(|line| line.starts_with("[ ok ] ") || line == diagnosis.verdict()));
}

#[test]
fn the_region_is_large_enough_and_off_the_kernel() {
    let too_small = TooSmall { size: 64 << 20, enough: 92 << 20, cpus: 4 };
    let facts = Facts { region_size: Some(Err(too_small)), ..ready() };
    assert_eq!(ids(&facts, State::Failed), ["memory-map"]);
    let found = check(&facts, "memory-map");
    assert_eq!(found.found, "the region has 64 MiB, and 92 MiB are needed for this kernel, its initramfs and 4 CPUs");
    assert_eq!(found.remedy.unwrap(), "set region.size to \"auto\", or to \"92M\" or more");
    assert_eq!(check(&facts, "memory").state, State::Unknown);

    assert!(check(&ready(), "memory-map").found.contains("place at 0x2000000-"));
    // In less memory there is no other place.
    let iomem = Iomem::parse(&IOMEM.replace("3ffdffff", "08ffffff"));
    let facts = Facts { iomem, ..ready() };
    assert_eq!(ids(&facts, State::Warning), ["memory-map"]);
    assert!(check(&facts, "memory-map").found.contains("over the running kernel's own code"));
}

#[test]
fn a_save_kernel_with_fewer_cpus_will_not_do() {
    let text = "[image]\ndevice = \"/dev/vdb\"\n[kernel]\narguments = \"quiet nr_cpus=1\"\n";
    let facts = Facts { policy: Ok(Policy::parse("policy", text).unwrap()), ..ready() };
    assert_eq!(ids(&facts, State::Failed), ["policy"]);
    assert!(check(&facts, "policy").found.contains("`nr_cpus=1`"));
}

#[test]
fn debians_kernel_fails_with_how_to_get_another() {
    let facts = debian();
    assert_eq!(ids(&facts, State::Failed), ["kernel-jump", "kernel-return", "policy", "resume-hook"]);
    assert_eq!(ids(&facts, State::Warning), ["kernel-resume"]);
    let jump = check(&facts, "kernel-jump");
    assert_eq!(jump.found, "Linux 6.1.0-56-amd64 lacks CONFIG_KEXEC_JUMP");
    let remedy = jump.remedy.unwrap();
    for part in ["linux-source-6.12", "-e KEXEC_JUMP", "bindeb-pkg", "Fedora"] {
        assert!(remedy.contains(part), "{remedy}");
    }
    assert_eq!(check(&facts, "policy").remedy.unwrap(), "dormouse setup");
    // Not root: the configuration tells the same.
    let user = Facts { jump: Err(Unseen::NeedsRoot), ..debian() };
    assert_eq!(check(&user, "kernel-jump").found, "Linux 6.1.0-56-amd64 lacks CONFIG_KEXEC_JUMP");
    let neither = Facts { config: None, ..user };
    assert_eq!(check(&neither, "kernel-jump").state, State::Unknown);
    let text = Diagnosis::new(judge(&facts)).to_string();
    assert!(text.contains("\n       remedy: Debian's own kernels are built without it."), "{text}");
    assert!(text.contains("\n               apt install linux-source-6.12 "), "{text}");
}

#[test]
fn the_module_jumps_where_debians_kernel_cannot() {
    let module = |is_installed, others: &[&str], fault| ModuleFacts {
        is_installed,
        others: others.iter().map(ToString::to_string).collect(),
        fault,
    };
    let facts = Facts { module: module(true, &[], None), ..debian() };
    assert_eq!(ids(&facts, State::Failed), ["policy", "resume-hook"]);
    assert_eq!(check(&facts, "jump-module").state, State::Ok);
    assert!(check(&facts, "kernel-return").found.contains("module"));

    let facts = Facts { module: module(false, &["6.1.0-50-amd64"], None), ..debian() };
    let other = check(&facts, "jump-module");
    assert_eq!((other.state, other.found.contains("6.1.0-50-amd64")), (State::Failed, true));
    assert!(other.remedy.unwrap().contains("dkms autoinstall"));
    let facts = Facts { module: module(true, &[], Some(NoModule::Unsigned)), ..debian() };
    assert!(check(&facts, "jump-module").remedy.unwrap().contains("mokutil"));
    let facts = Facts { module: module(true, &[], None), lockdown: Some("none [integrity]".into()), ..debian() };
    assert!(check(&facts, "jump-module").found.contains("lockdown forbids"));
    let facts = Facts { module: module(true, &[], Some(NoModule::LockedDown)), ..debian() };
    assert!(check(&facts, "jump-module").remedy.unwrap().contains("Secure Boot"));
    // A kernel that can jump itself needs none, unless the policy insists.
    assert!(judge(&ready()).iter().all(|check| check.id != "jump-module"));
    let policy = Policy::parse("a policy", "[image]\ndevice = \"/dev/vda\"\n[save]\njump = \"module\"\n").unwrap();
    let facts = Facts { policy: Ok(policy), ..ready() };
    assert_eq!(check(&facts, "jump-module").state, State::Failed);
}

#[test]
fn fedora_with_secure_boot_is_locked_down() {
    let facts = fedora();
    assert_eq!(ids(&facts, State::Failed), ["kernel-hibernation", "lockdown", "boot-hook", "resume-hook"]);
    assert_eq!(check(&facts, "lockdown").found, "the kernel is locked down (integrity); Secure Boot is on");
    assert_eq!(check(&facts, "kernel-jump").state, State::Ok);
    assert!(check(&facts, "kexec-loaded").found.contains("a crash kernel"));
    for id in ["memory-map", "image-device", "image-size", "image-state", "save-initramfs"] {
        assert_eq!(check(&facts, id).remedy.unwrap(), "run `dormouse doctor` as root", "{id}");
    }
    let age = check(&facts, "save-kernel-age");
    assert!(age.state == State::Warning && age.found.contains("modules are not installed any more"), "{age:?}");
}

#[test]
fn judges_the_image() {
    let with = |change: fn(&mut ImageFacts)| {
        let mut facts = ready();
        if let Some(Ok(image)) = &mut facts.image {
            change(image);
        }
        facts
    };
    let size = |image: fn(&mut ImageFacts)| check(&with(image), "image-size").state;
    assert_eq!(size(|image| image.size = GIB / 2), State::Ok);
    assert_eq!(size(|image| image.size = GIB / 8), State::Warning);
    assert_eq!(size(|image| image.size = GIB / 64), State::Failed);
    // By what is given up first: of 512 MiB half are cache, and 128 MiB can be swapped out.
    let shrunk = |shrink: &str, size: u64, swap_free: u64| {
        let mut facts = with(|image| image.size = 0);
        facts.memory.swap_free = swap_free << 20;
        facts.image.as_mut().unwrap().as_mut().unwrap().size = size << 20;
        let text = format!("[image]\ndevice = \"/dev/vdb\"\n[save]\nshrink = \"{shrink}\"\n");
        facts.policy = Ok(Policy::parse("policy", &text).unwrap());
        check(&facts, "image-size")
    };
    assert_eq!(shrunk("none", 511, 0).state, State::Warning);
    assert_eq!(shrunk("cache", 256, 0).state, State::Ok);
    assert_eq!(shrunk("cache", 255, 0).state, State::Warning);
    assert_eq!(shrunk("300M", 300, 0).state, State::Ok);
    assert_eq!(shrunk("300M", 299, 0).state, State::Warning);
    assert_eq!(shrunk("100M", 255, 0).state, State::Warning);
    assert_eq!(shrunk("100M", 128, 128).state, State::Ok);
    assert_eq!(shrunk("4G", 512, 0).state, State::Ok);
    let found = shrunk("100M", 127, 128).found;
    assert!(found.contains("in use now: 512 MiB, of 1,024 MiB, and what save.shrink leaves of it: 128 MiB"), "{found}");
    let busy = check(&with(|image| image.is_busy = true), "image-device");
    assert!(busy.state == State::Failed && busy.found.contains("/dev/vdb is in use"), "{busy:?}");
    let foreign = with(|image| image.state = Err("image device /dev/vdb: not initialised".into()));
    assert_eq!(check(&foreign, "image-device").remedy.unwrap(), "dormouse setup --device /dev/vdb");
    let waiting = with(|image| image.state = Ok((Image::Complete, String::new())));
    let waiting = check(&waiting, "image-state");
    assert!(waiting.state == State::Warning && waiting.remedy.unwrap().contains("image discard /dev/vdb"));
    let gone = Facts { image: Some(Err(Unseen::Because("image device /dev/vdb: not found".into()))), ..ready() };
    assert_eq!(ids(&gone, State::Failed), ["image-device"]);
    let file = Policy::parse("policy", "[image]\ndevice = \"/var/lib/dormouse/image\"\n").unwrap();
    let no_file = Facts { policy: Ok(file.clone()), ..gone };
    let setup = "dormouse setup --file /var/lib/dormouse/image";
    assert_eq!(check(&no_file, "image-device").remedy.unwrap(), setup);
    let mut moved = Facts { policy: Ok(file), ..foreign };
    if let Some(Ok(image)) = &mut moved.image {
        image.target = Target::file("/var/lib/dormouse/image");
    }
    assert!(check(&moved, "image-device").remedy.unwrap().starts_with("remove the file, then `dormouse setup --file "));
}

#[test]
fn warns_of_what_is_older_than_its_parts() {
    let policy = Facts { policy_changed: Some(time(9)), ..ready() };
    assert_eq!(ids(&policy, State::Warning), ["save-initramfs", "boot-initramfs"]);
    assert!(check(&policy, "save-initramfs").found.ends_with("older than the policy"));
    let agent = Facts { agent_changed: Some(time(9)), ..ready() };
    assert_eq!(ids(&agent, State::Warning), ["save-initramfs"]);
    let rebuilt = Facts { save_initramfs: Some(Ok(time(9))), ..ready() };
    assert_eq!(ids(&rebuilt, State::Warning), ["boot-initramfs"]);
    assert_eq!(check(&rebuilt, "boot-initramfs").remedy.unwrap(), "update-initramfs -u -k all");
    // An image that was made again has another UUID, which an initramfs has in place of a path.
    let with = |device: &str| {
        let mut facts = ready();
        facts.policy = Ok(Policy::parse("policy", &format!("[image]\ndevice = \"{device}\"\n")).unwrap());
        if let Some(Ok(image)) = &mut facts.image {
            image.made = Some(time(9));
        }
        facts
    };
    for device in ["/dev/vdb", "/var/lib/dormouse/image"] {
        assert_eq!(ids(&with(device), State::Warning), ["boot-initramfs"]);
        assert!(
            check(&with(device), "boot-initramfs").found.ends_with("older than the image, which it would not find")
        );
    }
    assert_eq!(ids(&with("PARTLABEL=dormouse"), State::Warning), [""; 0]);
}

#[test]
fn judges_the_save_kernel() {
    let with = |change: fn(&mut SaveKernel)| {
        let mut facts = ready();
        if let Some(Ok(kernel)) = &mut facts.save_kernel {
            change(kernel);
        }
        facts
    };
    let lacking = with(|kernel| {
        kernel.config = Some(KernelConfig::new(CONFIG.replace("CONFIG_DEVMEM=y", "# CONFIG_DEVMEM is not set")))
    });
    assert_eq!(check(&lacking, "save-kernel-config").found, "it lacks CONFIG_DEVMEM");
    let mut with_module = lacking;
    if let Some(Ok(kernel)) = &mut with_module.save_kernel {
        kernel.has_module = true;
    }
    assert_eq!(check(&with_module, "save-kernel-config").state, State::Ok);
    let text = with(|kernel| kernel.fault = Some("not an x86 bzImage: no boot sector".into()));
    assert_eq!(ids(&text, State::Failed), ["save-kernel"]);
    let missing = Facts { save_kernel: Some(Err(Unseen::Because("/x: No such file".into()))), ..ready() };
    assert_eq!(ids(&missing, State::Failed), ["save-kernel"]);
    assert_eq!(ids(&missing, State::Unknown), ["save-kernel-config", "save-kernel-age"]);
}

#[test]
fn fails_an_image_on_a_disk_that_boots_do_not_take() {
    let on = |disk: &str, expected: &str| {
        let mut facts = ready();
        if let Some(Ok(image)) = &mut facts.image {
            (image.disk, image.expected) = (disk.parse().ok(), expected.parse().ok());
        }
        let check = check(&facts, "image-device");
        (ids(&facts, State::Failed) == ["image-device"], check.found)
    };
    assert!(
        matches!(on("usb serial=b", "usb serial=a"), (true, text) if text.contains("looks for it on `usb serial=a`"))
    );
    assert!(
        matches!(on("usb serial=a", "usb serial=a"), (false, text) if text.ends_with("on the disk `usb serial=a`"))
    );
    assert!(matches!(on("virtio", ""), (false, text) if text.contains("tells from a copy")));
}

#[test]
fn fails_settings_that_prevent_hibernation() {
    let failed = |change: fn(&mut Facts)| {
        let mut facts = ready();
        change(&mut facts);
        ids(&facts, State::Failed)
    };
    assert_eq!(failed(|facts| facts.machine = "aarch64".into()), ["architecture"]);
    assert_eq!(failed(|facts| facts.load_disabled = true), ["kexec-allowed"]);
    assert_eq!(failed(|facts| facts.load_limit = Some(0)), ["kexec-allowed"]);
    assert_eq!(failed(|facts| facts.power_disk = None), ["kernel-hibernation"]);
    assert_eq!(failed(|facts| facts.has_vmcoreinfo = false), ["kernel-vmcoreinfo"]);
    assert_eq!(failed(|facts| facts.memory.available = 100 << 20), ["memory"]);
    assert_eq!(failed(|facts| facts.cmdline = "mem_encrypt=on".into()), ["memory-encryption"]);
    assert_eq!(failed(|facts| facts.swap.has_session = true), ["kernel-resume"]);
    let thin = |facts: &mut Facts| {
        facts.mounted = Ok(Mounted { unsure: vec!["/ (ext4 on /dev/dm-0: thin)".into()], ..Mounted::default() });
    };
    assert_eq!(failed(thin), ["filesystems"]);
    assert_eq!(failed(|facts| facts.is_loaded = true), ["kexec-loaded"]);
    assert_eq!(failed(|facts| facts.drivers.virtio_mem.push("virtio1".into())), ["virtio-mem"]);
    let added = |facts: &mut Facts| facts.iomem = Iomem::parse("100000000-1ffffffff : System RAM (kmem)\n");
    assert_eq!(failed(added), ["memory-map"]);
    let text =
        PolicyFault { is_missing: false, text: "/etc/dormouse.toml:3: image.devise: there is no such key".into() };
    let facts = Facts { policy: Err(text), image: None, save_kernel: None, save_initramfs: None, ..ready() };
    assert_eq!(ids(&facts, State::Failed), ["policy"]);
    assert!(check(&facts, "policy").found.contains("image.devise"));
}

#[test]
fn warns_of_settings() {
    let warned = |change: fn(&mut Facts)| {
        let mut facts = ready();
        change(&mut facts);
        ids(&facts, State::Warning)
    };
    assert_eq!(warned(|facts| facts.load_limit = Some(9)), ["kexec-allowed"]);
    assert_eq!(warned(|facts| facts.cmdline = "quiet noresume".into()), ["command-line"]);
    assert_eq!(warned(|facts| facts.maps = Some(History::Differs(3, String::new()))), ["memory-map-history"]);
    assert_eq!(warned(|facts| facts.maps = Some(History::Slides(3, String::new()))), [""; 0]);
    assert_eq!(warned(|facts| facts.cmdline = "dormouse.nonsense".into()), ["command-line"]);
    assert!(warned(|facts| facts.cmdline = "resume=/dev/vda3".into()).is_empty());
    let beside = |cmdline: &str| Facts { cmdline: cmdline.into(), systemd: Some(Systemd::default()), ..ready() };
    assert_eq!(ids(&beside("resume=/dev/vda3"), State::Warning), ["kernel-resume"]);
    assert!(ids(&beside("resume= -- resume=/dev/vda3"), State::Warning).is_empty());
    let allowed = |facts: &mut Facts| {
        facts.mounted = Ok(Mounted { unsure: vec!["/mnt (ntfs3)".into()], ..Mounted::default() });
        let text = "[image]\ndevice = \"/dev/vdb\"\n[resume]\nunsure = \"resume\"\n";
        facts.policy = Ok(Policy::parse("policy", text).unwrap());
    };
    assert_eq!(warned(allowed), ["filesystems"]);
    assert_eq!(warned(|facts| facts.drivers.can_be_told = false), ["driver-events"]);
}

#[test]
fn judges_the_way_from_systemctl() {
    let judged_with = |version, routing, is_allowed, swap, is_efi| {
        let systemd = Some(Systemd { routing, version: Some(version), is_allowed });
        ids(&Facts { systemd, swap, is_efi, ..ready() }, State::Warning)
    };
    let judged = |routing, is_allowed, swap, is_efi| judged_with(255, routing, is_allowed, swap, is_efi);
    let (none, enough) = (Swap::default(), Swap { free: GIB, active_anon: GIB / 2, ..Swap::default() });
    let little = Swap { free: GIB / 4, active_anon: GIB / 2, ..Swap::default() };
    let routed = Routing { is_dormouse: true, needs_no_swap: false };
    let whole = Routing { is_dormouse: true, needs_no_swap: true };
    assert!(judged(Routing::default(), Some(false), none.clone(), true).is_empty());
    assert_eq!(judged(routed, None, none.clone(), true), ["systemd-swap"]);
    assert_eq!(judged(routed, None, little, true), ["systemd-swap"]);
    assert!(judged(routed, None, enough.clone(), true).is_empty());
    assert_eq!(judged(whole, Some(false), none, true), ["systemd-allow"]);
    assert!(judged(whole, Some(true), enough.clone(), true).is_empty());
    assert_eq!(judged(whole, None, enough.clone(), false), ["systemd-swap"]);
    assert!(judged_with(254, whole, None, enough, false).is_empty());
    let without = Facts { systemd: None, ..ready() };
    assert!(judge(&without).iter().all(|check| !check.id.starts_with("system")));
}

/// Programs go by these.
#[test]
fn names_are_unique_and_the_json_is_as_documented() {
    let checks = judge(&debian());
    let mut names: Vec<&str> = checks.iter().map(|check| check.id).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), checks.len());
    assert!(
        checks.iter().all(|check| check.why.ends_with('.') && (check.remedy.is_none() == (check.state == State::Ok)))
    );
    let json = serde_json::to_value(Diagnosis::new(checks)).unwrap();
    assert_eq!(json["ready"], false);
    let jump = &json["checks"][1];
    assert_eq!((jump["id"].as_str(), jump["state"].as_str()), (Some("kernel-jump"), Some("failed")));
    assert!(jump["why"].is_string() && jump["remedy"].is_string() && json["checks"][0]["remedy"].is_null());
}

#[test]
fn judges_what_shows_that_the_next_boot_resumes() {
    let with = |next_boot| Facts { next_boot, ..ready() };
    let another = NoEvidence::Another { looked_for: "UUID=a".into(), image: "UUID=b".into() };
    let kernel = |release: &str| NoEvidence::Kernel { release: release.into(), fault: Fault::NoStamp };
    let facts = with(NextBoot {
        evidence: Some(Err(another)),
        kernels: Some(vec![kernel("6.1"), kernel("6.12")]),
        open_volumes: vec!["home".into()],
    });
    assert_eq!(ids(&facts, State::Failed), ["boot-evidence", "next-boot"]);
    assert_eq!(ids(&facts, State::Warning), ["image-in-clear"]);
    let evidence = check(&facts, "boot-evidence");
    assert!(evidence.found.contains("UUID=b") && evidence.remedy.unwrap().contains("reboot once"));
    let next = check(&facts, "next-boot");
    assert!(next.found.contains("6.1 ") && next.found.contains("6.12 "), "{next:?}");
    assert!(next.remedy.unwrap().starts_with("update-initramfs -u -k all"));
    // A system whose initramfs is made by hand has what this boot has found, and no more.
    let by_hand = with(NextBoot { kernels: None, ..ready().next_boot });
    assert_eq!(check(&by_hand, "next-boot").state, State::Ok);
    assert_eq!(check(&with(NextBoot::default()), "boot-evidence").state, State::Unknown);
}
