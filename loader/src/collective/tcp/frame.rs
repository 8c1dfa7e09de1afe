//! What two processes say to each other, as bytes.
//!
//! A frame is its length (32 bits, of all that follows), its kind (8 bits) and the kind's fields, little-endian. An array goes
//! as parts of at most [`PART_VALUES`] numbers, so that a failure never has to wait behind a long one.

use crate::collective::{CollectiveError, Reduce};

/// Most numbers of one call.
pub(crate) const MAX_VALUES: usize = 64 << 20;

/// Most numbers of one part.
pub(crate) const PART_VALUES: usize = 64 << 10;

/// Bytes of a part before its numbers: kind, call, reduction, total.
const PART_HEAD: usize = 1 + 8 + 1 + 4;

/// Longest frame, without its length.
pub(crate) const MAX_FRAME_BYTES: usize = PART_HEAD + PART_VALUES * 8;

/// Longest failure: a reason and its frame, as JSON may write them.
const MAX_FAILURE_BYTES: usize = 8 << 10;

const BEAT: u8 = 1;
const PART: u8 = 2;
const FAILED: u8 = 3;
const BYE: u8 = 4;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    /// How often the sender's rank has said that it gets on.
    Beat(u64),
    /// Some of the numbers of a call, or of its result.
    Part(Part),
    /// The group has failed.
    Failed(CollectiveError),
    /// The sender ends, as it should.
    Bye,
}

/// Some of the numbers of a call; parts come in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    /// Which call, counted from 0.
    pub(crate) call: u64,
    /// How its numbers are combined.
    pub(crate) reduce: Reduce,
    /// Numbers of the whole call.
    pub(crate) total: u32,
    /// Those of this part.
    pub(crate) values: Vec<u64>,
}

/// Bytes that are no frame, or a frame that makes no sense where it stands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("it sent a frame of {bytes} bytes; the longest has {MAX_FRAME_BYTES}")]
    Length { bytes: u32 },
    #[error("it sent a frame of unknown kind {kind}")]
    Kind { kind: u8 },
    #[error("it sent a broken frame of kind {kind}")]
    Broken { kind: u8 },
    #[error("it sent a part of call {found} where one of call {expected} was due")]
    Call { expected: u64, found: u64 },
    #[error("it sent parts that do not belong together")]
    Parts,
}

impl Frame {
    /// Writes the frame, with its length, to the end of `bytes`.
    pub(crate) fn encode(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Beat(count) => framed(bytes, BEAT, |body| body.extend(count.to_le_bytes())),
            Self::Part(Part { call, reduce, total, values }) => {
                encode_part(bytes, *call, *reduce, *total, values);
            }
            Self::Failed(failure) => framed(bytes, FAILED, |body| {
                // It always can be: no map, no borrowed bytes.
                body.extend(serde_json::to_vec(failure).unwrap_or_default());
            }),
            Self::Bye => framed(bytes, BYE, |_| ()),
        }
    }

    /// Reads a frame from the bytes after its length.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, FrameError> {
        let too_long = FrameError::Length { bytes: u32::try_from(bytes.len()).unwrap_or(u32::MAX) };
        let (&kind, body) = bytes.split_first().ok_or_else(|| too_long.clone())?;
        if bytes.len() > MAX_FRAME_BYTES {
            return Err(too_long);
        }
        let broken = FrameError::Broken { kind };
        match kind {
            BEAT => body.try_into().map(|count| Self::Beat(u64::from_le_bytes(count))).map_err(|_| broken),
            PART => part(body).map(Self::Part).ok_or(broken),
            FAILED if body.len() <= MAX_FAILURE_BYTES => serde_json::from_slice::<CollectiveError>(body)
                .ok()
                .and_then(CollectiveError::checked)
                .map(Self::Failed)
                .ok_or(broken),
            BYE if body.is_empty() => Ok(Self::Bye),
            FAILED | BYE => Err(broken),
            _ => Err(FrameError::Kind { kind }),
        }
    }
}

/// Writes a part without owning its numbers.
pub(crate) fn encode_part(bytes: &mut Vec<u8>, call: u64, reduce: Reduce, total: u32, values: &[u64]) {
    framed(bytes, PART, |body| {
        body.extend(call.to_le_bytes());
        body.push(match reduce {
            Reduce::Sum => 0,
            Reduce::Min => 1,
            Reduce::Max => 2,
        });
        body.extend(total.to_le_bytes());
        body.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    });
}

fn framed(bytes: &mut Vec<u8>, kind: u8, body: impl FnOnce(&mut Vec<u8>)) {
    let begin = bytes.len();
    bytes.extend([0; 4]);
    bytes.push(kind);
    body(bytes);
    // No frame that is made here is longer than `MAX_FRAME_BYTES`.
    let length = u32::try_from(bytes.len() - begin - 4).unwrap_or(u32::MAX);
    bytes[begin..begin + 4].copy_from_slice(&length.to_le_bytes());
}

fn part(body: &[u8]) -> Option<Part> {
    let (call, body) = body.split_first_chunk()?;
    let (reduce, body) = body.split_first()?;
    let (total, body) = body.split_first_chunk()?;
    let reduce = match reduce {
        0 => Reduce::Sum,
        1 => Reduce::Min,
        2 => Reduce::Max,
        _ => return None,
    };
    let (values, rest) = body.as_chunks();
    if !rest.is_empty() {
        return None;
    }
    let values = values.iter().map(|value| u64::from_le_bytes(*value)).collect();
    Some(Part { call: u64::from_le_bytes(*call), reduce, total: u32::from_le_bytes(*total), values })
}

