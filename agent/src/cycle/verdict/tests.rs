//! Every combination of what can be known, against a table of rules; and the rows of it that matter most, written out.

#![allow(clippy::unwrap_used)]

use dormouse_image::{SessionRecord, Uuid};

use super::*;

const OWN: Uuid = Uuid([7; 16]);
const OTHER: Uuid = Uuid([8; 16]);
/// What `dormouse resume` reported.
const LAST: &str = "not resuming";

/// All that there is to know of one case; [`judge`] hands it out as it is asked for.
#[derive(Debug, Clone)]
struct Case {
    moment: Moment,
    commit: Commit,
    policy: ResumePolicy,
    header: Result<Header, HeaderFault>,
    machine: Result<(), Misfit>,
    written: Written,
    is_comparable: bool,
}

/// A session that waits and fits, in an initramfs.
fn fitting() -> Case {
    let session = SessionRecord { boot_id: OTHER, ..SessionRecord::default() };
    Case {
        moment: Moment::Boot(Switches::Resume),
        commit: Commit { state: State::Complete, ..Commit::empty(Uuid::default()) },
        policy: ResumePolicy {
            enabled: true,
            mismatch: Unfit::Discard,
            unsure: Unsure::Refuse,
            direct: false,
            require: false,
        },
        header: Ok(Header { session, entry: 0x1000 }),
        machine: Ok(()),
        written: Written::No,
        is_comparable: true,
    }
}

/// The verdict on a case, and the facts that were looked at for it.
fn judge(case: &Case) -> (Verdict, Vec<Fact>) {
    let mut known = Known {
        moment: case.moment.clone(),
        commit: &case.commit,
        policy: &case.policy,
        header: None,
        machine: None,
        written: None,
        is_comparable: None,
    };
    let mut looked_at = Vec::new();
    loop {
        let fact = match verdict(&known) {
            Answer::Verdict(verdict) => return (verdict, looked_at),
            Answer::Look(fact) => fact,
        };
        assert!(!looked_at.contains(&fact), "{fact:?} is asked for twice: {case:?}");
        looked_at.push(fact);
        match fact {
            Fact::Header => known.header = Some(case.header.clone()),
            Fact::Machine => known.machine = Some(case.machine.clone()),
            Fact::Filesystems => known.written = Some(case.written.clone()),
            Fact::Comparable => known.is_comparable = Some(case.is_comparable),
        }
    }
}

/// A verdict in short.
fn short(verdict: &Verdict) -> (&'static str, Option<Fate>) {
    match verdict {
        Verdict::Nothing => ("nothing", None),
        Verdict::Later => ("later", None),
        Verdict::Resume => ("resume", None),
        Verdict::Refuse { reason, image } => (reason.id(), Some(*image)),
    }
}

fn mismatches() -> [Mismatch; 9] {
    let (saved, here) = (String::new, String::new);
    [
        Mismatch::Identity { saved: OWN, here: OTHER },
        Mismatch::Memory { start: 0, end: 1 },
        Mismatch::Firmware { what: "", start: 0, end: 1, here: here() },
        Mismatch::Tables { why: String::new() },
        Mismatch::Cpu { saved: saved(), here: here() },
        Mismatch::Microcode { saved: 2, here: 1 },
        Mismatch::Features { missing: String::new() },
        Mismatch::Paging { saved: 4, here: 5 },
        Mismatch::Cpus { saved: 2, here: 1 },
    ]
}

fn moments() -> Vec<Moment> {
    let missed = |resume: Option<&str>| Moment::Missed { boot_id: OWN.to_string(), resume: resume.map(str::to_owned) };
    vec![
        Moment::Boot(Switches::Resume),
        Moment::Boot(Switches::Off),
        Moment::Locked(Switches::Resume),
        Moment::Locked(Switches::Off),
        missed(None),
        missed(Some(LAST)),
        Moment::Ambiguous("two".into()),
    ]
}

