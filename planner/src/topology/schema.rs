//! The topology as it is written, version 1. Described for people in `topologies/README.md`.

use super::{
    names::{Names, Numbers},
    quantity::{Bandwidth, Bytes, FlopRate, Latency, QuantityError},
};
use crate::yaml::Parsed;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{
        Error as _, SeqAccess, Unexpected, Visitor,
        value::{MapAccessDeserializer, SeqAccessDeserializer},
    },
};
use std::{borrow::Cow, collections::BTreeMap, fmt, str::FromStr};

/// Most GPUs in all nodes together.
pub const MAX_GPUS: u32 = 65_536;

/// Most GPUs of one node.
pub(super) const MAX_GPUS_PER_NODE: u32 = 128;

/// Most hubs, links and NICs of one node, each.
pub(super) const MAX_PARTS: usize = 512;

/// Most connections of one node.
pub(super) const MAX_EDGES: usize = 4096;

/// Most connections side by side that one figure stands for.
pub(super) const MAX_COUNT: u32 = 256;

/// A machine: nodes of one kind, and what connects them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Topology")]
pub(super) struct Document {
    /// Its name.
    pub(super) topology: String,
    /// One line for people.
    pub(super) about: String,
    /// The kind of all GPUs; or several kinds, each with the GPUs that are of it.
    pub(super) gpu: GpuKinds,
    /// GPUs of one node.
    pub(super) gpus: Count,
    /// How many nodes of this kind.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    #[schemars(range(min = 1, max = MAX_GPUS))]
    pub(super) nodes: u32,
    /// What GPUs are plugged into.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) hubs: Vec<Hub>,
    /// Network cards.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) nics: Vec<Nic>,
    /// Connections beside those of hubs and network cards.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) links: Vec<Link>,
    /// What connects nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) network: Option<Network>,
}

fn one() -> u32 {
    1
}

// The signature is serde's.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_one(number: &u32) -> bool {
    *number == 1
}

// As above.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_false(flag: &bool) -> bool {
    !flag
}

/// A kind of GPU.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct GpuKind {
    /// Its name. What is not said here of a kind in `topologies/gpus.yaml` is taken from there.
    pub(super) kind: String,
    /// Memory of one GPU: a figure, or `detected`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) memory: Option<Memory>,
    /// How fast a GPU reads its own memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) memory_bandwidth: Option<Bandwidth>,
    /// Dense operations per second, by type of number.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) flops: BTreeMap<NumberKind, FlopRate>,
    /// Whether all devices of a node share one memory.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(super) shared_memory: bool,
    /// Which GPUs are of this kind, where there are several kinds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) gpus: Option<Numbers>,
}

/// Types of numbers that GPUs compute with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // The names say it.
pub enum NumberKind {
    Fp64,
    Fp32,
    Tf32,
    Fp16,
    Bf16,
    Fp8,
    Int8,
    Fp4,
}

/// One kind of GPU, or several. Never empty.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct GpuKinds(pub(super) Vec<GpuKind>);

impl Serialize for GpuKinds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [one] if one.gpus.is_none() => one.serialize(serializer),
            several => several.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for GpuKinds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany;
        impl<'de> Visitor<'de> for OneOrMany {
            type Value = GpuKinds;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a kind of GPU like { kind: H100 SXM5 80GB }, or a list of them")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<GpuKinds, A::Error> {
                GpuKind::deserialize(MapAccessDeserializer::new(map)).map(|kind| GpuKinds(vec![kind]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, sequence: A) -> Result<GpuKinds, A::Error> {
                let kinds = Vec::deserialize(SeqAccessDeserializer::new(sequence))?;
                match kinds.len() {
                    0 => Err(A::Error::invalid_length(0, &self)),
                    _ => Ok(GpuKinds(kinds)),
                }
            }
        }
        deserializer.deserialize_any(OneOrMany)
    }
}

impl JsonSchema for GpuKinds {
    fn schema_name() -> Cow<'static, str> {
        "GpuKinds".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let kind = generator.subschema_for::<GpuKind>();
        json_schema!({ "anyOf": [kind, { "type": "array", "items": kind, "minItems": 1 }] })
    }
}

/// A memory's size: a figure, or what the machine at hand has.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(into = "String")]
pub(super) enum Memory {
    Detected,
    Size(Bytes),
}

impl<'de> Deserialize<'de> for Memory {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Parsed::new("number of bytes"))
    }
}

impl FromStr for Memory {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        match text {
            "detected" => Ok(Self::Detected),
            _ => text.parse().map(Self::Size),
        }
    }
}

impl From<Memory> for String {
    fn from(memory: Memory) -> Self {
        match memory {
            Memory::Detected => "detected".to_owned(),
            Memory::Size(bytes) => bytes.to_string(),
        }
    }
}

impl JsonSchema for Memory {
    fn schema_name() -> Cow<'static, str> {
        "Memory".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let bytes = generator.subschema_for::<Bytes>();
        json_schema!({ "anyOf": [bytes, { "const": "detected" }] })
    }
}

/// A number of devices: a figure, or as many as are asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Count {
    Number(u32),
    Detected,
}

impl Serialize for Count {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Number(number) => serializer.serialize_u32(*number),
            Self::Detected => serializer.serialize_str("detected"),
        }
    }
}

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written;
        impl Visitor<'_> for Written {
            type Value = Count;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of GPUs, or `detected`")
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Count, E> {
                // What is too large for any machine is refused as a size, with its numbers.
                u32::try_from(number)
                    .map(Count::Number)
                    .map_err(|_| E::invalid_value(Unexpected::Unsigned(number), &self))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Count, E> {
                match text {
                    "detected" => Ok(Count::Detected),
                    _ => Err(E::invalid_value(Unexpected::Str(text), &self)),
                }
            }
        }
        deserializer.deserialize_any(Written)
    }
}

