//! Those who attach: what they get, who is counted, and who is waited for.

use super::*;
use std::{
    io::Write,
    os::unix::net::{UnixListener, UnixStream},
    time::Instant,
};
use tempfile::TempDir;

#[test]
fn what_is_held_is_opened_and_proven() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("held.sock");
    let memory = Pretended::new(512, 0);
    let document = Document::of(&[loaded(4, Box::new(memory.clone()))], &facts()).unwrap();
    thread::scope(|scope| {
        let held = Held::with_defaults(scope, &path, document.clone());
        let attached = held.attach();
        assert_eq!(attached.document(), &document);
        held.expect("pid N attached, 1 in all");

        let same = |gpu: &HeldGpu, handle: [u8; 64], bytes: u64| {
            assert_eq!((gpu.uuid.as_str(), handle, bytes), ("GPU-pretended", [0xa5; 64], 512));
            Ok(Box::new(memory.clone()) as Box<dyn DeviceMemory>)
        };
        let weights = attached.open(4, same).unwrap();
        attached.verify(&weights).unwrap();
        let tensor = weights.tensor("a norm").unwrap();
        assert_eq!((tensor.dtype, tensor.shape, tensor.offset), (Dtype::F32, &[8][..], 256));
        assert_eq!(tensor.address, memory.place().address() + 256);
        assert_eq!(weights.tensors().len(), 2);

        let other = attached.open(4, |_, _, _| Ok(Pretended::boxed(512, 9))).unwrap();
        let error = attached.verify(&other).unwrap_err();
        assert!(
            matches!(&error, HoldError::Differs { rank: 4, expected, found } if expected != found),
            "{error}"
        );
        let refused = |outcome: Result<RankWeights, HoldError>| outcome.map(drop).unwrap_err().to_string();
        let short = refused(attached.open(4, |_, _, _| Ok(Pretended::boxed(256, 0))));
        assert_eq!(short, "rank 4: 256 bytes were opened, 512 are held");
        let none = refused(attached.open(5, |_, _, _| unreachable!()));
        assert!(none.ends_with("ranks 4 are"), "{none}");
        let gone =
            refused(attached.open(4, |gpu, _, _| Err(DeviceError::NoSuchGpu { uuid: gpu.uuid.clone() })));
        assert_eq!(gone, "rank 4: this process sees no GPU `GPU-pretended`");

        // Weights keep it attached.
        drop(other);
        drop(attached);
        held.stop();
        held.expect("waiting for 1 attached to leave; interrupt again to end at once");
        drop(weights);
        held.expect("pid N left, 0 attached");
        held.ended().unwrap();
    });
}

#[test]
fn who_reads_nothing_keeps_nobody_waiting() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("held.sock");
    let limits = Limits { patience: Duration::from_millis(300), ..Limits::default() };
    thread::scope(|scope| {
        let held = Held::begin(scope, &path, long_document(), limits);
        let idle: Vec<UnixStream> = (0..5).map(|_| UnixStream::connect(&path).unwrap()).collect();
        let attached = held.attach();
        assert_eq!(attached.document().ranks[0].tensors.all().len(), 40_000);
        held.expect("pid N attached, 1 in all");
        for _ in &idle {
            held.expect("pid N was turned away: it does not read");
        }
        assert!(attached.is_held());
        drop(attached);
        held.expect("pid N left, 0 attached");
        held.stop();
        held.ended().unwrap();
    });
}

#[test]
fn there_is_a_limit_which_idle_strangers_do_not_use_up() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("held.sock");
    let limits = Limits { peers: 2, ..Limits::default() };
    thread::scope(|scope| {
        let held = Held::begin(scope, &path, long_document(), limits);
        let _idle: Vec<UnixStream> = (0..4).map(|_| UnixStream::connect(&path).unwrap()).collect();
        let first = held.attach();
        let _second = held.attach();
        held.expect("pid N attached, 2 in all");
        let third = connect(&path, PATIENCE).map(drop).unwrap_err();
        assert!(matches!(third, HoldError::Full { .. }), "{third}");
        held.expect("pid N was turned away: 64 are attached");
        drop(first);
        held.expect("pid N left, 1 attached");
        let _fourth = held.attach();
        held.expect("pid N attached, 2 in all");
        held.stop();
        held.expect("waiting for 2 attached to leave; interrupt again to end at once");
        held.stop();
        held.ended().unwrap();
    });
}

