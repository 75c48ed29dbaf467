//! How good logits are, for the examples that classify the digits.

use anyhow::{Result, ensure};

/// The largest difference to JAX's logits that rounding explains.
const TOLERANCE: f32 = 1e-4;

/// Prints the accuracy of logits, a row an image, and their largest difference to JAX's.
///
/// # Errors
/// When that is more than rounding explains.
pub fn report(logits: &[f32], jax: &[f32], labels: &[i32]) -> Result<()> {
    ensure!(logits.len() == jax.len(), "there are {} logits, and JAX has {}", logits.len(), jax.len());
    let difference = logits.iter().zip(jax).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    println!("accuracy on {} held-out images: {:.2} %", labels.len(), accuracy(logits, labels) * 100.0);
    println!("largest difference to JAX's logits: {difference:.1e}");
    ensure!(difference <= TOLERANCE, "the logits differ from JAX's by more than {TOLERANCE:e}");
    Ok(())
}

/// The share of rows whose largest logit is at the label.
fn accuracy(logits: &[f32], labels: &[i32]) -> f64 {
    let argmax =
        |row: &[f32]| row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(class, _)| class as i32);
    let rows = logits.chunks(logits.len() / labels.len());
    let right = rows.zip(labels).filter(|(row, label)| argmax(row) == Some(**label)).count();
    right as f64 / labels.len() as f64
}
