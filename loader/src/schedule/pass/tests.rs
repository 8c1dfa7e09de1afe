//! Passes of real plans, carried out byte by byte.

use super::*;
use crate::fixture::{planned, planned_as};
use shardwright_planner::plan::{CastDtype, Plan};
use std::collections::{BTreeMap, BTreeSet};

const CHECKPOINTS: [&str; 3] = ["llama-odd-vocab-bf16", "qwen2-bf16", "mistral-f32"];

/// How often each byte of a rank's memory is filled, and of each tensor read and summed up, by the ranks of one process.
#[derive(Default)]
struct Touched {
    memory: BTreeMap<(u32, u64), u32>,
    read: BTreeMap<(usize, u64), u32>,
    summed: BTreeMap<(usize, u64), u32>,
}

fn touch(pass: &Pass<'_>, schedules: &[Schedule], windows: &[u64], touched: &mut Touched) {
    for unit in &pass.units {
        for (window, most) in unit.windows.iter().zip(windows) {
            // A single byte goes anywhere.
            assert!(window.end - window.start <= (*most).max(1), "{unit:?}");
        }
        for span in &unit.spans {
            let tensor = &pass.tensors[span.tensor];
            assert_eq!(pass.batches.batch_of(tensor.id), unit.batch);
            let wanted = pass.wanted(span);
            assert!(wanted.windows(2).all(|pair| pair[0].end < pair[1].start));
            let is_wanted = |at: u64| wanted.iter().any(|range| range.contains(&at));
            for range in &wanted {
                assert!(range.start >= span.bytes.start && range.end <= span.bytes.end);
                range.clone().for_each(|at| *touched.read.entry((tensor.id, at)).or_default() += 1);
            }
            for run in pass.answered(tensor) {
                for at in run.start.max(span.bytes.start)..run.end.min(span.bytes.end) {
                    assert!(is_wanted(at));
                    *touched.summed.entry((tensor.id, at)).or_default() += 1;
                }
            }
            for place in pass.places(tensor) {
                let placed = pass.placed(place);
                for piece in placed.pieces() {
                    for rows in placed.rows_out_of(piece, span.bytes.clone()) {
                        for run in 0..rows.runs {
                            for byte in 0..rows.run_bytes {
                                assert!(is_wanted(rows.from + run * rows.from_stride + byte));
                                let to = rows.to + run * rows.to_stride + byte;
                                assert!(unit.windows[place.seat()].contains(&to));
                                let rank = schedules[place.seat()].rank;
                                *touched.memory.entry((rank, to)).or_default() += 1;
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn every_byte_is_read_once_and_handed_to_all_who_hold_it() {
    for name in CHECKPOINTS {
        for (dp, pp, tp, cast) in
            [(1, 1, 1, None), (1, 1, 4, None), (2, 2, 2, None), (1, 1, 2, Some(CastDtype::F32))]
        {
            let (plan, catalog) = planned_as(name, dp, pp, tp, cast);
            let casts = Casts::new(&plan, &catalog).unwrap();
            let batches = Batches::new(&plan, &catalog).unwrap();
            let world = plan.mesh.world_size();
            // All ranks in one process, or two in each, with windows of one size or another.
            for (together, most) in [(world, 1 << 20), (2.min(world), 5000), (world, 777)] {
                let mut all = Touched::default();
                for first in (0..world).step_by(together as usize) {
                    let ranks = first..(first + together).min(world);
                    let schedules: Vec<Schedule> =
                        ranks.map(|rank| Schedule::new(&plan, &catalog, rank).unwrap()).collect();
                    let windows = vec![most; schedules.len()];
                    let answers = Answers::WithOthers { world };
                    let pass = Pass::new(
                        &schedules,
                        &|seat, at| at + windows[seat],
                        &batches,
                        (&catalog, &casts),
                        answers,
                    );
                    let mut touched = Touched::default();
                    touch(&pass, &schedules, &windows, &mut touched);
                    assert!(touched.read.values().all(|&times| times == 1), "{name}: a byte is read twice");
                    assert!(touched.memory.values().all(|&times| times == 1));
                    for schedule in &schedules {
                        let filled = touched.memory.keys().filter(|(rank, _)| *rank == schedule.rank).count();
                        assert_eq!(filled as u64, schedule.copied_bytes(), "{name}, rank {}", schedule.rank);
                    }
                    all.summed.extend(
                        touched
                            .summed
                            .iter()
                            .map(|(at, times)| {
                                assert!(!all.summed.contains_key(at), "two processes answer for one byte");
                                (*at, *times)
                            })
                            .collect::<Vec<_>>(),
                    );
                }
                // All answer for all, each for its own.
                let bytes: u64 = (0..catalog.tensors().len()).map(|id| casts.len_of(id)).sum();
                assert_eq!(all.summed.len() as u64, bytes, "{name}");
                assert!(all.summed.values().all(|&times| times == 1));
            }
        }
    }
}

#[test]
fn processes_of_a_host_share_what_they_read_among_them() {
    let with_others: fn(u32) -> Answers = |world| Answers::WithOthers { world };
    for (name, dp, tp, cast, answers_of) in [
        ("llama-odd-vocab-bf16", 1, 4, None, with_others),
        ("llama-odd-vocab-bf16", 1, 4, None, |_| Answers::ForNothing),
        ("qwen2-bf16", 2, 2, None, with_others),
        ("mistral-f32", 1, 2, Some(CastDtype::F16), with_others),
    ] {
        let alone_bytes = share(planned_as(name, dp, 1, tp, cast), answers_of);
        // Another copy of the model has each slice too.
        assert_eq!(alone_bytes > 0, dp == 1);
    }
}

/// One process for each rank, all on one host: what each reads by itself nobody else reads, and of the rest every byte that anybody
/// wants in stripes is read ahead once.
fn share((plan, catalog): (Plan, Catalog), answers_of: fn(u32) -> Answers) -> u32 {
    let casts = Casts::new(&plan, &catalog).unwrap();
    let batches = Batches::new(&plan, &catalog).unwrap();
    let world = plan.mesh.world_size();
    let neighbours: Vec<u32> = (0..world).collect();
    // By tensor and byte: how often it is read alone, read with others, and read ahead.
    let mut touched: BTreeMap<(usize, u64), [u32; 3]> = BTreeMap::new();
    let mut stripes = BTreeSet::new();
    for rank in 0..world {
        let schedules = [Schedule::new(&plan, &catalog, rank).unwrap()];
        for tensor in schedules[0].tensors() {
            if tensor.pieces().iter().flat_map(|piece| &piece.rows).any(|rows| rows.runs > 1) {
                stripes.insert(tensor.id);
            }
        }
        let pass = Pass::new(&schedules, &|_, at| at + 5000, &batches, (&catalog, &casts), answers_of(world));
        let mut pass = pass.beside(&neighbours);
        pass.grain = Grain { block: 700, least_alone: 300 };
        for unit in &pass.units {
            let mut count = |tensor: usize, run: Range<u64>, kind: usize| {
                run.for_each(|at| touched.entry((tensor, at)).or_default()[kind] += 1);
            };
            for span in &unit.spans {
                let with_others = pass.wanted_with_others(span);
                // The same bytes, in order.
                let mut joined: Vec<Range<u64>> = Vec::new();
                for (run, shared) in with_others {
                    count(pass.tensors[span.tensor].id, run.clone(), usize::from(shared));
                    match joined.last_mut() {
                        Some(last) if last.end == run.start => last.end = run.end,
                        _ => joined.push(run),
                    }
                }
                assert_eq!(joined, pass.wanted(span));
            }
            pass.read_ahead(unit).into_iter().for_each(|(tensor, run)| count(tensor, run, 2));
        }
    }
    let (mut alone_bytes, mut striped_bytes) = (0, 0);
    for ((tensor, at), [alone, shared, ahead]) in touched {
        let what = format!("tensor {tensor}, byte {at}: alone {alone}, shared {shared}, ahead {ahead}");
        assert!(alone == 0 || (alone, shared, ahead) == (1, 0, 0), "{what}");
        let striped = shared > 0 && stripes.contains(&tensor);
        assert_eq!(ahead, u32::from(striped), "{what}");
        alone_bytes += alone;
        striped_bytes += ahead;
    }
    assert!(striped_bytes > 0);
    alone_bytes
}

#[test]
fn a_process_that_has_all_ranks_of_a_host_shares_nothing() {
    let (plan, catalog) = planned("llama-bf16", 1, 1, 2);
    let batches = Batches::new(&plan, &catalog).unwrap();
    let schedules = [0, 1].map(|rank| Schedule::new(&plan, &catalog, rank).unwrap());
    let casts = Casts::none(&catalog);
    let pass = Pass::new(
        &schedules,
        &|_, at| at + 5000,
        &batches,
        (&catalog, &casts),
        Answers::WithOthers { world: 2 },
    );
    let pass = pass.beside(&[0, 1]);
    for unit in &pass.units {
        assert_eq!(pass.read_ahead(unit), []);
        assert!(unit.spans.iter().flat_map(|span| pass.wanted_with_others(span)).all(|(_, shared)| !shared));
    }
}

#[test]
fn little_is_read_in_vain_however_thin_the_slices_are() {
    let (plan, catalog) = planned("llama-bf16", 1, 1, 8);
    let batches = Batches::new(&plan, &catalog).unwrap();
    let schedules = [Schedule::new(&plan, &catalog, 3).unwrap()];
    let pass = Pass::new(
        &schedules,
        &|_, at| at + (1 << 20),
        &batches,
        (&catalog, &Casts::none(&catalog)),
        Answers::ForItself,
    );
    let read: u64 = pass
        .units
        .iter()
        .flat_map(|unit| &unit.spans)
        .flat_map(|span| pass.wanted(span))
        .map(|run| run.end - run.start)
        .sum();
    let whole: u64 = catalog.tensors().iter().map(|tensor| tensor.bytes.len()).sum();
    // Rows of this small model lie within a page of each other.
    assert!(read >= schedules[0].copied_bytes() && read <= whole);
}

#[test]
fn embeddings_come_first_layers_in_their_order_and_the_head_last() {
    let (plan, catalog) = planned("llama-bf16", 1, 1, 2);
    let schedule = Schedule::new(&plan, &catalog, 0).unwrap();
    let names: Vec<&str> = schedule.tensors().map(|tensor| &*catalog.tensors()[tensor.id].name).collect();
    assert!(names[0].contains("embed_tokens"), "{names:?}");
    let layers: Vec<u32> = names
        .iter()
        .filter_map(|name| name.split("layers.").nth(1)?.split('.').next()?.parse().ok())
        .collect();
    assert!(layers.is_sorted() && layers.len() > 2);
    assert!(
        names
            .iter()
            .skip_while(|name| !name.contains("layers."))
            .skip_while(|name| name.contains("layers."))
            .count()
            >= 1
    );
    let ends = schedule.tensors().map(|tensor| tensor.offset + tensor.held().bytes);
    assert!(ends.zip(schedule.tensors().skip(1)).all(|(end, next)| end <= next.offset));
}
