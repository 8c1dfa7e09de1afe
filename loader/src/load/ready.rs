//! Telling an engine what is ready while the rest still arrives.

use super::LoadedTensor;
use crate::device::DeviceMemory;
use std::{fmt, sync::Arc};

/// Tensors of a rank that have arrived.
pub struct Ready<'a> {
    /// The rank.
    pub rank: u32,
    /// The tensors: those of a batch, which are some layers, in the order of their turns. None that is wrong is among them.
    pub tensors: Vec<LoadedTensor<'a>>,
    /// The memory they lie in: whoever keeps it keeps them, even when the load fails later.
    pub memory: &'a Arc<dyn DeviceMemory>,
    /// Whether their fingerprints, summed over all ranks, are those of the files; false where they were not compared.
    pub verified: bool,
}

/// Called for each batch of tensors of each rank, in the order of their turns: embeddings first, then layer by layer. It is called
/// from a thread of the rank, which verifies nothing meanwhile; reading goes on.
///
/// The addresses stay good in the [`LoadedRank`](super::LoadedRank) that loading gives in the end, if it does not fail.
/// To take them in another thread, as an iterator, let it send them through a channel.
#[derive(Clone, Default)]
pub struct OnReady(Option<Arc<Hear>>);

type Hear = dyn Fn(Ready<'_>) + Send + Sync;

impl OnReady {
    /// Calls `hear`.
    pub fn new(hear: impl Fn(Ready<'_>) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(hear)))
    }

    pub(super) fn is_wanted(&self) -> bool {
        self.0.is_some()
    }

    pub(super) fn tell(&self, ready: Ready<'_>) {
        if let Some(hear) = &self.0 {
            hear(ready);
        }
    }
}

impl fmt::Debug for OnReady {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OnReady").field(&self.is_wanted()).finish()
    }
}
