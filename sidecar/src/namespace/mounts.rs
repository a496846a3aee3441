//! The files of name resolution as the application sees them, in a mount
//! namespace of its own: `resolv.conf`, `nsswitch.conf`, and empty directories
//! over the sockets by which resolvers of the host could be asked around us.
//!
//! Nothing is written on the host's disks and nothing changes for other
//! processes. When the host replaces `/etc/resolv.conf` by renaming (as
//! NetworkManager does) the kernel removes our file and the application sees
//! the host's; names keep working, because queries to any resolver reach our
//! responder, which knows the short names too.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::namespace::network::RESOLVER;
use crate::sys;

/// Directories in which a file system may be mounted for a moment.
const SCRATCH: [&str; 3] = ["/tmp", "/mnt", "/run"];

/// Where nscd and systemd-resolved listen. Their sockets are files and cross
/// network namespaces.
const COVERED: [&str; 3] = ["/run/nscd", "/var/run/nscd", "/run/systemd/resolve"];

/// Names under which systemd-resolved offers a `resolv.conf`, to which
/// `/etc/resolv.conf` may be a symbolic link.
const RESOLVED_FILES: [&str; 2] = ["resolv.conf", "stub-resolv.conf"];

/// Moves the calling process into a mount namespace with our files in it.
///
/// # Errors
/// If the namespace or the files cannot be made. A single file that cannot be
/// replaced is no error: its path may not exist here.
pub(crate) fn set_up(namespace: &str, cluster_domain: &str) -> io::Result<()> {
    let host_resolv = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let host_nsswitch = fs::read_to_string("/etc/nsswitch.conf").unwrap_or_default();
    sys::unshare(sys::Namespace::Mount)?;
    sys::make_mounts_private()?;
    let scratch = scratch()?;
    let result = place(
        &scratch,
        &resolv_conf(&host_resolv, namespace, cluster_domain),
        &nsswitch_conf(&host_nsswitch),
    );
    sys::unmount(&scratch)?;
    result
}

fn scratch() -> io::Result<PathBuf> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for directory in SCRATCH.map(Path::new) {
        match sys::mount_tmpfs(directory) {
            Ok(()) => return Ok(directory.to_owned()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn place(scratch: &Path, resolv: &str, nsswitch: &str) -> io::Result<()> {
    let (resolv_file, nsswitch_file) = (scratch.join("resolv.conf"), scratch.join("nsswitch.conf"));
    fs::write(&resolv_file, resolv)?;
    fs::write(&nsswitch_file, nsswitch)?;
    let cover = scratch.join("cover");
    fs::create_dir(&cover)?;
    for name in RESOLVED_FILES {
        fs::write(cover.join(name), resolv)?;
    }
    // Directories first: `/etc/resolv.conf` may be a link into one of them.
    for directory in COVERED {
        let _ = sys::mount_bind(&cover, Path::new(directory));
    }
    let _ = sys::mount_bind(&resolv_file, Path::new("/etc/resolv.conf"));
    let _ = sys::mount_bind(&nsswitch_file, Path::new("/etc/nsswitch.conf"));
    Ok(())
}

/// Our `resolv.conf`: Kubernetes' search list for `namespace`, then the host's
/// own, and the options that Kubernetes sets.
fn resolv_conf(host: &str, namespace: &str, cluster_domain: &str) -> String {
    let directive = |word: &'static str| {
        host.lines().rev().filter_map(move |line| {
            let mut words = line.split_ascii_whitespace();
            (words.next() == Some(word)).then(|| words.collect::<Vec<_>>())
        })
    };
    // The last of `search` and `domain` counts (resolv.conf(5)); `search` is what everyone writes.
    let searched = directive("search").next().or_else(|| directive("domain").next()).unwrap_or_default();
    let mut search = vec![
        format!("{namespace}.svc.{cluster_domain}"),
        format!("svc.{cluster_domain}"),
        cluster_domain.to_owned(),
    ];
    search.extend(searched.into_iter().filter(|domain| *domain != ".").map(str::to_owned));
    format!("nameserver {RESOLVER}\nsearch {}\noptions ndots:5\n", search.join(" "))
}

/// The host's `nsswitch.conf` with hosts looked up in `/etc/hosts` and DNS
/// only: other modules ask resolvers of the host directly, or answer for names
/// that they know nothing about (`mdns4_minimal`).
fn nsswitch_conf(host: &str) -> String {
    let mut text = String::from("hosts: files dns\n");
    for line in host.lines().filter(|line| !line.trim_start().starts_with("hosts:")) {
        text.push_str(line);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_list_is_ours_then_the_hosts() {
        let host = "# x\nsearch old.example\nnameserver 10.0.0.1\nsearch corp.example lab.example .\n";
        assert_eq!(
            resolv_conf(host, "shop", "cluster.local"),
            "nameserver 127.0.0.53\nsearch shop.svc.cluster.local svc.cluster.local cluster.local \
             corp.example lab.example\noptions ndots:5\n"
        );
        assert!(resolv_conf("domain a.example", "n", "c").contains(" c a.example\n"));
        assert!(resolv_conf("", "n", "c").contains("search n.svc.c svc.c c\n"));
    }

    #[test]
    fn hosts_are_looked_up_in_files_and_dns_only() {
        let host = "passwd: files\nhosts: files mdns4_minimal [NOTFOUND=return] resolve dns\n";
        assert_eq!(nsswitch_conf(host), "hosts: files dns\npasswd: files\n");
    }
}
