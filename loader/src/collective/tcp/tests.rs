//! Ranks as threads, connected as processes are.

use super::{
    frame::{Frame, MAX_FRAME_BYTES, Part},
    *,
};
use proptest::prelude::*;
use std::{
    io::{Read, Write},
    net::TcpListener,
    time::Instant,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// Nothing that is tested here takes longer, unless it never ends.
const ENDS: Duration = Duration::from_secs(60);

/// Both ends of a connection: rank 0's, and the other rank's.
fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let spoke = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (listener.accept().unwrap().0, spoke)
}

/// Rank 0, and the bare connections of the others.
fn hub(world: u32, patience: Duration) -> (TcpCommunicator, Vec<TcpStream>) {
    let (hub, spokes) = (1..world).map(|_| pair()).unzip();
    (TcpCommunicator::hub(hub, patience, Vec::new()).unwrap(), spokes)
}

fn group(world: u32, patience: Duration) -> Vec<TcpCommunicator> {
    let (hub, spokes) = hub(world, patience);
    let spokes = (1..)
        .zip(spokes)
        .map(|(rank, stream)| TcpCommunicator::spoke(rank, world, stream, patience).unwrap());
    std::iter::once(hub).chain(spokes).collect()
}

/// Runs `body` on every rank in threads, and sees that they end.
fn on_all<T: Send>(group: Vec<TcpCommunicator>, body: impl Fn(TcpCommunicator) -> T + Sync) -> Vec<T> {
    let (body, begin) = (&body, Instant::now());
    let outcomes = std::thread::scope(|scope| {
        let ranks: Vec<_> = group.into_iter().map(|rank| scope.spawn(move || body(rank))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    assert!(begin.elapsed() < ENDS);
    outcomes
}

fn sum(rank: &mut TcpCommunicator) -> Result<u64, CollectiveError> {
    let mut values = [1];
    rank.all_reduce(&mut values, Reduce::Sum).map(|()| values[0])
}

/// Waits until a rank that works by itself hears of a failure.
fn hears(lifeline: &Lifeline) -> CollectiveError {
    let begin = Instant::now();
    while begin.elapsed() < ENDS {
        if let Some(failure) = lifeline.failure() {
            return failure;
        }
        lifeline.beat();
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("no failure was heard of")
}

fn say(stream: &mut TcpStream, frame: &Frame) {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    stream.write_all(&bytes).unwrap();
}

fn part(call: u64, values: &[u64]) -> Frame {
    Frame::Part(Part {
        call,
        reduce: Reduce::Sum,
        total: u32::try_from(values.len()).unwrap(),
        values: values.to_vec(),
    })
}

/// What comes until the other end closes: the frames but beats.
fn heard(stream: &mut TcpStream) -> Vec<Frame> {
    let mut bytes = Vec::new();
    stream.set_read_timeout(Some(ENDS)).unwrap();
    let _ = stream.read_to_end(&mut bytes);
    let mut rest = bytes.as_slice();
    let mut frames = Vec::new();
    while let Some((length, more)) = rest.split_first_chunk() {
        let (frame, more) = more.split_at(u32::from_le_bytes(*length) as usize);
        frames.push(Frame::decode(frame).unwrap());
        rest = more;
    }
    frames.retain(|frame| !matches!(frame, Frame::Beat(_)));
    frames
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn processes_get_what_threads_get(
        world in 1u32..9, calls in prop::collection::vec((0usize..3, 0usize..400), 1..6), seed in any::<u64>()
    ) {
        let work = |rank: &mut dyn Communicator| {
            let mut seen = Vec::new();
            for (reduce, length) in &calls {
                let reduce = [Reduce::Sum, Reduce::Min, Reduce::Max][*reduce];
                let own = seed.rotate_left(7 * rank.rank());
                let mut values: Vec<u64> = (0..*length as u64).map(|at| own.wrapping_mul(2 * at + 1)).collect();
                rank.all_reduce(&mut values, reduce).unwrap();
                seen.push(values);
            }
            seen
        };
        let processes = on_all(group(world, PATIENCE), |mut rank| work(&mut rank));
        let threads = std::thread::scope(|scope| {
            let ranks: Vec<_> = super::super::local_group(world, PATIENCE)
                .into_iter()
                .map(|mut rank| scope.spawn(move || work(&mut rank)))
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect::<Vec<_>>()
        });
        prop_assert_eq!(processes, threads);
    }

    #[test]
    fn whatever_a_peer_sends_the_group_ends(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let begin = Instant::now();
        let (mut hub, mut peers) = hub(2, PATIENCE);
        let _ = peers[0].write_all(&bytes);
        drop(peers);
        let outcome = sum(&mut hub);
        prop_assert_eq!(outcome.map_err(|failure| failure.rank()), Err(1));
        prop_assert!(begin.elapsed() < ENDS);
    }

    #[test]
    fn whatever_rank_0_sends_a_rank_ends(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let begin = Instant::now();
        let (mut hub, spoke) = pair();
        let mut spoke = TcpCommunicator::spoke(1, 2, spoke, PATIENCE).unwrap();
        let _ = hub.write_all(&bytes);
        drop(hub);
        let outcome = sum(&mut spoke);
        prop_assert_eq!(outcome.map_err(|failure| failure.rank()), Err(0));
        prop_assert!(begin.elapsed() < ENDS);
    }
}

#[test]
fn arrays_of_many_parts_arrive() {
    let length = 300_000;
    let sums = on_all(group(3, PATIENCE), |mut rank| {
        let mut values: Vec<u64> = (0..length).map(|at| at << rank.rank()).collect();
        rank.all_reduce(&mut values, Reduce::Sum).unwrap();
        values
    });
    for values in sums {
        assert!((0..length).zip(values).all(|(at, sum)| sum == at * 7));
    }
}

#[test]
fn more_numbers_than_go_at_once_are_refused() {
    let mut rank = group(1, PATIENCE).remove(0);
    let outcome = rank.all_reduce(&mut vec![0; MAX_VALUES + 1], Reduce::Sum);
    let reason = "it asked to reduce 67108865 numbers; 67108864 go at once";
    assert_eq!(outcome, Err(CollectiveError::lost(0, reason)));
}

#[test]
fn a_process_that_takes_nothing_is_named() {
    let patience = Duration::from_secs(1);
    let (mut hub, mut peers) = hub(2, patience);
    // It asks for more than its connection holds, and never reads.
    let length = 8 << 20;
    let mut asks = peers[0].try_clone().unwrap();
    let outcome = std::thread::scope(|scope| {
        scope.spawn(move || {
            let part = |values: &[u64]| {
                Frame::Part(Part { call: 0, reduce: Reduce::Sum, total: length, values: values.to_vec() })
            };
            vec![0; length as usize]
                .chunks(frame::PART_VALUES)
                .for_each(|values| say(&mut asks, &part(values)));
        });
        hub.all_reduce(&mut vec![0; length as usize], Reduce::Sum).unwrap();
        hears(&hub.lifeline())
    });
    assert_eq!(outcome, CollectiveError::Stalled { rank: 1, quiet: patience });
    let begin = Instant::now();
    drop(hub);
    assert!(begin.elapsed() < ENDS);
    peers.clear();
}

#[test]
fn a_rank_alone_is_a_group() {
    assert_eq!(on_all(group(1, PATIENCE), |mut rank| sum(&mut rank)), [Ok(1)]);
}

#[test]
fn a_reason_reaches_ranks_that_wait_and_ranks_that_work() {
    for bad in 0..4 {
        let outcomes = on_all(group(4, PATIENCE), |mut rank| {
            if rank.rank() == bad {
                rank.abort("cuda cannot give 80 GiB\nhelp: tp 8");
                rank.lifeline().failure().unwrap()
            } else if rank.rank() % 2 == 0 {
                sum(&mut rank).unwrap_err()
            } else {
                hears(&rank.lifeline())
            }
        });
        let first = CollectiveError::lost(bad, "cuda cannot give 80 GiB; help: tp 8");
        assert_eq!(outcomes, vec![first; 4]);
    }
}

#[test]
fn a_rank_that_is_done_is_no_failure_for_those_who_work() {
    let mut ranks = group(3, PATIENCE);
    for done in [1, 0] {
        drop(ranks.remove(done));
    }
    let mut left = ranks.remove(0);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(left.lifeline().failure(), None);
    assert_eq!(sum(&mut left), Err(CollectiveError::ended(0)));
}

#[test]
fn a_call_that_needs_a_rank_that_left_fails_on_all() {
    let outcomes = on_all(group(4, PATIENCE), |mut rank| match rank.rank() {
        2 => Err(CollectiveError::ended(2)),
        _ => sum(&mut rank),
    });
    assert_eq!(outcomes, vec![Err(CollectiveError::ended(2)); 4]);
}

#[test]
fn a_process_that_is_killed_is_named() {
    let (hub, mut streams) = hub(3, PATIENCE);
    let killed = streams.remove(1);
    let spoke = TcpCommunicator::spoke(1, 3, streams.remove(0), PATIENCE).unwrap();
    drop(killed);
    let outcomes = on_all(vec![hub, spoke], |mut rank| sum(&mut rank));
    assert_eq!(outcomes, vec![Err(CollectiveError::ended(2)); 2]);

    let (hub, spoke) = pair();
    let mut spoke = TcpCommunicator::spoke(1, 2, spoke, PATIENCE).unwrap();
    drop(hub);
    assert_eq!(sum(&mut spoke), Err(CollectiveError::ended(0)));
}

#[test]
fn a_process_that_ends_in_the_middle_of_a_frame_is_named() {
    let (mut hub, mut streams) = hub(2, PATIENCE);
    streams[0].write_all(&[100, 0, 0, 0, 2, 0]).unwrap();
    drop(streams);
    assert_eq!(sum(&mut hub), Err(CollectiveError::ended(1)));
}

#[test]
fn a_process_that_is_stopped_is_named() {
    let patience = Duration::from_secs(1);
    // Rank 2 is connected, and says nothing.
    let (hub, mut streams) = hub(3, patience);
    let stopped = streams.remove(1);
    let spoke = TcpCommunicator::spoke(1, 3, streams.remove(0), patience).unwrap();
    let outcomes = on_all(vec![hub, spoke], |mut rank| sum(&mut rank));
    assert_eq!(outcomes, vec![Err(CollectiveError::Stalled { rank: 2, quiet: patience }); 2]);
    drop(stopped);

    let (stopped, spoke) = pair();
    let mut spoke = TcpCommunicator::spoke(1, 2, spoke, patience).unwrap();
    assert_eq!(sum(&mut spoke), Err(CollectiveError::Stalled { rank: 0, quiet: patience }));
    drop(stopped);
}

#[test]
fn a_rank_that_runs_and_gets_nowhere_is_named() {
    let patience = Duration::from_secs(1);
    for hangs in [0, 1] {
        let outcomes = on_all(group(3, patience), |mut rank| {
            if rank.rank() == hangs {
                // It hears of it, but does not beat.
                while rank.lifeline().failure().is_none() {
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
            sum(&mut rank)
        });
        assert_eq!(outcomes, vec![Err(CollectiveError::Stalled { rank: hangs, quiet: patience }); 3]);
    }
}

#[test]
fn a_slow_rank_that_gets_on_is_waited_for() {
    let patience = Duration::from_secs(1);
    for slow in [0, 2] {
        let outcomes = on_all(group(3, patience), |mut rank| {
            let begin = Instant::now();
            while rank.rank() == slow && begin.elapsed() < patience * 3 {
                rank.lifeline().beat();
                std::thread::sleep(Duration::from_millis(20));
            }
            sum(&mut rank)
        });
        assert_eq!(outcomes, vec![Ok(3); 3]);
    }
}

#[test]
fn different_calls_are_out_of_step() {
    let outcomes = on_all(group(3, PATIENCE), |mut rank| {
        let mut values = vec![0; if rank.rank() == 1 { 2 } else { 1 }];
        rank.all_reduce(&mut values, Reduce::Sum)
    });
    assert!(matches!(outcomes[0], Err(CollectiveError::OutOfStep { .. })), "{outcomes:?}");
    assert!(outcomes.iter().all(|outcome| *outcome == outcomes[0]));
}

#[test]
fn a_peer_that_breaks_the_rules_is_named_and_told() {
    let huge = (u32::try_from(MAX_FRAME_BYTES).unwrap() + 1).to_le_bytes();
    let encoded = |frames: &[Frame]| {
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| frame.encode(&mut bytes));
        bytes
    };
    let cases = [
        (huge.to_vec(), "it sent a frame of 524303 bytes; the longest has 524302"),
        (vec![0; 4], "it sent a frame of 0 bytes; the longest has 524302"),
        (vec![1, 0, 0, 0, 9], "it sent a frame of unknown kind 9"),
        (vec![2, 0, 0, 0, 1, 1], "it sent a broken frame of kind 1"),
        (encoded(&[part(1, &[1])]), "it sent a part of call 1 where one of call 0 was due"),
        (encoded(&[part(0, &[1]), part(1, &[1])]), "it made a call before the last was answered"),
    ];
    for (bytes, reason) in cases {
        let (hub, mut peers) = hub(2, PATIENCE);
        peers[0].write_all(&bytes).unwrap();
        let failure = CollectiveError::lost(1, reason);
        assert_eq!(hears(&hub.lifeline()), failure);
        drop(hub);
        assert_eq!(heard(&mut peers[0]), [Frame::Failed(failure), Frame::Bye]);
    }
}

#[test]
fn a_rank_0_that_breaks_the_rules_is_named() {
    let unasked = "it sent a result that rank 1 did not ask for";
    let (mut hub, spoke) = pair();
    let spoke = TcpCommunicator::spoke(1, 2, spoke, PATIENCE).unwrap();
    say(&mut hub, &part(0, &[1]));
    assert_eq!(hears(&spoke.lifeline()), CollectiveError::lost(0, unasked));

    let (mut hub, spoke) = pair();
    let mut spoke = TcpCommunicator::spoke(1, 2, spoke, PATIENCE).unwrap();
    let outcome = std::thread::scope(|scope| {
        let call = scope.spawn(|| sum(&mut spoke));
        let mut asked = [0; 4];
        hub.read_exact(&mut asked).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        say(&mut hub, &part(0, &[1, 2]));
        call.join().unwrap()
    });
    let length = "its result is of another length than asked for";
    assert!(
        [length, unasked].iter().any(|reason| outcome == Err(CollectiveError::lost(0, reason))),
        "{outcome:?}"
    );
}

#[test]
fn what_a_peer_says_of_others_is_its_own_failure() {
    let (hub, mut peers) = hub(3, PATIENCE);
    say(&mut peers[0], &Frame::Failed(CollectiveError::ended(2)));
    let reason = "rank 2 ended before the others";
    assert_eq!(hears(&hub.lifeline()), CollectiveError::lost(1, reason));
}

#[test]
fn results_reach_everybody_before_rank_0_ends() {
    for _ in 0..10 {
        let outcomes = on_all(group(8, PATIENCE), |mut rank| sum(&mut rank));
        assert_eq!(outcomes, vec![Ok(8); 8]);
    }
}
