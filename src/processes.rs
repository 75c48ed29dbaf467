//! The processes of one job, each with its own devices: what one tells the others goes through a key-value store that all reach.

mod directory;
#[cfg(feature = "etcd")]
mod etcd;
mod key_value;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use directory::DirectoryStore;
#[cfg(feature = "etcd")]
pub use etcd::EtcdStore;
pub use key_value::{KeyValueStore, MemoryStore};

use crate::error::{Error, Result, chain};

/// How long a process waits for the others, unless told otherwise. What Orbax gives a barrier is 5 minutes, and a save 20.
const PATIENCE: Duration = Duration::from_secs(600);

/// How often a process that waits looks whether the other one has given up.
const LOOK: Duration = Duration::from_millis(500);

/// After how long a wait is worth a line in the log, and then each time that as much again has passed.
const WORTH_A_LINE: Duration = Duration::from_secs(10);

/// This process among those of its job. Cheap to clone: clones are in step with each other.
///
/// Every process does the same things in the same order: makes the same clients ([`crate::pjrt::ClientBuilder::processes`]), and
/// saves the same params to the same path ([`crate::Params::save`]).
///
/// ```no_run
/// use safejax::processes::{DirectoryStore, Processes};
/// use safejax::{Client, DeviceMesh, LoadOptions, Params, load::ShardingRules};
/// let (index, count, job) = (0, 2, "job-1234");
/// let processes = Processes::new(index, count, DirectoryStore::new("/shared/rendezvous", job)?)?;
/// let client = Client::cpu()?.plugin().client().device_count(2).processes(&processes).build()?;
/// let mesh = DeviceMesh::new(&client, "data=4".parse()?)?;
/// let rules = ShardingRules::default().rule("*kernel", "P('data')".parse()?);
/// let (params, _) = Params::load_with(&client, "model.safetensors", &LoadOptions::default().sharded(&mesh, rules))?;
/// params.save("/shared/again.safetensors")?;
/// # Ok::<(), safejax::Error>(())
/// ```
#[derive(Clone)]
pub struct Processes {
    index: usize,
    count: usize,
    limit: Duration,
    shared: Arc<Shared>,
}

/// What the clones have in common. When the last one is dropped, the others are told that this process will not come any more.
struct Shared {
    index: usize,
    store: Arc<dyn KeyValueStore>,
    step: Mutex<Step>,
}

/// What there is of another process at a step.
enum Word {
    Said(Vec<u8>),
    /// It will not come any more, and why.
    Left(String),
    Nothing,
}

#[derive(Default)]
struct Step {
    /// How often the processes have exchanged something.
    number: u64,
    /// Whether this process's part of the store is another's, which used it first.
    is_refused: bool,
    /// Whether the others know that this process will not come any more.
    has_left: bool,
}

impl Processes {
    /// Process `index` of `count`, counted from 0. The store is one that all of them reach, and that no other job has used under
    /// the same name.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when there is no such process.
    pub fn new(index: usize, count: usize, store: impl KeyValueStore + 'static) -> Result<Processes> {
        if index >= count {
            return Err(Error::InvalidArgument(format!(
                "there is no process {index} of {count}; they are counted from 0"
            )));
        }
        let shared = Shared { index, store: Arc::new(store), step: Mutex::default() };
        Ok(Processes { index, count, limit: PATIENCE, shared: Arc::new(shared) })
    }

    /// How long this process waits for the others before it gives up, in place of ten minutes. One can be late by what its part of
    /// a save takes.
    pub fn time_limit(mut self, limit: Duration) -> Processes {
        self.limit = limit;
        self
    }

    /// The number of this process, counted from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// How many processes there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The store that all processes reach.
    pub fn store(&self) -> &Arc<dyn KeyValueStore> {
        &self.shared.store
    }

    /// Tells the others that this process gives up, and why: who waits for it fails at once with these words. They are told the
    /// same, without a reason, when the last clone of this is dropped; a process that is killed tells them nothing.
    pub fn give_up(&self, why: impl fmt::Display) {
        self.shared.leave(&format!("has given up: {why}"));
    }

    /// Gives the others this process's value, and returns everybody's, in the order of the processes. Blocks until all are there.
    /// `what` says what it is about: processes that are not about the same thing are an error.
    ///
    /// # Errors
    /// [`Error::Processes`] when another process does not come in time, has ended or given up, is about something else, or takes
    /// itself for one of another number; the error of the store.
    pub fn exchange(&self, what: &str, value: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.exchange_at(what, value).map(|(_, values)| values)
    }

