#![allow(clippy::unwrap_used)]
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use super::*;
use crate::store::Disk;

const SIZE: usize = 8 << 20;
const READ: u16 = 0;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;
const ZEROES: u16 = 6;
/// HAS_FLAGS, FLUSH, WRITE_ZEROES.
const USUAL: u16 = 1 | 1 << 2 | 1 << 6;
const SEVERAL: u16 = USUAL | 1 << 8;

/// A server of the tests' own, which does what its script says.
struct Server {
    export: NbdExport,
    disk: Arc<Mutex<Vec<u8>>>,
    /// The kinds of requests, in the order in which they came.
    seen: Arc<Mutex<Vec<u16>>>,
    threads: Vec<JoinHandle<()>>,
}

/// How it behaves.
#[derive(Debug, Clone, Copy)]
struct Script {
    flags: u16,
    is_structured: bool,
    connections: usize,
    /// Requests that it answers before it goes on as it does.
    good: usize,
    then: Then,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Answers,
    /// Each request with an error.
    Refuses(u32),
    /// Closes the connection in the middle of a reply.
    Closes,
    /// Says no more.
    IsSilent,
    /// Answers something else than was asked.
    Confuses,
    /// Sends bytes that belong to another place.
    Misplaces,
    /// Answers pairs of requests in the opposite order, where two are there.
    Reverses,
}

const GOOD: Script =
    Script { flags: USUAL, is_structured: false, connections: 1, good: usize::MAX, then: Then::Answers };

impl Server {
    fn start(script: Script) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let export = NbdExport { address: listener.local_addr().unwrap(), name: "image".to_owned() };
        let (disk, seen) = (Arc::new(Mutex::new(vec![0x5a; SIZE])), Arc::<Mutex<Vec<u16>>>::default());
        let spawn = |_| {
            let (disk, seen, listener) = (Arc::clone(&disk), Arc::clone(&seen), listener.try_clone().unwrap());
            thread::spawn(move || {
                let (stream, _) = listener.accept().unwrap();
                // The client ends it as it likes.
                let _ = serve(&stream, script, &disk, &seen);
            })
        };
        let threads = (0..script.connections).map(spawn).collect();
        Server { export, disk, seen, threads }
    }

    fn open(&self) -> Nbd {
        Nbd::open_within(&self.export, Access::Write, Duration::from_millis(300)).unwrap()
    }

    /// What it has seen. The clients must be gone.
    fn end(self) -> Vec<u16> {
        for thread in self.threads {
            thread.join().unwrap();
        }
        self.seen.lock().unwrap().clone()
    }
}

