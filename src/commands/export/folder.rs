//! The folder that an export becomes: written aside, and whole or not there.

use crate::failure::{Failure, Kind};
use rustix::fs::{FlockOperation, flock, statvfs};
use shardwright_planner::{
    export::{ExportError, PLAN_NAME, RankRecord, is_export, record_name},
    plan::Plan,
    size::Size,
};
use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

/// Files beside the weights that are larger are none of configuration or tokenizer.
const MOST_COPIED_BYTES: u64 = 256 << 20;

/// What weights are called, by the ends of their names, whoever wrote them.
const WEIGHTS: [&str; 8] = ["safetensors", "bin", "pt", "pth", "gguf", "h5", "msgpack", "onnx"];

/// Who wants to write where.
pub(super) struct Claim<'a> {
    pub(super) output: &'a Path,
    /// Which export.
    pub(super) id: &'a str,
    /// The only rank that is written, if it is one.
    pub(super) rank: Option<u32>,
    pub(super) world: u32,
}

/// A place for the files of an export, and where they go when they are whole. What is in it goes when it is dropped before.
pub(super) struct Folder {
    aside: PathBuf,
    output: PathBuf,
    /// Whether the output is made of several exports, one for each rank.
    joins: bool,
    is_published: std::cell::Cell<bool>,
    // Locked as long as it is open.
    _lock: File,
}

fn failed(what: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::new(Kind::Environment, format!("cannot {what} {}: {error}", path.display()))
}

impl Folder {
    /// Makes the place; what is there must not be something else. Gives what there is to say of it, too.
    pub(super) fn claim(claim: &Claim<'_>) -> Result<(Self, Vec<String>), Failure> {
        let output =
            std::path::absolute(claim.output).map_err(|error| failed("resolve", claim.output, &error))?;
        check_output(&output, claim)?;
        let aside = match claim.rank {
            Some(rank) => {
                fs::create_dir_all(&output).map_err(|error| failed("create", &output, &error))?;
                output.join(format!(".rank-{rank:05}.part"))
            }
            None => {
                let name = output.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
                output.with_file_name(format!("{name}.part"))
            }
        };
        let mut notes = Vec::new();
        if aside.exists() {
            let lock = File::open(&aside).map_err(|error| failed("open", &aside, &error))?;
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
                let message = format!("another export is being written to {}", output.display());
                return Err(Failure::new(Kind::Environment, message));
            }
            if !is_ours(&aside) {
                let message = format!("{} is in the way, and no export wrote it", aside.display());
                let help = "move it away, or give another folder".to_owned();
                return Err(Failure::new(Kind::Usage, message).with_help(help));
            }
            fs::remove_dir_all(&aside).map_err(|error| failed("remove", &aside, &error))?;
            notes.push(format!("removed what an interrupted export left in {}", aside.display()));
        }
        fs::create_dir_all(&aside).map_err(|error| failed("create", &aside, &error))?;
        let lock = File::open(&aside).map_err(|error| failed("open", &aside, &error))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|error| failed("lock", &aside, &error.into()))?;
        let is_published = std::cell::Cell::new(false);
        let joins = claim.rank.is_some();
        let folder = Self { aside, output, joins, is_published, _lock: lock };
        // Says whose the folder is, before anything else is in it.
        folder.write(MARK, "")?;
        Ok((folder, notes))
    }

    /// Where the files are written.
    pub(super) fn path(&self) -> &Path {
        &self.aside
    }

    /// Checks that the disk has room for `bytes` bytes.
    pub(super) fn check_room(&self, bytes: u64) -> Result<(), Failure> {
        let Ok(disk) = statvfs(&self.aside) else { return Ok(()) };
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if bytes <= free {
            return Ok(());
        }
        let message = format!(
            "the export has {}, and the disk of {} has {} free",
            Size(bytes),
            self.output.display(),
            Size(free)
        );
        let help = "free some room, or export fewer ranks here with --rank".to_owned();
        Err(Failure::new(Kind::Environment, message).with_help(help))
    }

    fn write(&self, name: &str, text: &str) -> Result<(), Failure> {
        let path = self.aside.join(name);
        fs::write(&path, text).map_err(|error| failed("write", &path, &error))
    }

    /// Adds the plan, what lies beside the weights in `checkpoint`, and the records, and makes all of it the output.
    pub(super) fn publish(
        &self,
        plan: &Plan,
        checkpoint: &Path,
        records: &[&RankRecord],
    ) -> Result<(), Failure> {
        copy_beside(checkpoint, &self.aside)?;
        self.write(PLAN_NAME, &plan.to_yaml()?)?;
        for record in records {
            let text = record.to_json().map_err(|error| Failure::new(Kind::Environment, error))?;
            self.write(&record_name(record.rank), &text)?;
        }
        let mark = self.aside.join(MARK);
        fs::remove_file(&mark).map_err(|error| failed("remove", &mark, &error))?;
        // A name that outlives a power cut is that of bytes that do, too.
        names_in(&self.aside)?.iter().try_for_each(|name| synced(&self.aside.join(name)))?;
        let renamed =
            |from: &Path, to: &Path| fs::rename(from, to).map_err(|error| failed("rename to", to, &error));
        if !self.joins {
            renamed(&self.aside, &self.output)?;
            self.is_published.set(true);
            return self.output.parent().map_or(Ok(()), synced);
        }
        let mut names = names_in(&self.aside)?;
        // The plan says what the folder is, and the record that the rest is there: one comes first, the other last.
        let order = |name: &String| match name {
            name if name == PLAN_NAME => 0,
            name if records.iter().any(|record| record_name(record.rank) == *name) => 2,
            _ => 1,
        };
        names.sort_by_key(order);
        for name in &names {
            renamed(&self.aside.join(name), &self.output.join(name))?;
        }
        self.is_published.set(true);
        synced(&self.output)?;
        fs::remove_dir(&self.aside).map_err(|error| failed("remove", &self.aside, &error))
    }
}

