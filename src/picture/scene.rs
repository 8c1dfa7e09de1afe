//! A picture before it is written: rectangles, texts and lines with their places. It knows no machine.

use shardwright_planner::{quote::escaped, topology::EdgeKind};

/// Width of a letter, as a part of its height; a little more than that of most letters of a sans-serif.
const LETTER: f64 = 0.56;

/// What a rectangle is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// Around what belongs together.
    Frame,
    /// Around several of those.
    Outer,
    /// Around nodes that share links of some kind.
    Domain(EdgeKind),
    Gpu,
    /// A GPU on which no rank of the plan runs.
    Idle,
    /// A GPU of the tensor-parallel group of this number.
    Group(u32),
    Hub,
    Socket,
    Nic,
    /// A switch, or a network: filled with the colour of its links.
    Solid(EdgeKind),
    /// What stands for links of each with each: outlined in their colour.
    Outline(EdgeKind),
    /// A sample of a group's colour.
    Swatch(u32),
    /// Behind letters that stand on a line.
    Plate,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rect {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) w: f64,
    pub(super) h: f64,
}

impl Rect {
    pub(super) fn right(&self) -> f64 {
        self.x + self.w
    }

    pub(super) fn bottom(&self) -> f64 {
        self.y + self.h
    }

    pub(super) fn middle(&self) -> f64 {
        self.x + self.w / 2.0
    }

    #[cfg(test)]
    pub(super) fn meets(&self, other: &Self) -> bool {
        self.x < other.right() && other.x < self.right() && self.y < other.bottom() && other.y < self.bottom()
    }
}

/// Which point of a text its place is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Anchor {
    Start,
    Middle,
}

/// How letters look.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Font {
    pub(super) size: f64,
    pub(super) bold: bool,
    pub(super) ink: Ink,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ink {
    Dark,
    Faint,
    Light,
    Link(EdgeKind),
}

pub(super) const TITLE: Font = Font { size: 20.0, bold: true, ink: Ink::Dark };
pub(super) const NAME: Font = Font { size: 13.0, bold: true, ink: Ink::Dark };
pub(super) const PLAIN: Font = Font { size: 12.0, bold: false, ink: Ink::Dark };
pub(super) const FAINT: Font = Font { size: 11.0, bold: false, ink: Ink::Faint };
pub(super) const TINY: Font = Font { size: 9.0, bold: false, ink: Ink::Dark };
pub(super) const ON_SOLID: Font = Font { size: 12.0, bold: true, ink: Ink::Light };

impl Font {
    pub(super) fn of(self, ink: Ink) -> Self {
        Self { ink, ..self }
    }

    /// How wide `text` becomes, at most.
    pub(super) fn width(self, text: &str) -> f64 {
        let letters: f64 =
            text.chars().map(|letter| if letter.is_ascii() { LETTER } else { wide(letter) }).sum();
        letters * self.size * if self.bold { 1.08 } else { 1.0 }
    }

    /// The first of `texts` that fits into `room`, or the last, cut.
    pub(super) fn fit<S: AsRef<str>>(self, texts: &[S], room: f64) -> String {
        let texts: Vec<String> = texts.iter().map(|text| escaped(text.as_ref())).collect();
        if let Some(fits) = texts.iter().find(|text| self.width(text) <= room) {
            return fits.clone();
        }
        let mut text = texts.last().cloned().unwrap_or_default();
        while !text.is_empty() && self.width(&text) + self.width("…") > room {
            text.pop();
        }
        text + "…"
    }
}

/// Signs within the line are narrow; what is not Latin may be as wide as it is high.
fn wide(letter: char) -> f64 {
    match letter {
        '×' | '·' | '–' | '…' => 0.6,
        '\u{0}'..'\u{250}' => 0.65,
        _ => 1.05,
    }
}

