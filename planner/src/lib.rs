//! shardwright's planner: from a checkpoint's headers and a description of the machine to a [`plan::Plan`].
//!
//! Everything here is pure and deterministic: the same files give the same plan, byte for byte. The planner reads
//! headers and configuration, never weight data, and knows no device; `shardwright-loader` executes what it decides.
//!
//! The way of the data, one module a room:
//!
//! 1. [`checkpoint`]: files → [`checkpoint::Catalog`], what tensors there are and where their bytes lie
//! 2. [`model`]: `config.json` → [`model::ModelSpec`], what the dimensions mean
//! 3. [`graph`]: tensors → modules, repeated blocks collapsed, and the data flow between them
//! 4. [`quantisation`]: how a module's tensors lie in its logical matrices
//! 5. [`rules`]: modules → decisions; families as data, the user's own rules, inference
//! 6. [`partition`]: the algebra: who holds which box of a tensor
//! 7. [`topology`] and [`placement`]: the machine, and ranks onto its GPUs
//! 8. [`plan`]: the document that carries the decisions, its checks, and the slices derived from it
//! 9. [`cost`]: bytes per GPU, whether they fit, and the collectives a layer needs
//! 10. [`planning`]: all of it, from a catalog to a plan that fits
//! 11. [`adapter`]: a LoRA adapter, cut to match the plan of its base
//! 12. [`export`]: folders of files that ranks hold alone; [`engine`]: what engines call them
#![deny(unsafe_code)]

pub mod adapter;
pub mod calibration;
pub mod checkpoint;
pub mod cost;
pub mod engine;
pub mod export;
pub mod glob;
pub mod graph;
pub mod layouts;
pub mod mesh;
pub mod model;
mod nearest;
pub mod partition;
pub mod placement;
pub mod plan;
pub mod planning;
pub mod quantisation;
pub mod quote;
pub mod rules;
pub mod serving;
pub mod size;
pub mod topology;
mod unique_map;
mod yaml;
