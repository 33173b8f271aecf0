//! From facts to checks. Pure.

use std::time::SystemTime;

use dormouse_linux::disk::Likeness;
use dormouse_linux::error_chain::in_full;
use dormouse_linux::kernel_args::arguments;
use dormouse_linux::kernel_config::{KernelConfig, SAVE_KERNEL};
use dormouse_linux::units::mib;

use crate::cycle::jump::NoModule;
use crate::cycle::refusal::{self, Obstacle, Refusal};
use crate::handoff::arguments::BootSwitches;
use crate::handoff::small_machine::limit_of_cpus;
use crate::host::boot_initramfs::Tool;
use crate::host::doctor::devices;
use crate::host::doctor::facts::{Facts, ImageFacts, Memory, ModuleFacts, SaveKernel, Systemd, Unseen};
use crate::host::doctor::{Check, State, boot_loader, mounted, next_boot, sealed, sealing};
use crate::host::map_history::History;
use crate::launch::region;
use crate::machine::iomem::IomemError;
use crate::policy::{Jump, Policy, Shrink};
use crate::target;

const AS_ROOT: &str = "run `dormouse doctor` as root";
const SETUP: &str = "dormouse setup";
const BUILD: &str = "dormouse build-initramfs";

/// Every check, in the order in which it is sensible to mend what they find.
pub(super) fn judge(facts: &Facts) -> Vec<Check> {
    let mut checks = vec![
        architecture(facts),
        kernel_jump(facts),
        kernel_return(facts),
        hibernation(facts),
        vmcoreinfo(facts),
        lockdown(facts),
        kexec_allowed(facts),
        kexec_loaded(facts),
        memory_encryption(facts),
        memory_map(facts),
        memory_map_history(facts),
        memory(facts),
        policy(facts),
        image_device(facts),
        sealing::check(facts),
        image_size(facts),
        image_state(facts),
        save_kernel(facts),
        save_kernel_config(facts),
        save_kernel_age(facts),
        save_initramfs(facts),
        boot_hook(facts),
        boot_initramfs(facts),
        resume_hook(facts),
        next_boot::evidence(facts),
        next_boot::kernels(facts),
        next_boot::in_clear(facts),
        command_line(facts),
        kernel_resume(facts),
        mounted::check(facts),
    ];
    checks.extend(jump_module(facts));
    checks.extend(boot_loader::check(facts));
    checks.extend(sealed::checks(facts));
    checks.extend(devices::checks(facts));
    checks.extend(facts.drivers.judge());
    checks.extend(systemd(facts));
    checks
}

/// A check that is about to be judged.
pub(super) struct Question {
    id: &'static str,
    why: &'static str,
}

pub(super) const fn question(id: &'static str, why: &'static str) -> Question {
    Question { id, why }
}

impl Question {
    pub(super) fn check(self, state: State, found: impl Into<String>, remedy: Option<String>) -> Check {
        Check { id: self.id, state, found: found.into(), why: self.why, remedy }
    }

    pub(super) fn ok(self, found: impl Into<String>) -> Check {
        self.check(State::Ok, found, None)
    }

    pub(super) fn warning(self, found: impl Into<String>, remedy: impl Into<String>) -> Check {
        self.check(State::Warning, found, Some(remedy.into()))
    }

    pub(super) fn failed(self, found: impl Into<String>, remedy: impl Into<String>) -> Check {
        self.check(State::Failed, found, Some(remedy.into()))
    }

    pub(super) fn unknown(self, found: impl Into<String>, remedy: impl Into<String>) -> Check {
        self.check(State::Unknown, found, Some(remedy.into()))
    }

    pub(super) fn needs_root(self) -> Check {
        self.unknown("only root can see it", AS_ROOT)
    }

    pub(super) fn needs_policy(self) -> Check {
        self.unknown("there is no policy that could be read", SETUP)
    }

