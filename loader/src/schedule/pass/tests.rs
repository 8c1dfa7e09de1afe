//! Passes of real plans, carried out byte by byte.

use super::*;
use crate::fixture::{planned, planned_as};
use shardwright_planner::plan::CastDtype;
use std::collections::BTreeMap;

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
            assert_eq!(tensor.batch, unit.batch);
            let wanted = pass.wanted(span);
            assert!(wanted.windows(2).all(|pair| pair[0].end < pair[1].start));
            let is_wanted = |at: u64| wanted.iter().any(|range| range.contains(&at));
            for range in &wanted {
                assert!(range.start >= span.bytes.start && range.end <= span.bytes.end);
                range.clone().for_each(|at| *touched.read.entry((tensor.id, at)).or_default() += 1);
            }
            for run in &tensor.answered {
                for at in run.start.max(span.bytes.start)..run.end.min(span.bytes.end) {
                    assert!(is_wanted(at));
                    *touched.summed.entry((tensor.id, at)).or_default() += 1;
                }
            }
            for &place in &tensor.places {
                for piece in &pass.placed(place).pieces {
                    for rows in Pass::rows(piece, span.bytes.clone()) {
                        for run in 0..rows.runs {
                            for byte in 0..rows.run_bytes {
                                assert!(is_wanted(rows.from + run * rows.from_stride + byte));
                                let to = rows.to + run * rows.to_stride + byte;
                                assert!(unit.windows[place.seat].contains(&to));
                                let rank = schedules[place.seat].rank;
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
        for (dp, pp, tp, cast) in [
            (1, 1, 1, None),
            (1, 1, 4, None),
            (2, 2, 2, None),
            (1, 1, 4, Some(CastDtype::F16)),
            (2, 1, 2, Some(CastDtype::F32)),
        ] {
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
                    let pass = Pass::new(&schedules, &windows, &batches, (&catalog, &casts), answers);
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
fn little_is_read_in_vain_however_thin_the_slices_are() {
    let (plan, catalog) = planned("llama-bf16", 1, 1, 8);
    let batches = Batches::new(&plan, &catalog).unwrap();
    let schedules = [Schedule::new(&plan, &catalog, 3).unwrap()];
    let pass =
        Pass::new(&schedules, &[1 << 20], &batches, (&catalog, &Casts::none(&catalog)), Answers::ForItself);
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
    let names: Vec<&str> = schedule.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
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
    assert!(schedule.tensors.windows(2).all(|pair| pair[0].offset + pair[0].bytes <= pair[1].offset));
}
