//! Slices of random tensors, copied by their rows and, as the oracle, element by element.

use super::*;
use proptest::prelude::*;
use shardwright_planner::{
    checkpoint::{ByteRange, TensorEntry},
    partition::{Axis, Partition, Remainder, Segment, Shares, Split},
    plan::Turn,
};

/// A tensor whose bytes are all different, as far as they can be.
fn entry(shape: &[u64], bytes_each: u64) -> (TensorEntry, Vec<u8>) {
    let bytes = shape.iter().product::<u64>() * bytes_each;
    let start = 16;
    let data: Vec<u8> = (0..start + bytes).map(|at| u8::try_from(at % 251).unwrap()).collect();
    let dtype = if bytes_each == 1 { Dtype::U8 } else { Dtype::BF16 };
    let range = ByteRange::new(start, start + bytes, u64::MAX).unwrap();
    (TensorEntry { name: "t".into(), dtype, shape: shape.into(), file: 0, bytes: range }, data)
}

/// What a rank should have: its boxes one after the other along the split dimension, then zeros.
fn oracle(entry: &TensorEntry, data: &[u8], slice: &shardwright_planner::partition::Slice) -> Vec<u8> {
    let bytes_each = entry.dtype.bitsize() / 8;
    let mut out = Vec::new();
    let count: u64 = slice.shape.iter().product();
    for number in 0..count {
        // The element's place in the slice, then in the tensor.
        let (mut rest, mut index) = (number, vec![0; slice.shape.len()]);
        for d in (0..slice.shape.len()).rev() {
            index[d] = rest % slice.shape[d];
            rest /= slice.shape[d];
        }
        let mut row = index.get(slice.dim).copied().unwrap_or(0);
        let mut found = None;
        for piece in &slice.pieces {
            let size = piece.region.shape().get(slice.dim).copied().unwrap_or(1);
            if row < size {
                if let Some(at) = index.get_mut(slice.dim) {
                    *at = piece.region.start[slice.dim] + row;
                }
                found = Some(());
                break;
            }
            row -= size;
        }
        if found.is_none() {
            out.extend(vec![0; bytes_each]);
            continue;
        }
        let flat = index.iter().zip(&*entry.shape).fold(0, |flat, (at, size)| flat * size + at);
        let at = usize::try_from(entry.bytes.start()).unwrap() + usize::try_from(flat).unwrap() * bytes_each;
        out.extend(&data[at..at + bytes_each]);
    }
    out
}

