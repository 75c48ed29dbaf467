//! What a key-value store is, and one in memory.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// A store that all processes of a job reach. A key has one value, which does not change. Used by several threads at once, among
/// them threads of a plugin's.
pub trait KeyValueStore: Send + Sync {
    /// Puts a value where there is none yet.
    ///
    /// # Errors
    /// [`Error::Processes`] when the key has one; whatever keeps the store from it.
    fn put(&self, key: &str, value: &[u8]) -> Result<()>;

    /// The key's value, if it has one by now.
    ///
    /// # Errors
    /// Whatever keeps the store from it.
    fn try_get(&self, key: &str) -> Result<Option<Vec<u8>>>;

    /// Removes a key, if it is there.
    ///
    /// # Errors
    /// Whatever keeps the store from it.
    fn delete(&self, key: &str) -> Result<()>;

    /// The key's value. Blocks until it has one, for so long at most: then it is `None`. A store that cannot tell is asked again
    /// meanwhile.
    ///
    /// # Errors
    /// As for [`KeyValueStore::try_get`], when the time is over.
    fn get(&self, key: &str, limit: Duration) -> Result<Option<Vec<u8>>> {
        let started = Instant::now();
        let mut pause = SHORTEST_PAUSE;
        loop {
            let answer = self.try_get(key);
            if let Ok(Some(_)) = answer {
                return answer;
            }
            let Some(rest) = limit.checked_sub(started.elapsed()) else { return answer };
            std::thread::sleep(pause.min(rest).max(Duration::from_millis(1)));
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// Between two questions for a key that is not there.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

impl KeyValueStore for Box<dyn KeyValueStore> {
    fn put(&self, key: &str, value: &[u8]) -> Result<()> {
        (**self).put(key, value)
    }

    fn try_get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        (**self).try_get(key)
    }

    fn delete(&self, key: &str) -> Result<()> {
        (**self).delete(key)
    }

    fn get(&self, key: &str, limit: Duration) -> Result<Option<Vec<u8>>> {
        (**self).get(key, limit)
    }
}

/// The error of a key that has a value already.
pub fn is_taken(key: &str, place: &str) -> Error {
    Error::Processes(format!(
        "{place} has a value for `{key}` already; a job needs a name of its own, also when it is started \
         again, and each of its processes an index of its own"
    ))
}

/// A store in this process's memory, for clients of one process and for tests. Clones are the same store.
#[derive(Clone, Default)]
pub struct MemoryStore(Arc<Shared>);

#[derive(Default)]
struct Shared {
    values: Mutex<HashMap<String, Vec<u8>>>,
    changed: Condvar,
}

impl MemoryStore {
    fn values(&self) -> MutexGuard<'_, HashMap<String, Vec<u8>>> {
        self.0.values.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KeyValueStore for MemoryStore {
    fn put(&self, key: &str, value: &[u8]) -> Result<()> {
        let mut values = self.values();
        if values.contains_key(key) {
            return Err(is_taken(key, "the store"));
        }
        values.insert(key.to_owned(), value.to_vec());
        drop(values);
        self.0.changed.notify_all();
        Ok(())
    }

    fn try_get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.values().get(key).cloned())
    }

    fn delete(&self, key: &str) -> Result<()> {
        self.values().remove(key);
        Ok(())
    }

    fn get(&self, key: &str, limit: Duration) -> Result<Option<Vec<u8>>> {
        let is_missing = |values: &mut HashMap<String, Vec<u8>>| !values.contains_key(key);
        let waited = self.0.changed.wait_timeout_while(self.values(), limit, is_missing);
        Ok(waited.unwrap_or_else(PoisonError::into_inner).0.get(key).cloned())
    }
}
