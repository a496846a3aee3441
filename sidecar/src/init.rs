//! `heddle-sidecar init`: makes a pod's network bring all connections to its
//! sidecar.
//!
//! Runs once before the sidecar, in the pod's network namespace, with the
//! capability `NET_ADMIN` and nothing else, save for [`iptables`]. [`rules`] says what is intercepted;
//! it is written through netlink as one transaction that replaces what an
//! earlier run left, and read back; older kernels are served in other [ways](Way), those
//! without nf_tables by [`iptables`]. Always holds: either all rules are in force, in both families, or
//! the command fails and the pod does not start.

mod iptables;
mod rules;
mod spec;

use std::io;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};

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
    /// How the rules are set [default: the first way that the kernel can]
    #[arg(long, value_name = "WAY", env = "HEDDLE_INIT_BY", value_enum)]
    by: Option<Way>,
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
        Way::ALL.into_iter().try_for_each(|way| way.remove(&mut netfilter))?;
        tracing::info!("connections are not intercepted any more");
        return Ok(());
    }
    let rules = rules::of(args);
    if args.check {
        check(&mut netfilter, &rules)?;
        tracing::info!("the rules are in force");
        return Ok(());
    }
    let way = install(&mut netfilter, &rules, args.by)?;
    check(&mut netfilter, &rules).context("the kernel took the rules, but does not have them")?;
    tracing::info!(
        how = way.describe(),
        rules = rules.len(),
        outbound = pod::OUTBOUND_PORT,
        inbound = pod::INBOUND_PORT,
        dns = pod::DNS_PORT,
        user = args.sidecar_uid,
        "connections are intercepted"
    );
    Ok(())
}

/// How rules are put in force, the preferred way first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Way {
    /// One nftables table for both families
    Nftables,
    /// An nftables table for each family, for kernels before Linux 5.2
    NftablesByFamily,
    /// The programs of iptables, for kernels without nf_tables
    Iptables,
}

impl Way {
    const ALL: [Self; 3] = [Self::Nftables, Self::NftablesByFamily, Self::Iptables];

    const fn describe(self) -> &'static str {
        match self {
            Self::Nftables => "nftables, one table",
            Self::NftablesByFamily => "nftables, a table for each family",
            Self::Iptables => "iptables",
        }
    }

    /// Replaces what it had set before. Where that fails, what was in force stays so: no rules are
    /// worse than those of an earlier run.
    fn set(self, netfilter: &mut Netlink, rules: &[Rule]) -> anyhow::Result<()> {
        let families = families();
        match self {
            Self::Nftables => replace(netfilter, rules, Family::Inet)?,
            Self::NftablesByFamily => {
                families.iter().try_for_each(|family| replace(netfilter, rules, *family))?;
            }
            Self::Iptables => iptables::install(rules, families)?,
        }
        Ok(())
    }

    /// Removes what it has set, if it has.
    fn remove(self, netfilter: &mut Netlink) -> anyhow::Result<()> {
        match self {
            Self::Nftables => remove(netfilter, Family::Inet),
            Self::NftablesByFamily => {
                remove(netfilter, Family::Ip)?;
                remove(netfilter, Family::Ip6)
            }
            Self::Iptables => {
                iptables::remove();
                Ok(())
            }
        }
    }

    /// Whether these rules are in force by it, and no others.
    fn has(self, netfilter: &mut Netlink, rules: &[Rule]) -> anyhow::Result<bool> {
        let mut in_force = |family: &Family| -> anyhow::Result<bool> {
            let found = match nftables::comments(netfilter, *family) {
                // A kernel without nf_tables does not know the question (`nfnetlink_rcv_msg`).
                Err(refused)
                    if is_nothing_there(&refused.source)
                        || refused.source.raw_os_error() == Some(libc::EINVAL) =>
                {
                    return Ok(false);
                }
                found => found?,
            };
            Ok(rules::are(rules, &found, *family))
        };
        match self {
            Self::Nftables => in_force(&Family::Inet),
            Self::NftablesByFamily => {
                families().iter().try_fold(true, |all, family| Ok(all && in_force(family)?))
            }
            Self::Iptables => Ok(iptables::have(rules, families())),
        }
    }
}

/// The families that this network namespace speaks. Connections of one that nobody intercepts would
/// go out in plaintext.
fn families() -> &'static [Family] {
    let addresses = std::fs::read_to_string("/proc/self/net/if_inet6").unwrap_or_default();
    if addresses.trim().is_empty() { &[Family::Ip] } else { &[Family::Ip, Family::Ip6] }
}

/// Puts the rules in force, this way or by the first that the kernel can, and removes what an
/// earlier run left by another.
fn install(netfilter: &mut Netlink, rules: &[Rule], wanted: Option<Way>) -> anyhow::Result<Way> {
    let mut refusals = String::new();
    for way in Way::ALL.into_iter().filter(|way| wanted.is_none_or(|wanted| wanted == *way)) {
        match way.set(netfilter, rules) {
            Ok(()) => {
                let others = Way::ALL.into_iter().filter(|other| *other != way);
                others.into_iter().try_for_each(|other| other.remove(netfilter))?;
                return Ok(way);
            }
            Err(refused) => {
                let separator = if refusals.is_empty() { "" } else { "; " };
                refusals += &format!("{separator}by {}: {refused:#}", way.describe());
            }
        }
    }
    bail!(
        "the kernel takes the rules in no way ({refusals}): nf_tables with nft_redir and nft_ct is needed \
         (CONFIG_NF_TABLES, CONFIG_NFT_REDIR, CONFIG_NFT_CT), or iptables in an image of your own"
    )
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
    for way in Way::ALL {
        if way.has(netfilter, rules)? {
            return Ok(());
        }
    }
    bail!(
        "the rules that bring connections to the sidecar are not in force, or are others than these settings \
         ask for; `heddle-sidecar init` sets them (`nft list ruleset` shows what there is)"
    )
}
