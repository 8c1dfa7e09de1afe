//! The topologies inside the binary.

/// Name and text of each.
const TOPOLOGIES: [(&str, &str); 5] = [
    ("dgx-h100", include_str!("../../../topologies/dgx-h100.yaml")),
    ("dgx-a100-80gb", include_str!("../../../topologies/dgx-a100-80gb.yaml")),
    ("hgx-h200", include_str!("../../../topologies/hgx-h200.yaml")),
    ("8xl40s-pcie", include_str!("../../../topologies/8xl40s-pcie.yaml")),
    ("host", include_str!("../../../topologies/host.yaml")),
];

/// The text of the built-in topology called `name`.
pub fn builtin(name: &str) -> Option<&'static str> {
    TOPOLOGIES.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// Name and text of every built-in topology.
pub fn builtins() -> impl Iterator<Item = (&'static str, &'static str)> {
    TOPOLOGIES.into_iter()
}
