//! Handing the document out, and counting who is attached.
//!
//! One thread, which waits for nobody: whoever does not read is given up, and keeps nobody else from reading.

use super::{
    Document, FULL, GREETING, HoldError, MOST_ATTACHED, MOST_DOCUMENT_BYTES, PROTOCOL, peer::Peer,
    socket::Socket,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    io::Errno,
    net::{RecvFlags, SendFlags},
};
use std::{
    fmt, io,
    os::{fd::AsFd, unix::net::UnixStream},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

/// How often is looked whether to stop.
const TICK: Duration = Duration::from_millis(100);

/// What happened to a holder.
#[derive(Debug)]
pub enum Event {
    /// Processes can attach from now on.
    Held,
    /// A process has the document, and is attached until it closes its connection.
    Attached {
        /// Which, where it can be seen.
        pid: Option<u32>,
        /// How many are attached now.
        attached: usize,
    },
    /// A process that was attached is no more.
    Left {
        /// Which, where it can be seen.
        pid: Option<u32>,
        /// How many are attached now.
        attached: usize,
    },
    /// A process was not let in, or let go.
    TurnedAway {
        /// Which, where it can be seen.
        pid: Option<u32>,
        /// Why.
        why: TurnedAway,
    },
    /// The holder is to end, and waits for those that are attached. To be told again to end is not to wait.
    Waiting {
        /// How many are attached.
        attached: usize,
    },
    /// Connections cannot be taken at the moment.
    CannotAccept {
        /// Why.
        source: io::Error,
    },
}

/// Why a process was turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TurnedAway {
    /// It is another user's.
    Stranger {
        /// The user.
        uid: u32,
    },
    /// As many are attached as can be.
    Full,
    /// It did not take the document in time, or in time for others who wanted it.
    Slow,
    /// It sent something; there is nothing to say.
    Spoke,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = |pid: &Option<u32>| pid.map_or("a process".to_owned(), |pid| format!("pid {pid}"));
        match self {
            Self::Held => f.write_str("processes can attach"),
            Self::Attached { pid, attached } => write!(f, "{} attached, {attached} in all", who(pid)),
            Self::Left { pid, attached } => write!(f, "{} left, {attached} attached", who(pid)),
            Self::TurnedAway { pid, why } => write!(f, "{} was turned away: {why}", who(pid)),
            Self::Waiting { attached } => {
                write!(f, "waiting for {attached} attached to leave; interrupt again to end at once")
            }
            Self::CannotAccept { source } => write!(f, "cannot let anybody attach now: {source}"),
        }
    }
}

impl fmt::Display for TurnedAway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stranger { uid } => write!(f, "it is of another user, {uid}"),
            Self::Full => write!(f, "{MOST_ATTACHED} are attached"),
            Self::Slow => f.write_str("it does not read"),
            Self::Spoke => f.write_str("it sent something"),
        }
    }
}

/// Hands `document` out at `path` until it is told to stop; whoever has the weights it describes keeps them until this returns.
///
/// `stop` is taken down whenever it is found up, so that a signal can put it up again. The first time, nobody is let in any
/// more, the socket is removed, and those attached are waited for; the second time, they are not. The socket is removed in every
/// case, also when `on_event` panics; only after a kill -9 it stays, and is replaced by the next holder.
///
/// # Errors
/// [`HoldError::HeldAlready`] when somebody holds there, [`HoldError::NotASocket`] when something else lies there; [`HoldError`]
/// when the socket cannot be made.
pub fn serve(
    path: &Path,
    document: &Document,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(Event),
) -> Result<(), HoldError> {
    serve_within(path, document, stop, on_event, Limits::default())
}

/// What one holder puts up with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// How many connections.
    pub(super) peers: usize,
    /// How long one may take to read the document.
    pub(super) patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { peers: MOST_ATTACHED, patience: Duration::from_secs(30) }
    }
}

pub(super) fn serve_within(
    path: &Path,
    document: &Document,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(Event),
    limits: Limits,
) -> Result<(), HoldError> {
    let mut holder = Holder {
        message: message(path, document)?,
        limits,
        socket: Some(Socket::bind(path)?),
        guests: Vec::new(),
        can_accept: true,
        on_event,
    };
    (holder.on_event)(Event::Held);
    loop {
        if stop.swap(false, Ordering::Relaxed) && !holder.end() {
            return Ok(());
        }
        if holder.socket.is_none() && holder.guests.is_empty() {
            return Ok(());
        }
        holder.wait().map_err(|source| HoldError::Io { doing: "wait at", path: path.to_owned(), source })?;
        holder.hear();
        holder.send();
        holder.accept();
    }
}

/// The greeting and the document.
fn message(path: &Path, document: &Document) -> Result<Vec<u8>, HoldError> {
    let failed = |error: serde_json::Error| HoldError::Io {
        doing: "write the document for",
        path: path.to_owned(),
        source: error.into(),
    };
    let json = document.to_json().map_err(failed)?;
    if json.len() as u64 > MOST_DOCUMENT_BYTES {
        return Err(HoldError::TooMuch {
            tensors: document.ranks.iter().map(|rank| rank.tensors.all().len() as u64).sum(),
            ranks: document.ranks.len() as u64,
            bytes: json.len() as u64,
        });
    }
    let mut message = format!("{GREETING} {PROTOCOL} {}\n", json.len()).into_bytes();
    message.extend(json);
    Ok(message)
}

