//! A scene as SVG. Text is escaped by the `svg` crate.

use super::scene::{Anchor, Ink, Item, Look, Scene};
use shardwright_planner::{quote::escaped, topology::EdgeKind};
use svg::{
    Document,
    node::element::{Circle, Path, Rectangle, Text, Title, path::Data},
};

const INK: &str = "#1b1f24";
const FAINT: &str = "#57606a";

/// Light fills on which dark text is read, told apart by people of any colour vision where neighbours differ: Paul Tol's light
/// and pale schemes (<https://sronpersonalpages.nl/~pault/>).
const GROUPS: [&str; 12] = [
    "#99ddff", "#ffaabb", "#bbcc33", "#eedd88", "#77aadd", "#ee8866", "#44bb99", "#dddddd", "#bbccee",
    "#ccddaa", "#eeeebb", "#ffcccc",
];

/// Radius of the corners of lines.
const CORNER: f64 = 9.0;

/// The text of the file. `about` is for those who cannot see it.
pub(super) fn write(scene: &Scene, about: &str) -> String {
    format!("{}\n", document(scene, about))
}

/// The picture as a part of a page: as wide as it was laid out, where the page has that much room.
pub(super) fn element(scene: &Scene, about: &str) -> String {
    document(scene, about).set("width", number(scene.width)).to_string()
}

fn document(scene: &Scene, about: &str) -> Document {
    let mut document = Document::new()
        .set("viewBox", (0, 0, number(scene.width), number(scene.height)))
        .set("role", "img")
        .set(
            "font-family",
            "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif",
        )
        .add(Title::new(escaped(about)))
        .add(Rectangle::new().set("width", "100%").set("height", "100%").set("fill", "#ffffff"));
    for item in scene.items() {
        document = match item {
            Item::Box { rect, look, radius } => document.add(
                Rectangle::new()
                    .set("class", class(*look))
                    .set("x", number(rect.x))
                    .set("y", number(rect.y))
                    .set("width", number(rect.w))
                    .set("height", number(rect.h))
                    .set("rx", number(*radius))
                    .set("fill", fill(*look))
                    .set("stroke", stroke(*look))
                    .set("stroke-width", if matches!(look, Look::Outline(_)) { 2.5 } else { 1.2 }),
            ),
            Item::Text { x, y, text, font, anchor } => {
                let mut element = Text::new(text.as_str())
                    .set("x", number(*x))
                    .set("y", number(*y))
                    .set("font-size", number(font.size))
                    .set("fill", ink(font.ink));
                if font.bold {
                    element = element.set("font-weight", 600);
                }
                if let Some(anchor) = anchor_word(*anchor) {
                    element = element.set("text-anchor", anchor);
                }
                document.add(element)
            }
            Item::Line { points, kind, width, hops } => {
                if *hops {
                    let gap = Path::new().set("d", rounded(points)).set("fill", "none");
                    document = document
                        .add(gap.set("stroke", fill(Look::Frame)).set("stroke-width", number(width + 7.0)));
                }
                let mut line = Path::new()
                    .set("d", rounded(points))
                    .set("fill", "none")
                    .set("stroke", colour(*kind))
                    .set("stroke-width", number(*width));
                if let Some(dashes) = dashes(*kind) {
                    line = line.set("stroke-dasharray", dashes);
                }
                document.add(line)
            }
            Item::Dot { x, y, kind } => document.add(
                Circle::new()
                    .set("cx", number(*x))
                    .set("cy", number(*y))
                    .set("r", 3.2)
                    .set("fill", colour(*kind)),
            ),
        };
    }
    document
}

/// To a tenth, so that files are the same everywhere.
fn number(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// Okabe and Ito's colours, which people of any colour vision tell apart; darker where thin lines need it.
fn colour(kind: EdgeKind) -> &'static str {
    match kind {
        EdgeKind::Nvlink => "#00805e",
        EdgeKind::Xgmi => "#c04d00",
        EdgeKind::Pcie => "#0072b2",
        EdgeKind::Socket => "#b07800",
        EdgeKind::Memory => "#57606a",
        EdgeKind::Network => "#9b3f7a",
    }
}

/// Colour is not the only sign.
fn dashes(kind: EdgeKind) -> Option<&'static str> {
    match kind {
        EdgeKind::Nvlink | EdgeKind::Pcie => None,
        EdgeKind::Xgmi => Some("14 3"),
        EdgeKind::Socket => Some("9 3 2 3"),
        EdgeKind::Memory => Some("2 3"),
        EdgeKind::Network => Some("6 4"),
    }
}

/// For whoever styles or reads the file.
fn class(look: Look) -> &'static str {
    match look {
        Look::Frame | Look::Outer | Look::Domain(_) => "frame",
        Look::Gpu | Look::Idle | Look::Group(_) => "gpu",
        Look::Hub => "hub",
        Look::Socket => "socket",
        Look::Nic => "nic",
        Look::Solid(EdgeKind::Network) => "network",
        Look::Solid(_) | Look::Outline(_) => "fabric",
        Look::Swatch(_) => "legend",
        Look::Plate => "plate",
    }
}

fn fill(look: Look) -> &'static str {
    match look {
        Look::Frame => "#f6f8fa",
        Look::Gpu => "#d9ead3",
        Look::Idle | Look::Outline(_) | Look::Plate | Look::Outer | Look::Domain(_) => "#ffffff",
        Look::Group(group) | Look::Swatch(group) => GROUPS[group as usize % GROUPS.len()],
        Look::Hub => "#dceaf5",
        Look::Socket => "#e7e9ec",
        Look::Nic => "#f3e3ee",
        Look::Solid(kind) => colour(kind),
    }
}

fn stroke(look: Look) -> &'static str {
    match look {
        Look::Frame | Look::Outer => "#c4cad1",
        Look::Solid(kind) | Look::Outline(kind) | Look::Domain(kind) => colour(kind),
        Look::Plate => "none",
        Look::Hub => colour(EdgeKind::Pcie),
        Look::Nic => colour(EdgeKind::Network),
        Look::Gpu | Look::Idle | Look::Group(_) | Look::Socket | Look::Swatch(_) => FAINT,
    }
}

fn ink(ink: Ink) -> &'static str {
    match ink {
        Ink::Dark => INK,
        Ink::Faint => FAINT,
        Ink::Light => "#ffffff",
        Ink::Link(kind) => colour(kind),
    }
}

fn anchor_word(anchor: Anchor) -> Option<&'static str> {
    match anchor {
        Anchor::Start => None,
        Anchor::Middle => Some("middle"),
    }
}

/// A line through `points`, its corners cut round.
fn rounded(points: &[(f64, f64)]) -> Data {
    let mut data = Data::new();
    for (at, &point) in points.iter().enumerate() {
        let (x, y) = (number(point.0), number(point.1));
        data = match (at.checked_sub(1).map(|before| points[before]), points.get(at + 1)) {
            (None, _) => data.move_to((x, y)),
            (_, None) => data.line_to((x, y)),
            (Some(before), Some(&after)) => {
                let towards = |other: (f64, f64)| {
                    let (dx, dy) = (other.0 - point.0, other.1 - point.1);
                    let length = dx.hypot(dy).max(1.0);
                    let part = CORNER.min(length / 2.0) / length;
                    (number(point.0 + dx * part), number(point.1 + dy * part))
                };
                let (start, end) = (towards(before), towards(after));
                data.line_to(start).quadratic_curve_to((x, y, end.0, end.1))
            }
        };
    }
    data
}
