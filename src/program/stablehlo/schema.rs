//! Names: of the attributes that operations have, in the order of their properties (StableHLO's `VhloOps.td`), of types and of
//! the values of enumerations (`VhloBytecode.cpp`, `VhloEnums.td`).

/// The attributes of an operation of StableHLO, of those that are read or made.
pub fn attributes(operation: &str) -> Option<&'static [&'static str]> {
    ATTRIBUTES.iter().find(|(name, _)| *name == operation).map(|(_, attributes)| *attributes)
}

const ATTRIBUTES: &[(&str, &[&str])] = &[
    ("func_v1", &["arg_attrs", "function_type", "res_attrs", "sym_name", "sym_visibility"]),
    ("call_v1", &["callee"]),
    ("constant_v1", &["value"]),
    ("concatenate_v1", &["dimension"]),
    ("get_dimension_size_v1", &["dimension"]),
    ("transpose_v1", &["permutation"]),
    ("reverse_v1", &["dimensions"]),
    ("reduce_v1", &["dimensions"]),
    ("compare_v1", &["compare_type", "comparison_direction"]),
    ("broadcast_in_dim_v1", &["broadcast_dimensions"]),
    (
        "dynamic_broadcast_in_dim_v1",
        &["broadcast_dimensions", "known_expanding_dimensions", "known_nonexpanding_dimensions"],
    ),
    ("iota_v1", &["iota_dimension"]),
    ("dynamic_iota_v1", &["iota_dimension"]),
    ("pad_v1", &["edge_padding_high", "edge_padding_low", "interior_padding"]),
    ("slice_v1", &["limit_indices", "start_indices", "strides"]),
    ("dynamic_slice_v1", &["slice_sizes"]),
    (
        "gather_v1",
        &[
            "collapsed_slice_dims",
            "index_vector_dim",
            "indices_are_sorted",
            "offset_dims",
            "slice_sizes",
            "start_index_map",
        ],
    ),
    (
        "gather_v2",
        &[
            "collapsed_slice_dims",
            "index_vector_dim",
            "indices_are_sorted",
            "offset_dims",
            "operand_batching_dims",
            "slice_sizes",
            "start_index_map",
            "start_indices_batching_dims",
        ],
    ),
    (
        "dynamic_gather_v1",
        &["collapsed_slice_dims", "index_vector_dim", "indices_are_sorted", "offset_dims", "start_index_map"],
    ),
    (
        "dynamic_gather_v2",
        &[
            "collapsed_slice_dims",
            "index_vector_dim",
            "indices_are_sorted",
            "offset_dims",
            "operand_batching_dims",
            "start_index_map",
            "start_indices_batching_dims",
        ],
    ),
    (
        "convolution_v1",
        &[
            "batch_group_count",
            "feature_group_count",
            "input_batch_dimension",
            "input_feature_dimension",
            "input_spatial_dimensions",
            "kernel_input_feature_dimension",
            "kernel_output_feature_dimension",
            "kernel_spatial_dimensions",
            "lhs_dilation",
            "output_batch_dimension",
            "output_feature_dimension",
            "output_spatial_dimensions",
            "padding",
            "precision_config",
            "rhs_dilation",
            "window_reversal",
            "window_strides",
        ],
    ),
    (
        "dynamic_conv_v2",
        &[
            "batch_group_count",
            "feature_group_count",
            "input_batch_dimension",
            "input_feature_dimension",
            "input_spatial_dimensions",
            "kernel_input_feature_dimension",
            "kernel_output_feature_dimension",
            "kernel_spatial_dimensions",
            "lhs_dilation",
            "output_batch_dimension",
            "output_feature_dimension",
            "output_spatial_dimensions",
            "precision_config",
            "rhs_dilation",
            "window_reversal",
            "window_strides",
        ],
    ),
    (
        "dot_general_v1",
        &[
            "lhs_batching_dimensions",
            "lhs_contracting_dimensions",
            "precision_config",
            "rhs_batching_dimensions",
            "rhs_contracting_dimensions",
        ],
    ),
    (
        "dot_general_v2",
        &[
            "accumulation_type",
            "allow_imprecise_accumulation",
            "lhs_batching_dimensions",
            "lhs_component_count",
            "lhs_contracting_dimensions",
            "lhs_precision_type",
            "num_primitive_operations",
            "precision_config",
            "rhs_batching_dimensions",
            "rhs_component_count",
            "rhs_contracting_dimensions",
            "rhs_precision_type",
        ],
    ),
    (
        "reduce_window_v1",
        &["base_dilations", "padding", "window_dilations", "window_dimensions", "window_strides"],
    ),
    ("select_and_scatter_v1", &["padding", "window_dimensions", "window_strides"]),
    ("sort_v1", &["dimension", "is_stable"]),
    ("fft_v1", &["fft_length", "fft_type"]),
    ("rng_bit_generator_v1", &["rng_algorithm"]),
    ("custom_call_v1", CUSTOM_CALL_V1),
    (
        "custom_call_v2",
        &[
            "api_version",
            "backend_config",
            "call_target_name",
            "called_computations",
            "has_side_effect",
            "operand_layouts",
            "output_operand_aliases",
            "result_layouts",
            "result_tilings",
        ],
    ),
    ("composite_v1", COMPOSITE),
    ("composite_v2", COMPOSITE),
    ("exponential_v2", ACCURACY),
    ("exponential_minus_one_v2", ACCURACY),
    ("log_v2", ACCURACY),
    ("log_plus_one_v2", ACCURACY),
    ("logistic_v2", ACCURACY),
    ("cbrt_v2", ACCURACY),
    ("cosine_v2", ACCURACY),
    ("sine_v2", ACCURACY),
    ("tan_v2", ACCURACY),
    ("tanh_v2", ACCURACY),
    ("rsqrt_v2", ACCURACY),
    ("sqrt_v2", ACCURACY),
];