/// The product of all that can be known.
fn cases() -> Vec<Case> {
    let header = |boot_id| Header { session: SessionRecord { boot_id, ..SessionRecord::default() }, entry: 0x1000 };
    let headers = [
        Ok(header(OTHER)),
        Ok(header(OWN)),
        Err(HeaderFault::Damaged("bad".into())),
        Err(HeaderFault::Unreadable("EIO".into())),
        Err(HeaderFault::NoKey("none".into())),
        Err(HeaderFault::Forged("another".into())),
        Err(HeaderFault::Replayed("old".into())),
        Err(HeaderFault::NotSealed),
    ];
    let mut machines: Vec<_> = mismatches().into_iter().map(|mismatch| Err(Misfit::Differs(mismatch))).collect();
    machines.extend([Ok(()), Err(Misfit::Unknown("?".into()))]);
    let mut cases = vec![fitting()];
    let mut multiply = |vary: &dyn Fn(&Case) -> Vec<Case>| cases = cases.iter().flat_map(vary).collect();
    multiply(&|case| moments().into_iter().map(|moment| Case { moment, ..case.clone() }).collect());
    multiply(&|case| {
        let commit =
            |state, attempts, kept| Commit { state, attempts, kept, reason: "why".into(), ..case.commit.clone() };
        // Both counts at once: neither changes what the other does.
        let counts = [(0, 0), (1, 1), (2, KEPT), (3, KEPT + 1), (0, KEPT)];
        let all = State::ALL.into_iter().flat_map(|state| counts.map(|(attempts, kept)| commit(state, attempts, kept)));
        all.map(|commit| Case { commit, ..case.clone() }).collect()
    });
    multiply(&|case| {
        let policies = Unfit::ALL.into_iter().flat_map(|mismatch| {
            let unsure = Unsure::ALL.into_iter();
            unsure.flat_map(move |unsure| {
                [true, false].map(|enabled| ResumePolicy { enabled, mismatch, unsure, direct: false, require: false })
            })
        });
        policies.map(|policy| Case { policy, ..case.clone() }).collect()
    });
    multiply(&|case| headers.iter().map(|header| Case { header: header.clone(), ..case.clone() }).collect());
    multiply(&|case| machines.iter().map(|machine| Case { machine: machine.clone(), ..case.clone() }).collect());
    let written = [Written::No, Written::Perhaps("ntfs".into()), Written::Since("ext4".into())];
    multiply(&|case| written.clone().map(|written| Case { written, ..case.clone() }).into());
    multiply(&|case| [true, false].map(|is_comparable| Case { is_comparable, ..case.clone() }).into());
    cases
}

/// What a rule says of the image.
#[derive(Debug, Clone, Copy)]
enum Outcome {
    NotRefused,
    Discard,
    /// Kept where the next boot can compare.
    Comparable,
    /// Kept where the policy says so and the next boot can compare.
    ByPolicy,
    /// The same; and by default for as many boots as are counted.
    Counted,
    /// The same; and by default where the boot's initramfs has counted it.
    WasCounted,
    /// As [`Outcome::ByPolicy`], [`Outcome::Counted`], [`Outcome::WasCounted`] and [`Outcome::Comparable`], of an image
    /// that is not opened: kept where none was saved that could not be compared.
    UnreadByPolicy,
    UnreadCounted,
    UnreadWasCounted,
    Unread,
}

