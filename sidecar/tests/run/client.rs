//! The application under test: connects, resolves, listens, prints.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

pub(crate) fn main(arguments: &[String]) {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["connect", target] => print_answer(target),
        ["dns", transport, resolver, name] => dns(transport, resolver.parse().unwrap(), name),
        ["serve", port, answer] => serve(&format!("0.0.0.0:{port}"), answer),
        ["serve-and-connect", port] => {
            let address = format!("0.0.0.0:{port}");
            let listener = TcpListener::bind(&address).unwrap();
            std::thread::spawn(move || listener.accept().unwrap().0.write_all(b"from inside\n"));
            print_answer(&format!("localhost:{port}"));
        }
        ["connect-after-kill", target] => {
            let pid = stand_in_of_this_process();
            std::process::Command::new("kill").args(["-9", &pid]).status().unwrap();
            while std::path::Path::new(&format!("/proc/{pid}/exe")).read_link().is_ok() {
                std::thread::yield_now();
            }
            print_answer(target);
        }
        _ => panic!("{arguments:?}"),
    }
}

fn print_answer(target: &str) {
    let answer = TcpStream::connect(target).and_then(|mut stream| {
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    });
    match answer {
        Ok(text) => print!("{text}"),
        Err(error) => println!("error: {error}"),
    }
}

fn serve(address: &str, answer: &str) {
    let listener = TcpListener::bind(address).unwrap();
    for stream in listener.incoming() {
        let _ = writeln!(stream.unwrap(), "{answer}");
    }
}

/// The stand-in tells its process in a variable's worth of file.
fn stand_in_of_this_process() -> String {
    let directory = std::env::var("XDG_RUNTIME_DIR").unwrap();
    std::fs::read_to_string(format!("{directory}/stand-in-of-{}", std::process::id())).unwrap()
}

fn dns(transport: &str, resolver: IpAddr, name: &str) {
    let mut query = vec![7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).unwrap());
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    let server = SocketAddr::new(resolver, 53);
    let reply = if transport == "udp" {
        let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).unwrap();
        // Connected: an answer from another address would not be received.
        socket.connect(server).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        socket.send(&query).unwrap();
        let mut reply = vec![0; 512];
        let length = socket.recv(&mut reply).unwrap();
        reply.truncate(length);
        reply
    } else {
        let mut stream = TcpStream::connect(server).unwrap();
        stream.write_all(&u16::try_from(query.len()).unwrap().to_be_bytes()).unwrap();
        stream.write_all(&query).unwrap();
        let mut length = [0; 2];
        stream.read_exact(&mut length).unwrap();
        let mut reply = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut reply).unwrap();
        reply
    };
    print!("code {}", reply[3] & 15);
    if reply[7] == 1 {
        let [a, b, c, d] = *reply.last_chunk().unwrap();
        print!(" {a}.{b}.{c}.{d}");
    }
    println!();
}
