//! Pages of chosen and of any bytes.

use parquet::basic::Encoding as Theirs;
use parquet::column::page::{CompressedPage, Page, PageWriter};
use parquet::file::writer::{SerializedPageWriter, TrackedWrite};
use proptest::prelude::*;

use super::*;

const PHYSICAL: [PhysicalType; 6] = [
    PhysicalType::INT32,
    PhysicalType::INT64,
    PhysicalType::DOUBLE,
    PhysicalType::BOOLEAN,
    PhysicalType::BYTE_ARRAY,
    PhysicalType::FIXED_LEN_BYTE_ARRAY,
];

fn chunk(physical: PhysicalType, max_definition: u8, max_repetition: u8) -> Chunk {
    let width = match physical {
        PhysicalType::INT32 => 4,
        PhysicalType::INT64 | PhysicalType::DOUBLE => 8,
        PhysicalType::FIXED_LEN_BYTE_ARRAY => 16,
        _ => 0,
    };
    Chunk { physical, width, max_definition, max_repetition, slots: 1000, bytes: 1 << 20, is_zstd: true }
}

fn stored(body: &[u8], page: impl FnOnce(Bytes) -> Page) -> Vec<u8> {
    let buf = Bytes::from(zstd::bulk::compress(body, 1).unwrap());
    let mut out = TrackedWrite::new(Vec::new());
    SerializedPageWriter::new(&mut out).write_page(CompressedPage::new(page(buf), body.len())).unwrap();
    out.into_inner().unwrap()
}

fn data(body: &[u8], encoding: Theirs, num_values: u32, has_levels: bool) -> Vec<u8> {
    stored(body, |buf| {
        if has_levels {
            let (def_level_encoding, rep_level_encoding) = (Theirs::RLE, Theirs::RLE);
            return Page::DataPage { buf, num_values, encoding, def_level_encoding, rep_level_encoding, statistics: None };
        }
        Page::DataPageV2 {
            buf,
            num_values,
            encoding,
            num_nulls: 0,
            num_rows: num_values,
            def_levels_byte_len: 0,
            rep_levels_byte_len: 0,
            is_compressed: true,
            statistics: None,
        }
    })
}

#[test]
fn a_claimed_size_allocates_nothing() {
    let zeros = vec![0; 1 << 20];
    let stored = zstd::bulk::compress(&zeros, 1).unwrap();
    let mut inflater = Inflater::default();
    assert_eq!(inflater.inflate(&stored, zeros.len()).unwrap(), zeros);
    for wrong in [0, 1, zeros.len() - 1, zeros.len() + 1, i32::MAX as usize] {
        assert!(inflater.inflate(&stored, wrong).is_err(), "{wrong}");
    }
    assert!(inflater.inflate(b"not zstd", 100).is_err());
}

#[test]
fn texts_are_found_from_any_row() {
    let texts: Vec<String> = (0..300).map(|n| "x".repeat(n % 7)).collect();
    let body: Vec<u8> = texts.iter().flat_map(|t| [&(t.len() as u32).to_le_bytes()[..], t.as_bytes()].concat()).collect();
    let chunk = chunk(PhysicalType::BYTE_ARRAY, 0, 0);
    let page = DataPage::read(&data(&body, Theirs::PLAIN, 300, false), &chunk, &mut Inflater::default()).unwrap();
    for rows in [0..300, 63..65, 64..64, 299..300, 130..200] {
        let mut out = ColumnRows::new();
        page.rows(&chunk, rows.clone(), &mut out).unwrap();
        let found: Vec<String> = match &out.values {
            Values::Bytes(all) => all.iter().map(|text| String::from_utf8(text.to_vec()).unwrap()).collect(),
            _ => Vec::new(),
        };
        assert_eq!(found, texts[rows]);
    }
}

proptest! {
    /// Damage that decompression does not see: levels and values of any bytes.
    #[test]
    fn bodies_of_any_bytes_never_panic(
        body in prop::collection::vec(prop_oneof![any::<u8>(), 0u8..4], 0..120),
        physical in prop::sample::select(PHYSICAL.to_vec()),
        (max_definition, max_repetition) in (0u8..3, 0u8..2),
        encoding in prop::sample::select(vec![Theirs::PLAIN, Theirs::RLE_DICTIONARY, Theirs::DELTA_BINARY_PACKED]),
        values in 0u32..1000,
        (from, length) in (0usize..1000, 0usize..400),
        entries in 0u32..40,
    ) {
        let chunk = chunk(physical, max_definition, max_repetition);
        let mut inflater = Inflater::default();
        let raw = data(&body, encoding, values, max_definition + max_repetition > 0);
        if let Ok(page) = DataPage::read(&raw, &chunk, &mut inflater) {
            prop_assert!(page.heap_bytes() < 64 * 1024);
            let mut out = ColumnRows::new();
            let read = page.rows(&chunk, from..from + length, &mut out);
            prop_assert!(out.definition.len() <= 1000 && out.values.len() <= 1000);
            let mut flat = ColumnRows::flat(length, &chunk);
            let read_flat = page.rows(&chunk, from..from + length, &mut flat);
            let (rows, present) = flat.present.clone().unwrap();
            prop_assert!(rows as usize <= 1000 && present.len() <= 1000 && flat.values.len() <= 1000);
            if max_definition == 1 && read.is_ok() && read_flat.is_ok() {
                let at: Vec<u32> =
                    (0..).zip(&out.definition).filter(|(_, level)| **level == 1).map(|(slot, _)| slot).collect();
                prop_assert_eq!((rows as usize, present), (out.definition.len(), at));
            }
        }
        let raw = stored(&body, |buf| Page::DictionaryPage {
            buf, num_values: entries, encoding: Theirs::PLAIN, is_sorted: false,
        });
        if let Ok(dictionary) = Dictionary::read(&raw, &chunk, &mut inflater) {
            prop_assert_eq!(dictionary.len(), entries as usize);
            prop_assert!((0..entries).all(|code| dictionary.get(code).is_some()));
            prop_assert!(dictionary.get(entries).is_none() && dictionary.get(u32::MAX).is_none());
            let mut column = ColumnRows::new();
            column.values = Values::Codes(vec![0, entries.saturating_sub(1)]);
            let _ = column.explain(&Arc::new(dictionary), &chunk);
        }
        if let Ok(page) = TraceIdPage::read(&raw, &chunk, &mut inflater) {
            let _ = page.rows_of(TraceId([0; 16]));
        }
    }

    #[test]
    fn pages_of_any_bytes_never_panic(raw in prop::collection::vec(any::<u8>(), 0..80)) {
        let (chunk, mut inflater) = (chunk(PhysicalType::BYTE_ARRAY, 1, 0), Inflater::default());
        let _ = DataPage::read(&raw, &chunk, &mut inflater);
        let _ = Dictionary::read(&raw, &chunk, &mut inflater);
    }
}
