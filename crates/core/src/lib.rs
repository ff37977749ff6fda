//! Pure parts.
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod argv;
pub mod notify;
pub mod sync;
