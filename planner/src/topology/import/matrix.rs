//! What `nvidia-smi topo -m` prints: for each pair of devices the nearest thing that connects them.
//!
//! Columns are separated by blanks or tabs; the tool and those who paste its output disagree on how many. Old tools write the
//! names of the columns without blanks between them, and terminals leave colour codes. Rows name their device, so cells are
//! counted from there.

use super::{ImportError, ImportProblem, MAX_GPUS, MAX_NICS, Source};
use crate::topology::schema::MAX_COUNT;
use std::fmt;

/// What connects two devices; the first is nearest. Words and meanings are those of the tool's own legend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Relation {
    /// A device and itself.
    Own,
    /// That many NVLinks.
    Links(u32),
    /// One PCIe switch at most.
    Pix,
    /// Several PCIe switches.
    Pxb,
    /// A PCIe host bridge.
    Phb,
    /// What connects the host bridges of a NUMA node.
    Node,
    /// What connects NUMA nodes.
    Sys,
}

impl Relation {
    fn of(word: &str) -> Option<Self> {
        Some(match word {
            "X" => Self::Own,
            "PIX" => Self::Pix,
            "PXB" => Self::Pxb,
            "PHB" => Self::Phb,
            "NODE" => Self::Node,
            // Before there were NUMA nodes within a socket.
            "SYS" | "SOC" => Self::Sys,
            _ => {
                let count: u32 = word.strip_prefix("NV").filter(|digits| digits.len() <= 3)?.parse().ok()?;
                (1..=MAX_COUNT).contains(&count).then_some(Self::Links(count))?
            }
        })
    }
}

impl fmt::Display for Relation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Links(count) => write!(f, "NV{count}"),
            other => f.write_str(match other {
                Self::Own | Self::Links(_) => "X",
                Self::Pix => "PIX",
                Self::Pxb => "PXB",
                Self::Phb => "PHB",
                Self::Node => "NODE",
                Self::Sys => "SYS",
            }),
        }
    }
}

/// Which CPUs are near a GPU, as the tool writes it. Empty where it does not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Affinity {
    pub(super) cpus: String,
    pub(super) numa: String,
}

impl Affinity {
    /// The one NUMA node, where the tool names one.
    pub(super) fn numa_node(&self) -> Option<u32> {
        self.numa.parse().ok().filter(|number| *number < 1024)
    }

    /// GPUs with equal texts here are near the same CPUs.
    pub(super) fn place(&self) -> &str {
        if self.numa.is_empty() { &self.cpus } else { &self.numa }
    }
}

/// A matrix that is whole and symmetric. Its devices are the GPUs, then the network cards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Matrix {
    /// How many of the devices are GPUs. At least one.
    pub(super) gpus: usize,
    /// Names of the network cards.
    pub(super) nics: Vec<String>,
    /// One for each GPU.
    pub(super) affinity: Vec<Affinity>,
    cells: Vec<Relation>,
}

impl Matrix {
    /// GPUs and network cards.
    pub(super) fn devices(&self) -> usize {
        self.gpus + self.nics.len()
    }

    /// What connects two devices.
    pub(super) fn relation(&self, from: usize, to: usize) -> Relation {
        self.cells[from * self.devices() + to]
    }

    pub(super) fn parse(source: &Source<'_>) -> Result<Self, ImportError> {
        let text = source.bounded()?;
        let fails = |problem| source.fails(problem);
        let mut lines =
            (1..).zip(text.lines().map(plain)).filter(|(_, line)| !line.trim().is_empty()).peekable();
        let head = |line: &str| line.trim_start().starts_with("GPU0");
        while lines.next_if(|(_, line)| !head(line)).is_some() {}
        let (line, text) = lines.next().ok_or_else(|| fails(ImportProblem::NeitherKind))?;
        let columns = Columns::parse(&text, line).map_err(fails)?;
        let names = &columns.devices;
        let mut matrix = Self {
            gpus: columns.gpus,
            nics: names[columns.gpus..].to_vec(),
            affinity: Vec::with_capacity(columns.gpus),
            cells: Vec::with_capacity(names.len() * names.len()),
        };
        for (rows, device) in names.iter().enumerate() {
            let missing =
                || fails(ImportProblem::RowMissing { device: device.clone(), rows, devices: names.len() });
            let is_row = |line: &str| line.split_whitespace().next().is_some_and(|name| name == device);
            let (line, text) = lines.next_if(|(_, text)| is_row(text) || rows > 0).ok_or_else(missing)?;
            if !is_row(&text) {
                // The legend, or what else follows the matrix.
                let name = text.split_whitespace().next().unwrap_or_default();
                return Err(match names.iter().any(|known| known == name) {
                    true => {
                        let (name, device) = (name.to_owned(), device.clone());
                        fails(ImportProblem::RowName { line, name, device })
                    }
                    false => missing(),
                });
            }
            matrix.add_row(&columns, rows, &text, line).map_err(fails)?;
        }
        matrix.check_symmetry(names).map_err(fails)?;
        for (_, line) in lines {
            matrix.name_nic(&columns, &line);
        }
        Ok(matrix)
    }

