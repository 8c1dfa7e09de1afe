//! Contexts: one for each GPU while somebody retains it, current for a thread, and broken for good by a failure of its work.
//!
//! What a call needs first is [`current`]: it says `CUDA_ERROR_INVALID_CONTEXT` if the thread has none, and the failure of a
//! context that broke. Only primary contexts exist.

use crate::{
    Answer, counts, device,
    device::Gpu,
    event,
    handles::Handles,
    ipc,
    lock::lock,
    memory, module,
    stream::{self, Stream},
};
use cudarc::driver::sys::{CUcontext, CUctx_st, CUresult};
use std::{
    cell::Cell,
    ptr,
    sync::{Arc, Mutex, OnceLock},
};

/// A context.
pub(crate) struct Context {
    pub(crate) gpu: &'static Gpu,
    /// Why all later calls fail.
    failure: OnceLock<CUresult>,
    destroyed: OnceLock<()>,
    default_stream: Mutex<Option<Arc<Stream>>>,
    /// Streams that were destroyed with work in them.
    pub(crate) closing: Mutex<Vec<Arc<Stream>>>,
}

static CONTEXTS: Handles<Context> = Handles::new(1);

/// The primary contexts that are retained, how often, and their handles.
static PRIMARY: Mutex<Vec<Primary>> = Mutex::new(Vec::new());

struct Primary {
    ordinal: i32,
    retained: usize,
    /// The address of its handle.
    handle: usize,
}

thread_local! {
    static CURRENT: Cell<CUcontext> = const { Cell::new(ptr::null_mut()) };
}

impl Context {
    /// Breaks it: from now on all calls fail with `code`, or with the code of a failure that came first.
    pub(crate) fn fail(&self, code: CUresult) {
        self.failure.get_or_init(|| code);
    }

    /// The failure that broke it, if one did.
    pub(crate) fn failure(&self) -> Option<CUresult> {
        self.failure.get().copied()
    }

    /// Whether its work has no sense any more: it is broken or destroyed. Work that waits asks this now and then.
    pub(crate) fn ended(&self) -> bool {
        self.failure.get().is_some() || self.destroyed.get().is_some()
    }

    /// Its failure as an error.
    pub(crate) fn check(&self) -> Answer {
        match self.failure() {
            Some(code) => Err(code),
            None if self.destroyed.get().is_some() => Err(CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED),
            None => Ok(()),
        }
    }

    /// The stream that a null handle means.
    pub(crate) fn default_stream(self: &Arc<Self>) -> Arc<Stream> {
        Arc::clone(lock(&self.default_stream).get_or_insert_with(|| Stream::start(Arc::clone(self), true)))
    }

    /// The same if anything was ever put into it.
    pub(crate) fn default_stream_if_used(&self) -> Option<Arc<Stream>> {
        lock(&self.default_stream).clone()
    }
}

/// The context that is current for this thread, whatever its state.
fn current_in_any_state() -> Option<Arc<Context>> {
    CONTEXTS.find(CURRENT.get())
}

/// The GPU of the current context.
pub(crate) fn current_gpu() -> Option<&'static Gpu> {
    current_in_any_state().map(|context| context.gpu)
}

/// The current context, if it is one that works.
pub(crate) fn current() -> Answer<Arc<Context>> {
    if device::gpus().is_empty() {
        return Err(CUresult::CUDA_ERROR_NOT_INITIALIZED);
    }
    let context = match current_in_any_state() {
        Some(context) => context,
        None if CURRENT.get().is_null() => return Err(CUresult::CUDA_ERROR_INVALID_CONTEXT),
        None => return Err(CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED),
    };
    context.check()?;
    Ok(context)
}

/// The handle of the current context, null if there is none.
pub(crate) fn current_handle() -> CUcontext {
    CURRENT.get()
}

/// Makes a context current for this thread; null makes none.
pub(crate) fn set_current(handle: CUcontext) -> Answer {
    if !handle.is_null() && CONTEXTS.find(handle).is_none() {
        return Err(CUresult::CUDA_ERROR_INVALID_CONTEXT);
    }
    CURRENT.set(handle);
    Ok(())
}

/// The primary context of `gpu`, which lives until it was released as often.
pub(crate) fn retain(gpu: &'static Gpu) -> CUcontext {
    let mut primary = lock(&PRIMARY);
    if let Some(context) = primary.iter_mut().find(|context| context.ordinal == gpu.ordinal) {
        context.retained += 1;
        return ptr::without_provenance_mut(context.handle);
    }
    let (handle, _) = CONTEXTS.add::<CUctx_st>(|_| {
        Arc::new(Context {
            gpu,
            failure: OnceLock::new(),
            destroyed: OnceLock::new(),
            default_stream: Mutex::new(None),
            closing: Mutex::default(),
        })
    });
    primary.push(Primary { ordinal: gpu.ordinal, retained: 1, handle: handle.addr() });
    handle
}

/// Releases the primary context once; the last time ends it and all that is in it.
pub(crate) fn release(gpu: &'static Gpu) -> Answer {
    let mut primary = lock(&PRIMARY);
    let at = primary.iter().position(|context| context.ordinal == gpu.ordinal);
    let at = at.ok_or(CUresult::CUDA_ERROR_INVALID_CONTEXT)?;
    primary[at].retained -= 1;
    if primary[at].retained > 0 {
        return Ok(());
    }
    let handle: CUcontext = ptr::without_provenance_mut(primary.swap_remove(at).handle);
    if let Some(context) = CONTEXTS.remove(handle) {
        ipc::forget_all(gpu.ordinal);
        let lost = counts::Leaks {
            allocations: memory::free_all(gpu),
            streams: stream::end_all(&context),
            events: event::end_all(&context),
            modules: module::end_all(&context),
        };
        let _ = context.destroyed.set(());
        lock(&context.closing).clear();
        if let Some(stream) = lock(&context.default_stream).take() {
            stream.close();
        }
        let mut counts = lock(&gpu.counts);
        counts.lost.allocations += lost.allocations;
        counts.lost.streams += lost.streams;
        counts.lost.events += lost.events;
        counts.lost.modules += lost.modules;
    }
    Ok(())
}

/// How many contexts of `gpu` are alive.
pub(crate) fn alive_on(gpu: &Gpu) -> usize {
    CONTEXTS.all(|context| context.gpu == gpu).len()
}
