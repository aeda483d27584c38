//! What a stored span says, as one text: for finding spans of several inputs that are identical.

use super::super::identical::push_span;
use super::super::page::{ColumnRows, Values};
use super::super::spans::{self, Columns};
use super::input::{Input, Result, Scratch};
use super::place::Strip;
use crate::model::typed_json;

/// Spans read together: a page of most columns, and some megabytes as spans.
const AT_ONCE: usize = 4096;
/// Wanted rows no further apart are read together.
const JOIN_ROWS: u32 = 256;

/// Calls `each` with the content of some rows of a strip (ascending): everything but the parent id.
pub(super) fn content_hashes(
    input: &Input,
    scratch: &Scratch,
    strip: &Strip,
    rows: &[u32],
    mut each: impl FnMut(u32, &str),
) -> Result<()> {
    let mut text = String::new();
    let near = |a: &u32, b: &u32| b - a <= JOIN_ROWS;
    for near in rows.chunk_by(near) {
        let mut at = 0;
        while at < near.len() {
            let from = near[at];
            let count = near[at..].partition_point(|row| ((row - from) as usize) < AT_ONCE);
            let wanted = &near[at..at + count];
            at += count;
            let to = wanted.last().map_or(from, |last| *last) + 1;
            let first = strip.rows.start;
            let mut spans = read(input, scratch, strip.group, first + from as usize..first + to as usize)?;
            for row in wanted {
                let stored = &mut spans[(row - from) as usize];
                text.clear();
                push_span(&mut stored.span, &mut text);
                typed_json::write_resource(&stored.resource, &mut text);
                typed_json::write_scope(&stored.scope, &mut text);
                each(*row, &text);
            }
        }
    }
    Ok(())
}

/// Rows as spans without parents: any rows, not only whole traces.
fn read(
    input: &Input,
    scratch: &Scratch,
    group: usize,
    rows: std::ops::Range<usize>,
) -> Result<Vec<crate::model::StoredSpan>> {
    let layout = &input.layout;
    let mut read: Vec<Option<ColumnRows>> = Vec::new();
    read.resize_with(input.group(group).metadata().num_columns(), || None);
    for wanted in layout.wanted(true) {
        let mut column = ColumnRows::new();
        if wanted.column == layout.parent_span_id {
            column.definition = vec![0; rows.len()];
        } else if wanted.column == layout.parent_delta {
            column.values = Values::I32(vec![0; rows.len()]);
        } else {
            column = input.read(scratch, group, wanted.column, rows.clone(), column)?.0;
        }
        read[wanted.column] = Some(column);
    }
    let schema = input.parquet.file_metadata().schema_descr();
    spans::build(Columns { layout, schema, rows: rows.len(), trace_id: None, read })
}
