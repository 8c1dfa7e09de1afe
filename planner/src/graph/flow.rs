//! How data flows between the modules of a block, as far as their shapes and names tell.
//!
//! The *residual width* is the number of features that blocks read and add to. A module that reads that many inputs is a
//! *reader*, one that gives that many outputs a *writer*; where a module does both, its name says which it is. In each
//! scope (`model.layers.*.mlp`) with one writer, the readers' outputs are what the writer reads.

use super::module::Module;
use petgraph::{
    Direction,
    dot::{Config, Dot},
    graph::{DiGraph, NodeIndex},
};
use std::collections::BTreeMap;

/// The names by which writers go, where the shapes do not tell.
const WRITERS: [&str; 16] = [
    "o_proj",
    "out_proj",
    "down_proj",
    "c_proj",
    "wo",
    "w2",
    "fc2",
    "fc_out",
    "dense",
    "dense_4h_to_h",
    "output_linear",
    "linear_out",
    "proj",
    "out",
    "output",
    "o",
];

/// More modules than one layer's scope has.
const MANY: usize = 64;

/// A module's logical matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matrix {
    /// Output features.
    pub out: u64,
    /// Input features.
    pub input: u64,
}

/// What a node of the graph stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    /// The residual stream.
    Residual,
    /// A module, by its number.
    Module(usize),
}

/// Which modules read what, with the number of features that flow.
#[derive(Debug)]
pub struct TensorGraph {
    graph: DiGraph<Node, u64>,
    nodes: Vec<Option<NodeIndex>>,
    width: Option<u64>,
}

impl TensorGraph {
    /// The graph of `modules`, whose logical matrices are `matrices` (`None` for whatever is no matrix). `width` is the
    /// residual width where it is known; else it is the width that most modules have.
    pub fn new(modules: &[Module], matrices: &[Option<Matrix>], width: Option<u64>) -> Self {
        let width = width.or_else(|| most_common_width(modules, matrices));
        let mut all = Self { graph: DiGraph::new(), nodes: vec![None; modules.len()], width };
        let Some(width) = width else { return all };
        let residual = all.graph.add_node(Node::Residual);
        // What is looked up in an embedding is added to the residual stream: its rows are inputs.
        let matrices: Vec<Option<Matrix>> = modules
            .iter()
            .zip(matrices)
            .map(|(module, matrix)| match matrix {
                Some(Matrix { out, input }) if is_embedding(module) => {
                    Some(Matrix { out: *input, input: *out })
                }
                other => *other,
            })
            .collect();
        let mut scopes: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (number, module) in modules.iter().enumerate() {
            if matrices[number].is_some() {
                all.nodes[number] = Some(all.graph.add_node(Node::Module(number)));
                scopes.entry(module.scope()).or_default().push(number);
            }
        }
        for members in scopes.values() {
            all.connect(members, modules, &matrices, residual, width);
        }
        all
    }

    fn connect(
        &mut self,
        members: &[usize],
        modules: &[Module],
        matrices: &[Option<Matrix>],
        residual: NodeIndex,
        width: u64,
    ) {
        let matrix = |number: usize| matrices[number].unwrap_or(Matrix { out: 0, input: 0 });
        let writes = |&number: &usize| {
            let Matrix { out, input } = matrix(number);
            out == width && (input != width || WRITERS.contains(&modules[number].last_name()))
        };
        let (writers, others): (Vec<usize>, Vec<usize>) = members.iter().partition(|number| writes(number));
        for &number in &others {
            let Some(node) = self.nodes[number] else { continue };
            if matrix(number).input == width {
                self.graph.add_edge(residual, node, width);
            }
            // What reads just what another of the scope gives; in a scope of more than a few modules nobody could tell.
            let few = others.len() <= MANY;
            for &before in others.iter().filter(|&&before| few && before != number) {
                let features = matrix(before).out;
                if let Some(source) = self.nodes[before]
                    && features == matrix(number).input
                    && features != width
                {
                    self.graph.add_edge(source, node, features);
                }
            }
        }
        // One set of weights may be stored in two forms; both have the same name.
        let one_writer = writers.windows(2).all(|pair| modules[pair[0]].name == modules[pair[1]].name);
        for &writer in &writers {
            let Some(node) = self.nodes[writer] else { continue };
            self.graph.add_edge(node, residual, width);
            for &number in others.iter().filter(|_| one_writer && others.len() <= MANY) {
                let read_by_another = self.nodes[number]
                    .is_some_and(|node| self.graph.neighbors(node).any(|next| next != residual));
                if let Some(source) = self.nodes[number]
                    && !read_by_another
                    && modules[number]
                        .blocks
                        .iter()
                        .any(|block| modules[writer].blocks.binary_search(block).is_ok())
                {
                    self.graph.update_edge(source, node, matrix(number).out);
                }
            }
        }
    }

