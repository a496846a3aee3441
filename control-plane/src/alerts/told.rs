//! What the one that tells has told, as the other control planes of its cluster keep it.

use std::time::{Duration, SystemTime};

use heddle_api::discovery::v1;

use super::board::Key;

/// An alert that was told of.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Told {
    pub(super) key: Key,
    pub(super) value: f64,
    pub(super) requests: u64,
    pub(super) instances: usize,
    /// When it began to fire.
    pub(super) since: SystemTime,
    pub(super) last_told_at: SystemTime,
    /// How often it was told before that it fires.
    pub(super) told: u32,
    /// What was told last has not arrived yet.
    pub(super) on_its_way: bool,
    /// It fires no more, which is what is on its way.
    pub(super) resolved: bool,
}

impl Told {
    /// As it travels.
    pub(super) fn message(&self) -> v1::ToldAlert {
        let age = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        v1::ToldAlert {
            id: self.key.rule.clone(),
            service: self.key.service.as_str().into(),
            value: self.value,
            requests: self.requests,
            instances: u32::try_from(self.instances).unwrap_or(u32::MAX),
            since: u64::try_from(age(self.since).as_nanos()).unwrap_or(u64::MAX),
            last_told: u64::try_from(age(self.last_told_at).as_millis()).unwrap_or(u64::MAX),
            told: self.told,
            on_its_way: self.on_its_way,
            resolved: self.resolved,
        }
    }

    /// What a message says; `None` if it names no service.
    pub(super) fn read(message: v1::ToldAlert) -> Option<Self> {
        let at = |age: Duration| SystemTime::UNIX_EPOCH + age;
        Some(Self {
            key: Key { rule: message.id, service: message.service.parse().ok()? },
            value: message.value,
            requests: message.requests,
            instances: usize::try_from(message.instances).ok()?,
            since: at(Duration::from_nanos(message.since)),
            last_told_at: at(Duration::from_millis(message.last_told)),
            told: message.told,
            on_its_way: message.on_its_way,
            resolved: message.resolved,
        })
    }
}