struct Holder<'a> {
    message: Vec<u8>,
    limits: Limits,
    /// `None` when nobody is let in any more.
    socket: Option<Socket>,
    /// Who is connected, the longest first.
    guests: Vec<Guest>,
    /// Whether the last connection could be taken.
    can_accept: bool,
    on_event: &'a mut dyn FnMut(Event),
}

struct Guest {
    stream: UnixStream,
    pid: Option<u32>,
    sent: usize,
    /// When it must have read all.
    deadline: Instant,
}

impl Holder<'_> {
    fn has_all(&self, guest: &Guest) -> bool {
        guest.sent == self.message.len()
    }

    fn attached(&self) -> usize {
        self.guests.iter().filter(|guest| self.has_all(guest)).count()
    }

    /// Lets nobody in any more. False when that was so already.
    fn end(&mut self) -> bool {
        if self.socket.take().is_none() {
            return false;
        }
        let all = self.message.len();
        self.guests.retain(|guest| guest.sent == all);
        if !self.guests.is_empty() {
            (self.on_event)(Event::Waiting { attached: self.guests.len() });
        }
        true
    }

    /// Waits until something can be done, or for a tick.
    fn wait(&self) -> io::Result<()> {
        if !self.can_accept {
            // What cannot be taken is still there: to wait for it would be no waiting.
            thread::sleep(TICK);
            return Ok(());
        }
        let mut all: Vec<PollFd<'_>> = Vec::with_capacity(self.guests.len() + 1);
        if let Some(socket) = &self.socket {
            all.push(PollFd::from_borrowed_fd(socket.listener.as_fd(), PollFlags::IN));
        }
        for guest in &self.guests {
            let what = if self.has_all(guest) { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
            all.push(PollFd::from_borrowed_fd(guest.stream.as_fd(), what));
        }
        let tick = Timespec { tv_sec: 0, tv_nsec: i64::from(TICK.subsec_nanos()) };
        match rustix::event::poll(&mut all, Some(&tick)) {
            // Signals are what ends a holder.
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Finds out who left. Nobody has anything to say.
    fn hear(&mut self) {
        let mut at = 0;
        while let Some(guest) = self.guests.get(at) {
            let mut word = [0; 1];
            let why = match rustix::net::recv(&guest.stream, &mut word, RecvFlags::DONTWAIT) {
                Err(Errno::AGAIN | Errno::INTR) => {
                    at += 1;
                    continue;
                }
                Ok((_, 0)) | Err(_) => None,
                Ok(_) => Some(TurnedAway::Spoke),
            };
            self.let_go(at, why);
        }
    }

    /// Closes a connection; without a reason, because the other side did.
    fn let_go(&mut self, at: usize, why: Option<TurnedAway>) {
        let guest = self.guests.remove(at);
        let (pid, attached) = (guest.pid, self.attached());
        let was_attached = self.has_all(&guest);
        drop(guest);
        match why {
            Some(why) => (self.on_event)(Event::TurnedAway { pid, why }),
            None if was_attached => (self.on_event)(Event::Left { pid, attached }),
            None => {}
        }
    }

    /// Sends everybody what they take of the document now.
    fn send(&mut self) {
        let now = Instant::now();
        let mut at = 0;
        while let Some(guest) = self.guests.get_mut(at) {
            let rest = &self.message[guest.sent..];
            if rest.is_empty() {
                at += 1;
                continue;
            }
            match rustix::net::send(&guest.stream, rest, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(sent) => {
                    guest.sent += sent;
                    if guest.sent == self.message.len() {
                        let pid = guest.pid;
                        let attached = self.attached();
                        (self.on_event)(Event::Attached { pid, attached });
                    }
                    at += 1;
                }
                Err(Errno::AGAIN | Errno::INTR) if now < guest.deadline => at += 1,
                Err(Errno::AGAIN | Errno::INTR) => self.let_go(at, Some(TurnedAway::Slow)),
                Err(_) => self.let_go(at, None),
            }
        }
    }

    /// Takes one new connection, if there is one: the others have their turn first.
    fn accept(&mut self) {
        let Some(socket) = &self.socket else { return };
        let stream = match socket.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.can_accept = true;
                return;
            }
            // Who gave up before they were heard.
            Err(error)
                if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) =>
            {
                return;
            }
            Err(source) => {
                if self.can_accept {
                    (self.on_event)(Event::CannotAccept { source });
                }
                self.can_accept = false;
                return;
            }
        };
        self.can_accept = true;
        let Ok(peer) = Peer::of(&stream) else { return };
        let pid = peer.pid;
        if !peer.is_trusted() {
            (self.on_event)(Event::TurnedAway { pid, why: TurnedAway::Stranger { uid: peer.uid } });
            return;
        }
        if self.guests.len() >= self.limits.peers {
            // Whoever has been reading for longest makes room; who is attached stays.
            let slowest = self.guests.iter().position(|guest| !self.has_all(guest));
            let Some(slowest) = slowest else {
                let full = format!("{GREETING} {PROTOCOL} {FULL}\n");
                let _ =
                    rustix::net::send(&stream, full.as_bytes(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
                (self.on_event)(Event::TurnedAway { pid, why: TurnedAway::Full });
                return;
            };
            self.let_go(slowest, Some(TurnedAway::Slow));
        }
        self.guests.push(Guest { stream, pid, sent: 0, deadline: Instant::now() + self.limits.patience });
    }
}
