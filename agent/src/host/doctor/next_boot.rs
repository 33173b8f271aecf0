//! What shows that the next boot will resume, and what it would find in clear: facts and checks.

use std::path::Path;
use std::time::Duration;

use dormouse_linux::error_chain::in_full;

use crate::cycle::evidence::{self, NoEvidence, Now};
use crate::cycle::last::Last;
use crate::cycle::refusal::Refusal;
use crate::cycle::{boots, in_clear};
use crate::host::doctor::Check;
use crate::host::doctor::facts::Facts;
use crate::host::doctor::judge::question;
use crate::policy::Policy;
use crate::store::Access;
use crate::target;

/// What is known of the next boot.
#[derive(Debug, Clone, Default)]
pub(super) struct NextBoot {
    /// What is missing in what this boot has found; `None` where it has not looked, or the image cannot be looked at.
    pub(super) evidence: Option<Result<(), NoEvidence>>,
    /// The kernels whose initramfs will not do; `None` where no hooks are in use.
    pub(super) kernels: Option<Vec<NoEvidence>>,
    /// Encrypted volumes that are open.
    pub(super) open_volumes: Vec<String>,
}

impl NextBoot {
    pub(super) fn read(policy: Option<&Policy>) -> NextBoot {
        let last = Last::resume_of_this_boot();
        let now = policy.and_then(|policy| {
            let target = target::find(&policy.image.device, Duration::ZERO).ok()?;
            let image = target.open(Access::Read).ok()?;
            Some(Now::read(policy, &image, last.as_ref()))
        });
        let evidence = last.as_ref().zip(now).map(|(last, now)| evidence::of_boot(last, &now));
        let kernels = policy.zip(boots::read(Path::new("/")));
        NextBoot {
            evidence,
            kernels: kernels.map(|(policy, kernels)| boots::judge(&kernels, &boots::digest(policy))),
            open_volumes: in_clear::open_volumes(policy),
        }
    }
}

/// What `dormouse hibernate` demands of what this boot has found.
pub(super) fn evidence(facts: &Facts) -> Check {
    let question = question(
        "boot-evidence",
        "Only a boot that has found this image shows that the next one will; otherwise the session is lost.",
    );
    match &facts.next_boot.evidence {
        Some(Ok(())) => question.ok("this boot has found the image"),
        Some(Err(missing)) => question.refused(missing),
        None if facts.policy.is_err() => question.needs_policy(),
        None => question.unknown(
            "this boot has not looked for the image, or the image cannot be looked at",
            "mend image-device and resume-hook first",
        ),
    }
}

/// What it demands of every kernel that may boot next.
pub(super) fn kernels(facts: &Facts) -> Check {
    let question = question(
        "next-boot",
        "Whichever kernel boots next must look for the image before it mounts the session's filesystems.",
    );
    let Some(faults) = &facts.next_boot.kernels else {
        return question.ok("no hook has recorded what it put into the boot's initramfs: what this boot found counts");
    };
    let found: Vec<String> = faults.iter().map(|fault| in_full(fault)).collect();
    match (faults.first(), facts.tool) {
        (None, _) => question.ok("the initramfs of every kernel looks for the image"),
        (Some(_), Some(tool)) => question
            .failed(found.join("; "), format!("{}, or remove a kernel that is not used", tool.rebuild().join(" "))),
        (Some(fault), None) => question.failed(found.join("; "), fault.remedy().unwrap_or_default()),
    }
}

/// What it warns of.
pub(super) fn in_clear(facts: &Facts) -> Check {
    let question = question("image-in-clear", "Whoever can read the image's disk can read all memory of the session.");
    match in_clear::warning(&facts.next_boot.open_volumes) {
        None => question.ok("the image is sealed, or no encrypted volume is open"),
        Some(warning) => question.warning(
            warning,
            "seal the image (`dormouse key add`), put it on a disk that nobody else gets at, or close the volumes \
             before",
        ),
    }
}