#[test]
fn who_speaks_is_let_go() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("held.sock");
    thread::scope(|scope| {
        let held = Held::with_defaults(scope, &path, document());
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(b"hello?").unwrap();
        held.expect("pid N was turned away: it sent something");
        held.stop();
        held.ended().unwrap();
    });
}

#[test]
fn ending_waits_for_who_is_attached_until_it_is_asked_again() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("held.sock");
    thread::scope(|scope| {
        let held = Held::with_defaults(scope, &path, document());
        let (one, two) = (held.attach(), held.attach());
        held.expect("pid N attached, 2 in all");
        held.stop();
        held.expect("waiting for 2 attached to leave; interrupt again to end at once");
        // Nobody gets in, and those who are in stay.
        assert!(!path.exists());
        assert!(matches!(connect(&path, PATIENCE), Err(HoldError::NobodyHolds { .. })));
        drop(one);
        held.expect("pid N left, 1 attached");
        assert!(two.is_held() && !held.thread.is_finished());
        held.stop();
        held.ended().unwrap();
        assert!(!two.is_held());
    });
}

/// What attaching says to a holder that sends `says`, and then waits.
fn attached_to(says: &[u8], closes: bool) -> HoldError {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("held.sock");
    let listener = UnixListener::bind(&path).unwrap();
    thread::scope(|scope| {
        let holder = scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(says).unwrap();
            (!closes).then_some(stream)
        });
        let begin = Instant::now();
        let error = connect(&path, Duration::from_millis(200)).map(drop).unwrap_err();
        assert!(begin.elapsed() < PATIENCE);
        drop(holder.join().unwrap());
        error
    })
}

#[test]
fn a_holder_that_is_none_is_refused() {
    let whole = document().to_json().unwrap();
    let malformed = |says: &[u8]| {
        let error = attached_to(says, true);
        let HoldError::Malformed { source, .. } = error else { panic!("{error}") };
        source.to_string()
    };
    let found = [
        malformed(b""),
        malformed(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        malformed(&[b'x'; 1 << 12]),
        malformed(b"\xff\xff\n"),
        malformed(b"shardwright-hold one 3\n{} "),
        malformed(b"shardwright-hold 1 -3\n{} "),
        malformed(b"shardwright-hold 2 3 more\n{} "),
        malformed(b"shardwright-hold 1 268435457\n{}"),
        malformed(b"shardwright-hold 1 268435456\n{}"),
        malformed(b"shardwright-hold 1 2\n[]"),
        malformed(&[b"shardwright-hold 1 9\n", &whole[..]].concat()),
    ];
    insta::assert_snapshot!(found.join("\n"), @r"
    it does not begin as one
    it does not begin as one
    it does not begin as one
    it does not begin as one
    it does not begin as one
    it does not begin as one
    it is of protocol 2, this shardwright reads protocol 1
    it announces 268435457 bytes, at most 268435456 are read
    it ends after 2 of 268435456 bytes
    invalid length 0, expected a document at line 1 column 2
    EOF while parsing a string at line 1 column 9
    ");
}

#[test]
fn a_holder_that_does_not_answer_is_given_up() {
    for says in [&b""[..], b"shardwright-hold 1 5", b"shardwright-hold 1 5\n{}"] {
        let error = attached_to(says, false);
        assert!(matches!(error, HoldError::Silent { .. }), "{error}");
    }
    // One that does not even take connections: its queue fills up.
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("held.sock");
    let _stopped = UnixListener::bind(&path).unwrap();
    let mut queued = Vec::new();
    while let Ok(Some(stream)) = socket::dial(&path, Duration::from_millis(20)) {
        queued.push(stream);
    }
    let error = connect(&path, Duration::from_millis(20)).map(drop).unwrap_err();
    assert!(matches!(error, HoldError::Silent { .. }), "{error}");
    assert!(matches!(check_free(&path), Err(HoldError::HeldAlready { pid: None, .. })));
}

#[test]
fn nobody_and_nothing_are_the_same() {
    let folder = TempDir::new().unwrap();
    let error = connect(&folder.path().join("no.sock"), PATIENCE).map(drop).unwrap_err();
    assert!(matches!(error, HoldError::NobodyHolds { .. }) && error.help().is_some(), "{error}");
}
