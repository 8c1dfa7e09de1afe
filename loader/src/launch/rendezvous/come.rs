//! All ranks but 0: come to rank 0, as often as it takes, and wait to be welcomed.

use super::{
    OneLine, Rendezvous, RendezvousError,
    gather::resolve,
    message::{Hello, MAX_REPLY_BYTES, Reply, Unread, decode, receive, send},
};
use crate::collective::{PROTOCOL, TcpCommunicator};
use std::{
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

/// How long a connection may take to be made.
const CONNECT_TIME: Duration = Duration::from_secs(1);

/// Pauses between tries: first, and longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(250));

/// What rank 0 may need beyond its own patience to say that it has run out.
const GRACE: Duration = Duration::from_secs(5);

/// Comes to rank 0 until it is there, and waits for its word.
pub(super) fn come(
    this: &Rendezvous,
    patience: Duration,
    interrupted: &dyn Fn() -> bool,
) -> Result<TcpCommunicator, RendezvousError> {
    let begin = Instant::now();
    let (mut pause, longest) = PAUSES;
    loop {
        let left = patience.saturating_sub(begin.elapsed());
        let reason = match connect(this, left.min(CONNECT_TIME)) {
            Ok(mut stream) => match wait(this, &mut stream, begin, patience, interrupted)? {
                Waited::Welcome => {
                    let later = this.progress_within.unwrap_or(patience);
                    return TcpCommunicator::spoke(this.rank, this.world, stream, later)
                        .map_err(RendezvousError::System);
                }
                Waited::Nothing(reason) => reason.into(),
            },
            Err(reason) => reason,
        };
        if interrupted() {
            return Err(RendezvousError::Interrupted);
        }
        if begin.elapsed() >= patience {
            let (rank, address) = (this.rank, this.address.clone());
            return Err(RendezvousError::Unreached { rank, address, waited: patience, reason });
        }
        std::thread::sleep(pause.min(patience.saturating_sub(begin.elapsed())));
        pause = (pause * 2).min(longest);
    }
}

/// What came of a connection that was made.
enum Waited {
    Welcome,
    /// It was not to rank 0 of this job, or rank 0 was too busy.
    Nothing(&'static str),
}

fn connect(this: &Rendezvous, limit: Duration) -> Result<TcpStream, OneLine> {
    let reason = |error: std::io::Error| OneLine::from(error.to_string());
    let mut last = OneLine::default();
    for address in resolve(&this.address).map_err(reason)? {
        match connect_to(address, limit.max(PAUSES.0)) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = reason(error),
        }
    }
    Err(last)
}

fn connect_to(address: SocketAddr, limit: Duration) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, limit)?;
    // On one host, a connection to a port that nobody listens on may be given that very port as its own, and meet itself.
    if stream.local_addr()? == stream.peer_addr()? {
        return Err(std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "nobody listens there"));
    }
    Ok(stream)
}

/// Says who this is, and waits for rank 0's word.
fn wait(
    this: &Rendezvous,
    stream: &mut TcpStream,
    begin: Instant,
    patience: Duration,
    interrupted: &dyn Fn() -> bool,
) -> Result<Waited, RendezvousError> {
    if send(stream, &Hello::of(this)).is_err() {
        return Ok(Waited::Nothing("it closed the connection at once"));
    }
    let lost = |ended| RendezvousError::Lost { address: this.address.clone(), ended };
    // Until rank 0 answers this rank's patience counts, and from then on rank 0's, which may have begun later.
    let (mut known, mut until) = (false, begin + patience.max(GRACE));
    loop {
        let heard = receive(stream, MAX_REPLY_BYTES, &mut || Instant::now() < until && !interrupted());
        let heard = heard.and_then(|(version, body)| match decode::<Reply>(&body) {
            Ok(reply) if version == PROTOCOL || matches!(reply, Reply::Refused(_)) => Ok(reply),
            _ => Err(Unread::Stranger),
        });
        match heard {
            Ok(Reply::Welcome) => return Ok(Waited::Welcome),
            Ok(Reply::Refused(refusal)) => return Err(refusal.into()),
            Ok(Reply::Wait) if known => {}
            Ok(Reply::Wait) => (known, until) = (true, Instant::now() + patience + GRACE),
            Err(Unread::Stopped) if interrupted() => return Err(RendezvousError::Interrupted),
            Err(Unread::Stopped) => return Err(lost(false)),
            Err(Unread::Ended) if known => return Err(lost(true)),
            Err(Unread::Ended) => {
                return Ok(Waited::Nothing(
                    "it closed the connection without an answer; it may be rank 0 of another job",
                ));
            }
            Err(Unread::Stranger) => {
                return Ok(Waited::Nothing("what answers there is not shardwright"));
            }
        }
    }
}
