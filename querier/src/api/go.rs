//! Numbers, durations and times as the clients write them, with the texts of the parsers that Tempo stands on: clients show them.

use std::num::IntErrorKind::{NegOverflow, PosOverflow};

/// What Go calls a bool.
pub(crate) fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(format!("strconv.ParseBool: parsing {text:?}: invalid syntax")),
    }
}

/// A whole number; `function` is the Go function whose name the text of an error carries.
pub(crate) fn parse_int<T>(text: &str, function: &str) -> Result<T, String>
where
    T: std::str::FromStr<Err = std::num::ParseIntError>,
{
    let fail = |why: &str| Err(format!("strconv.{function}: parsing {text:?}: {why}"));
    // Go's unsigned numbers have no sign at all.
    if function == "ParseUint" && text.starts_with(['+', '-']) {
        return fail("invalid syntax");
    }
    match text.parse::<T>() {
        Ok(number) => Ok(number),
        Err(error) if matches!(error.kind(), PosOverflow | NegOverflow) => fail("value out of range"),
        Err(_) => fail("invalid syntax"),
    }
}

const NANOS: i64 = 1;
const MICROS: i64 = 1_000 * NANOS;
const MILLIS: i64 = 1_000 * MICROS;
pub(crate) const SECOND: i64 = 1_000 * MILLIS;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

/// A Go duration (`1h30m`, `1.5s`, `-3ms`) in nanoseconds.
pub(crate) fn parse_duration(text: &str) -> Result<i64, String> {
    let invalid = || format!("time: invalid duration {text:?}");
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total = 0i128;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(invalid());
        }
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (name, next) = after.split_at(end);
        let unit = match name {
            "" => return Err(format!("time: missing unit in duration {text:?}")),
            "ns" => NANOS,
            "us" | "\u{b5}s" | "\u{3bc}s" => MICROS,
            "ms" => MILLIS,
            "s" => SECOND,
            "m" => MINUTE,
            "h" => HOUR,
            _ => return Err(format!("time: unknown unit {name:?} in duration {text:?}")),
        };
        total += part(whole, fraction, unit).filter(|part| *part <= i128::from(i64::MAX)).ok_or_else(invalid)?;
        rest = next;
    }
    let signed = if negative { -total } else { total };
    i64::try_from(signed).map_err(|_| invalid())
}

/// `whole.fraction` units in nanoseconds; digits below a nanosecond are cut.
fn part(whole: &str, fraction: &str, unit: i64) -> Option<i128> {
    let unit = i128::from(unit);
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut nanos = whole.checked_mul(unit)?;
    let mut scale = unit;
    for digit in fraction.bytes() {
        scale /= 10;
        nanos = nanos.checked_add(i128::from(digit - b'0') * scale)?;
    }
    Some(nanos)
}

/// A Prometheus duration (`1h30m`, `2d`): whole numbers, each unit once, large before small.
pub(crate) fn parse_prometheus_duration(text: &str) -> Result<i64, String> {
    const UNITS: [(&str, i64); 7] =
        [("y", 365 * DAY), ("w", 7 * DAY), ("d", DAY), ("h", HOUR), ("m", MINUTE), ("s", SECOND), ("ms", MILLIS)];
    if text == "0" {
        return Ok(0);
    }
    let invalid = || format!("not a valid duration string: {text:?}");
    let (mut rest, mut allowed, mut total) = (text, &UNITS[..], 0i64);
    if text.is_empty() {
        return Err(invalid());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(invalid)?;
        let (number, after) = rest.split_at(digits);
        let end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (name, next) = after.split_at(end);
        let at = allowed.iter().position(|(unit, _)| *unit == name).ok_or_else(invalid)?;
        let number: i64 = number.parse().map_err(|_| invalid())?;
        let part = number.checked_mul(allowed[at].1).and_then(|part| total.checked_add(part));
        total = part.ok_or_else(|| "duration out of range".to_owned())?;
        (rest, allowed) = (next, &allowed[at + 1..]);
    }
    Ok(total)
}

