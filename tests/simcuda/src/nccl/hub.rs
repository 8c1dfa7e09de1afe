//! The hub of a communicator: the star's centre, threads in the process that made the unique id.
//!
//! In: connections of ranks, then their messages. Out: a welcome once all ranks are there, the outcome of each collective once
//! all have sent their part, letters passed on; and to all the news that the communicator is broken, once a rank's connection
//! ends without a farewell. It knows no memory and no streams.

use super::{
    arithmetic::combine,
    refusal::Refusal,
    wire::{Collective, Hello, Kind, Message, Name},
};
use crate::lock::lock;
use nccl_rs::sys::ResultCode;
use std::{
    collections::BTreeMap,
    ffi::c_int,
    io,
    os::unix::net::UnixStream,
    sync::{Arc, Mutex},
    thread,
};

/// More ranks than any machine here has GPUs.
const MOST_RANKS: u64 = 1024;

/// Serves a communicator from now on. Its threads end when all ranks have gone; where not all come, they wait as long as the
/// process lives.
pub(super) fn start(name: Name) -> io::Result<()> {
    let listener = name.listen()?;
    let hub = Arc::new(Mutex::new(Hub::default()));
    named(move || {
        for connection in listener.incoming().map_while(Result::ok) {
            if lock(&hub).expected == Some(0) {
                break;
            }
            let (theirs, name) = (Arc::clone(&hub), name.clone());
            if named(move || serve(&theirs, connection, &name)).is_err() {
                lock(&hub).fail(ResultCode::SYSTEM_ERROR, "no thread for a rank");
            }
        }
    })
}

fn named(run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name("simcuda-nccl-hub".to_owned()).spawn(run).map(drop)
}

#[derive(Default)]
struct Hub {
    /// What the first rank said; the others must agree.
    first: Option<Hello>,
    /// How many ranks are still to come.
    expected: Option<usize>,
    members: BTreeMap<u64, Member>,
    /// Collectives that wait for parts.
    gathering: BTreeMap<u64, Gathering>,
    left: usize,
    broken: Option<Message>,
}

struct Member {
    hello: Hello,
    /// `None` once nothing more can be said to it.
    connection: Option<UnixStream>,
}

struct Gathering {
    collective: Collective,
    parts: BTreeMap<u64, Vec<u8>>,
}

/// One rank, from its first message to its end.
fn serve(hub: &Mutex<Hub>, connection: UnixStream, name: &Name) {
    let Ok(mut from) = connection.try_clone() else { return };
    let Ok(Message::Hello(hello)) = Message::read(&mut from) else { return };
    if !lock(hub).welcome(hello, connection) {
        return;
    }
    if lock(hub).expected == Some(0) {
        // The listener waits for nobody any more: this wakes it, and it ends.
        let _ = name.connect();
    }
    let mut leaving = false;
    while let Ok(message) = Message::read(&mut from) {
        leaving |= message == Message::Leaving;
        let handled = lock(hub).handle(hello.rank, message);
        if let Err(Refusal { code, words }) = handled {
            lock(hub).fail(code, &words);
        }
    }
    let mut hub = lock(hub);
    if let Some(member) = hub.members.get_mut(&hello.rank) {
        member.connection = None;
    }
    if !leaving {
        hub.fail(ResultCode::REMOTE_ERROR, &format!("the connection of rank {} ended", hello.rank));
    }
}

impl Hub {
    /// Takes a rank in; false where it is not.
    fn welcome(&mut self, hello: Hello, connection: UnixStream) -> bool {
        let first = *self.first.get_or_insert(hello);
        if let Some(words) = self.refuses(first, hello) {
            self.fail(ResultCode::INVALID_USAGE, &words);
        }
        if let Some(broken) = &self.broken {
            let _ = broken.clone().write(&connection);
            return false;
        }
        self.members.insert(hello.rank, Member { hello, connection: Some(connection) });
        let world = usize::try_from(hello.world).unwrap_or(usize::MAX);
        self.expected = Some(world.saturating_sub(self.members.len()));
        if self.expected == Some(0) {
            self.tell_all(&Message::Welcome);
        }
        true
    }

