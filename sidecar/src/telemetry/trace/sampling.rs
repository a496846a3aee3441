//! Which traces are recorded.

/// The rule for traces that begin here, and whether a sender's decision stands.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Sampler {
    /// A sender's decision is followed where there is one.
    pub parent_based: bool,
    /// The share of other traces; `None`: as the mesh's policy says.
    pub ratio: Option<f64>,
}

impl Default for Sampler {
    fn default() -> Self {
        Self { parent_based: true, ratio: None }
    }
}

impl Sampler {
    /// Decides, given what the sender and the mesh's policy say.
    pub(in crate::telemetry) fn decide(self, parent: Option<bool>, trace_id: u128, policy: f64) -> bool {
        match parent {
            Some(sampled) if self.parent_based => sampled,
            _ => is_within(trace_id, self.ratio.unwrap_or(policy)),
        }
    }
}

/// The last 56 bits, which W3C level 2 says are random, against the rejection threshold of
/// OpenTelemetry's consistent sampling: everyone who compares so decides alike. Compared are
/// the upper 53 of them, which a float holds exactly.
fn is_within(trace_id: u128, ratio: f64) -> bool {
    const RANGE: f64 = (1u64 << 53) as f64;
    let randomness = (trace_id >> 3 & ((1 << 53) - 1)) as f64;
    randomness >= (1.0 - ratio) * RANGE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_senders_decision_stands_only_if_parent_based() {
        let parent_based = Sampler { parent_based: true, ratio: Some(0.0) };
        assert!(parent_based.decide(Some(true), 1, 1.0));
        assert!(!parent_based.decide(None, u128::MAX, 1.0), "the configured ratio goes before the policy's");
        let alone = Sampler { parent_based: false, ratio: Some(1.0) };
        assert!(alone.decide(Some(false), 1, 0.0));
    }

    #[test]
    fn a_ratio_takes_its_share() {
        let random = super::super::Random::from_system();
        let sampler = Sampler::default();
        let taken = (0..20_000).filter(|_| sampler.decide(None, random.trace_id(), 0.25)).count();
        // Twelve standard deviations: 61 each.
        assert!((4_250..5_750).contains(&taken), "{taken}");
        assert!(!sampler.decide(None, u128::MAX, 0.0) && sampler.decide(None, 1 << 100, 1.0));
    }
}
