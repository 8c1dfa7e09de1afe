//! The physical limit of loading into a GPU: plain copies of pinned memory.
//!
//!     pinned_copy                          # GPU 0, 4 GiB in pieces of 8 MiB, five rounds
//!     pinned_copy --gpu 1 --bytes 1000000000 --rounds 3
//!
//! One pinned buffer, one stream, asynchronous copies in turn, one wait at the end. There is no file, nothing to stage and nothing
//! to verify. Prints one line of JSON: the GPU's name, bytes, seconds and GB/s of the best round and of the median.

use cudarc::driver::{result, sys};
use serde_json::json;
use std::{error::Error, process::ExitCode, time::Instant};

const PIECE_BYTES: usize = 8 << 20;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let (mut gpu, mut bytes, mut rounds) = (0i32, 4usize << 30, 5usize);
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let value = args.next().ok_or_else(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--gpu" => gpu = value.parse()?,
            "--bytes" => bytes = value.parse()?,
            "--rounds" => rounds = value.parse()?,
            _ => return Err(format!("unknown argument {name}").into()),
        }
    }
    // SAFETY: loading the driver's library runs what every CUDA program runs.
    if !unsafe { sys::is_culib_present() } {
        return Err("no CUDA driver: libcuda.so.1 could not be loaded".into());
    }
    result::init()?;
    let device = result::device::get(gpu)?;
    let name = result::device::get_name(device)?;
    // SAFETY: the device comes from the driver, and the context is current for all that follows in this thread.
    unsafe { result::ctx::set_current(result::primary_ctx::retain(device)?)? };
    let mut seconds = copy(bytes, rounds.max(1))?;
    seconds.sort_by(f64::total_cmp);
    #[allow(clippy::cast_precision_loss)]
    let rate = |seconds: f64| bytes as f64 / 1e9 / seconds;
    let (best, median) = (seconds[0], seconds[seconds.len() / 2]);
    let line = json!({
        "gpu": name,
        "bytes": bytes,
        "best_seconds": best,
        "median_seconds": median,
        "best_gb_per_second": rate(best),
        "median_gb_per_second": rate(median),
    });
    println!("{line}");
    Ok(())
}

/// The seconds of each round.
fn copy(bytes: usize, rounds: usize) -> Result<Vec<f64>, Box<dyn Error>> {
    // Pieces are copied from and to the same places again and again: more would only need more memory.
    let ring = 8 * PIECE_BYTES;
    // SAFETY: the context is current; both are freed below, after the last copy.
    let (device, host) = unsafe {
        (result::malloc_sync(ring)?, result::malloc_host(ring, sys::CU_MEMHOSTALLOC_PORTABLE)?.cast::<u8>())
    };
    let stream = result::stream::create(result::stream::StreamKind::NonBlocking)?;
    // SAFETY: the driver gave that many bytes; the pages are touched before anything is measured.
    unsafe { host.write_bytes(0x5a, ring) };
    let mut seconds = Vec::with_capacity(rounds);
    // The first round warms up.
    for round in 0..=rounds {
        let begin = Instant::now();
        for (number, start) in (0..bytes).step_by(PIECE_BYTES).enumerate() {
            let place = number % 8 * PIECE_BYTES;
            let len = PIECE_BYTES.min(bytes - start);
            // SAFETY: both pieces lie inside their allocations, which nobody writes to until the stream is waited for.
            unsafe {
                let from = std::slice::from_raw_parts(host.add(place), len);
                result::memcpy_htod_async(device + place as u64, from, stream)?;
            }
        }
        // SAFETY: the stream lives.
        unsafe { result::stream::synchronize(stream)? };
        if round > 0 {
            seconds.push(begin.elapsed().as_secs_f64());
        }
    }
    // SAFETY: nothing uses them any more.
    unsafe {
        result::stream::destroy(stream)?;
        result::free_sync(device)?;
        result::free_host(host.cast())?;
    }
    Ok(seconds)
}
