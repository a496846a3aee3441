//! What a name in a query is about.

use heddle_api::name::ServiceName;

/// The reverse names of the synthetic addresses: 240.240.0.0/16.
const SYNTHETIC_REVERSE: &str = "240.240.in-addr.arpa";

/// What a name is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Subject {
    /// This machine (RFC 6761, section 6.3).
    Localhost,
    /// Perhaps a service of the mesh.
    Service {
        /// Which one.
        name: ServiceName,
        /// Whether nobody else could know the name: it ends in the cluster's domain or `svc`.
        ours: bool,
    },
    /// A name under the mesh's domains that cannot exist.
    Nothing,
    /// Somebody else's.
    Foreign,
}

impl Subject {
    /// The subject of `name` (lower case, no final dot), asked for in `namespace`.
    pub(crate) fn of(name: &str, namespace: &str, cluster_domain: &str) -> Self {
        let under = |domain: &str| {
            name.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        if under("localhost") {
            return Self::Localhost;
        }
        let ours = under("svc") || under(cluster_domain) || under(SYNTHETIC_REVERSE);
        match ServiceName::from_host(name, namespace, cluster_domain) {
            Some(name) => Self::Service { name, ours },
            None if ours => Self::Nothing,
            None => Self::Foreign,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(name: &str) -> Subject {
        Subject::of(name, "shop", "cluster.local")
    }

    #[test]
    fn each_name_goes_where_it_belongs() {
        let service = |key: &str, ours| Subject::Service { name: key.parse().unwrap(), ours };
        assert_eq!(subject("users"), service("shop/users", false));
        assert_eq!(subject("users.other"), service("other/users", false));
        assert_eq!(subject("users.shop.svc"), service("shop/users", true));
        assert_eq!(subject("users.shop.svc.cluster.local"), service("shop/users", true));
        assert_eq!(subject("example.com.shop.svc.cluster.local"), Subject::Nothing);
        assert_eq!(subject("example.com.svc.cluster.local"), service("com/example", true));
        assert_eq!(subject("example.com.cluster.local"), Subject::Nothing);
        assert_eq!(subject("cluster.local"), service("local/cluster", true));
        assert_eq!(subject("example.com"), service("com/example", false));
        assert_eq!(subject("www.example.com"), Subject::Foreign);
        assert_eq!(subject("4.3.240.240.in-addr.arpa"), Subject::Nothing);
        assert_eq!(subject("1.0.0.10.in-addr.arpa"), Subject::Foreign);
        assert_eq!(subject("localhost"), Subject::Localhost);
        assert_eq!(subject("app.localhost"), Subject::Localhost);
        assert_eq!(subject("notlocalhost.example.com"), Subject::Foreign);
        assert_eq!(subject(""), Subject::Foreign);
    }
}
