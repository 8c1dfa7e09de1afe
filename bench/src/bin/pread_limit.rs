//! The physical limit of a warm load: the bytes of some files, read as they lie, into fresh memory.
//!
//!     pread_limit model-*.safetensors
//!
//! Two threads read blocks of 8 MiB with `pread` into one piece of anonymous memory for which huge pages are advised. There is
//! no header to parse, nothing to slice and nothing to verify. Mapping the memory, and the page faults of filling it, count
//! in the time, as they do in a load. Prints one line of JSON: files, bytes, seconds, GB/s.

use memmap2::{Advice, MmapMut};
use serde_json::json;
use std::{
    error::Error,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::PathBuf,
    process::ExitCode,
    sync::{Mutex, PoisonError},
    time::Instant,
};

const THREADS: usize = 2;
const BLOCK_BYTES: usize = 8 << 20;
const HUGE_PAGE: usize = 2 << 20;

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
    let paths: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    if paths.is_empty() {
        return Err("no file given; usage: pread_limit FILE...".into());
    }
    let begin = Instant::now();
    let bytes = read_all(&paths)?;
    let seconds = begin.elapsed().as_secs_f64();
    #[allow(clippy::cast_precision_loss)]
    let gb_per_second = bytes as f64 / 1e9 / seconds;
    let line =
        json!({ "files": paths.len(), "bytes": bytes, "seconds": seconds, "gb_per_second": gb_per_second });
    println!("{line}");
    Ok(())
}

/// Reads the files one after the other into one piece of memory, and says how many bytes they have.
fn read_all(paths: &[PathBuf]) -> Result<usize, Box<dyn Error>> {
    let mut files = Vec::new();
    let mut total = 0;
    for path in paths {
        let named = |error: io::Error| format!("cannot open {}: {error}", path.display());
        let file = File::open(path).map_err(named)?;
        let len = usize::try_from(file.metadata().map_err(named)?.len())?;
        total += len;
        files.push((file, len));
    }

    let mut map = MmapMut::map_anon(total + HUGE_PAGE)?;
    let aligned = map.as_ptr().align_offset(HUGE_PAGE);
    // Without huge pages this would be no limit: refuse rather than flatter whoever is compared with it.
    map.advise_range(Advice::HugePage, aligned, total)?;
    let mut rest = &mut map[aligned..aligned + total];
    let mut blocks = Vec::new();
    for (file, len) in &files {
        let (memory, behind) = rest.split_at_mut(*len);
        rest = behind;
        blocks.extend((0u64..).step_by(BLOCK_BYTES).zip(memory.chunks_mut(BLOCK_BYTES)).map(|at| (file, at)));
    }

    // Blocks are taken in order; a lock for each 8 MiB costs nothing beside reading them.
    let next = Mutex::new(blocks.into_iter());
    let take = || next.lock().unwrap_or_else(PoisonError::into_inner).next();
    std::thread::scope(|scope| {
        let read = || -> io::Result<()> {
            while let Some((file, (from, memory))) = take() {
                file.read_exact_at(memory, from)?;
            }
            Ok(())
        };
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(read)).collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })?;
    Ok(total)
}
