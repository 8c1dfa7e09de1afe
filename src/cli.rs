//! What can be asked of shardwright.

use clap::{Args, Parser, Subcommand, ValueEnum};
use shardwright_planner::{plan::CastDtype, topology::Bytes};
use std::path::PathBuf;

/// Plans how a checkpoint's weights are partitioned over GPUs, and loads each rank's part.
#[derive(Debug, Parser)]
#[command(
    name = "shardwright",
    version,
    after_help = "Exit codes: 0 done; 1 the answer is no; 2 wrong usage; 3 bad input; 4 the environment failed."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Shows what is in a checkpoint: tensors, modules, sizes, dtypes
    #[command(after_help = "Example: shardwright inspect ./Llama-3.1-70B")]
    Inspect(Inspect),
    /// Lists and shows machines
    #[command(subcommand, after_help = "Example: shardwright topology list")]
    Topology(Topology),
    /// Lists the layouts of a model on a machine, best first: do they fit, how fast are they
    #[command(
        after_help = "Example: shardwright layouts ./Llama-3.1-70B --topology dgx-h100 --concurrency 64"
    )]
    Layouts(Layouts),
    /// Plans who holds what
    #[command(
        after_help = "Example: shardwright plan ./Llama-3.1-70B --topology dgx-h100 --tp 8 -o plan.yaml"
    )]
    Plan(Plan),
    /// Dry run: every invariant of a plan, memory fit, files unchanged
    #[command(after_help = "Example: shardwright check plan.yaml")]
    Check(Check),
    /// Shows why tensors are cut as they are, and who holds what
    #[command(after_help = "Example: shardwright explain plan.yaml '*.k_proj.*'")]
    Explain(Explain),
    /// Prints what a rank holds, as JSON
    #[command(after_help = "Example: shardwright slices plan.yaml --rank 1")]
    Slices(Slices),
    /// Shows on which GPUs the ranks of a plan run, for CUDA_VISIBLE_DEVICES
    #[command(
        after_help = "Example: shardwright placement plan.yaml\n\nOn node 0: env $(shardwright placement plan.yaml --node 0) my-engine"
    )]
    Placement(Placement),
    /// Loads the ranks of a plan and verifies what arrived
    #[command(
        after_help = "Example: shardwright load plan.yaml\n\nOne process for each rank: torchrun --no-python --nproc-per-node 8 shardwright load plan.yaml"
    )]
    Load(Load),
    /// Writes each rank's part into files, on any machine
    #[command(
        after_help = "Example: shardwright export plan.yaml -o by-rank\n\nThen: shardwright load by-rank"
    )]
    Export(Export),
    /// Shows which weights are held for other processes of this host
    #[command(after_help = "Example: shardwright attach\n\nBefore it: shardwright load plan.yaml --hold")]
    Attach(Attach),
    /// Makes a sample checkpoint, then plans, checks, loads and verifies it
    #[command(after_help = "Example: shardwright demo")]
    Demo(Demo),
}

