//! Who may connect: so many at once, and so many of one address.
//!
//! Without the second, one host that opens connections and says nothing takes every place there is.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::Mutex;

/// The places of one port.
#[derive(Debug)]
pub(super) struct Places {
    all: usize,
    of_one_address: usize,
    taken: Mutex<Taken>,
}

/// As many entries as connections at most.
#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Full {
    All,
    Address,
}

/// A place, given back on drop.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    address: IpAddr,
}

impl Places {
    pub(super) fn new(all: usize, of_one_address: usize) -> Self {
        Self { all, of_one_address, taken: Mutex::default() }
    }

    pub(super) fn take(self: &Arc<Self>, address: IpAddr) -> Result<Place, Full> {
        let address = host_of(address);
        let mut taken = self.taken.lock();
        if taken.all >= self.all {
            return Err(Full::All);
        }
        let of_address = taken.by_address.get(&address).copied().unwrap_or(0);
        if of_address >= self.of_one_address {
            return Err(Full::Address);
        }
        taken.all += 1;
        taken.by_address.insert(address, of_address + 1);
        Ok(Place { places: Arc::clone(self), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock();
        taken.all -= 1;
        if let Entry::Occupied(mut of_address) = taken.by_address.entry(self.address) {
            *of_address.get_mut() -= 1;
            if *of_address.get() == 0 {
                of_address.remove();
            }
        }
    }
}

/// What counts as one address: IPv4 in either form, and of IPv6 the 64 bits that a host does not choose itself.
fn host_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_by_host_and_come_back() {
        let places = Arc::new(Places::new(4, 2));
        let take = |address: &str| places.take(address.parse().unwrap());
        let held = [take("10.0.0.1").unwrap(), take("::ffff:10.0.0.1").unwrap()];
        assert_eq!(take("10.0.0.1").unwrap_err(), Full::Address);
        let others = [take("2001:db8::1").unwrap(), take("2001:db8::2").unwrap()];
        assert_eq!(take("10.0.0.2").unwrap_err(), Full::All);
        drop(held);
        assert_eq!(take("2001:db8::3").unwrap_err(), Full::Address);
        drop(take("10.0.0.1").unwrap());
        drop(others);
        assert!(places.taken.lock().by_address.is_empty() && places.taken.lock().all == 0);
    }
}
