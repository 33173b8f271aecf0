//! A guest machine through all of its power cycles.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use tempfile::TempDir;

use crate::artifacts::{Artifacts, KernelName};
use crate::channel::Output;
use crate::channel::client::{Client, Request};
use crate::console::{Console, Cursor, Line, Next};
use crate::debian;
use crate::grub;
use crate::machine::{BootLoader, DiskKind, Firmware, GuestConfig};
use crate::qemu::{self, Files, Qemu};
use crate::qmp::{FAILED_REQUEST, Monitor, SavedState};
use crate::systemd_boot;
use crate::userland::{GuestPolicy, Userland};

/// How the line begins that A writes when it is up after an ordinary boot; its boot_id follows.
pub const READY_MARK: &str = "A: ready boot_id=";

/// An ordinary boot is up after this long even under emulation with everything else busy.
pub const BOOT_TIMEOUT: Duration = Duration::from_secs(120);
/// For commands that take no more than a moment.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(120);

/// How often a machine that is waited for is looked at, when nothing else sets the pace.
const POLL: Duration = Duration::from_millis(20);

/// A directory in which every guest's serial log is kept; otherwise those of guests whose test panics are, among the
/// temporary files.
pub const LOGS_VARIABLE: &str = "DORMOUSE_LOGS";

/// The end of the serial log that an error carries.
const TAIL_LINES: usize = 60;

/// How it ended with a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The command has ended.
    Answered(Output),
    /// The machine is off.
    PoweredOff,
}

/// A machine with its disks, on or off.
#[derive(Debug)]
pub struct Guest {
    config: GuestConfig,
    /// What it boots, unless that is a system on its disks.
    userland: Userland,
    files: Files,
    console: Arc<Console>,
    channel: Client,
    qemu: Option<Qemu>,
    /// From where on the console shows a boot loader that takes what is sent to any serial port for keys.
    keys_from: Option<Cursor>,
    /// How often the power was switched on.
    power_ons: u32,
    powered_on_at: Instant,
    // Last, so that QEMU is gone before its files are.
    _directory: TempDir,
}

impl Guest {
    /// A machine that is off and whose disks are empty.
    ///
    /// # Errors
    /// Fails where its files cannot be made.
    pub fn new(config: GuestConfig, userland: &Userland, artifacts: &Artifacts) -> Result<Self> {
        let directory =
            tempfile::Builder::new().prefix("dormouse-guest.").tempdir().context("the guest's directory")?;
        let files = Files {
            directory: directory.path().to_owned(),
            kernel: artifacts.kernel(config.kernel)?.bzimage(),
            initramfs: directory.path().join("initramfs.cpio"),
        };
        files.create(&config)?;
        if let Some(loader) = config.boot_loader {
            // As distributions have it.
            let (boot, kernel) = (directory.path().join("boot"), artifacts.kernel(config.kernel)?);
            std::fs::create_dir(&boot).context("a directory for /boot")?;
            std::fs::copy(kernel.config(), boot.join(format!("config-{}", kernel.release()))).context("/boot")?;
            match loader {
                BootLoader::Grub => grub::make(&files.boot_disk(), &boot, directory.path())?,
                BootLoader::SystemdBoot => systemd_boot::make(&files.boot_disk(), &boot)?,
            }
        }
        let guest = Guest::off(config, userland.clone(), files, directory)?;
        guest.build_userland(artifacts)?;
        Ok(guest)
    }

    /// A machine that is off, for a system that is installed on its disks: `install` puts it there. Its kernel and its
    /// initramfs are to be put where [`Guest::boot_files`] points.
    ///
    /// # Errors
    /// Fails where its files cannot be made.
    pub fn installed(config: GuestConfig, install: impl FnOnce(&Files) -> Result<()>) -> Result<Self> {
        let directory =
            tempfile::Builder::new().prefix("dormouse-guest.").tempdir().context("the guest's directory")?;
        let (kernel, initramfs) = debian::boot_files(directory.path());
        let files = Files { directory: directory.path().to_owned(), kernel, initramfs };
        files.create(&config)?;
        install(&files)?;
        Guest::off(config, Userland::default(), files, directory)
    }

