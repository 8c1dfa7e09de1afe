//! Operations: what a call asks for, checked; and how the stream carries it out.
//!
//! All operations that one group puts on one stream are one piece of work: first each says its part, then each waits for what
//! it gets. That is how sends and receives of a group do not wait for each other.

use super::{
    arithmetic,
    comm::{self, Comm, Pending, Running, State, Stop},
    refusal::Refusal,
    wire::{Collective, Kind, Message},
};
use crate::{
    Answer, fault,
    memory::device_bytes,
    stream::{self, Stream},
};
use cudarc::driver::sys::{CUresult, CUstream};
use nccl_rs::sys::{self, ResultCode};
use std::{
    ffi::{c_int, c_void},
    sync::Arc,
};

/// What a receive buffer is filled with when the communicator broke and the stream goes on.
const GARBAGE: u8 = 0x5a;

/// The arguments that all operations have.
#[derive(Clone, Copy)]
pub(super) struct Call {
    pub(super) send: *const c_void,
    pub(super) receive: *mut c_void,
    pub(super) elements: usize,
    pub(super) data_type: c_int,
    pub(super) comm: sys::Comm,
    pub(super) stream: sys::Stream,
}

/// A run of device memory.
#[derive(Clone, Copy)]
struct Buffer {
    address: u64,
    bytes: usize,
}

/// One operation, ready for its stream.
pub(super) struct Operation {
    pending: Pending,
    pub(super) stream: Arc<Stream>,
    what: What,
    /// What is sent; empty where this rank sends nothing.
    send: Buffer,
    receive: Buffer,
}

enum What {
    Collective { number: u64, collective: Collective },
    Send { peer: u64 },
    Receive { peer: u64 },
}

impl Operation {
    /// A collective; `None` where it moves nothing.
    pub(super) fn collective(
        call: Call,
        kind: Kind,
        reduction: c_int,
        root: c_int,
    ) -> Result<Option<Self>, Refusal> {
        let comm = comm::find(call.comm)?;
        comm.ready()?;
        let (rank, world) = (comm.seat()?.rank, comm.seat()?.world);
        let one = arithmetic::element_bytes(call.data_type)?.checked_mul(call.elements);
        let all = one.and_then(|bytes| bytes.checked_mul(usize::try_from(world).ok()?));
        let (Some(one), Some(all)) = (one, all) else {
            return Err(Refusal::argument(format!("{} elements are more than memory has", call.elements)));
        };
        if matches!(kind, Kind::AllReduce | Kind::ReduceScatter) {
            arithmetic::check(call.data_type, reduction)?;
        }
        let root = peer(root, world)?;
        let sends = kind != Kind::Broadcast || root == rank;
        let (sent, received) = match kind {
            Kind::AllReduce | Kind::Split => (one, one),
            Kind::AllGather => (one, all),
            Kind::ReduceScatter => (all, one),
            Kind::Broadcast => (if sends { one } else { 0 }, one),
        };
        if call.elements == 0 {
            return Ok(None);
        }
        let send = Buffer::new(call.send.addr(), sent)?;
        let receive = Buffer::new(call.receive.addr(), received)?;
        let unsigned = |number: c_int| u64::from(number.cast_unsigned());
        let collective = Collective {
            kind,
            data_type: unsigned(call.data_type),
            reduction: unsigned(reduction),
            root,
            elements: call.elements as u64,
        };
        let stream = stream_of(&comm, call.stream)?;
        let what = What::Collective { number: comm.next_collective(), collective };
        Ok(Some(Self { pending: Pending::new(&comm), stream, what, send, receive }))
    }

    /// A send or a receive: the one whose buffer is null in `call` is not meant. `None` where it moves nothing.
    pub(super) fn between(call: Call, with: c_int, sends: bool) -> Result<Option<Self>, Refusal> {
        let comm = comm::find(call.comm)?;
        comm.ready()?;
        let peer = peer(with, comm.seat()?.world)?;
        let bytes = arithmetic::element_bytes(call.data_type)?.checked_mul(call.elements);
        let bytes = bytes.ok_or_else(|| Refusal::argument("more elements than memory has"))?;
        if bytes == 0 {
            return Ok(None);
        }
        let none = Buffer { address: 0, bytes: 0 };
        let (what, send, receive) = if sends {
            (What::Send { peer }, Buffer::new(call.send.addr(), bytes)?, none)
        } else {
            (What::Receive { peer }, none, Buffer::new(call.receive.addr(), bytes)?)
        };
        let stream = stream_of(&comm, call.stream)?;
        Ok(Some(Self { pending: Pending::new(&comm), stream, what, send, receive }))
    }

    pub(super) fn comm(&self) -> &Arc<Comm> {
        self.pending.comm()
    }

    fn is_send(&self) -> bool {
        matches!(self.what, What::Send { .. })
    }

