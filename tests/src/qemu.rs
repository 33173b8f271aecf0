//! One run of QEMU, from power-on to power-off.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use dormouse_linux::bzimage_release;
use nix::sys::signal::Signal;

use crate::console::Console;
use crate::grub;
use crate::machine::{BootLoader, Firmware, GuestConfig, MachineType};
use crate::qmp::Monitor;
use crate::tpm::Tpm;

/// A kernel with this argument, which B and D take over, does not change what its scheduler's clock executes.
const UNSTABLE_TSC: &str = "tsc=unstable";

const PROGRAM: &str = "qemu-system-x86_64";
const OVMF_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const OVMF_VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// The files that a machine is run from. All but the initramfs and the kernel keep their content between runs.
#[derive(Debug, Clone)]
pub struct Files {
    /// The guest's own directory.
    pub directory: PathBuf,
    /// The kernel.
    pub kernel: PathBuf,
    /// The initramfs of A and C.
    pub initramfs: PathBuf,
}

impl Files {
    /// The file of disk `index`.
    #[must_use]
    pub fn disk(&self, index: usize) -> PathBuf {
        self.directory.join(format!("disk{index}.img"))
    }

    /// The disk with the machine's boot loader, if it has one.
    #[must_use]
    pub fn boot_disk(&self) -> PathBuf {
        self.directory.join("boot-disk.img")
    }

    /// QEMU's socket of the second serial port.
    #[must_use]
    pub fn channel(&self) -> PathBuf {
        self.directory.join("channel.sock")
    }

    /// QEMU's socket of its own command line.
    #[must_use]
    pub fn monitor(&self) -> PathBuf {
        self.directory.join("monitor.sock")
    }

    /// QEMU's socket of its events.
    #[must_use]
    pub fn events(&self) -> PathBuf {
        self.directory.join("events.sock")
    }

    /// The console's log.
    #[must_use]
    pub fn serial_log(&self) -> PathBuf {
        self.directory.join("serial.log")
    }

    /// The guest's memory, where the machine has it in a file; [`crate::memory`] knows where in it.
    #[must_use]
    pub fn memory(&self) -> PathBuf {
        self.directory.join("memory")
    }

    /// The directory of what the machine's TPM keeps.
    pub(crate) fn tpm_state(&self) -> PathBuf {
        self.directory.join("tpm")
    }

    /// The socket by which QEMU has the TPM do what the machine's power does.
    pub(crate) fn tpm_control(&self) -> PathBuf {
        self.directory.join("tpm.sock")
    }

    /// What the TPM's program has to say.
    pub(crate) fn tpm_log(&self) -> PathBuf {
        self.directory.join("tpm.log")
    }

    fn firmware_variables(&self) -> PathBuf {
        self.directory.join("firmware-variables.fd")
    }

    /// Makes what the machine needs before its first power-on: empty disks, and variables of its own for UEFI.
    ///
    /// # Errors
    /// Fails where a file cannot be made.
    pub fn create(&self, config: &GuestConfig) -> Result<()> {
        for (index, disk) in config.disks.iter().enumerate() {
            let path = self.disk(index);
            std::fs::File::create_new(&path)
                .and_then(|file| file.set_len(disk.bytes))
                .with_context(|| format!("{}: cannot be made with {} bytes", path.display(), disk.bytes))?;
        }
        if config.boot_loader.is_some() {
            let path = self.boot_disk();
            std::fs::File::create_new(&path)
                .and_then(|file| file.set_len(grub::DISK_BYTES))
                .with_context(|| format!("{}: cannot be made", path.display()))?;
        }
        if config.firmware == Firmware::Uefi {
            std::fs::copy(OVMF_VARIABLES, self.firmware_variables())
                .with_context(|| format!("{OVMF_VARIABLES}: cannot be copied; the package ovmf holds it"))?;
        }
        Ok(())
    }
}

/// Copies a disk's file and leaves its holes what they are.
///
/// # Errors
/// Fails where cp does.
pub fn copy_sparse(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp").arg("--sparse=always").args([from, to]).status().context("cp cannot be started")?;
    if !status.success() {
        bail!("cp {} {}: {status}", from.display(), to.display());
    }
    Ok(())
}

/// A running QEMU. Dropping it cuts the machine's power.
#[derive(Debug)]
pub struct Qemu {
    child: Child,
    status: Option<ExitStatus>,
    /// On for as long as the machine is.
    _tpm: Option<Tpm>,
}

