//! How soon the allocator gives freed memory back to the system.
//!
//! Owns one setting of mimalloc. It keeps what was freed for a second, in case it is needed again: a merge or a burst of requests frees
//! hundreds of megabytes in that time, which count as the process's although nothing is in them. Measured over 2M spans in: 400 MB at the
//! peak with a second, 350 MB with a tenth of one, and no more processor time than the noise; a merge of one trace of 1M spans: 287
//! and 206 MB.

use std::env;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// The variable mimalloc reads it from, in milliseconds.
const DELAY: &str = "MIMALLOC_PURGE_DELAY";
const MILLISECONDS: &str = "100";

/// Makes this process give memory back after a tenth of a second, unless its environment says otherwise. To be called before anything
/// is opened or printed.
///
/// The allocator reads its environment before `main`, and setting its options later takes unsafe code: so the program is started again
/// in this process, with the variable set. Where that fails memory goes back later, no more.
pub fn give_back_soon() {
    if env::var_os(DELAY).is_some() {
        return;
    }
    let Ok(program) = env::current_exe() else { return };
    let mut arguments = env::args_os();
    let name = arguments.next().unwrap_or_else(|| program.clone().into());
    let error = Command::new(program).arg0(name).args(arguments).env(DELAY, MILLISECONDS).exec();
    tracing::debug!(%error, "not started again: memory goes back after a second");
}
