//! Ranks as threads that meet over sockets of this machine, and whoever else comes by.

use super::{
    message::{Hello, Reply, encode, receive},
    *,
};
use crate::collective::{Communicator, Reduce};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    io::Write,
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// Nothing that is tested here takes longer, unless it never ends.
const ENDS: Duration = Duration::from_secs(90);

const NEVER: &dyn Fn() -> bool = &|| false;

type Outcome = Result<u64, String>;

fn rank(address: &Address, rank: u32, world: u32) -> Rendezvous {
    Rendezvous {
        address: address.clone(),
        rank,
        world,
        job: "job".to_owned(),
        plan_digest: "aaaa".to_owned(),
        version: "1.0.0".to_owned(),
        details: Details {
            nccl: Some(22_203),
            host: format!("node{rank}"),
            device: format!("cuda:{rank}"),
            pid: 100 + rank,
        },
        progress_within: None,
    }
}

/// A socket that listens at a port of its own.
fn listener() -> (TcpListener, Address) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::new("127.0.0.1", listener.local_addr().unwrap().port()).unwrap();
    (listener, address)
}

/// What a rank gets when it sums ones with the others.
fn sums(met: Result<TcpCommunicator, RendezvousError>) -> Outcome {
    let mut group = met.map_err(|error| error.to_string())?;
    let mut values = [1];
    group.all_reduce(&mut values, Reduce::Sum).map_err(|error| error.to_string())?;
    Ok(values[0])
}

