//! Which addresses outgoing connections may have, checked when a name is resolved, so that a
//! mistyped or rebound name reaches nothing that it should not.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use tower::Service;

/// A resolver that yields only addresses that may be called.
#[derive(Clone)]
pub struct Guarded {
    resolver: GaiResolver,
    may_call: fn(IpAddr) -> bool,
}

impl Guarded {
    /// A resolver that leaves out what `may_call` refuses. Addresses that are written as
    /// numbers are not resolved: whoever takes them checks them.
    pub fn new(may_call: fn(IpAddr) -> bool) -> Self {
        Self { resolver: GaiResolver::new(), may_call }
    }
}

type Resolving = Pin<Box<dyn Future<Output = io::Result<std::vec::IntoIter<SocketAddr>>> + Send>>;

impl Service<Name> for Guarded {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Resolving;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        Service::poll_ready(&mut self.resolver, cx)
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let addresses = Service::call(&mut self.resolver, name);
        let may_call = self.may_call;
        Box::pin(async move {
            let found: Vec<_> = addresses.await?.filter(|a| may_call(a.ip())).collect();
            if found.is_empty() {
                return Err(io::Error::other("the name resolves to no address that may be called"));
            }
            Ok(found.into_iter())
        })
    }
}

/// Whether it is an address of this link, such as those of cloud metadata services.
pub fn is_link_local(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// Whether it is an address of the public internet: not of this machine, of a private network,
/// of a carrier's inside, or of no single host.
pub fn is_public(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            let is_special = a == 0
                || a >= 240
                || (a == 100 && (64..128).contains(&b))
                || (a == 192 && b == 0 && c == 0)
                || (a == 198 && (b == 18 || b == 19));
            !(is_special
                || ip.is_private()
                || ip.is_loopback()
                || ip.is_link_local()
                || ip.is_multicast()
                || ip.is_documentation())
        }
        IpAddr::V6(ip) => match embedded_v4(ip) {
            Some(inner) => is_public(inner),
            // What is assigned to hosts of the internet is all in 2000::/3; of it 2001:db8::/32
            // is for documents.
            None => ip.segments()[0] & 0xe000 == 0x2000 && ip.segments()[..2] != [0x2001, 0x0db8],
        },
    }
}

/// The address of the old internet behind one of translators (RFC 6052) and tunnels (6to4).
fn embedded_v4(ip: Ipv6Addr) -> Option<IpAddr> {
    let s = ip.segments();
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Some(IpAddr::from([a, b, c, d]))
    };
    match s {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => v4(high, low),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_addresses_are_of_this_link() {
        for ip in ["169.254.169.254", "fe80::1", "::ffff:169.254.169.254"] {
            assert!(is_link_local(ip.parse().unwrap()), "{ip}");
        }
        assert!(!is_link_local("127.0.0.1".parse().unwrap()));
    }

    #[test]
    fn only_addresses_of_the_internet_are_public() {
        for ip in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "0.1.2.3",
            "255.255.255.255",
            "224.0.0.1",
            "240.0.0.1",
            "192.0.0.8",
            "192.0.2.1",
            "198.18.0.1",
            "203.0.113.9",
            "::1",
            "::",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "::ffff:10.0.0.1",
            "::ffff:127.0.0.1",
            "64:ff9b::10.0.0.1",
            "2002:7f00:1::",
            "2001:db8::1",
            "::127.0.0.1",
        ] {
            assert!(!is_public(ip.parse().unwrap()), "{ip}");
        }
        for ip in [
            "1.1.1.1",
            "93.184.216.34",
            "172.32.0.1",
            "100.128.0.1",
            "2606:4700::1111",
            "64:ff9b::1.1.1.1",
        ] {
            assert!(is_public(ip.parse().unwrap()), "{ip}");
        }
    }
}
