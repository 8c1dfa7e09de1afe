//! Bars of parts of a whole, as SVG whose lengths are shares, so that letters keep their form at any width.

use maud::{Markup, html};

/// One part.
pub(super) struct Part {
    /// What the style colours it by.
    pub(super) class: &'static str,
    /// One letter, for where a name has no room, and for those who see no colours.
    pub(super) letter: char,
    pub(super) name: &'static str,
    /// Of the whole.
    pub(super) share: f64,
    /// The number, with its unit.
    pub(super) value: String,
}

/// Widths of a bar in pixels that letters must fit into: on a telephone and on a screen, where the style tells them apart.
const NARROW: f64 = 300.0;
const WIDE: f64 = 900.0;
/// Of a letter, with some air.
const LETTER: f64 = 8.5;

impl Part {
    /// Whether a text of so many letters goes into this part of a bar.
    fn has_room(&self, letters: usize, width: f64) -> bool {
        self.share * width > (letters + 1) as f64 * LETTER
    }

    /// What stands in it, and where: `wide` is seen on screens alone, `narrow` on telephones.
    fn labels(&self) -> Vec<(&'static str, String)> {
        let (name, letter) = (self.name.to_owned(), self.letter.to_string());
        let length = self.name.chars().count();
        match (self.has_room(length, NARROW), self.has_room(length, WIDE), self.has_room(0, NARROW)) {
            (true, ..) => vec![("", name)],
            (_, true, true) => vec![("wide", name), ("narrow", letter)],
            (_, true, false) => vec![("wide", name)],
            (_, _, true) => vec![("", letter)],
            (_, _, false) => Vec::new(),
        }
    }
}

/// A bar; what lies beyond the mark is over the limit.
pub(super) fn bar(label: &str, parts: &[Part], mark: Option<f64>) -> Markup {
    let percent = |share: f64| format!("{:.3}%", share * 100.0);
    let mut at = 0.0;
    let mut placed = Vec::new();
    for part in parts.iter().filter(|part| part.share > 0.0) {
        placed.push((at, part));
        at += part.share;
    }
    html! {
        svg.bar role="img" aria-label=(label) width="100%" height="40" {
            @for (start, part) in placed {
                rect class=(part.class) x=(percent(start)) y="2" width=(percent(part.share)) height="36" {
                    title { (part.name) ": " (part.value) }
                }
                @for (seen, text) in part.labels() {
                    text class={ (part.class) " " (seen) } x=(percent(start + part.share / 2.0)) y="25" text-anchor="middle" { (text) }
                }
            }
            @if let Some(mark) = mark {
                line.mark x1=(percent(mark)) x2=(percent(mark)) y1="0" y2="40" {}
            }
        }
    }
}

/// A sample of a part's colour, with its letter.
pub(super) fn swatch(part: &Part) -> Markup {
    html! { span class={ "swatch " (part.class) } aria-hidden="true" { (part.letter) } }
}
