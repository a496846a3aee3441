//! Amounts of CPU and memory as Kubernetes writes them.

/// A positive amount, in thousand-millionths of a core or of a byte, so that
/// any two that Kubernetes takes can be compared exactly.
///
/// Reads the grammar of `resource.Quantity`: a decimal number, then one of
/// `n u m k M G T P E`, `Ki Mi Gi Ti Pi Ei`, or a decimal exponent.
pub(super) fn nanos(text: &str) -> Option<u128> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    // As many digits as an amount may have; longer ones would only be rounded.
    if whole.len() + fraction.len() > 18 || fraction.len() > 9 || (whole.is_empty() && fraction.is_empty()) {
        return None;
    }
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let decimal = |exponent: i32| {
        // The fraction's digits were read as whole ones, and all counts in thousand-millionths.
        let exponent = exponent + 9 - i32::try_from(fraction.len()).ok()?;
        let power = 10_u128.checked_pow(exponent.unsigned_abs())?;
        if exponent < 0 { Some(digits / power) } else { digits.checked_mul(power) }
    };
    let binary = |power: u32| decimal(0)?.checked_mul(1024_u128.checked_pow(power)?);
    let amount = match suffix {
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => decimal(suffix.strip_prefix(['e', 'E'])?.parse::<i8>().ok()?.into()),
    };
    amount.filter(|amount| *amount > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_amount_in_different_words_is_the_same() {
        for (one, other) in
            [("500m", "0.5"), ("1Ki", "1024"), ("1e3", "1k"), ("128Mi", "134217728"), ("1.5Gi", "1536Mi")]
        {
            assert!(nanos(one).is_some());
            assert_eq!(nanos(one), nanos(other), "{one} {other}");
        }
        assert!(nanos("100m") < nanos("1"));
    }

    #[test]
    fn what_is_no_amount_is_none() {
        for text in
            ["", "-1", "1x", "m", ".", "1..2", "0", "0Mi", "1e99", "99999999999999999999", "1 Gi", "½"]
        {
            assert_eq!(nanos(text), None, "{text:?}");
        }
    }
}
