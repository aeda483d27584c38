//! Where settings come from: defaults < file < environment < flags.
//!
//! Owns precedence and the errors that name file, line, variable or flag. Does not own meanings (`fields`) or defaults.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_saphyr::Spanned;

use super::fields::{FIELDS, OPTIONS, nearest};
use super::{Config, VARIABLE_PREFIX};

/// Variables with our prefix that are not settings: where the file is, and switches of the tests.
const OTHER_VARIABLES: [&str; 2] = ["SPANHOUSE_CONFIG", "SPANHOUSE_TEST_"];

/// What the command line sets, as text; nothing is parsed before all sources are known.
#[derive(Clone, Debug, Default)]
pub struct FlagOverrides {
    pub data_dir: Option<PathBuf>,
    pub listen: Option<String>,
    pub target: Option<String>,
}

/// Where a setting was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    File { path: PathBuf, line: Option<u64> },
    Variable(String),
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line: Some(line) } => write!(f, "{}, line {line}", path.display()),
            Self::File { path, line: None } => write!(f, "{}", path.display()),
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::Flag(name) => write!(f, "{name}"),
        }
    }
}

/// The configuration cannot be used: each error is for the person who wrote it.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: not valid YAML: {message}", path.display())]
    Syntax { path: PathBuf, message: String },
    #[error("{origin}: unknown setting `{key}`{}", nearest.as_ref().map(|n| format!("; did you mean `{n}`?")).unwrap_or_default())]
    UnknownKey { origin: Origin, key: String, nearest: Option<String> },
    #[error("{origin}: {key}: {message}")]
    BadValue { origin: Origin, key: String, message: String },
    /// Each value is well formed but they do not work, alone or together.
    #[error("{key}: {message}")]
    Invalid { key: &'static str, message: String },
}

impl ConfigError {
    pub(super) fn invalid(key: &'static str, message: impl Into<String>) -> Self {
        Self::Invalid { key, message: message.into() }
    }
}

impl Config {
    /// Reads and validates. Reads nothing but `file` and its arguments, so that tests need no real environment.
    pub fn load(
        file: Option<&Path>,
        env: impl IntoIterator<Item = (String, String)>,
        flags: FlagOverrides,
    ) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        if let Some(path) = file {
            let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.into(), source })?;
            config.apply_yaml(path, &text)?;
        }
        config.apply_env(env)?;
        config.apply_flags(flags)?;
        config.validate()?;
        Ok(config)
    }

    fn apply_yaml(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let syntax = |e: serde_saphyr::Error| ConfigError::Syntax { path: path.into(), message: e.to_string() };
        // A file of comments is an empty mapping.
        let root: Option<Node> = serde_saphyr::from_str(text).map_err(syntax)?;
        match root {
            None | Some(Node::Null) => Ok(()),
            Some(Node::Map(entries)) => self.apply_entries(path, "", entries),
            Some(_) => Err(ConfigError::Syntax { path: path.into(), message: "expected `setting: value` lines".into() }),
        }
    }

    fn apply_entries(
        &mut self,
        file: &Path,
        prefix: &str,
        entries: Vec<(Spanned<String>, Node)>,
    ) -> Result<(), ConfigError> {
        for (name, node) in entries {
            let key = if prefix.is_empty() { name.value } else { format!("{prefix}.{}", name.value) };
            let origin = Origin::File { path: file.into(), line: Some(name.defined.line()).filter(|line| *line > 0) };
            let section = key == OPTIONS
                || FIELDS.iter().any(|f| f.path.strip_prefix(&*key).is_some_and(|rest| rest.starts_with('.')));
            match node {
                Node::Map(inner) if section => self.apply_entries(file, &key, inner)?,
                // A section whose lines are all commented out.
                Node::Null if section => {}
                Node::Scalar(text) => self.set(&key, &text, origin)?,
                Node::Null if FIELDS.iter().any(|f| f.path == key) => {
                    return Err(ConfigError::BadValue { origin, key, message: "has no value".into() });
                }
                Node::Map(_) | Node::List if FIELDS.iter().any(|f| f.path == key) => {
                    return Err(ConfigError::BadValue { origin, key, message: "expected a single value".into() });
                }
                _ => return Err(unknown(origin, key)),
            }
        }
        Ok(())
    }

    fn apply_env(&mut self, env: impl IntoIterator<Item = (String, String)>) -> Result<(), ConfigError> {
        let options = format!("{VARIABLE_PREFIX}{}_", OPTIONS.replace('.', "_").to_ascii_uppercase());
        for (name, value) in env {
            if !name.starts_with(VARIABLE_PREFIX) || OTHER_VARIABLES.iter().any(|other| name.starts_with(other)) {
                continue;
            }
            let origin = Origin::Variable(name.clone());
            if let Some(option) = name.strip_prefix(&options) {
                self.storage.options.insert(option.to_ascii_lowercase(), value);
            } else if let Some(field) = FIELDS.iter().find(|f| f.variable() == name) {
                self.set(field.path, &value, origin)?;
            } else {
                let key = name[VARIABLE_PREFIX.len()..].to_ascii_lowercase();
                let by_variable =
                    FIELDS.iter().map(|f| (f.path.replace('.', "_"), f)).find(|(flat, _)| nearest_flat(flat, &key));
                let nearest = by_variable.map(|(_, field)| field.variable());
                return Err(ConfigError::UnknownKey { origin, key: name, nearest });
            }
        }
        Ok(())
    }

    fn apply_flags(&mut self, flags: FlagOverrides) -> Result<(), ConfigError> {
        // Not through text: a path need not be UTF-8.
        if let Some(dir) = flags.data_dir {
            self.data_dir = dir;
        }
        for (flag, key, value) in [("--listen", "listen", flags.listen), ("--target", "target", flags.target)] {
            if let Some(value) = value {
                self.set(key, &value, Origin::Flag(flag))?;
            }
        }
        Ok(())
    }

    fn set(&mut self, key: &str, text: &str, origin: Origin) -> Result<(), ConfigError> {
        if let Some(option) = key.strip_prefix(OPTIONS).and_then(|rest| rest.strip_prefix('.')) {
            self.storage.options.insert(option.to_owned(), text.to_owned());
            return Ok(());
        }
        let Some(field) = FIELDS.iter().find(|f| f.path == key) else { return Err(unknown(origin, key.to_owned())) };
        (field.set)(self, text).map_err(|message| ConfigError::BadValue { origin, key: key.to_owned(), message })
    }
}

fn unknown(origin: Origin, key: String) -> ConfigError {
    let nearest = nearest(&key).map(str::to_owned);
    ConfigError::UnknownKey { origin, key, nearest }
}

/// Whether a flattened variable name is the one that was probably meant.
fn nearest_flat(flat: &str, unknown: &str) -> bool {
    super::fields::distance(flat, unknown) <= 2 + flat.len() / 8
}

/// YAML as it stands in the file: keys know their line, scalars their text.
#[derive(Debug)]
enum Node {
    Null,
    Scalar(String),
    List,
    Map(Vec<(Spanned<String>, Node)>),
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a setting or a section")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Node::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_owned()))
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        while seq.next_element::<serde::de::IgnoredAny>()?.is_some() {}
        Ok(Node::List)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Node::Map(entries))
    }
}
