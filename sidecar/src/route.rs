//! Gateway API routing, as plain decisions: which rule a request falls to, and
//! what the rule does to it.
//!
//! Configuration is compiled once into an [`HttpTable`] or a [`GrpcTable`]; a
//! request is compared through [`Head`], whichever version of HTTP it came in,
//! and changed through [`EditHead`]. Selecting allocates nothing (but to decode an
//! escaped query parameter, or to join a repeated header, that a rule asks for)
//! and costs the same for ten rules as for thousands, expressions excepted.
//!
//! Sending is left to the protocols' modules, choosing an endpoint to the
//! balancer. No I/O, no clock.

mod backend;
mod cors;
mod edit;
mod filter;
mod grpc;
mod hash;
mod head;
mod http;
mod matching;
mod path;
mod prefix;
mod query;
mod redirect;
mod rule;
mod session;

#[cfg(test)]
mod tests;

pub(crate) use backend::cookies;
pub use backend::{Backend, Backends, ClaimKey, NoBackend, Target, UserKey};
pub use cors::{Allowed, BadName, Cors, DEFAULT_MAX_AGE, OriginPattern};
pub use edit::{EditFields, EditHead, Http1Request, Http1Response, Places, TooLong};
pub use filter::{
    BadEdit, Early, Filter, Filters, HeaderEdits, Mirror, Noted, Reply, Rewrite, RewrittenHost, may_edit,
};
pub use grpc::{GrpcMatch, GrpcTable};
pub(crate) use hash::{ConfiguredMap, stable as stable_hash};
pub(crate) use head::fields;
pub use head::{Head, Http1Head};
pub(crate) use head::{field_value, lines, split_line};
pub use heddle_api::pattern::Pattern;
pub use http::{HttpMatch, HttpTable, PathMatch};
pub use matching::{NameMatch, Test};
pub use path::{BadRoutePath, PathEdit, normal as normal_path};
pub(crate) use query::{first as query_parameter, values as query_values, without as query_without};
pub use redirect::{Front, Redirect, RedirectStatus, Scheme};
pub use rule::{Limit, Rule, RuleRetry, Timeouts};
pub use session::{BadSession, Carrier, EndpointTag, Session, Token};
