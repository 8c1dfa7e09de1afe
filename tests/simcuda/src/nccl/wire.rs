//! Messages between a rank and the hub of its communicator, over an abstract Unix socket.
//!
//! A message is a head of fixed length (kind, numbers, length of the payload) and the payload. Both ends are this library, on
//! one machine: numbers are in its byte order. What does not make sense ends the connection.

use nccl_rs::sys::{RawUniqueId, ResultCode, UNIQUE_ID_BYTES};
use std::{
    ffi::c_char,
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, Read, Write},
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    sync::atomic::{AtomicU64, Ordering},
    time::SystemTime,
};

/// Most bytes of a payload.
const MOST_BYTES: u64 = 1 << 32;
const NUMBERS: usize = 6;

/// What ranks and hub say to each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Message {
    /// Rank to hub, first: who it is.
    Hello(Hello),
    /// Hub to rank: all ranks are there.
    Welcome,
    /// Rank to hub: its part of the `number`-th collective.
    Part { number: u64, collective: Collective, bytes: Vec<u8> },
    /// Hub to rank: what the `number`-th collective gives it.
    Outcome { number: u64, bytes: Vec<u8> },
    /// Rank to hub: for another. Hub to rank: from another.
    Letter { peer: u64, bytes: Vec<u8> },
    /// The same way: a letter was received.
    Receipt { peer: u64 },
    /// Rank to hub: it leaves in good order.
    Leaving,
    /// Hub to rank: another has left in good order.
    Left,
    /// Hub to rank: all have.
    AllLeft,
    /// Hub to rank: the communicator is broken.
    Broken { code: ResultCode, words: String },
}

/// Who a rank is. All but `rank` and `gpu` must be the same for all ranks, and those different.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) rank: u64,
    pub(super) world: u64,
    pub(super) version: u64,
    pub(super) gpu: u64,
}

/// What a collective is. The same for all ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Collective {
    pub(super) kind: Kind,
    pub(super) data_type: u64,
    pub(super) reduction: u64,
    pub(super) root: u64,
    /// What it moves, as the call counts it.
    pub(super) elements: u64,
}

/// The collectives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    AllReduce,
    AllGather,
    ReduceScatter,
    Broadcast,
    /// An all-gather of colours and keys.
    Split,
}

const KINDS: [Kind; 5] =
    [Kind::AllReduce, Kind::AllGather, Kind::ReduceScatter, Kind::Broadcast, Kind::Split];

impl Message {
    /// Sends it whole.
    pub(super) fn write(self, mut to: impl Write) -> io::Result<()> {
        let (kind, numbers, bytes) = self.into_parts();
        let mut head = Vec::with_capacity(HEAD);
        head.push(kind);
        for number in numbers.into_iter().chain([bytes.len() as u64]) {
            head.extend(number.to_ne_bytes());
        }
        to.write_all(&head)?;
        to.write_all(&bytes)
    }

    /// Receives the next.
    pub(super) fn read(mut from: impl Read) -> io::Result<Self> {
        let mut head = [0; HEAD];
        from.read_exact(&mut head)?;
        let mut numbers = head[1..].as_chunks::<8>().0.iter().map(|bytes| u64::from_ne_bytes(*bytes));
        let mut next = || numbers.next().unwrap_or_default();
        let fixed: [u64; NUMBERS] = std::array::from_fn(|_| next());
        let len = next();
        let len =
            usize::try_from(len).ok().filter(|_| len <= MOST_BYTES).ok_or(io::ErrorKind::InvalidData)?;
        let mut bytes = vec![0; len];
        from.read_exact(&mut bytes)?;
        Self::from_parts(head[0], fixed, bytes).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn into_parts(self) -> (u8, [u64; NUMBERS], Vec<u8>) {
        match self {
            Self::Hello(Hello { rank, world, version, gpu }) => {
                (0, [rank, world, version, gpu, 0, 0], vec![])
            }
            Self::Welcome => (1, [0; 6], vec![]),
            Self::Part { number, collective, bytes } => {
                let Collective { kind, data_type, reduction, root, elements } = collective;
                (2, [number, kind as u64, data_type, reduction, root, elements], bytes)
            }
            Self::Outcome { number, bytes } => (3, [number, 0, 0, 0, 0, 0], bytes),
            Self::Letter { peer, bytes } => (4, [peer, 0, 0, 0, 0, 0], bytes),
            Self::Receipt { peer } => (5, [peer, 0, 0, 0, 0, 0], vec![]),
            Self::Leaving => (6, [0; 6], vec![]),
            Self::Left => (7, [0; 6], vec![]),
            Self::AllLeft => (8, [0; 6], vec![]),
            Self::Broken { code, words } => {
                (9, [u64::from(code.0.cast_unsigned()), 0, 0, 0, 0, 0], words.into_bytes())
            }
        }
    }

    fn from_parts(kind: u8, numbers: [u64; NUMBERS], bytes: Vec<u8>) -> Option<Self> {
        let [first, second, data_type, reduction, root, elements] = numbers;
        Some(match kind {
            0 => Self::Hello(Hello { rank: first, world: second, version: data_type, gpu: reduction }),
            1 => Self::Welcome,
            2 => {
                let kind = *KINDS.get(usize::try_from(second).ok()?)?;
                let collective = Collective { kind, data_type, reduction, root, elements };
                Self::Part { number: first, collective, bytes }
            }
            3 => Self::Outcome { number: first, bytes },
            4 => Self::Letter { peer: first, bytes },
            5 => Self::Receipt { peer: first },
            6 => Self::Leaving,
            7 => Self::Left,
            8 => Self::AllLeft,
            9 => {
                let code = ResultCode(u32::try_from(first).ok()?.cast_signed());
                Self::Broken { code, words: String::from_utf8(bytes).ok()? }
            }
            _ => return None,
        })
    }
}

const HEAD: usize = 1 + 8 * (NUMBERS + 1);

/// The name of a hub's socket. It stands at the start of the unique id, and zeros after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name(String);

const PREFIX: &str = "simcuda-nccl-";

impl Name {
    /// One that no other communicator of the machine has.
    pub(super) fn new() -> Self {
        static MADE: AtomicU64 = AtomicU64::new(0);
        let made = MADE.fetch_add(1, Ordering::Relaxed);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
        Self(format!("{PREFIX}{}-{now:x}-{made}", std::process::id()))
    }