/// Lets `ranks`, of which the first is rank 0, meet while `beside` goes on; gives what each gets.
fn meet(
    listener: TcpListener,
    ranks: &[Rendezvous],
    patience: Duration,
    beside: impl FnOnce() + Send,
) -> Vec<Outcome> {
    let begin = Instant::now();
    let outcomes = std::thread::scope(|scope| {
        let mut threads = vec![scope.spawn(move || {
            let listener = listener;
            let met = gather::gather_at(&ranks[0], &listener, None, patience, NEVER);
            drop(listener);
            sums(met)
        })];
        scope.spawn(beside);
        threads.extend(ranks[1..].iter().map(|rank| scope.spawn(move || sums(rank.join(patience, NEVER)))));
        threads.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    assert!(begin.elapsed() < ENDS);
    outcomes
}

/// What all ranks get when one of them, once changed, makes the job fail.
fn refused(world: u32, change: impl Fn(&mut Vec<Rendezvous>)) -> Vec<Outcome> {
    let (listener, address) = listener();
    let mut ranks: Vec<_> = (0..world).map(|at| rank(&address, at, world)).collect();
    change(&mut ranks);
    meet(listener, &ranks, PATIENCE, || ())
}

/// That all who came before it was clear got `message`, among them rank 0 and the rank `bad`; whoever came later found rank 0
/// gone, which is slow to find out, so those are few.
#[track_caller]
fn assert_refused(outcomes: &[Outcome], bad: usize, message: &str) {
    for at in [0, bad] {
        let Err(error) = &outcomes[at] else { panic!("it was not refused: {outcomes:?}") };
        assert!(error.starts_with(message), "rank {at} got: {error}\nwanted: {message}");
    }
}

#[test]
fn ranks_meet_whatever_their_number() {
    for world in [2, 3, 8] {
        let outcomes = refused(world, |_| ());
        assert_eq!(outcomes, vec![Ok(u64::from(world)); world as usize]);
    }
}

#[test]
fn ranks_meet_when_rank_0_comes_last() {
    let (listener, address) = listener();
    drop(listener);
    let ranks: Vec<_> = (0..4).map(|at| rank(&address, at, 4)).collect();
    let outcomes = std::thread::scope(|scope| {
        let others: Vec<_> =
            ranks[1..].iter().map(|rank| scope.spawn(move || sums(rank.join(PATIENCE, NEVER)))).collect();
        std::thread::sleep(Duration::from_millis(500));
        let first = scope.spawn(|| sums(ranks[0].join(PATIENCE, NEVER)));
        others.into_iter().chain([first]).map(|rank| rank.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(outcomes, vec![Ok(4); 4]);
}

#[test]
fn a_rank_alone_meets_nobody() {
    // There is no such host.
    let address = Address::new("nowhere.invalid", 1).unwrap();
    assert_eq!(sums(rank(&address, 0, 1).join(PATIENCE, NEVER)), Ok(1));
}

#[test]
fn a_rank_that_does_not_exist_goes_nowhere() {
    let address = Address::new("127.0.0.1", 1).unwrap();
    for (at, world) in [(2, 2), (0, 0), (1, MAX_RANKS + 1)] {
        let outcome = rank(&address, at, world).join(PATIENCE, NEVER);
        assert!(matches!(outcome, Err(RendezvousError::Rank { .. })));
    }
    let long = Rendezvous { job: "x".repeat(1000), ..rank(&address, 0, 2) };
    assert!(matches!(long.join(PATIENCE, NEVER), Err(RendezvousError::TooLong { bytes: 1000, .. })));
}

#[test]
fn ranks_that_do_not_belong_together_are_refused_and_named() {
    type Change = fn(&mut Rendezvous);
    let cases: [(Change, &str); 5] = [
        (
            |rank| rank.world = 4,
            "rank 1 (node1, pid 101, cuda:1) is of a job of 4 ranks, and rank 0 of one of 2",
        ),
        (
            |rank| rank.plan_digest = "bb\u{1b}".to_owned(),
            "rank 1 (node1, pid 101, cuda:1) has another plan than rank 0: its digest is bb\\u{1b}, and rank 0's aaaa",
        ),
        (
            |rank| rank.version = "1.0.1".to_owned(),
            "rank 1 (node1, pid 101, cuda:1) is shardwright 1.0.1, and rank 0 is 1.0.0",
        ),
        (
            |rank| rank.details.nccl = Some(21_805),
            "rank 1 (node1, pid 101, cuda:1) has NCCL 2.18.5, and rank 0 has NCCL 2.22.3",
        ),
        (
            |rank| rank.details.nccl = None,
            "rank 1 (node1, pid 101, cuda:1) has no NCCL, and rank 0 has NCCL 2.22.3",
        ),
    ];
    for (change, message) in cases {
        assert_refused(&refused(2, |ranks| change(&mut ranks[1])), 1, message);
    }
}

#[test]
fn whoever_has_come_is_told_why_the_job_ends() {
    let (listener, address) = listener();
    let mut ranks: Vec<_> = (0..4).map(|at| rank(&address, at, 4)).collect();
    ranks[3].plan_digest = "bbbb".to_owned();
    let last = ranks.pop().unwrap();
    let mut late = None;
    let outcomes = meet(listener, &ranks, PATIENCE, || {
        std::thread::sleep(Duration::from_secs(1));
        late = Some(sums(last.join(PATIENCE, NEVER)));
    });
    let first = outcomes[0].clone();
    assert!(
        first.as_ref().is_err_and(|error| error.contains("rank 3 (node3, pid 103, cuda:3) has another plan"))
    );
    assert!(outcomes.iter().chain(&late).all(|outcome| *outcome == first), "{outcomes:?} {late:?}");
}

#[test]
fn a_rank_that_comes_twice_is_refused_and_both_are_named() {
    let (listener, address) = listener();
    let ranks = [rank(&address, 0, 3), rank(&address, 1, 3)];
    let mut again = rank(&address, 1, 3);
    again.details = Details { host: "other".to_owned(), pid: 7, ..again.details };
    let outcomes = meet(listener, &ranks, PATIENCE, || {
        std::thread::sleep(Duration::from_secs(1));
        let _ = again.join(PATIENCE, NEVER);
    });
    let message = "rank 1 was started twice: on node1 as process 101, and on other as process 7";
    assert_refused(&outcomes, 1, message);
}

#[test]
fn a_second_rank_0_or_one_out_of_range_is_refused() {
    for wrong in [0, 9] {
        let (listener, address) = listener();
        // A rank checks itself; whoever says otherwise does not.
        let hello = encode(&Hello::of(&rank(&address, wrong, 2)));
        let connect = address.to_string();
        let outcomes = meet(listener, &[rank(&address, 0, 2)], PATIENCE, move || {
            let mut stream = TcpStream::connect(connect).unwrap();
            stream.write_all(&hello).unwrap();
            let (_, reply) = receive(&mut stream, 9999, &mut || true).unwrap();
            assert!(matches!(serde_json::from_slice(&reply), Ok(Reply::Refused(Refusal::Range { .. }))));
        });
        assert_refused(&outcomes, 0, &format!("rank {wrong} (node{wrong}, pid {}", 100 + wrong));
    }
}

#[test]
fn a_rank_of_another_protocol_is_refused_though_little_of_it_is_understood() {
    let (listener, address) = listener();
    let mut hello = encode(&serde_json::json!({ "job": "job", "rank": 1, "new": [1, 2] }));
    hello[8] += 1;
    let connect = address.to_string();
    let outcomes = meet(listener, &[rank(&address, 0, 2)], PATIENCE, move || {
        let mut stream = TcpStream::connect(connect).unwrap();
        stream.write_all(&hello).unwrap();
        assert!(receive(&mut stream, 9999, &mut || true).is_ok());
    });
    assert_refused(&outcomes, 0, "rank 1 speaks version 2 of shardwright's protocol, and rank 0 version 1");
}

#[test]
fn ranks_that_do_not_come_are_named() {
    let patience = Duration::from_secs(2);
    let (listener, address) = listener();
    let ranks: Vec<_> = [0, 1, 3].map(|at| rank(&address, at, 6)).into();
    let outcomes = meet(listener, &ranks, patience, || ());
    let message = format!("ranks 2, 4 and 5 did not come to {address} within 2 s");
    assert_eq!(outcomes, vec![Err(message); 3]);
}

#[test]
fn a_missing_rank_0_is_named() {
    let (listener, address) = listener();
    drop(listener);
    let error = sums(rank(&address, 2, 3).join(Duration::from_secs(1), NEVER)).unwrap_err();
    assert!(error.starts_with(&format!("rank 2 did not reach rank 0 at {address} within 1 s")), "{error}");
}

#[test]
fn a_rank_0_of_another_job_is_not_taken_for_ours() {
    let (listener, address) = listener();
    let patience = Duration::from_secs(2);
    let mut ranks = [rank(&address, 0, 2), rank(&address, 1, 2)];
    ranks[1].job = "another".to_owned();
    let outcomes = meet(listener, &ranks, patience, || ());
    assert_eq!(outcomes[0], Err(format!("rank 1 did not come to {address} within 2 s")));
    assert!(outcomes[1].as_ref().is_err_and(|error| error.contains("did not reach rank 0")), "{outcomes:?}");
}

#[test]
fn something_else_at_the_address_is_not_taken_for_rank_0() {
    let (listener, address) = listener();
    let stop = AtomicBool::new(false);
    let outcome = std::thread::scope(|scope| {
        scope.spawn(|| {
            listener.set_nonblocking(true).unwrap();
            while !stop.load(Ordering::Relaxed) {
                if let Ok((mut stream, _)) = listener.accept() {
                    let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.6\r\n");
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let outcome = sums(rank(&address, 1, 2).join(Duration::from_secs(1), NEVER));
        stop.store(true, Ordering::Relaxed);
        outcome
    });
    assert!(outcome.as_ref().is_err_and(|error| error.contains("did not reach rank 0")), "{outcome:?}");
}

#[test]
fn a_rank_that_ends_while_it_waits_is_named() {
    let (listener, address) = listener();
    let hello = encode(&Hello::of(&rank(&address, 2, 4)));
    let connect = address.to_string();
    let outcomes = meet(listener, &[rank(&address, 0, 4), rank(&address, 1, 4)], PATIENCE, move || {
        std::thread::sleep(Duration::from_millis(500));
        let mut stream = TcpStream::connect(connect).unwrap();
        stream.write_all(&hello).unwrap();
        assert!(receive(&mut stream, 9999, &mut || true).is_ok());
    });
    let message = "rank 2 (node2, pid 102, cuda:2) ended before all ranks had come".to_owned();
    assert_eq!(outcomes, vec![Err(message); 2]);
}

#[test]
fn a_rank_0_that_ends_before_all_have_come_is_named() {
    let (listener, address) = listener();
    let outcome = std::thread::scope(|scope| {
        scope.spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            assert!(receive(&mut stream, 9999, &mut || true).is_ok());
            stream.write_all(&encode(&Reply::Wait)).unwrap();
        });
        sums(rank(&address, 1, 2).join(PATIENCE, NEVER))
    });
    assert_eq!(outcome, Err(format!("rank 0 at {address} ended before all ranks had come")));
}

#[test]
fn strangers_disturb_nobody() {
    let (listener, address) = listener();
    let ranks: Vec<_> = (0..4).map(|at| rank(&address, at, 4)).collect();
    let right = encode(&Hello::of(&ranks[1]));
    let mut other_job = rank(&address, 1, 4);
    other_job.job = "another".to_owned();
    let mut huge = right.clone();
    huge[10..14].copy_from_slice(&u32::MAX.to_le_bytes());
    let says: Vec<Vec<u8>> = vec![
        Vec::new(),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0xff; 4096],
        right[..20].to_vec(),
        huge,
        encode(&Hello::of(&other_job)),
        encode(&serde_json::json!({ "job": "job" })),
    ];
    let begin = Instant::now();
    let connect = address.to_string();
    let (listening, others) = (listener.try_clone().unwrap(), &ranks[1..]);
    let notes = std::thread::scope(|scope| {
        let first = scope.spawn(|| {
            let mut group = gather::gather_at(&ranks[0], &listening, None, PATIENCE, NEVER).unwrap();
            let mut values = [1];
            group.all_reduce(&mut values, Reduce::Sum).unwrap();
            assert_eq!(values, [4]);
            group.notes().to_vec()
        });
        // More than may be asked at a time, and they stay.
        let strangers: Vec<_> = (0..300)
            .map(|at| {
                let mut stream = TcpStream::connect(&connect).unwrap();
                let _ = stream.write_all(&says[at % says.len()]);
                stream
            })
            .collect();
        let others: Vec<_> =
            others.iter().map(|rank| scope.spawn(move || sums(rank.join(PATIENCE, NEVER)))).collect();
        for other in others {
            assert_eq!(other.join().unwrap(), Ok(4));
        }
        drop(strangers);
        first.join().unwrap()
    });
    assert!(begin.elapsed() < ENDS);
    assert_eq!(notes.len(), 1);
    assert!(notes[0].contains("were not of this job's ranks"), "{notes:?}");
}

#[test]
fn whoever_is_interrupted_ends_and_the_others_are_told() {
    let (listener, address) = listener();
    let ranks = [rank(&address, 0, 3), rank(&address, 1, 3)];
    let stop = AtomicBool::new(false);
    let asks: &(dyn Fn() -> bool + Sync) = &|| stop.load(Ordering::Relaxed);
    let (first, second) = std::thread::scope(|scope| {
        let second = scope.spawn(|| ranks[1].join(PATIENCE, NEVER));
        let first = scope.spawn(|| gather::gather_at(&ranks[0], &listener, None, PATIENCE, &|| asks()));
        std::thread::sleep(Duration::from_millis(700));
        stop.store(true, Ordering::Relaxed);
        (first.join().unwrap(), second.join().unwrap())
    });
    assert!(matches!(first, Err(RendezvousError::Interrupted)));
    assert!(matches!(second, Err(RendezvousError::Refused(Refusal::Interrupted))));

    let (listener, address) = self::listener();
    drop(listener);
    let outcome = rank(&address, 1, 3).join(PATIENCE, &|| true);
    assert!(matches!(outcome, Err(RendezvousError::Interrupted)));
}

#[test]
fn a_port_in_use_is_named() {
    let (_listener, address) = listener();
    let outcome = rank(&address, 0, 2).join(Duration::from_millis(200), NEVER);
    let Err(error @ RendezvousError::Listen { .. }) = outcome else { panic!("the port is in use") };
    assert!(error.to_string().starts_with(&format!("rank 0 cannot listen on {address}: ")), "{error}");
}

#[test]
fn an_address_of_another_machine_is_listened_for_everywhere_and_said() {
    let (listener, address) = listener();
    drop(listener);
    // From the range for documentation: no machine has it.
    let elsewhere = Address::new("192.0.2.1", address.port()).unwrap();
    let group = std::thread::scope(|scope| {
        let first = scope.spawn(|| rank(&elsewhere, 0, 2).join(PATIENCE, NEVER));
        let second = scope.spawn(|| rank(&address, 1, 2).join(PATIENCE, NEVER).map(|_| ()));
        assert!(second.join().unwrap().is_ok());
        first.join().unwrap().unwrap()
    });
    assert_eq!(group.notes(), [format!("{elsewhere} is not this machine's: listening at all its addresses")]);
}

#[test]
fn ranks_are_listed_as_people_do() {
    for (count, text) in [(1, "rank 0"), (2, "ranks 0 and 1"), (3, "ranks 0, 1 and 2")] {
        assert_eq!(list(&(0..count).collect::<Vec<_>>()), text);
    }
    assert_eq!(list(&(0..700).collect::<Vec<_>>()), "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 692 others");
}

/// Patience of ranks of which one is stopped; also the time in which they meet.
const STOPPED: Duration = Duration::from_secs(5);

/// Says to a process of this test which rank of two it is, and where rank 0 listens.
const AS_PROCESS: &str = "SHARDWRIGHT_TEST_AS_PROCESS";

/// The test that is also a rank of its own when it is started so: it sums until the group fails.
#[test]
fn a_rank_in_a_process_of_its_own() {
    let Ok(this) = std::env::var(AS_PROCESS) else { return };
    let (at, address) = this.split_once(' ').unwrap();
    let this = rank(&address.parse().unwrap(), at.parse().unwrap(), 2);
    let mut group = this.join(STOPPED, NEVER).unwrap();
    while group.all_reduce(&mut [1], Reduce::Sum).is_ok() {}
}

/// A process that ends with the test.
struct Process(Child);

impl Process {
    fn start(at: u32, address: &Address) -> Self {
        let test = "launch::rendezvous::tests::a_rank_in_a_process_of_its_own";
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", test]).env(AS_PROCESS, format!("{at} {address}"));
        Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_process_that_is_killed_or_stopped_is_named() {
    for (signal, says) in [
        (Signal::KILL, "ended before the others"),
        (Signal::TERM, "ended before the others"),
        (Signal::STOP, "has made no progress for 5 s"),
    ] {
        for child in [0, 1] {
            let (listener, address) = listener();
            drop(listener);
            let process = Process::start(child, &address);
            let mut group = rank(&address, 1 - child, 2).join(STOPPED, NEVER).unwrap();
            for _ in 0..100 {
                group.all_reduce(&mut [1], Reduce::Sum).unwrap();
            }
            process.signal(signal);
            let begin = Instant::now();
            let failure = loop {
                if let Err(failure) = group.all_reduce(&mut [1], Reduce::Sum) {
                    break failure;
                }
                assert!(begin.elapsed() < ENDS);
            };
            assert_eq!(failure.to_string(), format!("rank {child} {says}"));
        }
    }
}