impl Qemu {
    /// Powers the machine on. Its first serial port feeds `console`.
    ///
    /// # Errors
    /// Fails where QEMU cannot be started.
    pub fn start(config: &GuestConfig, files: &Files, console: &Arc<Console>) -> Result<Self> {
        let arguments = arguments(config, files)?;
        if config.memory_is_a_file {
            // Memory does not keep its content without power.
            let path = files.memory();
            let memory = std::fs::File::create(&path).and_then(|file| file.set_len(config.memory.bytes()));
            memory.with_context(|| format!("{}: cannot be made", path.display()))?;
        }
        let tpm = config.tpm.then(|| Tpm::start(files)).transpose()?;
        // The socket of an earlier run would take a connection and answer nothing.
        let _ = std::fs::remove_file(files.channel());
        let _ = std::fs::remove_file(files.monitor());
        let _ = std::fs::remove_file(files.events());
        // setpriv sees to it that QEMU dies with the thread that started it, whatever ends that.
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", PROGRAM])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("setpriv (util-linux) and {PROGRAM} cannot be started"))?;
        if let Some(serial) = child.stdout.take() {
            console.attach(serial);
        }
        if let Some(errors) = child.stderr.take() {
            console.attach(errors);
        }
        Monitor::note_failed_requests(&files.events(), console);
        Ok(Qemu { child, status: None, _tpm: tpm })
    }

    /// Whether the machine is off.
    ///
    /// # Errors
    /// Fails where QEMU's state cannot be had, and where it ended by a failure of its own.
    pub fn is_off(&mut self) -> Result<bool> {
        if self.status.is_none() {
            self.status = self.child.try_wait().context("QEMU's state")?;
        }
        match self.status {
            None => Ok(false),
            Some(status) if status.success() => Ok(true),
            Some(status) => bail!("QEMU failed ({status})"),
        }
    }

    /// Stops the machine between two instructions: memory and disks stay as they are until it is thawed or its power is
    /// cut.
    ///
    /// # Errors
    /// Fails where QEMU is gone.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP).context("QEMU cannot be stopped")
    }

    /// Lets a machine go on that was stopped.
    ///
    /// # Errors
    /// Fails where QEMU is gone.
    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::SIGCONT).context("QEMU cannot be continued")
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(self.child.id())?), signal)?)
    }

    /// Sends bytes to the machine's first serial port, as keys on a terminal do.
    ///
    /// # Errors
    /// Fails where QEMU is gone.
    pub fn send_keys(&mut self, keys: &[u8]) -> Result<()> {
        let port = self.child.stdin.as_mut().context("QEMU has no input")?;
        port.write_all(keys).and_then(|()| port.flush()).context("QEMU does not take keys")
    }

    /// Cuts the power.
    pub fn cut_power(&mut self) {
        // An error means that it is off already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.cut_power();
    }
}

fn arguments(config: &GuestConfig, files: &Files) -> Result<Vec<OsString>> {
    // No devices and no settings beside those that are named here.
    let mut arguments: Vec<OsString> = vec!["-nodefaults".into(), "-no-user-config".into()];
    let mut add = |option: &str, value: OsString| arguments.extend([option.into(), value]);
    let machine = match config.machine {
        MachineType::Pc => "pc",
        MachineType::Q35 => "q35",
    };
    arguments_of_board(config, machine, files, &mut add);
    if config.firmware == Firmware::Uefi {
        add("-drive", format!("if=pflash,format=raw,unit=0,readonly=on,file={OVMF_CODE}").into());
        add("-drive", drive("if=pflash,format=raw,unit=1,file=", &files.firmware_variables()));
    }
    for (index, disk) in config.disks.iter().enumerate() {
        let id = format!("disk{index}");
        // What the guest has flushed must be in the file when QEMU is killed; that holds for every cache mode but
        // `unsafe`.
        let mut options = format!("if=none,id={id},format=raw,cache=writeback,discard=unmap");
        if let Some((_, speed)) = config.throttles.iter().find(|(disk, _)| *disk == index) {
            options.push_str(&format!(",throttling.bps-total={speed}"));
        }
        let fault = config.faults.iter().find(|(disk, _)| *disk == index);
        let place = match fault {
            Some((_, fault)) => format!("file.driver=blkdebug,{},file.image.filename=", fault.options()),
            None => "file=".to_owned(),
        };
        add("-drive", drive(&format!("{options},{place}"), &files.disk(index)));
        for mut device in disk.kind.qemu_devices(&id, config.disk_ordinal(index)?) {
            if config.boots_itself && index == 0 && device.contains(&format!("drive={id}")) {
                device.push_str(",bootindex=0");
            }
            add("-device", device.into());
        }
    }
    if config.boot_loader.is_some() {
        add("-drive", drive("if=none,id=boot-disk,format=raw,cache=writeback,file=", &files.boot_disk()));
        add("-device", "virtio-blk-pci,drive=boot-disk,bootindex=0".into());
    }
    add("-chardev", "stdio,id=console,signal=off".into());
    add("-serial", "chardev:console".into());
    add("-chardev", drive("socket,id=channel,server=on,wait=off,path=", &files.channel()));
    add("-serial", "chardev:channel".into());
    if config.can_be_dumped {
        // Linux hands its VMCOREINFO to this device (CONFIG_FW_CFG_SYSFS), and QEMU adds it to a dump.
        add("-device", "vmcoreinfo".into());
    }
    add("-chardev", drive("socket,id=monitor,server=on,wait=off,path=", &files.monitor()));
    add("-mon", "chardev=monitor,mode=control".into());
    add("-chardev", drive("socket,id=events,server=on,wait=off,path=", &files.events()));
    add("-mon", "chardev=events,mode=control".into());
    if config.watchdog {
        add("-device", "i6300esb".into());
        add("-action", "watchdog=reset".into());
    }
    if config.tpm {
        add("-chardev", drive("socket,id=tpm,path=", &files.tpm_control()));
        add("-tpmdev", "emulator,id=tpm-program,chardev=tpm".into());
        add("-device", "tpm-tis,tpmdev=tpm-program".into());
    }
    // A link that is up. The disk is what boots, so the card needs no program for that.
    add("-netdev", format!("{},id=link", config.link).into());
    add("-device", "virtio-net-pci,netdev=link,id=link-device,mac=52:54:00:12:34:56,romfile=".into());
    if config.boot_loader.is_none() && !config.boots_itself {
        add("-kernel", files.kernel.clone().into());
        add("-initrd", files.initramfs.clone().into());
        add("-append", command_line(config, files)?.into());
    }
    // One thread translates and executes in turn.
    let threads = if may_be_stale(config, files)? { "single" } else { "multi" };
    add("-accel", format!("tcg,thread={threads},tb-size=256").into());
    if config.memory_is_there || config.goes_on_from.is_some() {
        // It waits until then.
        arguments.push("-S".into());
    }
    if config.goes_on_from.is_some() {
        arguments.extend(["-incoming", "defer"].map(Into::into));
    }
    arguments.extend(config.qemu_arguments.iter().map(Into::into));
    Ok(arguments)
}

