//! The physical limit of a load: the bytes of some files, read as they lie, into fresh memory.
//!
//!     pread_limit model-*.safetensors                          # warm: through the page cache
//!     pread_limit --direct --threads 8 model-*.safetensors     # cold: past it, from storage
//!
//! Threads (two unless told) read blocks of 8 MiB with `pread` into one piece of anonymous memory for which huge pages are
//! advised. There is no header to parse, nothing to slice and nothing to verify. Mapping the memory, and the page faults of
//! filling it, count in the time, as they do in a load. Prints one line of JSON: files, bytes, threads, direct, seconds, GB/s.

use memmap2::{Advice, MmapMut};
use serde_json::json;
use std::{
    error::Error,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::PathBuf,
    process::ExitCode,
    sync::{Mutex, PoisonError},
    time::Instant,
};

const DEFAULT_THREADS: usize = 2;
const MAX_THREADS: usize = 256;
const BLOCK_BYTES: usize = 8 << 20;
const HUGE_PAGE: usize = 2 << 20;
/// Direct reads begin, end and land at multiples of this: a page, which every block size that storage has divides.
const DIRECT_ALIGNMENT: usize = 4096;

const USAGE: &str = "usage: pread_limit [--direct] [--threads N] FILE...";

struct Arguments {
    direct: bool,
    threads: usize,
    paths: Vec<PathBuf>,
}

impl Arguments {
    fn parse() -> Result<Self, Box<dyn Error>> {
        let mut parsed = Self { direct: false, threads: DEFAULT_THREADS, paths: Vec::new() };
        let mut given = std::env::args_os().skip(1);
        while let Some(argument) = given.next() {
            match argument.to_str() {
                Some("--direct") => parsed.direct = true,
                Some("--threads") => {
                    let number = given.next().and_then(|number| number.to_str()?.parse().ok());
                    parsed.threads =
                        number.filter(|number| (1..=MAX_THREADS).contains(number)).ok_or_else(|| {
                            format!("--threads takes a number from 1 to {MAX_THREADS}; {USAGE}")
                        })?;
                }
                Some(flag) if flag.starts_with("--") => {
                    return Err(format!("unknown flag {flag}; {USAGE}").into());
                }
                _ => parsed.paths.push(argument.into()),
            }
        }
        if parsed.paths.is_empty() { Err(format!("no file given; {USAGE}").into()) } else { Ok(parsed) }
    }
}

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
    let arguments = Arguments::parse()?;
    let begin = Instant::now();
    let bytes = read_all(&arguments)?;
    let seconds = begin.elapsed().as_secs_f64();
    #[allow(clippy::cast_precision_loss)]
    let gb_per_second = bytes as f64 / 1e9 / seconds;
    let line = json!({
        "files": arguments.paths.len(),
        "bytes": bytes,
        "threads": arguments.threads,
        "direct": arguments.direct,
        "seconds": seconds,
        "gb_per_second": gb_per_second,
    });
    println!("{line}");
    Ok(())
}

/// Reads the files one after the other into one piece of memory, and says how many bytes they have.
fn read_all(arguments: &Arguments) -> Result<usize, Box<dyn Error>> {
    let mut files = Vec::new();
    let mut total = 0;
    let mut span = 0;
    for path in &arguments.paths {
        let named = |error: io::Error| format!("cannot open {}: {error}", path.display());
        let flags = if arguments.direct { libc::O_DIRECT } else { 0 };
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(named)?;
        let len = usize::try_from(file.metadata().map_err(named)?.len())?;
        // The last direct read of a file asks for a whole page and gets what there is: its memory has room for the page.
        let room = if arguments.direct { len.next_multiple_of(DIRECT_ALIGNMENT) } else { len };
        total += len;
        span += room;
        files.push((file, len, room));
    }

    let mut map = MmapMut::map_anon(span + HUGE_PAGE)?;
    let aligned = map.as_ptr().align_offset(HUGE_PAGE);
    // Without huge pages this would be no limit: refuse rather than flatter whoever is compared with it.
    map.advise_range(Advice::HugePage, aligned, span)?;
    let mut rest = &mut map[aligned..aligned + span];
    let mut blocks = Vec::new();
    for (file, len, room) in &files {
        let (memory, behind) = rest.split_at_mut(*room);
        rest = behind;
        for (from, memory) in (0..).step_by(BLOCK_BYTES).zip(memory.chunks_mut(BLOCK_BYTES)) {
            let wanted = memory.len().min(len - from);
            blocks.push(Block { file, from: u64::try_from(from)?, memory, wanted });
        }
    }

    // Blocks are taken in order; a lock for each 8 MiB costs nothing beside reading them.
    let next = Mutex::new(blocks.into_iter());
    let take = || next.lock().unwrap_or_else(PoisonError::into_inner).next();
    std::thread::scope(|scope| {
        let read = || -> io::Result<()> {
            while let Some(block) = take() {
                block.read()?;
            }
            Ok(())
        };
        let threads: Vec<_> = (0..arguments.threads).map(|_| scope.spawn(read)).collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })?;
    Ok(total)
}

/// A run of a file and where it goes. `memory` has room for `wanted` bytes, and for the rest of their page in a direct read.
struct Block<'a> {
    file: &'a File,
    from: u64,
    memory: &'a mut [u8],
    wanted: usize,
}

impl Block<'_> {
    fn read(self) -> io::Result<()> {
        let mut done = 0;
        while done < self.wanted {
            match self.file.read_at(&mut self.memory[done..], self.from + done as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