#[derive(Debug, Clone)]
pub(super) enum Item {
    Box {
        rect: Rect,
        look: Look,
        radius: f64,
    },
    Text {
        x: f64,
        y: f64,
        text: String,
        font: Font,
        anchor: Anchor,
    },
    /// A line with rounded corners; one that `hops` leaves a gap in what it crosses.
    Line {
        points: Vec<(f64, f64)>,
        kind: EdgeKind,
        width: f64,
        hops: bool,
    },
    Dot {
        x: f64,
        y: f64,
        kind: EdgeKind,
    },
}

/// Everything in a picture, from the back to the front.
#[derive(Debug, Default)]
pub(super) struct Scene {
    pub(super) width: f64,
    pub(super) height: f64,
    frames: Vec<Item>,
    lines: Vec<Item>,
    front: Vec<Item>,
}

impl Scene {
    pub(super) fn items(&self) -> impl Iterator<Item = &Item> {
        self.frames.iter().chain(&self.lines).chain(&self.front)
    }

    pub(super) fn rect(&mut self, rect: Rect, look: Look) {
        let radius = match look {
            Look::Frame | Look::Outer | Look::Domain(_) => 10.0,
            _ if rect.h < 10.0 => 2.0,
            Look::Swatch(_) | Look::Plate => 2.0,
            _ if rect.w < 40.0 => 3.0,
            _ => 6.0,
        };
        let item = Item::Box { rect, look, radius };
        match look {
            Look::Outer => self.frames.insert(0, item),
            Look::Frame | Look::Domain(_) => self.frames.push(item),
            _ => self.front.push(item),
        }
    }

    pub(super) fn line(&mut self, points: Vec<(f64, f64)>, kind: EdgeKind, width: f64) {
        self.lines.push(Item::Line { points, kind, width, hops: false });
    }

    /// A line that crosses those drawn before without touching them.
    pub(super) fn hop(&mut self, points: Vec<(f64, f64)>, kind: EdgeKind, width: f64) {
        self.lines.push(Item::Line { points, kind, width, hops: true });
    }

    pub(super) fn dot(&mut self, x: f64, y: f64, kind: EdgeKind) {
        self.lines.push(Item::Dot { x, y, kind });
    }

    /// A text on the line at `y`, escaped.
    pub(super) fn text(&mut self, x: f64, y: f64, text: &str, font: Font, anchor: Anchor) {
        self.front.push(Item::Text { x, y, text: escaped(text), font, anchor });
    }

    /// A box with lines of text in its middle, each with the shorter words for it that may be needed.
    pub(super) fn labelled(&mut self, rect: Rect, look: Look, lines: &[(Font, Vec<String>)]) {
        self.rect(rect, look);
        let spacing = |font: &Font| font.size * 1.25;
        let height: f64 = lines.iter().map(|(font, _)| spacing(font)).sum();
        let mut y = rect.y + (rect.h - height) / 2.0;
        for (font, texts) in lines {
            let text = font.fit(texts, rect.w - 6.0);
            self.text(rect.middle(), y + font.size, &text, *font, Anchor::Middle);
            y += spacing(font);
        }
    }

    /// Wide enough for everything, and so high.
    pub(super) fn close(&mut self, margin: f64) {
        let right = |item: &Item| match item {
            Item::Box { rect, .. } => (rect.right(), rect.bottom()),
            Item::Text { x, y, text, font, anchor } => {
                let width = font.width(text);
                let right = match anchor {
                    Anchor::Start => *x + width,
                    Anchor::Middle => *x + width / 2.0,
                };
                (right, *y + font.size * 0.3)
            }
            Item::Line { points, width, .. } => {
                points.iter().fold((0.0, 0.0), |(right, bottom): (f64, f64), (x, y)| {
                    (right.max(x + width), bottom.max(y + width))
                })
            }
            Item::Dot { x, y, .. } => (*x, *y),
        };
        let (width, height) =
            self.items().map(right).fold((0.0f64, 0.0f64), |(w, h), (x, y)| (w.max(x), h.max(y)));
        (self.width, self.height) = (width + margin, height + margin);
    }
}