    fn off(config: GuestConfig, userland: Userland, files: Files, directory: TempDir) -> Result<Self> {
        let console = Console::create(&files.serial_log())?;
        let channel = Client::new(&files.channel());
        Ok(Guest {
            config,
            userland,
            files,
            console,
            channel,
            qemu: None,
            keys_from: None,
            power_ons: 0,
            powered_on_at: Instant::now(),
            _directory: directory,
        })
    }

    /// The files that the next power-on takes its kernel and its initramfs from.
    #[must_use]
    pub fn boot_files(&self) -> (PathBuf, PathBuf) {
        (self.files.kernel.clone(), self.files.initramfs.clone())
    }

    /// A machine that is off, whose policy puts the image on its first disk.
    ///
    /// # Errors
    /// As [`Guest::new`].
    pub fn standard(config: GuestConfig, artifacts: &Artifacts) -> Result<Self> {
        Guest::with_policy(config, "", artifacts)
    }

    /// A machine that is off, whose policy puts the image on its first disk and goes on with `policy`.
    ///
    /// # Errors
    /// As [`Guest::new`].
    pub fn with_policy(config: GuestConfig, policy: &str, artifacts: &Artifacts) -> Result<Self> {
        let device = config.disk_path(0)?;
        // On a busy host, the emulated port needs longer than the usual ten seconds to be asked what it has.
        let wait = if config.disks[0].kind == DiskKind::Usb { "wait = 60\n" } else { "" };
        let policy = GuestPolicy::standard(format!("[image]\ndevice = \"{device}\"\n{wait}{policy}"));
        Guest::new(config, &Userland { policies: vec![policy], ..Userland::default() }, artifacts)
    }

    /// Gives the machine another userland from the next power-on on.
    ///
    /// # Errors
    /// As [`Guest::new`].
    pub fn set_userland(&mut self, userland: &Userland, artifacts: &Artifacts) -> Result<()> {
        self.userland = userland.clone();
        self.build_userland(artifacts)
    }

    /// Builds the initramfs, and puts it with the kernel where what boots the machine finds it.
    fn build_userland(&self, artifacts: &Artifacts) -> Result<()> {
        let Guest { config, files, .. } = self;
        self.userland.for_machine(config).build(artifacts, &files.directory, &files.initramfs)?;
        if config.boot_loader.is_some() {
            grub::put_boot_files(&files.boot_disk(), &files.kernel, &files.initramfs)?;
        }
        Ok(())
    }

    /// Gives the machine another kernel to boot from the next power-on on, as an update does. B and D keep theirs.
    ///
    /// # Errors
    /// As [`Guest::new`].
    pub fn boot_with(&mut self, kernel: KernelName, artifacts: &Artifacts) -> Result<()> {
        self.config.second_kernel.get_or_insert(self.config.kernel);
        self.config.kernel = kernel;
        self.files.kernel = artifacts.kernel(kernel)?.bzimage();
        self.build_userland(artifacts)
    }

    /// What the machine is made of.
    #[must_use]
    pub fn config(&self) -> &GuestConfig {
        &self.config
    }

    /// Adds an argument to the kernel command line of the boots from the next power-on on.
    pub fn add_kernel_argument(&mut self, argument: &str) {
        self.config.kernel_arguments.push(argument.to_owned());
    }

    /// Replaces the arguments that [`GuestConfig`] and [`Guest::add_kernel_argument`] gave the kernel, from the next
    /// power-on on.
    pub fn set_kernel_arguments(&mut self, arguments: Vec<String>) {
        self.config.kernel_arguments = arguments;
    }

    /// The host's file of disk `index`. Its content is the guest's only while the machine is off.
    #[must_use]
    pub fn disk_file(&self, index: usize) -> PathBuf {
        self.files.disk(index)
    }

    /// The host's file of the disk with the boot loader, where the machine has one.
    #[must_use]
    pub fn boot_disk_file(&self) -> PathBuf {
        self.files.boot_disk()
    }

    /// The host's file of the guest's memory, where the machine has one.
    #[must_use]
    pub fn memory_file(&self) -> PathBuf {
        self.files.memory()
    }

