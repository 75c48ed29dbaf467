"""Writes the PyTorch checkpoints that the tests read, and what is in them as safetensors: tests/data/pytorch/.

Made with torch 2.15.0, numpy 2 and safetensors 0.8, on Python 3.11.
"""

import argparse
import io
import pathlib
import zipfile

import numpy as np
import torch
from safetensors.torch import save_file

class Gate(torch.nn.Module):
    pass


TARGET = pathlib.Path(__file__).parent.parent / "tests/data/pytorch"


def whole(tensors):
    return {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}


def state_dict():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 3))
    return model.state_dict()


def views():
    base = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
    tied = torch.arange(12, dtype=torch.int64)
    return {
        "transposed": base.permute(2, 0, 1),
        "part": base[1, 1:3],
        "every_second": tied[::2],
        "broadcast": torch.tensor([7.0]).expand(4, 2),
        "repeated": torch.arange(6.0).reshape(2, 1, 3).expand(2, 4, 3),
        "tied.a": tied,
        "tied.b": tied,
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
    }


def types():
    names = ["float16", "bfloat16", "float64", "int8", "uint8", "int16", "int32", "complex64", "uint16", "float8_e4m3fn"]
    return {name: torch.arange(8).to(torch.float32).to(getattr(torch, name)) for name in names} | {
        "bool": torch.arange(8) % 3 == 0
    }


def write_script(module, path):
    content = io.BytesIO()
    torch.jit.save(module, content)
    # Without its code, which has paths of the machine in it.
    with zipfile.ZipFile(content) as source, zipfile.ZipFile(path, "w") as target:
        for info in source.infolist():
            if "/code/" not in info.filename:
                target.writestr(zipfile.ZipInfo(info.filename), source.read(info))


def write_odd():
    """What has tensors in places where they are not looked for: tests take it by name."""
    frozen = torch.jit.freeze(torch.jit.script(torch.nn.Sequential(torch.nn.Linear(2, 3)).eval()))
    write_script(frozen, TARGET / "frozen.jit")
    tensor, parameter = torch.ones(2), torch.nn.Parameter(torch.ones(3))
    tensor.scale, parameter.mask, plain = torch.ones(1), torch.ones(3), torch.ones(4)
    plain.note = "no array"
    tensors = {"tensor": tensor, "parameter": parameter, "plain": plain}
    torch.save(tensors, TARGET / "attributes.pt")
    torch.save(tensors, TARGET / "legacy_attributes.pt", _use_new_zipfile_serialization=False)
    # A whole module, whose class PyTorch writes with its source, and where that is.
    torch.serialization.get_source_lines_and_file = lambda *_: (["class Gate: pass"], 1, "models.py")
    torch.save({"w": torch.ones(2), "module": Gate()}, TARGET / "legacy_module.pt", _use_new_zipfile_serialization=False)


def main():
    TARGET.mkdir(parents=True, exist_ok=True)
    for name, tensors in [("state_dict", state_dict()), ("views", views()), ("types", types())]:
        torch.save(tensors, TARGET / f"{name}.pt")
        save_file(whole(tensors), TARGET / f"{name}.safetensors")
    # The same in an archive that somebody packed again, and as a training state with things that are no tensors.
    with zipfile.ZipFile(TARGET / "views.pt") as source:
        with zipfile.ZipFile(TARGET / "deflated.pt", "w", zipfile.ZIP_DEFLATED) as target:
            for info in source.infolist():
                target.writestr(zipfile.ZipInfo(info.filename), source.read(info), zipfile.ZIP_DEFLATED)
    layer = torch.nn.Parameter(torch.ones(2, 3))
    state = {"model": {"layer.weight": layer}, "epoch": 3, "name": "run", "lr": 0.5, "array": np.arange(3.0)}
    torch.save(state, TARGET / "training.pt")
    torch.save({"weight": torch.ones(2), "sparse": torch.eye(2).to_sparse(), "device": torch.device("cpu")}, TARGET / "odd.pt")
    # As PyTorch wrote before 1.6. Its types of that time: a storage of each.
    legacy = {name: tensor for name, tensor in types().items() if name not in ("uint16", "float8_e4m3fn")} | views()
    torch.save(legacy, TARGET / "legacy.pt", _use_new_zipfile_serialization=False)
    save_file(whole(legacy), TARGET / "legacy.safetensors")
    # A module, and what a trainer keeps beside: an object of a class that only its own package has, without arrays in it.
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    write_script(torch.jit.script(module), TARGET / "script.jit")
    save_file(whole(module.state_dict()), TARGET / "script.safetensors")
    write_odd()
    torch.save({"weight": torch.ones(2), "config": argparse.Namespace(depth=2, name="run")}, TARGET / "config.pt")


if __name__ == "__main__":
    main()
