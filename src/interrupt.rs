//! Being asked to stop, and stopping though something hangs.

use crate::failure::{Failure, Kind};
use shardwright_loader::collective::Lifeline;
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
};
use std::{
    io::Write,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// How often the watchdog looks around.
const TICK: Duration = Duration::from_millis(50);

/// Signals are the process's, and so is who hears them: a command that loads twice stops for good.
static LISTENING: Mutex<Option<Interrupts>> = Mutex::new(None);

/// SIGINT and SIGTERM, from the first time that somebody listens.
#[derive(Clone)]
pub(crate) struct Interrupts {
    flag: Arc<AtomicBool>,
}

impl Interrupts {
    /// From now on a signal does not end the program; whoever works looks at the flag.
    pub(crate) fn listen() -> Result<Self, Failure> {
        let mut listening = LISTENING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(interrupts) = listening.as_ref() {
            return Ok(interrupts.clone());
        }
        let failed = |error| Failure::new(Kind::Environment, format!("cannot listen for signals: {error}"));
        let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(failed)?;
        let interrupts = Self { flag: Arc::default() };
        let heard = interrupts.clone();
        // It ends with the program.
        let listener = move || {
            for _ in signals.forever() {
                heard.flag.store(true, Ordering::Relaxed);
            }
        };
        std::thread::Builder::new().spawn(listener).map_err(failed)?;
        Ok(listening.insert(interrupts).clone())
    }

    /// Those of a caller, who sets `flag` when somebody asks to stop.
    pub(crate) fn of(flag: &Arc<AtomicBool>) -> Self {
        Self { flag: Arc::clone(flag) }
    }

    /// Leaves signals to the caller, who sets `flag`, unless somebody listens already.
    pub(crate) fn lend(flag: &Arc<AtomicBool>) {
        let mut listening = LISTENING.lock().unwrap_or_else(PoisonError::into_inner);
        listening.get_or_insert_with(|| Self::of(flag));
    }

    /// Becomes true with each signal.
    pub(crate) fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.flag)
    }

    /// Whether there was a signal.
    pub(crate) fn is_interrupted(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }
}

/// Passes an interrupt on to all ranks, and ends the program when a rank of it does not: a driver or a file system that hangs
/// cannot be talked out of it, and the other ranks wait for this process.
pub(crate) struct Watchdog {
    interrupts: Interrupts,
    lifelines: Arc<Mutex<Vec<(u32, Lifeline)>>>,
    stop: mpsc::Sender<()>,
    thread: JoinHandle<()>,
}

impl Watchdog {
    /// Watches until it is stopped. When somebody asked to stop, or a rank failed, all ranks of this process have a part of
    /// `patience` left.
    pub(crate) fn start(interrupts: &Interrupts, patience: Duration) -> Result<Self, Failure> {
        let (stop, stopped) = mpsc::channel();
        let lifelines: Arc<Mutex<Vec<(u32, Lifeline)>>> = Arc::default();
        let watched = Arc::clone(&lifelines);
        let heard = interrupts.clone();
        let grace = (patience / 2).clamp(Duration::from_secs(1), Duration::from_secs(5));
        let watch = move || {
            let mut ended: Option<(Instant, String)> = None;
            // The sender says that all is over, or is gone.
            while stopped.recv_timeout(TICK) == Err(mpsc::RecvTimeoutError::Timeout) {
                let lifelines = watched.lock().unwrap_or_else(PoisonError::into_inner);
                match &ended {
                    None if heard.is_interrupted() => {
                        // Whoever waits for other ranks hears it from here.
                        for (rank, lifeline) in &*lifelines {
                            lifeline.fail(*rank, "interrupted");
                        }
                        ended = Some((Instant::now(), "interrupted".to_owned()));
                    }
                    None => {
                        let failure = lifelines.iter().find_map(|(_, lifeline)| lifeline.failure());
                        ended = failure.map(|failure| (Instant::now(), failure.to_string()));
                    }
                    Some((since, reason)) if since.elapsed() > grace => give_up(reason),
                    Some(_) => {}
                }
            }
        };
        let failed = |error| Failure::new(Kind::Environment, format!("cannot start the watchdog: {error}"));
        let thread = std::thread::Builder::new().spawn(watch).map_err(failed)?;
        Ok(Self { interrupts: interrupts.clone(), lifelines, stop, thread })
    }

    /// Watches these ranks, too.
    pub(crate) fn watch(&self, lifelines: Vec<(u32, Lifeline)>) {
        self.lifelines.lock().unwrap_or_else(PoisonError::into_inner).extend(lifelines);
    }

    /// Stops watching, and gives `outcome` back: where it failed after an interrupt, that is why.
    pub(crate) fn stop<T>(self, outcome: Result<T, Failure>) -> Result<T, Failure> {
        let _ = self.stop.send(());
        // It cannot panic, and there would be nothing to do about it.
        let _ = self.thread.join();
        match outcome {
            Err(_) if self.interrupts.is_interrupted() => Err(Failure::new(Kind::Environment, "interrupted")),
            outcome => outcome,
        }
    }
}

/// Ends the process, with the message that the command would have ended with.
fn give_up(reason: &str) -> ! {
    let failure = Failure::new(Kind::Environment, reason).with_help(
        "this process did not stop by itself in time: what it waits for, a driver or a file system, may hang"
            .to_owned(),
    );
    let _ = write!(std::io::stderr(), "{failure}");
    std::process::exit(Kind::Environment as i32)
}
