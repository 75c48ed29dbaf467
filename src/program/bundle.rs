//! Bundles: one exported function at several sizes of its dimensions, in one file.
//!
//! A bundle is a safetensors file, whose tensors `0`, `1`, … are `jax.export` artifacts as bytes, and whose metadata
//! has under `safejax.bundle` a JSON object: `version` (1); `dims`, the names of the dimensions; `buckets`, for each
//! artifact the sizes of those; `in` and `out`, for each leaf of the arguments and outputs its shape, with names
//! for the dimensions that differ. `scripts/export_buckets.py` writes them.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::Deserialize;

use super::bind::Sizes;
use super::exported::{Aval, Dim, Exported};
use crate::format::Checkpoint;

/// The key of a bundle's description in the metadata of its file.
pub const BUNDLE_KEY: &str = "safejax.bundle";

/// The version of the description that is read here.
const VERSION: u32 = 1;

/// One function at several sizes.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Bundle {
    /// The names of the dimensions that differ.
    pub dims: Vec<String>,
    /// What was exported, the smallest first.
    pub buckets: Vec<Bucket>,
    /// The function with names for the sizes that differ.
    pub signature: Arc<Exported>,
}

/// The function at one set of sizes.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Bucket {
    /// The sizes of [`Bundle::dims`].
    pub sizes: Vec<usize>,
    /// The function.
    pub exported: Arc<Exported>,
}

#[derive(Deserialize)]
struct Description {
    version: u32,
    dims: Vec<String>,
    buckets: Vec<Vec<usize>>,
    r#in: Vec<Vec<Dim>>,
    out: Vec<Vec<Dim>>,
}

impl Bundle {
    /// Reads a bundle, or says what is wrong with it; `None` for a file that is none.
    pub(super) fn parse(file: &Checkpoint) -> Option<Result<Bundle, String>> {
        file.metadata().get(BUNDLE_KEY).map(|description| read(file, description))
    }

    /// The sizes of [`Bundle::dims`]; or, for each that cannot be told from what was given, what to do.
    pub(super) fn in_order(&self, sizes: &Sizes<'_>) -> Result<Vec<usize>, Vec<String>> {
        let only = |position: usize| {
            let first = self.buckets[0].sizes[position];
            self.buckets.iter().all(|bucket| bucket.sizes[position] == first).then_some(first)
        };
        let known: Vec<Option<usize>> = self
            .dims
            .iter()
            .enumerate()
            .map(|(position, dim)| sizes.get(dim.as_str()).copied().or_else(|| only(position)))
            .collect();
        let unknown: Vec<String> = self.dims.iter().zip(&known).filter(|(_, size)| size.is_none()).map(|(dim, _)| {
            format!("the size of `{dim}` is not known; give an argument that has it, also one that is not used otherwise")
        }).collect();
        if unknown.is_empty() { Ok(known.into_iter().flatten().collect()) } else { Err(unknown) }
    }

    /// The bucket of exactly these sizes; or which there are.
    pub(super) fn at(&self, sizes: &[(&str, usize)]) -> Result<&Bucket, String> {
        let is_at = |bucket: &&Bucket| {
            sizes.len() == self.dims.len()
                && self
                    .dims
                    .iter()
                    .zip(&bucket.sizes)
                    .all(|(dim, size)| sizes.contains(&(dim.as_str(), *size)))
        };
        self.buckets.iter().find(is_at).ok_or_else(|| {
            let text = |bucket: &Bucket| {
                let named = self.dims.iter().zip(&bucket.sizes).map(|(dim, size)| format!("{dim}={size}"));
                named.collect::<Vec<_>>().join(",")
            };
            let buckets: Vec<String> = self.buckets.iter().map(text).collect();
            format!("the bundle has no bucket of these sizes; it has {}", buckets.join("; "))
        })
    }

    /// The smallest bucket in which these sizes of the dimensions fit; or what does not fit.
    pub(super) fn smallest_for(&self, wanted: &[usize]) -> Result<usize, String> {
        let fits = |bucket: &Bucket| bucket.sizes.iter().zip(wanted).all(|(size, wanted)| size >= wanted);
        self.buckets.iter().position(fits).ok_or_else(|| {
            let text = |sizes: &[usize]| {
                let named = self.dims.iter().zip(sizes).map(|(dim, size)| format!("{dim}={size}"));
                named.collect::<Vec<_>>().join(" ")
            };
            let largest = self.buckets.last().map_or(String::new(), |bucket| text(&bucket.sizes));
            format!(
                "no bucket holds {}; the largest is {largest}: split the call, or export more buckets",
                text(wanted)
            )
        })
    }
}

