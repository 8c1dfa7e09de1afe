//! Rank 0: listens until all ranks have come, or until it is clear that they will not come together.

use super::{
    Details, Refusal, Rendezvous, RendezvousError, Who,
    message::{Frozen, Hello, MAX_HELLO_BYTES, Reply, decode, receive, send},
};
use crate::{
    collective::{PROTOCOL, TcpCommunicator},
    launch::Address,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs},
    sync::mpsc::{self, Receiver, Sender},
    thread::Builder,
    time::{Duration, Instant},
};

/// How long whoever connects may take to say who it is.
const HELLO_TIME: Duration = Duration::from_secs(2);

/// How many may be asked who they are at a time. A rank that is one too many is sent away and comes again.
const MAX_PENDING: usize = 256;

/// How long a port that is in use, or a name that is not yet known, is tried again.
const LISTEN_TIME: Duration = Duration::from_secs(5);

/// How long a name may take to be looked up.
const RESOLVE_TIME: Duration = Duration::from_secs(5);

/// How long those are waited for who come when the job is over already, so that they hear why.
const LATE_TIME: Duration = Duration::from_secs(3);

/// How long to wait for the next to come before looking around.
const PAUSE: Duration = Duration::from_millis(10);

/// How often to look whether those who wait are still there.
const ROUND: Duration = Duration::from_millis(100);

/// Bytes of stack of a thread that reads a hello.
const STACK_BYTES: usize = 256 << 10;

/// Listens at the address and waits for all.
pub(super) fn gather(
    this: &Rendezvous,
    patience: Duration,
    interrupted: &dyn Fn() -> bool,
) -> Result<TcpCommunicator, RendezvousError> {
    if this.world == 1 {
        let later = this.progress_within.unwrap_or(patience);
        return TcpCommunicator::hub(Vec::new(), later, Vec::new()).map_err(RendezvousError::System);
    }
    let (listener, note) = listen(&this.address, patience.min(LISTEN_TIME), interrupted)?;
    gather_at(this, &listener, note, patience, interrupted)
}

/// Waits for all at a socket that listens.
pub(super) fn gather_at(
    this: &Rendezvous,
    listener: &TcpListener,
    note: Option<String>,
    patience: Duration,
    interrupted: &dyn Fn() -> bool,
) -> Result<TcpCommunicator, RendezvousError> {
    listener.set_nonblocking(true).map_err(RendezvousError::System)?;
    let (said, heard) = mpsc::channel();
    let mut meeting = Meeting { this, come: BTreeMap::new(), pending: 0, strangers: 0, said, heard };
    let begin = Instant::now();
    let mut looked = begin;
    while meeting.come.len() + 1 < this.world as usize {
        if interrupted() {
            meeting.refuse(&Refusal::Interrupted);
            return Err(RendezvousError::Interrupted);
        }
        meeting.admit(listener);
        let mut round = meeting.hear();
        if round.is_ok() && looked.elapsed() >= ROUND {
            looked = Instant::now();
            round = meeting.miss_none();
        }
        if round.is_ok() && begin.elapsed() >= patience && meeting.come.len() + 1 < this.world as usize {
            let ranks = (1..this.world).filter(|rank| !meeting.come.contains_key(rank)).collect();
            let address = this.address.to_string().into();
            round = Err(Refusal::Missing { ranks, address, waited: patience });
        }
        if let Err(refusal) = round {
            meeting.refuse(&refusal);
            if !matches!(refusal, Refusal::Missing { .. }) {
                meeting.refuse_late(listener, &refusal, patience.min(LATE_TIME), interrupted);
            }
            return Err(refusal.into());
        }
    }
    let mut notes: Vec<String> = note.into_iter().collect();
    if meeting.strangers > 0 {
        notes.push(format!(
            "{} connections to {} were not of this job's ranks, and were closed",
            meeting.strangers, this.address
        ));
    }
    meeting.welcome(this.progress_within.unwrap_or(patience), notes).map_err(RendezvousError::System)
}

/// A rank that has come.
struct Come {
    stream: TcpStream,
    who: Who,
}

/// What somebody said, as far as it could be understood.
enum Said {
    /// A rank of this version.
    Hello(TcpStream, Box<Hello>),
    /// A rank, perhaps of this job, of another version.
    OtherVersion(TcpStream, u16, Frozen),
    /// Nobody.
    Nothing,
}