    /// The one of the ranks of `color` in the communicator's `number`-th collective, which is a split. All ranks find the
    /// same.
    pub(super) fn of_part(&self, number: u64, color: i32) -> Self {
        let half = |salt: u8| {
            let mut hasher = DefaultHasher::new();
            (salt, &self.0, number, color).hash(&mut hasher);
            hasher.finish()
        };
        Self(format!("{PREFIX}{:016x}{:016x}", half(0), half(1)))
    }

    /// As `ncclGetUniqueId` gives it.
    pub(super) fn to_id(&self) -> RawUniqueId {
        let mut internal = [0; UNIQUE_ID_BYTES];
        for (to, byte) in internal.iter_mut().zip(self.0.bytes()) {
            *to = c_char::from_ne_bytes([byte]);
        }
        RawUniqueId { internal }
    }

    /// The one in a unique id, if one of ours can be in it.
    pub(super) fn from_id(id: &RawUniqueId) -> Option<Self> {
        let bytes = id.internal.map(|letter| letter.to_ne_bytes()[0]);
        let end = bytes.iter().position(|&byte| byte == 0)?;
        let name = std::str::from_utf8(&bytes[..end]).ok()?;
        let letters = |letter: char| letter.is_ascii_alphanumeric() || letter == '-';
        let ours = name.len() < 100 && name.starts_with(PREFIX) && name.chars().all(letters);
        ours.then(|| Self(name.to_owned()))
    }

    pub(super) fn listen(&self) -> io::Result<UnixListener> {
        UnixListener::bind_addr(&SocketAddr::from_abstract_name(&self.0)?)
    }

    pub(super) fn connect(&self) -> io::Result<UnixStream> {
        UnixStream::connect_addr(&SocketAddr::from_abstract_name(&self.0)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_arrives_as_it_was_sent() {
        let collective = |kind| Collective { kind, data_type: 1, reduction: 2, root: 3, elements: u64::MAX };
        let part = |kind| Message::Part { number: 9, collective: collective(kind), bytes: vec![1, 2] };
        let messages: Vec<Message> = KINDS
            .map(part)
            .into_iter()
            .chain([
                Message::Hello(Hello { rank: 1, world: 2, version: 3, gpu: 4 }),
                Message::Welcome,
                Message::Outcome { number: 3, bytes: vec![7; 100] },
                Message::Letter { peer: 1, bytes: vec![] },
                Message::Receipt { peer: 1 },
                Message::Leaving,
                Message::Left,
                Message::AllLeft,
                Message::Broken { code: ResultCode(-3), words: "why".to_owned() },
            ])
            .collect();
        let mut sent = Vec::new();
        for message in messages.clone() {
            message.write(&mut sent).unwrap();
        }
        let mut received = sent.as_slice();
        for message in messages {
            assert_eq!(Message::read(&mut received).unwrap(), message);
        }
        assert!(Message::read(&mut received).is_err());
    }

    #[test]
    fn messages_that_make_no_sense_are_refused() {
        let mut head = [0_u8; HEAD];
        head[0] = 77;
        assert!(Message::read(head.as_slice()).is_err());
        head[0] = 3;
        head[HEAD - 8..].copy_from_slice(&u64::MAX.to_ne_bytes());
        assert!(Message::read(head.as_slice()).is_err());
    }

    #[test]
    fn names_pass_through_unique_ids_and_nothing_else_does() {
        let name = Name::new();
        assert_eq!(Name::from_id(&name.to_id()), Some(name.clone()));
        assert_ne!(name, Name::new());
        let part = name.of_part(3, 7);
        assert_eq!(part, name.of_part(3, 7));
        assert_ne!(part, name.of_part(3, 8));
        assert_eq!(Name::from_id(&part.to_id()), Some(part));
        assert_eq!(Name::from_id(&RawUniqueId { internal: [0; UNIQUE_ID_BYTES] }), None);
        assert_eq!(Name::from_id(&RawUniqueId { internal: [77; UNIQUE_ID_BYTES] }), None);
    }
}