const CUSTOM_CALL_V1: &[&str] = &[
    "api_version",
    "backend_config",
    "call_target_name",
    "called_computations",
    "has_side_effect",
    "operand_layouts",
    "output_operand_aliases",
    "result_layouts",
];

const COMPOSITE: &[&str] = &["composite_attributes", "decomposition", "name", "version"];

const ACCURACY: &[&str] = &["result_accuracy"];

/// The type of this number, of those without fields, as StableHLO writes it.
pub fn type_name(code: u64) -> Option<&'static str> {
    Some(match code {
        0 => "i1",
        2 => "bf16",
        3 => "f16",
        4 => "f32",
        5 => "f64",
        6 => "f8E4M3FN",
        7 => "f8E5M2",
        9 => "index",
        10 => "i4",
        11 => "i8",
        12 => "i16",
        13 => "i32",
        14 => "i64",
        15 => "ui4",
        16 => "ui8",
        17 => "ui16",
        18 => "ui32",
        19 => "ui64",
        22 => "token",
        27 => "f8E4M3FNUZ",
        28 => "f8E5M2FNUZ",
        29 => "f8E4M3B11FNUZ",
        31 => "i2",
        32 => "ui2",
        33 => "none",
        34 => "tf32",
        35 => "f8E4M3",
        36 => "f8E3M4",
        37 => "f4E2M1FN",
        38 => "f6E2M3FN",
        39 => "f6E3M2FN",
        40 => "f8E8M0FNU",
        _ => return None,
    })
}

/// A value of an enumeration, by their numbers.
pub fn enumeration(code: u64, value: u64) -> String {
    let names: &[&str] = match code {
        3 => &["EQ", "NE", "GE", "GT", "LE", "LT"],
        4 => &["NOTYPE", "FLOAT", "TOTALORDER", "SIGNED", "UNSIGNED"],
        7 => &["FFT", "IFFT", "RFFT", "IRFFT"],
        11 => &["DEFAULT", "HIGH", "HIGHEST"],
        12 => &["DEFAULT", "THREE_FRY", "PHILOX"],
        16 => &["TRANSPOSE_INVALID", "NO_TRANSPOSE", "TRANSPOSE", "ADJOINT"],
        _ => return "…".into(),
    };
    usize::try_from(value)
        .ok()
        .and_then(|value| names.get(value))
        .map_or("…".into(), |name| (*name).to_owned())
}
