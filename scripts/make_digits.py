#!/usr/bin/env python3
"""Makes the files of examples/digits: a small CNN trained on scikit-learn's handwritten digits.

    python3 -m venv venv && venv/bin/pip install -r scripts/requirements-digits.txt
    venv/bin/python scripts/make_digits.py

Written with jax 0.12.0.1, flax 0.12.12, optax 0.2.8, safetensors 0.8.0 and scikit-learn 1.9.1 on CPU.
The files hold no path of the machine that made them: locations are left out of the program.
"""

import pathlib

import flax.linen as nn
import flax.traverse_util
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.flax
import sklearn.datasets
import sklearn.model_selection

HERE = pathlib.Path(__file__).resolve().parent
OUT = HERE.parent / "examples" / "digits"
HELD_OUT = 360
EPOCHS = 60
BATCH = 64
SIZE_LIMIT = 1_000_000


class Cnn(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = images[..., None]
        x = nn.relu(nn.Conv(16, (3, 3))(x))
        x = nn.relu(nn.Conv(32, (3, 3), strides=(2, 2))(x))
        x = x.reshape((x.shape[0], -1))
        x = nn.relu(nn.Dense(64)(x))
        return nn.Dense(10)(x)


def train(model, images, labels):
    params = model.init(jax.random.key(0), images[:1])
    optimizer = optax.adamw(2e-3)
    state = optimizer.init(params)

    def loss_of(params, x, y):
        logits = model.apply(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def step(params, state, x, y):
        grads = jax.grad(loss_of)(params, x, y)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    random = np.random.default_rng(0)
    for _ in range(EPOCHS):
        order = random.permutation(len(images))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            batch = order[start : start + BATCH]
            params, state = step(params, state, images[batch], labels[batch])
    return params


def main():
    jax.config.update("jax_traceback_in_locations_limit", 0)
    digits = sklearn.datasets.load_digits()
    images = (digits.images / 16.0).astype(np.float32)
    labels = digits.target.astype(np.int32)
    train_x, test_x, train_y, test_y = sklearn.model_selection.train_test_split(
        images, labels, test_size=HELD_OUT, random_state=1, stratify=labels
    )
    model = Cnn()
    params = train(model, train_x, train_y)

    def forward(params, images):
        return model.apply(params, images)

    logits = np.asarray(jax.jit(forward)(params, test_x))
    accuracy = float((logits.argmax(-1) == test_y).mean())
    print(f"accuracy on {HELD_OUT} held-out images: {accuracy:.4f}")
    assert accuracy > 0.97, "the training went wrong"

    OUT.mkdir(parents=True, exist_ok=True)
    flat = flax.traverse_util.flatten_dict(params, sep=".")
    safetensors.flax.save_file(flat, OUT / "params.safetensors")
    exported = jax.export.export(jax.jit(forward))(params, jnp.asarray(test_x))
    (OUT / "forward.jaxexport").write_bytes(exported.serialize())
    (OUT / "forward.stablehlo").write_bytes(exported.mlir_module_serialized)
    np.save(OUT / "images.npy", test_x)
    np.save(OUT / "labels.npy", test_y)
    np.save(OUT / "logits.npy", logits)

    total = 0
    for path in sorted(OUT.iterdir()):
        content = path.read_bytes()
        total += len(content)
        for needle in (str(HERE.parent), str(pathlib.Path.home()), "site-packages"):
            assert needle.encode() not in content, f"{path.name} holds {needle}"
        print(f"{path.name}: {len(content)} bytes")
    assert total < SIZE_LIMIT, total


if __name__ == "__main__":
    main()