/// Waits until a file or a folder is on its disk.
fn synced(path: &Path) -> Result<(), Failure> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let synced = fs::File::open(path).and_then(|file| file.sync_all());
    synced.map_err(|error| failed("sync", path, &error))
}

/// An empty file that tells a folder in which an export is being written.
const MARK: &str = ".shardwright-export";

/// Whether an export began to write this folder.
fn is_ours(aside: &Path) -> bool {
    aside.join(MARK).is_file() || aside.read_dir().is_ok_and(|mut entries| entries.next().is_none())
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.is_published.get() {
            // What cannot be removed now is by the next export.
            let _ = fs::remove_dir_all(&self.aside);
        }
    }
}

/// Checks that the output is not there, is empty, or is the same export, where ranks are exported one by one.
fn check_output(output: &Path, claim: &Claim<'_>) -> Result<(), Failure> {
    let usage =
        |message: String, help: &str| Err(Failure::new(Kind::Usage, message).with_help(help.to_owned()));
    let another = "give another folder, or move it away";
    if !output.exists() {
        return Ok(());
    }
    if !output.is_dir() {
        return usage(format!("{} is no folder", output.display()), another);
    }
    let names = names_in(output)?;
    let is_part = |name: &String| name.starts_with(".rank-") && name.ends_with(".part");
    if names.iter().all(is_part) && (names.is_empty() || claim.rank.is_some()) {
        return Ok(());
    }
    if !is_export(output) {
        return usage(format!("{} is full of something else", output.display()), another);
    }
    let Some(rank) = claim.rank else {
        return usage(format!("{} has an export already", output.display()), another);
    };
    for other in 0..claim.world {
        match RankRecord::read(output, other) {
            Ok(record) if record.export != claim.id => {
                let message = format!("{} has rank {other} of another export", output.display());
                return usage(message, another);
            }
            Ok(_) if other == rank => {
                return usage(format!("{} has rank {rank} already", output.display()), another);
            }
            Ok(_) | Err(ExportError::RankMissing { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn names_in(folder: &Path) -> Result<Vec<String>, Failure> {
    let error = |error: io::Error| failed("read", folder, &error);
    let names = fs::read_dir(folder)
        .map_err(error)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<Vec<_>>>();
    let mut names = names.map_err(error)?;
    names.sort();
    Ok(names)
}

/// Copies what lies beside the weights: configuration, tokenizer, code.
fn copy_beside(checkpoint: &Path, into: &Path) -> Result<(), Failure> {
    for name in names_in(checkpoint)? {
        let path = checkpoint.join(&name);
        let end = name.rsplit_once('.').map_or("", |(_, end)| end);
        let is_weights = WEIGHTS.contains(&end) || name.ends_with(".index.json") || name.starts_with('.');
        let Ok(meta) = fs::metadata(&path) else { continue };
        let to = into.join(&name);
        if is_weights || !meta.is_file() || meta.len() > MOST_COPIED_BYTES || to.exists() || name == PLAN_NAME
        {
            continue;
        }
        fs::copy(&path, &to).map_err(|error| failed("copy", &path, &error))?;
    }
    Ok(())
}