    /// Fails with what `dormouse hibernate` would refuse with.
    pub(super) fn refused(self, refusal: &(impl Refusal + 'static)) -> Check {
        self.failed(in_full(refusal), refusal.remedy().unwrap_or_else(|| "see `dormouse hibernate`".to_owned()))
    }
}

fn architecture(facts: &Facts) -> Check {
    let question = question("architecture", "The loader and the jump are made for x86-64.");
    match facts.machine.as_str() {
        "x86_64" => question.ok("x86_64"),
        other => question.failed(format!("this is {other}"), "use a machine with an x86-64 kernel"),
    }
}

fn kernel_jump(facts: &Facts) -> Check {
    let question =
        question("kernel-jump", "The running kernel must be able to jump into the save kernel and to be returned to.");
    let Facts { release, .. } = facts;
    // What an option depends on being off, the configuration has no word of it.
    let configured = facts.config.as_ref().map(|config| has(config, "KEXEC_JUMP"));
    match (&facts.jump, configured) {
        (Ok(true), _) => question.ok(format!("Linux {release} has CONFIG_KEXEC_JUMP")),
        (Ok(false), _) | (Err(_), Some(false)) if module_may_jump(facts) => {
            question.ok(format!("Linux {release} lacks CONFIG_KEXEC_JUMP; Dormouse's own module jumps"))
        }
        (Ok(false), _) | (Err(_), Some(false)) => {
            question.failed(format!("Linux {release} lacks CONFIG_KEXEC_JUMP"), kernel_with_jump(facts))
        }
        (Err(_), Some(true)) => question.ok(format!("Linux {release} was built with CONFIG_KEXEC_JUMP")),
        (Err(Unseen::NeedsRoot), None) => question.needs_root(),
        // What forbids the question is another check's matter.
        (Err(Unseen::Because(error)), None) => {
            let found = format!("the kernel could not be asked ({error}), and its configuration was not found");
            question.unknown(found, format!("look for CONFIG_KEXEC_JUMP in the configuration of Linux {release}"))
        }
    }
}

/// How to get a kernel that has CONFIG_KEXEC_JUMP.
///
/// The packages are those that the kernel's own packaging asks for (scripts/package/mkdebian), and openssl, which makes
/// the key that modules are signed with. Debug information would take several times the time and the space, and be a
/// package `linux-image-...-dbg` that the last line installs too. Debian's certificates are not in its source package.
fn kernel_with_jump(facts: &Facts) -> String {
    let is = |name: &str| facts.distribution.split_whitespace().any(|id| id == name);
    if is("debian") && !is("ubuntu") {
        return "Debian's own kernels are built without it. Let Dormouse's own module jump:\n\
                apt install ./dormouse-dkms_*.deb linux-headers-amd64\n\
                or build a kernel from Debian's source, 6.12.5 or newer:\n\
                apt install linux-source-6.12 build-essential bc bison cpio debhelper flex kmod libelf-dev libssl-dev \
                openssl rsync\n\
                tar xf /usr/src/linux-source-6.12.tar.xz && cd linux-source-6.12\n\
                cp /boot/config-$(uname -r) .config && scripts/config -e KEXEC -e KEXEC_JUMP -e DEBUG_INFO_NONE \
                -d DEBUG_INFO_DWARF_TOOLCHAIN_DEFAULT --set-str SYSTEM_TRUSTED_KEYS ''\n\
                make olddefconfig && make -j$(nproc) bindeb-pkg\n\
                apt install ../linux-image-6.12*.deb && reboot\n\
                or use a distribution whose kernel has it, such as Fedora or RHEL"
            .to_owned();
    }
    "build this distribution's kernel with CONFIG_KEXEC_JUMP=y (it needs KEXEC and HIBERNATION), or use a \
     distribution whose kernel has it, such as Fedora or RHEL"
        .to_owned()
}

/// Who is to jump.
fn policy_of_jump(facts: &Facts) -> Jump {
    facts.policy.as_ref().map_or(Jump::default(), |policy| policy.save.jump)
}

/// Whether the module is there, and the policy lets it jump.
fn module_may_jump(facts: &Facts) -> bool {
    facts.module.is_installed && policy_of_jump(facts) != Jump::Kernel
}

/// The module, where it is what is to jump. Where there is none, and the policy does not insist, the kernel's own check
/// says what is missing.
fn jump_module(facts: &Facts) -> Option<Check> {
    let question =
        question("jump-module", "Where the kernel cannot jump and be returned to, a module of Dormouse's does.");
    let Facts { release, module: ModuleFacts { is_installed, others, fault }, .. } = facts;
    let can_kernel = facts.jump == Ok(true) && refusal::in_release(release).is_none();
    let wanted = policy_of_jump(facts);
    if wanted == Jump::Kernel || wanted == Jump::Auto && can_kernel {
        return None;
    }
    match (is_installed, fault) {
        (true, Some(fault)) => Some(question.refused(&Obstacle::NoModule(fault.clone()))),
        (true, None) if locked_down(facts).is_some() => {
            Some(question.refused(&Obstacle::NoModule(NoModule::LockedDown)))
        }
        (true, None) => Some(question.ok(format!("it is installed for Linux {release}"))),
        (false, _) if !others.is_empty() => {
            Some(question.refused(&Obstacle::NoModule(NoModule::OtherKernel(others.join(", ")))))
        }
        (false, _) if wanted == Jump::Module => Some(question.refused(&Obstacle::NoModule(NoModule::Missing))),
        (false, _) => None,
    }
}

fn kernel_return(facts: &Facts) -> Check {
    let question = question("kernel-return", "A kernel that hangs when it is returned to loses the session.");
    match refusal::in_release(&facts.release) {
        Some(_) if module_may_jump(facts) => {
            question.ok(format!("Linux {} is returned to by Dormouse's own module", facts.release))
        }
        None => question.ok(format!("Linux {} is new enough to be returned to", facts.release)),
        Some(obstacle) => question.refused(&obstacle),
    }
}

fn hibernation(facts: &Facts) -> Check {
    let question =
        question("kernel-hibernation", "The jump freezes devices the way the kernel's own hibernation does.");
    let Some(modes) = &facts.power_disk else {
        return question.failed(
            format!("Linux {} has no /sys/power/disk: it lacks CONFIG_HIBERNATION", facts.release),
            "boot a kernel with CONFIG_HIBERNATION=y",
        );
    };
    match refusal::in_power_disk(modes) {
        None => question.ok("the kernel allows hibernation"),
        Some(obstacle) => question.refused(&obstacle),
    }
}

fn vmcoreinfo(facts: &Facts) -> Check {
    let question =
        question("kernel-vmcoreinfo", "The save kernel learns from it how this kernel's memory is laid out.");
    match facts.has_vmcoreinfo {
        true => question.ok("/sys/kernel/vmcoreinfo exists"),
        false => question.failed(
            "/sys/kernel/vmcoreinfo is missing: the kernel lacks CONFIG_CRASH_DUMP",
            "boot a kernel with CONFIG_CRASH_DUMP=y",
        ),
    }
}

/// The level of the lockdown in force, which is in brackets (security/lockdown/lockdown.c, `lockdown_read`).
fn locked_down(facts: &Facts) -> Option<&str> {
    let (level, _) = facts.lockdown.as_deref()?.split_once('[')?.1.split_once(']')?;
    (level != "none").then_some(level)
}

fn lockdown(facts: &Facts) -> Check {
    let question = question("lockdown", "A locked-down kernel forbids kexec_load(2), and with it the jump.");
    let secure_boot = match facts.secure_boot {
        Some(true) => "; Secure Boot is on",
        Some(false) => "; Secure Boot is off",
        None => "",
    };
    match locked_down(facts) {
        None if facts.lockdown.is_none() => question.ok(format!("this kernel has no lockdown{secure_boot}")),
        None => question.ok(format!("the kernel is not locked down{secure_boot}")),
        Some(level) => question.failed(
            format!("the kernel is locked down ({level}){secure_boot}"),
            "switch Secure Boot off in the firmware's settings, and boot without `lockdown=`",
        ),
    }
}

fn kexec_allowed(facts: &Facts) -> Check {
    let question = question("kexec-allowed", "kexec_load(2) hands the save kernel over.");
    let off = "remove this setting from /etc/sysctl.d and reboot; it cannot be taken back in a running system";
    match (facts.load_disabled, facts.load_limit) {
        (true, _) => question.failed("kernel.kexec_load_disabled is 1", off),
        (false, Some(0)) => question.failed("kernel.kexec_load_limit_reboot is used up", off),
        (false, Some(left)) => {
            question.warning(format!("kernel.kexec_load_limit_reboot allows {left} more; a hibernation takes 3"), off)
        }
        (false, None) => question.ok("kexec_load is not restricted"),
    }
}

fn kexec_loaded(facts: &Facts) -> Check {
    let question =
        question("kexec-loaded", "A hibernation loads its own kernel in the place of one that waits for `kexec -e`.");
    match (facts.is_loaded, facts.is_crash_loaded) {
        (true, _) => question.refused(&Obstacle::KernelLoaded),
        (false, true) => question.ok("nothing is loaded but a crash kernel, which has a place of its own"),
        (false, false) => question.ok("nothing is loaded"),
    }
}

fn memory_encryption(facts: &Facts) -> Check {
    let question = question(
        "memory-encryption",
        "Encrypted memory cannot be read after the next power-on, which has another key.",
    );
    match refusal::in_command_line(&facts.cmdline) {
        None => question.ok("not switched on"),
        Some(obstacle) => question.refused(&obstacle),
    }
}

fn memory_map(facts: &Facts) -> Check {
    let question = question("memory-map", "The save kernel lives in one piece of memory, the region, while it works.");
    let iomem = match &facts.iomem {
        Ok(iomem) => iomem,
        Err(IomemError::Hidden) => return question.needs_root(),
        Err(error) => return question.refused(error),
    };
    let ram = iomem.whole_ram();
    let Ok(Policy { region, .. }) = &facts.policy else { return question.needs_policy() };
    let size = match facts.region_size {
        Some(Ok(size)) => size,
        Some(Err(error)) => return question.refused(&error),
        None => return question.needs_policy(),
    };
    let found = region::choose(&ram, &iomem.kernel, size, region.address).and_then(|region| {
        region::low_memory(&ram)?;
        Ok(region)
    });
    match found {
        Ok(region) if !region::is_off(&region, &iomem.kernel) => question.warning(
            format!(
                "the region at {region} lies over the running kernel's own code, where parked CPUs of Intel's wait"
            ),
            "set a smaller region.size or another region.address, or boot without `nokaslr`",
        ),
        Ok(region) => question.ok(format!("the region has its place at {region}")),
        Err(error) => question.refused(&error),
    }
}

fn memory_map_history(facts: &Facts) -> Check {
    let question = question(
        "memory-map-history",
        "A session goes on where its memory was: firmware that lays memory out otherwise at a power-on prevents that.",
    );
    match &facts.maps {
        None if matches!(facts.iomem, Err(IomemError::Hidden)) => question.needs_root(),
        None => question.ok("no boot is recorded yet: `dormouse prepare` does so at each"),
        Some(History::Same(boots)) => question.ok(format!("it was the same in the last {boots} boots")),
        Some(History::Slides(boots, text)) => question.ok(format!(
            "of the last {boots} boots, some had ACPI tables elsewhere ({text}), with which a session goes on"
        )),
        Some(History::Differs(boots, text)) => question.warning(
            format!("of the last {boots} boots, some had another: {text}"),
            "look for an update of the firmware, and for its settings of memory, graphics and docks; until then, a \
             session may be refused at a boot",
        ),
    }
}

fn memory(facts: &Facts) -> Check {
    let question = question("memory", "What the region holds is set aside in free memory while the save kernel works.");
    let size = match facts.region_size {
        Some(Ok(size)) => size,
        Some(Err(_)) => return question.unknown("how large the region will be is not known", "mend memory-map first"),
        None => return question.needs_policy(),
    };
    match refusal::in_memory(size, facts.memory.available) {
        None => question.ok(format!("{} of memory are available", mib(facts.memory.available))),
        Some(obstacle) => question.refused(&obstacle),
    }
}

fn policy(facts: &Facts) -> Check {
    let question = question("policy", "The policy says where the image goes and what saves it.");
    let limit = facts.policy.as_ref().ok().and_then(|policy| limit_of_cpus(&policy.kernel.arguments));
    match (&facts.policy, limit) {
        (Ok(_), Some(limit)) => question.failed(
            format!("kernel.arguments has `{limit}`: a restore needs every CPU, so that no save would succeed"),
            format!("remove `{limit}` from kernel.arguments, then dormouse build-initramfs"),
        ),
        (Ok(_), None) => question.ok("every key is known and every value valid"),
        (Err(fault), _) if fault.is_missing => question.failed("there is none yet", SETUP),
        (Err(fault), _) => question.failed(&fault.text, "correct the file that is named, then `dormouse config check`"),
    }
}

fn image_device(facts: &Facts) -> Check {
    let question = question(
        "image-device",
        "The image needs a place for itself alone, prepared by `dormouse image init` or `dormouse image create`.",
    );
    let (policy, image) = match (&facts.policy, &facts.image) {
        (Ok(policy), Some(image)) => (policy, image),
        _ => return question.needs_policy(),
    };
    match image {
        Err(Unseen::NeedsRoot) => question.needs_root(),
        Err(Unseen::Because(error)) => question.failed(error, target::how_to_get(&policy.image.device)),
        Ok(image) if image.is_busy => question.failed(
            format!("{} is in use (mounted, active swap, or part of another device)", image.target),
            "unmount it, `swapoff` it, or name another device with `dormouse setup`",
        ),
        Ok(image) => match &image.state {
            Ok(_) => on_its_disk(question, image),
            Err(error) => question.failed(error, image.target.how_to_make_again()),
        },
    }
}

/// Whether a boot takes the disk for the image's.
fn on_its_disk(question: Question, image: &ImageFacts) -> Check {
    let ImageFacts { target, size, disk, expected, .. } = image;
    let found = format!("{target}, {}", mib(*size));
    let Some(disk) = disk else { return question.ok(found) };
    if let Some(expected) = expected.as_ref().filter(|expected| expected.likeness(disk) == Likeness::Other) {
        return question.failed(
            format!("{target} is on the disk `{disk}`, and this boot's initramfs looks for it on `{expected}`"),
            "attach that disk; where the image was moved for good, run `dormouse update`, build the boot's initramfs \
             and reboot once",
        );
    }
    match disk.is_unique() {
        true => question.ok(format!("{found}, on the disk `{disk}`")),
        false => question.ok(format!("{found}, on the disk `{disk}`, which nothing tells from a copy of it")),
    }
}

/// Memory that has ever been compressed better than this was mostly empty, and empty pages are not counted here.
const BEST_RATIO: u64 = 16;

fn image_size(facts: &Facts) -> Check {
    let question =
        question("image-size", "An image that does not fit ends in the session going on, after the time it took.");
    let (policy, image) = match (&facts.policy, &facts.image) {
        (Ok(policy), Some(Ok(image))) => (policy, image),
        (Ok(_), Some(Err(Unseen::NeedsRoot))) => return question.needs_root(),
        (Ok(_), Some(Err(_))) => return question.unknown("the image device was not found", "mend image-device first"),
        _ => return question.needs_policy(),
    };
    let Memory { total, free, .. } = facts.memory;
    let in_use = in_use(&facts.memory, policy.save.shrink);
    let shrunk = match policy.save.shrink {
        Shrink::None => String::new(),
        _ => format!(", and what save.shrink leaves of it: {}", mib(in_use)),
    };
    let found = format!(
        "{} on {}; memory in use now: {}, of {}{shrunk}; a compressed image is usually smaller than that",
        mib(image.size),
        image.target,
        mib(total.saturating_sub(free)),
        mib(total)
    );
    match image.size {
        size if size >= in_use => question.ok(found),
        size if size >= in_use / BEST_RATIO => question.warning(
            found,
            "give the image a larger place, set save.shrink = \"cache\", or close something before hibernating",
        ),
        _ => question.failed(found, "give the image a larger place with `dormouse setup`"),
    }
}

/// What of the memory in use would be saved: what the policy leaves of it, as far as caches and the room in swap areas
/// allow.
fn in_use(memory: &Memory, shrink: Shrink) -> u64 {
    let now = memory.total.saturating_sub(memory.free);
    let without_cache = memory.total.saturating_sub(memory.available).min(now);
    match shrink {
        Shrink::None => now,
        Shrink::Cache => without_cache,
        Shrink::To(size) => now.min(size.max(without_cache.saturating_sub(memory.swap_free))),
    }
}

fn image_state(facts: &Facts) -> Check {
    use dormouse_image::State as Image;
    let question = question(
        "image-state",
        "An image of a session from before this boot must not be resumed after this boot wrote to its filesystems.",
    );
    let image = match &facts.image {
        Some(Ok(image)) => image,
        Some(Err(Unseen::NeedsRoot)) => return question.needs_root(),
        Some(Err(_)) => return question.unknown("the image device was not found", "mend image-device first"),
        None => return question.needs_policy(),
    };
    let path = &image.target;
    match &image.state {
        Err(_) => question.unknown("there is no image to look at", "mend image-device first"),
        Ok((state @ (Image::Complete | Image::Restoring), _)) => question.warning(
            format!("the image on {path} is {state}: a session waits in it, which this boot has not resumed"),
            format!(
                "`dormouse prepare` gives it up, unless the policy keeps it (resume.mismatch) and the next boot can \
                 tell what this one writes; `dormouse image discard {path}` gives it up in any case"
            ),
        ),
        Ok((state, reason)) if reason.is_empty() => question.ok(format!("the image on {path} is {state}")),
        Ok((state, reason)) => question.ok(format!("the image on {path} is {state}: {reason}")),
    }
}

/// The policy's save kernel, or the check that ends here.
fn known_save_kernel(facts: &Facts, question: Question) -> Result<(&SaveKernel, Question), Check> {
    match &facts.save_kernel {
        None => Err(question.needs_policy()),
        Some(Err(Unseen::NeedsRoot)) => Err(question.needs_root()),
        Some(Err(Unseen::Because(_))) => Err(question.unknown("there is no save kernel", "mend save-kernel first")),
        Some(Ok(kernel)) => Ok((kernel, question)),
    }
}

fn save_kernel(facts: &Facts) -> Check {
    let question = question("save-kernel", "It saves the session and restores it.");
    let place = facts.policy.as_ref().map(|policy| policy.kernel.image.display().to_string()).unwrap_or_default();
    let copy = "dormouse update, or dormouse build-initramfs --kernel FILE for a bzImage of your choice";
    if let Some(Err(Unseen::Because(error))) = &facts.save_kernel {
        return question.failed(format!("kernel.image: {error}"), copy);
    }
    let (kernel, question) = match known_save_kernel(facts, question) {
        Ok(known) => known,
        Err(check) => return check,
    };
    match (&kernel.fault, &kernel.release) {
        (Some(fault), _) => question.failed(format!("{place}: {fault}"), copy),
        (None, Some(release)) => question.ok(format!("{place} is Linux {release}")),
        (None, None) => question.ok(format!("{place} does not say its release")),
    }
}

fn save_kernel_config(facts: &Facts) -> Check {
    let question = question(
        "save-kernel-config",
        "Without these options it cannot read the session's memory or come back from a failed save.",
    );
    let (kernel, question) = match known_save_kernel(facts, question) {
        Ok(known) => known,
        Err(check) => return check,
    };
    let Some(config) = &kernel.config else {
        let all = SAVE_KERNEL.join(", ");
        return question.unknown(
            "the configuration it was built with was not found",
            format!("see that it has {all}; `dormouse hibernate --then return` tries it without a power-off"),
        );
    };
    let missing: Vec<&str> = config.lacking(kernel.has_module).collect();
    match missing.as_slice() {
        [] => question.ok("it has all options that are needed"),
        missing => question.failed(
            format!("it lacks CONFIG_{}", missing.join(", CONFIG_")),
            "name a kernel that has them: dormouse build-initramfs --kernel FILE",
        ),
    }
}

fn has(config: &KernelConfig, option: &str) -> bool {
    config.has(option) == Some(true)
}

fn save_kernel_age(facts: &Facts) -> Check {
    let question = question(
        "save-kernel-age",
        "The save kernel is a copy, which a kernel update may leave behind without its modules.",
    );
    let (kernel, question) = match known_save_kernel(facts, question) {
        Ok(known) => known,
        Err(check) => return check,
    };
    let renew = "dormouse update, then rebuild the boot's initramfs";
    match &kernel.release {
        Some(release) if *release == facts.release => question.ok("it is of the running kernel's release"),
        Some(release) if kernel.has_modules => {
            question.warning(format!("it is Linux {release}, the running kernel is {}", facts.release), renew)
        }
        Some(release) => {
            let found = format!(
                "it is Linux {release}, whose modules are not installed any more; the running kernel is {}",
                facts.release
            );
            question.warning(found, renew)
        }
        None => question.unknown("it does not say its release", renew),
    }
}

fn save_initramfs(facts: &Facts) -> Check {
    let question = question(
        "save-initramfs",
        "It carries the agent, the policy and the image device's modules into the save kernel.",
    );
    let Some(built) = &facts.save_initramfs else { return question.needs_policy() };
    let built = match built {
        Err(Unseen::NeedsRoot) => return question.needs_root(),
        Err(Unseen::Because(error)) => return question.failed(format!("kernel.initramfs: {error}"), BUILD),
        Ok(built) => *built,
    };
    let kernel = facts.save_kernel.as_ref().and_then(|kernel| kernel.as_ref().ok()).map(|kernel| kernel.changed);
    let sources =
        [("the policy", facts.policy_changed), ("dormouse-init", facts.agent_changed), ("kernel.image", kernel)];
    match newer_than(built, &sources) {
        None => question.ok("it is as new as the policy, the agent and the save kernel"),
        Some(newer) => question.warning(format!("it is older than {newer}"), BUILD),
    }
}

fn boot_hook(facts: &Facts) -> Check {
    let question = question("boot-hook", "The boot's initramfs must look for the image before it mounts anything.");
    match (facts.tool, &facts.hook) {
        (None, _) => question.unknown(
            "no tool is known here that builds the boot's initramfs",
            "see that it runs `dormouse resume` before anything is mounted (initramfs/README.md)",
        ),
        (Some(tool), Ok(())) => question.ok(format!("{} has the hook", tool.name())),
        (Some(Tool::Mkinitcpio), Err(missing)) => question.failed(
            missing,
            "add `dormouse` to HOOKS in /etc/mkinitcpio.conf, after `block` and before `filesystems`; then \
             `mkinitcpio -P`",
        ),
        (Some(_), Err(missing)) => question.failed(missing, "install the package of Dormouse, which has it"),
    }
}

fn boot_initramfs(facts: &Facts) -> Check {
    let question = question("boot-initramfs", "It carries the save kernel and its initramfs, and restores with those.");
    let rebuild =
        facts.tool.map_or_else(|| "build the boot's initramfs again".to_owned(), |tool| tool.rebuild().join(" "));
    let Some((path, built)) = &facts.boot_initramfs else {
        return question.unknown(format!("the initramfs of Linux {} was not found", facts.release), rebuild);
    };
    let newest =
        |found: &Option<Result<SystemTime, Unseen>>| found.as_ref().and_then(|found| found.as_ref().ok()).copied();
    let kernel = facts.save_kernel.as_ref().and_then(|kernel| kernel.as_ref().ok()).map(|kernel| kernel.changed);
    let sources = [
        ("the policy", facts.policy_changed),
        ("kernel.image", kernel),
        ("kernel.initramfs", newest(&facts.save_initramfs)),
        ("the image, which it would not find", image_it_names(facts)),
    ];
    let path = path.display();
    match newer_than(*built, &sources) {
        None => question.ok(format!("{path} is newer than all that goes into it")),
        Some(newer) => question.warning(format!("{path} is older than {newer}"), rebuild),
    }
}

/// When the image was made whose UUID stands in the initramfs in place of a path ([`target::boot_name`]).
fn image_it_names(facts: &Facts) -> Option<SystemTime> {
    let (Ok(policy), Some(Ok(image))) = (&facts.policy, &facts.image) else { return None };
    image.made.filter(|_| target::is_renamed(&policy.image.device))
}

/// The names of what was changed after `built`, if anything was.
fn newer_than(built: SystemTime, sources: &[(&str, Option<SystemTime>)]) -> Option<String> {
    let newer = sources.iter().filter(|(_, changed)| changed.is_some_and(|changed| changed > built));
    let names: Vec<&str> = newer.map(|(name, _)| *name).collect();
    (!names.is_empty()).then(|| names.join(" and "))
}

fn resume_hook(facts: &Facts) -> Check {
    let question = question(
        "resume-hook",
        "A boot that does not look for the image mounts the session's filesystems, and the session is lost.",
    );
    match &facts.resume {
        Some(last) => question.ok(format!("this boot has looked for an image: {}", last.text)),
        None => {
            let rebuild = facts.tool.map_or_else(String::new, |tool| format!(" ({})", tool.rebuild().join(" ")));
            question.failed(
                "this boot has not looked for an image, or its initramfs has not passed on /run",
                format!("build the boot's initramfs with the hook{rebuild}, and reboot once"),
            )
        }
    }
}

fn command_line(facts: &Facts) -> Check {
    let question = question("command-line", "`noresume` and `dormouse=off` discard the image at each boot.");
    let switches = BootSwitches::parse(&facts.cmdline);
    if switches.forbids() {
        let word = if switches.off { "dormouse=off" } else { "noresume" };
        return question.warning(
            format!("this boot has `{word}`"),
            format!("remove `{word}` from the boot loader's configuration, if it was not meant for this boot alone"),
        );
    }
    match &switches.mistake {
        Some(mistake) => {
            question.warning(format!("{mistake}; it changes nothing"), "correct it in the boot loader's configuration")
        }
        None => question.ok("nothing on it keeps a boot from resuming"),
    }
}

fn kernel_resume(facts: &Facts) -> Check {
    let question = question(
        "kernel-resume",
        "The kernel's own hibernation has a second session on the swap space, and of two sessions on one set of \
         filesystems the later one resumed destroys them.",
    );
    let is_set = arguments(&facts.cmdline)
        .take_while(|argument| argument.name != "--")
        .any(|argument| argument.name == "resume" && argument.value.is_some_and(|value| !value.is_empty()));
    if facts.swap.has_session {
        return question.failed(
            "the swap space holds a session of the kernel's own hibernation",
            "resume it, or discard it: `mkswap` on that swap space while it is off",
        );
    }
    let is_routed = facts.systemd.as_ref().is_some_and(|systemd| systemd.routing.is_dormouse);
    match (is_set || facts.swap.is_resume_set, is_routed) {
        (false, _) => question.ok("the kernel's own hibernation is not set up"),
        (true, true) => question.ok("`resume=` is set up, but `systemctl hibernate` is Dormouse's"),
        (true, false) => question.warning(
            "`resume=` is set up beside Dormouse, and `systemctl hibernate` uses it: only one of them may hold a \
             session at a time",
            "dormouse enable; or hibernate with one of them only, or remove `resume=` from the boot loader's \
             configuration, which Dormouse does not need",
        ),
    }
}

/// What is between `systemctl hibernate` and Dormouse; nothing where systemd does not run.
fn systemd(facts: &Facts) -> Vec<Check> {
    let Some(systemd) = &facts.systemd else { return Vec::new() };
    let routing = question("systemctl-hibernate", "Desktops and lid switches hibernate by systemd.");
    let routing = match systemd.routing.is_dormouse {
        true => routing.ok("`systemctl hibernate` is Dormouse's"),
        false => routing.ok("`systemctl hibernate` is systemd's own; `dormouse enable` routes it to Dormouse"),
    };
    let allowed = question("systemd-allow", "logind refuses to hibernate where sleep.conf forbids it.");
    let allowed = match (systemd.is_allowed, systemd.routing.is_dormouse) {
        (Some(false), true) => allowed
            .warning("AllowHibernation=no", "remove it from /etc/systemd/sleep.conf and /etc/systemd/sleep.conf.d"),
        (Some(false), false) => allowed.ok("AllowHibernation=no; `dormouse hibernate` does not ask"),
        _ => allowed.ok("sleep.conf allows it"),
    };
    vec![routing, allowed, systemd_swap(facts, systemd)]
}

fn systemd_swap(facts: &Facts, systemd: &Systemd) -> Check {
    let question = question(
        "systemd-swap",
        "logind offers to hibernate only where swap space could hold what is in use, though Dormouse needs none.",
    );
    // src/shared/sleep-config.c, HIBERNATION_SWAP_THRESHOLD: 98 % of what is free must hold Active(anon).
    let is_enough = facts.swap.free / 100 * 98 >= facts.swap.active_anon && facts.swap.free > 0;
    // src/shared/hibernate-util.c, `hibernation_is_safe`.
    let asks_for_resume = systemd.version.is_none_or(|version| version >= 255);
    let is_refused = asks_for_resume && facts.swap.free > 0 && !facts.swap.is_resume_set && !facts.is_efi;
    match (systemd.routing.is_dormouse, systemd.routing.needs_no_swap) {
        (false, _) => question.ok("`systemctl hibernate` is not Dormouse's"),
        (true, true) if is_refused => question.warning(
            "there is swap space without `resume=` on a machine without UEFI: systemd 255 and newer refuse that",
            "if `systemctl hibernate` says so, use `dormouse hibernate --system-sleep`, or boot without swap space",
        ),
        (true, true) => question.ok("logind is configured not to ask for swap space"),
        (true, false) if is_enough => question.ok("there is enough swap space for logind"),
        (true, false) => {
            question.warning("there is not enough swap space, and logind asks for it", "dormouse enable, then reboot")
        }
    }
}
