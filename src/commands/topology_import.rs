//! `shardwright topology import`: a topology file from what nvidia-smi or NCCL tells.

use crate::{
    cli::Import,
    failure::{Failure, Kind},
    output::{print_notes, write_whole},
};
use shardwright_planner::{
    quote::quote,
    topology::import::{GpuChoice, ImportRequest, MAX_BYTES, Source, import},
};
use std::{
    borrow::Cow,
    fs::File,
    io::{self, Read, Write},
    path::Path,
};

/// What stands for stdin.
const STDIN: &str = "-";

pub(crate) fn run(args: &Import, out: &mut dyn Write) -> Result<(), Failure> {
    let text = read(&args.file)?;
    let (matrix, list) = (beside(args.matrix.as_deref())?, beside(args.gpu_list.as_deref())?);
    let stem = Path::new(&args.file).file_stem().map(|stem| stem.to_string_lossy());
    let of_file = stem.filter(|_| args.file != STDIN).map_or("imported".to_owned(), Cow::into_owned);
    let imported = import(&ImportRequest {
        name: args.name.as_ref().unwrap_or(&of_file),
        source: Source { origin: origin(&args.file), text: &text },
        matrix: matrix.as_ref().map(source),
        gpus: GpuChoice {
            kind: args.gpu.as_deref(),
            list: list.as_ref().map(source),
            memory: args.gpu_memory,
        },
    })?;
    print_notes(&imported.notes);
    match &args.output {
        Some(path) => {
            write_whole(path, &imported.yaml)?;
            Ok(writeln!(out, "wrote {}", path.display())?)
        }
        None => Ok(out.write_all(imported.yaml.as_bytes())?),
    }
}

/// A file that was given beside the first, with its text.
type Beside<'a> = (&'a str, String);

fn beside(file: Option<&str>) -> Result<Option<Beside<'_>>, Failure> {
    file.map(|file| Ok((file, read(file)?))).transpose()
}

fn source<'a>((file, text): &'a Beside<'_>) -> Source<'a> {
    Source { origin: origin(file), text }
}

/// The name of a file for messages.
fn origin(file: &str) -> &str {
    if file == STDIN { "stdin" } else { file }
}

/// The text of a file, which is no longer than any tool's output: a pipe may never end.
fn read(file: &str) -> Result<String, Failure> {
    let failed = |error: io::Error| {
        let help = match error.kind() {
            io::ErrorKind::InvalidData => "it must be text (UTF-8), as the tool printed it",
            _ => "give the file's path, or `-` and the text on stdin",
        };
        let message = format!("cannot read {}: {error}", quote(origin(file)));
        Failure::new(Kind::BadInput, message).with_help(help.to_owned())
    };
    let input: Box<dyn Read> = match file {
        STDIN => Box::new(io::stdin()),
        path if !std::fs::metadata(path).map_err(failed)?.is_file() => {
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "it is no file")));
        }
        path => Box::new(File::open(path).map_err(failed)?),
    };
    let mut text = String::new();
    // One byte more shows that it is too long, and the importer says so.
    input.take(MAX_BYTES as u64 + 1).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}