impl JsonSchema for Count {
    fn schema_name() -> Cow<'static, str> {
        "Count".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [{ "type": "integer", "minimum": 1, "maximum": MAX_GPUS_PER_NODE }, { "const": "detected" }],
        })
    }
}

/// Something with ports that GPUs and other hubs are plugged into.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Hub {
    /// Its name, or a run of names: several hubs that the GPUs are dealt to.
    pub(super) name: Names,
    /// What it is.
    pub(super) kind: HubKind,
    /// Which GPUs are plugged into it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) gpus: Option<Numbers>,
    /// Connections of each GPU.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    #[schemars(range(min = 1, max = MAX_COUNT))]
    pub(super) count: u32,
    /// Of one connection, in one direction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) bandwidth: Option<Bandwidth>,
    /// Of one connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) latency: Option<Latency>,
    /// The hub that it is plugged into itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) on: Option<Names>,
    /// Of its connection to that hub, in one direction; `bandwidth` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) uplink: Option<Bandwidth>,
    /// The operating system's number of its NUMA node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) numa: Option<Numbers>,
    /// How many nodes in a row share it.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    #[schemars(range(min = 1))]
    pub(super) spans: u32,
}

impl Hub {
    /// A hub that nothing is plugged into yet.
    pub(super) fn new(name: &str, kind: HubKind) -> Self {
        Self {
            name: Names::from(name),
            kind,
            gpus: None,
            count: 1,
            bandwidth: None,
            latency: None,
            on: None,
            uplink: None,
            numa: None,
            spans: 1,
        }
    }
}

/// Kinds of hubs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum HubKind {
    /// A fabric of NVSwitches: any GPU to any other at full speed.
    Nvswitch,
    /// A PCIe switch.
    PcieSwitch,
    /// A CPU's PCIe host bridge.
    HostBridge,
    /// What connects the host bridges of one NUMA node.
    NumaNode,
    /// Main memory, for ranks that are threads.
    Memory,
}

/// A network card.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Nic {
    /// Its name, or a run of names.
    pub(super) name: Names,
    /// The hub that it is plugged into.
    pub(super) on: Names,
    /// Of its ports together, in one direction.
    pub(super) bandwidth: Bandwidth,
    /// Of its connection to the hub; as fast as its ports if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pcie: Option<Bandwidth>,
}

/// A connection between named things.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Link {
    /// What it is.
    pub(super) kind: EdgeKind,
    /// Two of `gpu0`, `gpu1` … and the names of hubs; runs of names are dealt to each other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) between: Option<[Names; 2]>,
    /// Every pair of these.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) among: Option<Names>,
    /// How many side by side.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    #[schemars(range(min = 1, max = MAX_COUNT))]
    pub(super) count: u32,
    /// Of one of them, in one direction.
    pub(super) bandwidth: Bandwidth,
    /// How long the first byte takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) latency: Option<Latency>,
}

/// Kinds of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EdgeKind {
    /// NVLink.
    Nvlink,
    /// AMD's Infinity Fabric between GPUs.
    Xgmi,
    /// PCI Express.
    Pcie,
    /// Between the CPUs, or the NUMA nodes, of a node.
    Socket,
    /// Main memory.
    Memory,
    /// Between nodes.
    Network,
}

/// What connects nodes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Network {
    /// For people: `InfiniBand NDR`.
    pub(super) kind: String,
    /// Of the connection of each hub in `via`; network cards have their own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) bandwidth: Option<Bandwidth>,
    /// From a node to the network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) latency: Option<Latency>,
    /// The network cards or hubs that are plugged into it; all network cards if absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) via: Vec<Names>,
}

impl HubKind {
    /// What connects GPUs and other hubs to a hub of this kind.
    pub(super) fn edge(self) -> EdgeKind {
        match self {
            Self::Nvswitch => EdgeKind::Nvlink,
            Self::PcieSwitch | Self::HostBridge | Self::NumaNode => EdgeKind::Pcie,
            Self::Memory => EdgeKind::Memory,
        }
    }
}

impl EdgeKind {
    /// Nanoseconds over one connection to a hub, where the file does not say.
    ///
    /// Source: what NCCL's model takes for two GPUs on one hub (`src/graph/tuning.cc`, low-latency protocol: NVLink 0.6 us,
    /// PCIe 1.0 us, network 2.7 us), over the connections of such a path: two, two, and four of PCIe with two of the network.
    pub(super) fn usual_latency(self) -> u64 {
        match self {
            Self::Nvlink | Self::Xgmi => 300,
            Self::Pcie => 500,
            Self::Socket => 500,
            Self::Memory => 100,
            Self::Network => 350,
        }
    }

    /// Whether it joins GPUs directly, past PCIe.
    pub fn is_gpu_fabric(self) -> bool {
        matches!(self, Self::Nvlink | Self::Xgmi)
    }
}

impl fmt::Display for EdgeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nvlink => "NVLink",
            Self::Xgmi => "xGMI",
            Self::Pcie => "PCIe",
            Self::Socket => "socket link",
            Self::Memory => "memory",
            Self::Network => "network",
        })
    }
}

/// The JSON Schema of a topology file.
pub fn json_schema() -> serde_json::Value {
    let mut schema = schemars::schema_for!(Document);
    schema.insert("title".to_owned(), "shardwright topology, version 1".into());
    schema.to_value()
}
