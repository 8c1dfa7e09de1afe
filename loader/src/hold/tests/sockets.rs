//! The socket: who reaches it, what it replaces, how it goes.

use super::*;
use std::{
    fs,
    os::unix::{
        fs::{FileTypeExt, PermissionsExt, symlink},
        net::UnixListener,
    },
    panic::{AssertUnwindSafe, catch_unwind},
};
use tempfile::TempDir;

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Serves until nobody needs it any more: stopped before it begins.
fn serve_shortly(path: &Path) -> Result<(), HoldError> {
    serve(path, &document(), &AtomicBool::new(true), &mut |_| ())
}

#[test]
fn only_its_owner_reaches_it_and_nothing_is_left() {
    let folder = TempDir::new().unwrap();
    // As open as it gets.
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let path = folder.path().join("held.sock");
    thread::scope(|scope| {
        let held = Held::with_defaults(scope, &path, document());
        assert!(fs::symlink_metadata(&path).unwrap().file_type().is_socket());
        assert_eq!(mode(&path), 0o600);
        assert_eq!(names(folder.path()), ["held.sock"]);
        held.stop();
        held.ended().unwrap();
    });
    assert_eq!(names(folder.path()), [""; 0]);
}

#[test]
fn a_second_holder_is_refused_and_the_first_goes_on() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("held.sock");
    thread::scope(|scope| {
        let held = Held::with_defaults(scope, &path, document());
        for outcome in [serve_shortly(&path), check_free(&path)] {
            let Err(HoldError::HeldAlready { pid, .. }) = outcome else { panic!("{outcome:?}") };
            assert_eq!(pid, Some(std::process::id()));
        }
        assert!(held.attach().is_held());
        held.stop();
        held.ended().unwrap();
    });
    assert_eq!(names(folder.path()), [""; 0]);
}

#[test]
fn of_many_that_begin_at_once_one_holds() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("held.sock");
    // A dead one lies there already.
    drop(UnixListener::bind(&path).unwrap());
    thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| socket::Socket::bind(&path))).collect();
        let outcomes: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
        let others = outcomes.iter().filter_map(|outcome| outcome.as_ref().err());
        assert!(others.into_iter().all(|error| matches!(error, HoldError::HeldAlready { .. })));
    });
}

#[test]
fn a_dead_socket_is_replaced() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("held.sock");
    drop(UnixListener::bind(&path).unwrap());
    check_free(&path).unwrap();
    assert!(matches!(connect(&path, PATIENCE), Err(HoldError::NobodyHolds { .. })));
    thread::scope(|scope| {
        let held = Held::with_defaults(scope, &path, document());
        assert_eq!(held.attach().document().pid, std::process::id());
        held.stop();
        held.ended().unwrap();
    });
}

#[test]
fn what_is_no_socket_is_left_alone() {
    let folder = TempDir::new().unwrap();
    let (file, link, inner) =
        (folder.path().join("file"), folder.path().join("link"), folder.path().join("folder"));
    fs::write(&file, "precious").unwrap();
    drop(UnixListener::bind(folder.path().join("dead")).unwrap());
    symlink(folder.path().join("dead"), &link).unwrap();
    fs::create_dir(&inner).unwrap();
    for path in [&file, &link, &inner] {
        for outcome in [serve_shortly(path), check_free(path)] {
            assert!(matches!(outcome, Err(HoldError::NotASocket { .. })), "{outcome:?}");
        }
    }
    for path in [&file, &inner] {
        assert!(matches!(connect(path, PATIENCE), Err(HoldError::NotASocket { .. })));
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    assert_eq!(names(folder.path()), ["dead", "file", "folder", "link"]);
}

#[test]
fn what_took_its_place_is_not_removed() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("held.sock");
    let socket = socket::Socket::bind(&path).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, "precious").unwrap();
    drop(socket);
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn the_socket_goes_when_its_holder_panics() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("held.sock");
    thread::scope(|scope| {
        let holder = scope.spawn(|| {
            let mut panics = |event| panic!("{event}, as the test wants");
            catch_unwind(AssertUnwindSafe(|| serve(&path, &document(), &AtomicBool::new(false), &mut panics)))
        });
        while !holder.is_finished() {
            // The one that gets through is the last.
            let _ = connect(&path, PATIENCE);
            thread::sleep(Duration::from_millis(5));
        }
        assert!(holder.join().unwrap().is_err());
    });
    assert_eq!(names(folder.path()), [""; 0]);
}

#[test]
fn a_place_that_cannot_be_is_named() {
    let folder = TempDir::new().unwrap();
    let missing = folder.path().join("no/held.sock");
    let error = serve_shortly(&missing).unwrap_err();
    assert!(error.to_string().contains("no/") || error.to_string().contains("/no"), "{error}");
    let long = folder.path().join("x".repeat(150));
    assert!(matches!(serve_shortly(&long), Err(HoldError::Io { .. })));
    assert!(matches!(connect(&long, PATIENCE), Err(HoldError::NobodyHolds { .. } | HoldError::Io { .. })));
    assert_eq!(names(folder.path()), [""; 0]);
}

#[test]
fn the_default_folder_is_this_users_alone() {
    let runtime = TempDir::new().unwrap();
    let digest = facts().plan;
    let path = default_socket(Some(runtime.path()), uid(), &digest).unwrap();
    assert_eq!(path, runtime.path().join("shardwright/0123456789abcdef.sock"));
    let folder = runtime.path().join("shardwright");
    assert_eq!(mode(&folder), 0o700);
    assert_eq!(default_folder(Some(Path::new("relative")), 7), Path::new("/tmp/shardwright-7"));
    assert_eq!(default_folder(None, 7), Path::new("/tmp/shardwright-7"));

    // It may be there, and is listed.
    assert_eq!(default_socket(Some(runtime.path()), uid(), &digest).unwrap(), path);
    fs::write(folder.join("file.sock"), "").unwrap();
    drop(UnixListener::bind(&path).unwrap());
    assert_eq!(sockets_in(&folder).unwrap(), [path.as_path()]);
    assert!(sockets_in(&runtime.path().join("no")).unwrap().is_empty());

    // Another user's, and one that others can look into.
    assert!(matches!(
        default_socket(Some(runtime.path()), uid() + 1, &digest),
        Err(HoldError::NotOurFolder { .. })
    ));
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o750)).unwrap();
    let error = default_socket(Some(runtime.path()), uid(), &digest).unwrap_err();
    assert!(error.to_string().ends_with("is open to other users: its mode is 750"), "{error}");
    assert!(matches!(sockets_in(&folder), Err(HoldError::OpenFolder { .. })));

    // A link to one that would do.
    let planted = TempDir::new().unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
    symlink(&folder, planted.path().join("shardwright")).unwrap();
    let outcome = default_socket(Some(planted.path()), uid(), &digest);
    assert!(matches!(outcome, Err(HoldError::NotOurFolder { .. })), "{outcome:?}");
    assert!(matches!(sockets_in(&planted.path().join("shardwright")), Err(HoldError::NotOurFolder { .. })));
}
