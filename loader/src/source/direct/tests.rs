use super::*;
use proptest::prelude::*;
use std::{
    fs::File,
    io::ErrorKind,
    os::unix::fs::FileExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::OnceLock,
};
use tempfile::TempDir;

/// A folder on the file system that this was built on: that of `/tmp` is often held in memory.
fn folder() -> TempDir {
    let here = std::env::current_exe().unwrap();
    tempfile::tempdir_in(here.parent().unwrap()).unwrap()
}

/// What lies at `at` of file number `file`.
fn byte(file: usize, at: u64) -> u8 {
    (at.wrapping_mul(0x9e37_79b9) >> 11).to_le_bytes()[0] ^ file.to_le_bytes()[0]
}

fn write(folder: &Path, lengths: &[u64]) -> Vec<CatalogFile> {
    let one = |(number, &bytes): (usize, &u64)| {
        let name = format!("{number}.safetensors");
        let path = folder.join(&name);
        std::fs::write(&path, (0..bytes).map(|at| byte(number, at)).collect::<Vec<_>>()).unwrap();
        CatalogFile { name, path, bytes, header_digest: [0; 32] }
    };
    lengths.iter().enumerate().map(one).collect()
}

/// The opened files, or none and a word where the file system of the tests refuses.
fn open(entries: &[CatalogFile], options: DirectOptions) -> Option<DirectFiles> {
    match DirectFiles::open_files(entries, &|_| true, options) {
        Ok(files) => Some(files),
        Err(DirectError::Refused(refused)) => {
            eprintln!("skipped: {refused}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn request(tag: u64, file: usize, start: u64, stop: u64) -> Request {
    Request { file, range: ByteRange::new(start, stop, u64::MAX).unwrap(), tag, shared: false }
}

const SMALL: DirectOptions = DirectOptions { threads: 1, slot_bytes: 8192, depth: 3 };

/// Streams `requests` and checks every piece. Stops after `most` pieces. Gives how many bytes there were.
fn stream(files: &DirectFiles, requests: &[Request], most: usize) -> Result<u64, SourceError> {
    let (mut to_ask, mut to_come) = (requests.iter().copied(), requests.iter().copied());
    let (mut now, mut at, mut bytes, mut pieces) = (None::<Request>, 0, 0, 0);
    let mut deliver = |request: Request, start: u64, piece: &[u8]| {
        if now.is_none_or(|now| at == now.range.stop()) {
            now = to_come.find(|request| !request.range.is_empty());
            at = request.range.start();
        }
        assert_eq!((Some(request), start), (now, at));
        assert!(!piece.is_empty() && piece.len() <= PIECE_BYTES);
        let wrong = (start..).zip(piece).find(|&(at, &found)| found != byte(request.file, at));
        assert_eq!(wrong, None, "of {request:?}");
        at += piece.len() as u64;
        assert!(at <= request.range.stop());
        bytes += piece.len() as u64;
        pieces += 1;
        if pieces == most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    files.stream(&mut || to_ask.next(), &mut deliver)?;
    if pieces < most {
        assert!(now.is_none_or(|now| at == now.range.stop()) && to_come.all(|rest| rest.range.is_empty()));
    }
    Ok(bytes)
}

const LENGTHS: [u64; 3] = [100_000, 4096 * 9, 17];

/// Files for many requests, opened once.
fn files() -> Option<&'static DirectFiles> {
    static OPENED: OnceLock<Option<(TempDir, DirectFiles)>> = OnceLock::new();
    let opened = OPENED.get_or_init(|| {
        let folder = folder();
        let opened = open(&write(folder.path(), &LENGTHS), SMALL)?;
        Some((folder, opened))
    });
    opened.as_ref().map(|(_, files)| files)
}

/// Requests anywhere: half of them go on where the one before stopped.
fn requests() -> impl Strategy<Value = Vec<Request>> {
    let one =
        (0..LENGTHS.len(), any::<u64>(), prop_oneof![0u64..50, 0u64..5000, 0u64..60_000], any::<bool>());
    prop::collection::vec(one, 0..30).prop_map(|wanted| {
        let (mut file, mut at) = (0, 0);
        let request = |(tag, (other, from, len, goes_on)): (u64, (usize, u64, u64, bool))| {
            if !goes_on {
                (file, at) = (other, from % LENGTHS[other]);
            }
            let start = at;
            at = (start + len).min(LENGTHS[file]);
            request(tag, file, start, at)
        };
        (0..).zip(wanted).map(request).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn what_is_delivered_is_what_lies_in_the_file(requests in requests()) {
        let Some(files) = files() else { return Ok(()) };
        let wanted: u64 = requests.iter().map(|request| request.range.len()).sum();
        prop_assert_eq!(stream(files, &requests, usize::MAX).unwrap(), wanted);
    }

    #[test]
    fn who_wants_no_more_gets_no_more_and_the_next_gets_everything(requests in requests(), most in 1usize..20) {
        let Some(files) = files() else { return Ok(()) };
        stream(files, &requests, most).unwrap();
        let wanted: u64 = requests.iter().map(|request| request.range.len()).sum();
        prop_assert_eq!(stream(files, &requests, usize::MAX).unwrap(), wanted);
    }
}

#[test]
fn a_long_run_comes_in_pieces() {
    let folder = folder();
    let length = 3 * (1 << 20) + 5;
    let Some(files) = open(&write(folder.path(), &[length]), DirectOptions::for_threads(1)) else { return };
    let requests = [request(0, 0, 8, 1_500_001), request(1, 0, 1_500_001, length)];
    assert_eq!(stream(&files, &requests, usize::MAX).unwrap(), length - 8);
}

#[test]
fn many_threads_read_at_once_even_more_than_were_planned_for() {
    let Some(files) = files() else { return };
    let whole: Vec<_> = (0..).zip(LENGTHS).map(|(file, length)| request(1, file, 0, length)).collect();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..5 {
                    assert_eq!(stream(files, &whole, usize::MAX).unwrap(), LENGTHS.iter().sum::<u64>());
                }
            });
        }
    });
    assert!(files.idle.lock().unwrap().len() <= 1, "no more than planned for are kept");
}