/// A duration as Go prints it: `168h0m0s`, `1.5s`, `360ms`.
pub(crate) fn duration_text(nanos: i64) -> String {
    let size = nanos.unsigned_abs();
    let sign = if nanos < 0 { "-" } else { "" };
    let fraction = |unit: i64| {
        let unit = unit.unsigned_abs();
        let rest = size % unit;
        let width = unit.ilog10() as usize;
        let digits = format!("{rest:0width$}");
        match digits.trim_end_matches('0') {
            "" => (size / unit).to_string(),
            digits => format!("{}.{digits}", size / unit),
        }
    };
    let second = SECOND.unsigned_abs();
    match size {
        0 => "0s".to_owned(),
        1..1_000 => format!("{sign}{size}ns"),
        1_000..1_000_000 => format!("{sign}{}\u{b5}s", fraction(MICROS)),
        1_000_000..1_000_000_000 => format!("{sign}{}ms", fraction(MILLIS)),
        _ => {
            let minutes = size / second / 60;
            let seconds = fraction(SECOND);
            let below_minute = {
                let (whole, rest) = seconds.split_once('.').map_or((seconds.as_str(), None), |(w, r)| (w, Some(r)));
                let whole = whole.parse::<u64>().unwrap_or_default() % 60;
                rest.map_or_else(|| format!("{whole}s"), |rest| format!("{whole}.{rest}s"))
            };
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{sign}{below_minute}"),
                (0, minutes) => format!("{sign}{minutes}m{below_minute}"),
                (hours, minutes) => format!("{sign}{hours}h{minutes}m{below_minute}"),
            }
        }
    }
}

/// A moment in nanoseconds since 1970: seconds (up to ten characters), nanoseconds (more), seconds with a fraction (kept to
/// the millisecond) or RFC 3339. Before 1970 is 1970.
pub(crate) fn parse_time(text: &str) -> Result<u64, String> {
    if text.contains('.')
        && let Ok(seconds) = text.parse::<f64>()
    {
        let millis = (seconds.fract() * 1e3).round() / 1e3;
        return Ok(((seconds.trunc() as i64 as f64 * 1e9) as u64).saturating_add((millis * 1e9).max(0.0) as u64));
    }
    match parse_int::<i64>(text, "ParseInt") {
        Ok(seconds) if text.len() <= 10 => Ok(u64::try_from(seconds).unwrap_or(0).saturating_mul(SECOND as u64)),
        Ok(nanos) => Ok(u64::try_from(nanos).unwrap_or(0)),
        Err(why) => parse_rfc3339(text).ok_or(why),
    }
}

