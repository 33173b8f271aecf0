//! A guest's TPM 2.0, in software (swtpm). What it keeps is kept while the machine is off; its registers begin anew at
//! each power-on.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::qemu::Files;

const PROGRAM: &str = "swtpm";
/// Making a TPM's first keys takes a second.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Of a socket that takes connections, in `/proc/net/unix` (include/uapi/linux/net.h, `__SO_ACCEPTCON`).
const LISTENS: &str = "00010000";

/// A TPM that is on. Dropping it switches it off.
#[derive(Debug)]
pub(crate) struct Tpm(Child);

impl Tpm {
    /// Switches it on. QEMU finds it at [`Files::tpm_control`].
    ///
    /// # Errors
    /// swtpm cannot be started, or ends.
    pub(crate) fn start(files: &Files) -> Result<Tpm> {
        let (state, control, log) = (files.tpm_state(), files.tpm_control(), files.tpm_log());
        std::fs::create_dir_all(&state).with_context(|| format!("{}: cannot be made", state.display()))?;
        let _ = std::fs::remove_file(&control);
        // As QEMU, it dies with the thread that started it.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", PROGRAM, "socket", "--tpm2"])
            .args(["--tpmstate", &format!("dir={}", state.display())])
            .args(["--ctrl", &format!("type=unixio,path={}", control.display())])
            .args(["--log", &format!("file={}", log.display())])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| {
                format!("setpriv (util-linux) and {PROGRAM} cannot be started; scripts/test installs it")
            })?;
        let mut tpm = Tpm(child);
        let explained = || format!("{PROGRAM}: {}", std::fs::read_to_string(&log).unwrap_or_default().trim());
        tpm.wait_for(&control).with_context(explained)?;
        Ok(tpm)
    }

    /// Waits until QEMU can connect. A connection of our own would be taken for QEMU's.
    fn wait_for(&mut self, control: &Path) -> Result<()> {
        let control = format!(" {}", control.display());
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let sockets = std::fs::read_to_string("/proc/net/unix").context("/proc/net/unix")?;
            if sockets.lines().any(|line| line.ends_with(&control) && line.contains(LISTENS)) {
                return Ok(());
            }
            if let Some(status) = self.0.try_wait().context("swtpm's state")? {
                bail!("it ended with {status}");
            }
            if Instant::now() >= deadline {
                bail!("it takes no connection after {TIMEOUT:?}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Tpm {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
