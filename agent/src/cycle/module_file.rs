//! The file of Dormouse's kernel module: whether the running kernel will take it, as far as that can be seen without
//! loading it.

use std::path::Path;

use dormouse_linux::kmod;

use crate::cycle::jump::NoModule;
use crate::handoff::places::MODULE;

/// The end of a module that is signed (Linux 6.12, include/linux/module_signature.h, `MODULE_SIG_STRING`).
const SIGNED: &[u8] = b"~Module signature appended~\n";
/// What precedes, in a module, the release that it was built for (scripts/mod/modpost.c and `VERMAGIC_STRING`).
const RELEASE: &[u8] = b"vermagic=";

/// Why the kernel of this release will not take its module, if that is certain.
pub(crate) fn fault(release: &str) -> Option<NoModule> {
    let name = MODULE.to_owned();
    let found = kmod::resolve(&Path::new("/lib/modules").join(release), &[name]).ok()?;
    let enforced = std::fs::read_to_string("/sys/module/module/parameters/sig_enforce");
    judge(&found.last()?.bytes, release, enforced.is_ok_and(|text| text.trim() == "Y"))
}

fn judge(module: &[u8], release: &str, must_be_signed: bool) -> Option<NoModule> {
    if let Some(other) = built_for(module)
        && other != release
    {
        return Some(NoModule::OtherKernel(other));
    }
    (must_be_signed && !module.ends_with(SIGNED)).then_some(NoModule::Unsigned)
}

/// The release of the kernel that a module was built for.
fn built_for(module: &[u8]) -> Option<String> {
    let at = module.windows(RELEASE.len()).position(|window| window == RELEASE)?;
    let value = module.get(at + RELEASE.len()..)?;
    let release = value.split(|byte| matches!(byte, b' ' | 0)).next()?;
    String::from_utf8(release.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_of_another_kernel_or_without_a_signature_is_known() {
        let release = "6.1.0-57-amd64";
        let module =
            b"\x7fELF license=GPL\0vermagic=6.1.0-57-amd64 SMP preempt mod_unload modversions \0name=dormouse\0";
        let signed = [module, SIGNED].concat();
        assert_eq!(judge(module, release, false), None);
        assert_eq!(judge(module, release, true), Some(NoModule::Unsigned));
        assert_eq!(judge(&signed, release, true), None);
        let other = Some(NoModule::OtherKernel(release.to_owned()));
        assert_eq!(judge(&signed, "6.1.0-58-amd64", true), other);
        // What does not say is left to the kernel.
        assert_eq!(judge(b"\x7fELF", release, false), None);
    }
}