fn get<const N: usize>(mut stream: &TcpStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn shake_hands(mut stream: &TcpStream, script: Script) -> io::Result<()> {
    stream.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
    assert_eq!(get::<4>(stream)?, [0, 0, 0, 3]);
    loop {
        let header = get::<16>(stream)?;
        assert_eq!(&header[..8], b"IHAVEOPT");
        let (option, len) = (wire::be32(&header, 8), wire::be32(&header, 12));
        let mut data = vec![0; len as usize];
        stream.read_exact(&mut data)?;
        let mut answer = |kind: u32, data: &[u8]| {
            let mut bytes = wire::ANSWER_MAGIC.to_be_bytes().to_vec();
            for field in [option, kind, u32::try_from(data.len()).unwrap()] {
                bytes.extend(field.to_be_bytes());
            }
            bytes.extend(data);
            stream.write_all(&bytes)
        };
        if option == 2 {
            return Ok(());
        }
        if option == 3 {
            for name in ["image", "other", "a\"b\n"] {
                answer(
                    2,
                    &[&u32::try_from(name.len()).unwrap().to_be_bytes()[..], name.as_bytes(), b"a text"].concat(),
                )?;
            }
            answer(1, &[])?;
            continue;
        }
        if option == 8 {
            answer(if script.is_structured { 1 } else { 1 << 31 | 1 }, &[])?;
            continue;
        }
        let name = &data[4..4 + wire::be32(&data, 0) as usize];
        if name != b"image" {
            answer(1 << 31 | 6, b"nothing\x1b[2J here")?;
            return Ok(());
        }
        let mut info = vec![0, 0];
        info.extend((SIZE as u64 + 100).to_be_bytes());
        info.extend(script.flags.to_be_bytes());
        answer(3, &info)?;
        let mut sizes = vec![0, 3];
        [512_u32, 4096, 256 << 10].iter().for_each(|size| sizes.extend(size.to_be_bytes()));
        answer(3, &sizes)?;
        return answer(1, &[]);
    }
}

fn serve(mut stream: &TcpStream, script: Script, disk: &Mutex<Vec<u8>>, seen: &Mutex<Vec<u16>>) -> io::Result<()> {
    shake_hands(stream, script)?;
    let mut held: Option<Vec<u8>> = None;
    for number in 0.. {
        let header = get::<28>(stream)?;
        let (kind, cookie) = (wire::be16(&header, 6), wire::be64(&header, 8));
        let (offset, len) = (usize::try_from(wire::be64(&header, 16)).unwrap(), wire::be32(&header, 24) as usize);
        if kind == 2 {
            return Ok(());
        }
        assert!(len <= 256 << 10, "more than the server takes");
        // Flags and kind.
        seen.lock().unwrap().push(wire::be16(&header, 4) << 8 | kind);
        let mut data = vec![0; if kind == WRITE { len } else { 0 }];
        stream.read_exact(&mut data)?;
        let then = if number < script.good { Then::Answers } else { script.then };
        let mut place = disk.lock().unwrap();
        let place = place.get_mut(offset..offset + len).unwrap();
        let error = if let Then::Refuses(error) = then { error } else { 0 };
        match kind {
            WRITE if error == 0 => place.copy_from_slice(&data),
            ZEROES => place.fill(0),
            _ => {}
        }
        let sent = if kind == READ && error == 0 { &*place } else { &[] };
        let mut reply = match (script.is_structured, then) {
            (_, Then::Confuses) => simple(cookie + 1000, 0, sent),
            (true, Then::Misplaces) => part(cookie, 1, 1, &[&(offset as u64 + 4096).to_be_bytes()[..], sent].concat()),
            (true, _) if error != 0 => {
                let text = [&error.to_be_bytes()[..], &5_u16.to_be_bytes(), b"a\x07bcd"].concat();
                part(cookie, 1, 0x8001, &text)
            }
            // In two parts where there is enough, the second of which is a hole where it is zero.
            (true, _) if kind == READ => {
                let (first, second) = sent.split_at(len / 2);
                let at = |start: usize| (offset as u64 + start as u64).to_be_bytes();
                let first = part(cookie, 0, 1, &[&at(0)[..], first].concat());
                let rest = match second.iter().all(|byte| *byte == 0) {
                    true => {
                        part(cookie, 1, 2, &[&at(len / 2)[..], &u32::try_from(len / 2).unwrap().to_be_bytes()].concat())
                    }
                    false => part(cookie, 1, 1, &[&at(len / 2)[..], second].concat()),
                };
                [first, rest].concat()
            }
            (true, _) => part(cookie, 1, 0, &[]),
            (false, _) => simple(cookie, error, sent),
        };
        match then {
            Then::IsSilent => {
                // Until the client has had enough.
                let _ = get::<1>(stream);
                return Ok(());
            }
            Then::Closes => {
                reply.truncate(reply.len().saturating_sub(10));
                return stream.write_all(&reply);
            }
            Then::Reverses => match held.take() {
                None if is_another_waiting(stream)? => held = Some(reply),
                None => stream.write_all(&reply)?,
                Some(first) => stream.write_all(&[reply, first].concat())?,
            },
            _ => stream.write_all(&reply)?,
        }
    }
    Ok(())
}

fn is_another_waiting(stream: &TcpStream) -> io::Result<bool> {
    stream.set_read_timeout(Some(Duration::from_millis(10)))?;
    let is_there = stream.peek(&mut [0]).is_ok();
    stream.set_read_timeout(None)?;
    Ok(is_there)
}

fn simple(cookie: u64, error: u32, data: &[u8]) -> Vec<u8> {
    [&0x6744_6698_u32.to_be_bytes()[..], &error.to_be_bytes(), &cookie.to_be_bytes(), data].concat()
}

fn part(cookie: u64, flags: u16, kind: u16, data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).unwrap().to_be_bytes();
    let (flags, kind, cookie) = (flags.to_be_bytes(), kind.to_be_bytes(), cookie.to_be_bytes());
    [&0x668e_33ef_u32.to_be_bytes()[..], &flags, &kind, &cookie, &len, data].concat()
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from(at / 7 % 256).unwrap() | 1).collect()
}

