//! What the tests of all sources need: a small checkpoint, and what every source must do with it.

use super::{PIECE_BYTES, Request, Source, SourceError};
use shardwright_planner::checkpoint::{ByteRange, Catalog};
use std::{fs::File, ops::ControlFlow};

/// Bytes of which no two neighbouring pieces are alike.
pub(super) fn pattern(len: usize) -> Vec<u8> {
    (0..251).cycle().take(len).collect()
}

/// A checkpoint of one file with one tensor.
pub(super) fn checkpoint(data: &[u8]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("model.safetensors"), "a", data);
    folder
}

/// Writes one file of a checkpoint, with the tensor `name`.
pub(super) fn write(path: &std::path::Path, name: &str, data: &[u8]) {
    let json = format!(r#"{{"{name}":{{"dtype":"U8","shape":[{0}],"data_offsets":[0,{0}]}}}}"#, data.len());
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json.as_bytes());
    bytes.extend(data);
    std::fs::write(path, bytes).unwrap();
}

/// Streams runs of each file, in several threads, and compares what comes with what the files have.
pub(super) fn streams_what_was_asked(source: &dyn Source, catalog: &Catalog) {
    let files: Vec<Vec<u8>> = catalog.files().iter().map(|file| std::fs::read(&file.path).unwrap()).collect();
    let mut requests = Vec::new();
    for (file, entry) in catalog.files().iter().enumerate() {
        let piece = PIECE_BYTES as u64;
        for (start, stop) in [(0, entry.bytes), (5, 5), (17, 18), (3, 2 * piece + 3), (piece, piece + 4096)] {
            let range = ByteRange::new(start.min(entry.bytes), stop.min(entry.bytes), entry.bytes).unwrap();
            requests.push(Request {
                file,
                range,
                tag: requests.len() as u64,
                shared: requests.len() % 2 == 1,
            });
        }
    }
    // In an order in which the files alternate, too.
    requests.sort_by_key(|request| (request.tag % 5, request.file));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let (mut asked, mut came) = (requests.iter().copied(), Vec::new());
                let mut deliver = |request: Request, at: u64, piece: &[u8]| {
                    assert!(!piece.is_empty() && piece.len() <= PIECE_BYTES);
                    let begin = usize::try_from(at).unwrap();
                    assert!(piece == &files[request.file][begin..begin + piece.len()]);
                    came.push((request, at, piece.len() as u64));
                    ControlFlow::Continue(())
                };
                source.stream(&mut || asked.next(), &mut deliver).unwrap();
                let mut came = came.into_iter().peekable();
                for request in &requests {
                    let mut at = request.range.start();
                    while let Some((_, begin, len)) = came.next_if(|(of, ..)| of == request) {
                        assert_eq!(begin, at);
                        at += len;
                    }
                    assert_eq!(at, request.range.stop());
                }
                assert!(came.next().is_none());
            });
        }
    });
    let (mut asked, mut pieces) = (requests.iter().copied(), 0);
    let mut deliver = |_: Request, _: u64, _: &[u8]| {
        pieces += 1;
        ControlFlow::Break(())
    };
    source.stream(&mut || asked.next(), &mut deliver).unwrap();
    assert_eq!(pieces, 1, "whoever breaks gets no more");

    let past = ByteRange::new(0, catalog.files()[0].bytes + 1, u64::MAX).unwrap();
    for (file, range) in [(0, past), (catalog.files().len(), ByteRange::new(0, 1, 1).unwrap())] {
        let mut asked = Some(Request { file, range, tag: 0, shared: false });
        let outcome = source.stream(&mut || asked.take(), &mut |_, _, _| unreachable!());
        assert!(
            matches!(outcome, Err(SourceError::OutOfRange { file: of, .. }) if of == file),
            "{outcome:?}"
        );
    }
    source.check_unchanged().unwrap();
}

/// Streams the first file and cuts it after the first piece, when that has arrived: the error, and how much had been delivered
/// when it came.
pub(super) fn truncated_after_one_piece(source: &dyn Source, catalog: &Catalog) -> (SourceError, u64) {
    let entry = &catalog.files()[0];
    let range = ByteRange::new(0, entry.bytes, entry.bytes).unwrap();
    let mut asked = Some(Request { file: 0, range, tag: 0, shared: false });
    let mut delivered = 0;
    let mut deliver = |_: Request, _: u64, piece: &[u8]| {
        delivered += piece.len() as u64;
        let file = File::options().write(true).open(&entry.path).unwrap();
        file.set_len(delivered.min(PIECE_BYTES as u64)).unwrap();
        ControlFlow::Continue(())
    };
    let error = source.stream(&mut || asked.take(), &mut deliver).unwrap_err();
    (error, delivered)
}
