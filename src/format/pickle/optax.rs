//! The states of optax's transformations. They are named tuples, and a pickle of one has its values without the names of
//! its fields. Those here are the fields of optax 0.2.8, by `_fields` of its classes.

/// Names of classes and of their fields, sorted.
pub const STATES: &[(&str, &[&str])] = &[
    ("AddNoiseState", &["count", "rng_key"]),
    ("ApplyIfFiniteState", &["notfinite_count", "last_finite", "total_notfinite", "inner_state"]),
    ("ConditionallyMaskState", &["step", "inner_state"]),
    ("ConditionallyTransformState", &["inner_state", "step"]),
    ("EmaState", &["count", "ema"]),
    ("EmptyState", &[]),
    ("FactoredState", &["count", "v_row", "v_col", "v"]),
    ("InjectHyperparamsState", &["count", "hyperparams", "inner_state"]),
    ("InjectStatefulHyperparamsState", &["count", "hyperparams", "hyperparams_states", "inner_state"]),
    ("LookaheadState", &["fast_state", "steps_since_sync"]),
    ("MaskedNode", &[]),
    ("MaskedState", &["inner_state"]),
    ("MultiStepsState", &["mini_step", "gradient_step", "inner_opt_state", "acc_grads", "skip_state"]),
    ("MuonState", &["count", "mu", "ns_coeffs"]),
    ("PartitionState", &["inner_states"]),
    ("ScaleByAdaDeltaState", &["e_g", "e_x"]),
    ("ScaleByAdamState", &["count", "mu", "nu"]),
    ("ScaleByAdanState", &["m", "v", "n", "g", "t"]),
    ("ScaleByAmsgradState", &["count", "mu", "nu", "nu_max"]),
    ("ScaleByBeliefState", &["count", "mu", "nu"]),
    ("ScaleByLionState", &["count", "mu"]),
    ("ScaleByNovogradState", &["count", "mu", "nu"]),
    ("ScaleByOptimisticGradientState", &["is_initial_step", "previous_gradient"]),
    ("ScaleByRStdDevState", &["mu", "nu"]),
    ("ScaleByRStdDevWithCountState", &["count", "mu", "nu"]),
    ("ScaleByRmsState", &["nu"]),
    ("ScaleByRmsWithCountState", &["count", "nu"]),
    ("ScaleByRpropState", &["step_sizes", "prev_updates"]),
    ("ScaleByRssState", &["sum_of_squares"]),
    ("ScaleBySM3State", &["mu", "nu"]),
    ("ScaleByScheduleState", &["count"]),
    ("ScheduleFreeState", &["b1", "weight_sum", "step_count", "max_lr", "base_optimizer_state", "z"]),
    ("SplitRealAndImaginaryState", &["inner_state"]),
    ("TraceState", &["trace"]),
    ("WrappedScheduleState", &["count"]),
    ("ZeroNansState", &["found_nan"]),
];

/// The position of a class of optax's in the table.
pub fn position(module: &str, class: &str) -> Option<usize> {
    let is_optax = module == "optax" || module.starts_with("optax.");
    is_optax.then(|| STATES.binary_search_by(|(name, _)| (*name).cmp(class)).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted() {
        assert!(STATES.is_sorted_by(|a, b| a.0 < b.0));
        assert_eq!(position("optax._src.base", "EmptyState").map(|at| STATES[at].0), Some("EmptyState"));
        assert_eq!(position("optaxx", "EmptyState"), None);
    }
}
