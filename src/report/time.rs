//! Where the time of a decode step goes.

use super::chart::{Part, bar, swatch};
use maud::{Markup, html};
use shardwright_planner::serving::{Speed, StepTime};

/// The section.
pub(super) fn section(speed: &Speed) -> Markup {
    let step = speed.decode;
    let parts = parts(&step);
    let total = format!("{:.3}", step.total() * 1e3);
    html! {
        section aria-labelledby="time" {
            h2 #time { "A decode step" }
            figure {
                figcaption { strong { (total) " ms" } " of the slowest stage: memory is read while cores multiply, collectives wait for both" }
                (bar(&format!("a decode step of {total} ms"), &parts, None))
            }
            div.scroll tabindex="0" role="region" aria-label="terms of a decode step" {
                table.terms {
                    thead { tr { th scope="col" { "term" } th.number scope="col" { "ms" } th.number scope="col" { "%" } } }
                    tbody {
                        @for part in &parts {
                            tr {
                                th scope="row" { (swatch(part)) (part.name) }
                                td.number { (part.value) }
                                td.number { (format!("{:.1}", part.share * 100.0)) }
                            }
                        }
                    }
                    tfoot { tr { th scope="row" { "a step" } td.number { (total) } td.number { "100.0" } } }
                }
            }
        }
    }
}

/// What adds up to a step: of multiplying only what takes longer than reading, meanwhile.
fn parts(step: &StepTime) -> [Part; 7] {
    let beyond = (step.compute - step.weights - step.cache).max(0.0);
    let total = step.total();
    let part = |class, letter, name, seconds: f64| Part {
        class,
        letter,
        name,
        share: if total > 0.0 { seconds / total } else { 0.0 },
        value: format!("{:.3}", seconds * 1e3),
    };
    [
        part("weights", 'W', "reading weights", step.weights),
        part("cache", 'K', "reading the KV cache", step.cache),
        part("runtime", 'M', "multiplying, beyond reading", beyond),
        part("communicators", 'N', "collectives", step.collectives),
        part("activations", 'X', "tokens to experts and back", step.experts),
        part("graphs", 'P', "to the next stage", step.send),
        part("reserve", 'O', "kernels that start, the engine", step.overhead),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_add_up_to_the_step() {
        for compute in [0.001, 0.1] {
            let step = StepTime {
                weights: 0.01,
                cache: 0.02,
                compute,
                collectives: 0.003,
                experts: 0.004,
                send: 0.001,
                overhead: 0.002,
            };
            let sum: f64 = parts(&step).iter().map(|part| part.share).sum();
            assert!((sum - 1.0).abs() < 1e-9, "{sum}");
        }
    }
}
