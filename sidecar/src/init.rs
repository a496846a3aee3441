//! `heddle-sidecar init`: makes a pod's network bring all connections to its
//! sidecar.
//!
//! Runs once before the sidecar, in the pod's network namespace, with the
//! capability `NET_ADMIN` and nothing else. [`rules`] says what is intercepted;
//! it is written through netlink as one transaction that replaces what an
//! earlier run left, and read back; kernels without nf_tables are served by
//! [`iptables`]. Always holds: either all rules are in force, in both families, or
//! the command fails and the pod does not start.

mod iptables;
mod rules;
mod spec;

use std::io;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;

use self::rules::Rule;
use self::spec::{Networks, Ports};
use crate::netlink::nftables::{self, Family};
use crate::netlink::{Netlink, Refused};
use crate::sys::{self, Capability};
use crate::{log, pod};

/// Settings of `init`.
#[derive(Debug, Clone, Args)]
pub(crate) struct InitArgs {
    /// Ports of the pod at which connections are left alone: PORT or FIRST-LAST, separated by commas
    #[arg(long, value_name = "PORTS", env = "HEDDLE_SKIP_INBOUND_PORTS", default_value = "")]
    skip_inbound_ports: Ports,
    /// Ports elsewhere to which connections are left alone
    #[arg(long, value_name = "PORTS", env = "HEDDLE_SKIP_OUTBOUND_PORTS", default_value = "")]
    skip_outbound_ports: Ports,
    /// Networks elsewhere to which connections are left alone: ADDRESS/BITS, separated by commas
    #[arg(long, value_name = "CIDRS", env = "HEDDLE_SKIP_OUTBOUND_CIDRS", default_value = "")]
    skip_outbound_cidrs: Networks,
    /// The user of the sidecar, whose connections are left alone
    #[arg(long, value_name = "UID", env = "HEDDLE_SIDECAR_UID", default_value_t = pod::USER)]
    sidecar_uid: u32,
    /// Only say whether the rules are in force, by the exit status
    #[arg(long)]
    check: bool,
    /// Remove the rules
    #[arg(long, conflicts_with = "check")]
    remove: bool,
    /// What is logged: a level (error, warn, info, debug, trace) or a tracing filter
    #[arg(long, value_name = "FILTER", env = "HEDDLE_LOG_LEVEL", default_value = "info")]
    log_level: String,
    /// A YAML file with settings: each flag's name in camelCase
    #[arg(long, value_name = "FILE", env = "HEDDLE_CONFIG")]
    config: Option<PathBuf>,
}

/// Every family that a table may have been made in.
const FAMILIES: [Family; 3] = [Family::Inet, Family::Ip, Family::Ip6];

/// Sets, checks or removes the rules of the process's network namespace.
///
/// # Errors
/// If that is not possible, or the rules that were to be found are not there.
pub(crate) fn run(args: &InitArgs) -> anyhow::Result<()> {
    log::init(&args.log_level).context("--log-level")?;
    if !sys::has_capability(Capability::NetAdmin) {
        bail!(
            "the network rules need the capability NET_ADMIN, which this process does not have: in a pod, \
             securityContext.capabilities.add of the container {} must contain NET_ADMIN, and it must run as user 0",
            "heddle-init"
        );
    }
    let mut netfilter = Netlink::netfilter().context("the kernel offers no netfilter by netlink")?;
    if args.remove {
        for family in FAMILIES {
            remove(&mut netfilter, family)?;
            iptables::remove(family);
        }
        tracing::info!("connections are not intercepted any more");
        return Ok(());
    }
    let rules = rules::of(args);
    if args.check {
        check(&mut netfilter, &rules)?;
        tracing::info!("the rules are in force");
        return Ok(());
    }
    let how = install(&mut netfilter, &rules)?;
    check(&mut netfilter, &rules).context("the kernel took the rules, but does not have them")?;
    tracing::info!(
        how,
        rules = rules.len(),
        outbound = pod::OUTBOUND_PORT,
        inbound = pod::INBOUND_PORT,
        dns = pod::DNS_PORT,
        user = args.sidecar_uid,
        "connections are intercepted"
    );
    Ok(())
}