    /// As [`Processes::exchange`], with the number of the step.
    fn exchange_at(&self, what: &str, value: &[u8]) -> Result<(u64, Vec<Vec<u8>>)> {
        let what = &format!("{} (of {} processes)", what.replace('\n', " "), self.count);
        let mut step = self.shared.step();
        let number = step.number;
        step.number += 1;
        let message = [what.as_bytes(), b"\n", value].concat();
        let put = self.store().put(&key(number, self.index), &message);
        put.inspect_err(|error| step.is_refused |= matches!(error, Error::Processes(_)))?;
        let values = (0..self.count).map(|process| {
            if process == self.index {
                return Ok(value.to_vec());
            }
            let said = self.wait(number, process, what)?;
            self.about(what, process, &said)
        });
        let values = values.collect::<Result<Vec<_>>>()?;
        // Who has come here has read what was said before. What was said first stays: it tells a job from another of its name.
        if number > 1
            && let Err(error) = self.store().delete(&key(number - 1, self.index))
        {
            // Who finds it finds nothing wrong.
            tracing::warn!(%error, "what was said to the other processes stays in the store");
        }
        Ok((number, values))
    }

    /// What another process says at a step, once it has come there.
    fn wait(&self, number: u64, process: usize, what: &str) -> Result<Vec<u8>> {
        let (said, left, started) = (key(number, process), left_key(process), Instant::now());
        let mut lines = 0;
        loop {
            let rest = self.limit.saturating_sub(started.elapsed());
            match self.look(&said, &left, rest.min(LOOK)) {
                Ok(Word::Said(said)) => return Ok(said),
                Ok(Word::Left(why)) => {
                    let words = format!("process {process} of {} {why}; `{what}` needs it", self.count);
                    return Err(Error::Processes(words));
                }
                Ok(Word::Nothing) if rest.is_zero() => return Err(self.is_missing(process, what)),
                Err(error) if rest.is_zero() => return Err(error),
                // A store that cannot tell now may be able to later.
                _ => {}
            }
            let waited = started.elapsed();
            if waited > WORTH_A_LINE * (lines + 1) {
                lines += 1;
                tracing::info!(process, what, ?waited, limit = ?self.limit, "waiting for another process");
            }
        }
    }

    /// Looks for what another process says, for so long at most, and then whether it has left.
    fn look(&self, said: &str, left: &str, limit: Duration) -> Result<Word> {
        if let Some(said) = self.store().get(said, limit)? {
            return Ok(Word::Said(said));
        }
        let Some(why) = self.store().try_get(left)? else { return Ok(Word::Nothing) };
        // It may have come just before it left.
        let said = self.store().try_get(said)?;
        Ok(said.map_or_else(|| Word::Left(String::from_utf8_lossy(&why).into_owned()), Word::Said))
    }

    fn about(&self, what: &str, process: usize, said: &[u8]) -> Result<Vec<u8>> {
        let end = said.iter().position(|&byte| byte == b'\n').unwrap_or(said.len());
        let (theirs, value) = said.split_at(end);
        if theirs == what.as_bytes() {
            return Ok(value.get(1..).unwrap_or_default().to_vec());
        }
        Err(Error::Processes(format!(
            "process {process} is about `{}`, and this one, {}, about `{what}`; all processes do the same in the same order",
            String::from_utf8_lossy(theirs),
            self.index
        )))
    }

    fn is_missing(&self, process: usize, what: &str) -> Error {
        Error::Processes(format!(
            "process {process} of {} has not come to `{what}` within {:?}; it may have ended, or it may not do the same as this one",
            self.count, self.limit
        ))
    }

    /// As [`Processes::exchange`], with what each has come to, which `say` puts into words: where one has failed, all do.
    ///
    /// # Errors
    /// The error of this process, or [`Error::Processes`] with that of another.
    pub(crate) fn agree<T>(
        &self,
        what: &str,
        outcome: Result<T>,
        say: impl FnOnce(&T) -> Vec<u8>,
    ) -> Result<(T, Vec<Vec<u8>>)> {
        let message = match &outcome {
            Ok(value) => [b"+", &say(value)[..]].concat(),
            Err(error) => format!("-{}", chain(error)).into_bytes(),
        };
        let said = self.exchange(what, &message);
        let outcome = outcome?;
        let value = |(process, said): (usize, Vec<u8>)| match said.split_first() {
            Some((b'+', value)) => Ok(value.to_vec()),
            _ => Err(Error::Processes(format!(
                "process {process} has failed: {}",
                String::from_utf8_lossy(said.get(1..).unwrap_or_default())
            ))),
        };
        Ok((outcome, said?.into_iter().enumerate().map(value).collect::<Result<_>>()?))
    }