    /// Puts the file of the memory of a machine that is off where the next power-on does not touch it, and returns its
    /// path.
    ///
    /// # Errors
    /// Fails where there is none.
    pub fn set_memory_aside(&self) -> Result<PathBuf> {
        let (from, to) = (self.memory_file(), self.files.directory.join("memory.aside"));
        std::fs::rename(&from, &to).with_context(|| format!("{}: cannot be renamed", from.display()))?;
        Ok(to)
    }

    /// Stops the machine between two instructions, until it is thawed or its power is cut.
    ///
    /// # Errors
    /// Fails where it is off.
    pub fn freeze(&self) -> Result<()> {
        self.qemu.as_ref().context("the machine is off")?.freeze()
    }

    /// Lets a machine go on that was stopped.
    ///
    /// # Errors
    /// Fails where it is off.
    pub fn thaw(&self) -> Result<()> {
        self.qemu.as_ref().context("the machine is off")?.thaw()
    }

    /// Changes what the machine is made of from the next power-on on. Disks must stay what they are.
    pub fn change(&mut self, change: impl FnOnce(&mut GuestConfig)) {
        change(&mut self.config);
    }

    /// Sends keys from the terminal on the serial console.
    ///
    /// # Errors
    /// Fails where the machine is off.
    pub fn send_keys(&mut self, keys: &[u8]) -> Result<()> {
        self.qemu.as_mut().context("the machine is off")?.send_keys(keys)
    }

    /// Waits for a prompt on the serial console, from `cursor` on, and answers it.
    ///
    /// # Errors
    /// Fails where it does not come within `timeout`, and where the machine goes off before.
    pub fn answer_prompt(&mut self, cursor: &mut Cursor, prompt: &str, answer: &str, timeout: Duration) -> Result<()> {
        if !self.console.wait_for_prompt(cursor, prompt, Instant::now() + timeout) {
            return Err(self.not_in_time(&format!("the prompt {prompt:?}"), timeout));
        }
        self.console.remark(&format!("answered {prompt:?}"));
        self.send_keys(format!("{answer}\n").as_bytes())
    }

    /// Sends a command of the kernel's SysRq key from the terminal on the serial console.
    ///
    /// # Errors
    /// Fails where the machine is off.
    pub fn send_sysrq(&mut self, key: u8) -> Result<()> {
        self.monitor()?.send_break("console")?;
        self.send_keys(&[key])
    }

    /// QEMU's own command line. No other client may be connected to it.
    ///
    /// # Errors
    /// Fails where the machine is off.
    pub fn monitor(&self) -> Result<Monitor> {
        self.qemu.as_ref().context("the machine is off")?;
        Monitor::connect(&self.files.monitor())
    }

    /// Writes the memory to `path` as an ELF core file, between two instructions of the guest's. The machine must be
    /// one that can be dumped.
    ///
    /// # Errors
    /// Fails where it is off, and where QEMU cannot write the file.
    pub fn dump_memory(&self, path: &Path) -> Result<()> {
        self.monitor()?.dump_memory(path).map_err(|error| self.explain(error))
    }

    /// The console, through all power cycles.
    #[must_use]
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// Switches the machine on and returns at once. Returns the place in the console where this boot begins.
    ///
    /// # Errors
    /// Fails where the machine is on, or QEMU does not start.
    pub fn power_on(&mut self) -> Result<Cursor> {
        if self.qemu.is_some() {
            bail!("the machine is on already");
        }
        if let Some(loader) = self.config.boot_loader {
            let line = qemu::command_line(&self.config, &self.files)?;
            let put = match loader {
                BootLoader::Grub => grub::put_arguments,
                BootLoader::SystemdBoot => systemd_boot::put_arguments,
            };
            put(&self.files.boot_disk(), &line, self.config.menu_seconds)?;
        }
        let begin = self.console.end();
        self.power_ons += 1;
        self.console.note(&format!("======== power on, number {}", self.power_ons));
        self.channel.disconnect();
        self.powered_on_at = Instant::now();
        self.qemu = Some(Qemu::start(&self.config, &self.files, &self.console)?);
        if self.config.memory_is_there || self.config.goes_on_from.is_some() {
            let mut monitor = Monitor::connect(&self.files.monitor()).map_err(|error| self.explain(error))?;
            self.powered_on_at = Instant::now();
            if let Some(state) = &self.config.goes_on_from {
                monitor.load_state(state).map_err(|error| self.explain(error))?;
            }
            monitor.run()?;
        }
        let connected = self.channel.connect(Duration::from_secs(20));
        connected.map_err(|error| self.explain(error))?;
        self.keys_from = (self.config.boot_loader == Some(BootLoader::SystemdBoot)).then_some(begin);
        self.channel.hold(self.keys_from.is_some());
        Ok(begin)
    }

