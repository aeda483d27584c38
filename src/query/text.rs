//! How values look at a terminal: durations, times, numbers, colours.
//!
//! Whatever a sender put into a span may come out here, so nothing of it is printed that could steer the terminal.

use std::io::IsTerminal as _;

use spanhouse_common::time::UnixNanos;

use crate::blocks::text;

/// Narrower than this nothing can be drawn.
const MIN_WIDTH: usize = 40;

/// What text is made for.
#[derive(Clone, Copy, Debug)]
pub struct Screen {
    width: usize,
    colour: bool,
}

impl Screen {
    /// The terminal at stdout; without one, 100 columns unless `COLUMNS` says otherwise, and no colours.
    pub fn of_stdout() -> Self {
        let is_terminal = std::io::stdout().is_terminal();
        let measured = terminal_size::terminal_size().filter(|_| is_terminal).map(|(width, _)| usize::from(width.0));
        let told = || std::env::var("COLUMNS").ok()?.parse().ok();
        let wants_none = std::env::var_os("NO_COLOR").is_some_and(|set| !set.is_empty());
        Self { width: measured.or_else(told).unwrap_or(100).max(MIN_WIDTH), colour: is_terminal && !wants_none }
    }

    #[cfg(test)]
    pub(super) fn plain(width: usize) -> Self {
        Self { width, colour: false }
    }

    pub(super) fn width(&self) -> usize {
        self.width
    }

    pub(super) fn red(&self, text: &str) -> String {
        self.paint("31", text)
    }

    pub(super) fn dim(&self, text: &str) -> String {
        self.paint("2", text)
    }

    /// One of six colours.
    pub(super) fn tint(&self, number: usize, text: &str) -> String {
        self.paint(["36", "32", "33", "35", "34", "96"][number % 6], text)
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if !self.colour || text.is_empty() {
            return text.to_owned();
        }
        // The end of a line stays outside, so that no terminal colours what comes after.
        let line = text.trim_end_matches('\n');
        format!("\u{1b}[{code}m{line}\u{1b}[0m{}", &text[line.len()..])
    }
}

