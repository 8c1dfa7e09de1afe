//! The topologies inside the binary: files of `topologies/`.

macro_rules! topologies {
    ($($name:literal)*) => {
        &[$(($name, include_str!(concat!("../../../topologies/", $name, ".yaml")))),*]
    };
}

/// Name and text of each.
static TOPOLOGIES: &[(&str, &str)] = topologies! {
    "dgx-1-v100"
    "dgx-a100-40gb"
    "dgx-a100-80gb"
    "hgx-a100-4gpu"
    "dgx-h100"
    "hgx-h200"
    "hgx-b200"
    "hgx-b300"
    "gb200-nvl72"
    "dgx-spark"
    "p4d.24xlarge"
    "p5.48xlarge"
    "g5.48xlarge"
    "4xa100-pcie-bridged"
    "2xh100-nvl"
    "8xrtx-pro-6000"
    "8xl40s-pcie"
    "8xl4"
    "4xl4"
    "4xrtx4090"
    "2xrtx3090-bridged"
    "host"
};

/// The text of the built-in topology called `name`.
pub fn builtin(name: &str) -> Option<&'static str> {
    TOPOLOGIES.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// Name and text of every built-in topology.
pub fn builtins() -> impl Iterator<Item = (&'static str, &'static str)> {
    TOPOLOGIES.iter().copied()
}