    /// Has QEMU write the machine's whole state to `path`, and cuts the power.
    ///
    /// # Errors
    /// Fails where it is off, and with QEMU's message.
    pub fn save_state(&mut self, path: &Path) -> Result<SavedState> {
        let saved = self.monitor()?.save_state(path).map_err(|error| self.explain(error))?;
        self.cut_power();
        Ok(saved)
    }

    /// Has the machine go on from the state in `path`. As [`Guest::power_on`].
    ///
    /// # Errors
    /// As [`Guest::power_on`], and with QEMU's message.
    pub fn go_on_from(&mut self, path: &Path) -> Result<Cursor> {
        self.config.goes_on_from = Some(path.to_owned());
        let result = self.power_on();
        self.config.goes_on_from = None;
        result
    }

    /// When the machine was powered on last; when it was made, where it has not been.
    #[must_use]
    pub fn powered_on_at(&self) -> Instant {
        self.powered_on_at
    }

    /// Lets the channel send once a kernel is there.
    fn release_channel(&mut self) {
        let Some(from) = &mut self.keys_from else { return };
        if self.console.since(from).iter().any(|line| line.text.contains("Linux version ")) {
            self.keys_from = None;
            self.channel.hold(false);
        }
    }

    /// Forgets what was asked of a system that has been restarted without going off.
    ///
    /// # Errors
    /// Fails where QEMU does not take the connection.
    pub fn forget_requests(&mut self) -> Result<()> {
        self.channel.disconnect();
        let connected = self.channel.connect(Duration::from_secs(20));
        connected.map_err(|error| self.explain(error))
    }

    /// Boots a machine with UEFI that has never been on, and switches it off again: the firmware of a new machine makes
    /// its variables in its first boot, and lays out memory otherwise from the next one on.
    ///
    /// # Errors
    /// Fails where it does not come up.
    pub fn settle_firmware(&mut self) -> Result<()> {
        if self.config.firmware == Firmware::Uefi && self.power_ons == 0 {
            let mut cursor = self.power_on()?;
            self.wait_for(&mut cursor, READY_MARK, BOOT_TIMEOUT)?;
            self.cut_power();
        }
        Ok(())
    }

    /// Switches the machine on and waits until an ordinary boot is up.
    ///
    /// # Errors
    /// Fails where it does not come up.
    pub fn boot(&mut self) -> Result<()> {
        self.settle_firmware()?;
        let mut cursor = self.power_on()?;
        self.wait_for(&mut cursor, READY_MARK, BOOT_TIMEOUT)?;
        Ok(())
    }

    /// Waits until the machine has powered itself off. The disk files hold the guest's data then.
    ///
    /// # Errors
    /// Fails where it does not within `timeout`, or its kernel panics.
    pub fn wait_for_power_off(&mut self, timeout: Duration) -> Result<()> {
        let mut cursor = self.console.end();
        let deadline = Instant::now() + timeout;
        loop {
            self.look(&mut cursor, &mut |_| ())?;
            if self.is_off()? {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(self.explain(anyhow!("the machine is still on after {timeout:?}")));
            }
            std::thread::sleep(POLL);
        }
    }

    /// Cuts the power. Nothing happens where it is off.
    pub fn cut_power(&mut self) {
        self.qemu = None;
    }

    /// Waits for a console line that contains `text`, from `cursor` on, and sets `cursor` after it.
    ///
    /// # Errors
    /// Fails where it does not come within `timeout`, where the machine goes off or its kernel panics before.
    pub fn wait_for(&self, cursor: &mut Cursor, text: &str, timeout: Duration) -> Result<Line> {
        self.follow(cursor, timeout, &format!("{text:?}"), |line| line.text.contains(text).then(|| line.clone()))
    }

