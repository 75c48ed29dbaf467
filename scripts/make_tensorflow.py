#!/usr/bin/env python3
"""Writes checkpoints of TensorFlow, of versions 1 and 2, and a SavedModel, with what is in them: tests/data/tensorflow.

    venv/bin/python scripts/make_tensorflow.py [--directory DIR]

Needs tensorflow-cpu 2.21 and safetensors. CASE/checkpoint is the directory, CASE/expected.safetensors has every array by its name:
its key without what TensorFlow 2 appends, with dots for slashes; elements of types that safetensors does not have are there as bytes.
"""

import argparse
import os
import pathlib
import shutil

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import safetensors.numpy
import tensorflow as tf

TYPES = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "bfloat16", "float32", "float64"]
BYTES = ["complex64", "complex128", "float8_e5m2", "float8_e4m3fn", "int4"]
VARIABLE = "/.ATTRIBUTES/VARIABLE_VALUE"


def numbers(seed, *shape):
    return np.random.default_rng(seed).integers(-8, 8, shape).astype(np.float32)


def variable(seed, dtype, *shape):
    values = numbers(seed, *shape)
    values = values % 2 if dtype == "bool" else abs(values) if dtype.startswith("u") else values
    return tf.Variable(tf.cast(values, tf.as_dtype(dtype)), name=f"v_{dtype}")


class Model(tf.Module):
    def __init__(self):
        super().__init__()
        self.types = {name: variable(index, name, 3, 4) for index, name in enumerate(TYPES + BYTES[:4])}
        self.layers = [tf.Variable(numbers(40 + index, 7, 5), name=f"dense_{index}/kernel") for index in range(12)]
        self.scalar = tf.Variable(2.5)
        self.text = tf.Variable("a text")

    @tf.function(input_signature=[tf.TensorSpec([None, 7])])
    def __call__(self, x):
        return x @ self.layers[0]


def expected(case, prefix, flat=False):
    reader = tf.train.load_checkpoint(str(prefix))
    found = {}
    for key, dtype in reader.get_variable_to_dtype_map().items():
        if dtype == tf.string:
            continue
        value = np.ascontiguousarray(reader.get_tensor(key)).reshape(reader.get_variable_to_shape_map()[key])
        name = key.removesuffix(VARIABLE)
        found[name if flat else name.replace("/", ".")] = value.view(np.uint8) if dtype.name in BYTES and value.ndim else value
    safetensors.numpy.save_file(found, case / "expected.safetensors")


def case(directory, name):
    path = directory / name
    shutil.rmtree(path, ignore_errors=True)
    (path / "checkpoint").mkdir(parents=True)
    return path


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=pathlib.Path, default=pathlib.Path("tests/data/tensorflow"))
    directory = parser.parse_args().directory

    path = case(directory, "objects")
    model = Model()
    checkpoint = tf.train.Checkpoint(model=model, step=tf.Variable(3, dtype=tf.int64))
    manager = tf.train.CheckpointManager(checkpoint, path / "checkpoint", max_to_keep=2)
    manager.save()
    model.scalar.assign(4.5)
    expected(path, manager.save())

    path = case(directory, "saved_model")
    tf.saved_model.save(Model(), str(path / "checkpoint"))
    shutil.rmtree(path / "checkpoint" / "assets", ignore_errors=True)
    (path / "checkpoint" / "fingerprint.pb").unlink(missing_ok=True)
    expected(path, path / "checkpoint" / "variables" / "variables")

    path = case(directory, "saver")
    with tf.Graph().as_default():
        kernel = tf.compat.v1.get_variable("scope/kernel", initializer=numbers(60, 6, 4))
        tf.compat.v1.get_variable("scope/bias", initializer=numbers(61, 4))
        # The slot of an optimizer is below its variable.
        tf.compat.v1.get_variable("scope/kernel/Adam", initializer=numbers(62, 6, 4))
        with tf.compat.v1.Session() as session:
            session.run(tf.compat.v1.global_variables_initializer())
            saver = tf.compat.v1.train.Saver(write_version=tf.compat.v1.train.SaverDef.V2)
            prefix = saver.save(session, str(path / "checkpoint" / "model.ckpt"), global_step=7, write_meta_graph=False)
    expected(path, prefix, flat=True)
    del kernel


if __name__ == "__main__":
    main()
