//! The frames of opaque streams between sidecars (ALPN `heddle/tcp`).
//!
//! A frame is one byte of kind, three bytes of length (big-endian), and that
//! many bytes. The client opens a stream with OPEN, each side sends DATA and at
//! last FIN; when both have, the client may open the next stream. A server that
//! cannot reach the application answers REFUSED with the reason instead, after
//! which the stream is over. Whoever breaks off closes the connection.

/// What a frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Kind {
    /// The client begins a stream.
    Open = 1,
    /// Bytes of the stream.
    Data = 2,
    /// This side has no more bytes.
    Fin = 3,
    /// The application cannot be reached; the content is the reason's word.
    Refused = 4,
}

/// Kind and length of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Header {
    pub(super) kind: Kind,
    pub(super) length: usize,
}

/// Bytes of a header.
pub(super) const HEADER: usize = 4;

/// Longest DATA that we send: as much as one read gives. Receivers take any length.
pub(super) const LONGEST_DATA: usize = 64 * 1024;

/// Longest content of other frames that we accept.
pub(super) const LONGEST_REASON: usize = 64;

impl Header {
    pub(super) fn encode(self) -> [u8; HEADER] {
        debug_assert!(self.length < 1 << 24);
        let [_, a, b, c] = u32::try_from(self.length).unwrap_or(u32::MAX).to_be_bytes();
        [self.kind as u8, a, b, c]
    }

    /// The header at the beginning of `bytes`: `Ok(None)` if they are too few,
    /// an error if they are none.
    pub(super) fn decode(bytes: &[u8]) -> Result<Option<Self>, ()> {
        let Some((&[kind, a, b, c], _)) = bytes.split_first_chunk() else { return Ok(None) };
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        let kind = match kind {
            1 if length == 0 => Kind::Open,
            2 => Kind::Data,
            3 if length == 0 => Kind::Fin,
            4 if length <= LONGEST_REASON => Kind::Refused,
            _ => return Err(()),
        };
        Ok(Some(Self { kind, length }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn a_header_reads_back(length in 0_usize..1 << 24) {
            let header = Header { kind: Kind::Data, length };
            assert_eq!(Header::decode(&header.encode()), Ok(Some(header)));
        }

        #[test]
        fn any_bytes_are_a_header_or_refused(bytes: [u8; 4]) {
            if let Ok(Some(header)) = Header::decode(&bytes) {
                assert_eq!(header.encode(), bytes);
            }
        }
    }

    #[test]
    fn a_split_header_is_waited_for() {
        assert_eq!(Header::decode(&[2, 0, 0]), Ok(None));
    }
}