/// Puts the rules in force: in one table where the kernel can, else in one for each family.
fn install(netfilter: &mut Netlink, rules: &[Rule]) -> anyhow::Result<&'static str> {
    let both = match replace(netfilter, rules, Family::Inet) {
        Ok(()) => {
            remove(netfilter, Family::Ip)?;
            remove(netfilter, Family::Ip6)?;
            return Ok("nftables, one table");
        }
        Err(refused) => refused,
    };
    // Connections of a family that nobody intercepts would go out in plaintext.
    let families = if has_ipv6() { &[Family::Ip, Family::Ip6][..] } else { &[Family::Ip] };
    let each = families.iter().try_for_each(|family| replace(netfilter, rules, *family));
    let Err(each) = each else { return Ok("nftables, a table for each family") };
    remove(netfilter, Family::Ip)?;
    families.iter().try_for_each(|family| iptables::install(rules, *family)).with_context(|| {
        format!(
            "the kernel takes the rules neither as one nftables table ({both}) nor as one for each family ({each}): \
             nf_tables with nft_redir and nft_ct is needed (CONFIG_NF_TABLES, CONFIG_NFT_REDIR, CONFIG_NFT_CT), \
             or iptables in an image of your own"
        )
    })?;
    Ok("iptables")
}

/// Replaces the table of this family, if there is one, in one transaction.
fn replace(netfilter: &mut Netlink, rules: &[Rule], family: Family) -> Result<(), Refused> {
    // A table can only be deleted where there is one, so it is made first.
    let mut requests = vec![nftables::add_table(), nftables::delete_table(), nftables::add_table()];
    requests.extend(rules::chains(rules));
    requests.extend(rules.iter().filter(|rule| rule.is_for(family)).map(Rule::request));
    let requests = requests.into_iter().map(|request| nftables::in_family(request, family));
    netfilter.transact(&nftables::transaction(requests))
}

/// Removes the table of this family, if there is one.
fn remove(netfilter: &mut Netlink, family: Family) -> anyhow::Result<()> {
    let request = nftables::in_family(nftables::delete_table(), family);
    match netfilter.transact(&nftables::transaction([request])) {
        Err(refused) if !is_nothing_there(&refused.source) => {
            Err(refused).with_context(|| format!("the table of the family {family:?}"))
        }
        _ => Ok(()),
    }
}

/// Whether there is no such table, or the kernel cannot have one of this family.
fn is_nothing_there(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EAFNOSUPPORT | libc::EOPNOTSUPP))
}

/// Compares what is in force with what should be.
fn check(netfilter: &mut Netlink, rules: &[Rule]) -> anyhow::Result<()> {
    let mut in_force = |family| -> anyhow::Result<bool> {
        let found = match nftables::comments(netfilter, family) {
            Err(refused) if is_nothing_there(&refused.source) => return Ok(false),
            found => found?,
        };
        Ok(rules::are(rules, &found, family))
    };
    let complete =
        in_force(Family::Inet)? || in_force(Family::Ip)? && (!has_ipv6() || in_force(Family::Ip6)?);
    let by_iptables =
        || iptables::has(rules, Family::Ip) && (!has_ipv6() || iptables::has(rules, Family::Ip6));
    if !complete && !by_iptables() {
        bail!(
            "the rules that bring connections to the sidecar are not in force, or are others than these settings \
             ask for; `heddle-sidecar init` sets them (`nft list ruleset` shows what there is)"
        );
    }
    Ok(())
}

/// Whether this network namespace speaks IPv6 at all.
fn has_ipv6() -> bool {
    std::fs::read_to_string("/proc/self/net/if_inet6").is_ok_and(|addresses| !addresses.trim().is_empty())
}
