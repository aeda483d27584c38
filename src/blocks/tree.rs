//! The columns that give rows their order and place: trace ids ascending, each trace a forest in pre-order.
//!
//! Read through the parquet crate's own decoder and not through ours, so that a mistake of our encoder has a second witness.

use anyhow::{Context, anyhow};
use arrow::array::{Array, FixedSizeBinaryArray, Int32Array, Int64Array, RecordBatch};
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use spanhouse_common::block::flag;
use spanhouse_common::block::schema::column;
use spanhouse_common::id::TraceId;

use super::check::Findings;

/// One entry a row.
#[derive(Debug, Default)]
pub(super) struct Tree {
    pub(super) trace_ids: Vec<TraceId>,
    trace_index: Vec<i32>,
    parent_delta: Vec<i32>,
    subtree_size: Vec<i32>,
    row_flags: Vec<i32>,
    pub(super) trace_duration: Vec<i64>,
    /// Rows of each row group.
    pub(super) groups: Vec<usize>,
}

fn i32s<'b>(batch: &'b RecordBatch, name: &str) -> anyhow::Result<&'b Int32Array> {
    let array = batch.column_by_name(name).and_then(|array| array.as_any().downcast_ref::<Int32Array>());
    array.with_context(|| format!("column `{name}` is missing or of another type"))
}

impl Tree {
    pub(super) fn read(parquet: Bytes) -> anyhow::Result<Self> {
        const COLUMNS: [&str; 6] = [
            column::TRACE_ID,
            column::TRACE_INDEX,
            column::PARENT_DELTA,
            column::SUBTREE_SIZE,
            column::ROW_FLAGS,
            column::TRACE_DURATION_NS,
        ];
        let builder = ParquetRecordBatchReaderBuilder::try_new(parquet)?;
        let groups = builder.metadata().row_groups().iter().map(|group| usize::try_from(group.num_rows()));
        let groups = groups.collect::<Result<_, _>>()?;
        let schema = builder.parquet_schema();
        let roots = schema.root_schema().get_fields().iter().enumerate();
        let wanted: Vec<usize> = roots.filter(|(_, f)| COLUMNS.contains(&f.name())).map(|(at, _)| at).collect();
        let mask = ProjectionMask::roots(schema, wanted);
        let mut tree = Self { groups, ..Self::default() };
        for batch in builder.with_projection(mask).with_batch_size(8192).build()? {
            let batch = batch?;
            let ids = batch.column_by_name(column::TRACE_ID);
            let ids = ids.and_then(|array| array.as_any().downcast_ref::<FixedSizeBinaryArray>());
            for id in ids.context("column `trace_id` is missing or of another type")?.iter() {
                let id: [u8; 16] = id.and_then(|id| id.try_into().ok()).ok_or_else(|| anyhow!("a row without trace id"))?;
                tree.trace_ids.push(TraceId(id));
            }
            tree.trace_index.extend_from_slice(i32s(&batch, column::TRACE_INDEX)?.values());
            tree.parent_delta.extend_from_slice(i32s(&batch, column::PARENT_DELTA)?.values());
            tree.subtree_size.extend_from_slice(i32s(&batch, column::SUBTREE_SIZE)?.values());
            tree.row_flags.extend_from_slice(i32s(&batch, column::ROW_FLAGS)?.values());
            let durations = batch.column_by_name(column::TRACE_DURATION_NS);
            let durations = durations.and_then(|array| array.as_any().downcast_ref::<Int64Array>());
            let durations = durations.context("column `trace_duration_ns` is missing or of another type")?;
            tree.trace_duration.extend_from_slice(durations.values());
        }
        Ok(tree)
    }

    pub(super) fn rows(&self) -> usize {
        self.trace_ids.len()
    }

    /// Rows of each trace, in order.
    pub(super) fn traces(&self) -> impl Iterator<Item = std::ops::Range<usize>> {
        let mut from = 0;
        self.trace_ids.chunk_by(|a, b| a == b).map(move |rows| {
            from += rows.len();
            from - rows.len()..from
        })
    }

    pub(super) fn check(&self, findings: &mut Findings) {
        if let Some(at) = self.trace_ids.windows(2).position(|pair| pair[0] > pair[1]) {
            findings.add(format!("row {}: trace ids do not ascend", at + 1));
        }
        let mut ends = self.groups.iter().scan(0, |end, rows| {
            *end += rows;
            Some(*end)
        });
        let (mut group_end, mut in_group) = (ends.next().unwrap_or(0), 0);
        for rows in self.traces() {
            if rows.start == group_end {
                group_end = ends.next().unwrap_or(group_end);
                in_group = 0;
            }
            if rows.end > group_end {
                findings.add(format!("row {group_end}: a trace goes on in the next row group"));
                return;
            }
            if self.trace_index[rows.clone()].iter().any(|index| *index != in_group) {
                findings.add(format!("rows {rows:?}: trace_index is not {in_group}"));
            }
            in_group += 1;
            if let Err(what) = self.check_trace(rows.clone()) {
                findings.add(format!("trace {} (rows {rows:?}): {what}", self.trace_ids[rows.start]));
            }
        }
    }

    fn check_trace(&self, rows: std::ops::Range<usize>) -> Result<(), String> {
        let (deltas, sizes) = (&self.parent_delta[rows.clone()], &self.subtree_size[rows.clone()]);
        // Sizes add up from the last row to the first, and every row lies inside its parent's subtree.
        let mut counted = vec![1i64; rows.len()];
        for at in (0..rows.len()).rev() {
            if i64::from(sizes[at]) != counted[at] {
                return Err(format!("subtree_size of row {at} is {}, counted {}", sizes[at], counted[at]));
            }
            let delta = usize::try_from(deltas[at]).map_err(|_| format!("parent_delta of row {at} is negative"))?;
            if delta == 0 {
                continue;
            }
            let parent = at.checked_sub(delta).ok_or_else(|| format!("the parent of row {at} is in another trace"))?;
            counted[parent] += counted[at];
            if at as i64 >= parent as i64 + i64::from(sizes[parent]) {
                return Err(format!("row {at} is outside the subtree of its parent {parent}"));
            }
        }
        for (at, flags) in self.row_flags[rows.clone()].iter().enumerate() {
            if flags & flag::ORPHAN != 0 && deltas[at] != 0 {
                return Err(format!("row {at} is an orphan with a parent"));
            }
            if flags & flag::ORPHAN != 0 && flags & flag::ROOT != 0 {
                return Err(format!("row {at} is both root and orphan"));
            }
        }
        let durations = &self.trace_duration[rows];
        if durations.iter().any(|duration| *duration != durations[0]) {
            return Err("trace_duration_ns differs within the trace".to_owned());
        }
        Ok(())
    }
}
