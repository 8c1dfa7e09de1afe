//! What is said before ranks know each other, as bytes.
//!
//! A message is a magic word, the version of the protocol (16 bits), its length (32 bits) and JSON, little-endian. Whatever
//! the version, a hello is an object with `job` and `rank`, so that a rank of another version can be told from a stranger.

use super::{Refusal, Rendezvous, Who};
use crate::collective::PROTOCOL;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    time::Duration,
};

const MAGIC: [u8; 8] = *b"shardwrt";
const HEAD_BYTES: usize = MAGIC.len() + 2 + 4;

/// Longest hello: strangers may claim to send one.
pub(super) const MAX_HELLO_BYTES: usize = 8 << 10;

/// Longest reply: a refusal may list all ranks.
pub(super) const MAX_REPLY_BYTES: usize = 64 << 10;

/// How often a read looks whether to go on.
const READ_TICK: Duration = Duration::from_millis(50);

/// How long a message may take to leave; the socket's buffer is empty and takes it at once.
const WRITE_TIME: Duration = Duration::from_secs(1);

/// What every version says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Frozen {
    pub(super) job: String,
    pub(super) rank: u32,
}

/// What a rank of this version says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hello {
    #[serde(flatten)]
    pub(super) frozen: Frozen,
    pub(super) world: u32,
    pub(super) plan: String,
    pub(super) version: String,
    pub(super) nccl: Option<u32>,
    pub(super) who: Who,
}

impl Hello {
    pub(super) fn of(this: &Rendezvous) -> Self {
        Self {
            frozen: Frozen { job: this.job.clone(), rank: this.rank },
            world: this.world,
            plan: this.plan_digest.clone(),
            version: this.version.clone(),
            nccl: this.details.nccl,
            who: Who {
                rank: this.rank,
                host: this.details.host.as_str().into(),
                device: this.details.device.as_str().into(),
                pid: this.details.pid,
            },
        }
    }
}

/// What rank 0 says to a rank.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Reply {
    /// The rank is of this job; others are awaited.
    Wait,
    /// All have come.
    Welcome,
    /// The job ends here.
    Refused(Refusal),
}

/// Bytes that are no message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stranger;

/// Why no message came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unread {
    /// The other end closed, or broke.
    Ended,
    /// It said something else.
    Stranger,
    /// Whoever reads was told not to go on.
    Stopped,
}

pub(super) fn encode(message: &impl Serialize) -> Vec<u8> {
    // It always can be: no map, no borrowed bytes.
    let body = serde_json::to_vec(message).unwrap_or_default();
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let mut bytes = MAGIC.to_vec();
    bytes.extend(PROTOCOL.to_le_bytes());
    bytes.extend(length.to_le_bytes());
    bytes.extend(body);
    bytes
}

/// The version of a message and the length of what follows its head.
fn head(bytes: &[u8], longest: usize) -> Result<(u16, usize), Stranger> {
    let rest = bytes.strip_prefix(&MAGIC).ok_or(Stranger)?;
    let (version, rest) = rest.split_first_chunk().ok_or(Stranger)?;
    let length: [u8; 4] = rest.try_into().map_err(|_| Stranger)?;
    let length = usize::try_from(u32::from_le_bytes(length)).map_err(|_| Stranger)?;
    if length > longest {
        return Err(Stranger);
    }
    Ok((u16::from_le_bytes(*version), length))
}

/// Sends a message, or gives up within a second.
pub(super) fn send(stream: &mut TcpStream, message: &impl Serialize) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(WRITE_TIME))?;
    stream.write_all(&encode(message))
}

/// Reads a message of at most `longest` bytes, for as long as `goes_on`; gives its version and its body.
pub(super) fn receive(
    stream: &mut TcpStream,
    longest: usize,
    goes_on: &mut dyn FnMut() -> bool,
) -> Result<(u16, Vec<u8>), Unread> {
    let mut bytes = Vec::new();
    fill(stream, &mut bytes, HEAD_BYTES, goes_on)?;
    let (version, length) = head(&bytes, longest).map_err(|Stranger| Unread::Stranger)?;
    bytes.clear();
    fill(stream, &mut bytes, length, goes_on)?;
    Ok((version, bytes))
}

