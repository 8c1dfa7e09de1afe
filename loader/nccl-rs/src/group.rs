//! The operations that move data, one or several at once.

use crate::{CallError, Communicator, DataType, Reduction, sys::ResultCode, waiting::Ended};
use std::ffi::{c_int, c_void};

/// Operations of one communicator that are started together: sends and receives that wait for each other must be.
///
/// Each method puts an operation on a stream; it runs later, when [`Communicator::group`] has returned and the stream has
/// come to it. `send` and `receive` are device addresses and may be the same for operations in place, where NCCL allows
/// that. Elements are counted, not bytes.
///
/// # Safety
/// Every method asks for the same:
/// - `send` and `receive` are memory that this rank's GPU can reach, as long as the method says;
/// - it stays allocated, and nobody else writes it or reads what is received, until the stream has passed the operation;
/// - `stream` is a stream of this rank's GPU, or null for the default stream, and outlives the operation;
/// - all ranks of the communicator make matching calls, in the same order.
///
/// What was received may be trusted after [`Communicator::async_error`] found nothing.
#[derive(Debug)]
pub struct Group<'c> {
    communicator: &'c mut Communicator,
    ended: bool,
}

impl Communicator {
    /// Carries out what `work` calls as one step. If `work` fails or panics the group still ends, and what it had called
    /// before is still started.
    ///
    /// # Errors
    /// That of `work`; else [`CallError::Failed`] and [`CallError::TimedOut`] if starting the operations failed.
    pub fn group<T>(
        &mut self,
        work: impl FnOnce(&mut Group<'_>) -> Result<T, CallError>,
    ) -> Result<T, CallError> {
        let call = "ncclGroupStart";
        self.alive(call)?;
        // SAFETY: opens a group on this thread; `Group` ends it on every way out.
        let code = unsafe { (self.library.functions().group_start)() };
        self.library.done(call, code, self.comm)?;
        let mut group = Group { communicator: self, ended: false };
        let worked = work(&mut group);
        let ended = group.end();
        let value = worked?;
        ended.map(|()| value)
    }

    /// [`Group::all_reduce`] alone.
    ///
    /// # Errors
    /// As [`group`](Self::group).
    ///
    /// # Safety
    /// As [`Group`] says.
    pub unsafe fn all_reduce(
        &mut self,
        send: u64,
        receive: u64,
        elements: usize,
        data_type: DataType,
        reduction: Reduction,
        stream: *mut c_void,
    ) -> Result<(), CallError> {
        // SAFETY: the caller's.
        self.group(|group| unsafe { group.all_reduce(send, receive, elements, data_type, reduction, stream) })
    }

    /// [`Group::all_gather`] alone.
    ///
    /// # Errors
    /// As [`group`](Self::group).
    ///
    /// # Safety
    /// As [`Group`] says.
    pub unsafe fn all_gather(
        &mut self,
        send: u64,
        receive: u64,
        elements_sent: usize,
        data_type: DataType,
        stream: *mut c_void,
    ) -> Result<(), CallError> {
        // SAFETY: the caller's.
        self.group(|group| unsafe { group.all_gather(send, receive, elements_sent, data_type, stream) })
    }

    /// [`Group::reduce_scatter`] alone.
    ///
    /// # Errors
    /// As [`group`](Self::group).
    ///
    /// # Safety
    /// As [`Group`] says.
    pub unsafe fn reduce_scatter(
        &mut self,
        send: u64,
        receive: u64,
        elements_received: usize,
        data_type: DataType,
        reduction: Reduction,
        stream: *mut c_void,
    ) -> Result<(), CallError> {
        self.group(|group| {
            // SAFETY: the caller's.
            unsafe { group.reduce_scatter(send, receive, elements_received, data_type, reduction, stream) }
        })
    }

    /// [`Group::broadcast`] alone.
    ///
    /// # Errors
    /// As [`group`](Self::group).
    ///
    /// # Safety
    /// As [`Group`] says.
    pub unsafe fn broadcast(
        &mut self,
        send: u64,
        receive: u64,
        elements: usize,
        data_type: DataType,
        root: u32,
        stream: *mut c_void,
    ) -> Result<(), CallError> {
        // SAFETY: the caller's.
        self.group(|group| unsafe { group.broadcast(send, receive, elements, data_type, root, stream) })
    }

    /// [`Group::send`] alone: the stream waits until the peer has received.
    ///
    /// # Errors
    /// As [`group`](Self::group).
    ///
    /// # Safety
    /// As [`Group`] says.
    pub unsafe fn send(
        &mut self,
        send: u64,
        elements: usize,
        data_type: DataType,
        peer: u32,
        stream: *mut c_void,
    ) -> Result<(), CallError> {
        // SAFETY: the caller's.
        self.group(|group| unsafe { group.send(send, elements, data_type, peer, stream) })
    }

    /// [`Group::recv`] alone: the stream waits until the peer has sent.
    ///
    /// # Errors
    /// As [`group`](Self::group).
    ///
    /// # Safety
    /// As [`Group`] says.
    pub unsafe fn recv(
        &mut self,
        receive: u64,
        elements: usize,
        data_type: DataType,
        peer: u32,
        stream: *mut c_void,
    ) -> Result<(), CallError> {
        // SAFETY: the caller's.
        self.group(|group| unsafe { group.recv(receive, elements, data_type, peer, stream) })
    }
}

impl Group<'_> {
    /// Combines `elements` of every rank's `send` into every rank's `receive`, each `elements` long.
    ///
    /// # Errors
    /// [`CallError::Failed`]
    ///
    /// # Safety
    /// As [`Group`] says.
    pub unsafe fn all_reduce(
        &mut self,
        send: u64,
        receive: u64,
        elements: usize,
        data_type: DataType,
        reduction: Reduction,
        stream: *mut c_void,
    ) -> Result<(), CallError> {
        let (function, comm) = (self.communicator.library.functions().all_reduce, self.communicator.comm);
        let (send, receive) = (pointer(send), pointer(receive));
        // SAFETY: the communicator is live; the rest is the caller's.
        let code =
            unsafe { function(send, receive, elements, data_type.code(), reduction.code(), comm, stream) };
        self.queued("ncclAllReduce", code)
    }

