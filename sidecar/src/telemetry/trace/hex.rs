//! Identifiers as lower-case hexadecimal digits.

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// An identifier's last `N` digits.
#[derive(Clone, Copy)]
pub(in crate::telemetry) struct HexId<const N: usize>([u8; N]);

impl<const N: usize> HexId<N> {
    pub(in crate::telemetry) fn new(mut id: u128) -> Self {
        let mut digits = [0; N];
        for digit in digits.iter_mut().rev() {
            *digit = DIGITS[(id & 15) as usize];
            id >>= 4;
        }
        Self(digits)
    }

    pub(in crate::telemetry) fn as_bytes(&self) -> &[u8; N] {
        &self.0
    }

    pub(in crate::telemetry) fn as_str(&self) -> &str {
        str::from_utf8(&self.0).expect("hexadecimal digits are ASCII")
    }
}

/// Reads at most 32 lower-case digits, as W3C demands; B3 is written so as well.
pub(super) fn parse(digits: &[u8]) -> Option<u128> {
    if digits.is_empty() || digits.len() > 32 {
        return None;
    }
    digits.iter().try_fold(0u128, |value, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u128::from(digit))
    })
}
