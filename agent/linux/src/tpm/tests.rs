#![allow(clippy::unwrap_used, clippy::panic)]
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use super::*;

const PCR_EXTEND: u32 = 0x182;

/// A TPM in software (swtpm), with its state in a directory.
struct Software {
    child: Child,
    stream: UnixStream,
}

impl Software {
    /// Switches it on: its registers begin at zero each time.
    fn start(state: &Path) -> Software {
        let socket = state.join("socket");
        let _ = std::fs::remove_file(&socket);
        let child = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
            .args(["--tpmstate", &format!("dir={}", state.display())])
            .args(["--server", &format!("type=unixio,path={}", socket.display())])
            .args(["--ctrl", &format!("type=unixio,path={}", state.join("control").display())])
            .stdin(Stdio::null())
            .spawn()
            .expect("install the package swtpm");
        let began = Instant::now();
        let stream = loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => break stream,
                Err(error) => assert!(began.elapsed() < Duration::from_secs(20), "{error}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        Software { child, stream }
    }

    /// What a boot loader does with what it loads.
    fn extend(&mut self, pcr: u32) {
        let body =
            [&pcr.to_be_bytes()[..], &authorisation(PASSWORD), &1_u32.to_be_bytes(), &SHA256.to_be_bytes(), &[7; 32]];
        run(self, "PCR_Extend", PCR_EXTEND, WITH_SESSIONS, &body.concat()).unwrap();
    }
}

impl Drop for Software {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Transport for Software {
    fn exchange(&mut self, command: &[u8]) -> io::Result<Zeroizing<Vec<u8>>> {
        self.stream.write_all(command)?;
        let mut answer = vec![0; HEADER];
        self.stream.read_exact(&mut answer)?;
        let len = u32::from_be_bytes(answer[2..6].try_into().unwrap()) as usize;
        answer.resize(len, 0);
        self.stream.read_exact(&mut answer[HEADER..])?;
        Ok(Zeroizing::new(answer))
    }
}

const SECRET_BYTES: [u8; SECRET] = *b"a secret of 32 bytes, not less !";

#[test]
fn a_secret_survives_a_power_cycle_and_not_another_boot() {
    let state = tempfile::tempdir().unwrap();
    let blob = {
        let mut tpm = Software::start(state.path());
        tpm.extend(4);
        let blob = seal(&mut tpm, &SECRET_BYTES, PCRS).unwrap();
        assert!(blob.len() < 512 && !blob.windows(SECRET).any(|bytes| bytes == SECRET_BYTES), "{}", blob.len());
        // Nothing is left in the TPM, however often.
        for _ in 0..10 {
            assert_eq!(*unseal(&mut tpm, &blob, PCRS).unwrap(), SECRET_BYTES);
        }
        blob
    };
    let mut tpm = Software::start(state.path());
    // The same machine, and no boot loader yet.
    assert!(matches!(unseal(&mut tpm, &blob, PCRS), Err(TpmError::Policy)));
    tpm.extend(4);
    assert_eq!(*unseal(&mut tpm, &blob, PCRS).unwrap(), SECRET_BYTES);
    // What is not named may differ.
    tpm.extend(10);
    assert_eq!(*unseal(&mut tpm, &blob, PCRS).unwrap(), SECRET_BYTES);
    // Another kernel.
    tpm.extend(9);
    for _ in 0..10 {
        assert!(matches!(unseal(&mut tpm, &blob, PCRS), Err(TpmError::Policy)));
    }
    // It is not enough to claim that fewer are meant.
    assert!(matches!(unseal(&mut tpm, &blob, 1), Err(TpmError::Policy)));
}

#[test]
fn rejects_another_tpm_and_a_blob_that_was_changed() {
    let states = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let mut tpm = Software::start(states[0].path());
    let blob = seal(&mut tpm, &SECRET_BYTES, PCRS).unwrap();
    for at in [2, 40, blob.len() - 40] {
        let mut changed = blob.clone();
        changed[at] ^= 1;
        assert!(matches!(unseal(&mut tpm, &changed, PCRS), Err(TpmError::Refused { .. })), "{at}");
    }
    for blob in [&blob[..blob.len() - 1], &[], &[0xff; 1024]] {
        assert!(matches!(unseal(&mut tpm, blob, PCRS), Err(TpmError::Refused { .. })));
    }
    let mut other = Software::start(states[1].path());
    let error = unseal(&mut other, &blob, PCRS).unwrap_err().to_string();
    assert!(error.starts_with("the TPM refuses Load with code 0x"), "{error}");
}

#[test]
fn many_registers_take_several_readings() {
    let state = tempfile::tempdir().unwrap();
    let mut tpm = Software::start(state.path());
    let all = 0x00ff_ffff;
    assert_eq!(pcr_values(&mut tpm, all).unwrap().len(), 24);
    let blob = seal(&mut tpm, &SECRET_BYTES, all).unwrap();
    assert_eq!(*unseal(&mut tpm, &blob, all).unwrap(), SECRET_BYTES);
    assert!(seal(&mut tpm, &SECRET_BYTES, 1 << 23).is_ok());
}

/// A TPM that answers what it likes.
struct Answers(Vec<Vec<u8>>);

impl Transport for Answers {
    fn exchange(&mut self, _: &[u8]) -> io::Result<Zeroizing<Vec<u8>>> {
        if self.0.is_empty() {
            return Err(io::Error::other("it is gone"));
        }
        Ok(Zeroizing::new(self.0.remove(0)))
    }
}

fn answer(code: u32, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(HEADER + body.len()).unwrap();
    [&PLAIN.to_be_bytes()[..], &len.to_be_bytes(), &code.to_be_bytes(), body].concat()
}

#[test]
fn rejects_answers_that_are_none() {
    let of = |answers: Vec<Vec<u8>>| pcr_values(&mut Answers(answers), 0x95);
    let values = |bits: u8, count: u32| {
        let digests = sized(&[1; 32]).repeat(count as usize);
        let body = [&[0, 0, 0, 9, 0, 0, 0, 1, 0, 0x0b, 3, bits, 0, 0][..], &count.to_be_bytes(), &digests].concat();
        answer(0, &body)
    };
    assert_eq!(of(vec![values(0x95, 4)]).unwrap().len(), 4);
    assert_eq!(of(vec![answer(0x922, &[]), values(0x05, 2), values(0x90, 2)]).unwrap().len(), 4);
    // Nothing, more than was asked for, another number, another order.
    for answers in [vec![values(0, 0)], vec![values(0x97, 5)], vec![values(0x95, 3)], vec![values(0x90, 2)]] {
        assert!(matches!(of(answers), Err(TpmError::NoPcrs(_))));
    }
    let mut long = values(0x95, 4);
    long.push(0);
    for bytes in [vec![], vec![0; 9], long, answer(0, &[0; 3]), answer(0, &[0, 0, 0, 1, 0, 0, 0, 1, 0, 4, 3, 1, 0, 0])]
    {
        assert!(matches!(of(vec![bytes]), Err(TpmError::Answer("PCR_Read"))));
    }
    assert!(matches!(of(vec![answer(0x101, &[])]), Err(TpmError::Refused { code: 0x101, .. })));
    assert!(matches!(of(vec![]), Err(TpmError::Io(_))));
    assert!(matches!(of(vec![answer(0x908, &[]); 30]), Err(TpmError::Refused { code: 0x922, .. })));
}
