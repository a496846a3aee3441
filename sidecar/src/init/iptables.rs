//! The rules by way of `iptables`, for kernels without nf_tables: the same
//! [rules](super::rules) in chains of our own, which `iptables-restore` replaces as
//! one, and one jump to each.
//!
//! The programs have to be in `PATH`; the image of the sidecar has none. Those of iptables-legacy
//! open a raw socket and need `NET_RAW` for it, the others no more than `NET_ADMIN`.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, anyhow, bail};

use super::rules::{self, Chain, Rule};
use crate::netlink::nftables::Family;
use crate::sys::{self, Capability};

/// Which programs, where there are several: those that go by the plain name may need nf_tables, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Programs {
    Usual,
    Legacy,
}

impl Programs {
    const ALL: [Self; 2] = [Self::Usual, Self::Legacy];

    /// What the names of those of a family begin with.
    const fn of(self, family: Family) -> &'static str {
        match (self, family) {
            (Self::Usual, Family::Inet | Family::Ip) => "iptables",
            (Self::Usual, Family::Ip6) => "ip6tables",
            (Self::Legacy, Family::Inet | Family::Ip) => "iptables-legacy",
            (Self::Legacy, Family::Ip6) => "ip6tables-legacy",
        }
    }
}

/// Where the programs' lock is, whose usual place is in a root file system that a pod may not write
/// to. Nobody but us has rules in the pod's network.
const LOCK: (&str, &str) = ("XTABLES_LOCKFILE", "/dev/shm/heddle-xtables.lock");

/// Puts the rules in force for these families.
///
/// # Errors
/// Why neither programs did.
pub(super) fn install(rules: &[Rule], families: &[Family]) -> anyhow::Result<()> {
    let by = |programs| families.iter().try_for_each(|family| restore(rules, *family, programs));
    let Err(usual) = by(Programs::Usual) else { return Ok(()) };
    by(Programs::Legacy).map_err(|legacy| match sys::has_capability(Capability::NetRaw) {
        true => anyhow!("{usual:#}; {legacy:#}"),
        false => anyhow!(
            "{usual:#}; {legacy:#}; iptables-legacy needs the capability NET_RAW, which this process does not have: \
             the annotation heddle.dev/interception: iptables of a pod asks for it"
        ),
    })?;
    remove_of(Programs::Usual);
    Ok(())
}

