//! One rank's end of a group of GPUs: made, used, and taken down, with no call that waits for ever.

use crate::{
    CallError, Library, UniqueId,
    sys::{self, ResultCode},
    waiting::{Ended, wait},
};
use std::{
    ffi::c_int,
    ptr::null_mut,
    sync::atomic::{AtomicPtr, Ordering},
    time::Duration,
};

/// One rank's end of a group of ranks, each with a GPU of its own.
///
/// All ranks make the same calls in the same order. Data moves in [`group`](Self::group), or by the method of the same name
/// for one operation alone. A communicator may move to another thread; it must not be used by two at once.
///
/// Dropped, it is destroyed where all went well and aborted where anything failed. [`finalize`](Self::finalize) is the way
/// to end that tells errors.
#[derive(Debug)]
pub struct Communicator {
    pub(crate) library: Library,
    /// Null once it was aborted or destroyed.
    pub(crate) comm: sys::Comm,
    pub(crate) world: u32,
    rank: u32,
    device: u32,
    patience: Duration,
    /// A call has failed, so that other ranks may be waiting for this one, or are gone.
    pub(crate) failed: bool,
}

// SAFETY: NCCL lets any thread use a communicator, one at a time: `&mut self` sees to that. It makes the communicator's
// device current itself.
unsafe impl Send for Communicator {}

impl Communicator {
    /// Joins the group that `id` names as one of `world` ranks, and waits until all have. Each rank needs a GPU of its own,
    /// whose context is current on this thread; the ranks of one process are initialised on a thread each.
    ///
    /// `give_up` is asked every few milliseconds: it should say true once it is known that another rank will not come.
    /// `patience` also bounds all later calls, until [`set_patience`](Self::set_patience).
    ///
    /// # Errors
    /// [`CallError::NoSuchRank`]; [`CallError::TimedOut`] and [`CallError::GivenUp`] after the attempt was aborted;
    /// [`CallError::Failed`] with NCCL's reason.
    pub fn init(
        library: &Library,
        id: &UniqueId,
        rank: u32,
        world: u32,
        patience: Duration,
        give_up: &mut dyn FnMut() -> bool,
    ) -> Result<Self, CallError> {
        let call = "ncclCommInitRankConfig";
        let (Ok(c_rank), Ok(c_world)) = (c_int::try_from(rank), c_int::try_from(world)) else {
            return Err(CallError::NoSuchRank { call, rank, world });
        };
        if rank >= world {
            return Err(CallError::NoSuchRank { call, rank, world });
        }
        let mut config = sys::Config::non_blocking();
        let slot = slot();
        // SAFETY: `slot` is never freed; `config` is read before the call returns.
        let code = unsafe {
            (library.functions().comm_init_rank_config)(
                slot.as_ptr(),
                c_world,
                id.to_raw(),
                c_rank,
                &raw mut config,
            )
        };
        // From here on a panic of `give_up` aborts too.
        let mut joined = Self {
            library: library.clone(),
            comm: slot.load(Ordering::Acquire),
            world,
            rank,
            device: 0,
            patience,
            failed: false,
        };
        let mut ended = Ended::Done(code);
        if goes_on(code) {
            ended = wait(patience, give_up, || progress_of_new(library, slot));
        }
        joined.comm = slot.load(Ordering::Acquire);
        joined.judge(call, ended)?;
        joined.device = joined.number("ncclCommCuDevice", library.functions().comm_cu_device)?;
        Ok(joined)
    }

