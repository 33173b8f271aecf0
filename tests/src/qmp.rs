//! QEMU's own command line, by the machine protocol (QMP): one JSON object a line, in either direction.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::console::Console;

/// How long QEMU may take to make its socket.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a command may take; a dump of memory is the longest.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(300);

/// What a line of the console begins with that says which request of a drive has failed on the host.
pub const FAILED_REQUEST: &str = "QEMU: ";

/// A connection to a running QEMU.
#[derive(Debug)]
pub struct Monitor {
    line: BufReader<UnixStream>,
}

impl Monitor {
    /// Connects to QEMU's socket and agrees on the protocol.
    ///
    /// # Errors
    /// Fails where nobody answers there.
    pub fn connect(path: &Path) -> Result<Monitor> {
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
                Err(error) => return Err(error).with_context(|| format!("{}: cannot be connected to", path.display())),
            }
        };
        stream.set_read_timeout(Some(COMMAND_TIMEOUT))?;
        let mut monitor = Monitor { line: BufReader::new(stream) };
        monitor.receive().context("QEMU's greeting")?;
        monitor.execute("qmp_capabilities", json!({}))?;
        Ok(monitor)
    }

    /// Has the console say which requests of the guest's drives fail on the host and why, which the guest is not told:
    /// from now on until QEMU ends, in a thread of its own.
    pub fn note_failed_requests(path: &Path, console: &Arc<Console>) {
        let (path, console) = (path.to_owned(), Arc::clone(console));
        std::thread::spawn(move || {
            let monitor = Monitor::connect(&path).and_then(|monitor| {
                monitor.line.get_ref().set_read_timeout(None)?;
                Ok(monitor)
            });
            // One that ends before it has been connected to has nothing to tell.
            let Ok(mut monitor) = monitor else { return };
            let mut last = String::new();
            while let Ok(event) = monitor.receive() {
                let Some(failed) = failed_request(&event) else { continue };
                // A drive that fails fails often.
                if failed != last {
                    console.note(&failed);
                    last = failed;
                }
            }
        });
    }

    /// Has a machine run that was started without.
    ///
    /// # Errors
    /// Fails with QEMU's message.
    pub fn run(&mut self) -> Result<()> {
        self.execute("cont", json!({})).map(|_| ())
    }

    /// Writes the guest's physical memory to `path` as an ELF core file. The machine stands still until it is done.
    ///
    /// # Errors
    /// Fails with QEMU's message.
    pub fn dump_memory(&mut self, path: &Path) -> Result<()> {
        let target = format!("file:{}", path.display());
        self.execute("dump-guest-memory", json!({ "paging": false, "protocol": target })).map(|_| ())
    }

    /// Sends a break on a serial port, which is the kernel's SysRq key there.
    ///
    /// # Errors
    /// Fails with QEMU's message.
    pub fn send_break(&mut self, chardev: &str) -> Result<()> {
        self.execute("chardev-send-break", json!({ "id": chardev })).map(|_| ())
    }

    /// Presses a key of the keyboard, by QEMU's name of it.
    ///
    /// # Errors
    /// Fails with QEMU's message.
    pub fn press_key(&mut self, key: &str) -> Result<()> {
        self.execute("send-key", json!({ "keys": [{ "type": "qcode", "data": key }] })).map(|_| ())
    }

    /// Plugs a device in: the properties of a `-device`.
    ///
    /// # Errors
    /// Fails with QEMU's message.
    pub fn plug(&mut self, device: Value) -> Result<()> {
        self.execute("device_add", device).map(|_| ())
    }

    /// Presses the power button.
    ///
    /// # Errors
    /// Fails with QEMU's message.
    pub fn press_power_button(&mut self) -> Result<()> {
        self.execute("system_powerdown", json!({})).map(|_| ())
    }

    /// Pulls a device out.
    ///
    /// # Errors
    /// Fails with QEMU's message.
    pub fn unplug(&mut self, device: &str) -> Result<()> {
        self.execute("device_del", json!({ "id": device })).map(|_| ())
    }

    /// Limits a drive to this many bytes written per second, or as many as it can where that is 0.
    ///
    /// # Errors
    /// Fails with QEMU's message.
    pub fn limit_writes(&mut self, drive: &str, bytes: u64) -> Result<()> {
        let none = 0;
        let limits = json!({
            "device": drive, "bps": none, "bps_rd": none, "bps_wr": bytes,
            "iops": none, "iops_rd": none, "iops_wr": none,
        });
        self.execute("block_set_io_throttle", limits).map(|_| ())
    }

    /// Has the balloon leave the guest this many bytes of memory.
    ///
    /// # Errors
    /// Fails with QEMU's message.
    pub fn leave_memory(&mut self, bytes: u64) -> Result<()> {
        self.execute("balloon", json!({ "value": bytes })).map(|_| ())
    }

    /// Runs a command to its end and returns what it gives back.
    fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        self.line.get_mut().write_all(line.as_bytes()).with_context(|| format!("{command}: QEMU does not take it"))?;
        loop {
            let mut answer = self.receive().with_context(|| format!("{command}: QEMU's answer"))?;
            if let Some(error) = answer.get("error") {
                bail!("{command}: QEMU answers {error}");
            }
            // Anything else is an event.
            if let Some(result) = answer.get_mut("return") {
                return Ok(result.take());
            }
        }
    }

    fn receive(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.line.read_line(&mut line)? == 0 {
            bail!("QEMU has gone");
        }
        serde_json::from_str(&line).with_context(|| format!("{line:?} is no JSON"))
    }
}