#[test]
fn a_deliver_that_panics_leaves_the_queue_at_rest() {
    let Some(files) = files() else { return };
    let whole = [request(0, 0, 0, LENGTHS[0])];
    let mut requests = whole.iter().copied();
    let panics = catch_unwind(AssertUnwindSafe(|| {
        files.stream(&mut || requests.next(), &mut |_, _, _| panic!("on purpose"))
    }));
    assert!(panics.is_err());
    assert_eq!(stream(files, &whole, usize::MAX).unwrap(), LENGTHS[0]);
}

#[test]
fn a_truncated_file_is_named_with_its_new_end() {
    for end in [50_000, 40_960, 0] {
        let folder = folder();
        let entries = write(folder.path(), &[100_000, 1000]);
        let Some(files) = open(&entries, SMALL) else { return };
        File::options().write(true).open(&entries[0].path).unwrap().set_len(end).unwrap();
        let requests = [request(0, 1, 0, 1000), request(1, 0, 0, 100_000)];
        let truncated = |error| match error {
            SourceError::Truncated { path, at, expected: 100_000 } => path == entries[0].path && at == end,
            _ => false,
        };
        assert!(truncated(stream(&files, &requests, usize::MAX).unwrap_err()));
        // What is still there can be read.
        stream(&files, &[request(0, 0, 0, end), requests[0]], usize::MAX).unwrap();
    }
}

#[test]
fn a_file_that_grew_is_read_to_the_end_it_had() {
    let folder = folder();
    let entries = write(folder.path(), &[1000]);
    let Some(files) = open(&entries, SMALL) else { return };
    File::options().write(true).open(&entries[0].path).unwrap().write_all_at(&[0; 9000], 1000).unwrap();
    assert_eq!(stream(&files, &[request(0, 0, 0, 1000)], usize::MAX).unwrap(), 1000);
    let beyond = request(1, 0, 999, 1001);
    assert!(matches!(stream(&files, &[beyond], usize::MAX), Err(SourceError::OutOfRange { stop: 1001, .. })));
}

