//! The options that say how bytes are moved to a device.

use clap::{Args, ValueEnum};
use safejax::LoadOptions;
use safejax::load::{Delivery, Prefetch, Registration, Staging};
use safejax::store::Io;

/// How bytes are read and moved.
#[derive(Args)]
pub struct TransferArgs {
    /// How bytes that must be copied are read
    #[arg(long, value_enum, default_value = "auto")]
    io: IoName,

    /// What is done for tensors that use the file in place, whose bytes are otherwise read on first use
    #[arg(long, value_enum, default_value = "none")]
    prefetch: PrefetchName,

    /// How tensors that are not used in place get to the device
    #[arg(long, value_enum, default_value = "auto")]
    delivery: DeliveryName,

    /// The staging ring: chunks, and MiB of each [default: 12x8]
    #[arg(long, value_name = "CHUNKSxMIB", value_parser = parse_staging)]
    staging: Option<Staging>,

    /// Do not register the staging ring with the device (do not lock its memory)
    #[arg(long)]
    no_registration: bool,

    /// Threads that read, cast and check [default: one for each processor, up to 16, and at least 8 where
    /// reads wait for a disk or a network; two fewer than the chunks of a staging ring]
    #[arg(long, value_name = "N", value_parser = parse_threads)]
    threads: Option<usize>,
}

#[derive(Clone, Copy, ValueEnum)]
enum IoName {
    /// The memory map in place, and positional reads for what must be copied
    Auto,
    /// The memory map only
    Mapped,
    /// Positional reads only
    Positional,
    /// Reads past the page cache
    Direct,
}

#[derive(Clone, Copy, ValueEnum)]
enum PrefetchName {
    /// Nothing
    None,
    /// The system is asked to read it soon
    WillNeed,
    /// It is read and mapped before the load ends
    Populate,
}

#[derive(Clone, Copy, ValueEnum)]
enum DeliveryName {
    /// Through memory that the device uses in place, where it can; else as stream
    Auto,
    /// Through the staging ring, piece by piece
    Stream,
    /// Through the staging ring, each tensor whole
    Whole,
}

fn parse_staging(text: &str) -> Result<Staging, String> {
    let parsed = text.split_once('x').and_then(|(chunks, size)| {
        let (chunks, size): (usize, usize) = (chunks.parse().ok()?, size.parse().ok()?);
        (chunks >= 2 && size >= 1).then_some(Staging::new(chunks, size.checked_mul(1 << 20)?))
    });
    parsed.ok_or_else(|| "it is not a number of chunks, at least 2, and their MiB, such as 12x8".into())
}

fn parse_threads(text: &str) -> Result<usize, String> {
    let threads = text.parse().ok().filter(|&threads| threads > 0);
    threads.ok_or_else(|| "it is not a number from 1 on".into())
}

impl TransferArgs {
    /// Adds these to options.
    pub fn apply(&self, mut options: LoadOptions) -> LoadOptions {
        let registration = if self.no_registration { Registration::Never } else { Registration::Auto };
        options = options
            .io(match self.io {
                IoName::Auto => Io::Auto,
                IoName::Mapped => Io::Mapped,
                IoName::Positional => Io::Positional,
                IoName::Direct => Io::Direct,
            })
            .prefetch(match self.prefetch {
                PrefetchName::None => Prefetch::None,
                PrefetchName::WillNeed => Prefetch::WillNeed,
                PrefetchName::Populate => Prefetch::Populate,
            })
            .delivery(match self.delivery {
                DeliveryName::Auto => Delivery::Auto,
                DeliveryName::Stream => Delivery::Stream,
                DeliveryName::Whole => Delivery::Whole,
            })
            .staging(self.staging.unwrap_or_default().registration(registration));
        match self.threads {
            Some(threads) => options.threads(threads),
            None => options,
        }
    }
}