/// Text that a terminal shows and does not obey.
pub(super) fn clean(text: &str) -> String {
    let steers =
        |c: char| c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if steers(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

/// Cut or filled with spaces to so many columns.
pub(super) fn fit(text: &str, width: usize) -> String {
    let length = text.chars().count();
    if length <= width {
        return format!("{text}{}", " ".repeat(width - length));
    }
    let cut: String = text.chars().take(width.saturating_sub(1)).collect();
    if width == 0 { cut } else { format!("{cut}…") }
}

/// A length of time in three digits or two units: `12.3ms`, `4.56s`, `3m25s`, `2h05m`.
pub(super) fn duration(nanos: u64) -> String {
    let decimal = |unit: u64, name: &str| {
        let value = nanos as f64 / unit as f64;
        let digits = match value {
            ..10.0 => 2,
            ..100.0 => 1,
            _ => 0,
        };
        let text = format!("{value:.digits$}");
        let text = if digits > 0 { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
        format!("{text}{name}")
    };
    let seconds = nanos / 1_000_000_000;
    let two = |large: u64, a: &str, small: u64, b: &str| {
        if small == 0 { format!("{large}{a}") } else { format!("{large}{a}{small:02}{b}") }
    };
    match nanos {
        0..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => decimal(1_000, "µs"),
        1_000_000..1_000_000_000 => decimal(1_000_000, "ms"),
        1_000_000_000..60_000_000_000 => decimal(1_000_000_000, "s"),
        60_000_000_000..3_600_000_000_000 => two(seconds / 60, "m", seconds % 60, "s"),
        3_600_000_000_000..86_400_000_000_000 => two(seconds / 3600, "h", seconds / 60 % 60, "m"),
        _ => two(seconds / 86_400, "d", seconds / 3600 % 24, "h"),
    }
}

/// A time in UTC, to the millisecond.
pub(super) fn time(nanos: u64) -> String {
    let second = text::time(UnixNanos(nanos));
    format!("{}.{:03}Z", second.trim_end_matches('Z'), nanos / 1_000_000 % 1_000)
}

/// A number in about four digits.
pub(super) fn number(value: f64) -> String {
    let size = value.abs();
    if value.is_nan() {
        return "NaN".into();
    }
    if size == 0.0 {
        return "0".into();
    }
    if size.fract() == 0.0 && size < 1e9 {
        return format!("{value:.0}");
    }
    if !(1e-3..1e9).contains(&size) {
        return format!("{value:.3e}");
    }
    let digits = (3 - size.log10().floor() as i32).clamp(0, 6) as usize;
    let text = format!("{value:.digits$}");
    if digits == 0 { text } else { text.trim_end_matches('0').trim_end_matches('.').to_owned() }
}

/// Reads a time: RFC 3339 in UTC, or seconds since 1970. In seconds.
pub(super) fn parse_time(text: &str) -> Result<u64, String> {
    if let Ok(seconds) = text.parse::<u32>() {
        return Ok(u64::from(seconds));
    }
    rfc3339(text).ok_or_else(|| "give a time as in 2026-01-31T09:00:00Z, or seconds since 1970".to_owned())
}

fn rfc3339(text: &str) -> Option<u64> {
    let (date, time) = text.split_once(['T', ' '])?;
    let time = time.strip_suffix(['Z', 'z']).or_else(|| time.strip_suffix("+00:00"))?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<u64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let mut time = time.split_once('.').map_or(time, |(whole, _)| whole).splitn(3, ':').map(|part| part.parse::<u64>().ok());
    let (hour, minute, second) = (time.next()??, time.next()??, time.next().unwrap_or(Some(0))?);
    let is_leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let days_of = |month: u64| match month {
        2 => 28 + u64::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    let is_time = (1970..2200).contains(&year)
        && (1..=12).contains(&month)
        && (1..=days_of(month)).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    let days = (1970..year).map(|year| 365 + u64::from(is_leap(year))).sum::<u64>() + (1..month).map(days_of).sum::<u64>();
    is_time.then(|| (days + day - 1) * 86_400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_three_digits_or_two_units() {
        let cases = [
            (0, "0ns"),
            (999, "999ns"),
            (1_500, "1.5µs"),
            (12_345_678, "12.3ms"),
            (450_000_000, "450ms"),
            (4_560_000_000, "4.56s"),
            (60_000_000_000, "1m"),
            (205_000_000_000, "3m25s"),
            (7_500_000_000_000, "2h05m"),
            (180_000_000_000_000, "2d02h"),
        ];
        for (nanos, text) in cases {
            assert_eq!(duration(nanos), text);
        }
    }

    #[test]
    fn times_are_read_and_written() {
        assert_eq!(time(1_700_000_000_123_456_789), "2023-11-14T22:13:20.123Z");
        for (text, seconds) in [
            ("2023-11-14T22:13:20Z", 1_700_000_000),
            ("2023-11-14 22:13:20.5Z", 1_700_000_000),
            ("2024-02-29T00:00:00+00:00", 1_709_164_800),
            ("1970-01-01T00:00Z", 0),
            ("1700000000", 1_700_000_000),
        ] {
            assert_eq!(parse_time(text), Ok(seconds), "{text}");
        }
        for bad in ["", "yesterday", "2023-02-29T00:00:00Z", "2023-13-01T00:00:00Z", "2023-11-14T22:13:20", "1700000000000"]
        {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn numbers_are_short() {
        let cases =
            [(0.0, "0"), (12.0, "12"), (0.123456, "0.1235"), (1234.56, "1235"), (2.50001, "2.5"), (1e-7, "1.000e-7")];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn nothing_steers_the_terminal() {
        assert_eq!(clean("a\u{1b}[31m\tb\u{202e}é"), "a\\u{1b}[31m\\tb\\u{202e}é");
        assert_eq!((fit("abc", 5), fit("abcdef", 4)), ("abc  ".into(), "abc…".into()));
        let screen = Screen { width: 80, colour: true };
        assert_eq!(screen.red("x\n"), "\u{1b}[31mx\u{1b}[0m\n");
    }
}
