//! Numbers for the texts of columns, so that rows are compared and counted without looking at texts.

use std::collections::HashMap;
use std::sync::Arc;

use spanhouse_common::columns::{Column, Present, Values};

/// Texts by number, each once. The empty text is number 0.
#[derive(Debug)]
pub(crate) struct Texts {
    known: HashMap<Arc<str>, u32, foldhash::fast::RandomState>,
    all: Vec<Arc<str>>,
}

impl Default for Texts {
    fn default() -> Self {
        let empty: Arc<str> = Arc::from("");
        Self { known: HashMap::from_iter([(Arc::clone(&empty), 0)]), all: vec![empty] }
    }
}

impl Texts {
    pub(crate) fn number(&mut self, text: &[u8]) -> u32 {
        let text = String::from_utf8_lossy(text);
        if let Some(known) = self.known.get(&*text) {
            return *known;
        }
        let text: Arc<str> = Arc::from(text);
        self.all.push(Arc::clone(&text));
        self.known.insert(text, self.all.len() as u32 - 1);
        self.all.len() as u32 - 1
    }

    pub(crate) fn text(&self, number: u32) -> &Arc<str> {
        &self.all[number as usize]
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// A number for each slot; that of the empty text where it has none.
    pub(crate) fn numbers(&mut self, column: &Column, slots: usize) -> Vec<u32> {
        let mut out = vec![0; slots];
        let mut by_code = match &column.values {
            Values::Codes(_, texts) => vec![u32::MAX; texts.len()],
            _ => Vec::new(),
        };
        let mut set = |slot: usize, place: usize| {
            out[slot] = match &column.values {
                Values::Codes(codes, texts) => {
                    let known = &mut by_code[codes[place] as usize];
                    if *known == u32::MAX {
                        *known = self.number(texts.get(codes[place]).unwrap_or_default());
                    }
                    *known
                }
                values => self.number(values.text(place).unwrap_or_default()),
            };
        };
        match &column.present {
            Present::All => (0..column.values.len().min(slots)).for_each(|at| set(at, at)),
            Present::At(at) => at.iter().enumerate().for_each(|(place, slot)| set(*slot as usize, place)),
        }
        out
    }
}