#[test]
fn gives_back_what_it_took() {
    for is_structured in [false, true] {
        let server = Server::start(Script { is_structured, ..GOOD });
        let export = server.open();
        // Whole blocks of it, which the server has a piece more than.
        assert_eq!((export.size(), export.origin()), (SIZE as u64, Some(0)));
        let written = pattern(1 << 20);
        export.write_at(1 << 20, &written).unwrap();
        export.flush().unwrap();
        let mut read = vec![0; 3 << 20];
        export.read_at(0, &mut read).unwrap();
        assert!(read[..1 << 20].iter().all(|byte| *byte == 0x5a) && read[1 << 20..2 << 20] == written);
        export.clear_at(1 << 20, 1 << 20).unwrap();
        export.read_at(0, &mut read).unwrap();
        assert!(read[1 << 20..2 << 20].iter().all(|byte| *byte == 0) && read[2 << 20..].iter().all(|b| *b == 0x5a));
        let error = export.read_at(SIZE as u64, &mut read[..4096]).unwrap_err();
        assert!(error.to_string().contains(&SIZE.to_string()), "{error}");
        drop(export);
        // No request is longer than the server takes.
        let seen = server.end();
        assert_eq!(seen.iter().filter(|kind| **kind == WRITE).count(), 4, "{seen:?}");
        assert_eq!(seen.iter().filter(|kind| **kind == ZEROES).count(), 4, "{seen:?}");
    }
}

/// Where a single write can be made durable, no flush is sent for it.
#[test]
fn a_write_is_made_durable() {
    for (flags, expected) in [(USUAL | 1 << 3, vec![1 << 8 | WRITE]), (USUAL, vec![WRITE, FLUSH])] {
        let server = Server::start(Script { flags, ..GOOD });
        let disk = Disk::new(server.open());
        let written = pattern(4096);
        disk.write_through(8192, &written).unwrap();
        assert_eq!(disk.read(8192, 4096).unwrap()[..], written[..]);
        assert!(disk.write_through(SIZE as u64 + 4096, &written).is_err());
        drop(disk);
        assert_eq!(server.end(), [expected, vec![READ]].concat());
    }
}

/// Sixteen threads on one connection and on four.
#[test]
fn many_requests_at_once() {
    for (flags, connections, is_structured, then) in [
        (USUAL, 1, false, Then::Answers),
        (USUAL, 1, true, Then::Answers),
        (USUAL, 1, false, Then::Reverses),
        (SEVERAL, 4, true, Then::Answers),
    ] {
        let script = Script { flags, connections, is_structured, good: 0, then };
        let server = Server::start(script);
        let export = server.open();
        thread::scope(|scope| {
            for thread in 0..16_u64 {
                let export = &export;
                scope.spawn(move || {
                    let written = vec![u8::try_from(thread).unwrap() + 1; 128 << 10];
                    let mut read = vec![0; written.len()];
                    for _ in 0..2 {
                        export.write_at(thread * written.len() as u64, &written).unwrap();
                        export.read_at(thread * written.len() as u64, &mut read).unwrap();
                        assert!(read == written);
                    }
                });
            }
        });
        drop(export);
        assert_eq!(server.end().len(), 64, "{script:?}");
    }
}

#[test]
fn an_image_can_lie_there() {
    let server = Server::start(Script { is_structured: true, ..GOOD });
    let disk = Disk::new(server.open());
    assert!(disk.name().starts_with("nbd://127.0.0.1:"), "{disk}");
    crate::store::tests::save_and_verify(&disk);
    assert!(server.seen.lock().unwrap().contains(&FLUSH));
    assert_eq!(server.disk.lock().unwrap()[..8], dormouse_image::LABEL_MAGIC);
}

