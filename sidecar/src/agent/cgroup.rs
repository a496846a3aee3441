//! What a workload uses of its memory and processor limits, by its control group
//! (cgroup v2; kernel documentation, "Control Group v2").
//!
//! A limit may be set at the group or at any that it lies in, so all of them are
//! looked at and the one that is nearest to its limit counts. Where there is no
//! limit, no cgroup v2, or the sidecar is alone in its group (a container of its
//! own, whose limits say nothing about the application), there is nothing to see.

use std::fs;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use crate::policy::score::Cpu;

/// Groups that lie in each other; systemd makes five or six.
const DEPTH: usize = 16;

/// The control groups of a workload.
#[derive(Debug)]
pub(super) struct Cgroup {
    /// Where processes are described: `/proc`.
    proc: PathBuf,
    /// The application's process, 0 if unknown.
    pid: u32,
}

/// What is used of limits.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Usage {
    /// The part of the memory limit; `None`: there is none.
    pub(super) memory: Option<f64>,
    /// Processor time; `None`: there is no limit.
    pub(super) cpu: Option<Cpu>,
}

impl Cgroup {
    pub(super) fn new(app_pid: u32) -> Self {
        Self { proc: "/proc".into(), pid: app_pid }
    }

    /// What is used now. Reads some small files of the kernel's memory, which takes microseconds.
    pub(super) fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        let Some((root, own)) = self.groups() else { return usage };
        for group in own.ancestors().take_while(|group| group.starts_with(&root)).take(DEPTH) {
            if let Some(part) = memory(group) {
                usage.memory = Some(usage.memory.map_or(part, |worst| worst.max(part)));
            }
            if let Some(cpu) = cpu(group) {
                // The least that may be had; of its use the group knows.
                usage.cpu =
                    Some(usage.cpu.map_or(cpu, |least| if cpu.limit < least.limit { cpu } else { least }));
            }
        }
        usage
    }

    /// The folder of all groups that we see, and that of the workload's.
    fn groups(&self) -> Option<(PathBuf, PathBuf)> {
        let process = match self.pid {
            0 => self.proc.join("self"),
            pid => self.proc.join(pid.to_string()),
        };
        let groups = fs::read_to_string(process.join("cgroup")).ok()?;
        let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
        let (mounted, root) = mount(&fs::read_to_string(self.proc.join("self/mountinfo")).ok()?)?;
        let path = Path::new(path);
        // A group outside of those that we see begins with "..".
        if path.components().any(|component| !matches!(component, Component::Normal(_))) {
            return None;
        }
        let own = mounted.join(path.strip_prefix(root).ok()?);
        let alone = self.pid == 0 && {
            let members = fs::read_to_string(own.join("cgroup.procs")).ok()?;
            members.lines().count() <= 1
        };
        (!alone).then_some((mounted, own))
    }
}

/// Where cgroup v2 is mounted, and which group is the root there (proc(5), "mountinfo").
fn mount(mountinfo: &str) -> Option<(PathBuf, PathBuf)> {
    mountinfo.lines().find_map(|line| {
        let (fields, kind) = line.split_once(" - ")?;
        if kind.split(' ').next() != Some("cgroup2") {
            return None;
        }
        let mut fields = fields.split(' ').skip(3);
        let (root, mounted) = (fields.next()?, fields.next()?);
        Some((mounted.into(), root.strip_prefix('/')?.into()))
    })
}

/// The part of a group's memory limit that is in use and cannot simply be had back.
fn memory(group: &Path) -> Option<f64> {
    let limit: u64 = fs::read_to_string(group.join("memory.max")).ok()?.trim().parse().ok()?;
    let used: u64 = fs::read_to_string(group.join("memory.current")).ok()?.trim().parse().ok()?;
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let used = used.saturating_sub(field(&stat, "inactive_file").unwrap_or(0));
    (limit > 0).then(|| real(used) / real(limit))
}

