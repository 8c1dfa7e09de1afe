//! A timeline of a load, for people who ask where the time went.
//!
//! In come spans from any thread; out goes a file in Chrome's trace format, which Perfetto and `chrome://tracing` draw: one
//! process for each rank, one track for each of its lanes. When nobody asked for one, a span costs nothing.

use crate::collective::{CollectiveError, Communicator, Lifeline, Reduce};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Most spans that are kept; what comes after is counted only.
const MOST_SPANS: usize = 1 << 20;

/// Takes spans, or does nothing.
#[derive(Debug, Clone, Default)]
pub struct Tracer(Option<Arc<Timeline>>);

#[derive(Debug)]
struct Timeline {
    begin: Instant,
    spans: Mutex<Spans>,
}

#[derive(Debug, Default)]
struct Spans {
    kept: Vec<Recorded>,
    lost: u64,
}

#[derive(Debug)]
struct Recorded {
    track: Track,
    name: &'static str,
    start: Duration,
    length: Duration,
}

/// Where a span is drawn.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Track {
    /// The rank whose work it is.
    pub rank: u32,
    /// Which of its lanes: `reader 0`, `copies`.
    pub lane: String,
}

/// A span that ends when it is dropped.
#[must_use]
#[derive(Debug)]
pub struct Span<'a> {
    timeline: Option<(&'a Timeline, &'a Track, &'static str, Instant)>,
}

impl Tracer {
    /// One that keeps spans.
    pub fn on() -> Self {
        Self(Some(Arc::new(Timeline { begin: Instant::now(), spans: Mutex::default() })))
    }

    /// Whether it keeps spans.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Begins a span.
    pub fn span<'a>(&'a self, track: &'a Track, name: &'static str) -> Span<'a> {
        Span { timeline: self.0.as_deref().map(|timeline| (timeline, track, name, Instant::now())) }
    }

    /// Adds a span whose ends are known.
    pub fn add(&self, track: &Track, name: &'static str, start: Instant, length: Duration) {
        if let Some(timeline) = &self.0 {
            timeline.add(track, name, start, length);
        }
    }

    /// The timeline so far, in Chrome's trace format; `None` from one that keeps nothing.
    pub fn to_json(&self) -> Option<Value> {
        let timeline = self.0.as_ref()?;
        let spans = timeline.spans.lock().unwrap_or_else(PoisonError::into_inner);
        let mut tracks: BTreeMap<&Track, usize> = spans.kept.iter().map(|span| (&span.track, 0)).collect();
        (1..).zip(tracks.values_mut()).for_each(|(number, track)| *track = number);
        let micros = |time: Duration| time.as_nanos() as f64 / 1000.0;
        let mut events: Vec<Value> = tracks
            .iter()
            .flat_map(|(track, number)| {
                let named = |kind, pid, name| {
                    json!({ "ph": "M", "name": kind, "pid": pid, "tid": number, "args": { "name": name } })
                };
                [
                    named("process_name", track.rank, format!("rank {}", track.rank)),
                    named("thread_name", track.rank, track.lane.clone()),
                ]
            })
            .collect();
        events.extend(spans.kept.iter().map(|span| {
            json!({
                "ph": "X",
                "name": span.name,
                "pid": span.track.rank,
                "tid": tracks.get(&span.track),
                "ts": micros(span.start),
                "dur": micros(span.length),
            })
        }));
        let other = json!({ "spans left out": spans.lost });
        Some(json!({ "traceEvents": events, "displayTimeUnit": "ms", "otherData": other }))
    }
}

impl Timeline {
    fn add(&self, track: &Track, name: &'static str, start: Instant, length: Duration) {
        let mut spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        if spans.kept.len() >= MOST_SPANS {
            spans.lost += 1;
            return;
        }
        let start = start.saturating_duration_since(self.begin);
        spans.kept.push(Recorded { track: track.clone(), name, start, length });
    }
}

/// A rank's end of the group whose calls are drawn.
pub(crate) struct Traced<'a> {
    inner: &'a mut dyn Communicator,
    tracer: &'a Tracer,
    track: &'a Track,
}

impl<'a> Traced<'a> {
    pub(crate) fn new(inner: &'a mut dyn Communicator, tracer: &'a Tracer, track: &'a Track) -> Self {
        Self { inner, tracer, track }
    }
}

impl Communicator for Traced<'_> {
    fn rank(&self) -> u32 {
        self.inner.rank()
    }

    fn world_size(&self) -> u32 {
        self.inner.world_size()
    }

    fn all_reduce(&mut self, values: &mut [u64], reduce: Reduce) -> Result<(), CollectiveError> {
        let _span = self.tracer.span(self.track, "all-reduce");
        self.inner.all_reduce(values, reduce)
    }

    fn lifeline(&self) -> Lifeline {
        self.inner.lifeline()
    }

    fn abort(&mut self, reason: &str) {
        self.inner.abort(reason);
    }
}

impl Drop for Span<'_> {
    fn drop(&mut self) {
        if let Some((timeline, track, name, start)) = self.timeline.take() {
            timeline.add(track, name, start, start.elapsed());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_drawn_on_their_tracks() {
        let tracer = Tracer::on();
        let tracks =
            [(0, "reader 0"), (1, "copies")].map(|(rank, lane)| Track { rank, lane: lane.to_owned() });
        for track in &tracks {
            drop(tracer.span(track, "read"));
        }
        let json = tracer.to_json().unwrap();
        let events = json["traceEvents"].as_array().unwrap();
        let spans: Vec<_> = events.iter().filter(|event| event["ph"] == "X").collect();
        assert_eq!(spans.len(), 2);
        assert_eq!((&spans[1]["pid"], &spans[1]["name"]), (&json!(1), &json!("read")));
        let names: Vec<_> = events.iter().filter(|event| event["name"] == "thread_name").collect();
        assert_eq!((&names[1]["args"]["name"], &names[1]["tid"]), (&json!("copies"), &spans[1]["tid"]));
    }

    #[test]
    fn without_a_timeline_nothing_is_kept() {
        let tracer = Tracer::default();
        drop(tracer.span(&Track { rank: 0, lane: String::new() }, "read"));
        assert_eq!(tracer.to_json(), None);
    }
}