#[test]
fn says_what_went_wrong() {
    let (eio, enospc) = (5, 28);
    for (is_structured, then, expected) in [
        (false, Then::Refuses(enospc), "No space left"),
        (true, Then::Refuses(eio), "the server says: abcd (Input/output error"),
        (false, Then::Closes, "has closed the connection"),
        (true, Then::Closes, "has closed the connection"),
        (false, Then::IsSilent, "does not answer"),
        (false, Then::Confuses, "a reply to nothing"),
        (true, Then::Misplaces, "bytes that were not asked for"),
    ] {
        let server = Server::start(Script { is_structured, good: 1, then, ..GOOD });
        let export = server.open();
        let mut read = vec![0; 64 << 10];
        export.read_at(0, &mut read).unwrap();
        let error = export.read_at(0, &mut read).unwrap_err().to_string();
        assert!(error.contains(expected), "{then:?}: {error}");
        if !matches!(then, Then::Refuses(_)) {
            // What it said may be lost: the connection is not used any more.
            let again = export.write_at(0, &read).unwrap_err().to_string();
            assert!(again.contains(expected), "{then:?}: {again}");
        }
    }
}

/// All that wait learn that the connection is gone.
#[test]
fn nobody_waits_for_a_server_that_is_gone() {
    for then in [Then::Closes, Then::IsSilent, Then::Confuses] {
        let server = Server::start(Script { good: 8, then, ..GOOD });
        let export = server.open();
        let failed = thread::scope(|scope| {
            let read = || (0..9).find_map(|_| export.read_at(0, &mut [0; 4096]).err());
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(read)).collect();
            threads.into_iter().filter_map(|thread| thread.join().unwrap()).count()
        });
        assert_eq!(failed, 8, "{then:?}");
    }
}

#[test]
fn refuses_what_will_not_do() {
    let open = |script, name: &str, access| {
        let server = Server::start(script);
        let export = NbdExport { name: name.to_owned(), ..server.export };
        let opened = Nbd::open_within(&export, access, Duration::from_millis(300));
        dormouse_linux::error_chain::in_full(&opened.unwrap_err())
    };
    for (flags, expected) in [(1, "cannot be told to make durable"), (USUAL | 2, "for reading only")] {
        let error = open(Script { flags, ..GOOD }, "image", Access::Write);
        assert!(error.contains(expected) && error.contains("nbd://127.0.0.1"), "{error}");
        Nbd::open_within(&Server::start(Script { flags, ..GOOD }).export, Access::Read, DEADLINE).unwrap();
    }
    let error = open(GOOD, "other", Access::Read);
    assert!(error.contains("no export `other`: nothing[2J here"), "{error}");
    // Nobody there.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let export = NbdExport { address: listener.local_addr().unwrap(), name: String::new() };
    drop(listener);
    assert!(Nbd::open(&export, Access::Read).is_err());
}

#[test]
fn exports_are_listed() {
    let server = Server::start(GOOD);
    let (listed, others) = Nbd::list(server.export.address).unwrap();
    let names: Vec<_> = listed.iter().map(|export| export.name.as_str()).collect();
    assert_eq!((names, others), (vec!["image", "other"], 1));
    assert_eq!(listed[1].address, server.export.address);
}

/// What is there is something else, or never says anything.
#[test]
fn another_server_is_not_believed() {
    for (hello, expected) in [
        (&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], "something else than an NBD server"),
        (b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53\0\0", "before 2011"),
        (b"NBDMAGICIHAVEOPT\0\0", "before 2011"),
        (b"NBD", "does not answer"),
        (b"NBDMAGICIHAVEOPT\0\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", "an answer to something else"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let export = NbdExport { address: listener.local_addr().unwrap(), name: String::new() };
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(hello).unwrap();
            // Until the client has had enough.
            let _ = stream.read_to_end(&mut Vec::new());
        });
        let opened = Nbd::open_within(&export, Access::Read, Duration::from_millis(300));
        let error = dormouse_linux::error_chain::in_full(&opened.unwrap_err());
        assert!(error.contains(expected), "{error}");
        server.join().unwrap();
    }
}