    /// Gives each console line from `cursor` on to `found` until that returns something, which it returns. `what` names
    /// it for the error message.
    ///
    /// # Errors
    /// As [`Guest::wait_for`].
    pub fn follow<T>(
        &self,
        cursor: &mut Cursor,
        timeout: Duration,
        what: &str,
        mut found: impl FnMut(&Line) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + timeout;
        let found = self.follow_until(cursor, deadline, what, &mut found)?;
        found.ok_or_else(|| self.not_in_time(what, timeout))
    }

    /// As [`Guest::follow`], for what a command brings about: where the command ends without it, the error carries its
    /// answer.
    ///
    /// # Errors
    /// As [`Guest::follow`], and where the command is answered before.
    pub fn follow_during<T>(
        &mut self,
        request: Request,
        cursor: &mut Cursor,
        timeout: Duration,
        what: &str,
        mut found: impl FnMut(&Line) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + timeout;
        while Instant::now() < deadline {
            self.release_channel();
            if let Some(result) = self.follow_until(cursor, Instant::now() + POLL, what, &mut found)? {
                return Ok(result);
            }
            if let Some(output) = self.channel.poll(request).map_err(|error| self.explain(error))? {
                return Err(self.explain(anyhow!("the command ended before {what} was on the console: {output:?}")));
            }
        }
        Err(self.not_in_time(what, timeout))
    }

    /// What `found` returns for a line from `cursor` on, or nothing where no such line comes until `deadline`.
    fn follow_until<T>(
        &self,
        cursor: &mut Cursor,
        deadline: Instant,
        what: &str,
        found: &mut impl FnMut(&Line) -> Option<T>,
    ) -> Result<Option<T>> {
        loop {
            match self.console.next(cursor, deadline) {
                Next::Line(line) => {
                    if let Some(result) = found(&line) {
                        return Ok(Some(result));
                    }
                    panic_line(&line).map_err(|error| self.explain(error))?;
                }
                Next::TimedOut => return Ok(None),
                Next::Closed => {
                    return Err(self.explain(anyhow!("the machine went off before {what} was on the console")));
                }
            }
        }
    }

    fn not_in_time(&self, what: &str, timeout: Duration) -> anyhow::Error {
        self.explain(anyhow!("{what} is not on the console after {timeout:?}"))
    }

    /// Runs a shell command in the guest to its end.
    ///
    /// # Errors
    /// Fails where no answer comes; a command that fails is an answer.
    pub fn run(&mut self, command: &str) -> Result<Output> {
        let request = self.send(command)?;
        self.answer(request, COMMAND_TIMEOUT)
    }

    /// Runs a shell command in the guest that must succeed, and returns its standard output.
    ///
    /// # Errors
    /// Fails where no answer comes or the command fails.
    pub fn succeed(&mut self, command: &str) -> Result<String> {
        self.succeed_within(command, COMMAND_TIMEOUT)
    }

    /// The same, for a command that may take up to `timeout`.
    ///
    /// # Errors
    /// As [`Guest::succeed`].
    pub fn succeed_within(&mut self, command: &str, timeout: Duration) -> Result<String> {
        let request = self.send(command)?;
        let output = self.answer(request, timeout)?;
        if output.status != 0 {
            let error = anyhow!("`{command}` failed in the guest with {}: {}", output.status, output.stderr.trim());
            return Err(self.explain(error));
        }
        Ok(output.stdout)
    }

    /// Sends a shell command to the guest and does not wait for its end. The answer can be had after a power cycle, if
    /// the session is resumed.
    ///
    /// # Errors
    /// Fails where the guest does not take it.
    pub fn send(&mut self, command: &str) -> Result<Request> {
        self.release_channel();
        self.console.remark(&format!("command: {command}"));
        self.channel.send(command, COMMAND_TIMEOUT).map_err(|error| self.explain(error))
    }