    fn add_row(
        &mut self,
        columns: &Columns,
        row: usize,
        text: &str,
        line: usize,
    ) -> Result<(), ImportProblem> {
        let names = &columns.devices;
        let words: Vec<&str> = text.split_whitespace().skip(1).take(names.len() + 8).collect();
        let affinity = words.get(names.len()..).unwrap_or_default();
        let cells = words.len() - affinity.iter().filter(|word| Relation::of(word).is_none()).count();
        if cells != names.len() {
            let (device, devices) = (names[row].clone(), names.len());
            return Err(ImportProblem::RowLength { line, device, cells, devices });
        }
        for (column, word) in words[..names.len()].iter().enumerate() {
            let relation = Relation::of(word).filter(|relation| {
                let between_gpus = row < self.gpus && column < self.gpus;
                (*relation == Relation::Own) == (row == column)
                    && (between_gpus || !matches!(relation, Relation::Links(_)))
            });
            let unknown = || ImportProblem::LinkWord {
                line,
                word: (*word).to_owned(),
                row: names[row].clone(),
                column: names[column].clone(),
            };
            self.cells.push(relation.ok_or_else(unknown)?);
        }
        if row < self.gpus {
            self.affinity.push(columns.affinity(text, affinity));
        }
        Ok(())
    }

    fn check_symmetry(&self, names: &[String]) -> Result<(), ImportProblem> {
        for from in 0..self.devices() {
            for to in from + 1..self.devices() {
                let (there, back) = (self.relation(from, to), self.relation(to, from));
                if there != back {
                    return Err(ImportProblem::Asymmetric {
                        from: names[from].clone(),
                        to: names[to].clone(),
                        there: there.to_string(),
                        back: back.to_string(),
                    });
                }
            }
        }
        Ok(())
    }

    /// Takes `NIC0: mlx5_0` of the legend.
    fn name_nic(&mut self, columns: &Columns, line: &str) {
        let Some((short, name)) = line.trim().split_once(':') else { return };
        let nics = &columns.devices[self.gpus..];
        if let Some(at) = nics.iter().position(|nic| nic == short.trim()) {
            self.nics[at] = name.trim().to_owned();
        }
    }
}

/// The line over the matrix.
struct Columns {
    devices: Vec<String>,
    gpus: usize,
    /// Whether there is a column for the NUMA node that a GPU's own memory is.
    has_gpu_numa: bool,
}

impl Columns {
    fn parse(text: &str, line: usize) -> Result<Self, ImportProblem> {
        let end = text.find("CPU Affinity").unwrap_or(text.len());
        let (names, rest) = text.split_at(end);
        let mut devices: Vec<String> = Vec::new();
        let mut gpus = 0;
        for word in names.split_whitespace().flat_map(unglued) {
            match word.strip_prefix("GPU") {
                Some(number) if number.parse() == Ok(gpus) && gpus == devices.len() => gpus += 1,
                None if !devices.contains(&word.to_owned()) && Relation::of(word).is_none() => {}
                _ => return Err(ImportProblem::ColumnName { line, name: word.to_owned(), expected: gpus }),
            }
            let nics = devices.len() + 1 - gpus.min(devices.len() + 1);
            for (count, what, most) in [(gpus, "GPUs", MAX_GPUS), (nics, "network cards", MAX_NICS)] {
                if count > most {
                    return Err(ImportProblem::TooMany { count, what, most });
                }
            }
            devices.push(word.to_owned());
        }
        Ok(Self { devices, gpus, has_gpu_numa: rest.contains("GPU NUMA ID") })
    }

    /// The affinity in a row. `words` are what follows its cells.
    fn affinity(&self, text: &str, words: &[&str]) -> Affinity {
        let known = |word: &str| if word == "N/A" { String::new() } else { word.to_owned() };
        if text.contains('\t') {
            // Empty cells are to be told from missing ones.
            let mut cells = text.split('\t').skip(1 + self.devices.len()).map(str::trim).map(known);
            let (cpus, numa) = (cells.next(), cells.next());
            return Affinity { cpus: cpus.unwrap_or_default(), numa: numa.unwrap_or_default() };
        }
        // The last column is never blank, so that one word alone is it.
        let words = match words.split_last() {
            Some((last, before)) if self.has_gpu_numa && (words.len() > 2 || *last == "N/A") => before,
            _ => words,
        };
        let word = |at: usize| words.get(at).copied().map(known).unwrap_or_default();
        Affinity { cpus: word(0), numa: word(1) }
    }
}

/// The names in `GPU0GPU1mlx5_0`.
fn unglued(word: &str) -> Vec<&str> {
    let mut names = Vec::new();
    let mut rest = word;
    while let Some(after) = rest.strip_prefix("GPU") {
        let digits = after.len() - after.trim_start_matches(|letter: char| letter.is_ascii_digit()).len();
        let (name, next) = rest.split_at("GPU".len() + digits);
        names.push(name);
        rest = next;
        if digits == 0 {
            break;
        }
    }
    if !rest.is_empty() {
        names.push(rest);
    }
    names
}

/// A line without a terminal's codes for colours and the like.
fn plain(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    let mut letters = line.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter != '\u{1b}' {
            text.push(letter);
        } else if letters.next_if_eq(&'[').is_some() {
            // ECMA-48: parameters, then one letter.
            while letters.next_if(|letter| !('\u{40}'..='\u{7e}').contains(letter)).is_some() {}
            letters.next();
        }
    }
    text
}