    /// Divides the group: ranks with the same `color` become a group of their own, ordered by `key`, then by rank. `None` for
    /// ranks that join none. All ranks of this communicator call it.
    ///
    /// # Errors
    /// As [`init`](Self::init), and [`CallError::TooLarge`]. After a failure neither the new communicator nor this one can
    /// be used. What NCCL had made of the new one is left to it: which of the two frees it differs between releases.
    pub fn split(
        &mut self,
        color: Option<u32>,
        key: u32,
        patience: Duration,
        give_up: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Self>, CallError> {
        let call = "ncclCommSplit";
        self.alive(call)?;
        let int = |number| {
            c_int::try_from(number).map_err(|_| CallError::TooLarge { call, number, most: c_int::MAX })
        };
        let (c_color, c_key) = (color.map_or(Ok(sys::SPLIT_NO_COLOR), int)?, int(key)?);
        let slot = slot();
        let library = self.library.clone();
        let parent = self.comm;
        // SAFETY: the parent is live and `slot` never freed. No configuration: the parent's, which is non-blocking.
        let code =
            unsafe { (library.functions().comm_split)(parent, c_color, c_key, slot.as_ptr(), null_mut()) };
        let mut ended = Ended::Done(code);
        if goes_on(code) {
            ended = wait(patience, give_up, || match progress(&library, parent) {
                ResultCode::SUCCESS if color.is_some() => progress_of_new(&library, slot),
                code => code,
            });
        }
        if let Err(error) = self.judge(call, ended) {
            self.abort();
            return Err(error);
        }
        let comm = slot.load(Ordering::Acquire);
        if color.is_none() || comm.is_null() {
            return Ok(None);
        }
        let (device, patience) = (self.device, self.patience);
        let mut part = Self { library, comm, world: 0, rank: 0, device, patience, failed: false };
        part.world = part.number("ncclCommCount", self.library.functions().comm_count)?;
        part.rank = part.number("ncclCommUserRank", self.library.functions().comm_user_rank)?;
        Ok(Some(part))
    }

    /// This rank; less than [`world_size`](Self::world_size).
    #[must_use]
    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// Ranks in the group.
    #[must_use]
    pub fn world_size(&self) -> u32 {
        self.world
    }

    /// CUDA's number of this rank's GPU, among those that the process sees.
    #[must_use]
    pub fn device(&self) -> u32 {
        self.device
    }

    /// How long later calls may take until they are taken for hung. Not how long what they put on a stream may take.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Whether something went wrong since, here or on another rank. Cheap. Ask it while waiting for a stream, and again
    /// before trusting what a stream left in memory.
    ///
    /// # Errors
    /// [`CallError::Failed`] with what went wrong: the communicator can only be aborted. [`CallError::Aborted`].
    pub fn async_error(&mut self) -> Result<(), CallError> {
        let call = "ncclCommGetAsyncError";
        self.alive(call)?;
        match progress(&self.library, self.comm) {
            ResultCode::IN_PROGRESS => Ok(()),
            code => self.judge(call, Ended::Done(code)),
        }
    }

    /// Ends the communicator in good order, when all work on its streams is done. All ranks call it.
    ///
    /// # Errors
    /// As any call; the communicator is then aborted.
    pub fn finalize(mut self) -> Result<(), CallError> {
        let call = "ncclCommFinalize";
        self.alive(call)?;
        // SAFETY: the communicator is live.
        let code = unsafe { (self.library.functions().comm_finalize)(self.comm) };
        self.settle(call, code)?;
        match self.destroy() {
            ResultCode::IN_PROGRESS => Ok(()),
            code => self.library.done("ncclCommDestroy", code, null_mut()),
        }
    }

    /// Ends the communicator at once, and frees streams that wait in it for other ranks; what they left in memory is
    /// worthless. Other ranks learn of it as an error or by waiting in vain. A second call does nothing.
    pub fn abort(&mut self) {
        let comm = std::mem::replace(&mut self.comm, null_mut());
        if !comm.is_null() {
            // SAFETY: the communicator was live until here, and nobody can name it any more. There is nothing to do about
            // an error.
            unsafe { (self.library.functions().comm_abort)(comm) };
        }
    }

    fn destroy(&mut self) -> ResultCode {
        let comm = std::mem::replace(&mut self.comm, null_mut());
        // SAFETY: the communicator was live until here, and nobody can name it any more.
        unsafe { (self.library.functions().comm_destroy)(comm) }
    }

    /// Whether calls can be made.
    pub(crate) fn alive(&self, call: &'static str) -> Result<(), CallError> {
        if self.comm.is_null() { Err(CallError::Aborted { call }) } else { Ok(()) }
    }

    /// Waits until a call that returned `code` is done.
    pub(crate) fn settle(&mut self, call: &'static str, code: ResultCode) -> Result<(), CallError> {
        let mut ended = Ended::Done(code);
        if goes_on(code) {
            ended = wait(self.patience, &mut || false, || progress(&self.library, self.comm));
        }
        self.judge(call, ended)
    }

    /// Turns how a call ended into what the caller learns. A call that was left in progress can only be aborted.
    pub(crate) fn judge(&mut self, call: &'static str, ended: Ended) -> Result<(), CallError> {
        let error = match ended {
            Ended::Done(ResultCode::SUCCESS) => return Ok(()),
            Ended::Done(code) => self.library.failure(call, code, self.comm).into(),
            Ended::TimedOut(waited) => CallError::TimedOut { call, waited },
            Ended::GivenUp(waited) => CallError::GivenUp { call, waited },
        };
        self.failed = true;
        if !matches!(error, CallError::Failed(_)) {
            self.abort();
        }
        Err(error)
    }

    /// Asks for one of the communicator's numbers, none of which is negative.
    fn number(
        &mut self,
        call: &'static str,
        ask: unsafe extern "C" fn(sys::Comm, *mut c_int) -> ResultCode,
    ) -> Result<u32, CallError> {
        let mut number = -1;
        // SAFETY: the communicator is live; writes one int.
        let code = unsafe { ask(self.comm, &raw mut number) };
        self.settle(call, code)?;
        u32::try_from(number).map_err(|_| {
            self.failed = true;
            self.library.failure(call, ResultCode::INTERNAL_ERROR, self.comm).into()
        })
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        if self.comm.is_null() {
            return;
        }
        if self.failed || progress(&self.library, self.comm) != ResultCode::SUCCESS {
            self.abort();
        } else {
            self.destroy();
        }
    }
}

/// Where NCCL writes a new communicator. It may do so after the call that asked for it has returned, on a thread of its own,
/// even after that was given up: so this is never freed. Eight bytes a communicator.
fn slot() -> &'static AtomicPtr<std::ffi::c_void> {
    Box::leak(Box::new(AtomicPtr::new(null_mut())))
}

/// Whether a call may still go on in the background: its communicator knows.
fn goes_on(code: ResultCode) -> bool {
    matches!(code, ResultCode::SUCCESS | ResultCode::IN_PROGRESS)
}

/// How far a communicator is.
fn progress(library: &Library, comm: sys::Comm) -> ResultCode {
    let mut code = ResultCode::INTERNAL_ERROR;
    // SAFETY: the callers' communicator is live; writes one code.
    let asked = unsafe { (library.functions().comm_get_async_error)(comm, &raw mut code) };
    if asked == ResultCode::SUCCESS { code } else { asked }
}

/// How far a communicator is that NCCL may not have written yet.
fn progress_of_new(library: &Library, slot: &AtomicPtr<std::ffi::c_void>) -> ResultCode {
    let comm = slot.load(Ordering::Acquire);
    if comm.is_null() { ResultCode::IN_PROGRESS } else { progress(library, comm) }
}

#[cfg(test)]
mod tests;
