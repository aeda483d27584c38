//! `blocks ls --sql`: a DuckDB statement over exactly the files of the manifest. A glob would count superseded blocks too.
//!
//! Owns the statement. Columns are united by name, as every block has its own. An attribute may have a column of one type in
//! one block and of another type in the next; DuckDB then takes the wider type, which rounds integers to doubles and turns
//! booleans into numbers. So blocks that disagree are read apart, with the columns in question cast to text.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use anyhow::{Context, bail};
use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use parquet::basic::{ConvertedType, LogicalType, Type as PhysicalType};
use parquet::schema::types::Type;
use spanhouse_common::block::BlockLocation;
use spanhouse_common::block::schema::{TypedKeys, parquet_schema};
use spanhouse_common::id::TenantId;

use super::{BlocksDeps, catalog};

/// Footers read at a time.
const READ_AHEAD: usize = 16;

/// A column of DuckDB's: its path in lower case, as DuckDB does not tell names apart by case. A member of a list of structs
/// has two parts.
type Column = Vec<String>;

/// A file with the types of its columns.
#[derive(Debug)]
struct File {
    url: String,
    schema: Vec<Field>,
}

#[derive(Debug)]
struct Field {
    name: String,
    kind: FieldKind,
}

#[derive(Debug)]
enum FieldKind {
    Scalar(String),
    /// A list of structs: names and types of its members.
    Structs(Vec<(String, String)>),
}

pub(super) async fn run(deps: &BlocksDeps, tenant: Option<&TenantId>, out: &mut impl Write) -> anyhow::Result<()> {
    let tenants = catalog::load(deps, tenant).await?;
    let with_blocks: Vec<&TenantId> = tenants.iter().filter(|t| !t.state.blocks.is_empty()).map(|t| &t.tenant).collect();
    if let [first, second, ..] = with_blocks[..] {
        bail!(
            "the store has several tenants and files do not say whose they are: add --tenant {first} or --tenant {second}"
        );
    }
    let entries = tenants.iter().flat_map(|blocks| blocks.entries());
    let files = stream::iter(entries).map(|(tenant, entry)| async move {
        let url = object_url(&deps.store_url, &BlockLocation::of(tenant, entry).parquet)?;
        let reader = catalog::open(deps, tenant, entry).await?;
        Ok::<_, anyhow::Error>(File { url, schema: fields(reader.parquet().file_metadata().schema())? })
    });
    let files: Vec<File> = files.buffered(READ_AHEAD).try_collect().await?;
    if files.is_empty() {
        writeln!(out, "{}", nothing()?)?;
    } else {
        writeln!(out, "{}", statement(&files))?;
    }
    Ok(())
}

/// Where other programs find an object: an absolute path, or a URL.
pub(super) fn object_url(store_url: &str, key: &Path) -> anyhow::Result<String> {
    if store_url.starts_with("memory:") {
        bail!("a store in memory cannot be read by other programs");
    }
    let Some((scheme, rest)) = store_url.split_once("://") else {
        let root = std::path::absolute(store_url).with_context(|| format!("finding the directory {store_url}"))?;
        return Ok(root.join(key.as_ref()).display().to_string());
    };
    if scheme == "file" {
        let path = url_path(store_url)?;
        return Ok(std::path::Path::new(&path).join(key.as_ref()).display().to_string());
    }
    let scheme = if scheme == "s3a" { "s3" } else { scheme };
    Ok(format!("{scheme}://{}/{key}", rest.trim_end_matches('/')))
}

/// The path of a `file://` URL, its percent escapes resolved.
fn url_path(url: &str) -> anyhow::Result<String> {
    let path = url.strip_prefix("file://").unwrap_or(url).as_bytes();
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((byte, tail)) = rest.split_first() {
        let escaped = tail.get(..2).filter(|_| *byte == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        match escaped.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(value) => {
                out.push(value);
                rest = &tail[2..];
            }
            None => {
                out.push(*byte);
                rest = tail;
            }
        }
    }
    String::from_utf8(out).with_context(|| format!("the path of {url}"))
}

