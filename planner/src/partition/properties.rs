//! What holds for every partition, over random shapes, group sizes and segments.
//!
//! The oracle is plain: it walks the tensor element by element.

use super::*;
use proptest::prelude::*;

/// A tensor's shape, a partition that tiles it, and a number of ranks.
#[derive(Debug, Clone)]
struct Case {
    shape: Vec<u64>,
    partition: Partition,
    shares: Shares,
}

fn segment() -> impl Strategy<Value = Segment> {
    (1u64..9, 1u64..5, 1u64..4, prop::option::of(1u64..12)).prop_map(|(groups, units, unit, shared)| {
        let segment = Segment::new(groups, units, unit).unwrap();
        shared.and_then(|pieces| segment.with_shared(pieces).ok()).unwrap_or(segment)
    })
}

fn shares(parts: u32) -> impl Strategy<Value = Shares> {
    let weighted = prop::collection::vec(1u32..5, parts as usize);
    prop_oneof![
        2 => Just(Shares::equal(parts)),
        1 => weighted.prop_map(move |weights| Shares::weighted(parts, &weights)),
    ]
}

fn case() -> impl Strategy<Value = Case> {
    let split = (
        prop::collection::vec(segment(), 1..4),
        prop_oneof![Just(Remainder::Refuse), Just(Remainder::Uneven), Just(Remainder::Pad)],
        prop::collection::vec(1u64..4, 0..3),
        any::<prop::sample::Index>(),
    )
        .prop_map(|(mut segments, remainder, mut shape, place)| {
            if remainder == Remainder::Pad {
                segments = vec![Segment::elements(segments[0].len()).unwrap()];
            }
            let dim = place.index(shape.len() + 1);
            shape.insert(dim, segments.iter().map(|segment| segment.len()).sum());
            let split = Split { dim, segments, remainder, multiple: None, axis: Axis::Tensor };
            (shape, Partition::Split(split))
        });
    let whole = (
        prop::collection::vec(1u64..5, 0..4),
        prop_oneof![Just(Partition::Replicated), Just(Partition::FirstRank)],
    );
    (prop_oneof![4 => split.boxed(), 1 => whole.boxed()], (1u32..13).prop_flat_map(shares))
        .prop_map(|((shape, partition), shares)| Case { shape, partition, shares })
}

/// Every index of a tensor of `shape`, row-major.
fn indices(shape: &[u64]) -> Vec<Vec<u64>> {
    shape.iter().fold(vec![Vec::new()], |found, &size| {
        found
            .iter()
            .flat_map(|index| (0..size).map(move |next| [index.as_slice(), &[next]].concat()))
            .collect()
    })
}

fn holds(region: &TensorBox, index: &[u64]) -> bool {
    index.iter().enumerate().all(|(dim, &at)| (region.start[dim]..region.stop[dim]).contains(&at))
}