/// `2023-11-14T22:13:20.5Z` or with `+01:00`.
pub(crate) fn parse_rfc3339(text: &str) -> Option<u64> {
    let number = |range: std::ops::Range<usize>| {
        let digits = text.get(range)?;
        digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<i64>().ok()).flatten()
    };
    let marks = [(4, '-'), (7, '-'), (10, 'T'), (13, ':'), (16, ':')];
    if marks.iter().any(|(at, mark)| text.get(*at..at + 1) != Some(mark.encode_utf8(&mut [0; 4]))) {
        return None;
    }
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    let rest = text.get(19..)?;
    let digits = rest.strip_prefix('.').map_or(0, |r| r.find(|c: char| !c.is_ascii_digit()).unwrap_or(r.len()));
    if rest.starts_with('.') && !(1..=9).contains(&digits) {
        return None;
    }
    let fraction = rest.get(1..=digits).unwrap_or_default();
    let nanos = format!("{fraction:0<9}").parse::<i64>().ok()?;
    let zone = rest.get(if digits > 0 { digits + 1 } else { 0 }..)?;
    let offset = match zone.as_bytes() {
        b"Z" => 0,
        [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
            let at = text.len() - zone.len();
            let minutes = number(at + 1..at + 3)? * 60 + number(at + 4..at + 6)?;
            if *sign == b'+' { minutes } else { -minutes }
        }
        _ => return None,
    };
    let month_days = [31, if is_leap(year) { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let last = *month_days.get(usize::try_from(month - 1).ok()?)?;
    if !(1..=last).contains(&day) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let seconds = ((days_since_1970(year, month, day) * 24 + hour) * 60 + minute - offset) * 60 + second;
    Some(u64::try_from(seconds.checked_mul(SECOND)?.checked_add(nanos)?).unwrap_or(0))
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    // Years that begin in March put the leap day last.
    let (year, month) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * month + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let good = [
            ("1h30m", 5_400 * SECOND),
            ("1.5s", 1_500 * MILLIS),
            ("-.5ms", -500 * MICROS),
            ("0", 0),
            ("+2us", 2 * MICROS),
            ("1\u{b5}s1ns", 1_001),
            ("0.0000000019s", 1),
        ];
        for (text, nanos) in good {
            assert_eq!(parse_duration(text), Ok(nanos), "{text}");
        }
        let bad = [
            ("", "time: invalid duration \"\""),
            ("5", "time: missing unit in duration \"5\""),
            ("5d", "time: unknown unit \"d\" in duration \"5d\""),
            ("1..5s", "time: invalid duration \"1..5s\""),
            (".s", "time: invalid duration \".s\""),
            ("abc", "time: invalid duration \"abc\""),
            ("9999999h", "time: invalid duration \"9999999h\""),
            (
                "170141183460469231731687303715884105.9us",
                "time: invalid duration \"170141183460469231731687303715884105.9us\"",
            ),
        ];
        for (text, why) in bad {
            assert_eq!(parse_duration(text).unwrap_err(), why);
        }
        let printed = [
            (168 * HOUR, "168h0m0s"),
            (90 * SECOND, "1m30s"),
            (1_500 * MILLIS, "1.5s"),
            (360 * MILLIS, "360ms"),
            (1_500, "1.5\u{b5}s"),
            (7, "7ns"),
            (0, "0s"),
            (-HOUR - 50 * MILLIS, "-1h0m0.05s"),
        ];
        for (nanos, text) in printed {
            assert_eq!(duration_text(nanos), text);
        }
        assert_eq!(parse_prometheus_duration("1h30m"), Ok(90 * MINUTE));
        assert_eq!(parse_prometheus_duration("2d1ms"), Ok(2 * DAY + MILLIS));
        assert_eq!(parse_prometheus_duration("0"), Ok(0));
        for text in ["", "1", "1.5h", "30m1h", "1h1h", "h", "-1h"] {
            assert_eq!(parse_prometheus_duration(text).unwrap_err(), format!("not a valid duration string: {text:?}"));
        }
        assert_eq!(parse_prometheus_duration("300y").unwrap_err(), "duration out of range");
    }

    #[test]
    fn moments() {
        let at = 1_700_000_000 * SECOND as u64;
        let good = [
            ("1700000000", at),
            ("1700000000000000000", at),
            ("17000000000", 17_000_000_000),
            ("1700000000.5004", at + 500_000_000),
            ("2023-11-14T22:13:20Z", at),
            ("2023-11-14T23:13:20.000000001+01:00", at + 1),
            ("2024-02-29T00:00:00Z", 1_709_164_800 * SECOND as u64),
            ("-5", 0),
            ("-5.5", 0),
            ("0", 0),
            ("18446744073.9", u64::MAX),
            ("1.5e300", u64::MAX),
        ];
        for (text, nanos) in good {
            assert_eq!(parse_time(text), Ok(nanos), "{text}");
        }
        for text in
            ["x", "2023-02-29T00:00:00Z", "2023-11-14T22:13:20", "2023-11-14 22:13:20Z", "2023-11-14T22:13:20.Z", "\u{e9}"]
        {
            assert_eq!(parse_time(text).unwrap_err(), format!("strconv.ParseInt: parsing {text:?}: invalid syntax"));
        }
    }
}
