//! Numbers as the page shows them.

/// Digits in groups of three, with narrow spaces that do not break.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut shown = String::with_capacity(digits.len() * 2);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            shown.push('\u{202f}');
        }
        shown.push(digit);
    }
    shown
}

/// A number of which `u64::MAX` means any.
pub(super) fn many(number: u64) -> String {
    if number == u64::MAX { "any".to_owned() } else { grouped(number) }
}

/// A number that may be unknown.
pub(super) fn known(number: Option<f64>, decimals: usize) -> String {
    let shown = |number: f64| match decimals {
        0 => grouped(whole(number)),
        _ => format!("{number:.decimals$}"),
    };
    number.map_or("–".to_owned(), shown)
}

/// Seconds in the unit that fits.
pub(super) fn time(seconds: f64) -> String {
    match seconds {
        0.0..1.0 => format!("{:.1} ms", seconds * 1e3),
        _ => format!("{seconds:.2} s"),
    }
}

/// A number of things that was worked out as a fraction.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub(super) fn whole(number: f64) -> u64 {
    number.max(0.0).round() as u64
}

/// A part of a whole.
#[allow(clippy::cast_precision_loss)]
pub(super) fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_numbers_are_grouped() {
        let plain = |number| grouped(number).replace('\u{202f}', " ");
        assert_eq!([0, 999, 1000, 1_392_624].map(plain), ["0", "999", "1 000", "1 392 624"]);
        assert_eq!(
            (many(u64::MAX), known(None, 1), known(Some(1.25), 1)),
            ("any".into(), "–".into(), "1.2".into())
        );
        assert_eq!((time(0.0189), time(2.5)), ("18.9 ms".into(), "2.50 s".into()));
    }
}
