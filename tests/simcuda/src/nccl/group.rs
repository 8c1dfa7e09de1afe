//! Groups: calls of one thread that take effect together, and how operations get onto their streams.

use super::{
    comm::{self, Comm},
    operation::{self, Operation},
    refusal::Refusal,
};
use crate::stream::Stream;
use nccl_rs::sys::ResultCode;
use std::{cell::RefCell, sync::Arc, thread, time::Duration};

/// How long a non-blocking call stays in progress before it puts work on streams: long enough to catch a program that waits
/// for the stream without asking first.
const DELAY: Duration = Duration::from_micros(500);

#[derive(Default)]
struct Group {
    depth: usize,
    operations: Vec<Operation>,
    /// Communicators that began to be made or ended in the group.
    begun: Vec<Arc<Comm>>,
    /// The first call that failed.
    refusal: Option<Refusal>,
}

thread_local! {
    static GROUP: RefCell<Group> = RefCell::default();
}

fn with<T>(act: impl FnOnce(&mut Group) -> T) -> T {
    GROUP.with_borrow_mut(act)
}

/// `ncclGroupStart`
pub(super) fn start() {
    with(|group| group.depth += 1);
}

/// `ncclGroupEnd`
pub(super) fn end() -> Result<ResultCode, Refusal> {
    let depth = with(|group| {
        let depth = group.depth;
        group.depth = depth.saturating_sub(1);
        depth
    });
    match depth {
        0 => return Err(Refusal::new(ResultCode::INVALID_USAGE, "ncclGroupEnd: not in a group call")),
        1 => {}
        _ => return Ok(ResultCode::SUCCESS),
    }
    let Group { operations, begun, refusal, .. } = with(std::mem::take);
    if let Some(refusal) = refusal {
        return Err(refusal);
    }
    let mut code = launch(operations)?;
    for comm in begun {
        if comm.answer()? == ResultCode::IN_PROGRESS {
            code = ResultCode::IN_PROGRESS;
        }
    }
    Ok(code)
}

/// Starts what a call asked for; in a group, notes it down.
pub(super) fn add(operation: Result<Option<Operation>, Refusal>) -> Result<ResultCode, Refusal> {
    let grouped = with(|group| group.depth > 0);
    match operation {
        Err(refusal) => {
            if grouped {
                with(|group| group.refusal.get_or_insert(refusal.clone()).code);
            }
            Err(refusal)
        }
        Ok(Some(operation)) if grouped => {
            with(|group| group.operations.push(operation));
            Ok(ResultCode::SUCCESS)
        }
        Ok(operation) => launch(operation.into_iter().collect()),
    }
}

/// What a call returns that has `comm` begin something: in a group of blocking communicators, the group's end waits for it.
pub(super) fn begun(comm: &Arc<Comm>) -> Result<ResultCode, Refusal> {
    if with(|group| group.depth > 0) {
        with(|group| group.begun.push(Arc::clone(comm)));
        let code = if comm.blocking { ResultCode::SUCCESS } else { ResultCode::IN_PROGRESS };
        return Ok(code);
    }
    comm.answer()
}

/// Puts operations onto their streams, at once or in the background.
fn launch(operations: Vec<Operation>) -> Result<ResultCode, Refusal> {
    let mut comms: Vec<Arc<Comm>> = Vec::new();
    let mut by_stream: Vec<(Arc<Stream>, Vec<Operation>)> = Vec::new();
    for operation in operations {
        if !comms.iter().any(|comm| Arc::ptr_eq(comm, operation.comm())) {
            comms.push(Arc::clone(operation.comm()));
        }
        match by_stream.iter_mut().find(|(stream, _)| Arc::ptr_eq(stream, &operation.stream)) {
            Some((_, operations)) => operations.push(operation),
            None => by_stream.push((Arc::clone(&operation.stream), vec![operation])),
        }
    }
    if comms.iter().all(|comm| comm.blocking) {
        enqueue(by_stream)?;
        return Ok(ResultCode::SUCCESS);
    }
    if comms.iter().any(|comm| comm.blocking) {
        return Err(Refusal::argument("blocking and non-blocking communicators in one group"));
    }
    for comm in &comms {
        comm.busy();
    }
    comm::named(move || {
        thread::sleep(DELAY);
        let enqueued = enqueue(by_stream);
        for comm in &comms {
            if let Err(refusal) = &enqueued {
                comm.fail(refusal.clone());
            }
            comm.idle();
        }
    })?;
    Ok(ResultCode::IN_PROGRESS)
}

fn enqueue(by_stream: Vec<(Arc<Stream>, Vec<Operation>)>) -> Result<(), Refusal> {
    for (stream, operations) in by_stream {
        stream.enqueue(move |_| operation::run(&operations)).map_err(|code| {
            Refusal::new(ResultCode::UNHANDLED_CUDA_ERROR, format!("putting work on a stream: {code:?}"))
        })?;
    }
    Ok(())
}
