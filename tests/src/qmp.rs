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

/// A machine's state that QEMU has written.
#[derive(Debug, Clone, Copy)]
pub struct SavedState {
    /// Pages that are in it whole.
    pub pages: u64,
    /// Whether each has a place of its own.
    pub is_mapped: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    In,
    Out,
}

/// How QEMU is told of a file with a machine's state. Before 8.2 it knows none, but programs.
fn state_uri(path: &Path, direction: Direction, is_mapped: bool) -> String {
    let path = path.display();
    match (is_mapped, direction) {
        (true, _) => format!("file:{path}"),
        (false, Direction::In) => format!("exec:cat '{path}'"),
        (false, Direction::Out) => format!("exec:cat >'{path}'"),
    }
}

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

    /// Stops the machine and writes its whole state to the file `path`. Where QEMU can (9.0 and later), each page has a
    /// place of its own in it (`mapped-ram`) and several threads write; otherwise the state is a stream.
    ///
    /// # Errors
    /// Fails with QEMU's message.
    pub fn save_state(&mut self, path: &Path) -> Result<SavedState> {
        self.execute("stop", json!({}))?;
        let is_mapped = self.prepare_migration()?;
        self.execute("migrate", json!({ "uri": state_uri(path, Direction::Out, is_mapped) }))?;
        let state = self.wait_for_migration()?;
        let pages = state["ram"]["normal"].as_u64().context("QEMU does not say how many pages it wrote")?;
        Ok(SavedState { pages, is_mapped })
    }

    /// Reads a machine's state from the file `path`, into one that was started for that (`-incoming defer`).
    ///
    /// # Errors
    /// Fails with QEMU's message.
    pub fn load_state(&mut self, path: &Path) -> Result<()> {
        let is_mapped = self.prepare_migration()?;
        self.execute("migrate-incoming", json!({ "uri": state_uri(path, Direction::In, is_mapped) }))?;
        self.wait_for_migration().map(|_| ())
    }

    /// As quick as QEMU can; whether it can have each page at a place of its own.
    fn prepare_migration(&mut self) -> Result<bool> {
        let known = self.execute("query-migrate-capabilities", json!({}))?;
        let is_known = |name: &str| known.as_array().is_some_and(|all| all.iter().any(|one| one["capability"] == name));
        let is_mapped = is_known("mapped-ram");
        if is_mapped {
            let wanted = ["mapped-ram", "multifd"].map(|name| json!({ "capability": name, "state": true }));
            self.execute("migrate-set-capabilities", json!({ "capabilities": wanted }))?;
        }
        // It spares networks otherwise.
        self.execute("migrate-set-parameters", json!({ "max-bandwidth": 1_u64 << 40 }))?;
        Ok(is_mapped)
    }

    fn wait_for_migration(&mut self) -> Result<Value> {
        let deadline = Instant::now() + COMMAND_TIMEOUT;
        loop {
            let state = self.execute("query-migrate", json!({}))?;
            match state["status"].as_str() {
                Some("completed") => return Ok(state),
                Some("failed" | "cancelled") => bail!("QEMU's migration failed: {state}"),
                _ if Instant::now() >= deadline => bail!("QEMU's migration is not done: {state}"),
                _ => std::thread::sleep(Duration::from_millis(5)),
            }
        }
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
    fn a_state_is_written_in_the_way_that_this_qemu_has() {
        let none = "{\"return\": {}}\n";
        let done = "{\"return\": {\"status\": \"completed\", \"ram\": {\"normal\": 7}}}\n";
        let stream = "{\"return\": [{\"capability\": \"multifd\", \"state\": false}]}\n";
        let mapped = "{\"return\": [{\"capability\": \"mapped-ram\", \"state\": false}]}\n";
        for (known, uri) in [(stream, "exec:cat >'/state'"), (mapped, "file:/state")] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("qmp.sock");
            let is_mapped = known == mapped;
            let mut answers = vec![none, none, known, none, none];
            answers.extend(is_mapped.then_some(none));
            answers.push(done);
            let server = qemu(&path, answers);
            let saved = Monitor::connect(&path).unwrap().save_state(Path::new("/state")).unwrap();
            assert_eq!((saved.pages, saved.is_mapped), (7, is_mapped));
            let asked = server.join().unwrap();
            let migrate = asked.iter().find(|one| one["execute"] == "migrate").unwrap();
            assert_eq!(migrate["arguments"]["uri"], uri);
            assert_eq!(asked.iter().any(|one| one["execute"] == "migrate-set-capabilities"), is_mapped);
        }
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