/// The slices, or `None` where the partition is refused because it does not divide.
fn slices(case: &Case) -> Option<Vec<Option<Slice>>> {
    match case.partition.slices(&case.shape, &case.shares) {
        Ok(slices) => Some(slices),
        Err(PartitionError::Indivisible(_)) => None,
        Err(other) => panic!("{other}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn boxes_lie_inside_the_tensor(case in case()) {
        for slice in slices(&case).into_iter().flatten().flatten() {
            for region in slice.boxes() {
                for (dim, &size) in case.shape.iter().enumerate() {
                    prop_assert!(region.start[dim] < region.stop[dim] && region.stop[dim] <= size);
                }
            }
        }
    }

    #[test]
    fn every_element_is_held_by_just_the_declared_ranks(case in case()) {
        let Some(slices) = slices(&case) else { return Ok(()) };
        for index in indices(&case.shape) {
            let held: Vec<&Piece> = slices
                .iter()
                .flatten()
                .flat_map(|slice| &slice.pieces)
                .filter(|piece| holds(&piece.region, &index))
                .collect();
            prop_assert!(!held.is_empty(), "{index:?} is held by no rank");
            let replicas: Vec<u32> = held.iter().map(|piece| piece.replica).collect();
            prop_assert_eq!(replicas, (0..held[0].replicas).collect::<Vec<_>>());
            for piece in &held {
                prop_assert_eq!(&piece.region, &held[0].region);
                prop_assert_eq!(piece.replicas, held[0].replicas);
            }
        }
    }

    #[test]
    fn slices_have_one_shape_unless_uneven(case in case()) {
        let Some(slices) = slices(&case) else { return Ok(()) };
        let may_differ = matches!(&case.partition, Partition::Split(split) if split.remainder == Remainder::Uneven)
            || !case.shares.are_equal();
        if may_differ || case.partition == Partition::FirstRank {
            return Ok(());
        }
        for slice in &slices {
            prop_assert_eq!(slice.as_ref().map(|s| &s.shape), slices[0].as_ref().map(|s| &s.shape));
        }
    }

    #[test]
    fn a_slice_has_the_shape_of_its_boxes_and_padding(case in case()) {
        for slice in slices(&case).into_iter().flatten().flatten() {
            let rows: u64 = slice.boxes().iter().map(|b| b.shape().get(slice.dim).copied().unwrap_or(1)).sum();
            let expected = slice.shape.get(slice.dim).copied().unwrap_or(1);
            prop_assert_eq!(rows + slice.padding, expected);
            let pieces: u64 = slice.pieces.iter().map(|p| p.region.elements()).sum();
            let boxes: u64 = slice.boxes().iter().map(TensorBox::elements).sum();
            prop_assert_eq!(pieces, boxes);
        }
    }

    /// Concatenation as an engine would undo the split: segment by segment, each distinct run once.
    #[test]
    fn concatenated_slices_give_the_tensor_back(case in case()) {
        let Partition::Split(split) = &case.partition else { return Ok(()) };
        let Some(slices) = slices(&case) else { return Ok(()) };
        let mut runs: Vec<(u64, u64)> = slices
            .iter()
            .flatten()
            .flat_map(|slice| &slice.pieces)
            .filter(|piece| piece.replica == 0)
            .map(|piece| (piece.region.start[split.dim], piece.region.stop[split.dim]))
            .collect();
        runs.sort_unstable();
        let mut end = 0;
        for (start, stop) in runs {
            prop_assert_eq!(start, end);
            end = stop;
        }
        prop_assert_eq!(end, case.shape[split.dim]);
    }

    /// Query heads and the key/value heads they read are dealt to the same ranks, even or not, and however many query heads
    /// must stay together.
    #[test]
    fn query_heads_follow_their_key_value_head(
        groups in 1u64..9, per_group in 1u64..9, together in 1u64..9, shares in (1u32..17).prop_flat_map(shares),
    ) {
        let heads = groups * per_group;
        let (query, kv) = match heads.is_multiple_of(together) {
            true => {
                let units = Segment::new(heads / together, 1, together).unwrap();
                let kv = Segment::new(heads / together, 1, 1).unwrap();
                (units, kv.with_shared(groups).unwrap_or(kv))
            }
            false => Segment::attention_heads(heads, groups, 1).unwrap(),
        };
        let query = deal(query, &shares, Remainder::Uneven).unwrap();
        let kv = deal(kv, &shares, Remainder::Uneven).unwrap();
        for (query, kv) in query.iter().zip(&kv) {
            for head in query.runs.iter().flat_map(|run| run.start..run.stop) {
                let read = head / per_group;
                prop_assert!(kv.runs.iter().any(|run| (run.start..run.stop).contains(&read)));
            }
        }
    }

    /// What is stored in blocks is cut where the weight is cut: at the same logical element.
    #[test]
    fn stored_forms_of_one_module_are_cut_alike(
        units in 1u64..12, unit in 1u64..4, block in 1u64..5, words in 1u64..4, parts in 1u32..6, uneven in any::<bool>(),
    ) {
        let segment = Segment::new(units, 1, unit * block).unwrap();
        let remainder = if uneven { Remainder::Uneven } else { Remainder::Refuse };
        let logical =
            LogicalPartition::Split { dim: Logical::In, segments: vec![segment], remainder, axis: Axis::Tensor };
        let weight = Storage::weight().project(&logical).unwrap();
        let packed = StoredDimension { logical: Some(Logical::In), elements: block, stored: words };
        let scales = Storage::of(vec![packed]).project(&logical).unwrap();
        let shares = Shares::equal(parts);
        let (weight, scales) = (
            weight.slices(&[1, segment.len()], &shares),
            scales.slices(&[segment.len() / block * words], &shares),
        );
        prop_assert_eq!(weight.is_ok(), scales.is_ok());
        for (weight, scales) in weight.into_iter().flatten().zip(scales.into_iter().flatten()) {
            let weight = weight.map(|s| (s.pieces[0].region.start[1], s.pieces[0].region.stop[1]));
            let logical = |stored: u64| stored / words * block;
            let scales = scales.map(|s| (logical(s.pieces[0].region.start[0]), logical(s.pieces[0].region.stop[0])));
            prop_assert_eq!(weight, scales);
        }
    }

    /// Whole tensors, such as experts, each go to one rank, in contiguous runs.
    #[test]
    fn every_number_is_assigned_to_one_rank(of in 1u64..40, shares in (1u32..9).prop_flat_map(shares)) {
        let assigned = Assigned { number: 0, of, remainder: Remainder::Uneven, axis: Axis::Expert };
        let runs = assigned.numbers(&shares).unwrap();
        let mut end = 0;
        for (start, stop) in runs.into_iter().filter(|(start, stop)| start < stop) {
            prop_assert_eq!(start, end);
            end = stop;
        }
        prop_assert_eq!(end, of);
    }
}

#[test]
fn a_row_parallel_bias_is_held_once_and_a_column_parallel_one_is_cut() {
    let split = |dim| LogicalPartition::Split {
        dim,
        segments: vec![Segment::elements(8).unwrap()],
        remainder: Remainder::Refuse,
        axis: Axis::Tensor,
    };
    let row = Storage::bias().project(&split(Logical::In)).unwrap();
    assert_eq!(row, Partition::FirstRank);
    let column = Storage::bias().project(&split(Logical::Out)).unwrap();
    let slices = column.slices(&[8], &Shares::equal(4)).unwrap();
    assert_eq!(slices[3].as_ref().unwrap().shape, [2]);
}

#[test]
fn fused_segments_are_dealt_one_by_one_and_joined_where_they_touch() {
    // [q | k | v] of 4 query heads and 2 key/value heads of 2 elements.
    let (query, kv) = Segment::attention_heads(4, 2, 2).unwrap();
    let segments = vec![query, kv, kv];
    let qkv = Partition::Split(Split {
        dim: 0,
        segments,
        remainder: Remainder::Refuse,
        multiple: None,
        axis: Axis::Tensor,
    });
    let rows = |parts: u32, rank: usize| -> Vec<(u64, u64)> {
        let slices = qkv.slices(&[16, 3], &Shares::equal(parts)).unwrap();
        let boxes = slices[rank].as_ref().unwrap().boxes();
        boxes.iter().map(|b| (b.start[0], b.stop[0])).collect()
    };
    assert_eq!(rows(1, 0), [(0, 16)]);
    assert_eq!(rows(2, 1), [(4, 8), (10, 12), (14, 16)]);
    assert_eq!(rows(4, 1), [(2, 4), (8, 10), (12, 14)]);
}

#[test]
fn a_partition_that_does_not_fit_its_tensor_is_refused() {
    let split = |dim, segments: Vec<Segment>, remainder| {
        Partition::Split(Split { dim, segments, remainder, multiple: None, axis: Axis::Tensor })
    };
    let two = &Shares::equal(2);
    let eight = Segment::elements(8).unwrap();
    assert!(matches!(
        split(2, vec![eight], Remainder::Refuse).slices(&[8, 8], two),
        Err(PartitionError::NoSuchDimension { dim: 2, .. })
    ));
    assert!(matches!(
        split(0, vec![eight, eight], Remainder::Refuse).slices(&[8], two),
        Err(PartitionError::DoesNotTile { segments: 16, .. })
    ));
    assert!(matches!(
        split(0, vec![eight, eight], Remainder::Pad).slices(&[16], two),
        Err(PartitionError::PaddedSegments { segments: 2 })
    ));
    assert!(matches!(
        split(0, vec![eight], Remainder::Refuse).slices(&[8], &Shares::equal(3)),
        Err(PartitionError::Indivisible(_))
    ));
    let multiple = |remainder, multiple| {
        let multiple = std::num::NonZero::new(multiple);
        let split = Split { dim: 0, segments: vec![eight], remainder, multiple, axis: Axis::Tensor };
        Partition::Split(split).slices(&[8], two)
    };
    assert!(matches!(multiple(Remainder::Refuse, 2), Err(PartitionError::Multiple { .. })));
    assert!(matches!(multiple(Remainder::Pad, (1 << 16) + 1), Err(PartitionError::Multiple { .. })));
    // As an engine does it: 8 rows become 10, and each rank has 5.
    let held: Vec<_> = multiple(Remainder::Pad, 5).unwrap().into_iter().flatten().collect();
    assert_eq!(
        held.iter().map(|slice| (slice.shape[0], slice.padding)).collect::<Vec<_>>(),
        [(5, 0), (5, 2)]
    );
    let four_bit = Split {
        dim: 1,
        segments: vec![eight],
        remainder: Remainder::Refuse,
        multiple: None,
        axis: Axis::Tensor,
    };
    assert!(matches!(four_bit.check_bytes(&[2, 8], 4), Err(PartitionError::CutsByte { .. })));
    let pairs = Split { segments: vec![Segment::new(4, 1, 2).unwrap()], ..four_bit };
    assert_eq!(Split::byte_unit(&[2, 8], 1, 4), 2);
    assert_eq!(pairs.check_bytes(&[2, 8], 4), Ok(()));
    assert!(Segment::new(0, 1, 1).is_err());
    assert!(Segment::new(u64::MAX, 2, 1).is_err());
    assert!(eight.in_stored(2, 1).is_err() && eight.with_shared(8).is_err() && eight.with_shared(0).is_err());
    // Shared pieces smaller than a stored element go together: 4 key/value heads of 64 in blocks of 128.
    let kv = Segment::new(8, 1, 64).unwrap().with_shared(4).unwrap();
    assert_eq!(kv.in_stored(128, 1), Segment::new(8, 1, 1).unwrap().with_shared(2));
}