struct Meeting<'a> {
    this: &'a Rendezvous,
    come: BTreeMap<u32, Come>,
    /// Threads that read a hello.
    pending: usize,
    strangers: u64,
    said: Sender<Said>,
    heard: Receiver<Said>,
}

impl Meeting<'_> {
    /// Lets in whoever stands at the door, and asks each who it is, in a thread that ends by itself.
    fn admit(&mut self, listener: &TcpListener) {
        for _ in 0..MAX_PENDING {
            // Nobody is there, or whoever was has gone; a lack of file descriptors may pass.
            let Ok((stream, _)) = listener.accept() else { break };
            if self.pending >= MAX_PENDING {
                continue;
            }
            let said = self.said.clone();
            let asks = Builder::new().name("hello".to_owned()).stack_size(STACK_BYTES);
            let asked = asks.spawn(move || {
                // When nobody listens any more, all have come.
                let _ = said.send(hello(stream));
            });
            match asked {
                Ok(_) => self.pending += 1,
                // It is sent away, too, and comes again.
                Err(_) => break,
            }
        }
    }

    /// Hears what has been said; waits a moment when it is nothing.
    fn hear(&mut self) -> Result<(), Refusal> {
        let mut next = self.heard.recv_timeout(PAUSE).ok();
        while let Some(said) = next {
            self.pending = self.pending.saturating_sub(1);
            match said {
                Said::Hello(stream, hello) if hello.frozen.job == self.this.job => {
                    self.judge(stream, *hello)?;
                }
                Said::OtherVersion(mut stream, its, Frozen { job, rank }) if job == self.this.job => {
                    let refusal = Refusal::Protocol { rank, its, ours: PROTOCOL };
                    // It may understand.
                    let _ = send(&mut stream, &Reply::Refused(refusal.clone()));
                    return Err(refusal);
                }
                _ => self.strangers += 1,
            }
            next = self.heard.try_recv().ok();
        }
        Ok(())
    }

    /// Takes a rank of this job in, or refuses the whole job.
    fn judge(&mut self, mut stream: TcpStream, hello: Hello) -> Result<(), Refusal> {
        let refused = self.objection(&hello).map_or(Ok(()), Err);
        let reply = match &refused {
            Ok(()) => Reply::Wait,
            Err(refusal) => Reply::Refused(refusal.clone()),
        };
        // Whether it is still there is looked at in the next round.
        let _ = send(&mut stream, &reply);
        if refused.is_ok() {
            let _ = stream.set_nonblocking(true);
            self.come.insert(hello.frozen.rank, Come { stream, who: hello.who });
        } else {
            let _ = stream.shutdown(Shutdown::Write);
        }
        refused
    }

    fn objection(&self, hello: &Hello) -> Option<Refusal> {
        let Rendezvous { world, plan_digest, version, details: Details { nccl, .. }, .. } = self.this;
        let rank = hello.frozen.rank;
        let who = Who { rank, ..hello.who.clone() };
        if hello.world != *world {
            return Some(Refusal::World { who, its: hello.world, world: *world });
        }
        if hello.version != *version {
            let (its, ours) = (hello.version.as_str().into(), version.as_str().into());
            return Some(Refusal::Version { who, its, ours });
        }
        if hello.plan != *plan_digest {
            let (its, ours) = (hello.plan.as_str().into(), plan_digest.as_str().into());
            return Some(Refusal::Plan { who, its, ours });
        }
        if hello.nccl != *nccl {
            return Some(Refusal::Nccl { who, its: hello.nccl, ours: *nccl });
        }
        if rank == 0 || rank >= *world {
            return Some(Refusal::Range { who, world: *world });
        }
        let first = self.come.get(&rank)?;
        Some(Refusal::Twice { first: first.who.clone(), second: who })
    }

    /// Sees that those who have come are still there: they wait, and have nothing to say.
    fn miss_none(&self) -> Result<(), Refusal> {
        for come in self.come.values() {
            let peeked = come.stream.peek(&mut [0]);
            if !peeked
                .is_err_and(|error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted))
            {
                return Err(Refusal::Gone { who: come.who.clone() });
            }
        }
        Ok(())
    }

    /// Tells all who have come that the job ends here.
    fn refuse(&mut self, refusal: &Refusal) {
        for come in self.come.values_mut() {
            // Whoever is gone needs not be told.
            let _ = send(&mut come.stream, &Reply::Refused(refusal.clone()));
            let _ = come.stream.shutdown(Shutdown::Write);
        }
    }

    /// Tells the ranks that come late that the job has ended, until all have been told or `patience` is over.
    fn refuse_late(
        &mut self,
        listener: &TcpListener,
        refusal: &Refusal,
        patience: Duration,
        interrupted: &dyn Fn() -> bool,
    ) {
        let begin = Instant::now();
        let mut told: BTreeSet<u32> = self.come.keys().copied().chain(refusal.rank()).collect();
        while told.len() + 1 < self.this.world as usize && begin.elapsed() < patience && !interrupted() {
            self.admit(listener);
            let Ok(said) = self.heard.recv_timeout(PAUSE) else { continue };
            self.pending = self.pending.saturating_sub(1);
            let (mut stream, rank) = match said {
                Said::Hello(stream, hello) if hello.frozen.job == self.this.job => {
                    (stream, hello.frozen.rank)
                }
                Said::OtherVersion(stream, _, Frozen { job, rank }) if job == self.this.job => (stream, rank),
                _ => continue,
            };
            let _ = send(&mut stream, &Reply::Refused(refusal.clone()));
            let _ = stream.shutdown(Shutdown::Write);
            told.insert(rank);
        }
    }

    /// Tells all that all have come.
    fn welcome(mut self, patience: Duration, notes: Vec<String>) -> io::Result<TcpCommunicator> {
        for come in self.come.values_mut() {
            // Whoever is gone is missed by the group at once.
            let _ = send(&mut come.stream, &Reply::Welcome);
        }
        // In the order of ranks: each has come once, none is missing.
        TcpCommunicator::hub(self.come.into_values().map(|come| come.stream).collect(), patience, notes)
    }
}

