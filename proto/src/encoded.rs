//! Messages that are passed on as bytes.

use bytes::{Buf, BufMut};
use prost::DecodeError;
use prost::encoding::{self, DecodeContext, WireType};

/// OTLP's `TracesData` in its encoded form, for services that answer with traces.
///
/// Storage keeps fields it does not know; the struct of the schema has no place for them, these bytes do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EncodedTraces(pub Vec<u8>);

/// The only field of the message that has a meaning: `resource_spans`.
const RESOURCE_SPANS: u32 = 1;

impl prost::Message for EncodedTraces {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        buf.put_slice(&self.0);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        if tag != RESOURCE_SPANS {
            return encoding::skip_field(wire_type, tag, buf, ctx);
        }
        let mut group = Vec::new();
        encoding::bytes::merge(wire_type, &mut group, buf, ctx)?;
        encoding::bytes::encode(tag, &group, &mut self.0);
        Ok(())
    }

    fn encoded_len(&self) -> usize {
        self.0.len()
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}