fn fields(schema: &Type) -> anyhow::Result<Vec<Field>> {
    schema
        .get_fields()
        .iter()
        .map(|field| {
            let kind = match list_members(field) {
                Some(members) => {
                    let members = members.iter().map(|m| Ok((m.name().to_owned(), sql_type(m)?)));
                    FieldKind::Structs(members.collect::<anyhow::Result<_>>()?)
                }
                None => FieldKind::Scalar(sql_type(field)?),
            };
            Ok(Field { name: field.name().to_owned(), kind })
        })
        .collect()
}

/// The members of the structs in a list column.
fn list_members(field: &Type) -> Option<&[parquet::schema::types::TypePtr]> {
    if field.is_primitive() || field.get_basic_info().logical_type_ref() != Some(&LogicalType::List) {
        return None;
    }
    let [list] = field.get_fields() else { return None };
    let [element] = list.get_fields() else { return None };
    (!element.is_primitive()).then(|| element.get_fields())
}

/// DuckDB's type for a column of ours.
fn sql_type(field: &Type) -> anyhow::Result<String> {
    if let Some(members) = list_members(field) {
        let members: Vec<(String, String)> =
            members.iter().map(|m| Ok((m.name().to_owned(), sql_type(m)?))).collect::<anyhow::Result<_>>()?;
        return Ok(structs(&members));
    }
    let info = field.get_basic_info();
    if !field.is_primitive() {
        return Ok("MAP(VARCHAR, VARCHAR)".to_owned());
    }
    Ok(match field.get_physical_type() {
        PhysicalType::BYTE_ARRAY if info.converted_type() == ConvertedType::UTF8 => "VARCHAR",
        PhysicalType::BYTE_ARRAY if info.logical_type_ref() == Some(&LogicalType::String) => "VARCHAR",
        PhysicalType::BYTE_ARRAY | PhysicalType::FIXED_LEN_BYTE_ARRAY => "BLOB",
        PhysicalType::INT32 if info.converted_type() == ConvertedType::UINT_32 => "UINTEGER",
        PhysicalType::INT32 => "INTEGER",
        PhysicalType::INT64 if matches!(info.logical_type_ref(), Some(LogicalType::Timestamp { .. })) => "TIMESTAMP_NS",
        PhysicalType::INT64 => "BIGINT",
        PhysicalType::DOUBLE => "DOUBLE",
        PhysicalType::BOOLEAN => "BOOLEAN",
        other => bail!("column `{}` has the type {other}, which this format never has", field.name()),
    }
    .to_owned())
}

fn structs(members: &[(String, String)]) -> String {
    let members: Vec<String> = members.iter().map(|(name, kind)| format!("{} {kind}", quoted(name))).collect();
    format!("STRUCT({})[]", members.join(", "))
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Every scalar of a file: its path and type.
fn scalars(file: &File) -> impl Iterator<Item = (Column, &str)> {
    file.schema.iter().flat_map(|field| {
        let top = field.name.to_lowercase();
        match &field.kind {
            FieldKind::Scalar(kind) => vec![(vec![top], kind.as_str())],
            FieldKind::Structs(members) => {
                let members = members.iter();
                members.map(|(name, kind)| (vec![top.clone(), name.to_lowercase()], kind.as_str())).collect()
            }
        }
    })
}

/// Files that agree on the types of all columns.
#[derive(Default)]
struct Group<'f> {
    types: BTreeMap<Column, &'f str>,
    files: Vec<&'f File>,
}

fn statement(files: &[File]) -> String {
    let mut types: BTreeMap<Column, BTreeSet<&str>> = BTreeMap::new();
    for (column, kind) in files.iter().flat_map(scalars) {
        types.entry(column).or_default().insert(kind);
    }
    let conflicts: BTreeSet<Column> = types.into_iter().filter(|(_, t)| t.len() > 1).map(|(column, _)| column).collect();
    let mut groups: Vec<Group<'_>> = Vec::new();
    for file in files {
        let mine: BTreeMap<Column, &str> = scalars(file).filter(|(column, _)| conflicts.contains(column)).collect();
        let agrees =
            |group: &Group<'_>| mine.iter().all(|(column, t)| group.types.get(column).is_none_or(|other| other == t));
        match groups.iter_mut().find(|group| agrees(group)) {
            Some(group) => {
                group.types.extend(mine);
                group.files.push(file);
            }
            None => groups.push(Group { types: mine, files: vec![file] }),
        }
    }
    let selects: Vec<String> = groups.iter().map(|group| select(group, &conflicts)).collect();
    let mut text = case_warnings(files);
    text.push_str(&selects.join("\nUNION ALL BY NAME\n"));
    text.push(';');
    text
}

