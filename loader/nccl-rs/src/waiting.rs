//! Waiting for a non-blocking call, with an end to it.

use crate::sys::ResultCode;
use std::{
    thread::sleep,
    time::{Duration, Instant},
};

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The call came to this; never [`ResultCode::IN_PROGRESS`].
    Done(ResultCode),
    /// It was still in progress when the patience was over.
    TimedOut(Duration),
    /// It was still in progress when the caller had enough.
    GivenUp(Duration),
}

/// Polls until the call is no longer in progress, but no longer than `patience`, and no longer than `give_up` says false.
///
/// The pauses between polls grow from [`FIRST_PAUSE`] to [`LONGEST_PAUSE`]: most calls are done at once, an initialisation
/// takes seconds.
pub(crate) fn wait(
    patience: Duration,
    give_up: &mut dyn FnMut() -> bool,
    mut poll: impl FnMut() -> ResultCode,
) -> Ended {
    let started = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        let code = poll();
        if code != ResultCode::IN_PROGRESS {
            return Ended::Done(code);
        }
        let waited = started.elapsed();
        if waited >= patience {
            return Ended::TimedOut(waited);
        }
        if give_up() {
            return Ended::GivenUp(waited);
        }
        sleep(pause.min(patience - waited));
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

const FIRST_PAUSE: Duration = Duration::from_micros(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(5);