/// Asks whoever has connected who it is; never takes longer than [`HELLO_TIME`].
fn hello(mut stream: TcpStream) -> Said {
    let begin = Instant::now();
    let heard = receive(&mut stream, MAX_HELLO_BYTES, &mut || begin.elapsed() < HELLO_TIME);
    let Ok((version, body)) = heard else { return Said::Nothing };
    if version == PROTOCOL {
        decode(&body).map_or(Said::Nothing, |hello| Said::Hello(stream, Box::new(hello)))
    } else {
        decode(&body).map_or(Said::Nothing, |frozen| Said::OtherVersion(stream, version, frozen))
    }
}

/// Listens at `address`; gives a note where it had to be at all addresses of this machine instead.
fn listen(
    address: &Address,
    patience: Duration,
    interrupted: &dyn Fn() -> bool,
) -> Result<(TcpListener, Option<String>), RendezvousError> {
    let begin = Instant::now();
    loop {
        let outcome = resolve(address).and_then(|addresses| {
            TcpListener::bind(addresses.as_slice()).map(|listener| (listener, None)).or_else(|error| {
                match addresses.first() {
                    // The name is that of a load balancer, or of an address that is translated on its way here.
                    Some(first) if error.kind() == ErrorKind::AddrNotAvailable => {
                        let note = format!("{address} is not this machine's: listening at all its addresses");
                        let all = match first {
                            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
                        };
                        TcpListener::bind((all, address.port())).map(|listener| (listener, Some(note)))
                    }
                    _ => Err(error),
                }
            })
        });
        match outcome {
            Ok(listening) => return Ok(listening),
            Err(_) if interrupted() => return Err(RendezvousError::Interrupted),
            Err(source) if begin.elapsed() >= patience => {
                return Err(RendezvousError::Listen { address: address.clone(), source });
            }
            Err(_) => std::thread::sleep(ROUND),
        }
    }
}

/// The addresses of a host's name, or an error in bounded time.
pub(super) fn resolve(address: &Address) -> io::Result<Vec<SocketAddr>> {
    if let Ok(numeric) = address.host().parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(numeric, address.port())]);
    }
    let (found, finds) = mpsc::channel();
    let (host, port) = (address.host().to_owned(), address.port());
    // The system's look-up has a limit of its own; the thread ends with it.
    Builder::new().name("resolve".to_owned()).spawn(move || {
        let addresses = (host.as_str(), port).to_socket_addrs().map(|all| all.take(16).collect());
        let _ = found.send(addresses);
    })?;
    let addresses: Vec<SocketAddr> = finds
        .recv_timeout(RESOLVE_TIME)
        .unwrap_or_else(|_| Err(io::Error::new(ErrorKind::TimedOut, "its name could not be looked up")))?;
    if addresses.is_empty() {
        return Err(io::Error::new(ErrorKind::NotFound, "its name has no address"));
    }
    Ok(addresses)
}