/// When a rule applies, what it is called, and what becomes of the image.
type Rule = (fn(&Case) -> bool, &'static str, Outcome);

fn is_boot(case: &Case) -> bool {
    matches!(case.moment, Moment::Boot(_) | Moment::Locked(_))
}

fn is_missed(case: &Case) -> bool {
    matches!(case.moment, Moment::Missed { .. })
}

fn is_no_key(case: &Case) -> bool {
    matches!(case.header, Err(HeaderFault::NoKey(_)))
}

fn is_own(case: &Case) -> bool {
    case.header.as_ref().is_ok_and(|header| header.session.boot_id == OWN)
}

fn differs(case: &Case, differs: fn(&Mismatch) -> bool) -> bool {
    matches!(&case.machine, Err(Misfit::Differs(mismatch)) if differs(mismatch))
}

/// The first that applies decides.
const RULES: [Rule; 39] = [
    // At boot, by the image's state alone.
    (|case| is_boot(case) && case.commit.state == State::Empty, "nothing", Outcome::NotRefused),
    (|case| is_boot(case) && case.commit.state == State::Consumed, "nothing", Outcome::NotRefused),
    (|case| is_boot(case) && case.commit.state == State::Discarded, "nothing", Outcome::NotRefused),
    (|case| is_boot(case) && case.commit.state == State::Snapshot, "nothing", Outcome::NotRefused),
    (|case| is_boot(case) && case.commit.state == State::Saving, "save-unfinished", Outcome::Discard),
    (
        |case| is_boot(case) && case.commit.state == State::Failed && case.commit.attempts == 0,
        "save-failed",
        Outcome::Discard,
    ),
    (|case| is_boot(case) && case.commit.state == State::Failed, "restore-failed", Outcome::Discard),
    // By what the user and the policy want.
    (
        |case| matches!(case.moment, Moment::Boot(Switches::Off) | Moment::Locked(Switches::Off)),
        "boot-argument",
        Outcome::Discard,
    ),
    (|case| is_boot(case) && !case.policy.enabled, "policy-disabled", Outcome::Discard),
    (|case| is_boot(case) && case.commit.attempts >= 2, "too-many-attempts", Outcome::Discard),
    (|case| matches!(case.moment, Moment::Locked(_)), "later", Outcome::NotRefused),
    // By what does not fit.
    (|case| is_boot(case) && matches!(case.header, Err(HeaderFault::Damaged(_))), "header-damaged", Outcome::Discard),
    (|case| is_boot(case) && is_no_key(case), "image-no-key", Outcome::UnreadCounted),
    (|case| is_boot(case) && matches!(case.header, Err(HeaderFault::Forged(_))), "image-forged", Outcome::Discard),
    (|case| is_boot(case) && matches!(case.header, Err(HeaderFault::Replayed(_))), "image-replayed", Outcome::Discard),
    (|case| is_boot(case) && case.header == Err(HeaderFault::NotSealed), "image-not-sealed", Outcome::Discard),
    (|case| is_boot(case) && case.header.is_err(), "header-unreadable", Outcome::Discard),
    (
        |case| is_boot(case) && differs(case, |it| matches!(it, Mismatch::Identity { .. })),
        "machine-identity",
        Outcome::ByPolicy,
    ),
    (
        |case| is_boot(case) && differs(case, |it| matches!(it, Mismatch::Memory { .. })),
        "machine-memory",
        Outcome::Counted,
    ),
    (|case| is_boot(case) && differs(case, |it| it.id() == "machine-firmware"), "machine-firmware", Outcome::Counted),
    (|case| is_boot(case) && differs(case, |it| matches!(it, Mismatch::Cpu { .. })), "machine-cpu", Outcome::ByPolicy),
    (|case| is_boot(case) && differs(case, |it| it.id() == "machine-microcode"), "machine-microcode", Outcome::Counted),
    (
        |case| is_boot(case) && differs(case, |it| matches!(it, Mismatch::Features { .. })),
        "machine-features",
        Outcome::ByPolicy,
    ),
    (
        |case| is_boot(case) && differs(case, |it| matches!(it, Mismatch::Paging { .. })),
        "machine-paging",
        Outcome::ByPolicy,
    ),
    (
        |case| is_boot(case) && differs(case, |it| matches!(it, Mismatch::Cpus { .. })),
        "machine-cpus",
        Outcome::ByPolicy,
    ),
    (|case| is_boot(case) && case.machine.is_err(), "machine-unknown", Outcome::ByPolicy),
    (|case| is_boot(case) && matches!(case.written, Written::Since(_)), "filesystem-written", Outcome::ByPolicy),
    (
        |case| is_boot(case) && matches!(case.written, Written::Perhaps(_)) && case.policy.unsure == Unsure::Refuse,
        "filesystem-unsure",
        Outcome::ByPolicy,
    ),
    (is_boot, "resume", Outcome::NotRefused),
    // After the boot, and where the name is ambiguous.
    (|case| !case.commit.state.is_waiting(), "nothing", Outcome::NotRefused),
    (|case| is_missed(case) && is_own(case), "session-goes-on", Outcome::Discard),
    (
        |case| matches!(case.moment, Moment::Missed { resume: Some(_), .. }) && is_no_key(case),
        "boot-went-on",
        Outcome::UnreadWasCounted,
    ),
    (|case| is_missed(case) && is_no_key(case), "boot-did-not-ask", Outcome::UnreadByPolicy),
    (
        |case| matches!(case.moment, Moment::Missed { resume: Some(_), .. }) && case.header.is_err(),
        "boot-went-on",
        Outcome::Discard,
    ),
    (|case| matches!(case.moment, Moment::Missed { resume: Some(_), .. }), "boot-went-on", Outcome::WasCounted),
    (|case| is_missed(case) && case.header.is_err(), "boot-did-not-ask", Outcome::Discard),
    (is_missed, "boot-did-not-ask", Outcome::ByPolicy),
    (is_no_key, "ambiguous-devices", Outcome::Unread),
    (|case| case.header.is_ok(), "ambiguous-devices", Outcome::Comparable),
];

fn expected(case: &Case) -> (&'static str, Option<Fate>) {
    let rule = RULES.into_iter().find(|(applies, ..)| applies(case));
    let (_, id, outcome) = rule.unwrap_or((|_| true, "ambiguous-devices", Outcome::Discard));
    let keeps = |keeps| if keeps { Fate::Keep } else { Fate::Discard };
    let fate = match outcome {
        Outcome::NotRefused => None,
        Outcome::Discard => Some(Fate::Discard),
        Outcome::Comparable => Some(keeps(case.is_comparable)),
        Outcome::Unread => Some(keeps(case.policy.unsure == Unsure::Refuse)),
        _ => {
            let by_count = match outcome {
                Outcome::Counted | Outcome::UnreadCounted => case.commit.kept < 3,
                Outcome::WasCounted | Outcome::UnreadWasCounted => case.commit.kept > 0,
                _ => false,
            };
            let is_unread =
                matches!(outcome, Outcome::UnreadByPolicy | Outcome::UnreadCounted | Outcome::UnreadWasCounted);
            let is_certain = if is_unread { case.policy.unsure == Unsure::Refuse } else { case.is_comparable };
            let by_policy = match case.policy.mismatch {
                Unfit::Retry => by_count,
                Unfit::Discard => false,
                Unfit::Keep => true,
            };
            Some(keeps(by_policy && is_certain))
        }
    };
    (id, fate)
}

#[test]
fn every_combination_follows_the_rules() {
    let cases = cases();
    assert_eq!(cases.len(), 7 * 8 * 5 * 12 * 8 * 11 * 3 * 2);
    let mut used = [false; RULES.len()];
    for case in &cases {
        assert_eq!(short(&judge(case).0), expected(case), "{case:?}");
        if let Some(at) = RULES.iter().position(|(applies, ..)| applies(case)) {
            used[at] = true;
        }
    }
    assert!(used.iter().all(|used| *used), "rules that never apply: {used:?}");
}

#[test]
fn invariants_of_every_verdict() {
    for case in cases() {
        let (verdict, looked_at) = judge(&case);
        match &verdict {
            Verdict::Resume => {
                assert!(case.commit.state.is_waiting() && case.commit.attempts < ATTEMPTS && case.policy.enabled);
                assert!(case.header.is_ok() && case.machine.is_ok(), "{case:?}");
                let may_be_written =
                    matches!(case.written, Written::Perhaps(_)) && case.policy.unsure == Unsure::Resume;
                assert!(case.written == Written::No || may_be_written, "{case:?}");
                assert_eq!(looked_at, [Fact::Header, Fact::Machine, Fact::Filesystems]);
            }
            Verdict::Refuse { image: Fate::Keep, .. } if is_no_key(&case) => {
                assert!(case.policy.unsure == Unsure::Refuse, "{case:?}");
                assert!(matches!(case.moment, Moment::Ambiguous(_)) || case.policy.mismatch != Unfit::Discard);
                assert_eq!(looked_at, [Fact::Header]);
            }
            Verdict::Refuse { image: Fate::Keep, .. } => {
                assert!(case.is_comparable && case.header.is_ok(), "{case:?}");
                let is_ambiguous = matches!(case.moment, Moment::Ambiguous(_));
                let is_counted = case.policy.mismatch == Unfit::Retry && case.commit.kept <= 4;
                assert!(is_ambiguous || is_counted || case.policy.mismatch == Unfit::Keep, "{case:?}");
                assert_eq!(looked_at.last(), Some(&Fact::Comparable));
            }
            Verdict::Refuse { reason, image: Fate::Discard } => {
                assert!(!reason.to_string().is_empty() && case.commit.state.may_become(State::Discarded), "{case:?}");
            }
            Verdict::Later => {
                assert!(case.commit.state.is_waiting() && matches!(case.moment, Moment::Locked(Switches::Resume)));
                assert_eq!(looked_at, [], "nothing can be read without the key: {case:?}");
            }
            // What is not asked of an image that does not wait.
            Verdict::Nothing => assert_eq!(looked_at, [], "{case:?}"),
        }
    }
}

#[test]
fn looks_only_at_facts_that_count() {
    let looked_at = |change: fn(&mut Case)| {
        let mut case = fitting();
        change(&mut case);
        judge(&case).1
    };
    assert_eq!(looked_at(|case| case.moment = Moment::Boot(Switches::Off)), []);
    assert_eq!(looked_at(|case| case.policy.enabled = false), []);
    assert_eq!(looked_at(|case| case.commit.state = State::Saving), []);
    assert_eq!(looked_at(|case| case.header = Err(HeaderFault::Damaged(String::new()))), [Fact::Header]);
    // The disks of the session are waited for only on the machine that it fits.
    assert_eq!(looked_at(|case| case.machine = Err(Misfit::Unknown("?".into()))), [Fact::Header, Fact::Machine]);
}

/// What users meet.
#[test]
fn the_rows_that_matter_most() {
    type Change = fn(&mut Case);
    let keep: Change = |case| case.policy.mismatch = Unfit::Keep;
    let retry: Change = |case| case.policy.mismatch = Unfit::Retry;
    let smaller: Change = |case| case.machine = Err(Misfit::Differs(Mismatch::Memory { start: 0, end: 1 }));
    let written: Change = |case| case.written = Written::Since("ext4".into());
    let unsure: Change = |case| case.written = Written::Perhaps("ntfs".into());
    let missed: Change = |case| case.moment = Moment::Missed { boot_id: OWN.to_string(), resume: None };
    let own: Change = |case| {
        if let Ok(header) = &mut case.header {
            header.session.boot_id = OWN;
        }
    };
    let (kept, discarded) = (Some(Fate::Keep), Some(Fate::Discard));
    let no_key: Change = |case| case.header = Err(HeaderFault::NoKey("three passphrases".into()));
    let rows: [(&[Change], &str, Option<Fate>); 31] = [
        (&[], "resume", None),
        (&[|case| case.commit.state = State::Restoring, |case| case.commit.attempts = 1], "resume", None),
        (&[|case| case.commit.attempts = 2, keep], "too-many-attempts", discarded),
        (&[|case| case.commit.state = State::Consumed], "nothing", None),
        (&[|case| case.commit.state = State::Snapshot], "nothing", None),
        (&[|case| case.commit.state = State::Saving, keep], "save-unfinished", discarded),
        (&[|case| case.moment = Moment::Boot(Switches::Off), keep], "boot-argument", discarded),
        (&[|case| case.policy.enabled = false, keep], "policy-disabled", discarded),
        (&[|case| case.header = Err(HeaderFault::Damaged("bad".into())), keep], "header-damaged", discarded),
        (&[|case| case.header = Err(HeaderFault::Forged("bad".into())), keep], "image-forged", discarded),
        (&[|case| case.header = Err(HeaderFault::Replayed("old".into())), keep], "image-replayed", discarded),
        (&[|case| case.header = Err(HeaderFault::NotSealed), keep], "image-not-sealed", discarded),
        (&[no_key], "image-no-key", discarded),
        (&[no_key, retry], "image-no-key", kept),
        (&[no_key, retry, |case| case.commit.kept = KEPT], "image-no-key", discarded),
        (&[no_key, keep, |case| case.policy.unsure = Unsure::Resume], "image-no-key", discarded),
        (&[smaller], "machine-memory", discarded),
        (&[smaller, retry], "machine-memory", kept),
        (&[smaller, retry, |case| case.commit.kept = KEPT], "machine-memory", discarded),
        (&[written, retry], "filesystem-written", discarded),
        (&[missed, retry, |case| case.commit.kept = 1], "boot-did-not-ask", discarded),
        (&[smaller, keep], "machine-memory", kept),
        (&[smaller, keep, |case| case.is_comparable = false], "machine-memory", discarded),
        (&[written, keep], "filesystem-written", kept),
        (&[unsure], "filesystem-unsure", discarded),
        (&[unsure, |case| case.policy.unsure = Unsure::Resume], "resume", None),
        (&[missed], "boot-did-not-ask", discarded),
        (&[missed, keep], "boot-did-not-ask", kept),
        (&[missed, keep, own], "session-goes-on", discarded),
        (&[|case| case.moment = Moment::Ambiguous("two".into())], "ambiguous-devices", kept),
        (
            &[|case| case.moment = Moment::Ambiguous("two".into()), |case| case.is_comparable = false],
            "ambiguous-devices",
            discarded,
        ),
    ];
    for (changes, id, fate) in rows {
        let mut case = fitting();
        changes.iter().for_each(|change| change(&mut case));
        assert_eq!(short(&judge(&case).0), (id, fate), "{case:?}");
    }
}
