//! A secret that the machine's TPM gives back only to a machine that has booted as it did when the secret was sealed.
//!
//! The commands are those of TCG's "TPM 2.0 Library Specification", part 3, written as bytes: one `write(2)` for a
//! whole command, one `read(2)` for the whole answer (Linux 6.12, drivers/char/tpm/tpm-dev-common.c). The sealed object
//! hangs on the usual storage root key, which is made again each time, so that nothing is kept in the TPM. It has a
//! policy of the values of some registers (PCRs) and no password. What a discrete TPM sends is not encrypted on its
//! bus.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::Duration;

use thiserror::Error;
use zeroize::{Zeroize, Zeroizing};

/// The kernel's device that shares the TPM among its users.
pub const DEVICE: &str = "/dev/tpmrm0";

/// The registers that are part of a policy unless others are named: firmware (0), what it started (2), the boot loader
/// (4), Secure Boot (7), and what the boot loader has started: command line (8), kernel and initramfs (9).
pub const PCRS: u32 = 1 << 0 | 1 << 2 | 1 << 4 | 1 << 7 | 1 << 8 | 1 << 9;

/// The length of a secret, in bytes.
pub const SECRET: usize = 32;

/// The longest answer (TPM2_MAX_RESPONSE_SIZE of the specification's reference code).
const ANSWER_MAX: usize = 4096;
const HEADER: usize = 10;

const PLAIN: u16 = 0x8001;
const WITH_SESSIONS: u16 = 0x8002;

const CREATE_PRIMARY: u32 = 0x131;
const CREATE: u32 = 0x153;
const LOAD: u32 = 0x157;
const UNSEAL: u32 = 0x15e;
const FLUSH_CONTEXT: u32 = 0x165;
const START_AUTH_SESSION: u32 = 0x176;
const PCR_READ: u32 = 0x17e;
const POLICY_PCR: u32 = 0x17f;

/// The owner's hierarchy, no handle at all, and the session that stands for a password.
const OWNER: u32 = 0x4000_0001;
const NULL: u32 = 0x4000_0007;
const PASSWORD: u32 = 0x4000_0009;

const SHA256: u16 = 0x0b;
const KEYED_HASH: u16 = 0x08;
const ECC: u16 = 0x23;
const NO_SCHEME: u16 = 0x10;
const AES: u16 = 0x06;
const CFB: u16 = 0x43;
const P256: u16 = 3;
/// fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, decrypt.
const STORAGE: u32 = 0x0003_0472;
/// fixedTPM, fixedParent, noDA; without userWithAuth there is no way but the policy.
const SEALED: u32 = 0x0000_0412;
/// A policy session, and not a trial of one.
const POLICY: u8 = 1;

/// TPM_RC_POLICY_FAIL and TPM_RC_PCR_CHANGED, without the bits that say for which session.
const POLICY_FAIL: u32 = 0x09d;
const PCR_CHANGED: u32 = 0x128;
/// TPM_RC_YIELDED, TPM_RC_TESTING, TPM_RC_RETRY: once more, in a moment.
const AGAIN: [u32; 3] = [0x908, 0x90a, 0x922];
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);

/// A way to a TPM: a command goes, its answer comes.
pub trait Transport {
    /// Has the TPM carry out a command.
    ///
    /// # Errors
    /// It is not reached, or does not answer.
    fn exchange(&mut self, command: &[u8]) -> io::Result<Zeroizing<Vec<u8>>>;
}

