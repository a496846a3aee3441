//! The cluster's DNS, as far as a pod without a cluster needs one.

use std::net::{IpAddr, UdpSocket};

/// A DNS message that asks for the address of `name`.
///
/// # Panics
/// If it is no name.
pub fn question(id: u16, name: &str) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).expect("labels are short"));
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}

/// The address that a reply ends with; `None` if the name was denied.
///
/// # Panics
/// If it is no reply.
pub fn told(reply: &[u8]) -> Option<IpAddr> {
    assert_eq!(reply[2] & 0x80, 0x80, "it is a reply");
    (reply[3] & 0x0f == 0).then(|| IpAddr::from(*reply.last_chunk::<4>().expect("it has a header")))
}

/// A resolver that knows every name under `example`, at 192.0.2.53, and no other.
pub fn resolve(socket: &UdpSocket) {
    let mut buffer = [0; 512];
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        let mut reply = buffer[..length].to_vec();
        let known = reply.windows(9).any(|window| window == b"\x07example\0");
        reply[2] = 0x81;
        reply[3] = if known { 0x80 } else { 0x83 };
        if known {
            reply[7] = 1;
            reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 192, 0, 2, 53]);
        }
        let _ = socket.send_to(&reply, from);
    }
}
