//! Zipkin's JSON of today, read into the model; and the pieces that its first JSON shares.
//!
//! One pass without a tree of values: strings are borrowed from the body where they have no escapes. Unknown keys are skipped,
//! `null` is absent.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Unexpected, Visitor};

use super::endpoint::{Address, Endpoint};
use super::v2::{SpanWriter, hex};
use crate::otlp::build::{Groups, Kind};
use crate::pipeline::IngestError;

/// The OTLP of an array of spans.
pub(super) fn otlp(body: &[u8], max: usize) -> Result<Vec<u8>, IngestError> {
    let mut spans = Spans { writer: SpanWriter::new(max), groups: Groups::new(body.len(), max), failed: None };
    let read = read(body, &mut spans);
    finish(read, spans.failed.take(), spans.groups)
}

/// Reads a body that is one array.
pub(super) fn read<'a>(body: &'a [u8], spans: &mut impl Elements<'a>) -> Result<(), serde_json::Error> {
    // Looked at once: each string alone takes several times as long.
    let text = std::str::from_utf8(body).map_err(serde_json::Error::custom)?;
    let mut text = serde_json::Deserializer::from_str(text);
    List(spans).deserialize(&mut text)?;
    text.end()
}

/// What became of a body: its OTLP, or why not.
pub(super) fn finish(
    read: Result<(), serde_json::Error>,
    failed: Option<IngestError>,
    groups: Groups,
) -> Result<Vec<u8>, IngestError> {
    match (read, failed) {
        (_, Some(error)) => Err(error),
        (Err(error), None) => Err(IngestError::Malformed(error.to_string())),
        (Ok(()), None) => Ok(groups.finish()),
    }
}

/// Passes an error of the mapping through the parser, which has errors of its own.
pub(super) fn through<T, E: Error>(result: Result<T, IngestError>, failed: &mut Option<IngestError>) -> Result<T, E> {
    result.map_err(|error| {
        let text = E::custom(&error);
        *failed = Some(error);
        text
    })
}

/// What takes the members of an object.
pub(super) trait Members<'a> {
    /// What it is, for errors.
    const NAME: &'static str;

    /// Reads the value of `key`.
    fn member<A: MapAccess<'a>>(&mut self, key: Cow<'a, str>, map: &mut A) -> Result<(), A::Error>;
}

/// Reads an object or `null`.
pub(super) struct Object<'t, T>(pub(super) &'t mut T);

impl<'a, T: Members<'a>> DeserializeSeed<'a> for Object<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(self)
    }
}

impl<'a, T: Members<'a>> Visitor<'a> for Object<'_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::NAME)
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<Text<'a>>()? {
            self.0.member(key.0, &mut map)?;
        }
        Ok(())
    }
}

pub(super) fn skip<'a, A: MapAccess<'a>>(map: &mut A) -> Result<(), A::Error> {
    map.next_value::<IgnoredAny>().map(drop)
}

/// What takes the elements of an array.
pub(super) trait Elements<'a> {
    /// What it is, for errors.
    const NAME: &'static str;

    /// Reads one; false at the end.
    fn element<A: SeqAccess<'a>>(&mut self, list: &mut A) -> Result<bool, A::Error>;
}

/// Reads an array or `null`.
pub(super) struct List<'t, T>(pub(super) &'t mut T);

impl<'a, T: Elements<'a>> DeserializeSeed<'a> for List<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(self)
    }
}

impl<'a, T: Elements<'a>> Visitor<'a> for List<'_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::NAME)
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut list: A) -> Result<(), A::Error> {
        while self.0.element(&mut list)? {}
        Ok(())
    }
}

/// A string; `null` is the empty one, numbers and bools are their text.
#[derive(Default)]
pub(super) struct Text<'a>(pub(super) Cow<'a, str>);

impl<'a> Deserialize<'a> for Text<'a> {
    fn deserialize<D: Deserializer<'a>>(d: D) -> Result<Self, D::Error> {
        struct TextVisitor;

        impl<'a> Visitor<'a> for TextVisitor {
            type Value = Text<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'a str) -> Result<Text<'a>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Text<'a>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }

            fn visit_unit<E>(self) -> Result<Text<'a>, E> {
                Ok(Text::default())
            }

            fn visit_bool<E>(self, value: bool) -> Result<Text<'a>, E> {
                Ok(Text(if value { "true" } else { "false" }.into()))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Text<'a>, E> {
                Ok(Text(value.to_string().into()))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Text<'a>, E> {
                Ok(Text(value.to_string().into()))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Text<'a>, E> {
                Ok(Text(value.to_string().into()))
            }
        }

        d.deserialize_any(TextVisitor)
    }
}

/// An integer that is not negative; `null` is 0. Doubles without a fraction pass: some clients have no other numbers.
pub(super) struct Count(pub(super) u64);

impl<'a> Deserialize<'a> for Count {
    fn deserialize<D: Deserializer<'a>>(d: D) -> Result<Self, D::Error> {
        struct CountVisitor;

        impl Visitor<'_> for CountVisitor {
            type Value = Count;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an integer that is not negative")
            }

            fn visit_u64<E>(self, value: u64) -> Result<Count, E> {
                Ok(Count(value))
            }

            fn visit_f64<E: Error>(self, value: f64) -> Result<Count, E> {
                if value.fract() == 0.0 && (0.0..=(1_u64 << 62) as f64).contains(&value) {
                    return Ok(Count(value as u64));
                }
                Err(E::invalid_value(Unexpected::Float(value), &self))
            }

            fn visit_unit<E>(self) -> Result<Count, E> {
                Ok(Count(0))
            }
        }

        d.deserialize_any(CountVisitor)
    }
}

