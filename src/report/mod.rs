//! A page about the layouts of a model on a machine, for people.
//!
//! In come what was judged, and of the first layout its plan, its memory stage by stage and the commands of engines ([`Report`]);
//! out goes one HTML document that loads nothing: style and script stand in it ([`shell`]), pictures are SVG. All text is escaped
//! where it is written, by `maud`; the script has no data, it sorts by what stands in the cells. It knows no file and no command
//! line, and decides nothing.

mod answer;
mod basis;
mod chart;
mod machine;
mod memory;
mod numbers;
mod plot;
mod shell;
mod table;
mod time;

use crate::engines::Command;
use maud::html;
use shardwright_planner::{
    layouts::{Goal, Judged, Layouts, Prices, per_million_tokens},
    plan::{CastDtype, LayerRange, Plan},
    serving::{Explained, Layout, MemoryBudget, Workload},
    topology::Topology,
};

/// What the page is about.
pub(crate) struct Report<'a> {
    /// The checkpoint's name.
    pub(crate) checkpoint: &'a str,
    pub(crate) machine: &'a Topology,
    pub(crate) layouts: &'a Layouts,
    pub(crate) prices: &'a Prices,
    pub(crate) workload: &'a Workload,
    pub(crate) cast: Option<CastDtype>,
    pub(crate) goal: Goal,
    /// The first layout; `None` where no number of ranks divides the modules.
    pub(crate) chosen: Option<Chosen<'a>>,
    /// What is assumed, figure by figure.
    pub(crate) explained: Vec<Explained>,
    /// Where these figures come from.
    pub(crate) assumed: String,
}

/// The layout that the page tells more of.
pub(crate) struct Chosen<'a> {
    pub(crate) judged: &'a Judged,
    /// GPUs whose memory differs, in the order of the stages.
    pub(crate) memory: Vec<GpuMemory>,
    /// Its plan, or why there is none.
    pub(crate) plan: Result<Plan, String>,
    /// None where it does not fit.
    pub(crate) commands: Vec<Command>,
}

/// The memory of GPUs of one kind in stages that are alike.
pub(crate) struct GpuMemory {
    /// The first of these stages, and the last.
    pub(crate) stages: (usize, usize),
    /// Their layers, where they are known.
    pub(crate) layers: Option<LayerRange>,
    pub(crate) kind: String,
    /// How many GPUs.
    pub(crate) gpus: usize,
    pub(crate) budget: MemoryBudget,
}

impl Chosen<'_> {
    /// Whether it has room for a sequence.
    fn fits(&self) -> bool {
        fits(self.judged)
    }
}

impl Report<'_> {
    /// Dollars for a million tokens, where prices and times are known.
    fn dollars(&self, judged: &Judged) -> Option<f64> {
        let per_hour = self.prices.of(self.machine, judged.gpus())?;
        Some(per_million_tokens(per_hour, judged.speed?.tokens_per_second))
    }
}

/// Whether a layout has room for a sequence.
fn fits(judged: &Judged) -> bool {
    judged.memory.lacks == 0 && judged.memory.sequences > 0
}

/// `tp 8 × pp 1 × dp 2, whole experts on each rank`.
fn in_words(layout: Layout) -> String {
    let experts = if layout.expert_parallel { ", whole experts on each rank" } else { "" };
    format!("tp {} × pp {} × dp {}{experts}", layout.tp, layout.pp, layout.dp)
}

/// The page.
pub(crate) fn page(report: &Report<'_>) -> String {
    let body = html! {
        (answer::header(report))
        main {
            (answer::answer(report))
            (answer::warnings(report))
            @if let Some(chosen) = &report.chosen {
                (memory::section(report, chosen))
                (machine::section(report, chosen))
                @if let Some(speed) = &chosen.judged.speed { (time::section(speed)) }
            }
            (table::section(report))
            (answer::engines(report))
            (basis::section(report))
        }
    };
    shell::document(&answer::title(report), &body)
}
