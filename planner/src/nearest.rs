//! The word that was probably meant.

/// The one of `known` that is most like `name`, if any is near: at most a third of its letters differ.
pub(crate) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    // What is so long is no slip of the finger, and comparing costs the product of the lengths.
    const LONGEST: usize = 64;
    if name.len() > LONGEST {
        return None;
    }
    let distances = known.map(|word| (strsim::damerau_levenshtein(name, word), word));
    let (distance, word) = distances.min()?;
    (distance <= word.chars().count().div_ceil(3)).then(|| word.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_its_word_and_another_word_none() {
        let known = ["gpus", "nodes", "network", "links"];
        assert_eq!(nearest("gpu", known.into_iter()).as_deref(), Some("gpus"));
        assert_eq!(nearest("netwrok", known.into_iter()).as_deref(), Some("network"));
        assert_eq!(nearest("colour", known.into_iter()), None);
        assert_eq!(nearest(&"x".repeat(100), known.into_iter()), None);
    }
}
