"""Writes arrays in every order that NumPy stores, and what they are: tests/data/orders/.

Made with numpy 2 and safetensors 0.8, on Python 3.11.
"""

import pathlib

import numpy as np
from safetensors.numpy import save_file

TARGET = pathlib.Path(__file__).parent.parent / "tests/data/orders"


def main():
    TARGET.mkdir(parents=True, exist_ok=True)
    whole = np.arange(6 * 40, dtype=np.float32).reshape(6, 40) / 7
    arrays = {
        "fortran": np.asfortranarray(whole),
        "fortran3": np.asfortranarray(whole.reshape(6, 8, 5)),
        "big": whole.astype(">f4"),
        "big_fortran": np.asfortranarray(whole.astype(">f8")),
        "big_integer": np.arange(9, dtype=">i2"),
        "big_complex": (whole[0] + 2j).astype(">c8"),
        "plain": whole,
        "empty": np.zeros((0, 3), ">f4"),
        "scalar": np.array(2.5, ">f8"),
    }
    np.savez(TARGET / "stored.npz", **arrays)
    np.savez_compressed(TARGET / "deflated.npz", **arrays)
    np.save(TARGET / "big_fortran.npy", arrays["big_fortran"])
    native = {name: np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="))) for name, array in arrays.items()}
    native["scalar"] = native["scalar"].reshape(())
    save_file(native, TARGET / "native.safetensors")


if __name__ == "__main__":
    main()
