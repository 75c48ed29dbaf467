//! What a process of `scripts/bench_load.py` says and waits for.

use std::io::{BufRead, Write};
use std::time::Instant;

use anyhow::Result;

/// Says that the next part can begin, waits until it shall, and says what it took. `None` when it shall not.
pub fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
    println!("ready");
    if std::io::stdin().lock().read_line(&mut String::new())? == 0 {
        return Ok(None);
    }
    let start = Instant::now();
    let result = work()?;
    println!("done {}", start.elapsed().as_secs_f64());
    std::io::stdout().flush()?;
    Ok(Some(result))
}
