//! The physical limit of a load into GPUs: pinned memory copied to them by nobody but their copy engines.
//!
//!     pinned_copy --gpus 2 --bytes 1073741824 --rounds 5
//!     pinned_copy --list
//!
//! Each of the first GPUs, in the order in which shardwright numbers them, gets one pinned buffer and as much of its own memory.
//! A round copies all of it in pieces of 8 MiB on one stream, on all GPUs at the same time, as a load does; allocating and the
//! first round are not measured. There are no files, nothing to gather and nothing to verify. Prints one line of JSON.

use cudarc::driver::{result, sys};
use serde_json::json;
use shardwright_loader::device::cuda::{Driver, Gpu};
use std::{error::Error, ffi::c_int, process::ExitCode, sync::Barrier, time::Instant};

const PIECE_BYTES: usize = 8 << 20;
const MOST_GPUS: usize = 64;
const MOST_BYTES: usize = 64 << 30;
const MOST_ROUNDS: usize = 1000;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What is asked for.
struct Arguments {
    list: bool,
    gpus: usize,
    bytes: usize,
    rounds: usize,
}

impl Arguments {
    fn read(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut all = Self { list: false, gpus: 1, bytes: 1 << 30, rounds: 5 };
        while let Some(word) = words.next() {
            let (into, most) = match word.as_str() {
                "--list" => {
                    all.list = true;
                    continue;
                }
                "--gpus" => (&mut all.gpus, MOST_GPUS),
                "--bytes" => (&mut all.bytes, MOST_BYTES),
                "--rounds" => (&mut all.rounds, MOST_ROUNDS),
                other => {
                    return Err(format!(
                        "{other:?} is none of --list, --gpus N, --bytes N (of each GPU), --rounds N"
                    ));
                }
            };
            let number = words.next().and_then(|number| number.parse().ok());
            *into = number
                .filter(|number| (1..=most).contains(number))
                .ok_or_else(|| format!("{word} wants a number from 1 to {most}"))?;
        }
        Ok(all)
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::read(std::env::args().skip(1))?;
    // It says what is missing, and that the library has what is called below, but for one that every driver has.
    let driver = Driver::open()?;
    let mut gpus = driver.gpus()?;
    if std::env::var_os("CUDA_VISIBLE_DEVICES").is_none() {
        gpus.sort_by(|a, b| a.pci.cmp(&b.pci));
    }
    if arguments.list {
        let gpus = gpus.iter().map(|gpu| json!({ "name": gpu.name, "uuid": gpu.uuid, "pci": gpu.pci }));
        println!("{}", json!({ "driver": driver.version(), "gpus": gpus.collect::<Vec<_>>() }));
        return Ok(());
    }
    if gpus.len() < arguments.gpus {
        return Err(format!("--gpus {}: this process sees {}", arguments.gpus, gpus.len()).into());
    }
    gpus.truncate(arguments.gpus);

    let copiers = gpus
        .iter()
        .map(|gpu| Copier::new(gpu, arguments.bytes).map_err(|error| said_of(gpu, &error)))
        .collect::<Result<Vec<_>, String>>()?;
    round(&copiers)?;
    let rounds = (0..arguments.rounds).map(|_| round(&copiers)).collect::<Result<Vec<_>, _>>()?;

    let speed = |bytes: usize, seconds: f64| to_float(bytes) / 1e9 / seconds;
    let of_gpus = gpus.iter().enumerate().map(|(number, gpu)| {
        let (best, median) =
            best_and_median(rounds.iter().map(|round| speed(arguments.bytes, round[number])).collect());
        json!({
            "name": gpu.name,
            "uuid": gpu.uuid,
            "pci": gpu.pci,
            "best_gb_per_second": best,
            "median_gb_per_second": median,
        })
    });
    let of_gpus: Vec<_> = of_gpus.collect();
    // A round takes as long as its slowest GPU, as a load does.
    let slowest = |round: &Vec<f64>| round.iter().copied().fold(0.0, f64::max);
    let together = rounds.iter().map(|round| speed(arguments.bytes * gpus.len(), slowest(round)));
    let (best, median) = best_and_median(together.collect());
    let line = json!({
        "driver": driver.version(),
        "bytes": arguments.bytes,
        "piece_bytes": PIECE_BYTES.min(arguments.bytes),
        "rounds": arguments.rounds,
        "gpus": of_gpus,
        "best_gb_per_second": best,
        "median_gb_per_second": median,
    });
    println!("{line}");
    Ok(())
}

fn said_of(gpu: &Gpu, error: &result::DriverError) -> String {
    format!("cuda:{} ({}): {error:?}", gpu.ordinal, gpu.name)
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn to_float(bytes: usize) -> f64 {
    bytes as f64
}

/// Of at least one figure, the more the better.
fn best_and_median(mut figures: Vec<f64>) -> (f64, f64) {
    figures.sort_by(f64::total_cmp);
    let (middle, last) = (figures.len() / 2, figures.len() - 1);
    let median = if figures.len() % 2 == 1 {
        figures[middle]
    } else {
        f64::midpoint(figures[middle - 1], figures[middle])
    };
    (figures[last], median)
}

/// Copies on all GPUs at the same time, and gives the seconds that each took.
fn round(copiers: &[Copier<'_>]) -> Result<Vec<f64>, String> {
    let all_ready = Barrier::new(copiers.len());
    let copy = &|copier: &Copier<'_>| {
        let bound = copier.bind();
        // Whoever failed is waited for, too.
        all_ready.wait();
        let begin = Instant::now();
        bound.and_then(|()| copier.copy()).map_err(|error| said_of(copier.gpu, &error))?;
        Ok(begin.elapsed().as_secs_f64())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = copiers.iter().map(|copier| scope.spawn(move || copy(copier))).collect();
        let ends = threads.into_iter().map(|thread| match thread.join() {
            Ok(end) => end,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        ends.collect()
    })
}

/// A GPU with memory to copy from and to.
struct Copier<'a> {
    gpu: &'a Gpu,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    from: *mut u8,
    to: sys::CUdeviceptr,
    bytes: usize,
}

// SAFETY: a primary context and what was made in it may be used from any thread that has made the context current (`bind`). The
// memory at `from` is not touched by the host after `new`, only by copies.
unsafe impl Sync for Copier<'_> {}

impl<'a> Copier<'a> {
    /// Allocates. What fails ends the program, so what was made until then is not given back.
    fn new(gpu: &'a Gpu, bytes: usize) -> Result<Self, result::DriverError> {
        let device = result::device::get(c_int::try_from(gpu.ordinal).unwrap_or(c_int::MAX))?;
        // SAFETY: the driver gave the device; `drop` releases the context.
        let context = unsafe { result::primary_ctx::retain(device) }?;
        // SAFETY: the context was just retained.
        unsafe { result::ctx::set_current(context) }?;
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking)?;
        // SAFETY: a context is current; `drop` frees it.
        let to = unsafe { result::malloc_sync(bytes) }?;
        // SAFETY: as above.
        let from = unsafe { result::malloc_host(bytes, sys::CU_MEMHOSTALLOC_PORTABLE) }?.cast::<u8>();
        // SAFETY: the driver gave that many bytes, which nobody else has.
        unsafe { from.write_bytes(1, bytes) };
        Ok(Self { gpu, device, context, stream, from, to, bytes })
    }

    fn bind(&self) -> Result<(), result::DriverError> {
        // SAFETY: the context is retained for as long as self lives.
        unsafe { result::ctx::set_current(self.context) }
    }

    /// Copies everything and waits for it. The context is current.
    fn copy(&self) -> Result<(), result::DriverError> {
        for at in (0..self.bytes).step_by(PIECE_BYTES) {
            let len = PIECE_BYTES.min(self.bytes - at);
            // SAFETY: `at + len` is within both allocations of `bytes` bytes, which live until `drop`; nobody writes to `from`,
            // and nobody else reads or writes `to`.
            unsafe {
                sys::cuMemcpyHtoDAsync_v2(self.to + at as u64, self.from.add(at).cast(), len, self.stream)
            }
            .result()?;
        }
        // SAFETY: the stream lives.
        unsafe { result::stream::synchronize(self.stream) }
    }
}

impl Drop for Copier<'_> {
    /// Nothing can be done about what fails here.
    fn drop(&mut self) {
        if self.bind().is_err() {
            return;
        }
        // SAFETY: all were made by `new` and are given back here only. No copy is under way: `copy` waits, and when that failed
        // the context is broken for good.
        unsafe {
            let _ = result::stream::destroy(self.stream);
            let _ = result::free_sync(self.to);
            let _ = result::free_host(self.from.cast());
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &[&str]) -> Result<Arguments, String> {
        Arguments::read(words.iter().map(|word| (*word).to_owned()))
    }

    #[test]
    fn arguments_are_numbers_within_bounds() {
        let all = read(&["--rounds", "3", "--gpus", "8"]).unwrap();
        assert_eq!((all.gpus, all.bytes, all.rounds), (8, 1 << 30, 3));
        for wrong in [&["--rounds", "0"][..], &["--bytes", "1e9"], &["--gpus"], &["3"]] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_median_lies_in_the_middle() {
        assert_eq!(best_and_median(vec![3.0, 1.0, 2.0]), (3.0, 2.0));
        assert_eq!(best_and_median(vec![4.0, 1.0, 2.0, 3.0]), (4.0, 2.5));
    }
}
