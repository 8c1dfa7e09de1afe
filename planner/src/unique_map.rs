//! A map read as a list of pairs in the order of the text, in which no key may stand twice.
//!
//! JSON and YAML libraries let the last of two equal keys win in silence. In a checkpoint that would mean that two tools
//! could load different bytes under one name.

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use std::{collections::HashSet, fmt, marker::PhantomData};

/// The pairs of a map in the order of the text; the keys are all different.
#[derive(Debug)]
pub(crate) struct UniqueMap<V>(pub(crate) Vec<(String, V)>);

/// What the error text of a repeated key begins with, up to the key itself in the JSON library's words.
pub(crate) const REPEATED: &str = "repeated key ";

impl<'de, V: Deserialize<'de>> Deserialize<'de> for UniqueMap<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Pairs(PhantomData))
    }
}

struct Pairs<V>(PhantomData<V>);

impl<'de, V: Deserialize<'de>> Visitor<'de> for Pairs<V> {
    type Value = UniqueMap<V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = map.next_entry::<String, V>()? {
            pairs.push(pair);
        }
        let mut seen = HashSet::with_capacity(pairs.len());
        match pairs.iter().find(|(key, _)| !seen.insert(key.as_str())) {
            Some((key, _)) => Err(repeated(key)),
            None => Ok(UniqueMap(pairs)),
        }
    }
}

/// The error for a key that stands twice.
pub(crate) fn repeated<E: serde::de::Error>(key: &str) -> E {
    E::custom(format!("{REPEATED}{}", crate::quote::quote(key)))
}
