//! Who took part: a service and its address.

use std::borrow::Cow;
use std::net::{Ipv4Addr, Ipv6Addr};

/// An address as it was sent; text is not looked into.
#[derive(Clone, Debug, Default)]
pub(super) enum Address<'a> {
    #[default]
    None,
    Text(Cow<'a, str>),
    V4(Ipv4Addr),
    V6(Ipv6Addr),
}

impl<'a> Address<'a> {
    pub(super) fn of_text(text: Cow<'a, str>) -> Self {
        if text.is_empty() { Self::None } else { Self::Text(text) }
    }

    pub(super) fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    pub(super) fn text(&self) -> Cow<'_, str> {
        match self {
            Self::None => "".into(),
            Self::Text(text) => (&**text).into(),
            Self::V4(ip) => ip.to_string().into(),
            Self::V6(ip) => ip.to_string().into(),
        }
    }
}

/// Empty, none and 0 are absent.
#[derive(Clone, Debug, Default)]
pub(super) struct Endpoint<'a> {
    pub(super) service: Cow<'a, str>,
    pub(super) ipv4: Address<'a>,
    pub(super) ipv6: Address<'a>,
    pub(super) port: u16,
}

impl Endpoint<'_> {
    /// The address that stands for both.
    pub(super) fn ip(&self) -> &Address<'_> {
        if self.ipv6.is_none() { &self.ipv4 } else { &self.ipv6 }
    }
}
