//! Rank 0's end: a local group in which a proxy stands for every other rank.

use super::{
    frame::{Assembly, Frame},
    line::{Line, MAX_ORDERS, Order, ReadError, Receiver, Sender},
};
use crate::collective::{
    CollectiveError, Communicator, Lifeline, LocalCommunicator, Reduce, board::TICK, local_group,
};
use std::{
    io,
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::{Builder, JoinHandle},
    time::Duration,
};

/// A thread here holds a few frames on its stack at most.
pub(super) const STACK_BYTES: usize = 256 << 10;

/// Rank 0.
#[derive(Debug)]
pub(super) struct Hub {
    /// Rank 0's own place; gone when the hub is dropped.
    local: Option<LocalCommunicator>,
    world: u32,
    lifeline: Lifeline,
    proxies: Vec<Proxy>,
}

/// The threads that stand for one rank.
#[derive(Debug)]
struct Proxy {
    line: Arc<Line>,
    orders: SyncSender<Order>,
    threads: Vec<JoinHandle<()>>,
}

impl Hub {
    /// `peers` are the connections of ranks 1, 2, …
    pub(super) fn new(peers: Vec<TcpStream>, patience: Duration) -> io::Result<Self> {
        let world = u32::try_from(peers.len()).ok().and_then(|peers| peers.checked_add(1));
        let world = world.ok_or_else(|| io::Error::other("more ranks than can be counted"))?;
        let mut group = local_group(world, patience).into_iter();
        let local = group.next().ok_or_else(|| io::Error::other("no rank"))?;
        let lifeline = local.lifeline();
        let mut hub = Self { local: Some(local), world, lifeline, proxies: Vec::new() };
        for (local, peer) in group.zip(peers) {
            // Dropping the hub ends the proxies that have begun.
            Proxy::begin(&mut hub.proxies, local, peer, patience)?;
        }
        Ok(hub)
    }

    pub(super) fn world_size(&self) -> u32 {
        self.world
    }

    pub(super) fn all_reduce(&mut self, values: &mut [u64], reduce: Reduce) -> Result<(), CollectiveError> {
        match &mut self.local {
            Some(local) => local.all_reduce(values, reduce),
            None => Err(CollectiveError::ended(0)),
        }
    }

    pub(super) fn lifeline(&self) -> Lifeline {
        self.lifeline.clone()
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        // Whoever still waits for rank 0 hears that it has left, before its proxy says good-bye.
        self.local = None;
        for proxy in &self.proxies {
            proxy.line.close();
            // A full queue is no loss: the flag is looked at every tick.
            let _ = proxy.orders.try_send(Order::Close);
        }
        for thread in self.proxies.drain(..).flat_map(|proxy| proxy.threads) {
            // A thread that panicked has dropped its communicator, which told the group.
            let _ = thread.join();
        }
    }
}

impl Proxy {
    fn begin(
        proxies: &mut Vec<Self>,
        local: LocalCommunicator,
        peer: TcpStream,
        patience: Duration,
    ) -> io::Result<()> {
        let rank = local.rank();
        let line = Arc::new(Line::new(local.board(), patience));
        let (orders, due) = sync_channel(MAX_ORDERS);
        let sender = Sender::new(peer.try_clone()?, Arc::clone(&line))?;
        let receiver = Receiver::new(peer, Arc::clone(&line))?;
        let busy = Arc::new(AtomicBool::new(false));
        let ear = Ear { rank, line: Arc::clone(&line), orders: orders.clone(), busy: Arc::clone(&busy) };
        let worker = Worker { local, sender, line: Arc::clone(&line), busy };
        let mut proxy = Self { line, orders, threads: Vec::new() };
        let named = |what: &str| Builder::new().name(format!("rank {rank} {what}")).stack_size(STACK_BYTES);
        let threads =
            named("sends").spawn(move || worker.work(|| due.recv_timeout(TICK))).and_then(|worker| {
                proxy.threads.push(worker);
                proxy.threads.push(named("hears").spawn(move || ear.hear(receiver))?);
                Ok(())
            });
        proxies.push(proxy);
        threads
    }
}