/// Why a TPM does not do as it was asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TpmError {
    /// There is none, or it does not answer.
    #[error("the TPM ({DEVICE}) cannot be used")]
    Io(#[source] io::Error),
    /// The registers are not as they were.
    #[error("the TPM does not give its key: this boot is not as the one for which it was sealed")]
    Policy,
    /// Some registers are not kept.
    #[error("the TPM keeps no SHA-256 registers {0:#x}")]
    NoPcrs(u32),
    /// It refuses a command.
    #[error("the TPM refuses {command} with code {code:#x}")]
    Refused {
        /// The command's name.
        command: &'static str,
        /// The specification's code (part 2, TPM_RC).
        code: u32,
    },
    /// Its answer is not one.
    #[error("the TPM's answer to {0} cannot be read")]
    Answer(&'static str),
}

/// The TPM of this machine.
#[derive(Debug)]
pub struct Tpm(File);

impl Tpm {
    /// Opens it.
    ///
    /// # Errors
    /// [`TpmError::Io`].
    pub fn open() -> Result<Tpm, TpmError> {
        File::options().read(true).write(true).open(DEVICE).map(Tpm).map_err(TpmError::Io)
    }

    /// Whether there is one.
    #[must_use]
    pub fn exists() -> bool {
        Path::new(DEVICE).exists()
    }
}

impl Transport for Tpm {
    fn exchange(&mut self, command: &[u8]) -> io::Result<Zeroizing<Vec<u8>>> {
        self.0.write_all(command)?;
        let mut answer = Zeroizing::new(vec![0; ANSWER_MAX]);
        let len = self.0.read(&mut answer)?;
        answer.truncate(len);
        Ok(answer)
    }
}

/// Seals a secret to what the registers `pcrs` hold now. What comes back is for [`unseal`].
///
/// # Errors
/// [`TpmError`].
pub fn seal(tpm: &mut dyn Transport, secret: &[u8; SECRET], pcrs: u32) -> Result<Vec<u8>, TpmError> {
    let policy = policy(&pcr_values(tpm, pcrs)?, pcrs);
    let parent = Handle::primary(tpm)?;
    let blob = create(tpm, &parent, secret, &policy);
    parent.flush(tpm);
    blob
}

/// Has the TPM open what [`seal`] has made, which it does where the registers are as they were then.
///
/// # Errors
/// [`TpmError::Policy`] where they are not; otherwise what is wrong.
pub fn unseal(tpm: &mut dyn Transport, blob: &[u8], pcrs: u32) -> Result<Zeroizing<[u8; SECRET]>, TpmError> {
    let parent = Handle::primary(tpm)?;
    let object = load(tpm, &parent, blob);
    parent.flush(tpm);
    let object = object?;
    let secret = policy_session(tpm, pcrs).and_then(|session| {
        let secret = unseal_object(tpm, &object, &session);
        // A session that was used ends by itself, one that was not does not.
        if secret.is_err() {
            session.flush(tpm);
        }
        secret
    });
    object.flush(tpm);
    secret
}

/// Something that the TPM holds for us.
#[derive(Debug)]
struct Handle(u32);

impl Handle {
    /// The storage root key: the same each time (TCG's "TPM v2.0 Provisioning Guidance", 7.5.1, with ECC P-256).
    fn primary(tpm: &mut dyn Transport) -> Result<Handle, TpmError> {
        let mut public = Vec::new();
        public.extend(ECC.to_be_bytes());
        public.extend(SHA256.to_be_bytes());
        public.extend(STORAGE.to_be_bytes());
        public.extend(sized(&[]));
        for field in [AES, 128, CFB, NO_SCHEME, P256, NO_SCHEME] {
            public.extend(field.to_be_bytes());
        }
        public.extend([sized(&[]), sized(&[])].concat());
        let body = [
            &OWNER.to_be_bytes()[..],
            &authorisation(PASSWORD),
            // No password and nothing sensitive; no outside information; no registers of its creation.
            &sized(&[sized(&[]), sized(&[])].concat()),
            &sized(&public),
            &sized(&[]),
            &[0; 4],
        ]
        .concat();
        Handle::of(run(tpm, "CreatePrimary", CREATE_PRIMARY, WITH_SESSIONS, &body)?, "CreatePrimary")
    }

    /// The handle that an answer begins with.
    fn of(answer: Zeroizing<Vec<u8>>, command: &'static str) -> Result<Handle, TpmError> {
        Answer { bytes: &answer, command }.u32().map(|(handle, _)| Handle(handle))
    }

    /// Gives it back. What is left is gone at the latest when the device is closed.
    fn flush(self, tpm: &mut dyn Transport) {
        if let Err(error) = run(tpm, "FlushContext", FLUSH_CONTEXT, PLAIN, &self.0.to_be_bytes()) {
            log::debug!("{error}");
        }
    }
}

fn create(
    tpm: &mut dyn Transport,
    parent: &Handle,
    secret: &[u8; SECRET],
    policy: &[u8; 32],
) -> Result<Vec<u8>, TpmError> {
    let mut public = Vec::new();
    public.extend(KEYED_HASH.to_be_bytes());
    public.extend(SHA256.to_be_bytes());
    public.extend(SEALED.to_be_bytes());
    public.extend(sized(policy));
    public.extend(NO_SCHEME.to_be_bytes());
    public.extend(sized(&[]));
    let mut body = Zeroizing::new(Vec::with_capacity(256));
    body.extend(parent.0.to_be_bytes());
    body.extend(authorisation(PASSWORD));
    // The length of what is sensitive, no password, the secret.
    for field in [4 + SECRET, 0, SECRET] {
        body.extend(u16::try_from(field).unwrap_or(0).to_be_bytes());
    }
    body.extend(secret);
    body.extend(sized(&public));
    body.extend(sized(&[]));
    body.extend([0; 4]);
    let answer = run(tpm, "Create", CREATE, WITH_SESSIONS, &body)?;
    let answer = Answer { bytes: &answer, command: "Create" };
    let (_, all) = answer.u32()?;
    let (private, rest) = all.sized()?;
    let (public, _) = rest.sized()?;
    Ok([sized(private), sized(public)].concat())
}

fn load(tpm: &mut dyn Transport, parent: &Handle, blob: &[u8]) -> Result<Handle, TpmError> {
    let body = [&parent.0.to_be_bytes()[..], &authorisation(PASSWORD), blob].concat();
    Handle::of(run(tpm, "Load", LOAD, WITH_SESSIONS, &body)?, "Load")
}

/// A session that has shown the values of the registers.
fn policy_session(tpm: &mut dyn Transport, pcrs: u32) -> Result<Handle, TpmError> {
    let body = [
        &NULL.to_be_bytes()[..],
        &NULL.to_be_bytes(),
        // A nonce that means nothing: no HMAC is computed.
        &sized(&[0x55; 16]),
        &sized(&[]),
        &[POLICY],
        &NO_SCHEME.to_be_bytes(),
        &SHA256.to_be_bytes(),
    ]
    .concat();
    let session = Handle::of(run(tpm, "StartAuthSession", START_AUTH_SESSION, PLAIN, &body)?, "StartAuthSession")?;
    let body = [&session.0.to_be_bytes()[..], &sized(&[]), &selection(pcrs)].concat();
    match run(tpm, "PolicyPCR", POLICY_PCR, PLAIN, &body) {
        Ok(_) => Ok(session),
        Err(error) => {
            session.flush(tpm);
            Err(error)
        }
    }
}

fn unseal_object(
    tpm: &mut dyn Transport,
    object: &Handle,
    session: &Handle,
) -> Result<Zeroizing<[u8; SECRET]>, TpmError> {
    let body = [&object.0.to_be_bytes()[..], &authorisation(session.0)].concat();
    let answer = run(tpm, "Unseal", UNSEAL, WITH_SESSIONS, &body)?;
    let answer = Answer { bytes: &answer, command: "Unseal" };
    let (secret, _) = answer.u32()?.1.sized()?;
    let secret: [u8; SECRET] = secret.try_into().map_err(|_| TpmError::Answer("Unseal"))?;
    Ok(Zeroizing::new(secret))
}

/// What the registers hold, by ascending number. The TPM gives eight at a time.
fn pcr_values(tpm: &mut dyn Transport, pcrs: u32) -> Result<Vec<[u8; 32]>, TpmError> {
    const COMMAND: &str = "PCR_Read";
    let (mut left, mut values) = (pcrs, Vec::new());
    while left != 0 {
        let answer = run(tpm, COMMAND, PCR_READ, PLAIN, &selection(left))?;
        let (_counter, answer) = Answer { bytes: &answer, command: COMMAND }.u32()?;
        let (banks, answer) = answer.u32()?;
        let (given, answer) = match banks {
            1 => answer.selection()?,
            _ => return Err(TpmError::NoPcrs(left)),
        };
        let (count, mut answer) = answer.u32()?;
        if given == 0 || given & !left != 0 || given.count_ones() != count {
            return Err(TpmError::NoPcrs(left));
        }
        // Those that are read in one go are the lowest.
        if (left & !given).trailing_zeros() < 32 - given.leading_zeros() {
            return Err(TpmError::NoPcrs(left & !given));
        }
        for _ in 0..count {
            let (value, rest) = answer.sized()?;
            values.push(value.try_into().map_err(|_| TpmError::Answer(COMMAND))?);
            answer = rest;
        }
        left &= !given;
    }
    Ok(values)
}

/// The digest of a policy that demands these values (part 3, TPM2_PolicyPCR).
fn policy(values: &[[u8; 32]], pcrs: u32) -> [u8; 32] {
    let values = sha256(&values.concat());
    sha256(&[&[0; 32][..], &POLICY_PCR.to_be_bytes(), &selection(pcrs), &values].concat())
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut digest = [0; 32];
    digest.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref());
    digest
}