    /// Waits for the end of a command that was sent.
    ///
    /// # Errors
    /// As [`Guest::follow_command`], and where the machine goes off before.
    pub fn answer(&mut self, request: Request, timeout: Duration) -> Result<Output> {
        let mut cursor = self.console.end();
        match self.follow_command(request, &mut cursor, timeout, &mut |_| ())? {
            Ending::Answered(output) => Ok(output),
            Ending::PoweredOff => Err(self.explain(anyhow!("the machine went off before the answer came"))),
        }
    }

    /// Waits until a command that was sent is answered or the machine is off, and gives `on_line` each line of the
    /// console from `cursor` on.
    ///
    /// # Errors
    /// Fails where neither happens within `timeout`, where a kernel panics, or where another boot answers in the place
    /// of the one that was asked.
    pub fn follow_command(
        &mut self,
        request: Request,
        cursor: &mut Cursor,
        timeout: Duration,
        on_line: &mut dyn FnMut(&Line),
    ) -> Result<Ending> {
        let deadline = Instant::now() + timeout;
        loop {
            self.release_channel();
            let answer = self.channel.poll(request).map_err(|error| self.explain(error))?;
            self.look(cursor, on_line)?;
            if let Some(output) = answer {
                self.console.remark(&format!("status {}", output.status));
                return Ok(Ending::Answered(output));
            }
            if self.is_off()? {
                self.look(cursor, on_line)?;
                return Ok(Ending::PoweredOff);
            }
            if Instant::now() >= deadline {
                return Err(self.explain(anyhow!("no answer and no power-off after {timeout:?}")));
            }
        }
    }

    /// Gives `on_line` the lines so far from `cursor` on.
    fn look(&self, cursor: &mut Cursor, on_line: &mut dyn FnMut(&Line)) -> Result<()> {
        for line in self.console.since(cursor) {
            on_line(&line);
            panic_line(&line).map_err(|error| self.explain(error))?;
        }
        Ok(())
    }

    /// Whether the machine is off; if so, everything that it wrote is in the console and in the disk files.
    fn is_off(&mut self) -> Result<bool> {
        let Some(qemu) = &mut self.qemu else {
            return Ok(true);
        };
        let off = qemu.is_off();
        if !off.map_err(|error| self.explain(error))? {
            return Ok(false);
        }
        self.console.wait_for_end();
        self.console.remark("the power is off");
        self.qemu = None;
        Ok(true)
    }

    /// Adds the end of the serial log to an error.
    #[must_use]
    pub fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let tail = self.console.tail(TAIL_LINES);
        let mut error = format!("{error:#}");
        let failed = self.console.beginning_with(FAILED_REQUEST);
        if !failed.is_empty() {
            let free = nix::sys::statvfs::statvfs(&self.files.directory).map_or_else(
                |error| error.to_string(),
                |fs| format!("{} MiB", (fs.blocks_available() * fs.fragment_size()) >> 20),
            );
            let failed = failed.join("\n");
            error = format!("{error}\n--- requests that failed on the host, which has {free} left:\n{failed}");
        }
        anyhow!("{error}\n--- the end of the serial log:\n{tail}\n---")
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.cut_power();
        let directory = std::env::var_os(LOGS_VARIABLE).map(PathBuf::from);
        if directory.is_some() || std::thread::panicking() {
            keep_log(&self.files.serial_log(), &directory.unwrap_or_else(std::env::temp_dir));
        }
        // In every case, whatever it is about.
        if !std::thread::panicking() {
            let repeated = self.console.repeated_cause();
            assert!(repeated.is_none(), "a cause is printed twice: {repeated:?}");
        }
    }
}

/// A log that outlives the guest's directory.
fn keep_log(log: &Path, directory: &Path) {
    let mut kept = tempfile::Builder::new();
    let kept = kept.prefix("dormouse-serial.").suffix(".log").disable_cleanup(true).tempfile_in(directory);
    match kept.and_then(|kept| std::fs::copy(log, kept.path()).map(|_| kept)) {
        Ok(kept) => eprintln!("the whole serial log: {}", kept.path().display()),
        Err(error) => eprintln!("{}: the serial log cannot be kept: {error}", log.display()),
    }
}

fn panic_line(line: &Line) -> Result<()> {
    if line.text.contains("Kernel panic - not syncing") { bail!("a kernel panicked: {}", line.text) } else { Ok(()) }
}