/// How an event that tells of a failed request of a drive is put on the console.
fn failed_request(event: &Value) -> Option<String> {
    let data = event.get("data").filter(|_| event["event"] == "BLOCK_IO_ERROR")?;
    let word = |name: &str| data[name].as_str().unwrap_or("?").to_owned();
    let (drive, operation, reason, action) = (word("device"), word("operation"), word("reason"), word("action"));
    Some(format!("{FAILED_REQUEST}{drive}: {operation}: {reason} ({action})"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::net::UnixListener;

    /// A QEMU that greets and then gives these answers, whatever it is asked; it returns what it was asked.
    fn qemu(path: &Path, answers: Vec<&'static str>) -> std::thread::JoinHandle<Vec<Value>> {
        let listener = UnixListener::bind(path).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            stream.write_all(b"{\"QMP\": {\"version\": {}}}\n").unwrap();
            let mut asked = Vec::new();
            for answer in answers {
                asked.push(serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap());
                stream.write_all(answer.as_bytes()).unwrap();
            }
            asked
        })
    }

    #[test]
    fn failed_requests_are_told_once_each() {
        let directory = tempfile::tempdir().unwrap();
        let (path, log) = (directory.path().join("qmp.sock"), directory.path().join("log"));
        let failed = |reason: &str| {
            format!(
                "{{\"event\": \"BLOCK_IO_ERROR\", \"data\": {{\"device\": \"disk0\", \"operation\": \"write\", \
                 \"reason\": \"{reason}\", \"action\": \"report\"}}}}\n"
            )
        };
        let (full, broken) = (failed("No space left on device"), failed("Input/output error"));
        let answer = format!("{{\"return\": {{}}}}\n{{\"event\": \"RESET\"}}\n{full}{full}{broken}");
        let server = qemu(&path, vec![answer.leak()]);
        let console = Console::create(&log).unwrap();
        Monitor::note_failed_requests(&path, &console);
        let deadline = Instant::now() + Duration::from_secs(20);
        while console.beginning_with(FAILED_REQUEST).len() < 2 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        let told =
            ["QEMU: disk0: write: No space left on device (report)", "QEMU: disk0: write: Input/output error (report)"];
        assert_eq!(console.beginning_with(FAILED_REQUEST), told);
        server.join().unwrap();
    }

    #[test]
    fn events_are_passed_over_and_errors_are_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("qmp.sock");
        let server = qemu(
            &path,
            vec![
                "{\"return\": {}}\n",
                "{\"event\": \"STOP\"}\n{\"event\": \"RESUME\"}\n{\"return\": {}}\n",
                "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no room\"}}\n",
            ],
        );
        let mut monitor = Monitor::connect(&path).unwrap();
        monitor.dump_memory(Path::new("/a")).unwrap();
        let error = monitor.dump_memory(Path::new("/b")).unwrap_err().to_string();
        assert!(error.contains("no room"), "{error}");
        assert!(monitor.dump_memory(Path::new("/c")).is_err(), "QEMU has gone by now");
        let asked = server.join().unwrap();
        assert_eq!(asked[0]["execute"], "qmp_capabilities");
        assert_eq!(asked[1]["arguments"], json!({ "paging": false, "protocol": "file:/a" }));
    }
}