/// TPML_PCR_SELECTION of one bank.
fn selection(pcrs: u32) -> Vec<u8> {
    let [a, b, c, _] = pcrs.to_le_bytes();
    [&1_u32.to_be_bytes()[..], &SHA256.to_be_bytes(), &[3, a, b, c]].concat()
}

/// TPM2B: a length and as many bytes.
fn sized(bytes: &[u8]) -> Vec<u8> {
    // Nothing here is longer than a slot's blob.
    let len = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    [&len.to_be_bytes()[..], bytes].concat()
}

/// One authorisation by a session without a nonce, attributes and a password, and its length.
fn authorisation(session: u32) -> Vec<u8> {
    [&9_u32.to_be_bytes()[..], &session.to_be_bytes(), &[0; 5]].concat()
}

/// Carries out a command, and returns its answer without the header.
fn run(
    tpm: &mut dyn Transport,
    command: &'static str,
    code: u32,
    tag: u16,
    body: &[u8],
) -> Result<Zeroizing<Vec<u8>>, TpmError> {
    let len = u32::try_from(HEADER + body.len()).map_err(|_| TpmError::Answer(command))?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(HEADER + body.len()));
    bytes.extend(tag.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes.extend(code.to_be_bytes());
    bytes.extend(body);
    for _ in 0..TRIES {
        let mut answer = tpm.exchange(&bytes).map_err(TpmError::Io)?;
        let short = TpmError::Answer(command);
        let Some((header, _)) = answer.split_first_chunk::<HEADER>() else { return Err(short) };
        let [_, _, l0, l1, l2, l3, c0, c1, c2, c3] = *header;
        let code = u32::from_be_bytes([c0, c1, c2, c3]);
        match code {
            0 if u32::from_be_bytes([l0, l1, l2, l3]) as usize == answer.len() => {
                let rest = Zeroizing::new(answer.split_off(HEADER));
                answer.zeroize();
                return Ok(rest);
            }
            0 => return Err(short),
            code if AGAIN.contains(&code) => std::thread::sleep(PAUSE),
            // Bit 7 says that a session or a parameter is meant, which the other bits number.
            code if code & 0x0bf == POLICY_FAIL || code == PCR_CHANGED => return Err(TpmError::Policy),
            code => return Err(TpmError::Refused { command, code }),
        }
    }
    Err(TpmError::Refused { command, code: AGAIN[2] })
}

