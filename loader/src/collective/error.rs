//! Why ranks could not agree, in words that all of them print alike.

use serde::{Deserialize, Serialize};
use shardwright_planner::mesh::MAX_WORLD_SIZE;
use std::{fmt::Write, time::Duration};

/// Most bytes of a reason; what a rank says of itself cannot flood another's terminal.
pub(crate) const MAX_REASON_BYTES: usize = 512;

/// Why ranks could not agree. The first failure of a group counts, and all its ranks report it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum CollectiveError {
    /// A rank failed or ended.
    #[error("rank {rank} {}", ended(reason))]
    PeerLost {
        /// Which.
        rank: u32,
        /// What it said, on one line; empty when it ended without a word.
        reason: String,
    },
    /// A rank that others wait for neither came nor got on with what it did.
    #[error("rank {rank} has made no progress for {}", seconds(*quiet))]
    Stalled {
        /// Which.
        rank: u32,
        /// For how long the others waited for a sign of it.
        quiet: Duration,
    },
    /// Ranks made different calls.
    #[error("rank {rank} made another call than the ranks before it")]
    OutOfStep {
        /// Who differs.
        rank: u32,
    },
}

impl CollectiveError {
    /// `rank` failed, and said why; what it said is bounded and made harmless to print.
    pub fn lost(rank: u32, reason: &str) -> Self {
        Self::PeerLost { rank, reason: one_line(reason) }
    }

    /// `rank` ended without a word.
    pub fn ended(rank: u32) -> Self {
        Self::PeerLost { rank, reason: String::new() }
    }

    /// The rank that failed.
    pub fn rank(&self) -> u32 {
        match self {
            Self::PeerLost { rank, .. } | Self::Stalled { rank, .. } | Self::OutOfStep { rank } => *rank,
        }
    }

    /// The same, as it may be printed though another process wrote it.
    pub(crate) fn checked(self) -> Option<Self> {
        if self.rank() >= MAX_WORLD_SIZE {
            return None;
        }
        Some(match self {
            Self::PeerLost { rank, reason } => Self::lost(rank, &reason),
            Self::Stalled { .. } | Self::OutOfStep { .. } => self,
        })
    }
}

fn ended(reason: &str) -> String {
    if reason.is_empty() { "ended before the others".to_owned() } else { format!("failed: {reason}") }
}

/// An error's text without the line that says what to do about it here: what other ranks are told.
pub(crate) fn without_help(text: &str) -> &str {
    text.split("\nhelp: ").next().unwrap_or_default()
}

/// A duration as people say it: whole seconds, or milliseconds below one.
pub(crate) fn seconds(duration: Duration) -> String {
    match duration.as_secs() {
        0 => format!("{} ms", duration.as_millis()),
        whole => format!("{whole} s"),
    }
}

/// `text` on one line, without control characters, no longer than [`MAX_REASON_BYTES`]. Doing it twice changes nothing.
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::new();
    for part in text.lines().map(str::trim).filter(|part| !part.is_empty()) {
        if !line.is_empty() {
            line.push_str("; ");
        }
        for letter in part.chars() {
            match letter {
                '\'' | '"' | '\\' => line.push(letter),
                // Writing to a `String` cannot fail.
                _ => drop(write!(line, "{}", letter.escape_debug())),
            }
            if line.len() > MAX_REASON_BYTES {
                while line.len() + '…'.len_utf8() > MAX_REASON_BYTES {
                    line.pop();
                }
                line.push('…');
                return line;
            }
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn failures_name_the_rank_and_what_it_said() {
        let said = CollectiveError::lost(2, "cuda:2 cannot give 80 GiB\nhelp: use tp 4\u{1b}[2J");
        assert_eq!(said.to_string(), "rank 2 failed: cuda:2 cannot give 80 GiB; help: use tp 4\\u{1b}[2J");
        assert_eq!(CollectiveError::ended(0).to_string(), "rank 0 ended before the others");
        let stalled = CollectiveError::Stalled { rank: 2, quiet: Duration::from_secs(10) };
        assert_eq!(stalled.to_string(), "rank 2 has made no progress for 10 s");
    }

    proptest! {
        #[test]
        fn a_reason_is_one_short_line_and_stays_as_it_is(text in any::<String>(), times in 1usize..200) {
            let line = one_line(&text.repeat(times));
            prop_assert!(line.len() <= MAX_REASON_BYTES);
            prop_assert!(!line.chars().any(char::is_control));
            prop_assert_eq!(one_line(&line), line);
        }
    }
}
