//! Roles from the tensor graph, for modules that no rule knows.
//!
//! A block computes features and reads them again: a writer with W inputs, and readers with W outputs in the same scope.
//! Cut at the same features, the readers are column-parallel and the writer is row-parallel, and nothing else changes,
//! as long as each feature is computed on its own. So nothing is cut where something else in the scope has W elements that is
//! no bias of a reader (a norm over the features would need all of them), where the readers' outputs may be several things
//! fused in an unknown order, or where the features are heads whose size is not known.

use super::{fit::Fitted, role::Role};
use crate::{
    graph::{Module, TensorGraph},
    model::{ConfigError, Dimension, Measures},
    partition::Logical,
    quantisation::Stored,
    quote::quote,
};

/// What is inferred for a writer and its readers, by module number; nothing where the pair cannot be cut for sure.
pub(super) fn pair(
    writer: usize,
    modules: &[Module],
    stored: &[Option<Stored>],
    graph: &TensorGraph,
    measures: Measures<'_>,
) -> Result<Vec<(usize, Fitted)>, ConfigError> {
    let sizes = |number: usize| {
        let stored = stored[number].as_ref().filter(|stored| stored.uncuttable.is_none())?;
        let cuttable = stored.experts.is_none() && stored.rest.is_empty();
        cuttable.then_some((stored.out, stored.input?))
    };
    let Some((_, width)) = sizes(writer) else { return Ok(Vec::new()) };
    let readers: Vec<usize> =
        graph.producers(writer).into_iter().filter(|&reader| graph.reads(reader)).collect();
    let Some(outs) =
        readers.iter().map(|&reader| sizes(reader).map(|(out, _)| out)).collect::<Option<Vec<_>>>()
    else {
        return Ok(Vec::new());
    };
    if outs.is_empty() || Some(width) == graph.width() && readers.len() < 2 {
        return Ok(Vec::new());
    }
    // A norm or a scale over the features: they are not computed one by one.
    let scope = modules[writer].scope();
    let others = |number: &usize| {
        *number != writer
            && !readers.contains(number)
            && modules[*number].scope() == scope
            && modules[*number].parameters.iter().any(|parameter| parameter.shape.contains(&width))
    };
    if (0..modules.len()).any(|number| others(&number)) {
        return Ok(Vec::new());
    }
    let (query, kv) = (measures.dimension("query heads")?, measures.dimension("kv heads")?);
    let heads = query.as_ref().zip(kv.as_ref()).filter(|(query, _)| query.len() == width);
    let features = Dimension::of_any_size("features", width, 1);
    let of = |out: u64| match heads {
        Some((query, kv)) if readers.len() > 2 || outs.contains(&kv.len()) => {
            [query, kv].into_iter().find(|dimension| dimension.len() == out).cloned()
        }
        // Two readers at most, none of which has the key/value heads' width: a feed-forward layer.
        _ => (out == width && readers.len() <= 2).then(|| features.clone()),
    };
    let Some(of_readers) = outs.iter().map(|&out| of(out)).collect::<Option<Vec<_>>>() else {
        return Ok(Vec::new());
    };
    let Some(of_writer) = of(width) else { return Ok(Vec::new()) };
    let fitted = |number: usize, role, split, reason| {
        let stored = stored[number].clone()?;
        Some((
            number,
            Fitted { role, stored, split: Some(split), kept: Vec::new(), stage: None, reason, warning: None },
        ))
    };
    let last = |number: usize| quote(modules[number].last_name()).to_string();
    let mut found = Vec::new();
    for (&reader, dimension) in readers.iter().zip(of_readers) {
        let reason = format!(
            "tensor graph: it reads the residual stream, and {} reads its {}",
            last(writer),
            dimension.words()
        );
        found.extend(fitted(reader, Role::ColumnParallel, (Logical::Out, vec![dimension]), reason));
    }
    let read: Vec<String> = readers.iter().map(|&reader| last(reader)).collect();
    let reason = format!(
        "tensor graph: it adds to the residual stream, and reads the {} of {}",
        of_writer.words(),
        read.join(", ")
    );
    found.extend(fitted(writer, Role::RowParallel, (Logical::In, vec![of_writer]), reason));
    Ok(found)
}
