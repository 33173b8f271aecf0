//! What the workload's processes say, and what two such reports together prove.

use serde::{Deserialize, Serialize};

use super::Role;
use super::hardware::{self, Hardware};

/// The answer of one process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof<T> {
    /// What does not hold any more, as text.
    pub fault: Option<String>,
    /// The process.
    pub pid: u32,
    /// When it was started, in clock ticks since the boot: with the pid it names one process and no other.
    pub started: u64,
    /// What it keeps.
    pub evidence: T,
}

/// The tmpfs file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Data {
    /// Its size.
    pub bytes: u64,
    /// XXH3-64 of its content as it is now, in hex.
    pub checksum: String,
}

/// The process that counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counter {
    /// Its number.
    pub count: u64,
}

/// The connection's end that writes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sender {
    /// The connection as this end sees it: own and peer's address.
    pub connection: [String; 2],
    /// Bytes written to it.
    pub sent: u64,
    /// Bytes of those that the receiver has acknowledged with the right checksum.
    pub acknowledged: u64,
}

/// The connection's end that reads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receiver {
    /// The connection as this end sees it: own and peer's address.
    pub connection: [String; 2],
    /// Bytes read from it, each one compared.
    pub received: u64,
}

/// The anonymous mapping.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    /// Its size.
    pub bytes: u64,
    /// Where it is in the process.
    pub address: u64,
    /// What of it was in swap when the process was asked, in bytes.
    #[serde(default)]
    pub swapped: u64,
}

/// A process that works all the time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Churn {
    /// What it has done, each time with all that belongs to it.
    pub operations: u64,
    /// Those of them in which something was not as it must be.
    pub errors: u64,
}

/// One of those processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// Which one.
    pub role: Role,
    /// How far it is.
    pub proof: Proof<Churn>,
}

/// What `workload check` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Everything holds.
    pub ok: bool,
    /// The boot's own number, which a resume keeps and a boot changes.
    pub boot_id: String,
    /// The CPUs that are online, as the kernel lists them.
    pub online_cpus: String,
    /// The machine.
    #[serde(default)]
    pub hardware: Hardware,
    /// The tmpfs file.
    pub data: Proof<Data>,
    /// The process that counts.
    pub counter: Proof<Counter>,
    /// The connection's end that writes.
    pub sender: Proof<Sender>,
    /// The connection's end that reads.
    pub receiver: Proof<Receiver>,
    /// The anonymous mapping.
    pub mapping: Proof<Mapping>,
    /// Bytes that were written to the connection and not yet read from it.
    pub in_flight: u64,
    /// The processes that work all the time, if there are any.
    #[serde(default)]
    pub churn: Vec<Work>,
}

/// One thing that two reports prove or do not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// What had to hold.
    pub claim: &'static str,
    /// Whether it did.
    pub holds: bool,
    /// The numbers for it.
    pub detail: String,
}