fn cpu(group: &Path) -> Option<Cpu> {
    let max = fs::read_to_string(group.join("cpu.max")).ok()?;
    let (quota, period) = max.trim().split_once(' ')?;
    // "max" is no number: there is no limit.
    let (quota, period): (u64, u64) = (quota.parse().ok()?, period.parse().ok()?);
    let stat = fs::read_to_string(group.join("cpu.stat")).ok()?;
    (quota > 0 && period > 0).then(|| {
        Some(Cpu {
            used: Duration::from_micros(field(&stat, "usage_usec")?),
            limit: real(quota) / real(period),
            periods: field(&stat, "nr_periods").unwrap_or(0),
            throttled: field(&stat, "nr_throttled").unwrap_or(0),
        })
    })?
}

/// A value of a flat keyed file.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

#[expect(clippy::cast_precision_loss, reason = "a share of it is wanted")]
fn real(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine with a group `/pods/app` of process 7, of which these files are in both groups.
    struct Machine(tempfile::TempDir);

    impl Machine {
        fn new(membership: &str, root: &str) -> Self {
            let machine = Self(tempfile::tempdir().unwrap());
            let mounted = machine.0.path().join("cgroup");
            machine.put("proc/7/cgroup", membership);
            machine.put("proc/self/cgroup", membership);
            let line = format!("30 23 0:26 {root} {} rw,nosuid - cgroup2 cgroup2 rw\n", mounted.display());
            machine.put("proc/self/mountinfo", &("29 1 8:1 / / rw - ext4 /dev/a rw\n".to_owned() + &line));
            machine
        }

        fn put(&self, path: &str, text: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn usage(&self, pid: u32) -> Usage {
            Cgroup { proc: self.0.path().join("proc"), pid }.usage()
        }
    }

    #[test]
    fn the_group_nearest_to_its_limit_counts() {
        let machine = Machine::new("1:cpu:/old\n0::/pods/app\n", "/");
        assert_eq!(machine.usage(7), Usage::default());
        machine.put("cgroup/pods/app/memory.max", "max\n");
        machine.put("cgroup/pods/app/memory.current", "600\n");
        assert_eq!(machine.usage(7), Usage::default());
        machine.put("cgroup/pods/memory.max", "1000\n");
        machine.put("cgroup/pods/memory.current", "900\n");
        machine.put("cgroup/pods/memory.stat", "active_file 50\ninactive_file 200\n");
        assert_eq!(machine.usage(7).memory, Some(0.7));
        machine.put("cgroup/pods/app/memory.max", "625\n");
        assert_eq!(machine.usage(7).memory, Some(0.96));

        machine.put("cgroup/pods/cpu.max", "400000 100000\n");
        machine.put("cgroup/pods/cpu.stat", "usage_usec 1\n");
        machine.put("cgroup/pods/app/cpu.max", "50000 100000\n");
        machine.put(
            "cgroup/pods/app/cpu.stat",
            "usage_usec 2500000\nuser_usec 1\nnr_periods 40\nnr_throttled 8\n",
        );
        let cpu = Cpu { used: Duration::from_millis(2500), limit: 0.5, periods: 40, throttled: 8 };
        assert_eq!(machine.usage(7).cpu, Some(cpu));
        machine.put("cgroup/pods/app/cpu.max", "max 100000\n");
        assert_eq!(machine.usage(7).cpu.map(|cpu| cpu.limit), Some(4.0));
    }

    #[test]
    fn a_sidecar_alone_in_its_group_says_nothing_about_its_application() {
        let machine = Machine::new("0::/\n", "/");
        machine.put("cgroup/memory.max", "1000\n");
        machine.put("cgroup/memory.current", "990\n");
        machine.put("cgroup/cgroup.procs", "7\n");
        assert_eq!(machine.usage(0), Usage::default());
        machine.put("cgroup/cgroup.procs", "7\n8\n");
        assert_eq!(machine.usage(0).memory, Some(0.99));
    }

    #[test]
    fn groups_are_found_where_they_are_mounted() {
        let machine = Machine::new("0::/docker/abc/app\n", "/docker/abc");
        machine.put("cgroup/app/memory.max", "1000\n");
        machine.put("cgroup/app/memory.current", "500\n");
        assert_eq!(machine.usage(7).memory, Some(0.5));
        for outside in ["0::/../other\n", "0::/docker\n", "1:memory:/a\n", ""] {
            assert_eq!(Machine::new(outside, "/docker/abc").usage(7), Usage::default(), "{outside}");
        }
    }
}