/// An endpoint, or none for `null`.
pub(super) fn endpoint<'a, A: MapAccess<'a>>(map: &mut A) -> Result<Endpoint<'a>, A::Error> {
    let mut endpoint = EndpointMembers(Endpoint::default());
    map.next_value_seed(Object(&mut endpoint))?;
    Ok(endpoint.0)
}

struct EndpointMembers<'a>(Endpoint<'a>);

impl<'a> Members<'a> for EndpointMembers<'a> {
    const NAME: &'static str = "an endpoint";

    fn member<A: MapAccess<'a>>(&mut self, key: Cow<'a, str>, map: &mut A) -> Result<(), A::Error> {
        match &*key {
            "serviceName" => self.0.service = map.next_value::<Text<'a>>()?.0,
            "ipv4" => self.0.ipv4 = Address::of_text(map.next_value::<Text<'a>>()?.0),
            "ipv6" => self.0.ipv6 = Address::of_text(map.next_value::<Text<'a>>()?.0),
            "port" => {
                let port = map.next_value::<Count>()?.0;
                self.0.port = u16::try_from(port).map_err(|_| A::Error::custom("a port over 65535"))?;
            }
            _ => skip(map)?,
        }
        Ok(())
    }
}

struct Spans<'a> {
    writer: SpanWriter<'a>,
    groups: Groups,
    failed: Option<IngestError>,
}

impl<'a> Elements<'a> for Spans<'a> {
    const NAME: &'static str = "an array of spans";

    fn element<A: SeqAccess<'a>>(&mut self, list: &mut A) -> Result<bool, A::Error> {
        self.writer.begin();
        if list.next_element_seed(Object(self))?.is_none() {
            return Ok(false);
        }
        through(self.writer.finish(&mut self.groups), &mut self.failed)?;
        Ok(true)
    }
}

/// The members of one span.
impl<'a> Members<'a> for Spans<'a> {
    const NAME: &'static str = "a span";

    fn member<A: MapAccess<'a>>(&mut self, key: Cow<'a, str>, map: &mut A) -> Result<(), A::Error> {
        match &*key {
            "traceId" => self.writer.trace_id = id("traceId", &map.next_value::<Text<'a>>()?.0)?,
            "id" => self.writer.span_id = id("id", &map.next_value::<Text<'a>>()?.0)?,
            "parentId" => self.writer.parent = id("parentId", &map.next_value::<Text<'a>>()?.0)?,
            "kind" => {
                self.writer.kind = match &*map.next_value::<Text<'a>>()?.0 {
                    "CLIENT" => Some(Kind::Client),
                    "SERVER" => Some(Kind::Server),
                    "PRODUCER" => Some(Kind::Producer),
                    "CONSUMER" => Some(Kind::Consumer),
                    _ => None,
                }
            }
            "name" => self.writer.name(&map.next_value::<Text<'a>>()?.0),
            "timestamp" => self.writer.timestamp = map.next_value::<Count>()?.0,
            "duration" => self.writer.duration = map.next_value::<Count>()?.0,
            "localEndpoint" => self.writer.local(endpoint(map)?),
            "remoteEndpoint" => self.writer.remote(&endpoint(map)?),
            "annotations" => map.next_value_seed(List(&mut Annotations(self)))?,
            "tags" => map.next_value_seed(Object(&mut Tags(self)))?,
            _ => skip(map)?,
        }
        Ok(())
    }
}

/// Up to twice `N` hex digits; none at all is no id.
fn id<const N: usize, E: Error>(key: &str, text: &str) -> Result<[u8; N], E> {
    if text.is_empty() {
        return Ok([0; N]);
    }
    hex(text).ok_or_else(|| E::custom(format_args!("`{key}` is not 1 to {} hex digits: {text:?}", 2 * N)))
}

struct Tags<'s, 'a>(&'s mut Spans<'a>);

impl<'a> Members<'a> for Tags<'_, 'a> {
    const NAME: &'static str = "an object of strings in `tags`";

    fn member<A: MapAccess<'a>>(&mut self, key: Cow<'a, str>, map: &mut A) -> Result<(), A::Error> {
        let value = map.next_value::<Text<'a>>()?.0;
        through(self.0.writer.tag(key, value), &mut self.0.failed)
    }
}

struct Annotations<'s, 'a>(&'s mut Spans<'a>);

impl<'a> Elements<'a> for Annotations<'_, 'a> {
    const NAME: &'static str = "an array in `annotations`";

    fn element<A: SeqAccess<'a>>(&mut self, list: &mut A) -> Result<bool, A::Error> {
        let mut annotation = Annotation::default();
        if list.next_element_seed(Object(&mut annotation))?.is_none() {
            return Ok(false);
        }
        through(self.0.writer.annotation(annotation.micros, &annotation.text), &mut self.0.failed)?;
        Ok(true)
    }
}

#[derive(Default)]
struct Annotation<'a> {
    micros: u64,
    text: Cow<'a, str>,
}

impl<'a> Members<'a> for Annotation<'a> {
    const NAME: &'static str = "an annotation";

    fn member<A: MapAccess<'a>>(&mut self, key: Cow<'a, str>, map: &mut A) -> Result<(), A::Error> {
        match &*key {
            "timestamp" => self.micros = map.next_value::<Count>()?.0,
            "value" => self.text = map.next_value::<Text<'a>>()?.0,
            _ => skip(map)?,
        }
        Ok(())
    }
}
