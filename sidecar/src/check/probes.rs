//! What the kernel allows this user, tried step by step in children: each step
//! needs those before it, and the first that fails is the one to explain.

use std::fs;

use super::Finding;
use crate::namespace::mounts;
use crate::namespace::network::{self, Interception};
use crate::run::launch::enter_user_namespace_if_needed;
use crate::sys::{self, Capability, Namespace};

/// What else can be done wherever namespaces cannot be had.
const WITHOUT: &str = "or use `heddle run --explicit`, which needs no namespaces";

pub(super) fn kernel() -> Vec<Finding> {
    let privileged = sys::has_capability(Capability::SysAdmin) && sys::has_capability(Capability::NetAdmin);
    let mut findings = Vec::new();
    findings.push(match attempt(enter) {
        Ok(()) if privileged => Finding::good("user namespace", "not needed with these privileges"),
        Ok(()) => Finding::good("user namespace", "can be made by this user"),
        Err(reason) => return vec![Finding::bad("user namespace", reason, user_namespace_remedy())],
    });
    let net = || enter().and_then(|()| sys::unshare(Namespace::Net).map_err(|error| error.to_string()));
    findings.push(match attempt(net) {
        Ok(()) => Finding::good("network namespace", "can be made"),
        Err(reason) => {
            findings.push(Finding::bad("network namespace", reason, user_namespace_remedy()));
            return findings;
        }
    });
    findings.extend(interception(&net));
    let mount =
        || enter().and_then(|()| mounts::set_up("default", "cluster.local").map_err(|e| e.to_string()));
    findings.push(match attempt(mount) {
        Ok(()) => Finding::good("mount namespace", "can be made; applications see the mesh's resolv.conf"),
        Err(reason) => Finding::bad("mount namespace", reason, WITHOUT),
    });
    findings
}

fn interception(net: &dyn Fn() -> Result<(), String>) -> Vec<Finding> {
    let with = |how| {
        attempt(|| net().and_then(|()| network::set_up(Some(how)).map(drop).map_err(|e| e.to_string())))
    };
    let modules = "load the modules nft_tproxy and nft_socket, or use a kernel that has them \
                   (CONFIG_NFT_TPROXY, CONFIG_NFT_SOCKET)";
    let tproxy = match with(Interception::Tproxy) {
        Ok(()) => return vec![Finding::good("interception", "nftables TPROXY works")],
        Err(reason) => reason,
    };
    match with(Interception::Redirect) {
        Ok(()) => vec![Finding::degraded(
            "interception",
            format!("nftables NAT works, TPROXY does not ({tproxy}): the host's loopback cannot be reached"),
            modules,
        )],
        Err(nat) => vec![Finding::bad(
            "interception",
            format!("neither nftables TPROXY ({tproxy}) nor NAT ({nat}) works"),
            format!("{modules}, or CONFIG_NFT_NAT and CONFIG_NFT_REDIR\n{WITHOUT}"),
        )],
    }
}

fn enter() -> Result<(), String> {
    enter_user_namespace_if_needed().map_err(|error| format!("{error:#}"))
}

/// The result of `work` in a child.
fn attempt(work: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    sys::in_child(work).unwrap_or_else(|error| Err(format!("it could not be tried: {error}")))
}

/// What keeps ordinary users from namespaces, by the settings that the
/// distributions have for it.
fn user_namespace_remedy() -> String {
    let setting = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let program = std::env::current_exe().map_or_else(|_| "heddle".into(), |path| path.display().to_string());
    let capabilities = format!("sudo setcap cap_sys_admin,cap_net_admin+ep {program}");
    let mut remedies = Vec::new();
    if setting("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").as_deref() == Some("1") {
        remedies.push(format!(
            "AppArmor keeps ordinary users from namespaces (Ubuntu 23.10 and later): give {program} a profile \
             with `userns,`, or: sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
        ));
    }
    if setting("/proc/sys/kernel/unprivileged_userns_clone").as_deref() == Some("0") {
        remedies.push("sudo sysctl -w kernel.unprivileged_userns_clone=1".into());
    }
    if setting("/proc/sys/user/max_user_namespaces").as_deref() == Some("0") {
        remedies.push("sudo sysctl -w user.max_user_namespaces=10000".into());
    }
    if remedies.is_empty() {
        remedies.push(
            "in a container: run it with --cap-add SYS_ADMIN --cap-add NET_ADMIN and a seccomp profile that \
             allows unshare and mount"
                .into(),
        );
    }
    remedies.push(format!("or: {capabilities}"));
    remedies.push("or run it as root".into());
    remedies.push(WITHOUT.into());
    remedies.join("\n")
}
