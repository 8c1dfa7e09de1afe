//! Opaque handles, which stay wrong once they are destroyed.
//!
//! A handle is a number that no other object had before it, in a range of its kind: a stream where an event belongs, or a
//! handle used after its end, is found instead of followed.

use crate::lock::lock;
use std::{
    collections::HashMap,
    ptr,
    sync::{Arc, Mutex},
};

/// The objects of one kind that are alive.
pub(crate) struct Handles<T> {
    kind: usize,
    alive: Mutex<Option<Alive<T>>>,
}

struct Alive<T> {
    made: usize,
    by_handle: HashMap<usize, Arc<T>>,
}

impl<T> Handles<T> {
    /// None yet. `kind` differs from that of all others.
    pub(crate) const fn new(kind: usize) -> Self {
        Self { kind, alive: Mutex::new(None) }
    }

    fn with<R>(&self, act: impl FnOnce(&mut Alive<T>) -> R) -> R {
        act(lock(&self.alive).get_or_insert_with(|| Alive { made: 0, by_handle: HashMap::new() }))
    }

    /// A handle for what `make` makes of it.
    pub(crate) fn add<P>(&self, make: impl FnOnce(*mut P) -> Arc<T>) -> (*mut P, Arc<T>) {
        let handle = self.with(|alive| {
            alive.made += 1;
            (self.kind << 40) + (alive.made << 4)
        });
        let made = make(ptr::without_provenance_mut(handle));
        self.with(|alive| alive.by_handle.insert(handle, Arc::clone(&made)));
        (ptr::without_provenance_mut(handle), made)
    }

    /// The object of `handle`, if it is alive.
    pub(crate) fn find<P>(&self, handle: *mut P) -> Option<Arc<T>> {
        self.with(|alive| alive.by_handle.get(&handle.addr()).cloned())
    }

    /// Ends `handle`.
    pub(crate) fn remove<P>(&self, handle: *mut P) -> Option<Arc<T>> {
        self.with(|alive| alive.by_handle.remove(&handle.addr()))
    }

    /// Ends all that `ends` says, and tells which.
    pub(crate) fn remove_all(&self, ends: impl Fn(&T) -> bool) -> Vec<Arc<T>> {
        self.with(|alive| {
            let gone: Vec<usize> = alive
                .by_handle
                .iter()
                .filter(|(_, object)| ends(object))
                .map(|(handle, _)| *handle)
                .collect();
            gone.iter().filter_map(|handle| alive.by_handle.remove(handle)).collect()
        })
    }

    /// All that are alive and for which `belongs` is true.
    pub(crate) fn all(&self, belongs: impl Fn(&T) -> bool) -> Vec<Arc<T>> {
        self.with(|alive| alive.by_handle.values().filter(|object| belongs(object)).cloned().collect())
    }
}
