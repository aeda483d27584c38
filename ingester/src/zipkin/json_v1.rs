//! Zipkin's first JSON, read into the first model.
//!
//! Ids must have all their digits, or the whole batch is refused: this form was never written otherwise.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::endpoint::Endpoint;
use super::json::{Count, Elements, List, Members, Object, Text, endpoint, finish, read, skip, through};
use super::v1::{SpanWriter, Value};
use super::v2::hex;
use crate::otlp::build::Groups;
use crate::pipeline::IngestError;

/// The OTLP of an array of spans. `now` in Unix nanoseconds is the time of spans without any.
pub(super) fn otlp(body: &[u8], max: usize, now: u64) -> Result<Vec<u8>, IngestError> {
    let mut spans = Spans { writer: SpanWriter::new(max), groups: Groups::new(body.len(), max), failed: None, now };
    let read = read(body, &mut spans);
    finish(read, spans.failed.take(), spans.groups)
}

struct Spans<'a> {
    writer: SpanWriter<'a>,
    groups: Groups,
    failed: Option<IngestError>,
    now: u64,
}

impl<'a> Elements<'a> for Spans<'a> {
    const NAME: &'static str = "an array of spans";

    fn element<A: SeqAccess<'a>>(&mut self, list: &mut A) -> Result<bool, A::Error> {
        self.writer.begin();
        if list.next_element_seed(Object(self))?.is_none() {
            return Ok(false);
        }
        for (key, is_zero) in [("traceId", self.writer.trace_id == [0; 16]), ("id", self.writer.span_id == [0; 8])] {
            if is_zero {
                return Err(A::Error::custom(format_args!("`{key}` is missing or zero")));
            }
        }
        through(self.writer.finish(Some(self.now), &mut self.groups), &mut self.failed)?;
        Ok(true)
    }
}

/// The members of one span.
impl<'a> Members<'a> for Spans<'a> {
    const NAME: &'static str = "a span";

    fn member<A: MapAccess<'a>>(&mut self, key: Cow<'a, str>, map: &mut A) -> Result<(), A::Error> {
        let writer = &mut self.writer;
        match &*key {
            "traceId" => {
                let text = map.next_value::<Text<'a>>()?.0;
                let whole = matches!(text.len(), 16 | 32);
                let bad = || A::Error::custom(format_args!("`traceId` is not 16 or 32 hex digits: {text:?}"));
                writer.trace_id = hex(&text).filter(|_| whole).ok_or_else(bad)?;
            }
            "id" => writer.span_id = id("id", &map.next_value::<Text<'a>>()?.0)?,
            "parentId" => match &*map.next_value::<Text<'a>>()?.0 {
                "" => {}
                text => {
                    writer.parent = id("parentId", text)?;
                    if writer.parent == [0; 8] {
                        return Err(A::Error::custom("`parentId` is zero"));
                    }
                }
            },
            "name" => writer.name(&map.next_value::<Text<'a>>()?.0),
            "timestamp" => writer.timestamp = micros(map)?,
            "duration" => writer.duration = micros(map)?,
            "annotations" => map.next_value_seed(List(&mut Annotations(self)))?,
            "binaryAnnotations" => map.next_value_seed(List(&mut BinaryAnnotations(self)))?,
            _ => skip(map)?,
        }
        Ok(())
    }
}

fn id<E: Error>(key: &str, text: &str) -> Result<[u8; 8], E> {
    let bad = || E::custom(format_args!("`{key}` is not 16 hex digits: {text:?}"));
    hex(text).filter(|_| text.len() == 16).ok_or_else(bad)
}

fn micros<'a, A: MapAccess<'a>>(map: &mut A) -> Result<i64, A::Error> {
    let count = map.next_value::<Count>()?.0;
    i64::try_from(count).map_err(|_| A::Error::custom("a time over 63 bits"))
}

struct Annotations<'s, 'a>(&'s mut Spans<'a>);

impl<'a> Elements<'a> for Annotations<'_, 'a> {
    const NAME: &'static str = "an array in `annotations`";

    fn element<A: SeqAccess<'a>>(&mut self, list: &mut A) -> Result<bool, A::Error> {
        let mut annotation = Annotation::default();
        if list.next_element_seed(Object(&mut annotation))?.is_none() {
            return Ok(false);
        }
        let Annotation { micros, text, host } = annotation;
        through(self.0.writer.annotation(micros, &text, host), &mut self.0.failed)?;
        Ok(true)
    }
}

