//! What was made for the sizes of calls: so much of it is kept, that which was used last.

use std::collections::HashMap;

use super::symbolic::Shapes;

/// Values by the sizes of arguments, each with when it was used last.
#[derive(Debug)]
pub struct Recent<V> {
    limit: usize,
    values: HashMap<Shapes, (u64, V)>,
    uses: u64,
}

impl<V: Clone> Recent<V> {
    /// At least one is kept.
    pub fn new(limit: usize) -> Recent<V> {
        Recent { limit: limit.max(1), values: HashMap::new(), uses: 0 }
    }

    /// The value for these sizes, if it is kept.
    pub fn get(&mut self, shapes: &Shapes) -> Option<V> {
        self.uses += 1;
        let (used, value) = self.values.get_mut(shapes)?;
        *used = self.uses;
        Some(value.clone())
    }

    /// Keeps a value. That which was used the longest time ago makes room for it.
    pub fn insert(&mut self, shapes: &Shapes, value: V) {
        if self.values.len() >= self.limit && !self.values.contains_key(shapes) {
            let oldest = self.values.iter().min_by_key(|(_, (used, _))| *used);
            let oldest = oldest.map(|(shapes, _)| shapes.clone());
            oldest.and_then(|shapes| self.values.remove(&shapes));
        }
        self.uses += 1;
        self.values.insert(shapes.clone(), (self.uses, value));
    }

    /// Forgets a value.
    pub fn remove(&mut self, shapes: &Shapes) {
        self.values.remove(shapes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_last_is_kept() {
        let mut recent = Recent::new(2);
        let shapes = |size: usize| vec![vec![size]];
        recent.insert(&shapes(1), 'a');
        recent.insert(&shapes(2), 'b');
        assert_eq!(recent.get(&shapes(1)), Some('a'));
        recent.insert(&shapes(3), 'c');
        assert_eq!(recent.get(&shapes(2)), None);
        assert_eq!((recent.get(&shapes(1)), recent.get(&shapes(3))), (Some('a'), Some('c')));
        recent.remove(&shapes(1));
        assert_eq!(recent.get(&shapes(1)), None);
    }
}