    /// Waits for the others, and returns a number that no other meeting of theirs has.
    ///
    /// # Errors
    /// As for [`Processes::exchange`].
    pub(crate) fn meet(&self, what: &str) -> Result<u64> {
        self.exchange_at(what, b"").map(|(number, _)| number)
    }
}

impl fmt::Debug for Processes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Processes({} of {})", self.index, self.count)
    }
}

impl Shared {
    fn step(&self) -> MutexGuard<'_, Step> {
        self.step.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the others that this process will not come any more, unless they know.
    fn leave(&self, why: &str) {
        let mut step = self.step();
        // Whose place this is may be well.
        if step.is_refused || step.has_left {
            return;
        }
        step.has_left = true;
        if let Err(error) = self.store.put(&left_key(self.index), why.as_bytes()) {
            tracing::debug!(%error, "the other processes could not be told that this one has left");
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.leave("has ended");
    }
}

/// Where a process puts what it says at a step.
fn key(step: u64, process: usize) -> String {
    format!("step/{step}/{process}")
}

/// Where a process says that it will not come any more.
fn left_key(process: usize) -> String {
    format!("left/{process}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What two processes come to, each in a thread.
    fn both<T: Send>(
        store: impl Fn() -> Box<dyn KeyValueStore>,
        work: impl Fn(Processes) -> T + Sync,
    ) -> [T; 2] {
        let stores = [store(), store()];
        std::thread::scope(|scope| {
            let mut threads = stores.into_iter().enumerate().map(|(index, store)| {
                let processes =
                    Processes::new(index, 2, store).unwrap().time_limit(Duration::from_millis(300));
                scope.spawn(|| work(processes))
            });
            let threads = [threads.next().unwrap(), threads.next().unwrap()];
            threads.map(|thread| thread.join().unwrap())
        })
    }

    fn in_memory() -> impl Fn() -> Box<dyn KeyValueStore> {
        let store = MemoryStore::default();
        move || Box::new(store.clone())
    }

    #[test]
    fn everybody_has_what_everybody_said() {
        let directory = tempfile::tempdir().unwrap();
        let in_directory =
            || -> Box<dyn KeyValueStore> { Box::new(DirectoryStore::new(directory.path(), "job").unwrap()) };
        let work = |processes: Processes| {
            for round in 0..20u8 {
                let own = [processes.index() as u8, b'\n', round];
                let all = processes.exchange("a round", &own).unwrap();
                assert_eq!(all, [[0, b'\n', round], [1, b'\n', round]]);
            }
        };
        both(in_memory(), work);
        both(in_directory, work);
        // Of a job with the same name, later.
        let again =
            both(in_directory, |processes| processes.exchange("a round", b"").unwrap_err().to_string());
        assert!(again[0].contains("`step/0/0`") && again[0].contains("a name of its own"), "{}", again[0]);
    }

    #[test]
    fn who_is_missing_or_about_something_else_or_has_failed_is_named() {
        let alone = Processes::new(0, 2, MemoryStore::default()).unwrap();
        let alone = alone.time_limit(Duration::from_millis(300)).exchange("a save", b"").unwrap_err();
        let said = "process 1 of 2 has not come to `a save (of 2 processes)` within 300ms; ";
        assert!(alone.to_string().starts_with(said), "{alone}");
        let left = |why: Option<&str>| {
            let [alone, _] = both(in_memory(), |processes| {
                if processes.index() == 0 {
                    return processes
                        .time_limit(Duration::from_secs(60))
                        .exchange("a save", b"")
                        .unwrap_err()
                        .to_string();
                }
                why.inspect(|why| processes.give_up(why));
                String::new()
            });
            alone
        };
        let said = ["process 1 of 2 has ended; `a save (of 2 processes)` needs it"];
        assert_eq!([left(None)], said);
        assert!(left(Some("no file")).starts_with("process 1 of 2 has given up: no file; `a save "));
        let [first, second] = both(in_memory(), |processes| {
            let what = ["a save", "a client"][processes.index()];
            processes.exchange(what, b"").unwrap_err().to_string()
        });
        let said = "process 1 is about `a client (of 2 processes)`, and this one, 0, about `a save (of 2 processes)`; ";
        assert!(first.starts_with(said), "{first}");
        assert!(second.starts_with("process 0 is about `a save "), "{second}");
        let [first, second] = both(in_memory(), |processes| {
            let failed = Err(Error::InvalidArgument("no".into()));
            let outcome = if processes.index() == 0 { failed } else { Ok(Vec::new()) };
            processes.agree("a save", outcome, Vec::clone).unwrap_err().to_string()
        });
        assert_eq!((&*first, &*second), ("no", "process 0 has failed: no"));
        assert!(Processes::new(2, 2, MemoryStore::default()).is_err());
    }
}