/// Puts the parts of one call after another together. What it holds grows with what has come, not with what was announced.
#[derive(Debug, Default)]
pub(crate) struct Assembly {
    /// The call whose parts are due.
    call: u64,
    begun: Option<(Reduce, u32)>,
    values: Vec<u64>,
}

impl Assembly {
    /// Adds a part; gives the call's numbers when it was the last.
    pub(crate) fn add(&mut self, part: Part) -> Result<Option<(Reduce, Vec<u64>)>, FrameError> {
        if part.call != self.call {
            return Err(FrameError::Call { expected: self.call, found: part.call });
        }
        let (reduce, total) = *self.begun.get_or_insert((part.reduce, part.total));
        let whole = usize::try_from(total).unwrap_or(usize::MAX);
        let come = self.values.len() + part.values.len();
        let useless = part.values.is_empty() && whole != 0;
        if (reduce, total) != (part.reduce, part.total) || come > whole || whole > MAX_VALUES || useless {
            return Err(FrameError::Parts);
        }
        self.values.extend(part.values);
        if come < whole {
            return Ok(None);
        }
        self.call += 1;
        self.begun = None;
        Ok(Some((reduce, std::mem::take(&mut self.values))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn reduces() -> impl Strategy<Value = Reduce> {
        prop_oneof![Just(Reduce::Sum), Just(Reduce::Min), Just(Reduce::Max)]
    }

    fn frames() -> impl Strategy<Value = Frame> {
        let values = prop::collection::vec(any::<u64>(), 0..50);
        let part = (any::<u64>(), reduces(), any::<u32>(), values)
            .prop_map(|(call, reduce, total, values)| Frame::Part(Part { call, reduce, total, values }));
        let failed = prop_oneof![
            (0u32..1000, any::<String>()).prop_map(|(rank, text)| CollectiveError::lost(rank, &text)),
            (0u32..1000).prop_map(CollectiveError::ended),
            (0u32..1000, any::<u32>()).prop_map(|(rank, quiet)| CollectiveError::Stalled {
                rank,
                quiet: Duration::from_millis(quiet.into())
            }),
            (0u32..1000).prop_map(|rank| CollectiveError::OutOfStep { rank }),
        ];
        prop_oneof![
            any::<u64>().prop_map(Frame::Beat),
            part,
            failed.prop_map(Frame::Failed),
            Just(Frame::Bye)
        ]
    }

    proptest! {
        #[test]
        fn frames_come_back_as_they_were(frame in frames()) {
            let mut bytes = Vec::new();
            frame.encode(&mut bytes);
            let (length, body) = bytes.split_first_chunk().unwrap();
            prop_assert_eq!(u32::from_le_bytes(*length) as usize, body.len());
            prop_assert_eq!(Frame::decode(body), Ok(frame));
        }

        #[test]
        fn any_bytes_are_a_frame_or_an_error(
            kind in 0u8..6, mut bytes in prop::collection::vec(any::<u8>(), 0..100)
        ) {
            let _ = Frame::decode(&bytes);
            bytes.insert(0, kind);
            let _ = Frame::decode(&bytes);
        }

        #[test]
        fn cut_frames_are_no_frames(frame in frames()) {
            let mut bytes = Vec::new();
            frame.encode(&mut bytes);
            for end in 4..bytes.len() {
                // A part may lose whole numbers: then its call is never complete.
                let cut = Frame::decode(&bytes[4..end]);
                prop_assert!(cut != Ok(frame.clone()));
            }
        }

        #[test]
        fn parts_make_the_array_again(
            values in prop::collection::vec(any::<u64>(), 1..200), size in 1usize..50, reduce in reduces()
        ) {
            let mut assembly = Assembly::default();
            for call in 0..3 {
                let mut whole = None;
                for chunk in values.chunks(size) {
                    prop_assert_eq!(whole, None);
                    let part = Part { call, reduce, total: u32::try_from(values.len()).unwrap(), values: chunk.to_vec() };
                    whole = assembly.add(part).unwrap();
                }
                prop_assert_eq!(whole, Some((reduce, values.clone())));
            }
        }
    }

    #[test]
    fn an_empty_array_is_one_empty_part() {
        let part = Part { call: 0, reduce: Reduce::Sum, total: 0, values: Vec::new() };
        assert_eq!(Assembly::default().add(part), Ok(Some((Reduce::Sum, Vec::new()))));
    }

    #[test]
    fn parts_that_do_not_belong_together_are_refused() {
        let part =
            |call, total, values: &[u64]| Part { call, reduce: Reduce::Sum, total, values: values.to_vec() };
        let after = |first: Part, second: Part| {
            let mut assembly = Assembly::default();
            assembly.add(first).and_then(|_| assembly.add(second))
        };
        assert_eq!(
            after(part(0, 3, &[1]), part(1, 3, &[2])),
            Err(FrameError::Call { expected: 0, found: 1 })
        );
        assert_eq!(after(part(0, 3, &[1]), part(0, 4, &[2])), Err(FrameError::Parts));
        assert_eq!(after(part(0, 3, &[1]), part(0, 3, &[2, 3, 4])), Err(FrameError::Parts));
        assert_eq!(after(part(0, 3, &[1]), part(0, 3, &[])), Err(FrameError::Parts));
        assert_eq!(Assembly::default().add(part(0, u32::MAX, &[1])), Err(FrameError::Parts));
        assert_eq!(
            after(part(0, 1, &[1]), part(0, 1, &[2])),
            Err(FrameError::Call { expected: 1, found: 0 })
        );
    }
}