#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// A checkpoint: a folder, one .safetensors file, or an index
    pub(crate) checkpoint: PathBuf,
    /// Print the tensor graph in Graphviz' language
    #[arg(long, conflicts_with = "json")]
    pub(crate) dot: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Topology {
    /// Lists the machines that shardwright knows
    #[command(after_help = "Example: shardwright topology list")]
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Shows a machine: its GPUs and how fast they reach each other
    #[command(after_help = "Example: shardwright topology show dgx-h100 --svg dgx-h100.svg")]
    Show {
        /// A built-in name, or a file
        topology: String,
        /// That many nodes of the same kind
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
        nodes: Option<u32>,
        /// Show the ranks of this plan on their GPUs
        #[arg(long, value_name = "PLAN")]
        plan: Option<PathBuf>,
        /// Draw it into this file
        #[arg(long, value_name = "FILE", conflicts_with = "json")]
        svg: Option<PathBuf>,
        /// Print the file itself
        #[arg(long, conflicts_with_all = ["json", "plan", "svg"])]
        yaml: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Makes a topology file of what nvidia-smi or NCCL tells of a machine
    #[command(after_help = "Example: shardwright topology import matrix.txt --gpu L40S -o machine.yaml")]
    Import(Import),
    /// Finds out which machine this is, and prints it as a topology
    #[command(after_help = "Example: shardwright topology detect -o machine.yaml")]
    Detect(Detect),
    /// Prints the JSON Schema of topology files
    #[command(after_help = "Example: shardwright topology schema")]
    Schema,
}

#[derive(Debug, Args)]
pub(crate) struct Detect {
    /// What to call it
    #[arg(long, default_value = "detected")]
    pub(crate) name: String,
    /// Write the topology to this file
    #[arg(short, long)]
    pub(crate) output: Option<PathBuf>,
    /// Print the PCI devices that were found, instead of the topology
    #[arg(long, hide = true, conflicts_with = "output")]
    pub(crate) tree: bool,
    /// Where sysfs is mounted, if not at /sys
    #[arg(long, hide = true)]
    pub(crate) sysfs: Option<PathBuf>,
    /// What the CPU is, if not in /proc/cpuinfo
    #[arg(long, hide = true)]
    pub(crate) cpuinfo: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Import {
    /// What `nvidia-smi topo -m` prints, or the XML that NCCL writes to NCCL_TOPO_DUMP_FILE; `-` is stdin
    pub(crate) file: String,
    /// What `nvidia-smi topo -m` prints, for the NVLinks that an XML file lacks
    #[arg(long, value_name = "FILE")]
    pub(crate) matrix: Option<String>,
    /// What the GPUs are, as topologies/gpus.yaml or as the product is called
    #[arg(long, value_name = "KIND", conflicts_with = "gpu_list", help_heading = "GPUs")]
    pub(crate) gpu: Option<String>,
    /// What `nvidia-smi -L` prints: the names of the GPUs
    #[arg(long, value_name = "FILE", help_heading = "GPUs")]
    pub(crate) gpu_list: Option<String>,
    /// Memory of each GPU, for kinds that shardwright does not know: '80 GiB'
    #[arg(long, value_name = "SIZE", help_heading = "GPUs")]
    pub(crate) gpu_memory: Option<Bytes>,
    /// The topology's name [default: that of the file]
    #[arg(long, help_heading = "Output")]
    pub(crate) name: Option<String>,
    /// Write the topology to this file
    #[arg(short, long, help_heading = "Output")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Layouts {
    /// A checkpoint: a folder, one .safetensors file, or an index
    pub(crate) checkpoint: PathBuf,
    /// The machine: a built-in name (`shardwright topology list`), or a file
    #[arg(long, default_value = "host", help_heading = "Machine")]
    pub(crate) topology: String,
    /// That many nodes of the same kind
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Machine")]
    pub(crate) nodes: Option<u32>,
    /// Tokens of each sequence, prompt and answer together: 8192, 32k (k is 1024) [default: 8k, or the model's most where that is less]
    #[arg(long, value_name = "TOKENS", value_parser = tokens, help_heading = "Workload")]
    pub(crate) context_len: Option<u64>,
    /// Of these, tokens of the prompt [default: 1024, or half of them where that is less]
    #[arg(long, value_name = "TOKENS", value_parser = tokens, help_heading = "Workload")]
    pub(crate) prompt_len: Option<u64>,
    /// Tokens of the longest batch of a prefill, vLLM's --max-num-batched-tokens [default: what is assumed]
    #[arg(long, value_name = "TOKENS", value_parser = tokens, help_heading = "Workload")]
    pub(crate) batched_tokens: Option<u64>,
    /// Sequences at a time
    #[arg(long, value_name = "N", default_value_t = CONCURRENCY, value_parser = clap::value_parser!(u64).range(1..=1_000_000), help_heading = "Workload")]
    pub(crate) concurrency: u64,
    /// What keys and values are kept in: auto is what the weights are computed in
    #[arg(long, value_enum, default_value_t = CacheDtype::Auto, help_heading = "Workload")]
    pub(crate) kv_cache_dtype: CacheDtype,
    /// What share of each GPU's memory may be used
    #[arg(long, value_name = "SHARE", default_value_t = UTILIZATION, value_parser = share, help_heading = "Workload")]
    pub(crate) gpu_memory_utilization: f64,
    /// Cast floats to this dtype as they are loaded; what belongs to packed weights keeps its own
    #[arg(long, value_enum, value_name = "DTYPE", help_heading = "Workload")]
    pub(crate) dtype: Option<DtypeChoice>,
    /// Other machines beside it: which is the cheapest that serves the model
    #[arg(long, value_name = "T,T,…", value_delimiter = ',', help_heading = "Machine")]
    pub(crate) what_if: Vec<String>,
    /// What GPUs cost: a YAML file of lines like `H100 SXM5 80GB: 2.50`, in dollars an hour of one
    #[arg(long, value_name = "FILE", help_heading = "Machine")]
    pub(crate) prices: Option<PathBuf>,
    /// What is wanted most: tokens of each sequence soon, many tokens in all, or few GPUs
    #[arg(long, value_enum, default_value_t = GoalChoice::Throughput, help_heading = "Choice")]
    pub(crate) goal: GoalChoice,
    /// Rules of your own, which win: a YAML file of module globs to partitions
    #[arg(long, value_name = "FILE", help_heading = "Choice")]
    pub(crate) rules: Option<PathBuf>,
    /// Hold the modules that this glob matches whole on every rank, a vision tower for example
    #[arg(long, value_name = "GLOB", help_heading = "Choice")]
    pub(crate) replicate: Vec<String>,
    /// Fit what is assumed to what was measured on this machine with this model: a YAML list of points, or what nccl-tests prints
    #[arg(long, value_name = "FILE", conflicts_with = "what_if", help_heading = "Assumptions")]
    pub(crate) calibrate: Option<PathBuf>,
    /// Assume what this file says, as --save-assumptions writes it
    #[arg(long, value_name = "FILE", help_heading = "Assumptions")]
    pub(crate) assumptions: Option<PathBuf>,
    /// Write what is assumed into this file
    #[arg(long, value_name = "FILE", help_heading = "Assumptions")]
    pub(crate) save_assumptions: Option<PathBuf>,
    /// Show all layouts, not just the first ones
    #[arg(long, help_heading = "Output")]
    pub(crate) all: bool,
    /// Write a page about them into this file: memory, the machine, all layouts; it needs nothing but a browser
    #[arg(long, value_name = "FILE", conflicts_with = "what_if", help_heading = "Output")]
    pub(crate) html: Option<PathBuf>,
    /// Print JSON
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
}

/// Sequences at a time, where nobody says how many.
pub(crate) const CONCURRENCY: u64 = 16;

/// The share of a GPU's memory that may be used, where nobody says.
pub(crate) const UTILIZATION: f64 = 0.9;

/// A number of tokens: `8192`, `32k`, `1M`; k is 1024.
fn tokens(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.trim().to_ascii_lowercase() {
        text if text.ends_with('k') => (text[..text.len() - 1].to_owned(), 1024),
        text if text.ends_with('m') => (text[..text.len() - 1].to_owned(), 1024 * 1024),
        text => (text, 1),
    };
    let number: Option<u64> = number.parse().ok();
    let tokens =
        number.and_then(|number| number.checked_mul(unit)).filter(|tokens| (1..=1 << 32).contains(tokens));
    tokens.ok_or_else(|| "not a number of tokens: write it like 8192 or 32k".to_owned())
}

/// A share of a whole.
fn share(text: &str) -> Result<f64, String> {
    let share: Option<f64> = text.parse().ok().filter(|share| (0.01..=1.0).contains(share));
    share.ok_or_else(|| "not a share from 0.01 to 1".to_owned())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CacheDtype {
    Auto,
    Fp8,
    Bf16,
    F32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum GoalChoice {
    Latency,
    Throughput,
    FewestGpus,
}

#[derive(Debug, Args)]
pub(crate) struct Plan {
    /// A checkpoint: a folder, one .safetensors file, or an index; or a LoRA adapter's folder, with --base
    pub(crate) checkpoint: PathBuf,
    /// The machine: a built-in name (`shardwright topology list`), or a file
    #[arg(long, default_value = "host", help_heading = "Machine")]
    pub(crate) topology: String,
    /// That many nodes of the same kind
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Machine")]
    pub(crate) nodes: Option<u32>,
    /// Ranks that share each layer [default: the first that `shardwright layouts` lists with these stages and copies]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Layout")]
    pub(crate) tp: Option<u32>,
    /// Pipeline stages
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Layout")]
    pub(crate) pp: u32,
    /// Copies of the whole model
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Layout")]
    pub(crate) dp: u32,
    /// Deal what does not divide as evenly as it goes, instead of refusing it
    #[arg(long, help_heading = "Layout")]
    pub(crate) uneven: bool,
    /// Deal in proportion to these, one for each rank of a tensor-parallel group: for unequal GPUs
    #[arg(long, value_delimiter = ',', value_name = "W,W,…", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Layout")]
    pub(crate) weights: Vec<u32>,
    /// Hold whole experts on each rank, instead of a part of each expert
    #[arg(long, help_heading = "Layout")]
    pub(crate) expert_parallel: bool,
    /// Cast floats to this dtype as they are loaded; what belongs to packed weights keeps its own
    #[arg(long, value_enum, value_name = "DTYPE", help_heading = "Loading")]
    pub(crate) dtype: Option<DtypeChoice>,
    /// Rules of your own, which win: a YAML file of module globs to partitions
    #[arg(long, value_name = "FILE", help_heading = "Rules")]
    pub(crate) rules: Option<PathBuf>,
    /// Hold the modules that this glob matches whole on every rank, a vision tower for example
    #[arg(long, value_name = "GLOB", help_heading = "Rules")]
    pub(crate) replicate: Vec<String>,
    /// The plan of the model that an adapter is for: the adapter is cut to match it, and everything else follows from it
    #[arg(
        long,
        value_name = "PLAN",
        help_heading = "Adapter",
        conflicts_with_all = ["topology", "nodes", "tp", "pp", "dp", "uneven", "weights", "expert_parallel", "rules", "replicate"]
    )]
    pub(crate) base: Option<PathBuf>,
    /// Write the plan to this file
    #[arg(short, long, help_heading = "Output")]
    pub(crate) output: Option<PathBuf>,
    /// Read all weights, and write the fingerprint of every tensor into this file, for `load --manifest`
    #[arg(long, value_name = "FILE", conflicts_with = "base")]
    pub(crate) fingerprint: Option<PathBuf>,
    /// Print JSON
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
}

/// A plan, and where its checkpoint lies now.
#[derive(Debug, Args)]
pub(crate) struct PlanFile {
    /// A plan, as `shardwright plan -o` writes it; `check` and `load` take the folder of an export, too
    pub(crate) plan: PathBuf,
    /// Where the checkpoint lies, if not where it was planned
    #[arg(long)]
    pub(crate) checkpoint: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Check {
    #[command(flatten)]
    pub(crate) file: PlanFile,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// A plan, as `shardwright plan -o` writes it
    pub(crate) plan: PathBuf,
    /// Which tensors: a glob over their names
    pub(crate) glob: String,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Placement {
    /// A plan, as `shardwright plan -o` writes it
    pub(crate) plan: PathBuf,
    /// Print the environment of this node alone, NAME=VALUE a line
    #[arg(long, conflicts_with = "json")]
    pub(crate) node: Option<u32>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Slices {
    /// A plan, as `shardwright plan -o` writes it
    pub(crate) plan: PathBuf,
    /// The rank
    #[arg(long)]
    pub(crate) rank: u32,
    /// Print JSON (it always is)
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Load {
    #[command(flatten)]
    pub(crate) file: PlanFile,
    /// What to load into: GPUs, or this host's memory; auto takes GPUs where the plan is for them and this host has some
    #[arg(long, value_enum, default_value_t = DeviceChoice::Auto)]
    pub(crate) device: DeviceChoice,
    /// Compare the fingerprints of every byte that arrived with the files, of one tensor in 16 of each kind, or of none
    #[arg(long, value_enum, default_value_t = Verify::Full)]
    pub(crate) verify: Verify,
    /// Compare with these fingerprints, which `plan --fingerprint` wrote, rather than with those of the files as they are read
    #[arg(long, value_name = "FILE")]
    pub(crate) manifest: Option<PathBuf>,
    /// Keep the weights on the GPUs and hand them to other processes of this host over a Unix socket
    #[arg(long, value_name = "SOCKET", num_args = 0..=1, require_equals = true)]
    pub(crate) hold: Option<Option<PathBuf>>,
    /// Load this rank: alone, or with the others where --rendezvous or the launcher says how to meet them
    #[arg(long, help_heading = "Ranks")]
    pub(crate) rank: Option<u32>,
    /// Load --rank alone, whatever a launcher says
    #[arg(long, requires = "rank", conflicts_with_all = ["world_size", "rendezvous"], help_heading = "Ranks")]
    pub(crate) alone: bool,
    /// How many ranks there are, where the launcher does not say
    #[arg(long, value_name = "N", help_heading = "Ranks")]
    pub(crate) world_size: Option<u32>,
    /// Where the processes of all ranks meet: an address of rank 0's host, and a free port
    #[arg(long, value_name = "HOST:PORT", help_heading = "Ranks")]
    pub(crate) rendezvous: Option<String>,
    /// Seconds without progress after which a rank is given up
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400), help_heading = "Ranks")]
    pub(crate) patience: u64,
    /// Seconds for all ranks to come, and for NCCL to connect their GPUs [default: as --patience to come, 120 to connect]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400), help_heading = "Ranks")]
    pub(crate) meet_within: Option<u64>,
    /// Threads that read for all ranks of this process [default: this process's share of the cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024), help_heading = "Copying")]
    pub(crate) threads: Option<u32>,
    /// How files are read: mapped, through the page cache, or past it; auto chooses for each file by what the page cache has of it
    #[arg(long, value_enum, default_value_t = IoChoice::Auto, help_heading = "Copying")]
    pub(crate) io: IoChoice,
    /// Pinned memory that each rank stages its copies to a GPU in
    #[arg(long, value_name = "SIZE", default_value = "64 MiB", help_heading = "Copying")]
    pub(crate) staging: Bytes,
    /// Let GPUs copy straight from the mapped files where the driver can register them
    #[arg(long, help_heading = "Copying")]
    pub(crate) registered: bool,
    /// Write a timeline of reads, copies and verification into this file, for Perfetto
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    /// Flip one bit in the memory of this rank after loading, to see verification find it
    #[arg(long, value_name = "RANK")]
    pub(crate) flip_byte: Option<u32>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Export {
    #[command(flatten)]
    pub(crate) file: PlanFile,
    /// The folder to write: a new or an empty one, or, with --rank, one that has other ranks of the same export
    #[arg(short, long, value_name = "DIR")]
    pub(crate) output: PathBuf,
    /// Whose names the tensors have: the checkpoint's own, for `shardwright load`, or an engine's, for its `sharded_state` loader
    #[arg(long, value_enum, default_value_t = ExportFormat::Shardwright)]
    pub(crate) format: ExportFormat,
    /// The engine, for --format sharded-state: vllm or sglang
    #[arg(long, value_name = "ENGINE", required_if_eq("format", "sharded-state"))]
    pub(crate) engine: Option<String>,
    /// Write this rank alone
    #[arg(long)]
    pub(crate) rank: Option<u32>,
    /// Read back what was written and compare it with the checkpoint: all of it, one tensor in 16 of each kind, or nothing
    #[arg(long, value_enum, default_value_t = Verify::Full)]
    pub(crate) verify: Verify,
    /// Begin another file when one would become larger
    #[arg(long, value_name = "SIZE", default_value = "5 GB")]
    pub(crate) max_file_size: Bytes,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportFormat {
    Shardwright,
    ShardedState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceChoice {
    Auto,
    Host,
    Cuda,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum IoChoice {
    Auto,
    Mmap,
    Read,
    Direct,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DtypeChoice {
    Bf16,
    F16,
    F32,
}

impl From<DtypeChoice> for CastDtype {
    fn from(choice: DtypeChoice) -> Self {
        match choice {
            DtypeChoice::Bf16 => Self::BF16,
            DtypeChoice::F16 => Self::F16,
            DtypeChoice::F32 => Self::F32,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Verify {
    Full,
    Sample,
    Off,
}

#[derive(Debug, Args)]
pub(crate) struct Attach {
    /// Where they are held, as `shardwright load --hold` says [default: the one place where this user holds weights; where there
    /// are several, they are listed]
    pub(crate) socket: Option<PathBuf>,
    /// Open the memory of every rank and compare what lies there with the holder's fingerprint
    #[arg(long)]
    pub(crate) verify: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Where to write the checkpoint [default: shardwright-demo in the folder for temporary files]
    #[arg(long)]
    pub(crate) dir: Option<PathBuf>,
}