    /// Says this rank's part.
    fn begin(&self) -> Result<(), Interruption> {
        let comm = self.comm();
        comm.check()?;
        let _running = Running::new(comm);
        if fault::value("nccl-kill") == comm.seat().ok().map(|seat| seat.rank) {
            fault::signal_self(libc::SIGKILL);
        }
        if fault::value("nccl-hang") == comm.seat().ok().map(|seat| seat.rank) {
            comm.hang();
            return Err(Stop::Ended.into());
        }
        let bytes = self.send.read()?;
        match self.what {
            What::Collective { number, collective } => comm.say(Message::Part { number, collective, bytes }),
            What::Send { peer } => comm.say(Message::Letter { peer, bytes }),
            What::Receive { .. } => {}
        }
        Ok(())
    }

    /// Waits for what this rank gets, and puts it into memory.
    fn end(&self) -> Result<(), Interruption> {
        let comm = self.comm();
        let _running = Running::new(comm);
        match self.what {
            What::Collective { number, .. } => {
                let bytes = comm.wait_for(|state| state.outcomes.remove(&number))?;
                self.receive.write(comm, &bytes)?;
                if fault::value("nccl-error") == comm.seat().ok().map(|seat| seat.rank) {
                    comm.fail(Refusal::new(ResultCode::INTERNAL_ERROR, "nccl-error: asked for by the test"));
                }
            }
            What::Send { peer } => {
                let receipt = |state: &mut State| {
                    let receipts = state.receipts.get_mut(&peer).filter(|receipts| **receipts > 0)?;
                    *receipts -= 1;
                    Some(())
                };
                comm.wait_for(receipt)?;
            }
            What::Receive { peer } => {
                let bytes = comm.wait_for(|state| state.letters.get_mut(&peer)?.pop_front())?;
                self.receive.write(comm, &bytes)?;
                comm.say(Message::Receipt { peer });
            }
        }
        Ok(())
    }
}

/// What comes between an operation and its end.
enum Interruption {
    Stop(Stop),
    /// Memory that is not there (any more).
    Memory,
}

impl From<Stop> for Interruption {
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}

/// Runs a group's operations of one stream, on that stream.
pub(super) fn run(operations: &[Operation]) -> Answer {
    let begun = operations.iter().map(|operation| (operation, operation.begin()));
    let begun: Vec<_> = begun.collect();
    // Sends wait for receives of other ranks, which may wait for theirs: so these come last.
    let (sends, others): (Vec<_>, Vec<_>) = begun.into_iter().partition(|(operation, _)| operation.is_send());
    for (operation, begun) in others.into_iter().chain(sends) {
        match begun.and_then(|()| operation.end()) {
            Ok(()) | Err(Interruption::Stop(Stop::Ended)) => {}
            Err(Interruption::Stop(Stop::Broken)) => operation.receive.spoil(),
            Err(Interruption::Memory) => return Err(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS),
        }
    }
    Ok(())
}

impl Buffer {
    fn new(address: usize, bytes: usize) -> Result<Self, Refusal> {
        if address == 0 && bytes > 0 {
            return Err(Refusal::argument("a buffer is null"));
        }
        Ok(Self { address: address as u64, bytes })
    }

    fn read(self) -> Result<Vec<u8>, Interruption> {
        let mut bytes = vec![0; self.bytes];
        if self.bytes > 0 {
            device_bytes(self.address, self.bytes).map_err(|_| Interruption::Memory)?.read(&mut bytes);
        }
        Ok(bytes)
    }

    /// Writes what arrived, unless it is not what the call said.
    fn write(self, comm: &Comm, bytes: &[u8]) -> Result<(), Interruption> {
        if bytes.len() != self.bytes {
            let words = format!("{} bytes arrived where {} were expected", bytes.len(), self.bytes);
            comm.fail(Refusal::new(ResultCode::INVALID_USAGE, words));
            return Err(Stop::Broken.into());
        }
        device_bytes(self.address, self.bytes).map_err(|_| Interruption::Memory)?.write(bytes);
        Ok(())
    }

    /// Leaves garbage, as a collective does that lost a peer.
    fn spoil(self) {
        if self.bytes > 0
            && let Ok(memory) = device_bytes(self.address, self.bytes)
        {
            memory.write(&vec![GARBAGE; self.bytes]);
        }
    }
}

fn peer(rank: c_int, world: u64) -> Result<u64, Refusal> {
    let peer = u64::try_from(rank).ok().filter(|&rank| rank < world);
    peer.ok_or_else(|| Refusal::argument(format!("rank {rank} is not one of {world}")))
}

/// The stream of an operation: one of the communicator's GPU.
fn stream_of(comm: &Comm, handle: sys::Stream) -> Result<Arc<Stream>, Refusal> {
    let cuda = |words: String| Refusal::new(ResultCode::UNHANDLED_CUDA_ERROR, words);
    let handle: CUstream = handle.cast();
    let stream =
        comm.with_context(|| stream::find(handle)).map_err(|code| cuda(format!("the stream: {code:?}")))?;
    if !Arc::ptr_eq(&stream.context, &comm.context) {
        return Err(cuda("the stream is of another context than the communicator".to_owned()));
    }
    Ok(stream)
}
