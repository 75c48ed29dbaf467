#!/usr/bin/env python3
"""Writes models of ONNX with what is in them: tests/data/onnx.

    venv/bin/python scripts/make_onnx.py [--directory DIR]

Needs onnx 1.23 and safetensors. NAME.onnx lies beside NAME.safetensors, which has every weight by its name; elements of types that
safetensors does not have are there as bytes.
"""

import argparse
import pathlib

import ml_dtypes
import numpy as np
import onnx
import safetensors.numpy
from onnx import TensorProto, helper, numpy_helper

PLAIN = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "bfloat16", "float32", "float64"]
BYTES = ["complex64", "complex128", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"]


def numbers(seed, *shape, dtype="float32"):
    values = np.random.default_rng(seed).integers(-8, 8, shape)
    values = values % 2 if dtype == "bool" else abs(values) if dtype.startswith("u") else values
    return values.astype(getattr(ml_dtypes, dtype, dtype))


def named(name, array):
    return numpy_helper.from_array(array, name)


def in_fields(name, array):
    """The elements in the field of their type, and not as bytes."""
    dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
    if array.dtype.name in ["float16", "bfloat16"] or array.dtype.name.startswith("float8"):
        tensor = TensorProto(name=name, data_type=dtype, dims=array.shape)
        tensor.int32_data.extend(array.view(f"u{array.dtype.itemsize}").ravel().tolist())
        return tensor
    return helper.make_tensor(name, dtype, array.shape, array.ravel().tolist())


def expected(arrays):
    return {name: np.array(array, order="C") if array.dtype.name in PLAIN else np.array(array, order="C").view(np.uint8) for name, array in arrays.items()}


def numbers_as_constants():
    """Constants that are numbers and no tensors, and what they are."""
    values = {"value_float": 2.5, "value_int": -3, "value_floats": [1.0, -0.5, 4.0], "value_ints": [5, -6], "value_string": "a text"}
    nodes = [helper.make_node("Constant", [], [name], **{name: value}) for name, value in values.items()]
    # Packed, as writers of version 3 of the protocol have them; without elements; and of a node that is no constant.
    packed = helper.make_node("Constant", [], ["empty"])
    packed.attribute.append(helper.make_attribute("value_ints", [], attr_type=onnx.AttributeProto.INTS))
    nodes += [packed, helper.make_node("Transpose", ["x"], ["turned"], perm=[1, 0])]
    arrays = {name: np.asarray(value, "float32" if "float" in name else "int64") for name, value in values.items() if "string" not in name}
    return nodes, {**arrays, "empty": np.zeros(0, "int64")}


def save_aligned(model, array, path):
    """Saves a model in which this array lies where a device can use it in place. Of the others, some do by chance."""
    for length in range(128):
        model.producer_version = "1" * length
        content = model.SerializeToString()
        if content.index(array.tobytes()) % 64 == 0:
            return path.write_bytes(content)
    raise ValueError("it is never aligned")


def sparse(name):
    return helper.make_sparse_tensor(named(name, numbers(140, 2)), named("", np.asarray([1, 3])), [5])


def model(nodes, initializers, **arguments):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph(nodes, "graph", [x], [y], initializers)
    made = helper.make_model(graph, producer_name="a test", opset_imports=[helper.make_opsetid("", 20)], **arguments)
    made.metadata_props.add(key="author", value="nobody")
    return made


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=pathlib.Path, default=pathlib.Path("tests/data/onnx"))
    directory = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)

    arrays = {f"raw.{dtype}": numbers(index, 3, 5, dtype=dtype) for index, dtype in enumerate(PLAIN + BYTES)}
    tensors = [named(name, array) for name, array in arrays.items()]
    fields = {f"fields.{dtype}": numbers(30 + index, 2, 3, dtype=dtype) for index, dtype in enumerate(PLAIN + BYTES)}
    tensors += [in_fields(name, array) for name, array in fields.items()]
    scalar = np.float32(2.5)
    tensors += [named("scalar", np.asarray(scalar)), helper.make_tensor("text", TensorProto.STRING, [1], ["a text"])]
    found = {**arrays, **fields, "scalar": np.asarray(scalar)}

    # Constants, in the graph and in graphs within it.
    constant = numbers(70, 4)
    found["constant"] = constant
    nodes = [helper.make_node("Constant", [], ["constant"], value=named("", constant))]

    def branch(seed):
        inner = named("weight", numbers(seed, 2, 2))
        node = helper.make_node("Constant", [], ["bias"], value=named("inner", numbers(seed + 1, 2)))
        out = helper.make_tensor_value_info("bias", TensorProto.FLOAT, [2])
        return helper.make_graph([node], "branch", [], [out], [inner])

    nodes.append(helper.make_node("If", ["condition"], ["y"], name="choice", then_branch=branch(80), else_branch=branch(90)))
    nodes.append(helper.make_node("If", ["condition"], ["z"], then_branch=branch(100), else_branch=branch(110)))
    for name, seeds in {"choice": (80, 90), "If_2": (100, 110)}.items():
        for attribute, seed in zip(["then_branch", "else_branch"], seeds):
            found[f"{name}.{attribute}.weight"] = numbers(seed, 2, 2)
            found[f"{name}.{attribute}.bias"] = numbers(seed + 1, 2)
    constants, values = numbers_as_constants()
    nodes += constants
    found.update(values)
    function = helper.make_function("local", "scaled", ["a"], ["b"], [helper.make_node("Constant", [], ["factor"], value=named("", numbers(120, 3)))], [helper.make_opsetid("", 20)])
    found["scaled.factor"] = numbers(120, 3)
    made = model(nodes, tensors, functions=[function])
    training = made.training_info.add()
    training.initialization.CopyFrom(helper.make_graph([], "initialization", [], [], [named("moment", numbers(150, 3))]))
    training.algorithm.CopyFrom(helper.make_graph([helper.make_node("Constant", [], ["rate"], value_float=0.25)], "algorithm", [], []))
    found["training_info.0.initialization.moment"] = numbers(150, 3)
    found["training_info.0.algorithm.rate"] = np.asarray(0.25, "float32")
    save_aligned(made, arrays["raw.int64"], directory / "inside.onnx")
    safetensors.numpy.save_file(expected(found), directory / "inside.safetensors")

    # What cannot be read, beside what can: tests take it by name.
    whole = {"int4": numbers(141, 3, dtype="int4"), "uint4": abs(numbers(142, 4)).astype(ml_dtypes.uint4)}
    tensors = [in_fields(name, array) for name, array in whole.items()]
    tensors.append(TensorProto(name="other field", data_type=TensorProto.FLOAT, dims=[1], int32_data=[1]))
    tensors.append(TensorProto(name="too large", data_type=TensorProto.INT8, dims=[2], int32_data=[127, 128]))
    tensors.append(TensorProto(name="neither", data_type=TensorProto.BOOL, dims=[1], int32_data=[2]))
    made = model([helper.make_node("Constant", [], ["sparse constant"], sparse_value=sparse(""))], tensors)
    made.graph.sparse_initializer.append(sparse("sparse weight"))
    onnx.save(made, directory / "odd.bin")

    # Weights in files beside the model.
    large = {"large.kernel": numbers(130, 32, 16), "large.bias": numbers(131, 300, dtype="float16"), "small": numbers(132, 2)}
    made = model([helper.make_node("Identity", ["x"], ["y"])], [named(name, array) for name, array in large.items()])
    (directory / "beside.weights").unlink(missing_ok=True)
    onnx.save(made, directory / "beside.onnx", save_as_external_data=True, location="beside.weights", size_threshold=100)
    safetensors.numpy.save_file(expected(large), directory / "beside.safetensors")


if __name__ == "__main__":
    main()