    /// Lays every rank's `send`, `elements_sent` long, into every rank's `receive`, in order of ranks and world size times as
    /// long.
    ///
    /// # Errors
    /// [`CallError::Failed`]
    ///
    /// # Safety
    /// As [`Group`] says.
    pub unsafe fn all_gather(
        &mut self,
        send: u64,
        receive: u64,
        elements_sent: usize,
        data_type: DataType,
        stream: *mut c_void,
    ) -> Result<(), CallError> {
        let (function, comm) = (self.communicator.library.functions().all_gather, self.communicator.comm);
        let (send, receive) = (pointer(send), pointer(receive));
        // SAFETY: the communicator is live; the rest is the caller's.
        let code = unsafe { function(send, receive, elements_sent, data_type.code(), comm, stream) };
        self.queued("ncclAllGather", code)
    }

    /// Combines every rank's `send`, world size times `elements_received` long, and gives each rank its part of the result,
    /// in order of ranks.
    ///
    /// # Errors
    /// [`CallError::Failed`]
    ///
    /// # Safety
    /// As [`Group`] says.
    pub unsafe fn reduce_scatter(
        &mut self,
        send: u64,
        receive: u64,
        elements_received: usize,
        data_type: DataType,
        reduction: Reduction,
        stream: *mut c_void,
    ) -> Result<(), CallError> {
        let (function, comm) = (self.communicator.library.functions().reduce_scatter, self.communicator.comm);
        let (send, receive) = (pointer(send), pointer(receive));
        let (data_type, reduction) = (data_type.code(), reduction.code());
        // SAFETY: the communicator is live; the rest is the caller's.
        let code = unsafe { function(send, receive, elements_received, data_type, reduction, comm, stream) };
        self.queued("ncclReduceScatter", code)
    }