/// A message of this version.
pub(super) fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, Stranger> {
    serde_json::from_slice(body).map_err(|_| Stranger)
}

/// Reads until there are `wanted` bytes; memory is asked for as they come.
fn fill(
    stream: &mut TcpStream,
    bytes: &mut Vec<u8>,
    wanted: usize,
    goes_on: &mut dyn FnMut() -> bool,
) -> Result<(), Unread> {
    let mut piece = [0; 1024];
    let timeout = stream.set_nonblocking(false).and_then(|()| stream.set_read_timeout(Some(READ_TICK)));
    timeout.map_err(|_| Unread::Ended)?;
    while bytes.len() < wanted {
        if !goes_on() {
            return Err(Unread::Stopped);
        }
        let most = piece.len().min(wanted - bytes.len());
        match stream.read(&mut piece[..most]) {
            Ok(0) => return Err(Unread::Ended),
            Ok(come) => bytes.extend(&piece[..come]),
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {}
                _ => return Err(Unread::Ended),
            },
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_a_strangers(
            mut bytes in prop::collection::vec(any::<u8>(), 0..40), known in 0usize..9
        ) {
            let _ = decode::<Hello>(&bytes);
            let _ = decode::<Reply>(&bytes);
            let known = known.min(bytes.len());
            bytes[..known].copy_from_slice(&MAGIC[..known]);
            if let Ok((_, length)) = head(&bytes, MAX_HELLO_BYTES) {
                prop_assert!(length <= MAX_HELLO_BYTES && bytes.len() == HEAD_BYTES);
            }
        }

        #[test]
        fn hellos_come_back_as_they_were(
            job in ".{0,60}", rank in any::<u32>(), host in any::<String>(), nccl in any::<Option<u32>>()
        ) {
            let who = Who { rank, host: host.into(), device: "cuda:0".into(), pid: 7 };
            let hello = Hello {
                frozen: Frozen { job, rank }, world: 8, plan: "00".into(), version: "1".into(), nccl, who
            };
            let bytes = encode(&hello);
            let (version, length) = head(&bytes[..HEAD_BYTES], MAX_HELLO_BYTES).unwrap();
            prop_assert_eq!((version, length), (PROTOCOL, bytes.len() - HEAD_BYTES));
            prop_assert_eq!(&decode::<Frozen>(&bytes[HEAD_BYTES..]).unwrap(), &hello.frozen);
            prop_assert_eq!(decode::<Hello>(&bytes[HEAD_BYTES..]).unwrap(), hello);
        }
    }

    #[test]
    fn the_longest_messages_are_not_too_long() {
        let text = "\"".repeat(5000);
        let who = Who { rank: 9, host: text.as_str().into(), device: text.as_str().into(), pid: u32::MAX };
        let longest = "\u{1}".repeat(super::super::MAX_TEXT_BYTES);
        let hello = Hello {
            frozen: Frozen { job: longest.clone(), rank: 9 },
            world: u32::MAX,
            plan: longest.clone(),
            version: longest,
            nccl: Some(u32::MAX),
            who,
        };
        assert!(encode(&hello).len() <= MAX_HELLO_BYTES);
        let ranks = (0..super::super::MAX_RANKS).collect();
        let refusal = Refusal::Missing { ranks, address: "a:1".into(), waited: Duration::MAX };
        assert!(encode(&Reply::Refused(refusal)).len() <= MAX_REPLY_BYTES);
    }

    #[test]
    fn what_others_wrote_is_printed_on_one_line() {
        let reply = br#"{"Refused":{"Gone":{"who":{"rank":1,"host":"a\u001b[2J\nb","device":"c","pid":2}}}}"#;
        let Ok(Reply::Refused(refusal)) = decode(reply) else { panic!("it is a refusal") };
        assert_eq!(refusal.to_string(), "rank 1 (a\\u{1b}[2J; b, pid 2, c) ended before all ranks had come");
    }
}
