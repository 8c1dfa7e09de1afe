//! Opening what is not there, what is not NCCL, and, where there is one, a real NCCL.

use super::*;
use crate::Communicator;

/// The NCCL that `NCCL_LIBRARY_FOR_TESTS` points to, as a path. Tests that need it print `not run` without, and pass.
fn real() -> Option<Library> {
    let Some(path) = std::env::var_os("NCCL_LIBRARY_FOR_TESTS") else {
        println!("not run: NCCL_LIBRARY_FOR_TESTS is not set");
        return None;
    };
    Some(Library::open(Some(Path::new(&path))).unwrap())
}

#[test]
fn every_name_that_was_tried_is_told() {
    let missing = Path::new("/nonexistent/lib\nnccl.so.9");
    match Library::open(Some(missing)) {
        Err(error @ OpenError::NotFound { .. }) => {
            let text = error.to_string();
            for part in
                ["/nonexistent/lib\\nnccl.so.9: ", "\n  libnccl.so.2: ", "\n  libnccl.so: ", "\nhelp: "]
            {
                assert!(text.contains(part), "{part:?} is not in {text}");
            }
        }
        // This machine has an NCCL installed.
        Ok(library) => assert_eq!(library.refused()[0].name, missing.to_str().unwrap()),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_library_that_is_not_nccl_is_refused() {
    let error = Library::open(Some(Path::new("libc.so.6"))).unwrap_err();
    assert_eq!(error, OpenError::MissingSymbol { name: "libc.so.6".to_owned(), symbol: "ncclGetVersion" });
}

#[test]
fn a_real_nccl_opens_and_tells_its_version() {
    let Some(library) = real() else { return };
    assert!(library.version() >= Version::LEAST);
    println!("NCCL {}", library.version());
}

/// On a machine with a network interface but no GPU this succeeds; without either it must be a typed error.
#[test]
fn a_real_nccl_makes_identifiers_that_differ_or_says_why_not() {
    let Some(library) = real() else { return };
    match library.unique_id() {
        Ok(id) => assert_ne!(id, library.unique_id().unwrap()),
        Err(error) => println!("{error}"),
    }
}

#[test]
fn a_real_nccl_explains_its_codes() {
    let Some(library) = real() else { return };
    for code in 1..=8 {
        let failure = library.failure("ncclTest", ResultCode(code), std::ptr::null_mut());
        assert!(failure.meaning.is_some(), "{failure}");
    }
    let unknown = library.failure("ncclTest", ResultCode(i32::MIN), std::ptr::null_mut());
    assert_eq!(unknown.meaning, None);
}

/// Where there is a GPU, its only rank joins, sums nothing and leaves; elsewhere NCCL says what it lacks.
#[test]
fn a_real_nccl_joins_a_group_of_one_or_says_why_not() {
    let Some(library) = real() else { return };
    let Ok(id) = library.unique_id() else { return };
    let patience = std::time::Duration::from_secs(120);
    match Communicator::init(&library, &id, 0, 1, patience, &mut || false) {
        Ok(mut alone) => {
            assert_eq!((alone.rank(), alone.world_size()), (0, 1));
            alone.async_error().unwrap();
            let part = alone.split(Some(3), 0, patience, &mut || false).unwrap().unwrap();
            assert_eq!((part.rank(), part.world_size(), part.device()), (0, 1, alone.device()));
            assert!(alone.split(None, 0, patience, &mut || false).unwrap().is_none());
            part.finalize().unwrap();
            alone.finalize().unwrap();
        }
        Err(CallError::Failed(failure)) => println!("{failure}"),
        Err(error) => panic!("{error}"),
    }
}
