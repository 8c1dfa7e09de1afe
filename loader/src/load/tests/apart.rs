//! Ranks whose processes do not have the same.

use super::*;
use crate::{cast::Casts, tensors::Tensors, verify::VerifyError};

/// One process of a job, which has one rank.
struct Process<'a> {
    plan: &'a Plan,
    catalog: &'a Catalog,
    source: &'a dyn Source,
    options: LoadOptions,
}

/// What the processes of a job of two end with.
fn loaded_apart(processes: [Process<'_>; 2]) -> [Result<Vec<LoadedRank>, LoadError>; 2] {
    let mut ends = local_group(2, Duration::from_secs(20)).into_iter();
    std::thread::scope(|scope| {
        let mut rank = 0;
        let threads = processes.map(|process| {
            let end = ends.next().unwrap();
            let seat = Seat::new(rank, &HostDevice, Some(Box::new(end)));
            rank += 1;
            scope.spawn(move || {
                let Process { plan, catalog, source, options } = process;
                load(plan, catalog, source, vec![seat], &options, &Progress::default())
            })
        });
        threads.map(|thread| thread.join().unwrap())
    })
}

/// A checkpoint like `catalog`, of which `change` has changed the bytes of each file's data.
fn copy_of(catalog: &Catalog, change: impl Fn(&mut [u8])) -> (tempfile::TempDir, Catalog) {
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(catalog.folder()).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    for file in catalog.files() {
        let path = folder.path().join(&file.name);
        let mut bytes = std::fs::read(&path).unwrap();
        let header = usize::try_from(u64::from_le_bytes(*bytes.first_chunk().unwrap())).unwrap();
        change(&mut bytes[8 + header..]);
        std::fs::write(&path, bytes).unwrap();
    }
    let catalog = Catalog::open(folder.path()).unwrap();
    (folder, catalog)
}

fn manifest_of(catalog: &Catalog) -> Arc<Manifest> {
    let (casts, files) = (Casts::none(catalog), ReadFiles::open(catalog).unwrap());
    Arc::new(Manifest::of(&Tensors::new(catalog, &casts, &files), 1, &|| true).unwrap().unwrap())
}

/// What both processes are told that verification ends with.
fn refused(processes: [Process<'_>; 2]) -> [VerifyError; 2] {
    loaded_apart(processes).map(|outcome| match outcome.map(drop) {
        Err(LoadError::Verify { source, .. }) => source,
        other => panic!("{other:?}"),
    })
}

#[test]
fn ranks_with_different_plans_do_not_agree() {
    let (plan, catalog) = planned("llama-bf16", 1, 1, 2);
    let mut other = plan.clone();
    other.warnings.push("edited".to_owned());
    let (catalog, files) = (&catalog, ReadFiles::open(&catalog).unwrap());
    let process = |plan| Process { plan, catalog, source: &files, options: verifying() };
    let told = refused([process(&plan), process(&other)]);
    assert!(told.iter().all(|told| matches!(told, VerifyError::OtherPlan { .. })), "{told:?}");
}

#[test]
fn another_checkpoint_under_the_same_headers_is_named_with_its_rank() {
    let (plan, catalog) = planned("llama-bf16", 1, 1, 2);
    let (_folder, other) = copy_of(&catalog, |bytes| bytes.iter_mut().for_each(|byte| *byte = !*byte));
    let process = |catalog, source| Process { plan: &plan, catalog, source, options: verifying() };
    let (files, others) = (ReadFiles::open(&catalog).unwrap(), ReadFiles::open(&other).unwrap());
    for told in refused([process(&catalog, &files), process(&other, &others)]) {
        assert_eq!(told.to_string(), "rank 1 reads other weights than rank 0, under the same names");
    }
    // A copy is as good.
    let (_folder, copy) = copy_of(&catalog, |_| ());
    let copied = ReadFiles::open(&copy).unwrap();
    for outcome in loaded_apart([process(&catalog, &files), process(&copy, &copied)]) {
        assert_eq!(outcome.unwrap()[0].verified.as_ref().unwrap().mismatches, []);
    }
}

#[test]
fn ranks_with_different_manifests_do_not_agree() {
    let (plan, catalog) = planned("llama-bf16", 1, 1, 2);
    let (_folder, other) = copy_of(&catalog, |bytes| bytes[0] ^= 1);
    let (manifest, of_other) = (manifest_of(&catalog), manifest_of(&other));
    let files = ReadFiles::open(&catalog).unwrap();
    let process = |manifest: Option<&Arc<Manifest>>| {
        let options = LoadOptions { manifest: manifest.cloned(), ..verifying() };
        Process { plan: &plan, catalog: &catalog, source: &files, options }
    };
    for told in refused([process(Some(&manifest)), process(Some(&of_other))]) {
        assert_eq!(told.to_string(), "rank 1 was given another manifest than rank 0");
    }
    let told = refused([process(Some(&manifest)), process(None)]);
    assert!(told.iter().all(|told| matches!(told, VerifyError::OtherManifest { .. })), "{told:?}");
    let outcomes = loaded_apart([process(Some(&manifest)), process(Some(&manifest))]);
    assert!(outcomes.iter().all(Result::is_ok));
}

/// What a process finds at the end: its files were changed while it read them. It takes its time to find out, as on a network's
/// file system with many files.
struct ChangedInTheEnd(ReadFiles, std::path::PathBuf);

impl Source for ChangedInTheEnd {
    fn stream(
        &self,
        next: &mut dyn FnMut() -> Option<Request>,
        deliver: Deliver<'_>,
    ) -> Result<(), SourceError> {
        self.0.stream(next, deliver)
    }

    fn check_unchanged(&self) -> Result<(), SourceError> {
        std::thread::sleep(Duration::from_millis(200));
        Err(SourceError::Changed { path: self.1.clone() })
    }
}

#[test]
fn nobody_says_that_it_is_verified_where_another_process_read_files_that_changed() {
    let (plan, catalog) = planned("llama-bf16", 1, 1, 2);
    let files = ReadFiles::open(&catalog).unwrap();
    let changed = ChangedInTheEnd(ReadFiles::open(&catalog).unwrap(), catalog.files()[0].path.clone());
    let process = |source| Process { plan: &plan, catalog: &catalog, source, options: verifying() };
    assert!(loaded_apart([process(&files), process(&changed)]).iter().all(Result::is_err));
}
