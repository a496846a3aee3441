//! Ports and networks as settings name them.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use crate::settings::InvalidSpec;

/// As many as anybody would list by hand; each is a rule that packets are held against.
const MOST: usize = 64;

/// Ports and ranges of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ports(pub(super) Vec<RangeInclusive<u16>>);

impl Ports {
    pub(super) fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|range| range.contains(&port))
    }
}

impl FromStr for Ports {
    type Err = InvalidSpec;

    fn from_str(text: &str) -> Result<Self, InvalidSpec> {
        list(text, "ports", |item| {
            let port = |text: &str| text.trim().parse().ok().filter(|port| *port != 0);
            let (first, last) = item.split_once('-').unwrap_or((item, item));
            match (port(first), port(last)) {
                (Some(first), Some(last)) if first <= last => Ok(first..=last),
                _ => Err(InvalidSpec(format!("{item:?} is neither a port nor FIRST-LAST"))),
            }
        })
        .map(Self)
    }
}

/// Networks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Networks(pub(super) Vec<Network>);

impl FromStr for Networks {
    type Err = InvalidSpec;

    fn from_str(text: &str) -> Result<Self, InvalidSpec> {
        list(text, "networks", str::parse).map(Self)
    }
}

/// All addresses that begin with the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Network {
    /// One of the addresses.
    pub(super) address: IpAddr,
    /// How many bits they share.
    pub(super) prefix: u8,
}

impl FromStr for Network {
    type Err = InvalidSpec;

    fn from_str(text: &str) -> Result<Self, InvalidSpec> {
        let fail = || InvalidSpec(format!("{text:?} is neither ADDRESS/BITS nor an address"));
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| fail())?;
        let all = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Ok(all), str::parse).map_err(|_| fail())?;
        if prefix > all { Err(fail()) } else { Ok(Self { address, prefix }) }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

fn list<T>(
    text: &str,
    what: &str,
    read: impl Fn(&str) -> Result<T, InvalidSpec>,
) -> Result<Vec<T>, InvalidSpec> {
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    let items: Vec<T> = items.map(read).collect::<Result<_, _>>()?;
    if items.len() > MOST {
        return Err(InvalidSpec(format!("these are {} {what}; at most {MOST} can be skipped", items.len())));
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_alone_and_in_ranges() {
        let ports = |text: &str| text.parse::<Ports>().map(|ports| ports.0);
        assert_eq!(ports("").unwrap(), []);
        assert_eq!(ports("22, 8000-8010,").unwrap(), [22..=22, 8000..=8010]);
        for bad in ["0", "65536", "9-8", "a", "1-", "-1", "1-2-3"] {
            assert!(ports(bad).is_err(), "{bad}");
        }
        assert!(ports(&(1..=65).map(|p| format!("{p},")).collect::<String>()).is_err());
    }

    #[test]
    fn networks_are_read_with_and_without_a_prefix() {
        let networks = |text: &str| text.parse::<Networks>().map(|networks| networks.0);
        let shown: Vec<String> =
            networks("10.0.0.0/8,fd00::/7, 192.0.2.1").unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["10.0.0.0/8", "fd00::/7", "192.0.2.1/32"]);
        for bad in ["10.0.0.0/33", "fd00::/129", "10.0.0", "10.0.0.0/", "a/8", "10.0.0.0/-1"] {
            assert!(networks(bad).is_err(), "{bad}");
        }
    }
}