#[derive(Default)]
struct Annotation<'a> {
    micros: i64,
    text: Cow<'a, str>,
    host: Option<Endpoint<'a>>,
}

impl<'a> Members<'a> for Annotation<'a> {
    const NAME: &'static str = "an annotation";

    fn member<A: MapAccess<'a>>(&mut self, key: Cow<'a, str>, map: &mut A) -> Result<(), A::Error> {
        match &*key {
            "timestamp" => self.micros = micros(map)?,
            "value" => self.text = map.next_value::<Text<'a>>()?.0,
            "endpoint" => self.host = Some(endpoint(map)?),
            _ => skip(map)?,
        }
        Ok(())
    }
}

struct BinaryAnnotations<'s, 'a>(&'s mut Spans<'a>);

impl<'a> Elements<'a> for BinaryAnnotations<'_, 'a> {
    const NAME: &'static str = "an array in `binaryAnnotations`";

    fn element<A: SeqAccess<'a>>(&mut self, list: &mut A) -> Result<bool, A::Error> {
        let Some(said) = list.next_element::<&'a RawValue>()?.map(RawValue::get) else { return Ok(false) };
        let Spans { writer, failed, .. } = &mut *self.0;
        if through(writer.repeated(said.as_bytes()), failed)?.is_some() {
            return Ok(true);
        }
        let mut annotation = BinaryAnnotation { key: "".into(), value: AnyValue(Value::Text("".into())), host: None };
        let mut text = serde_json::Deserializer::from_str(said);
        Object(&mut annotation).deserialize(&mut text).map_err(A::Error::custom)?;
        let BinaryAnnotation { key, value, host } = annotation;
        through(writer.binary_annotation(said.as_bytes(), &key, value.0, host), failed)?;
        Ok(true)
    }
}

struct BinaryAnnotation<'a> {
    key: Cow<'a, str>,
    value: AnyValue<'a>,
    host: Option<Endpoint<'a>>,
}

impl<'a> Members<'a> for BinaryAnnotation<'a> {
    const NAME: &'static str = "a binary annotation";

    fn member<A: MapAccess<'a>>(&mut self, key: Cow<'a, str>, map: &mut A) -> Result<(), A::Error> {
        match &*key {
            "key" => self.key = map.next_value::<Text<'a>>()?.0,
            "value" => self.value = map.next_value()?,
            "endpoint" => self.host = Some(endpoint(map)?),
            _ => skip(map)?,
        }
        Ok(())
    }
}

/// Strings as everybody writes them; a bool or a number is taken as what it is.
struct AnyValue<'a>(Value<'a>);

impl<'a> Deserialize<'a> for AnyValue<'a> {
    fn deserialize<D: Deserializer<'a>>(d: D) -> Result<Self, D::Error> {
        struct ValueVisitor;

        impl<'a> Visitor<'a> for ValueVisitor {
            type Value = AnyValue<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a bool or a number")
            }

            fn visit_borrowed_str<E>(self, text: &'a str) -> Result<AnyValue<'a>, E> {
                Ok(AnyValue(Value::Text(text.into())))
            }

            fn visit_str<E>(self, text: &str) -> Result<AnyValue<'a>, E> {
                Ok(AnyValue(Value::Text(text.to_owned().into())))
            }

            fn visit_unit<E>(self) -> Result<AnyValue<'a>, E> {
                Ok(AnyValue(Value::Text("".into())))
            }

            fn visit_bool<E>(self, value: bool) -> Result<AnyValue<'a>, E> {
                Ok(AnyValue(Value::Bool(value)))
            }

            fn visit_i64<E>(self, value: i64) -> Result<AnyValue<'a>, E> {
                Ok(AnyValue(Value::Int(value)))
            }

            fn visit_u64<E>(self, value: u64) -> Result<AnyValue<'a>, E> {
                Ok(AnyValue(i64::try_from(value).map_or(Value::Double(value as f64), Value::Int)))
            }

            fn visit_f64<E>(self, value: f64) -> Result<AnyValue<'a>, E> {
                Ok(AnyValue(Value::Double(value)))
            }
        }

        d.deserialize_any(ValueVisitor)
    }
}