impl Report {
    /// Everything that does not hold at this moment, one line each.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let faults = [
            ("data", &self.data.fault),
            ("counter", &self.counter.fault),
            ("sender", &self.sender.fault),
            ("receiver", &self.receiver.fault),
            ("mapping", &self.mapping.fault),
        ];
        let churn = self.churn.iter().map(|work| (work.role.name(), &work.proof.fault));
        let faults = faults.into_iter().chain(churn);
        let mut faults: Vec<String> =
            faults.filter_map(|(name, fault)| Some(format!("{name}: {}", fault.as_ref()?))).collect();
        if faults.is_empty() && self.in_flight == 0 {
            faults.push("stream: no bytes are in flight".to_owned());
        }
        faults
    }

    fn processes(&self) -> Vec<(u32, u64)> {
        let mut processes = vec![
            (self.data.pid, self.data.started),
            (self.counter.pid, self.counter.started),
            (self.sender.pid, self.sender.started),
            (self.receiver.pid, self.receiver.started),
            (self.mapping.pid, self.mapping.started),
        ];
        processes.extend(self.churn.iter().map(|work| (work.proof.pid, work.proof.started)));
        processes
    }

    /// The process of a role that works all the time.
    #[must_use]
    pub fn work(&self, role: Role) -> Option<&Proof<Churn>> {
        self.churn.iter().find(|work| work.role == role).map(|work| &work.proof)
    }

    /// Whether every process that works all the time has done something since `earlier`.
    #[must_use]
    pub fn worked_since(&self, earlier: &Report) -> bool {
        let operations = |report: &Report, role| report.work(role).map_or(0, |proof| proof.evidence.operations);
        earlier.churn.iter().all(|work| operations(self, work.role) > work.proof.evidence.operations)
    }

    /// How far the processes that work all the time are, in one line.
    #[must_use]
    pub fn churn_summary(&self) -> String {
        let one = |Work { role, proof }: &Work| {
            format!("{} {} operations, {} errors", role.name(), proof.evidence.operations, proof.evidence.errors)
        };
        self.churn.iter().map(one).collect::<Vec<_>>().join("; ")
    }

    /// What the processes that work all the time prove.
    fn churn_proofs_since<'a>(&'a self, before: &'a Report) -> impl Iterator<Item = Verdict> + 'a {
        before.churn.iter().map(|Work { role, proof: before }| {
            let claim = match role {
                Role::Files => "the files on disk went on",
                Role::Children => "the child processes went on",
                _ => "the memory that comes and goes went on",
            };
            let Some(after) = self.work(*role) else {
                return Verdict { claim, holds: false, detail: "nobody was asked".to_owned() };
            };
            let (churn, count_before) = (&after.evidence, before.evidence.operations);
            Verdict {
                claim,
                holds: after.fault.is_none() && churn.errors == 0 && churn.operations > count_before,
                detail: format!(
                    "{count_before} operations before, {} after, {} errors{}",
                    churn.operations,
                    churn.errors,
                    fault(&after.fault)
                ),
            }
        })
    }

    /// Whether the connection has delivered everything that was in flight at `before`.
    #[must_use]
    pub fn delivered_what_was_in_flight(&self, before: &Report) -> bool {
        self.receiver.evidence.received >= before.sender.evidence.sent
    }

    /// What this report proves with one that was taken earlier: that the same session went on.
    #[must_use]
    pub fn proofs_since(&self, before: &Report) -> Vec<Verdict> {
        let (data, count) = (&self.data.evidence, self.counter.evidence.count);
        let (sender, receiver) = (&self.sender.evidence, &self.receiver.evidence);
        let same_connection = sender.connection == before.sender.evidence.connection
            && receiver.connection == before.receiver.evidence.connection
            && sender.connection[0] == receiver.connection[1];
        let count_before = before.counter.evidence.count;
        let mut proofs = vec![
            Verdict {
                claim: "the same boot",
                holds: self.boot_id == before.boot_id,
                detail: format!("boot_id {}", changed(&before.boot_id, &self.boot_id)),
            },
            Verdict {
                claim: "every CPU is online",
                holds: self.online_cpus == before.online_cpus && !self.online_cpus.is_empty(),
                detail: format!("CPUs {}", changed(&before.online_cpus, &self.online_cpus)),
            },
            Verdict {
                claim: "the same processes",
                holds: self.processes() == before.processes() && self.processes().iter().all(|process| process.0 > 0),
                detail: format!("pids {}", changed(&pids(before), &pids(self))),
            },
            Verdict {
                claim: "the tmpfs file is intact",
                holds: self.data.fault.is_none() && data == &before.data.evidence && data.bytes > 0,
                detail: format!(
                    "{} bytes, XXH3 {}{}",
                    data.bytes,
                    changed(&before.data.evidence.checksum, &data.checksum),
                    fault(&self.data.fault)
                ),
            },
            Verdict {
                claim: "the counter went on",
                holds: self.counter.fault.is_none() && count > count_before && count_before > 0,
                detail: format!("{count_before} before, {count} after{}", fault(&self.counter.fault)),
            },
            Verdict {
                claim: "the TCP connection went on",
                holds: self.sender.fault.is_none()
                    && self.receiver.fault.is_none()
                    && same_connection
                    && before.in_flight > 0
                    && self.delivered_what_was_in_flight(before)
                    && sender.sent > before.sender.evidence.sent,
                detail: format!(
                    "{} bytes were in flight, {} received before, {} after{}{}",
                    before.in_flight,
                    before.receiver.evidence.received,
                    receiver.received,
                    fault(&self.sender.fault),
                    fault(&self.receiver.fault)
                ),
            },
            Verdict {
                claim: "the anonymous mapping is intact",
                holds: self.mapping.fault.is_none()
                    && self.mapping.evidence.bytes == before.mapping.evidence.bytes
                    && self.mapping.evidence.address == before.mapping.evidence.address
                    && self.mapping.evidence.bytes > 0,
                detail: format!(
                    "{} bytes at {:#x}{}",
                    self.mapping.evidence.bytes,
                    self.mapping.evidence.address,
                    fault(&self.mapping.fault)
                ),
            },
        ];
        proofs.extend(self.churn_proofs_since(before));
        proofs.extend(self.hardware.proofs_since(&before.hardware));
        proofs.extend(hardware::swap_proof(&before.hardware, &self.hardware, &self.mapping));
        proofs
    }
}

