#!/usr/bin/env python3
"""Writes the params of a layer with Paddle, with what is in them: tests/data/paddle.

    venv/bin/python scripts/make_paddle.py [--directory DIR]

Needs paddlepaddle 3.3 and safetensors.
"""

import argparse
import pathlib

import numpy as np
import paddle
import safetensors.numpy


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=pathlib.Path, default=pathlib.Path("tests/data/paddle"))
    directory = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    paddle.seed(0)
    layer = paddle.nn.Sequential(paddle.nn.Linear(6, 5), paddle.nn.BatchNorm1D(5))
    paddle.save(layer.state_dict(), str(directory / "layer.pdparams"))
    arrays = {name: np.ascontiguousarray(value.numpy()) for name, value in layer.state_dict().items()}
    safetensors.numpy.save_file(arrays, directory / "layer.safetensors")


if __name__ == "__main__":
    main()
