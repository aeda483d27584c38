//! The engine against the naive evaluator: data, a query and how spans lie are made of the fuzzer's bytes.

#![no_main]

use std::convert::Infallible;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use rand::TryRng;
use spanhouse_querier::naive::differential::differs;
use tokio::runtime::Runtime;

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime"));

/// Choices out of bytes, so that changing one changes a choice; when they are out, some that never end.
struct Bytes {
    left: std::vec::IntoIter<u8>,
    beyond: u64,
}

impl TryRng for Bytes {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        // Ranges are small, and a choice is made of the upper bits: two bytes decide.
        let (Some(high), Some(low)) = (self.left.next(), self.left.next()) else {
            self.beyond = self.beyond.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            return Ok((self.beyond >> 32) as u32);
        };
        Ok(u32::from_be_bytes([high, low, 0x55, 0x55]))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let (high, low) = (self.try_next_u32()?, self.try_next_u32()?);
        Ok(u64::from(high) << 32 | u64::from(low))
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        for part in out.chunks_mut(4) {
            let bytes = self.try_next_u32()?.to_le_bytes();
            part.copy_from_slice(&bytes[..part.len()]);
        }
        Ok(())
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut choices = Bytes { left: bytes.to_vec().into_iter(), beyond: 1 };
    if let Some(difference) = RUNTIME.block_on(differs(&mut choices, |_| ())) {
        panic!("{difference}");
    }
});
