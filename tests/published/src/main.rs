//! Predictions against what others measured and published.
//!
//! In come `points.csv` and the skeletons of the checkpoints that it names; out goes a table: how far off weights, KV tokens,
//! all-reduces and decode steps are, with the assumptions that come with shardwright and with some fitted to half of the points, for
//! the other half. Points of one source are in one half: what was measured in one place has its faults in common.
//!
//!     published POINTS.csv SKELETONS [--each]

mod halves;
mod points;
mod predict;
mod table;

use points::Point;
use predict::Library;
use std::{error::Error, path::Path, process::ExitCode};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (each, words): (Vec<&str>, Vec<&str>) =
        words.iter().map(String::as_str).partition(|word| *word == "--each");
    let [points, skeletons] = words.as_slice() else {
        eprintln!("usage: published POINTS.csv SKELETONS [--each]");
        return ExitCode::from(2);
    };
    match run(Path::new(points), Path::new(skeletons), !each.is_empty()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(points: &Path, skeletons: &Path, each: bool) -> Result<(), Box<dyn Error>> {
    let library = Library::new(skeletons)?;
    let mut known = Vec::new();
    for point in Point::read(points)? {
        let what = library.known(&point).map_err(|error| format!("{}: {error}", point.id))?;
        known.push((point, what));
    }
    let halves = halves::Halves::of(&known);
    table::print(&halves.compare(library.assumptions()), each);
    Ok(())
}
