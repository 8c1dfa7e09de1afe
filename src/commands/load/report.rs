//! What loading came to, for people and for programs.

use super::crew::Company;
use crate::{
    failure::{Failure, Kind},
    figures,
    output::{print_json, print_notes, print_table, table},
};
use serde_json::json;
use shardwright_loader::{
    device::Place,
    load::{LoadFigures, LoadedRank},
    verify::{Mismatch, Verified},
};
use shardwright_planner::{
    quote::quote,
    size::{Size, count},
};
use std::{io::Write, time::Duration};

/// Most wrong tensors that are named.
const MOST_NAMED: usize = 20;

/// The ranks of this process, loaded.
pub(super) struct Loaded {
    pub(super) ranks: Vec<LoadedRank>,
    pub(super) elapsed: Duration,
    /// The names of their devices.
    pub(super) places: Vec<String>,
    /// Where the other ranks are.
    pub(super) company: Company,
    /// How the files were read, and why so.
    pub(super) how: String,
    /// Whether what the fingerprints should be comes from a manifest.
    pub(super) by_manifest: bool,
}

/// What verification found of one rank.
enum Finding {
    /// Its own bytes are wrong.
    Wrong,
    /// Its own bytes are those of the files, but they, or the boxes of all ranks, are not what they should be.
    NobodyRight,
    /// Only other ranks are wrong.
    OtherWrong,
    /// All is right.
    Right,
}

impl Finding {
    fn of(rank: u32, verified: &Verified) -> Self {
        let wrong = &verified.mismatches;
        if wrong.iter().any(|wrong| wrong.ranks.contains(&rank)) {
            Self::Wrong
        } else if wrong.iter().any(|wrong| wrong.ranks.is_empty()) {
            Self::NobodyRight
        } else if wrong.is_empty() {
            Self::Right
        } else {
            Self::OtherWrong
        }
    }
}

/// What was lost in casting.
fn too_large(tensors: &[String]) -> Option<String> {
    let first = tensors.first()?;
    let more = match tensors.len() - 1 {
        0 => String::new(),
        more => format!(" and {}", count(more as u64, "more tensor")),
    };
    Some(format!(
        "values of {}{more} are too large for the dtype that the plan casts them to, and became infinite",
        quote(first)
    ))
}

impl Loaded {
    pub(super) fn print(&self, json: bool, out: &mut dyn Write) -> Result<(), Failure> {
        if json { print_json(out, &self.as_json()) } else { self.print_ranks(out) }
    }

    /// Says what was asked for and did not go.
    pub(super) fn print_notes(&self) {
        let mut notes: Vec<String> = self.ranks.iter().flat_map(|rank| rank.memory().notes()).collect();
        notes.extend(self.ranks.first().and_then(|rank| too_large(&rank.too_large)));
        print_notes(&notes);
    }

    /// The failure that it is, where it does not verify.
    pub(super) fn verdict(&self) -> Result<(), Failure> {
        match self.verified() {
            Some(verified) if !verified.mismatches.is_empty() => {
                Err(self.does_not_verify(&verified.mismatches))
            }
            _ => Ok(()),
        }
    }

    fn verified(&self) -> Option<&Verified> {
        self.ranks.first().and_then(|rank| rank.verified.as_ref())
    }

    /// What loading took, of every rank that took part.
    fn all_ranks(&self) -> Vec<(u32, LoadFigures)> {
        match (self.company, self.ranks.first()) {
            (Company::Alone | Company::Processes, Some(first)) => first.of_all_ranks.clone(),
            _ => self.ranks.iter().map(|rank| (rank.rank, rank.figures())).collect(),
        }
    }

    /// A table of all ranks; of many processes only that of rank 0 prints one, the others a line each.
    fn print_ranks(&self, out: &mut dyn Write) -> Result<(), Failure> {
        let Some(first) = self.ranks.first() else { return Ok(()) };
        if self.company == Company::Processes && first.rank != 0 {
            return self.print_line(first, out);
        }
        let all = self.all_ranks();
        let place = |number: u32| {
            let own = self.ranks.iter().zip(&self.places).find(|(rank, _)| rank.rank == number);
            // What another process loads into is not known here, but for one thing: all load into GPUs, or none.
            let elsewhere = if self.places.iter().any(|place| place == "host") { "host" } else { "-" };
            own.map_or_else(|| elsewhere.to_owned(), |(_, place)| place.clone())
        };
        let rows = all.iter().map(|&(rank, figures)| {
            let verified = match first.verified.as_ref().map(|verified| Finding::of(rank, verified)) {
                None => "off",
                Some(Finding::Wrong) => "WRONG",
                Some(Finding::NobodyRight) => "no",
                Some(Finding::Right | Finding::OtherWrong) => "yes",
            };
            [
                rank.to_string(),
                place(rank),
                figures.tensors.to_string(),
                figures.bytes.to_string(),
                format!("{:.2}", figures.load.as_secs_f64()),
                format!("{:.2}", figures::gb_per_second(figures.bytes, figures.load)),
                format!("{:.2}", figures.verify.as_secs_f64()),
                verified.to_owned(),
            ]
        });
        let head = ["rank", "device", "tensors", "bytes", "load s", "GB/s", "verify s", "verified"];
        print_table(out, &table(head, 2, rows))?;

        let bytes: u64 = all.iter().map(|(_, figures)| figures.bytes).sum();
        let load = all.iter().map(|(_, figures)| figures.load).max().unwrap_or_default();
        writeln!(
            out,
            "\nloaded {} on {} into {} in {:.2} s, {:.2} GB/s; {:.2} s in all",
            Size(bytes),
            count(all.len() as u64, "rank"),
            self.whereto(all.len()),
            load.as_secs_f64(),
            figures::gb_per_second(bytes, load),
            self.elapsed.as_secs_f64(),
        )?;
        let Some(verified) = self.verified() else {
            writeln!(out, "not verified: --verify off")?;
            return Ok(());
        };
        if verified.mismatches.is_empty() {
            let how = match self.company {
                Company::Alone => "of this rank's boxes",
                Company::Threads | Company::Processes => "summed over the ranks",
            };
            let tensors = match verified.left_out {
                0 => format!("all {}", count(verified.tensors, "tensor")),
                left_out => {
                    let all = count(verified.tensors + left_out, "tensor");
                    format!("{} of {all}: --verify sample", verified.tensors)
                }
            };
            writeln!(
                out,
                "verified: the fingerprints {how} are those of the {}, for {tensors}",
                if self.by_manifest { "manifest" } else { "files" },
            )?;
        }
        Ok(())
    }

