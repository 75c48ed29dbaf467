//! A store in etcd.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use etcd_client::{Client, Compare, CompareOp, ConnectOptions, Txn, TxnOp};
use tokio::runtime::Runtime;

use super::key_value::{KeyValueStore, is_taken};
use crate::error::{Error, Result};

/// How long etcd may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Between two attempts to reach it.
const PAUSE: Duration = Duration::from_millis(100);

/// A store in etcd (version 3).
pub struct EtcdStore {
    client: Client,
    prefix: String,
    /// There until this is dropped.
    runtime: Option<Runtime>,
}

impl EtcdStore {
    /// The store of the job of this name: its keys begin with `safejax/JOB/`. `endpoints` are addresses such as
    /// `http://10.0.0.1:2379`, of one cluster. Blocks until one of them answers.
    ///
    /// # Errors
    /// [`Error::Processes`] when none does within ten seconds; [`Error::InvalidArgument`] for an empty name.
    pub fn connect(endpoints: &[&str], job: &str) -> Result<EtcdStore> {
        if job.is_empty() {
            return Err(Error::InvalidArgument("the job's name is empty".into()));
        }
        let prefix = format!("safejax/{job}/");
        let failed =
            |problem: String| Error::Processes(format!("etcd at {}: {problem}", endpoints.join(", ")));
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime =
            builder.worker_threads(1).enable_all().build().map_err(|error| failed(error.to_string()))?;
        let options = ConnectOptions::new().with_connect_timeout(PATIENCE).with_timeout(PATIENCE);
        let addresses: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
        let any = format!("{prefix}connected");
        let client = wait_for(&runtime, async move {
            let started = Instant::now();
            loop {
                let mut client = Client::connect(&addresses, Some(options.clone())).await?;
                // The connection is made when it is used first.
                match client.get(any.as_str(), None).await {
                    Ok(_) => return Ok(client),
                    Err(error) if started.elapsed() > PATIENCE => return Err(error),
                    // It may be about to start.
                    Err(_) => tokio::time::sleep(PAUSE).await,
                }
            }
        });
        Ok(EtcdStore { client: client.map_err(failed)?, prefix, runtime: Some(runtime) })
    }

    fn ask<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, etcd_client::Error>> + Send + 'static,
    ) -> Result<T> {
        let answer = self
            .runtime
            .as_ref()
            .map_or_else(|| Err("its runtime has ended".to_owned()), |runtime| wait_for(runtime, work));
        answer.map_err(|problem| Error::Processes(format!("etcd failed: {problem}")))
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }
}

impl KeyValueStore for EtcdStore {
    fn put(&self, key: &str, value: &[u8]) -> Result<()> {
        let name = self.key(key);
        // A key that is not there has version 0.
        let put = Txn::new()
            .when([Compare::version(name.clone(), CompareOp::Equal, 0)])
            .and_then([TxnOp::put(name, value, None)]);
        let mut client = self.client.clone();
        match self.ask(async move { client.txn(put).await })?.succeeded() {
            true => Ok(()),
            false => Err(is_taken(key, "etcd")),
        }
    }

    fn try_get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        let (mut client, key) = (self.client.clone(), self.key(key));
        let answer = self.ask(async move { client.get(key, None).await })?;
        Ok(answer.kvs().first().map(|value| value.value().to_vec()))
    }

    fn delete(&self, key: &str) -> Result<()> {
        let (mut client, key) = (self.client.clone(), self.key(key));
        self.ask(async move { client.delete(key, None).await }).map(|_| ())
    }
}

impl Drop for EtcdStore {
    fn drop(&mut self) {
        // Not waited for: this may be a thread of another runtime, where that is not allowed.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Waits for work of the runtime's own thread; this one may be of another runtime, where its own `block_on` would panic.
fn wait_for<T: Send + 'static>(
    runtime: &Runtime,
    work: impl Future<Output = Result<T, etcd_client::Error>> + Send + 'static,
) -> Result<T, String> {
    let (sender, receiver) = mpsc::channel();
    runtime.spawn(async move {
        // Nobody waits any more: nothing to tell.
        let _ = sender.send(work.await);
    });
    match receiver.recv() {
        Ok(outcome) => outcome.map_err(|error| error.to_string()),
        Err(_) => Err("the work was given up".into()),
    }
}
