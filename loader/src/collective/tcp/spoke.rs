//! The end of every rank but 0.

use super::{
    frame::{Assembly, Frame},
    hub::STACK_BYTES,
    line::{Line, MAX_ORDERS, Order, ReadError, Receiver, Sender},
};
use crate::collective::{
    CollectiveError, Lifeline, Reduce,
    board::{Board, TICK},
};
use std::{
    io,
    net::TcpStream,
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::{Builder, JoinHandle},
    time::Duration,
};

/// The rank that everybody is connected to.
const HUB: u32 = 0;

/// A rank that is connected to rank 0. Its board knows no one but the two.
#[derive(Debug)]
pub(super) struct Spoke {
    rank: u32,
    world: u32,
    line: Arc<Line>,
    orders: SyncSender<Order>,
    threads: Vec<JoinHandle<()>>,
}

impl Spoke {
    pub(super) fn new(rank: u32, world: u32, hub: TcpStream, patience: Duration) -> io::Result<Self> {
        let line = Arc::new(Line::new(Board::new(world), patience));
        let (orders, due) = sync_channel(MAX_ORDERS);
        let sender = Sender::new(hub.try_clone()?, Arc::clone(&line))?;
        let receiver = Receiver::new(hub, Arc::clone(&line))?;
        let mut spoke = Self { rank, world, line, orders, threads: Vec::new() };

        let named = |what: &str| Builder::new().name(format!("rank {rank} {what}")).stack_size(STACK_BYTES);
        let line = Arc::clone(&spoke.line);
        // Dropping the spoke ends the thread that has begun.
        spoke.threads.push(named("sends").spawn(move || send(rank, &line, sender, &due))?);
        let (line, orders) = (Arc::clone(&spoke.line), spoke.orders.clone());
        spoke.threads.push(named("hears").spawn(move || {
            if let Err(failure) = hear(rank, &line, receiver) {
                line.board.fail(failure);
            }
            line.board.leave(HUB);
            line.close();
            let _ = orders.try_send(Order::Close);
        })?);
        Ok(spoke)
    }

    pub(super) fn rank(&self) -> u32 {
        self.rank
    }

    pub(super) fn world_size(&self) -> u32 {
        self.world
    }

    pub(super) fn lifeline(&self) -> Lifeline {
        Lifeline::new(Arc::clone(&self.line.board), self.rank)
    }

    pub(super) fn all_reduce(&mut self, values: &mut [u64], reduce: Reduce) -> Result<(), CollectiveError> {
        let board = &self.line.board;
        if let Some(failure) = board.failure() {
            return Err(failure);
        }
        let call = {
            let mut state = board.lock();
            state.reduce = Some(reduce);
            state.generation
        };
        if self.orders.try_send(Order::Reduce(reduce, values.to_vec())).is_err() {
            // The thread that sends is gone: it said good-bye because rank 0 did.
            return Err(board.fail(CollectiveError::ended(HUB)));
        }
        let awaited = |_: &_, rank| rank == HUB as usize;
        let result = board.wait(self.rank, call, self.line.patience, awaited, &mut || ())?;
        if result.len() != values.len() {
            return Err(
                board.fail(CollectiveError::lost(HUB, "its result is of another length than asked for"))
            );
        }
        values.copy_from_slice(&result);
        Ok(())
    }
}

impl Drop for Spoke {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.lifeline().fail(self.rank, "it panicked; this is a defect of shardwright");
        }
        self.line.close();
        let _ = self.orders.try_send(Order::Close);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Sends calls as they are made, and otherwise how often this rank has said that it gets on.
fn send(rank: u32, line: &Line, mut sender: Sender, due: &mpsc::Receiver<Order>) {
    let mut call = 0;
    while !line.closes() {
        let outcome = match due.recv_timeout(TICK) {
            Ok(Order::Reduce(reduce, values)) => {
                call += 1;
                sender.values(call - 1, reduce, &values)
            }
            Ok(Order::Close) | Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => sender.beat(line.board.beats(rank)),
        };
        if outcome.and_then(|()| sender.tell()).is_err() {
            line.board.fail(CollectiveError::Stalled { rank: HUB, quiet: line.patience });
        }
    }
    sender.end();
}

/// Hears until rank 0 ends; an error is what this rank then fails with.
fn hear(rank: u32, line: &Line, mut receiver: Receiver) -> Result<(), CollectiveError> {
    let mut assembly = Assembly::default();
    loop {
        let frame = receiver.next();
        // Whatever it says, rank 0's process runs. Whether the rank itself gets on is seen there.
        line.board.beat(HUB);
        match frame {
            Ok(Frame::Beat(_)) => {}
            Ok(Frame::Part(part)) => {
                let whole = assembly.add(part).map_err(|e| CollectiveError::lost(HUB, &e.to_string()))?;
                if let Some((reduce, values)) = whole {
                    let state = line.board.lock();
                    if state.reduce != Some(reduce) {
                        return Err(CollectiveError::lost(
                            HUB,
                            &format!("it sent a result that rank {rank} did not ask for"),
                        ));
                    }
                    line.board.change(state, |state| {
                        state.reduce = None;
                        state.result = Arc::new(values);
                        state.generation += 1;
                    });
                }
            }
            Ok(Frame::Failed(failure)) => {
                line.board.fail(failure);
            }
            Ok(Frame::Bye) | Err(ReadError::Closed) => return Ok(()),
            Err(ReadError::Ended) if line.closes() => return Ok(()),
            Err(ReadError::Ended) => return Err(CollectiveError::ended(HUB)),
            Err(error @ (ReadError::Io(_) | ReadError::Frame(_))) => {
                return Err(CollectiveError::lost(HUB, &error.to_string()));
            }
        }
    }
}
