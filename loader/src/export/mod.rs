//! A rank's slices into files, on any machine.
//!
//! In come a rank's schedule and what is to lie in its files; out goes a [`FileDevice`], whose memory is those files. So exporting is
//! loading: all ranks in one pass over the source, in bounded memory, and verifying reads back what was written. It knows no name of
//! any engine.

mod device;
mod layout;

pub use device::FileDevice;
pub use layout::{Content, ExportError, FileTensor, RankFiles};