#[test]
fn what_comes_before_a_request_out_of_range_is_delivered() {
    let Some(files) = files() else { return };
    let mut requests = [request(0, 0, 0, 90_000), request(1, 9, 0, 1), request(2, 0, 0, 1)].into_iter();
    let mut bytes = 0;
    let end = files.stream(&mut || requests.next(), &mut |_, _, piece| {
        bytes += piece.len();
        ControlFlow::Continue(())
    });
    assert!(matches!(end, Err(SourceError::OutOfRange { file: 9, .. })));
    assert_eq!(bytes, 90_000);
}

#[test]
fn a_read_that_fails_is_named_with_its_place() {
    let folder = folder();
    let entries = write(folder.path(), &[100]);
    let Some(mut files) = open(&entries, SMALL) else { return };
    // A folder can be opened and not read.
    files.files[0].as_mut().unwrap().file = File::open(folder.path()).unwrap();
    let failed = |error| match error {
        SourceError::Read { path, at: 0, source } => {
            path == entries[0].path && source.kind() == ErrorKind::IsADirectory
        }
        _ => false,
    };
    let wanted = request(0, 0, 3, 50);
    assert!(failed(stream(&files, &[wanted], usize::MAX).unwrap_err()));
}

#[test]
fn files_that_nobody_wanted_do_not_exist() {
    let folder = folder();
    let mut entries = write(folder.path(), &[100, 100]);
    if open(&entries, SMALL).is_none() {
        return;
    }
    entries[1].path = PathBuf::from("/nowhere");
    let files = DirectFiles::open_files(&entries, &|file| file == 0, SMALL)
        .map_err(|error| error.to_string())
        .unwrap();
    assert_eq!(stream(&files, &[request(0, 0, 1, 9)], usize::MAX).unwrap(), 8);
    let unwanted = stream(&files, &[request(0, 1, 1, 9)], usize::MAX);
    assert!(matches!(unwanted, Err(SourceError::OutOfRange { file: 1, .. })));
}

#[test]
fn a_file_that_changed_or_went_is_an_error_and_no_refusal() {
    let folder = folder();
    let mut entries = write(folder.path(), &[100]);
    if open(&entries, SMALL).is_none() {
        return;
    }
    entries[0].bytes = 99;
    let opened = DirectFiles::open_files(&entries, &|_| true, SMALL).err();
    assert!(matches!(opened, Some(DirectError::Source(SourceError::LengthChanged { found: 100, .. }))));
    std::fs::remove_file(&entries[0].path).unwrap();
    let opened = DirectFiles::open_files(&entries, &|_| true, SMALL).err();
    assert!(matches!(opened, Some(DirectError::Source(SourceError::Io { attempt: "open", .. }))));
}

#[test]
fn a_file_system_that_knows_no_direct_reads_refuses() {
    let path = PathBuf::from("/proc/self/status");
    let entry = CatalogFile { name: "status".to_owned(), path, bytes: 0, header_digest: [0; 32] };
    let refused = DirectFiles::open_files(&[entry], &|_| true, SMALL).err().unwrap();
    assert!(matches!(refused, DirectError::Refused(DirectRefused::FileSystem { .. })));
    assert!(refused.to_string().starts_with("the file system of /proc/self/status refuses direct reads: "));
}

#[test]
fn files_held_in_memory_are_read_or_refused() {
    let Ok(folder) = tempfile::tempdir_in("/dev/shm") else { return };
    let Some(files) = open(&write(folder.path(), &LENGTHS), SMALL) else { return };
    assert_eq!(stream(&files, &[request(0, 0, 5, 90_001)], usize::MAX).unwrap(), 89_996);
}
