//! Frames of the WebSocket protocol (RFC 6455, section 5), as far as streams of an API server need
//! them: binary messages whose first byte is a channel. Pure.

use bytes::{Buf, Bytes, BytesMut};

/// One frame of the other side.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// A message, or the part of one that it has not sent yet.
    Data {
        /// The first part of a message, which begins with the channel.
        is_first: bool,
        payload: Bytes,
    },
    Ping(Bytes),
    Pong,
    Close(Bytes),
}

/// The other side does not keep to the protocol.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the API server sent what is no WebSocket frame: {0}")]
pub(super) struct Malformed(&'static str);

/// No server sends more at once; `kubelet` copies 32 KiB at a time.
const MAX_PAYLOAD: u64 = 1024 * 1024;

/// A message that says all it has in one frame.
pub(super) const BINARY: u8 = 0x2;
pub(super) const CLOSE: u8 = 0x8;
pub(super) const PONG: u8 = 0xa;

/// A frame of ours, masked as clients have to (section 5.3).
pub(super) fn frame(opcode: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let mut frame = vec![0x80 | opcode];
    match payload.len() {
        length @ 0..=125 => frame.push(0x80 | u8::try_from(length).unwrap_or_default()),
        length => match u16::try_from(length) {
            Ok(length) => {
                frame.push(0x80 | 126);
                frame.extend(length.to_be_bytes());
            }
            Err(_) => {
                frame.push(0x80 | 127);
                frame.extend((length as u64).to_be_bytes());
            }
        },
    }
    frame.extend(mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// Takes the first frame off what came; `None`: more has to come first.
pub(super) fn parse(buffer: &mut BytesMut) -> Result<Option<Frame>, Malformed> {
    let [first, second, ..] = **buffer else { return Ok(None) };
    if second & 0x80 != 0 {
        return Err(Malformed("a server masks nothing"));
    }
    if first & 0x70 != 0 {
        return Err(Malformed("there are no extensions"));
    }
    let (header, length) = match second {
        126 => match buffer.get(2..4) {
            Some(bytes) => (4, bytes.iter().fold(0, |length, byte| length << 8 | u64::from(*byte))),
            None => return Ok(None),
        },
        127 => match buffer.get(2..10) {
            Some(bytes) => (10, bytes.iter().fold(0, |length, byte| length << 8 | u64::from(*byte))),
            None => return Ok(None),
        },
        short => (2, u64::from(short)),
    };
    let length = usize::try_from(length).ok().filter(|_| length <= MAX_PAYLOAD);
    let length = length.ok_or(Malformed("it is too long"))?;
    if buffer.len() < header + length {
        return Ok(None);
    }
    buffer.advance(header);
    let payload = buffer.split_to(length).freeze();
    match first & 0x0f {
        0x0 => Ok(Some(Frame::Data { is_first: false, payload })),
        0x1 | BINARY => Ok(Some(Frame::Data { is_first: true, payload })),
        CLOSE => Ok(Some(Frame::Close(payload))),
        0x9 => Ok(Some(Frame::Ping(payload))),
        PONG => Ok(Some(Frame::Pong)),
        _ => Err(Malformed("it is of an unknown kind")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a server would have sent in place of a client: without a mask.
    fn of_server(frame: &[u8]) -> BytesMut {
        let header = match frame[1] & 0x7f {
            126 => 4,
            127 => 10,
            _ => 2,
        };
        let mask: [u8; 4] = frame[header..header + 4].try_into().unwrap();
        let mut bytes = BytesMut::from(&frame[..header]);
        bytes[1] &= 0x7f;
        bytes.extend(frame[header + 4..].iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        bytes
    }

    #[test]
    fn frames_of_all_lengths_come_back_whole_however_they_are_cut() {
        for length in [0, 1, 125, 126, 65_535, 65_536] {
            let payload: Vec<u8> = (0..length).map(|at| u8::try_from(at % 251).unwrap()).collect();
            let bytes = of_server(&frame(BINARY, &payload, [1, 2, 3, 4]));
            let mut buffer = BytesMut::new();
            for cut in [1, 3, 5, bytes.len() / 2].into_iter().filter(|cut| *cut < bytes.len()) {
                buffer.clear();
                buffer.extend_from_slice(&bytes[..cut]);
                assert_eq!(parse(&mut buffer), Ok(None), "{cut} of {length}");
            }
            buffer.clear();
            buffer.extend_from_slice(&bytes);
            buffer.extend_from_slice(b"rest");
            let data = Frame::Data { is_first: true, payload: payload.into() };
            assert_eq!(parse(&mut buffer), Ok(Some(data)));
            assert_eq!(&buffer[..], b"rest");
        }
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        for bytes in [&[0x82, 0x81][..], &[0xc2, 0], &[0x83, 0], &[0x82, 127, 1, 0, 0, 0, 0, 0, 0, 0]] {
            assert!(parse(&mut BytesMut::from(bytes)).is_err(), "{bytes:?}");
        }
    }
}