fn read(file: &Checkpoint, description: &str) -> Result<Bundle, String> {
    let description: Description = serde_json::from_str(description)
        .map_err(|error| format!("its description cannot be read: {error}"))?;
    if description.version != VERSION {
        return Err(format!(
            "it is of version {}, and version {VERSION} is read here; export it again, or use a newer safejax",
            description.version
        ));
    }
    let mut buckets = Vec::with_capacity(description.buckets.len());
    for (index, sizes) in description.buckets.iter().enumerate() {
        let at = |problem: String| format!("bucket {index}: {problem}");
        let bytes = file.bytes(&index.to_string()).map_err(|error| at(error.to_string()))?;
        let exported = Exported::parse(&bytes).map_err(at)?;
        if sizes.len() != description.dims.len() {
            return Err(at(format!(
                "it has {} sizes for {} dimensions",
                sizes.len(),
                description.dims.len()
            )));
        }
        buckets.push(Bucket { sizes: sizes.clone(), exported: Arc::new(exported) });
    }
    buckets.sort_by_key(|bucket| {
        let volume = bucket.sizes.iter().fold(1usize, |product, size| product.saturating_mul(*size));
        (volume, bucket.sizes.clone())
    });
    let first = buckets.first().ok_or("it has no buckets")?;
    let mut signature = (*first.exported).clone();
    // What one size does not use, another may.
    let kept: BTreeSet<usize> = buckets.iter().flat_map(|bucket| &bucket.exported.kept).copied().collect();
    signature.kept = kept.into_iter().collect();
    signature.in_avals = named(&first.exported.in_avals, &description.r#in)?;
    signature.out_avals = named(&first.exported.out_avals, &description.out)?;
    let bundle = Bundle { dims: description.dims, buckets, signature: Arc::new(signature) };
    check(&bundle)?;
    Ok(bundle)
}

/// The types with these shapes.
fn named(avals: &[Aval], shapes: &[Vec<Dim>]) -> Result<Vec<Aval>, String> {
    if avals.len() != shapes.len() {
        return Err(format!("its description has {} shapes for {} leaves", shapes.len(), avals.len()));
    }
    let with_shape = |(aval, shape): (&Aval, &Vec<Dim>)| Aval { shape: shape.clone(), ..aval.clone() };
    Ok(avals.iter().zip(shapes).map(with_shape).collect())
}

/// Every bucket must be the same function at the sizes that the description says.
fn check(bundle: &Bundle) -> Result<(), String> {
    for (position, dim) in bundle.dims.iter().enumerate() {
        let differs = |bucket: &Bucket| bucket.sizes[position] != bundle.buckets[0].sizes[position];
        if !bundle.buckets.iter().any(differs) {
            continue;
        }
        let names_it = |other: &Dim| *other == Dim::Symbolic(dim.clone());
        if !bundle.signature.in_avals.iter().any(|aval| aval.shape.iter().any(names_it)) {
            return Err(format!("no argument has the dimension `{dim}`"));
        }
    }
    for bucket in &bundle.buckets {
        let (own, all) = (&bucket.exported, &bundle.signature);
        if own.in_tree != all.in_tree || own.out_tree != all.out_tree {
            return Err(format!("the bucket {:?} has other trees than the first", bucket.sizes));
        }
        if own.platforms != all.platforms || own.device_count != all.device_count {
            return Err(format!(
                "the bucket {:?} is for other platforms or devices than the first",
                bucket.sizes
            ));
        }
        for (own, all) in [(&own.in_avals, &all.in_avals), (&own.out_avals, &all.out_avals)] {
            for (own, all) in own.iter().zip(all) {
                let expected = at_sizes(all, &bundle.dims, &bucket.sizes)?;
                if *own != expected {
                    return Err(format!(
                        "the bucket {:?} has {own} where its description says {expected}",
                        bucket.sizes
                    ));
                }
            }
        }
    }
    Ok(())
}

/// The type with sizes for the names of dimensions.
pub(super) fn at_sizes(aval: &Aval, dims: &[String], sizes: &[usize]) -> Result<Aval, String> {
    let size = |dim: &Dim| match dim {
        Dim::Size(size) => Ok(Dim::Size(*size)),
        Dim::Symbolic(name) => {
            let position = dims.iter().position(|known| known == name);
            let position = position.ok_or_else(|| format!("there is no dimension `{name}`"))?;
            Ok(Dim::Size(sizes[position]))
        }
    };
    Ok(Aval { shape: aval.shape.iter().map(size).collect::<Result<_, String>>()?, ..aval.clone() })
}
