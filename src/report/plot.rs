//! All layouts that run, as points: how soon the next token comes, and how many come in all.

use super::{
    Report, fits, in_words,
    numbers::{grouped, known},
};
use maud::{Markup, html};
use shardwright_planner::{layouts::Judged, size::count};

/// The picture, and the part of it that points lie in.
const SIZE: (f64, f64) = (1000.0, 360.0);
const LEFT: f64 = 70.0;
const RIGHT: f64 = SIZE.0 - 24.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = SIZE.1 - 44.0;

/// A layout's place: milliseconds to the next token, tokens a second.
struct Point<'a> {
    judged: &'a Judged,
    wait: f64,
    rate: f64,
}

/// The figure; nothing where fewer than two layouts run.
pub(super) fn figure(report: &Report<'_>) -> Markup {
    let point = |judged| {
        let judged: &Judged = judged;
        let speed = judged.speed.filter(|_| fits(judged))?;
        Some(Point { judged, wait: speed.seconds_per_token * 1e3, rate: speed.tokens_per_second })
    };
    let points: Vec<Point<'_>> = report.layouts.judged.iter().filter_map(point).collect();
    if points.len() < 2 {
        return html! {};
    }
    let across = Axis::of(points.iter().map(|point| point.wait), LEFT, RIGHT);
    let up = Axis::of(points.iter().map(|point| point.rate), BOTTOM, TOP);
    let most = points.iter().map(|point| point.judged.gpus()).max().unwrap_or(1);
    html! {
        figure {
            figcaption { "Further left is sooner, further up is more; larger points take more GPUs, filled ones are Pareto" }
            div.scroll.plot tabindex="0" role="region" aria-label="plot of all layouts" {
                svg role="img" aria-label="tokens a second of each layout over its time to the next token; the table has the same numbers" viewBox={ "0 0 " (SIZE.0) " " (SIZE.1) } {
                    @for (value, x) in across.ticks() {
                        line.grid x1=(at(x)) x2=(at(x)) y1=(TOP) y2=(BOTTOM) {}
                        text x=(at(x)) y=(BOTTOM + 18.0) text-anchor="middle" { (short(value)) }
                    }
                    @for (value, y) in up.ticks() {
                        line.grid x1=(LEFT) x2=(RIGHT) y1=(at(y)) y2=(at(y)) {}
                        text x=(LEFT - 8.0) y=(at(y + 4.0)) text-anchor="end" { (short(value)) }
                    }
                    text x=(at((LEFT + RIGHT) / 2.0)) y=(SIZE.1 - 6.0) text-anchor="middle" { "ms to the next token" }
                    text transform={ "translate(14 " (at((TOP + BOTTOM) / 2.0)) ") rotate(-90)" } text-anchor="middle" { "tokens/s in all" }
                    // The better ones are drawn last, over the others.
                    @for point in points.iter().rev() {
                        circle.dot.serving[point.judged.serves()].pareto[point.judged.pareto]
                            cx=(at(across.place(point.wait))) cy=(at(up.place(point.rate))) r=(at(radius(point.judged.gpus(), most))) {
                            title { (title(point)) }
                        }
                    }
                    (first(&points, &across, &up))
                }
            }
        }
    }
}

/// The name of the best layout, beside its point.
fn first(points: &[Point<'_>], across: &Axis, up: &Axis) -> Markup {
    let Some(point) = points.first() else { return html! {} };
    let x = across.place(point.wait);
    let is_left = x < (LEFT + RIGHT) / 2.0;
    let anchor = if is_left { "start" } else { "end" };
    let layout = point.judged.layout;
    html! {
        text.first x=(at(x)) y=(at(up.place(point.rate) - 14.0)) text-anchor=(anchor) {
            "tp " (layout.tp) " × pp " (layout.pp) " × dp " (layout.dp)
        }
    }
}

fn title(point: &Point<'_>) -> String {
    format!(
        "{}, {}: {} ms to the next token, {} tokens/s",
        in_words(point.judged.layout),
        count(point.judged.gpus().into(), "GPU"),
        known(Some(point.wait), 1),
        known(Some(point.rate), 0)
    )
}

/// A point's radius: its area grows with the number of GPUs.
fn radius(gpus: u32, most: u32) -> f64 {
    3.5 + 6.0 * (f64::from(gpus) / f64::from(most)).sqrt()
}

/// A place to a tenth, so that pages are the same everywhere.
fn at(place: f64) -> f64 {
    (place * 10.0).round() / 10.0
}

/// A number at a grid line.
fn short(value: f64) -> String {
    if value < 1.0 { value.to_string() } else { grouped(super::numbers::whole(value)) }
}

/// A logarithmic axis.
struct Axis {
    least: f64,
    most: f64,
    from: f64,
    to: f64,
}

impl Axis {
    /// From `from` to `to`, with some air around `values`.
    fn of(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let positive = values.filter(|value| value.is_finite() && *value > 0.0);
        let (least, most) = positive
            .fold((f64::INFINITY, 0.0f64), |(least, most), value| (least.min(value), most.max(value)));
        let (least, most) = if least.is_finite() { (least, most) } else { (1.0, 1.0) };
        Self { least: least / 1.15, most: most * 1.15, from, to }
    }

    fn place(&self, value: f64) -> f64 {
        let share = (value.max(self.least) / self.least).ln() / (self.most / self.least).ln();
        self.from + (self.to - self.from) * share.min(1.0)
    }

    /// Round numbers on it, each with its place: 1, 2 and 5 of each decade, or fewer where there are many decades.
    fn ticks(&self) -> Vec<(f64, f64)> {
        let decades = (self.most / self.least).log10();
        let steps: &[f64] = if decades > 2.5 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let mut decade = 10f64.powf(self.least.log10().floor());
        let mut ticks = Vec::new();
        while decade <= self.most && ticks.len() < 40 {
            let inside =
                steps.iter().map(|step| step * decade).filter(|tick| (self.least..=self.most).contains(tick));
            ticks.extend(inside.map(|tick| (tick, self.place(tick))));
            decade *= 10.0;
        }
        ticks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_lie_on_their_axis_in_order() {
        let axis = Axis::of([15.8, 20.0, 260.0].into_iter(), 0.0, 100.0);
        let places: Vec<f64> = [15.8, 20.0, 260.0].into_iter().map(|value| axis.place(value)).collect();
        assert!(places.is_sorted() && places[0] > 0.0 && places[2] < 100.0, "{places:?}");
        let ticks: Vec<String> = axis.ticks().into_iter().map(|(value, _)| short(value)).collect();
        assert_eq!(ticks, ["20", "50", "100", "200"]);
    }

    #[test]
    fn what_is_alike_or_absurd_has_an_axis_too() {
        for values in [vec![], vec![5.0, 5.0], vec![f64::INFINITY, 0.0], vec![1e-300, 1e300]] {
            let axis = Axis::of(values.iter().copied(), 0.0, 100.0);
            assert!(values.iter().all(|value| axis.place(*value).is_finite()), "{values:?}");
            assert!(axis.ticks().len() <= 42);
        }
    }
}
