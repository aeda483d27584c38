//! Durations as text: what a query may write, and how an answer prints them.
//!
//! Two ways of writing are understood: whole numbers of `y w d h m s ms` from large to small, as Prometheus has them, and
//! Go's, with fractions and in any order, but no unit above hours.

const NANOS: [(&str, i64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

const DAY: i64 = 24 * 3_600_000_000_000;

/// From large to small: the order in which they must be written.
const PROMETHEUS: [(&str, i64); 7] = [
    ("y", 365 * DAY),
    ("w", 7 * DAY),
    ("d", DAY),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
];

/// Nanoseconds of an unsigned duration; `None` if it is none, or more than 64 bits hold.
pub(crate) fn parse(text: &str) -> Option<i64> {
    parse_prometheus(text).or_else(|| parse_go(text))
}

fn parse_prometheus(text: &str) -> Option<i64> {
    let mut rest = text;
    let mut total: i64 = 0;
    let mut allowed = &PROMETHEUS[..];
    while !rest.is_empty() {
        let (digits, unit) = take_number_and_unit(&mut rest)?;
        let index = allowed.iter().position(|(name, _)| *name == unit)?;
        let count: i64 = digits.parse().ok()?;
        total = total.checked_add(count.checked_mul(allowed[index].1)?)?;
        allowed = &allowed[index + 1..];
    }
    Some(total)
}

/// Exact where Go goes through floating point: what [`format`] prints must come back as it was.
fn parse_go(text: &str) -> Option<i64> {
    let mut rest = text;
    let mut total: i64 = 0;
    while !rest.is_empty() {
        let (number, unit) = take_number_and_unit(&mut rest)?;
        let unit = NANOS.iter().find(|(name, _)| *name == unit)?.1;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
            return None;
        }
        let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        total = total.checked_add(whole.checked_mul(unit)?)?;
        // Digits past the twentieth are less than a nanosecond of any unit.
        let mut part: i128 = 0;
        let mut scale: i128 = 1;
        for digit in fraction.bytes().take(20) {
            part = part * 10 + i128::from(digit - b'0');
            scale *= 10;
        }
        total = total.checked_add(i64::try_from(part * i128::from(unit) / scale).ok()?)?;
    }
    Some(total)
}

/// The digits and dots at the start, and the letters after them. `None` if either is missing.
fn take_number_and_unit<'a>(rest: &mut &'a str) -> Option<(&'a str, &'a str)> {
    let is_number = |c: char| c.is_ascii_digit() || c == '.';
    let unit_at = rest.find(|c| !is_number(c))?;
    let (number, tail) = rest.split_at(unit_at);
    let (unit, tail) = tail.split_at(tail.find(is_number).unwrap_or(tail.len()));
    *rest = tail;
    (!number.is_empty()).then_some((number, unit))
}

/// `1.5s`, `250ms`, `1m0s`, `1h0m0.000000001s`, `0s`: Go's way, which clients know.
pub fn format_duration(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let nanos = nanos.unsigned_abs();
    if nanos == 0 {
        return "0s".to_owned();
    }
    if nanos < 1_000_000_000 {
        let (unit, size, digits) = match nanos {
            0..1_000 => ("ns", 1, 0),
            1_000..1_000_000 => ("µs", 1_000, 3),
            _ => ("ms", 1_000_000, 6),
        };
        return format!("{sign}{}{unit}", decimal(nanos, size, digits));
    }
    let seconds = nanos / 1_000_000_000;
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    let rest = decimal(nanos % 60_000_000_000, 1_000_000_000, 9);
    match (hours, minutes) {
        (0, 0) => format!("{sign}{rest}s"),
        (0, _) => format!("{sign}{minutes}m{rest}s"),
        _ => format!("{sign}{hours}h{minutes}m{rest}s"),
    }
}

/// `value / size` with up to `digits` places, without zeros at the end.
fn decimal(value: u64, size: u64, digits: usize) -> String {
    let (whole, part) = (value / size, value % size);
    if part == 0 {
        return whole.to_string();
    }
    let places = format!("{part:0digits$}");
    format!("{whole}.{}", places.trim_end_matches('0'))
}
