//! Pairs as `key=value key2="value 2"`: the form of the parameter `tags`.

/// Why text is no list of pairs, and where (counted from 1).
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} at pos {position}")]
pub(crate) struct LogfmtError {
    what: String,
    position: usize,
}

/// The pairs of `text`, in order. A key alone has an empty value.
pub(crate) fn pairs(text: &str) -> Result<Vec<(String, String)>, LogfmtError> {
    let mut reader = Reader { text, at: 0 };
    let mut pairs = Vec::new();
    while reader.skip_space() {
        pairs.push(reader.pair()?);
    }
    Ok(pairs)
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    /// False at the end.
    fn skip_space(&mut self) -> bool {
        self.at += self.rest().bytes().take_while(|byte| *byte <= b' ').count();
        self.at < self.text.len()
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn pair(&mut self) -> Result<(String, String), LogfmtError> {
        let key = self.word();
        match self.rest().as_bytes().first() {
            Some(b'=') if !key.is_empty() => self.at += 1,
            Some(byte @ (b'=' | b'"')) => return Err(self.unexpected(*byte)),
            _ => return Ok((key.to_owned(), String::new())),
        }
        if self.rest().starts_with('"') {
            return Ok((key.to_owned(), self.quoted()?));
        }
        let value = self.word();
        match self.rest().as_bytes().first() {
            Some(byte @ (b'=' | b'"')) => Err(self.unexpected(*byte)),
            _ => Ok((key.to_owned(), value.to_owned())),
        }
    }

    fn word(&mut self) -> &'a str {
        let rest = self.rest();
        let end = rest.bytes().position(|byte| byte <= b' ' || byte == b'=' || byte == b'"').unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    fn quoted(&mut self) -> Result<String, LogfmtError> {
        let rest = self.rest();
        let mut escaped = false;
        let end = rest.bytes().skip(1).position(|byte| {
            let ends = byte == b'"' && !escaped;
            escaped = byte == b'\\' && !escaped;
            ends
        });
        let Some(end) = end else {
            self.at = self.text.len();
            return Err(self.error("unterminated quoted value".to_owned()));
        };
        let quoted = &rest[..end + 2];
        self.at += quoted.len();
        // Its escapes are those of JSON; control characters need none here.
        if !quoted.contains('\\') {
            return Ok(quoted[1..quoted.len() - 1].to_owned());
        }
        serde_json::from_str(quoted).map_err(|_| self.error("invalid quoted value".to_owned()))
    }

    fn unexpected(&self, byte: u8) -> LogfmtError {
        self.error(if byte == b'=' { "unexpected '='".to_owned() } else { "unexpected '\"'".to_owned() })
    }

    fn error(&self, what: String) -> LogfmtError {
        LogfmtError { what, position: self.at + 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_and_what_is_none() {
        let read = |text: &str| pairs(text).map(|pairs| pairs.iter().map(|(k, v)| format!("{k}|{v}")).collect::<Vec<_>>());
        assert_eq!(read("").unwrap(), Vec::<String>::new());
        assert_eq!(read(" a=1  b=\"x y\" c d= e.f-g=h/i ").unwrap(), ["a|1", "b|x y", "c|", "d|", "e.f-g|h/i"]);
        assert_eq!(read(r#"a="q\"\u00e9\\" b=é"#).unwrap(), ["a|q\"é\\", "b|é"]);
        let bad = [
            ("user=bob url=a=b", "unexpected '=' at pos 15"),
            ("=1", "unexpected '=' at pos 1"),
            ("a\"b", "unexpected '\"' at pos 2"),
            ("a=b\"c", "unexpected '\"' at pos 4"),
            ("a=\"b", "unterminated quoted value at pos 5"),
            ("a=\"\\x\"", "invalid quoted value at pos 7"),
        ];
        for (text, why) in bad {
            assert_eq!(pairs(text).unwrap_err().to_string(), why, "{text}");
        }
    }
}