/// What is left of an answer.
#[derive(Clone, Copy)]
struct Answer<'a> {
    bytes: &'a [u8],
    command: &'static str,
}

impl<'a> Answer<'a> {
    fn take(self, len: usize) -> Result<(&'a [u8], Answer<'a>), TpmError> {
        let (taken, bytes) = self.bytes.split_at_checked(len).ok_or(TpmError::Answer(self.command))?;
        Ok((taken, Answer { bytes, ..self }))
    }

    fn u16(self) -> Result<(u16, Answer<'a>), TpmError> {
        let (bytes, rest) = self.take(2)?;
        Ok((bytes.iter().fold(0, |number, byte| number << 8 | u16::from(*byte)), rest))
    }

    fn u32(self) -> Result<(u32, Answer<'a>), TpmError> {
        let (bytes, rest) = self.take(4)?;
        Ok((bytes.iter().fold(0, |number, byte| number << 8 | u32::from(*byte)), rest))
    }

    fn sized(self) -> Result<(&'a [u8], Answer<'a>), TpmError> {
        let (len, rest) = self.u16()?;
        rest.take(usize::from(len))
    }

    /// TPMS_PCR_SELECTION, which must be of SHA-256.
    fn selection(self) -> Result<(u32, Answer<'a>), TpmError> {
        let (bank, rest) = self.u16()?;
        let (len, rest) = rest.take(1)?;
        let (bits, rest) = rest.take(usize::from(len[0]))?;
        if bank != SHA256 || bits.len() > 4 {
            return Err(TpmError::Answer(self.command));
        }
        let pcrs = bits.iter().rev().fold(0, |pcrs: u32, byte| pcrs << 8 | u32::from(*byte));
        Ok((pcrs, rest))
    }
}

#[cfg(test)]
mod tests;
