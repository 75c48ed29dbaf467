//! A plugin: a library that exports `GetPjrtApi`, opened once a process and never unloaded; or one that is linked in.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::api::{Api, ApiVersion};
use super::named_value::NamedValue;
use super::{ClientBuilder, ffi};
use crate::error::{Error, Result, chain};

/// A PJRT plugin that has been loaded and initialised.
#[derive(Clone)]
pub struct Plugin {
    inner: Arc<PluginInner>,
}

struct PluginInner {
    /// The library's file; the name of a plugin that is linked in.
    path: PathBuf,
    api: Api,
    attributes: Vec<(String, NamedValue)>,
}

/// The plugins of this process by canonical path. A library's one-time initialisation must not run
/// twice, and a library that has started threads cannot be unloaded: entries are never removed.
static LOADED: Mutex<Option<HashMap<PathBuf, Plugin>>> = Mutex::new(None);

impl Plugin {
    /// Opens and initialises the plugin in this library; a second call for the same file returns the same
    /// plugin. Blocks while the library is loaded, up to about a second for the large ones.
    ///
    /// The library's own initialisers run with the rights of this process: open only what you trust.
    ///
    /// # Errors
    /// [`Error::Io`] when there is no such file; [`Error::PluginLibrary`] when it is not a library, has no
    /// `GetPjrtApi`, or speaks another major version; [`Error::Pjrt`] when its initialisation fails.
    pub fn open(path: impl AsRef<Path>) -> Result<Plugin> {
        let path = path.as_ref();
        let canonical = path.canonicalize().map_err(|error| Error::io("open plugin", path, error))?;
        Plugin::once(canonical, load)
    }

    /// The plugin that is linked into this program, in place of one in a library of its own. A second call
    /// with the same name returns the same plugin.
    ///
    /// `get_api` is the plugin's `GetPjrtApi`; it returns its function table, a `PJRT_Api` of the C header.
    /// `name` stands where the path of other plugins does, as in messages.
    ///
    /// # Errors
    /// [`Error::PluginLibrary`] when the table is null or of another major version; [`Error::Pjrt`] when
    /// the plugin's initialisation fails.
    ///
    /// # Safety
    /// The table is one of a PJRT plugin, each function does what the C API says, and both stay as they
    /// are while the process lives. Nothing else has initialised the plugin.
    pub unsafe fn linked(
        name: &str,
        get_api: unsafe extern "C" fn() -> *const std::ffi::c_void,
    ) -> Result<Plugin> {
        Plugin::once(name.into(), |path| {
            // SAFETY: passed on to the caller.
            let api = unsafe { Api::from_table(get_api().cast()) };
            api.map_err(|reason| Error::PluginLibrary { path: path.to_owned(), reason })
        })
    }

    /// The plugin of this path, whose table is found and set up when it is asked for first.
    fn once(path: PathBuf, table: impl FnOnce(&Path) -> Result<Api>) -> Result<Plugin> {
        // Held meanwhile, so that two threads cannot initialise one library twice.
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        let plugins = loaded.get_or_insert_with(HashMap::new);
        if let Some(plugin) = plugins.get(&path) {
            return Ok(plugin.clone());
        }
        let api = table(&path)?;
        if api.has(&ffi::PJRT_Plugin_Initialize) {
            // SAFETY: the arguments are complete; called once, before any other function, under the lock.
            unsafe { api.call(ffi::PJRT_Plugin_Initialize, &mut ffi::PJRT_Plugin_Initialize_Args::new()) }?;
        }
        let plugin = Plugin { inner: Arc::new(PluginInner { attributes: attributes(api)?, path, api }) };
        tracing::debug!(path = %plugin.path().display(), api = %plugin.api_version(), "loaded a PJRT plugin");
        plugins.insert(plugin.inner.path.clone(), plugin.clone());
        Ok(plugin)
    }

    /// The library's file; the name of a plugin that is linked in.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// The version of the C API that the plugin was built with.
    pub fn api_version(&self) -> ApiVersion {
        self.inner.api.version()
    }

    /// What the plugin says of itself, such as `xla_version` and `stablehlo_current_version`.
    pub fn attributes(&self) -> &[(String, NamedValue)] {
        &self.inner.attributes
    }

    /// The attribute of this name.
    pub fn attribute(&self, name: &str) -> Option<&NamedValue> {
        self.attributes().iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// The newest StableHLO that the plugin reads, as `major.minor.patch`, where it says so.
    pub fn stablehlo_version(&self) -> Option<String> {
        self.version_attribute("stablehlo_current_version")
    }

    /// The oldest StableHLO that the plugin reads, where it says so.
    pub fn stablehlo_minimum_version(&self) -> Option<String> {
        self.version_attribute("stablehlo_minimum_version")
    }

    /// A version, which plugins give as a list of its parts.
    fn version_attribute(&self, name: &str) -> Option<String> {
        match self.attribute(name)? {
            NamedValue::Int64List(parts) => {
                Some(parts.iter().map(i64::to_string).collect::<Vec<_>>().join("."))
            }
            other => Some(other.to_string()),
        }
    }

    /// Starts building a client on this plugin.
    pub fn client(&self) -> ClientBuilder {
        ClientBuilder::new(self.clone())
    }

    pub(super) fn api(&self) -> Api {
        self.inner.api
    }
}

impl fmt::Debug for Plugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Plugin({}, API {})", self.path().display(), self.api_version())
    }
}

/// Opens the library and finds its table.
fn load(path: &Path) -> Result<Api> {
    let unusable = |reason: String| Error::PluginLibrary { path: path.to_owned(), reason };
    // SAFETY: loading runs the library's initialisers; `Plugin::open` tells its caller to trust them. The
    // flags are RTLD_NOW | RTLD_LOCAL, so its symbols do not replace those of another plugin.
    let library = unsafe { libloading::Library::new(path) }
        .map_err(|error| unusable(format!("the system cannot load it: {}", chain(&error))))?;
    // A library that fails below stays loaded too: unloading would run finalisers of code that may
    // already have started threads.
    let library = std::mem::ManuallyDrop::new(library);
    // SAFETY: `GetPjrtApi` has this signature in every PJRT plugin.
    let get_api =
        unsafe { library.get::<unsafe extern "C" fn() -> *const ffi::PJRT_Api>(b"GetPjrtApi\0") }
            .map_err(|_| unusable("it does not export GetPjrtApi, so it is some other library".into()))?;
    // SAFETY: the table that it returns is static data of a library that is never unloaded.
    unsafe { Api::from_table(get_api()) }.map_err(unusable)
}

fn attributes(api: Api) -> Result<Vec<(String, NamedValue)>> {
    if !api.has(&ffi::PJRT_Plugin_Attributes) {
        return Ok(Vec::new());
    }
    let mut args = ffi::PJRT_Plugin_Attributes_Args::new();
    // SAFETY: the arguments are complete, and the attributes live as long as the process.
    unsafe {
        api.call(ffi::PJRT_Plugin_Attributes, &mut args)?;
        Ok(NamedValue::read_all(args.attributes, args.num_attributes))
    }
}