    /// Copies the root's `send` to every rank's `receive`, each `elements` long. `send` is read on the root alone.
    ///
    /// # Errors
    /// [`CallError::Failed`]; [`CallError::NoSuchRank`] for the root.
    ///
    /// # Safety
    /// As [`Group`] says.
    pub unsafe fn broadcast(
        &mut self,
        send: u64,
        receive: u64,
        elements: usize,
        data_type: DataType,
        root: u32,
        stream: *mut c_void,
    ) -> Result<(), CallError> {
        let root = self.rank("ncclBroadcast", root)?;
        let (function, comm) = (self.communicator.library.functions().broadcast, self.communicator.comm);
        let (send, receive) = (pointer(send), pointer(receive));
        // SAFETY: the communicator is live; the rest is the caller's.
        let code = unsafe { function(send, receive, elements, data_type.code(), root, comm, stream) };
        self.queued("ncclBroadcast", code)
    }

    /// Sends `elements` to `peer`, which receives as many from this rank.
    ///
    /// # Errors
    /// [`CallError::Failed`]; [`CallError::NoSuchRank`] for the peer.
    ///
    /// # Safety
    /// As [`Group`] says.
    pub unsafe fn send(
        &mut self,
        send: u64,
        elements: usize,
        data_type: DataType,
        peer: u32,
        stream: *mut c_void,
    ) -> Result<(), CallError> {
        let peer = self.rank("ncclSend", peer)?;
        let (function, comm) = (self.communicator.library.functions().send, self.communicator.comm);
        // SAFETY: the communicator is live; the rest is the caller's.
        let code = unsafe { function(pointer(send), elements, data_type.code(), peer, comm, stream) };
        self.queued("ncclSend", code)
    }

    /// Receives `elements` from `peer`, which sends as many to this rank.
    ///
    /// # Errors
    /// [`CallError::Failed`]; [`CallError::NoSuchRank`] for the peer.
    ///
    /// # Safety
    /// As [`Group`] says.
    pub unsafe fn recv(
        &mut self,
        receive: u64,
        elements: usize,
        data_type: DataType,
        peer: u32,
        stream: *mut c_void,
    ) -> Result<(), CallError> {
        let peer = self.rank("ncclRecv", peer)?;
        let (function, comm) = (self.communicator.library.functions().recv, self.communicator.comm);
        // SAFETY: the communicator is live; the rest is the caller's.
        let code = unsafe { function(pointer(receive), elements, data_type.code(), peer, comm, stream) };
        self.queued("ncclRecv", code)
    }

    /// A root or peer, as C takes it.
    fn rank(&self, call: &'static str, rank: u32) -> Result<c_int, CallError> {
        let world = self.communicator.world;
        let refused = CallError::NoSuchRank { call, rank, world };
        if rank < world { c_int::try_from(rank).map_err(|_| refused) } else { Err(refused) }
    }

    /// Inside a group a call is only noted down: in progress is as good as done.
    fn queued(&mut self, call: &'static str, code: ResultCode) -> Result<(), CallError> {
        match code {
            ResultCode::IN_PROGRESS => Ok(()),
            code => self.communicator.judge(call, Ended::Done(code)),
        }
    }

    fn end(mut self) -> Result<(), CallError> {
        let code = self.end_of_c();
        self.communicator.settle("ncclGroupEnd", code)
    }

    fn end_of_c(&mut self) -> ResultCode {
        self.ended = true;
        // SAFETY: ends the group that was opened on this thread: a `Group` never leaves the call that made it.
        unsafe { (self.communicator.library.functions().group_end)() }
    }
}

impl Drop for Group<'_> {
    /// Reached with the group open only while a panic passes through.
    fn drop(&mut self) {
        if !self.ended {
            self.communicator.failed = true;
            self.end_of_c();
        }
    }
}

/// A device address as C takes it. Never looked behind on the host.
fn pointer(address: u64) -> *mut c_void {
    // The crate builds for 64-bit machines only.
    #[expect(clippy::cast_possible_truncation)]
    std::ptr::without_provenance_mut(address as usize)
}