    /// Why a rank can't be one of these.
    fn refuses(&self, first: Hello, hello: Hello) -> Option<String> {
        let Hello { rank, world, version, gpu } = hello;
        if world == 0 || world > MOST_RANKS || rank >= world || world != first.world {
            return Some(format!("rank {rank} of {world} joins {} ranks", first.world));
        }
        if version != first.version {
            return Some(format!(
                "Mismatched NCCL version detected: rank {} version {} rank {rank} version {version}",
                first.rank, first.version
            ));
        }
        if self.members.contains_key(&rank) {
            return Some(format!("rank {rank} joins twice"));
        }
        let same = self.members.values().find(|member| member.hello.gpu == gpu)?;
        Some(format!(
            "Duplicate GPU detected: rank {} and rank {rank} both on CUDA device {gpu}",
            same.hello.rank
        ))
    }

    fn handle(&mut self, rank: u64, message: Message) -> Result<(), Refusal> {
        let unexpected = || Refusal::new(ResultCode::INTERNAL_ERROR, "a message that ranks do not send");
        match message {
            Message::Part { number, collective, bytes } => self.gather(rank, number, collective, bytes)?,
            Message::Letter { peer, bytes } => self.tell(peer, Message::Letter { peer: rank, bytes }),
            Message::Receipt { peer } => self.tell(peer, Message::Receipt { peer: rank }),
            Message::Leaving => {
                self.left += 1;
                let all = self.left == self.members.len() && self.expected == Some(0);
                self.tell_all(&if all { Message::AllLeft } else { Message::Left });
            }
            Message::Hello(_)
            | Message::Welcome
            | Message::Outcome { .. }
            | Message::Left
            | Message::AllLeft
            | Message::Broken { .. } => return Err(unexpected()),
        }
        Ok(())
    }

    /// Keeps a part; the last one completes the collective.
    fn gather(
        &mut self,
        rank: u64,
        number: u64,
        collective: Collective,
        bytes: Vec<u8>,
    ) -> Result<(), Refusal> {
        let gathering =
            self.gathering.entry(number).or_insert(Gathering { collective, parts: BTreeMap::new() });
        if gathering.collective != collective {
            return Err(Refusal::new(
                ResultCode::INVALID_USAGE,
                format!(
                    "rank {rank} makes another call than its peers: {collective:?}, {:?}",
                    gathering.collective
                ),
            ));
        }
        gathering.parts.insert(rank, bytes);
        if gathering.parts.len() < self.members.len() {
            return Ok(());
        }
        let Some(Gathering { parts, .. }) = self.gathering.remove(&number) else { return Ok(()) };
        for (rank, bytes) in outcomes(collective, parts)? {
            self.tell(rank, Message::Outcome { number, bytes });
        }
        Ok(())
    }

    fn tell(&mut self, rank: u64, message: Message) {
        if let Some(member) = self.members.get_mut(&rank)
            && let Some(connection) = &member.connection
            && message.write(connection).is_err()
        {
            member.connection = None;
        }
    }

    fn tell_all(&mut self, message: &Message) {
        let ranks: Vec<u64> = self.members.keys().copied().collect();
        for rank in ranks {
            self.tell(rank, message.clone());
        }
    }

    /// Breaks the communicator, for its first reason.
    fn fail(&mut self, code: ResultCode, words: &str) {
        if self.broken.is_none() {
            let broken = Message::Broken { code, words: words.to_owned() };
            self.tell_all(&broken);
            self.broken = Some(broken);
        }
    }
}

/// What each rank gets.
fn outcomes(
    collective: Collective,
    mut parts: BTreeMap<u64, Vec<u8>>,
) -> Result<Vec<(u64, Vec<u8>)>, Refusal> {
    let ranks: Vec<u64> = parts.keys().copied().collect();
    let to_all = |bytes: Vec<u8>| ranks.iter().map(|rank| (*rank, bytes.clone())).collect();
    Ok(match collective.kind {
        Kind::AllReduce => to_all(reduced(collective, parts)?),
        Kind::AllGather | Kind::Split => to_all(parts.into_values().flatten().collect()),
        Kind::Broadcast => to_all(parts.remove(&collective.root).unwrap_or_default()),
        Kind::ReduceScatter => {
            let whole = reduced(collective, parts)?;
            let each = whole.len() / ranks.len();
            ranks.iter().copied().zip(whole.chunks(each.max(1)).map(<[u8]>::to_vec)).collect()
        }
    })
}

/// All parts combined, in order of ranks.
fn reduced(collective: Collective, parts: BTreeMap<u64, Vec<u8>>) -> Result<Vec<u8>, Refusal> {
    let number = |number| c_int::try_from(number).unwrap_or(-1);
    let mut parts = parts.into_values();
    let mut whole = parts.next().unwrap_or_default();
    for part in parts {
        combine(number(collective.data_type), number(collective.reduction), &mut whole, &part)?;
    }
    Ok(whole)
}
