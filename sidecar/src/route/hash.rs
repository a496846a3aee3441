//! Two hashes for two purposes: one that every sidecar of every version
//! computes alike, so that what it places stays where it is, and one that is
//! quick, for tables of this process. Neither is for secrets or for tables
//! that clients fill.

use std::collections::HashMap;

use foldhash::fast::FixedState;

/// A table whose keys come from configuration or are our own, so that none of a
/// client's making collide; the standard hash costs five times as much.
pub(crate) type ConfiguredMap<K, V> = HashMap<K, V, FixedState>;

/// 64 well-mixed bits of `bytes` under a seed: FNV-1a (Fowler, Noll, Vo) with
/// the final mixing of splitmix64 (Vigna), since FNV alone leaves the upper
/// bits of short keys alike.
pub(crate) fn stable(seed: u64, bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let mut hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325 ^ seed, step);
    hash = (hash ^ hash >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ hash >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ hash >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed by another program. Another value would move every user of every canary at an upgrade.
    #[test]
    fn the_hash_never_changes() {
        assert_eq!(stable(0, b""), 0xf52a_15e9_a9b5_e89b);
        assert_eq!(stable(0, b"user-1"), 0xc499_b5f8_a721_df58);
        assert_ne!(stable(0, b"user-1"), stable(1, b"user-1"));
    }
}
