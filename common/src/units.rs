//! Durations as people write them: `500ms`, `30s`, `1h30m`, `336h`. The same in the configuration, in overrides and on the
//! command line.

use std::time::Duration;

/// Reads a duration: numbers with units (us, ms, s, m, h, d) one after the other, or `0`. The error says what was expected.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let expected = || format!("`{text}` is not a duration: expected a number with a unit, as in 500ms, 30s, 10m or 336h");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let unit_at = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(expected)?;
        let unit_end = rest[unit_at..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| unit_at + at);
        let nanos = match &rest[unit_at..unit_end] {
            "us" | "µs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            "d" => 86_400_000_000_000,
            _ => return Err(expected()),
        };
        let part = scaled(&rest[..unit_at], nanos).ok_or_else(expected)?;
        total = total.checked_add(Duration::from_nanos(part)).ok_or_else(expected)?;
        rest = &rest[unit_end..];
    }
    if text.is_empty() { Err(expected()) } else { Ok(total) }
}

/// The shortest text that [`parse_duration`] reads back as the same duration, to the microsecond.
pub fn show_duration(duration: Duration) -> String {
    let micros = duration.as_micros();
    let units = [("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000), ("ms", 1_000)];
    let unit = units.iter().find(|(_, size)| micros >= *size && micros.is_multiple_of(*size));
    match unit {
        Some((name, size)) => format!("{}{name}", micros / size),
        None if micros == 0 => "0".into(),
        None => format!("{micros}us"),
    }
}

/// `number` times `scale`: exact for whole numbers, rounded for fractions, none if it does not fit.
pub fn scaled(number: &str, scale: u64) -> Option<u64> {
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(scale);
    }
    let product = number.parse::<f64>().ok()? * scale as f64;
    (product.is_finite() && product < u64::MAX as f64).then_some(product.round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_and_print() {
        for (text, expected, shown) in [
            ("30s", Duration::from_secs(30), "30s"),
            ("1h30m", Duration::from_secs(5400), "90m"),
            ("14d", Duration::from_secs(14 * 86_400), "336h"),
            ("1.5ms", Duration::from_micros(1500), "1500us"),
            ("0", Duration::ZERO, "0"),
            ("0h", Duration::ZERO, "0"),
        ] {
            assert_eq!(parse_duration(text), Ok(expected), "{text}");
            assert_eq!((show_duration(expected).as_str(), parse_duration(shown)), (shown, Ok(expected)), "{text}");
        }
        for bad in ["", "s", "12", "5 parsecs", "-1s", "9999999999d", "1.2.3s", "1h2", "µ"] {
            assert!(parse_duration(bad).unwrap_err().contains("is not a duration"), "{bad}");
        }
    }
}
