//! `safejax load`: how fast, and how, a checkpoint gets to a device.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;
use safejax::load::{self, Sharing, Verification};
use safejax::printable::{Block, Count, File};
use safejax::{Checkpoint, DeviceMesh, LoadOptions, Params};
use serde_json::json;

use crate::client::DeviceArgs;
use crate::mesh::{self, MeshArgs};
use crate::output::{self, OutputArgs};
use crate::select::SelectArgs;
use crate::stream;
use crate::transfer::TransferArgs;
use crate::work_bar;

#[derive(Args)]
pub struct Load {
    /// A checkpoint of any format that is read; of one in several files, the index, one of them or the directory
    file: PathBuf,

    #[command(flatten)]
    device: DeviceArgs,

    #[command(flatten)]
    mesh: MeshArgs,

    /// Cast floating point tensors: f16, bf16, f32 or f64, or PATTERN=TYPE for those whose names match
    #[arg(long = "dtype", value_name = "[PATTERN=]DTYPE", value_parser = crate::convert::parse_cast)]
    dtypes: Vec<(String, safejax::DType)>,

    #[command(flatten)]
    select: SelectArgs,

    /// Check the digests that the file records; fails where it records none
    #[arg(long)]
    verify: bool,

    /// Copy every tensor, also those that the device could use in place
    #[arg(long)]
    copy: bool,

    /// Say for every tensor how it gets to the device, and where the time went
    #[arg(long)]
    explain: bool,

    #[command(flatten)]
    transfer: TransferArgs,

    #[command(flatten)]
    output: OutputArgs,
}

impl Load {
    /// Says, and draws, which device of a mesh gets what. Loads nothing.
    fn explain_mesh(&self, mesh: &DeviceMesh, mut options: LoadOptions) -> Result<String> {
        options.selection = self.select.selection()?;
        options.dtypes = self.dtypes.clone();
        let checkpoint = Checkpoint::open_within(&self.file, self.select.limits())?;
        let leaves = load::placements_of(&checkpoint, &options)?;
        let picture = mesh::picture(mesh, &leaves);
        match self.mesh.svg.as_deref() {
            Some(path) if stream::is_dash(path) => return Ok(picture),
            Some(path) => std::fs::write(path, picture)
                .with_context(|| format!("--svg {} cannot be written", File(path)))?,
            None => {}
        }
        let (text, json) = (mesh::explain(mesh, &leaves)?, mesh::explain_json(mesh, &leaves)?);
        Ok(self.output.choose(|| text, || json))
    }

    pub fn run(mut self) -> Result<String> {
        self.file = self.select.input(&self.file)?;
        let sharing = if self.copy { Sharing::Never } else { Sharing::Allowed };
        let options = LoadOptions::default().sharing(sharing).monitor(work_bar::watch());
        let (client, options, device) = match &self.mesh.mesh {
            None => {
                let (client, device) = self.device.connect()?;
                (client, options.to(&device), device.to_string())
            }
            Some(axes) => {
                let client = self.device.connect_to_several(self.mesh.device_count(axes))?;
                let mesh = self.mesh.device_mesh(&client, axes)?;
                let options = options.sharded(&mesh, self.mesh.rules()?);
                if self.explain || self.mesh.svg.is_some() {
                    return self.explain_mesh(&mesh, options);
                }
                (client, options, mesh.to_string())
            }
        };
        let mut options = self.transfer.apply(options);
        options.selection = self.select.selection()?;
        options.dtypes = self.dtypes.clone();
        if self.verify {
            options.verification = Verification::Digests;
        }
        let start = Instant::now();
        let checkpoint = Checkpoint::open_within(&self.file, self.select.limits())?;
        let opened = start.elapsed();
        // Said before it is tried: the load can fail, or take its time.
        let plan = self.explain.then(|| load::plan(&client, &checkpoint, &options)).transpose()?;
        if let Some(Err(error)) = plan.as_ref().map(|plan| load::check_room(&client, plan, &options)) {
            let error = anyhow::Error::from(error);
            eprint!("{}", output::warning(&format!("the plan does not fit: {error:#}")));
            if let Some(plan) = plan.as_ref().filter(|_| !self.output.json) {
                print!("{}", Block(&plan.to_string()));
            }
        }
        let start = Instant::now();
        let (params, report) = Params::load_checkpoint(&client, &checkpoint, &options)?;
        params.wait()?;
        let seconds = (opened + start.elapsed()).as_secs_f64();
        let gigabytes_per_second = report.bytes as f64 / seconds / 1e9;
        let what = if self.mesh.mesh.is_some() { "part" } else { "tensor" };
        Ok(self.output.choose(
            || {
                let explained = plan.as_ref().map_or(String::new(), |plan| format!("{plan}{report}"));
                let checked = match report.checked_tensors {
                    0 => String::new(),
                    tensors => format!("checked:       {} by their digests\n", Count(tensors, "tensor")),
                };
                format!(
                    "{explained}{}, {} bytes onto {device} in {:.3} ms, {gigabytes_per_second:.2} GB/s\n\
                     used in place: {}, {} bytes\n\
                     copied:        {}, {} bytes\n\
                     {checked}\
                     names as {} has them\n",
                    Count(report.tensors, "tensor"),
                    report.bytes,
                    seconds * 1e3,
                    Count(report.aliased_tensors, what),
                    report.aliased_bytes,
                    Count(report.copied_tensors, what),
                    report.copied_bytes,
                    report.framework,
                )
            },
            || {
                json!({
                    "device": device,
                    "seconds": seconds,
                    "gigabytes_per_second": gigabytes_per_second,
                    "report": report,
                    "plan": plan,
                })
            },
        ))
    }
}
