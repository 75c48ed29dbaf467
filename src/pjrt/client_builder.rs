//! How a client is made: its options, and the other processes of its job.

use std::sync::Arc;
use std::time::Duration;

use super::client::Client;
use super::ffi;
use super::key_value::ClientStore;
use super::named_value::NamedValue;
use super::plugin::Plugin;
use crate::error::{Error, ErrorCode, Result};
use crate::processes::Processes;

/// The most devices that a CPU client is made with here; each has threads of its own.
const MAX_CPU_DEVICES: i64 = 1024;

/// Builds a [`Client`], with the options that its platform understands.
#[derive(Debug, Clone)]
pub struct ClientBuilder {
    plugin: Plugin,
    options: Vec<(String, NamedValue)>,
    time_limit: Option<Duration>,
    processes: Option<Processes>,
}

impl ClientBuilder {
    pub(super) fn new(plugin: Plugin) -> ClientBuilder {
        ClientBuilder { plugin, options: Vec::new(), time_limit: None, processes: None }
    }

    /// The number of devices that a CPU client pretends to have (option `cpu_device_count`).
    pub fn device_count(self, count: usize) -> ClientBuilder {
        self.option("cpu_device_count", i64::try_from(count).unwrap_or(i64::MAX))
    }

    /// The share of a GPU's memory that the client may take, 0 to 1 (option `memory_fraction`).
    pub fn memory_fraction(self, fraction: f32) -> ClientBuilder {
        self.option("memory_fraction", fraction)
    }

    /// Whether a GPU client takes its share of memory at once (option `preallocate`).
    pub fn preallocate(self, preallocate: bool) -> ClientBuilder {
        self.option("preallocate", preallocate)
    }

    /// The longest that anything waits for one piece of work of a device, instead of for as long as it takes: a transfer, an
    /// execution, a chunk of the staging ring. What is over is [`Error::TimeLimit`]; memory of the host's that the device may
    /// still use then stays allocated. Calls of the C API that do not return are not ended.
    pub fn time_limit(mut self, limit: Duration) -> ClientBuilder {
        self.time_limit = Some(limit);
        self
    }

    /// Makes one client of several, one in each of these processes. [`Client::devices`] then has the devices of all of them, and
    /// [`crate::Params::save`] has all of them write.
    ///
    /// A plugin that knows of several processes (those of GPUs) is told this one's number, as `node_id` and `num_nodes`, and asks
    /// for the others through the processes' store. The CPU's has its devices' numbers changed (`process_id`), and the
    /// processes tell each other of their devices; a program then runs on the devices of one process.
    pub fn processes(mut self, processes: &Processes) -> ClientBuilder {
        self.processes = Some(processes.clone());
        self
    }

    /// Any other option of the plugin, by name. A plugin refuses names that it does not know.
    pub fn option(mut self, name: impl Into<String>, value: impl Into<NamedValue>) -> ClientBuilder {
        let name = name.into();
        let value = match value.into() {
            // A share of 0 or 1 is easily written without its point.
            NamedValue::Int64(share @ (0 | 1)) if name == "memory_fraction" => {
                NamedValue::Float(share as f32)
            }
            value => value,
        };
        self.options.push((name, value));
        self
    }

    /// Creates the client. Blocks while the plugin looks for its devices; of several processes, until all are there.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a value that a known option cannot have; [`Error::Pjrt`] when the plugin
    /// finds no device or refuses an option; [`Error::Processes`] when another process fails or does not come, or the plugin is
    /// not one for several.
    pub fn build(self) -> Result<Client> {
        match &self.processes {
            Some(processes) if processes.count() > 1 => self.build_one_of(processes),
            _ => self.check_options().and_then(|()| self.create(&[], None)),
        }
    }

