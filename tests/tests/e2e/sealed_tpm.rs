//! An image that the machine's TPM opens for as long as the machine boots as it did, and a passphrase beside it for
//! when it does not. The firmware and the kernel's EFI stub measure what they start.

use anyhow::{Result, ensure};
use dormouse_image::State;
use dormouse_tests::cycle::{self, unobserved};
use dormouse_tests::image;
use dormouse_tests::machine::{Firmware, GuestConfig, MachineType};

use crate::sealed_keys::{PROMPT, RIGHT, power_on_and_answer, three_wrong_answers};
use crate::{demand_proofs, demand_refusal, save, session_with};

/// What the TPM answers in another boot.
const REFUSED: &str = "this boot is not as the one for which it was sealed";
/// It changes nothing but what is measured.
const ARGUMENT: &str = "another-boot";
/// The registers of a seal, by default.
const REGISTERS: &str = "cd /sys/class/tpm/tpm0/pcr-sha256 && cat 0 2 4 7 8 9";

/// Nothing is asked where the machine boots as it did when the key was made. With another command line the TPM refuses,
/// and the passphrase is asked for: three wrong ones leave the image for the next boot, the right one resumes. Where
/// the command line is the old one again, the TPM opens what is saved next.
pub(crate) fn the_tpm_and_a_passphrase_beside_it() -> Result<()> {
    let mut config = GuestConfig::new(2, "512M".parse()?);
    (config.machine, config.firmware, config.tpm) = (MachineType::Q35, Firmware::Uefi, true);
    let mut guest = session_with(config, "key = \"tpm2\"\n")?;
    demand_refusal(&mut guest, "key-missing")?;
    let added = guest.succeed("dormouse key add tpm2")?;
    ensure!(added.contains("key 1 (tpm2)") && added.contains("add a passphrase too"), "{added}");
    let added = guest.succeed(&format!("echo {RIGHT} | dormouse key add passphrase --from - --memory 8M"))?;
    ensure!(added.contains("key 2 (passphrase)") && !added.contains("warning"), "{added}");
    // As each ordinary boot does.
    guest.succeed("dormouse prepare && dmesg | grep 'key 1 of the image is sealed to this boot by the TPM'")?;
    let registers = guest.succeed(REGISTERS)?;

    let saved = save(&mut guest)?;
    let mut lines = Vec::new();
    let went_on = cycle::resume(&mut guest, saved, &mut |line| lines.push(line.text.clone()))?;
    demand_proofs(&guest, &went_on)?;
    ensure!(!lines.iter().any(|line| line.contains(PROMPT) || line.contains(REFUSED)), "{lines:?}");

    let saved = save(&mut guest)?;
    guest.add_kernel_argument(ARGUMENT);
    let (saved, lines) = three_wrong_answers(&mut guest, saved)?;
    let is_kept = |line: &String| line.contains(REFUSED) && line.ends_with("the image is kept");
    ensure!(lines.iter().any(is_kept), "{lines:?}");
    ensure!(guest.succeed(REGISTERS)? != registers, "the other command line is not measured");
    guest.cut_power();
    ensure!(image::commit(&guest.disk_file(0))?.state == State::Complete, "the image is not kept");

    let (saved, begin, cursor) = power_on_and_answer(&mut guest, saved, &["wrong", RIGHT])?;
    let went_on = cycle::follow_resume(&mut guest, saved, begin, cursor, &mut unobserved)?;
    demand_proofs(&guest, &went_on)?;

    let saved = save(&mut guest)?;
    guest.set_kernel_arguments(Vec::new());
    let went_on = cycle::resume(&mut guest, saved, &mut unobserved)?;
    demand_proofs(&guest, &went_on)
}