/// The command line of the kernel of A and C.
pub(crate) fn command_line(config: &GuestConfig, files: &Files) -> Result<String> {
    let screen = if config.screen { "console=tty0 " } else { "" };
    // On a busy host the emulated timer is late, and a kernel that checks it takes it for broken.
    let mut words = vec![format!("{screen}console=ttyS0,115200 no_timer_check")];
    if may_be_stale(config, files)? {
        words.push(UNSTABLE_TSC.to_owned());
    }
    if config.boot_loader.is_some() {
        words.push(format!("guest.boot={}{}", config.boot_disk_path(), grub::BOOT_PARTITION));
    }
    if config.boot_loader == Some(BootLoader::SystemdBoot) {
        words.push("guest.boot_kind=vfat".to_owned());
    }
    words.extend(config.kernel_arguments.iter().cloned());
    Ok(words.join(" "))
}

/// Whether one of the machine's kernels may be translated stale. B and D are other kernels where the machine has such,
/// and take the argument over.
fn may_be_stale(config: &GuestConfig, files: &Files) -> Result<bool> {
    Ok(config.second_kernel.is_some() || is_translated_stale(&files.kernel)?)
}

/// Whether a kernel, in booting, changes an instruction that its other CPUs are executing all the time, in a way that
/// QEMU may miss: before 8.1, what a CPU is translating when another one writes there stays in use ("accel/tcg: Always
/// lock pages before translation"). Linux 7.2 died of it in one boot of a dozen, and Debian's 6.12 once ("Oops: int3"
/// in `sched_clock_cpu`, with the breakpoint gone from memory), when they took the TSC for stable; Linux 7.3 with eight
/// CPUs also elsewhere (`set_next_task_fair`), and Debian's 6.1 hung so (`alg_test`). The test kernel of 6.12 was not
/// seen to.
fn is_translated_stale(kernel: &Path) -> Result<bool> {
    let release = bzimage_release::of_file(kernel)?;
    let major = release.split('.').next().and_then(|major| major.parse::<u32>().ok());
    let is_distributions = release.contains(['-', '+']);
    Ok(is_distributions || major.is_some_and(|major| major >= 7))
}

fn arguments_of_board(config: &GuestConfig, machine: &str, files: &Files, add: &mut impl FnMut(&str, OsString)) {
    if config.memory_is_a_file {
        let options = format!("memory-backend-file,id=memory,size={}M,share=on,mem-path=", config.memory.mib);
        add("-object", drive(&options, &files.memory()));
        add("-machine", format!("{machine},memory-backend=memory").into());
    } else if config.memory_is_there {
        let size = config.memory.mib;
        add("-object", format!("memory-backend-ram,id=memory,size={size}M,prealloc=on,prealloc-threads=2").into());
        add("-machine", format!("{machine},memory-backend=memory").into());
    } else {
        add("-machine", machine.into());
    }
    let model = &config.cpu_model;
    // Without these, the C library and the kernel do not copy with `rep movsb`, which is the quickest way on real CPUs
    // and goes byte by byte under emulation.
    let quick = if model.starts_with("max") { ",erms=off,fsrm=off" } else { "" };
    add("-cpu", format!("{model}{quick}").into());
    add("-smp", config.cpus.to_string().into());
    add("-m", format!("{}M", config.memory.mib).into());
    if config.screen {
        add("-vga", "std".into());
    }
    add("-display", "none".into());
    add("-device", "virtio-rng-pci".into());
}

/// `options` followed by a path, whose commas QEMU wants doubled.
fn drive(options: &str, path: &Path) -> OsString {
    let mut value = OsString::from(options);
    value.push(path.to_string_lossy().replace(',', ",,"));
    value
}