fn partition() -> impl Strategy<Value = (Vec<u64>, Partition)> {
    let segments = prop::collection::vec((1u64..4, 1u64..4, 1u64..3, prop::option::of(1u64..6)), 1..3);
    (segments, prop::collection::vec(1u64..4, 0..3), any::<prop::sample::Index>(), 0..4).prop_map(
        |(segments, mut shape, place, kind)| {
            let mut segments: Vec<Segment> = segments
                .into_iter()
                .map(|(groups, units, unit, shared)| {
                    let segment = Segment::new(groups, units, unit).unwrap();
                    shared.and_then(|pieces| segment.with_shared(pieces).ok()).unwrap_or(segment)
                })
                .collect();
            if kind == 0 {
                return (shape, Partition::Replicated);
            }
            let remainder = if kind == 1 { Remainder::Pad } else { Remainder::Uneven };
            if remainder == Remainder::Pad {
                segments = vec![Segment::elements(segments[0].len()).unwrap()];
            }
            let dim = place.index(shape.len() + 1);
            shape.insert(dim, segments.iter().map(|segment| segment.len()).sum());
            (shape, Partition::Split(Split { dim, segments, remainder, multiple: None, axis: Axis::Tensor }))
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn rows_copy_just_what_the_boxes_say((shape, partition) in partition(), parts in 1u32..5, bytes_each in 1u64..3) {
        let (entry, data) = entry(&shape, bytes_each);
        for slice in partition.slices(&shape, &Shares::equal(parts)).unwrap().into_iter().flatten() {
            let expected = oracle(&entry, &data, &slice);
            let tensor = RankTensor {
                name: "t".into(), dtype: entry.dtype, cast: None, shape: &shape, turn: Turn::First, slice: slice.into(), copy: 1, copies: 2,
            };
            let form = SliceForm::new(&tensor).unwrap();
            let placed = PlacedTensor { id: 0, offset: 256, form: &form };
            let mut memory = vec![0; 256 + usize::try_from(form.held.bytes).unwrap()];
            for rows in placed.pieces().iter().flat_map(|piece| placed.rows(piece)) {
                for run in 0..rows.runs {
                    let from = usize::try_from(entry.bytes.start() + rows.from + run * rows.from_stride).unwrap();
                    let to = usize::try_from(rows.to + run * rows.to_stride).unwrap();
                    let bytes = usize::try_from(rows.run_bytes).unwrap();
                    memory[to..to + bytes].copy_from_slice(&data[from..from + bytes]);
                }
            }
            prop_assert_eq!(&memory[256..], &expected);
            // What no row fills is the padding, and the padding is what no row fills.
            let copied: u64 = form.pieces.iter().map(ScheduledPiece::bytes).sum();
            let padded = form.padding.map_or(0, |padding| padding.runs * padding.run_bytes);
            prop_assert_eq!(copied + padded, form.held.bytes);
            if let Some(padding) = form.padding {
                for run in 0..padding.runs {
                    let at = usize::try_from(256 + padding.at + run * padding.stride).unwrap();
                    let bytes = usize::try_from(padding.run_bytes).unwrap();
                    prop_assert!(memory[at..at + bytes].iter().all(|&byte| byte == 0));
                    memory[at..at + bytes].fill(255);
                }
                let marked = memory.iter().filter(|&&byte| byte == 255).count();
                prop_assert_eq!(marked as u64, padded);
            }
            for piece in &form.pieces {
                prop_assert!((piece.replicas / 2..piece.replicas).contains(&piece.replica));
            }
        }
    }
}

#[test]
fn a_column_slice_is_one_run_and_a_row_slice_one_run_a_row() {
    let rows = |dim, start, stop, slice_shape: &[u64]| {
        let region = TensorBox::band(&[4, 6], dim, start, stop);
        rows_of(&region, &[4, 6], slice_shape, dim, 0, 16).unwrap()
    };
    let column = rows(0, 2, 4, &[2, 6]);
    assert_eq!((column.len(), column[0].runs, column[0].run_bytes, column[0].from), (1, 1, 24, 24));
    let row = rows(1, 3, 6, &[4, 3]);
    assert_eq!((row.len(), row[0].runs, row[0].run_bytes, row[0].from_stride), (1, 4, 6, 12));
}

proptest! {
    #[test]
    fn boxes_that_are_cut_in_any_dimensions_are_copied_to_their_places(
        dims in prop::collection::vec((0u64..3, 1u64..4, 0u64..3, 0u64..3, 0u64..3), 1..5),
        dim in any::<prop::sample::Index>(), cut in any::<prop::sample::Index>(),
    ) {
        // Of most boxes all dimensions but one are whole.
        let (dim, cut) = (dim.index(dims.len()), cut.index(dims.len() + 1));
        let whole = |d: usize| cut < dims.len() && d != cut;
        let (mut region, mut tensor_shape, mut slice_shape) = (TensorBox::whole(&[]), Vec::new(), Vec::new());
        for (d, &(before, size, after, slice_before, slice_after)) in dims.iter().enumerate() {
            let (before, after) = if whole(d) { (0, 0) } else { (before, after) };
            region.start.push(before);
            region.stop.push(before + size);
            tensor_shape.push(before + size + after);
            slice_shape.push(size + if d == dim { slice_before + slice_after } else { 0 });
        }
        let row = dims[dim].3;
        let found = rows_of(&region, &tensor_shape, &slice_shape, dim, row, 8).unwrap();
        let mut moved: Vec<(u64, u64)> = found
            .iter()
            .flat_map(|rows| (0..rows.runs).flat_map(move |run| (0..rows.run_bytes).map(move |byte| {
                (rows.from + run * rows.from_stride + byte, rows.to + run * rows.to_stride + byte)
            })))
            .collect();
        moved.sort_unstable();
        let sizes = region.shape();
        let place = |index: &[u64], shape: &[u64]| index.iter().zip(shape).fold(0, |flat, (at, size)| flat * size + at);
        let mut expected: Vec<(u64, u64)> = (0..region.elements())
            .map(|number| {
                let (mut rest, mut from, mut to) = (number, vec![0; sizes.len()], vec![0; sizes.len()]);
                for d in (0..sizes.len()).rev() {
                    (from[d], to[d]) = (region.start[d] + rest % sizes[d], rest % sizes[d]);
                    rest /= sizes[d];
                }
                to[dim] += row;
                (place(&from, &tensor_shape), place(&to, &slice_shape))
            })
            .collect();
        expected.sort_unstable();
        prop_assert_eq!(moved, expected);
        if cut < dims.len() && cut == dim {
            prop_assert_eq!(found.len(), 1, "one cut, however many dimensions");
        }
    }
}

#[test]
fn a_cut_through_a_byte_has_no_rows() {
    let region = TensorBox::band(&[2, 6], 1, 0, 3);
    assert_eq!(rows_of(&region, &[2, 6], &[2, 3], 1, 0, 4), None);
}