fn pids(report: &Report) -> String {
    report.processes().iter().map(|(pid, _)| pid.to_string()).collect::<Vec<_>>().join(" ")
}

/// One value, or two where it has changed.
pub(super) fn changed(before: &str, after: &str) -> String {
    if before == after { after.to_owned() } else { format!("{before} before, {after} after") }
}

fn fault(fault: &Option<String>) -> String {
    fault.as_ref().map_or_else(String::new, |fault| format!(": {fault}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proof<T>(pid: u32, evidence: T) -> Proof<T> {
        Proof { fault: None, pid, started: u64::from(pid) * 10, evidence }
    }

    fn report(count: u64) -> Report {
        let ends = ["127.0.0.1:4".to_owned(), "127.0.0.1:5".to_owned()];
        let turned = [ends[1].clone(), ends[0].clone()];
        Report {
            ok: true,
            boot_id: "b".to_owned(),
            online_cpus: "0-1".to_owned(),
            hardware: Hardware { clock_source: "tsc".to_owned(), ..Hardware::default() },
            data: proof(1, Data { bytes: 5, checksum: "c".to_owned() }),
            counter: proof(2, Counter { count }),
            sender: proof(3, Sender { connection: ends, sent: count * 100, acknowledged: count * 90 }),
            receiver: proof(4, Receiver { connection: turned, received: count * 100 - 50 }),
            mapping: proof(5, Mapping { bytes: 7, address: 4096, swapped: 0 }),
            in_flight: 50,
            churn: [Role::Files, Role::Memory]
                .into_iter()
                .zip(6..)
                .map(|(role, pid)| Work { role, proof: proof(pid, Churn { operations: count, errors: 0 }) })
                .collect(),
        }
    }

    /// The claims that do not hold after `change` was made to a later report.
    fn broken(change: impl Fn(&mut Report)) -> Vec<&'static str> {
        let mut after = report(20);
        change(&mut after);
        after.proofs_since(&report(10)).into_iter().filter(|verdict| !verdict.holds).map(|v| v.claim).collect()
    }

    #[test]
    fn a_session_that_went_on_proves_everything() {
        assert!(broken(|_| ()).is_empty());
        assert!(report(20).faults().is_empty());
        assert!(report(20).worked_since(&report(10)) && !report(20).worked_since(&report(20)));
    }

    #[test]
    fn each_loss_breaks_its_own_claim() {
        assert_eq!(broken(|after| after.boot_id = "x".to_owned()), ["the same boot"]);
        assert_eq!(broken(|after| after.online_cpus = "0".to_owned()), ["every CPU is online"]);
        let clock = "the clock source is the same";
        assert_eq!(broken(|after| after.hardware.clock_source = "hpet".to_owned()), [clock]);
        assert_eq!(broken(|after| after.mapping.evidence.address = 0), ["the anonymous mapping is intact"]);
        assert_eq!(broken(|after| after.counter.started += 1), ["the same processes"]);
        assert_eq!(broken(|after| after.mapping.pid = 77), ["the same processes"]);
        assert_eq!(broken(|after| after.data.evidence.checksum = "x".to_owned()), ["the tmpfs file is intact"]);
        assert_eq!(broken(|after| after.data.fault = Some("x".to_owned())), ["the tmpfs file is intact"]);
        assert_eq!(broken(|after| after.counter.evidence.count = 10), ["the counter went on"]);
        assert_eq!(broken(|after| after.receiver.evidence.received = 999), ["the TCP connection went on"]);
        assert_eq!(broken(|after| after.sender.evidence.sent = 1000), ["the TCP connection went on"]);
        assert_eq!(broken(|after| after.sender.evidence.connection[0].push('0')), ["the TCP connection went on"]);
        assert_eq!(broken(|after| after.mapping.fault = Some("x".to_owned())), ["the anonymous mapping is intact"]);
        let memory = "the memory that comes and goes went on";
        assert_eq!(broken(|after| after.churn[1].proof.evidence.operations = 10), [memory]);
        assert_eq!(broken(|after| after.churn[1].proof.evidence.errors = 1), [memory]);
        assert_eq!(broken(|after| after.churn[1].proof.fault = Some("x".to_owned())), [memory]);
        let gone = broken(|after| {
            after.churn.remove(0);
        });
        assert_eq!(gone, ["the same processes", "the files on disk went on"]);
    }

    #[test]
    fn a_connection_at_rest_is_a_fault() {
        assert_eq!(Report { in_flight: 0, ..report(1) }.faults(), ["stream: no bytes are in flight"]);
    }
}