/// Names that DuckDB takes for one column although they are two attributes.
fn case_warnings(files: &[File]) -> String {
    let mut spellings: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for field in files.iter().flat_map(|file| &file.schema) {
        spellings.entry(field.name.to_lowercase()).or_default().insert(&field.name);
    }
    let twice = spellings.into_values().filter(|names| names.len() > 1);
    twice
        .map(|names| {
            let names: Vec<&str> = names.into_iter().collect();
            format!("-- One column to DuckDB, which ignores case: {}\n", names.join(", "))
        })
        .collect()
}

fn select(group: &Group<'_>, conflicts: &BTreeSet<Column>) -> String {
    let mut casts: BTreeMap<String, String> = BTreeMap::new();
    let mut members: BTreeMap<&str, Vec<(String, String)>> = BTreeMap::new();
    for field in group.files.iter().flat_map(|file| &file.schema) {
        let top = field.name.to_lowercase();
        match &field.kind {
            FieldKind::Scalar(_) if conflicts.contains(&vec![top.clone()]) => {
                let name = quoted(&field.name);
                casts.entry(top).or_insert_with(|| format!("CAST({name} AS VARCHAR) AS {name}"));
            }
            FieldKind::Structs(of_file) if conflicts.iter().any(|c| c.len() == 2 && c[0] == top) => {
                let all = members.entry(&field.name).or_default();
                for (name, kind) in of_file {
                    let lower = name.to_lowercase();
                    if all.iter().any(|(known, _)| known.to_lowercase() == lower) {
                        continue;
                    }
                    let is_text = conflicts.contains(&vec![top.clone(), lower]);
                    all.push((name.clone(), if is_text { "VARCHAR".to_owned() } else { kind.clone() }));
                }
            }
            _ => {}
        }
    }
    for (name, members) in members {
        let column = quoted(name);
        casts.insert(name.to_lowercase(), format!("CAST({column} AS {}) AS {column}", structs(&members)));
    }
    let replace = if casts.is_empty() {
        String::new()
    } else {
        format!(" REPLACE (\n  {}\n)", casts.into_values().collect::<Vec<_>>().join(",\n  "))
    };
    let urls: Vec<String> = group.files.iter().map(|file| format!("  {}", literal(&file.url))).collect();
    format!("SELECT *{replace} FROM read_parquet([\n{}\n], union_by_name = true)", urls.join(",\n"))
}

/// Valid SQL with the columns every block has, and no row.
fn nothing() -> anyhow::Result<String> {
    let schema = parquet_schema(&TypedKeys::default())?;
    let columns: Vec<String> = schema
        .get_fields()
        .iter()
        .map(|field| Ok(format!("CAST(NULL AS {}) AS {}", sql_type(field)?, quoted(field.name()))))
        .collect::<anyhow::Result<_>>()?;
    Ok(format!("-- The manifest names no block.\nSELECT\n  {}\nWHERE false;", columns.join(",\n  ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_named_as_other_programs_open_them() {
        let key = Path::from("tenants/a/blocks/x.parquet");
        let url = |store: &str| object_url(store, &key).unwrap();
        assert_eq!(url("/data"), "/data/tenants/a/blocks/x.parquet");
        assert_eq!(url("file:///my%20data/"), "/my data/tenants/a/blocks/x.parquet");
        assert_eq!(url("s3://bucket/some/prefix/"), "s3://bucket/some/prefix/tenants/a/blocks/x.parquet");
        assert_eq!(url("s3a://bucket"), "s3://bucket/tenants/a/blocks/x.parquet");
        assert!(std::path::Path::new(&url("relative")).is_absolute());
        assert!(object_url("memory:", &key).is_err());
    }
}