    /// Creates this process's client, and has it know the others' devices.
    fn build_one_of(&self, processes: &Processes) -> Result<Client> {
        let number = processes.meet("making a client")?;
        let store = ClientStore::new(Arc::clone(processes.store()), format!("client/{number}/"));
        let say = |client: &Client| serde_json::to_vec(&client.own_devices()).unwrap_or_default();
        let (client, said) =
            processes.agree("the devices of a client", self.create_process(processes, &store), say)?;
        let devices = said.iter().enumerate().map(|(process, said)| {
            serde_json::from_slice(said).map_err(|error| {
                Error::Processes(format!(
                    "process {process} is of another version of safejax: its devices cannot be read ({error})"
                ))
            })
        });
        client.one_of(processes, devices.collect::<Result<_>>()?)
    }

    /// Creates the client of this process, in whichever words the plugin has for that.
    fn create_process(&self, processes: &Processes, store: &Arc<ClientStore>) -> Result<Client> {
        self.check_options()?;
        let (index, count) = (processes.index() as i64, processes.count() as i64);
        let of_several = [("node_id".to_owned(), index.into()), ("num_nodes".to_owned(), count.into())];
        let client = match self.create(&of_several, Some(store)) {
            // It has no such options. Where the others are no better, the first error is the one to tell.
            Err(first @ Error::Pjrt { code: ErrorCode::InvalidArgument, .. }) => {
                let second = self.create(&[("process_id".to_owned(), index.into())], Some(store));
                let is_of_names = |error: &Error| error.to_string().contains("node_id");
                second.map_err(|second| if is_of_names(&first) { second } else { first })?
            }
            client => client?,
        };
        if i64::from(client.process_index()) != index {
            return Err(Error::Processes(format!(
                "the plugin {} cannot be one of several processes: asked to be process {index}, it is process {}",
                self.plugin.path().display(),
                client.process_index()
            )));
        }
        Ok(client)
    }

    /// Creates a client with the builder's options and these.
    fn create(&self, more: &[(String, NamedValue)], store: Option<&Arc<ClientStore>>) -> Result<Client> {
        let api = self.plugin.api();
        let is_said = |name: &str| self.options.iter().any(|(said, _)| said == name);
        let more = more.iter().filter(|(name, _)| !is_said(name));
        let options: Vec<_> = self.options.iter().chain(more).cloned().collect();
        let raw: Vec<_> = options.iter().map(|(name, value)| value.to_raw(name)).collect();
        let mut args = ffi::PJRT_Client_Create_Args::new();
        args.create_options = raw.as_ptr();
        args.num_options = raw.len();
        if let Some(store) = store {
            store.offer(&mut args);
        }
        // SAFETY: the options point into `options`, which outlives the call; the plugin copies them. The client keeps the store.
        unsafe { api.call(ffi::PJRT_Client_Create, &mut args) }?;
        // SAFETY: the plugin handed the client over.
        unsafe {
            Client::from_raw(self.plugin.clone(), args.client, options, self.time_limit, store.cloned())
        }
    }

    /// Refuses values of which plugins abort the process, or make a client without devices.
    fn check_options(&self) -> Result<()> {
        for (name, value) in &self.options {
            if name.contains('\0') {
                return Err(Error::InvalidArgument(format!("the create option {name:?} holds a zero byte")));
            }
            let (fits, wanted) = match name.as_str() {
                "cpu_device_count" => {
                    (matches!(value, NamedValue::Int64(1..=MAX_CPU_DEVICES)), "a whole number from 1 to 1024")
                }
                "memory_fraction" => (
                    matches!(value, NamedValue::Float(share) if (0.0..=1.0).contains(share)),
                    "a number from 0 to 1",
                ),
                "preallocate" => (matches!(value, NamedValue::Bool(_)), "true or false"),
                _ => (true, ""),
            };
            if !fits {
                return Err(Error::InvalidArgument(format!(
                    "the create option `{name}` is {wanted}, not `{value}`"
                )));
            }
        }
        Ok(())
    }
}
