//! The table that names a checkpoint's tensors: a sorted map of LevelDB's form, in blocks of entries, with an index of them at the
//! end (`tensorflow/core/lib/io/table_format.txt`).

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;

use super::super::folder::Folder;
use super::super::problem::Problem;

/// What a table ends with: `0xdb4775248b80fb57`, the lowest byte first.
const MAGIC: [u8; 8] = [0x57, 0xfb, 0x80, 0x8b, 0x24, 0x75, 0x47, 0xdb];

/// Bytes of the footer: two handles, padding and the magic number.
const FOOTER_BYTES: usize = 48;

/// Bytes of a CRC-32C.
pub const CRC_BYTES: usize = 4;

/// Bytes after a block: its kind, and a masked CRC-32C of block and kind.
const TRAILER_BYTES: usize = 1 + CRC_BYTES;

/// The kind of a block that is not compressed; 1 is snappy.
const PLAIN: u8 = 0;

/// Bytes of a number in the list of places at the end of a block.
const RESTART_BYTES: usize = 4;

/// Whether bytes end like a table.
pub fn ends(tail: &[u8]) -> bool {
    tail.ends_with(&MAGIC)
}

/// The checksum behind a masked one: those that are stored are turned and raised, so that checksums of checksums differ.
pub fn unmasked(masked: u32) -> u32 {
    const RAISED: u32 = 0xa282_ead8;
    masked.wrapping_sub(RAISED).rotate_right(17)
}

/// The values of a table by their keys.
///
/// # Errors
/// What is wrong with it.
pub fn read(table: &Bytes, folder: &mut Folder) -> Result<BTreeMap<Vec<u8>, Bytes>, Problem> {
    let footer =
        table.len().checked_sub(FOOTER_BYTES).map(|start| &table[start..]).filter(|footer| ends(footer));
    let mut footer = footer.ok_or("it does not end like a table: it is cut off, or is none")?;
    let _other = handle(&mut footer)?;
    let index = block(table, handle(&mut footer)?)?;
    let mut values = BTreeMap::new();
    for (_, place) in entries(table, index, folder)? {
        let block = block(table, handle(&mut &place[..])?)?;
        for (key, value) in entries(table, block, folder)? {
            if values.last_key_value().is_some_and(|(last, _)| *last >= key) {
                return Err("its keys are not in order".into());
            }
            values.insert(key, value);
        }
    }
    Ok(values)
}

/// Where a block is: its beginning and its bytes.
fn handle(bytes: &mut &[u8]) -> Result<Range<usize>, String> {
    let start = varint(bytes)?;
    let end = start.checked_add(varint(bytes)?).ok_or("a block is larger than memory")?;
    Ok(start..end)
}

/// What a block has, held against its checksum.
fn block(table: &[u8], place: Range<usize>) -> Result<Range<usize>, String> {
    let outside = || format!("it has a block at {place:?}, and ends at byte {}", table.len());
    let end = place.end.checked_add(TRAILER_BYTES).ok_or_else(outside)?;
    let stored = table.get(place.start..end).ok_or_else(outside)?;
    let (content, sum) = stored.split_last_chunk::<CRC_BYTES>().ok_or_else(outside)?;
    if crc32c::crc32c(content) != unmasked(u32::from_le_bytes(*sum)) {
        return Err(format!("the checksum of its block at byte {} differs: it is damaged", place.start));
    }
    match content.last() {
        Some(&PLAIN) => Ok(place),
        _ => Err("its blocks are compressed with snappy, which is not read".into()),
    }
}

/// The entries of a block: each says how much of the last key it begins with.
fn entries(
    table: &Bytes,
    block: Range<usize>,
    folder: &mut Folder,
) -> Result<Vec<(Vec<u8>, Bytes)>, Problem> {
    let content = &table[block.clone()];
    let damaged = "its entries are damaged";
    let (_, count) = content.split_last_chunk::<RESTART_BYTES>().ok_or(damaged)?;
    let restarts =
        (u32::from_le_bytes(*count) as usize).checked_add(1).and_then(|n| n.checked_mul(RESTART_BYTES));
    let end = restarts.and_then(|bytes| content.len().checked_sub(bytes)).ok_or(damaged)?;
    let mut rest = &content[..end];
    let mut entries: Vec<(Vec<u8>, Bytes)> = Vec::new();
    while !rest.is_empty() {
        let (shared, unshared, length) = (varint(&mut rest)?, varint(&mut rest)?, varint(&mut rest)?);
        let last = entries.last().map(|(key, _)| &key[..]).unwrap_or_default();
        let (start, suffix) = (last.get(..shared).ok_or(damaged)?, rest.get(..unshared).ok_or(damaged)?);
        let key = [start, suffix].concat();
        let value = rest.get(unshared..).and_then(|rest| rest.get(..length)).ok_or(damaged)?;
        folder.count(1)?;
        folder.spend(key.len() + size_of::<(Vec<u8>, Bytes)>())?;
        entries.push((key, table.slice_ref(value)));
        rest = &rest[unshared + length..];
    }
    Ok(entries)
}

fn varint(bytes: &mut &[u8]) -> Result<usize, String> {
    let number = prost::encoding::decode_varint(bytes).map_err(|_| "a number in it is damaged")?;
    usize::try_from(number).map_err(|_| format!("a number in it is {number}"))
}