fn restore(rules: &[Rule], family: Family, programs: Programs) -> anyhow::Result<()> {
    let missing: Vec<Chain> = used(rules).filter(|chain| !jumps_to(family, programs, *chain)).collect();
    let restore = format!("{}-restore", programs.of(family));
    let mut child = Command::new(&restore)
        .args(["--noflush", "--wait"])
        .env(LOCK.0, LOCK.1)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{restore} cannot be run"))?;
    if let Some(mut input) = child.stdin.take() {
        // One that has refused to work does not read; what it says counts.
        let _ = input.write_all(script(rules, family, &missing).as_bytes());
    }
    let output = child.wait_with_output().context(restore.clone())?;
    if !output.status.success() {
        bail!("{restore}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Whether the rules are in force for these families.
pub(super) fn have(rules: &[Rule], families: &[Family]) -> bool {
    Programs::ALL.into_iter().any(|programs| families.iter().all(|family| has(rules, *family, programs)))
}

fn has(rules: &[Rule], family: Family, programs: Programs) -> bool {
    let mut found = Vec::new();
    for chain in Chain::ALL {
        let listed = run(family, programs, &["-t", chain.table(), "-S", &own(chain)]);
        let listed = listed.filter(|output| output.status.success());
        found.extend(listed.iter().flat_map(|output| {
            comments(&String::from_utf8_lossy(&output.stdout))
                .into_iter()
                .map(|comment| (chain.name().to_owned(), comment))
        }));
    }
    rules::are(rules, &found, family) && used(rules).all(|chain| jumps_to(family, programs, chain))
}

/// Removes what [`install`] made, if it is there and the programs are.
pub(super) fn remove() {
    Programs::ALL.into_iter().for_each(remove_of);
}

fn remove_of(programs: Programs) {
    for family in [Family::Ip, Family::Ip6] {
        for chain in Chain::ALL {
            let (table, own) = (chain.table(), own(chain));
            for arguments in [&["-D", chain.hooked(), "-j", &own][..], &["-F", &own], &["-X", &own]] {
                if run(family, programs, &[&["-t", table], arguments].concat()).is_none() {
                    return;
                }
            }
        }
    }
}

fn used(rules: &[Rule]) -> impl Iterator<Item = Chain> {
    Chain::ALL.into_iter().filter(|chain| rules.iter().any(|rule| rule.is_in(*chain)))
}

fn jumps_to(family: Family, programs: Programs, chain: Chain) -> bool {
    run(family, programs, &["-t", chain.table(), "-C", chain.hooked(), "-j", &own(chain)])
        .is_some_and(|output| output.status.success())
}

/// What a program did; `None` if it cannot be run.
fn run(family: Family, programs: Programs, arguments: &[&str]) -> Option<Output> {
    let mut command = Command::new(programs.of(family));
    command.env(LOCK.0, LOCK.1).arg("--wait").args(arguments).stdin(Stdio::null());
    command.output().ok()
}

/// The name of our own chain.
fn own(chain: Chain) -> String {
    format!("HEDDLE_{}", chain.name().to_ascii_uppercase().replace('-', "_"))
}

/// What `iptables-restore` is given. To name a chain empties it; a jump is added only where there is none yet.
fn script(rules: &[Rule], family: Family, missing: &[Chain]) -> String {
    let mut script = String::new();
    for table in ["raw", "nat"] {
        let chains: Vec<Chain> = used(rules).filter(|chain| chain.table() == table).collect();
        if chains.is_empty() {
            continue;
        }
        script += &format!("*{table}\n");
        for chain in &chains {
            script += &format!(":{} - [0:0]\n", own(*chain));
        }
        for chain in &chains {
            for rule in rules.iter().filter(|rule| rule.is_in(*chain) && rule.is_for(family)) {
                script += &format!("-A {} {}\n", own(*chain), rule.in_words_of_iptables());
            }
            if missing.contains(chain) {
                script += &format!("-A {} -j {}\n", chain.hooked(), own(*chain));
            }
        }
        script += "COMMIT\n";
    }
    script
}

/// The comments of the rules in a list of them.
fn comments(listed: &str) -> Vec<String> {
    let rules = listed.lines().filter(|line| line.starts_with("-A "));
    let comment = |line: &str| {
        let (_, rest) = line.split_once("--comment \"")?;
        Some(rest.split_once('"')?.0.to_owned())
    };
    rules.map(|line| comment(line).unwrap_or_default()).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::init::InitArgs;

    #[derive(Parser)]
    struct Tool {
        #[command(flatten)]
        args: InitArgs,
    }

    fn rules(flags: &[&str]) -> Vec<Rule> {
        rules::of(&Tool::parse_from(["init"].iter().chain(flags)).args)
    }

    #[test]
    fn rules_are_told_in_the_words_of_iptables() {
        let skipping = rules(&["--skip-outbound-cidrs", "10.0.0.0/8,fd00::/8", "--skip-inbound-ports", "22"]);
        let all = [Chain::TrackOutput, Chain::TrackInput, Chain::Outbound, Chain::Inbound];
        let script = script(&skipping, Family::Ip, &all);
        for line in [
            "*raw\n:HEDDLE_TRACK_OUTPUT - [0:0]\n:HEDDLE_TRACK_INPUT - [0:0]\n",
            "-A HEDDLE_TRACK_OUTPUT -m owner --uid-owner 7100 -p udp --dport 53 -m comment --comment \"queries of the sidecar (user 7100) to resolvers\" -j CT --notrack\n",
            "-A OUTPUT -j HEDDLE_TRACK_OUTPUT\n",
            "-A PREROUTING -j HEDDLE_TRACK_INPUT\n",
            "*nat\n:HEDDLE_OUTBOUND - [0:0]\n:HEDDLE_INBOUND - [0:0]\n",
            "-A HEDDLE_OUTBOUND -m owner --uid-owner 7100 -o lo -p tcp --dport 7199 -m comment --comment \"by which the sidecar (user 7100) sees that there are rules, to 7101\" -j REDIRECT --to-ports 7101\n",
            "-A HEDDLE_OUTBOUND -o lo -m comment --comment \"within the pod\" -j RETURN\n",
            "-A HEDDLE_OUTBOUND -p tcp -d 10.0.0.0/8 -m comment --comment \"skipped: to 10.0.0.0/8\" -j RETURN\n",
            "-A HEDDLE_OUTBOUND -p tcp -m comment --comment \"what the application calls, to 7101\" -j REDIRECT --to-ports 7101\n",
            "-A HEDDLE_INBOUND -p tcp --dport 22 -m comment --comment \"skipped: ports 22-22\" -j RETURN\n",
            "-A PREROUTING -j HEDDLE_INBOUND\nCOMMIT\n",
        ] {
            assert!(script.contains(line), "{line} is not in\n{script}");
        }
        assert!(!script.contains("fd00"));
        let six = super::script(&skipping, Family::Ip6, &[]);
        assert!(six.contains("-d fd00::/8") && !six.contains("10.0.0.0") && !six.contains("-A OUTPUT"));
    }

    #[test]
    fn rules_are_found_again_by_their_comments() {
        let plain = rules(&[]);
        let text = script(&plain, Family::Ip, &[]);
        let of = |chain: Chain| {
            let lines = text.lines().filter(|line| line.starts_with(&format!("-A {} ", own(chain))));
            comments(&lines.collect::<Vec<_>>().join("\n"))
        };
        let found: Vec<(String, String)> = Chain::ALL
            .into_iter()
            .flat_map(|chain| of(chain).into_iter().map(move |comment| (chain.name().to_owned(), comment)))
            .collect();
        assert!(rules::are(&plain, &found, Family::Ip));
        assert_eq!(comments("-N HEDDLE_OUTBOUND\n-A HEDDLE_OUTBOUND -j RETURN\n"), [""]);
    }
}