    fn print_line(&self, rank: &LoadedRank, out: &mut dyn Write) -> Result<(), Failure> {
        let (number, figures) = (rank.rank, rank.figures());
        let verified = match rank.verified.as_ref().map(|verified| Finding::of(number, verified)) {
            None => "not verified: --verify off",
            Some(Finding::Wrong) => "WRONG",
            Some(Finding::NobodyRight) => "does not verify, as on all ranks",
            Some(Finding::OtherWrong) => "verified, but another rank is wrong",
            Some(Finding::Right) => "verified",
        };
        let place = self.places.first().map_or("", String::as_str);
        let (size, seconds) = (Size(figures.bytes), figures.load.as_secs_f64());
        writeln!(out, "rank {number}: loaded {size} into {place} in {seconds:.2} s; {verified}")?;
        Ok(())
    }

    /// Where the weights are, in the last line's words.
    fn whereto(&self, ranks: usize) -> String {
        let on_gpus = self.ranks.iter().any(|rank| matches!(rank.place(), Place::Cuda { .. }));
        if on_gpus { count(ranks as u64, "GPU") } else { "host memory".to_owned() }
    }

    fn as_json(&self) -> serde_json::Value {
        let mismatches = self.verified().map(|verified| {
            let list = verified.mismatches.iter().map(|wrong| {
                json!({
                    "tensor": wrong.tensor,
                    "ranks": wrong.ranks,
                    "expected": wrong.expected.to_string(),
                    "found": wrong.found.to_string(),
                })
            });
            list.collect::<Vec<_>>()
        });
        let ranks: Vec<_> = self
            .ranks
            .iter()
            .zip(&self.places)
            .map(|(rank, place)| {
                json!({
                    "rank": rank.rank,
                    "device": place,
                    "gpu": match rank.place() {
                        Place::Host { .. } | Place::Files => None,
                        Place::Cuda { uuid, .. } => Some(uuid),
                    },
                    "tensors": rank.figures().tensors,
                    "bytes": rank.figures().bytes,
                    "memory_bytes": rank.memory().len(),
                    "load_seconds": rank.figures().load.as_secs_f64(),
                    "verify_seconds": rank.figures().verify.as_secs_f64(),
                })
            })
            .collect();
        let all = self.all_ranks();
        let bytes: u64 = all.iter().map(|(_, figures)| figures.bytes).sum();
        let slowest = all.iter().max_by_key(|(_, figures)| figures.load);
        let load = slowest.map(|(_, figures)| figures.load).unwrap_or_default();
        json!({
            "ranks": ranks,
            "bytes": bytes,
            "gb_per_second": figures::gb_per_second(bytes, load),
            "slowest_rank": slowest.map(|(rank, _)| rank),
            "seconds": self.elapsed.as_secs_f64(),
            "files": self.how,
            "verified": mismatches.as_ref().map(Vec::is_empty),
            "verified_tensors": self.verified().map(|verified| verified.tensors),
            "mismatches": mismatches,
        })
    }

    fn does_not_verify(&self, mismatches: &[Mismatch]) -> Failure {
        let mut message = format!(
            "{} not what the {}",
            match mismatches.len() {
                1 => "1 tensor is".to_owned(),
                many => format!("{many} tensors are"),
            },
            if self.by_manifest { "manifest says" } else { "files say" },
        );
        for wrong in mismatches.iter().take(MOST_NAMED) {
            let ranks: Vec<String> = wrong.ranks.iter().map(u32::to_string).collect();
            let place = match ranks.len() {
                0 if self.by_manifest => "all ranks have what the files have".to_owned(),
                0 => "the boxes of all ranks do not make it up".to_owned(),
                1 => format!("wrong on rank {}", ranks[0]),
                _ => format!("wrong on ranks {}", ranks.join(", ")),
            };
            let sums = if wrong.expected == wrong.found {
                "the ranks that answer for it are right, a copy is not".to_owned()
            } else {
                format!("expected {}, found {}", wrong.expected, wrong.found)
            };
            message.push_str(&format!("\n{}: {place}; {sums}", quote(&wrong.tensor)));
        }
        if mismatches.len() > MOST_NAMED {
            message.push_str(&format!("\n… and {} more", mismatches.len() - MOST_NAMED));
        }
        let files_differ = self.by_manifest && mismatches.iter().all(|wrong| wrong.ranks.is_empty());
        let help = match files_differ {
            true => {
                "the files are not those that the manifest was made of: fetch them again, or make a new manifest"
            }
            false => "load again; where it stays wrong, suspect the memory of the ranks named",
        };
        Failure::new(Kind::No, message).with_help(help.to_owned())
    }
}
