//! A hash that every sidecar of every version computes alike: what it places
//! stays where it is. Not for secrets, and not for tables of foreign keys.

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
