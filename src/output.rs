//! Printing: tables, and files that are whole or not there.

use crate::failure::{Failure, Kind};
use comfy_table::{CellAlignment, ColumnConstraint, Table, Width, presets};
use std::{
    io::Write,
    path::{Path, PathBuf},
};

/// Widest a table gets, in letters.
const WIDEST: u16 = 100;

/// A table without lines; the first `left` columns are texts, the others numbers.
pub(crate) fn table<const N: usize>(
    head: [&str; N],
    left: usize,
    rows: impl IntoIterator<Item = [String; N]>,
) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(head).add_rows(rows);
    for (number, column) in table.column_iter_mut().enumerate() {
        column.set_padding((if number == 0 { 0 } else { 1 }, 1));
        if number >= left {
            column.set_cell_alignment(CellAlignment::Right);
        } else if number > 0 {
            column.set_constraint(ColumnConstraint::UpperBoundary(Width::Fixed(WIDEST * 3 / 5)));
        }
    }
    table
}

/// A text of the planner's in which names from files may stand.
pub(crate) fn escaped_line(text: &str) -> String {
    text.chars()
        .flat_map(|letter| match letter {
            letter if letter.is_control() => letter.escape_debug().collect::<Vec<_>>(),
            letter => vec![letter],
        })
        .collect()
}

/// Says on stderr what could not be found out, or was assumed.
pub(crate) fn print_notes(notes: &[impl ToString]) {
    for note in notes {
        // What is printed on stdout may be read by a program; and nothing is amiss when nobody reads this.
        let _ = writeln!(std::io::stderr(), "note: {}", escaped_line(&note.to_string()));
    }
}

/// Prints a table without blanks at the ends of its lines.
pub(crate) fn print_table(out: &mut dyn Write, table: &Table) -> Result<(), Failure> {
    for line in table.lines() {
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// Prints `value` as JSON on lines of its own.
pub(crate) fn print_json(out: &mut dyn Write, value: &serde_json::Value) -> Result<(), Failure> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    writeln!(out)?;
    Ok(())
}

/// Writes `text` to `path`: aside first and renamed, so that nobody ever sees a part of it. A pipe or a device is written to, not
/// replaced.
pub(crate) fn write_whole(path: &Path, text: &str) -> Result<(), Failure> {
    let failed = |error: std::io::Error| {
        Failure::new(Kind::Environment, format!("cannot write {}: {error}", path.display()))
    };
    if std::fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir()) {
        return std::fs::write(path, text).map_err(failed);
    }
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder.to_owned(),
        _ => PathBuf::from("."),
    };
    let mut aside = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    aside.write_all(text.as_bytes()).map_err(failed)?;
    make_readable(aside.as_file()).map_err(failed)?;
    aside.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}

/// Temporary files are for their owner only; what they become is an ordinary file.
fn make_readable(file: &std::fs::File) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}
