//! `shardwright attach`: which weights are held for other processes, and whether they can be opened.

use crate::{
    cli::Attach,
    failure::{Failure, Kind},
    figures::gib,
    output::{escaped_line, print_json, print_table, table},
};
use serde_json::{Value, json};
use shardwright_loader::{
    device::{CudaDevice, CudaOptions, cuda::Driver},
    hold::{self, Attached, Document, HoldError},
    trace::Tracer,
    verify::Extent,
};
use shardwright_planner::{
    quote::escaped,
    size::{Size, count},
};
use std::{
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

/// How long a holder may take to send what it holds.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a GPU may take to read what it holds: a second would do.
const GPU_PATIENCE: Duration = Duration::from_secs(60);

/// Pinned memory for verifying, of which only the kernel's orders and answers are staged.
const STAGING_BYTES: u64 = 4 << 20;

/// Digits of a digest that are shown.
const DIGITS: usize = 16;

pub(crate) fn run(args: &Attach, out: &mut dyn Write) -> Result<(), Failure> {
    let mut found = match &args.socket {
        Some(socket) => vec![(socket.clone(), hold::connect(socket, PATIENCE)?)],
        None => all_held()?,
    };
    match found.pop() {
        Some((socket, attached)) if found.is_empty() => show(args, &socket, &attached, out),
        last => {
            found.extend(last);
            list(args, &found, out)
        }
    }
}

/// All who hold something in the default folder, at least one.
fn all_held() -> Result<Vec<(PathBuf, Attached)>, Failure> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let folder = hold::default_folder(runtime.as_deref(), hold::uid());
    let mut found = Vec::new();
    for socket in hold::sockets_in(&folder)? {
        match hold::connect(&socket, PATIENCE) {
            Ok(attached) => found.push((socket, attached)),
            // What a holder that was killed left behind.
            Err(HoldError::NobodyHolds { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if found.is_empty() {
        return Err(HoldError::NobodyHolds { path: folder }.into());
    }
    Ok(found)
}

/// Shows what one process holds.
fn show(args: &Attach, socket: &Path, attached: &Attached, out: &mut dyn Write) -> Result<(), Failure> {
    let document = attached.document();
    let proofs = if args.verify { prove(attached)? } else { Vec::new() };
    if args.json {
        print_json(out, &as_json(socket, document, args.verify.then_some(&proofs[..])))?;
    } else {
        print_ranks(document, &proofs, out)?;
        writeln!(out, "\n{}", answer(document, &proofs))?;
    }
    match proofs.into_iter().find_map(Result::err) {
        Some(differs) => Err(differs.into()),
        None => Ok(()),
    }
}

/// Opens every rank's memory and compares it with the holder's fingerprint: an error of its own for each rank that differs.
fn prove(attached: &Attached) -> Result<Vec<Result<(), HoldError>>, Failure> {
    let driver = Driver::open().map_err(|error| {
        Failure::new(Kind::Environment, error)
            .with_help("only a process with GPUs can open what is held".to_owned())
    })?;
    let mut proofs = Vec::new();
    for held in &attached.document().ranks {
        let options = CudaOptions {
            staging_bytes: STAGING_BYTES,
            registered: false,
            fingerprints: true,
            patience: GPU_PATIENCE,
            connecting: GPU_PATIENCE,
            rank: held.rank,
            tracer: Tracer::default(),
        };
        let weights = attached.open(held.rank, |gpu, handle, bytes| {
            CudaDevice::with_uuid(driver, &gpu.uuid, options)?.open(handle, bytes)
        })?;
        proofs.push(match attached.verify(&weights) {
            Err(error) if !matches!(error, HoldError::Differs { .. }) => return Err(error.into()),
            proof => proof,
        });
    }
    Ok(proofs)
}

fn print_ranks(
    document: &Document,
    proofs: &[Result<(), HoldError>],
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let rows = document.ranks.iter().map(|held| {
        [
            held.rank.to_string(),
            escaped(&held.gpu.name),
            escaped(&held.gpu.uuid),
            held.tensors.all().len().to_string(),
            gib(held.bytes),
        ]
    });
    let head = ["rank", "GPU", "UUID", "tensors", "GiB"];
    if proofs.is_empty() {
        return print_table(out, &table(head, 3, rows));
    }
    let rows = rows.zip(proofs).map(|([rank, gpu, uuid, tensors, gib], proof)| {
        [rank, gpu, uuid, tensors, gib, if proof.is_ok() { "yes" } else { "NO" }.to_owned()]
    });
    print_table(out, &table(["rank", "GPU", "UUID", "tensors", "GiB", "the same"], 3, rows))
}

/// The answer in one line.
fn answer(document: &Document, proofs: &[Result<(), HoldError>]) -> String {
    let mut answer = format!(
        "held by pid {} since {}: {}, {} of plan {}; {}",
        document.pid,
        utc(document.since),
        count(document.ranks.len() as u64, "rank"),
        Size(document.bytes()),
        &document.plan[..DIGITS],
        match document.verified {
            Some(Extent::Full) => "verified full",
            Some(Extent::Sample) => "verified in part",
            None => "not verified",
        },
    );
    match proofs.iter().filter(|proof| proof.is_err()).count() {
        _ if proofs.is_empty() => {}
        0 => answer.push_str("; the same bytes here"),
        wrong => answer.push_str(&format!("; other bytes here on {}", count(wrong as u64, "rank"))),
    }
    answer
}

/// Names all who hold something, so that one can be chosen.
fn list(args: &Attach, found: &[(PathBuf, Attached)], out: &mut dyn Write) -> Result<(), Failure> {
    if args.verify {
        let names: Vec<String> = found.iter().map(|(socket, _)| socket.display().to_string()).collect();
        let message = format!("--verify is for one SOCKET, and weights are held at {}", found.len());
        return Err(Failure::new(Kind::Usage, message).with_help(format!("one of\n{}", names.join("\n"))));
    }
    if args.json {
        let all: Vec<Value> =
            found.iter().map(|(socket, attached)| as_json(socket, attached.document(), None)).collect();
        return print_json(out, &Value::Array(all));
    }
    let rows = found.iter().map(|(socket, attached)| {
        let document = attached.document();
        let name = socket.file_name().unwrap_or_default().to_string_lossy();
        [escaped(&name), document.pid.to_string(), document.ranks.len().to_string(), gib(document.bytes())]
    });
    print_table(out, &table(["socket", "pid", "ranks", "GiB"], 1, rows))?;
    let folder = found.first().and_then(|(socket, _)| socket.parent()).unwrap_or(Path::new("."));
    let folder = escaped_line(&folder.display().to_string());
    writeln!(out, "\nheld at {} sockets in {folder}: `shardwright attach SOCKET` shows one", found.len())?;
    Ok(())
}

fn as_json(socket: &Path, document: &Document, proofs: Option<&[Result<(), HoldError>]>) -> Value {
    let ranks: Vec<Value> = (document.ranks.iter().enumerate())
        .map(|(at, held)| {
            json!({
                "rank": held.rank,
                "gpu": { "uuid": held.gpu.uuid, "name": held.gpu.name },
                "tensors": held.tensors.all().len(),
                "bytes": held.bytes,
                "fingerprint": held.fingerprint,
                "same": proofs.and_then(|proofs| proofs.get(at)).map(Result::is_ok),
            })
        })
        .collect();
    json!({
        "socket": socket.display().to_string(),
        "shardwright": document.shardwright,
        "pid": document.pid,
        "since": document.since,
        "plan": document.plan,
        "checkpoint": document.checkpoint,
        "verified": match document.verified {
            Some(Extent::Full) => "full",
            Some(Extent::Sample) => "sample",
            None => "off",
        },
        "ranks": ranks,
    })
}

/// Seconds since 1970 as a date and a time.
fn utc(seconds: u64) -> String {
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    // Hinnant's days to civil: years begin in March, so that the leap day comes last, in eras of 400 years.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let of_era_years = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * of_era_years + of_era_years / 4 - of_era_years / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + of_era_years + later;
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::utc;

    /// As `date -u -d @SECONDS` prints them.
    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_785_542_399, "2026-07-31 23:59:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(utc(seconds), text);
        }
        // Whatever a holder says.
        assert!(utc(u64::MAX).ends_with("UTC"));
    }
}
