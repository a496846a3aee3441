//! How urgent a request is, as its client says.

/// The urgency of RFC 9218, section 4.1: 0 to 7, the smaller the more urgent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Urgency(u8);

impl Default for Urgency {
    /// 3, for requests that say nothing.
    fn default() -> Self {
        Self(3)
    }
}

impl Urgency {
    /// For what nobody waits for.
    pub const LEAST: Self = Self(7);

    /// What a `priority` field says: the member `u` of a dictionary (RFC 9651,
    /// section 3.2). What is no integer from 0 to 7 is ignored, as RFC 9218 asks;
    /// of several the last counts.
    pub fn of_field(value: &[u8]) -> Self {
        let members = value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii);
        let mut urgency = members.filter_map(|member| {
            let (value, parameters) = member.strip_prefix(b"u=")?.split_first()?;
            let ends = matches!(parameters.first(), None | Some(b';' | b' ' | b'\t'));
            (ends && matches!(value, b'0'..=b'7')).then(|| Self(value - b'0'))
        });
        urgency.next_back().unwrap_or_default()
    }

    /// How many steps less urgent than the default; negative: more urgent.
    pub(super) fn steps_below_default(self) -> i64 {
        i64::from(self.0) - i64::from(Self::default().0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urgency_is_a_member_of_a_dictionary() {
        for (field, urgency) in [
            ("u=0", 0),
            ("u=7, i", 7),
            ("i, u=5", 5),
            ("i;x=1,u=2;y", 2),
            ("u=1, u=6", 6),
            ("", 3),
            ("i", 3),
            ("u=8", 3),
            ("u=-1", 3),
            ("u=11", 3),
            ("u=1.5", 3),
            ("u=\"1\"", 3),
            ("uu=1", 3),
            ("u", 3),
        ] {
            assert_eq!(Urgency::of_field(field.as_bytes()), Urgency(urgency), "{field:?}");
        }
    }
}
