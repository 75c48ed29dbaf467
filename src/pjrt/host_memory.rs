//! Host memory for staging, and for buffers that use it in place: aligned, on huge pages where the system has
//! them, handed out in pieces that are given back one by one.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use bytes::Bytes;
use memmap2::{MmapMut, MmapOptions, MmapRaw};

use crate::error::{Error, Result};

/// What large memory is aligned to, in bytes: a huge page of x86-64, and of aarch64 with 4 KiB pages.
const HUGE_PAGE: usize = 2 << 20;

/// Pieces below this many bytes are given back to the system only together with the rest of their region.
const LEAST_RETURNED: usize = 1 << 20;

/// A piece of anonymous memory that nobody else can reach, zero at first and aligned to a page (to 2 MiB when it
/// was allocated with at least that size).
///
/// Memory is taken from the system when it is first written to. A piece can be split, and joined again; what a
/// dropped piece of more than a megabyte held goes back to the system at once, the rest with the last piece.
pub struct HostMemory {
    region: Arc<Region>,
    start: usize,
    len: usize,
}

struct Region {
    map: MmapRaw,
}

impl HostMemory {
    /// Reserves `len` bytes.
    ///
    /// # Errors
    /// [`Error::HostMemory`] when the process may not have as much.
    pub fn allocate(len: usize) -> Result<HostMemory> {
        let failed = |source| Error::HostMemory { bytes: len, source };
        let is_large = len >= HUGE_PAGE;
        // Systems before Linux 6.7 do not align large maps by themselves.
        let reserved = if is_large { len.saturating_add(HUGE_PAGE) } else { len.max(1) };
        let map: MmapMut = MmapOptions::new().len(reserved).map_anon().map_err(failed)?;
        #[cfg(target_os = "linux")]
        if is_large && let Err(error) = map.advise(memmap2::Advice::HugePage) {
            tracing::debug!(%error, "no huge pages for host memory");
        }
        let start = if is_large { map.as_ptr().align_offset(HUGE_PAGE) } else { 0 };
        Ok(HostMemory { region: Arc::new(Region { map: map.into() }), start, len })
    }

    /// Takes the first `len` bytes off.
    ///
    /// # Panics
    /// When there are not that many, as for a slice.
    pub fn split_to(&mut self, len: usize) -> HostMemory {
        assert!(len <= self.len, "{len} bytes cannot be split off {}", self.len);
        let first = HostMemory { region: Arc::clone(&self.region), start: self.start, len };
        self.start += len;
        self.len -= len;
        first
    }

    /// Puts the piece that follows this one in memory back behind it; gives back one that does not follow.
    ///
    /// # Errors
    /// The other piece, where it does not begin where this one ends.
    pub fn join(&mut self, next: HostMemory) -> std::result::Result<(), HostMemory> {
        if !Arc::ptr_eq(&self.region, &next.region) || self.start + self.len != next.start {
            return Err(next);
        }
        self.len += next.forget();
        Ok(())
    }

    /// Gives the bytes up, for somebody else to own; returns how many they were.
    fn forget(mut self) -> usize {
        std::mem::take(&mut self.len)
    }

    /// The piece as bytes that are shared and no longer written to.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }

    fn as_mut_ptr(&self) -> *mut u8 {
        // SAFETY: `start` lies within the map, or at its end.
        unsafe { self.region.map.as_mut_ptr().add(self.start) }
    }
}

impl Deref for HostMemory {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the bytes are within the map, which lives as long as `region`; the pieces of a region do not
        // overlap, and this one is only written to through `&mut self`.
        unsafe { std::slice::from_raw_parts(self.as_mut_ptr(), self.len) }
    }
}

impl DerefMut for HostMemory {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and the piece is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for HostMemory {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for HostMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostMemory({} bytes)", self.len)
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        // The last piece takes the whole map with it.
        if self.len < LEAST_RETURNED || Arc::strong_count(&self.region) == 1 {
            return;
        }
        #[cfg(target_os = "linux")]
        {
            let page = rustix::param::page_size();
            let first = self.start.next_multiple_of(page);
            let end = (self.start + self.len) / page * page;
            // SAFETY: these pages are wholly within this piece, which nobody can reach any more.
            let returned = unsafe {
                self.region.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, first, end - first)
            };
            if let Err(error) = returned {
                tracing::debug!(%error, "host memory stays until the rest of its region goes");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_disjoint_and_can_be_joined_in_their_order() {
        let mut rest = HostMemory::allocate(5 << 20).unwrap();
        assert!(rest.as_ptr().addr().is_multiple_of(HUGE_PAGE));
        let mut first = rest.split_to(3 << 20);
        first.fill(1);
        rest.fill(2);
        assert!(first.iter().all(|&byte| byte == 1) && rest.iter().all(|&byte| byte == 2));
        let other = HostMemory::allocate(0).unwrap();
        let other = first.join(other).unwrap_err();
        let first = rest.join(first).unwrap_err();
        let mut first = { first };
        first.join(rest).unwrap();
        assert_eq!((first.len(), other.len()), (5 << 20, 0));
        assert_eq!(first.iter().map(|&byte| usize::from(byte)).sum::<usize>(), (3 << 20) + 2 * (2 << 20));
    }

    #[test]
    fn a_dropped_piece_leaves_its_neighbours_alone() {
        let mut rest = HostMemory::allocate(6 << 20).unwrap();
        let mut before = rest.split_to(100);
        let mut middle = rest.split_to(4 << 20);
        before.fill(1);
        middle.fill(2);
        rest.fill(3);
        drop(middle);
        assert!(before.iter().all(|&byte| byte == 1) && rest.iter().all(|&byte| byte == 3));
    }

    #[test]
    fn too_much_is_an_error_that_says_how_much() {
        let error = HostMemory::allocate(1 << 60).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot get {} bytes of host memory", 1u64 << 60));
    }
}