    /// The residual width, where there is one.
    pub fn width(&self) -> Option<u64> {
        self.width
    }

    /// Whether a module adds to the residual stream.
    pub fn writes(&self, module: usize) -> bool {
        self.next(module, Direction::Outgoing).contains(&Node::Residual)
    }

    /// Whether a module reads the residual stream.
    pub fn reads(&self, module: usize) -> bool {
        self.next(module, Direction::Incoming).contains(&Node::Residual)
    }

    /// The modules whose outputs `module` reads, in the order of the modules.
    pub fn producers(&self, module: usize) -> Vec<usize> {
        modules_of(self.next(module, Direction::Incoming))
    }

    /// The modules that read the outputs of `module`, in the order of the modules.
    pub fn consumers(&self, module: usize) -> Vec<usize> {
        modules_of(self.next(module, Direction::Outgoing))
    }

    fn next(&self, module: usize, direction: Direction) -> Vec<Node> {
        let node = self.nodes.get(module).copied().flatten();
        node.into_iter()
            .flat_map(|node| self.graph.neighbors_directed(node, direction))
            .map(|next| self.graph[next])
            .collect()
    }

    /// The graph in Graphviz' language; edges carry the number of features.
    pub fn dot(&self, modules: &[Module]) -> String {
        let label = |_: &DiGraph<Node, u64>, (_, node): (NodeIndex, &Node)| match node {
            Node::Residual => {
                let width = self.width.map_or(String::new(), |width| format!(" {width}"));
                format!("label=\"residual{width}\" shape=ellipse")
            }
            Node::Module(number) => {
                let module = &modules[*number];
                let name: String = module.name.chars().flat_map(char::escape_default).collect();
                format!("label=\"{name} (×{})\" shape=box", module.count())
            }
        };
        let edge = |_: &DiGraph<Node, u64>, edge: petgraph::graph::EdgeReference<'_, u64>| {
            format!("label=\"{}\"", edge.weight())
        };
        let config = [Config::NodeNoLabel, Config::EdgeNoLabel];
        format!("{:?}", Dot::with_attr_getters(&self.graph, &config, &edge, &label))
    }
}

fn modules_of(nodes: Vec<Node>) -> Vec<usize> {
    let mut modules: Vec<usize> = nodes
        .into_iter()
        .filter_map(|node| match node {
            Node::Module(number) => Some(number),
            Node::Residual => None,
        })
        .collect();
    modules.sort_unstable();
    modules
}

fn is_embedding(module: &Module) -> bool {
    let last = module.last_name();
    last.contains("embed") || ["wte", "wpe", "shared"].contains(&last)
}

/// The width that most modules of repeated blocks read or give.
fn most_common_width(modules: &[Module], matrices: &[Option<Matrix>]) -> Option<u64> {
    let mut votes: BTreeMap<u64, u64> = BTreeMap::new();
    for (module, matrix) in modules.iter().zip(matrices) {
        if let Some(Matrix { out, input }) = matrix {
            *votes.entry(*out).or_default() += module.count();
            *votes.entry(*input).or_default() += module.count();
        }
    }
    votes.into_iter().max_by_key(|&(width, votes)| (votes, width)).map(|(width, _)| width)
}