/// The thread that makes a rank's calls for it and tells it what comes of them.
struct Worker {
    local: LocalCommunicator,
    sender: Sender,
    line: Arc<Line>,
    /// Whether the rank waits for the result of a call.
    busy: Arc<AtomicBool>,
}

impl Worker {
    fn work(mut self, next: impl Fn() -> Result<Order, RecvTimeoutError>) {
        let lifeline = self.local.lifeline();
        let rank = self.local.rank();
        let mut call = 0;
        while !self.line.closes() {
            let outcome = match next() {
                Ok(Order::Reduce(reduce, mut values)) => {
                    let sender = &mut self.sender;
                    let mut stalled = false;
                    let mut each_tick = || stalled |= sender.beat(0).is_err();
                    let reduced = self.local.reduce(&mut values, reduce, &mut each_tick);
                    self.busy.store(false, Ordering::Release);
                    call += 1;
                    match reduced {
                        _ if stalled => Err(super::line::WriteStalled),
                        Ok(()) => self.sender.values(call - 1, reduce, &values),
                        Err(_) => Ok(()),
                    }
                }
                Ok(Order::Close) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => self.sender.beat(0),
            };
            if outcome.and_then(|()| self.sender.tell()).is_err() {
                let quiet = self.line.patience;
                lifeline.fail_with(CollectiveError::Stalled { rank, quiet });
            }
        }
        self.sender.end();
    }
}

/// The thread that hears what a rank says.
struct Ear {
    rank: u32,
    line: Arc<Line>,
    orders: SyncSender<Order>,
    busy: Arc<AtomicBool>,
}

impl Ear {
    fn hear(self, mut receiver: Receiver) {
        if let Err(failure) = self.hear_all(&mut receiver) {
            self.line.board.fail(failure);
        }
        self.line.close();
        let _ = self.orders.try_send(Order::Close);
    }

    /// Hears until the rank ends; an error is what the group fails with.
    fn hear_all(&self, receiver: &mut Receiver) -> Result<(), CollectiveError> {
        let rank = self.rank;
        let (mut assembly, mut beats) = (Assembly::default(), 0);
        loop {
            match receiver.next() {
                Ok(Frame::Beat(count)) if count == beats => {}
                Ok(Frame::Beat(count)) => {
                    beats = count;
                    self.line.board.beat(rank);
                }
                Ok(Frame::Part(part)) => {
                    self.line.board.beat(rank);
                    if self.busy.load(Ordering::Acquire) {
                        return Err(CollectiveError::lost(
                            rank,
                            "it made a call before the last was answered",
                        ));
                    }
                    let call = assembly.add(part).map_err(|e| CollectiveError::lost(rank, &e.to_string()))?;
                    if let Some((reduce, values)) = call {
                        self.busy.store(true, Ordering::Release);
                        // Only a worker that has ended takes nothing, and then nobody waits for it.
                        let _ = self.orders.try_send(Order::Reduce(reduce, values));
                    }
                }
                Ok(Frame::Failed(failure)) if failure.rank() == rank => {
                    self.line.board.fail(failure);
                }
                Ok(Frame::Failed(failure)) => {
                    self.line.board.fail(CollectiveError::lost(rank, &failure.to_string()));
                }
                // Who leaves in the middle of a call has not made it.
                Ok(Frame::Bye) if self.busy.load(Ordering::Acquire) => {
                    return Err(CollectiveError::ended(rank));
                }
                Ok(Frame::Bye) | Err(ReadError::Closed) => return Ok(()),
                Err(ReadError::Ended) if self.line.closes() => return Ok(()),
                Err(ReadError::Ended) => return Err(CollectiveError::ended(rank)),
                Err(error @ (ReadError::Io(_) | ReadError::Frame(_))) => {
                    return Err(CollectiveError::lost(rank, &error.to_string()));
                }
            }
        }
    }
}
