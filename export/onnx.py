"""A network as two ONNX files: raw features to codes, and codes to raw features. Mean and std are inside."""
import importlib.util
import logging
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn

from utils.errors import UserError
from utils.files import write_atomically


class _RawEncoder(nn.Module):
    """Raw features (N, T, D) → codes (N, T // unit); frames past the last whole code are left out."""

    def __init__(self, net, mean, std):
        super().__init__()
        self.net, self.unit = net, 2 ** net.down_t
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, features):
        whole = features[:, :features.shape[1] // self.unit * self.unit]
        return self.net.encode((whole - self.mean) / self.std)


class _RawDecoder(_RawEncoder):
    """Codes (N, T') → raw features (N, T' · unit, D)."""

    def forward(self, codes):
        return self.net.forward_decoder(codes) * self.std + self.mean


def check_onnx():
    """Raises UserError where the packages that torch exports with are missing."""
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--onnx needs {' and '.join(missing)}, not installed here: pip install onnx onnxscript")


def write_onnx(net, folder, about):
    """Write encoder.onnx (`features` float32 (N, T, D) → `codes` int64 (N, T')) and decoder.onnx (back), any N and T; yields (path, bytes).

    net: HumanVQVAE in eval mode, on the CPU, with mean and std. about: {name: value} for the files' metadata. Features are raw, in the data
    set's unit: what new_joint_vecs holds.
    """
    mean, std = (torch.as_tensor(np.asarray(a), dtype=torch.float32) for a in (net.mean, net.std))
    unit, width = 2 ** net.down_t, net.spec.width
    batch, frames, length = torch.export.Dim("batch"), torch.export.Dim("frames", min=unit), torch.export.Dim("length")
    jobs = (("encoder.onnx", _RawEncoder, torch.zeros(2, 16 * unit, width), "features", "codes", frames),
            ("decoder.onnx", _RawDecoder, torch.zeros(2, 16, dtype=torch.int64), "codes", "features", length))
    log = logging.getLogger("torch.onnx")
    level = log.level
    for name, module, example, source, target, time in jobs:
        log.setLevel(logging.ERROR)  # it tells of operators of torchvision, which is not installed and not needed
        try:
            program = torch.onnx.export(module(net, mean, std).eval(), (example,), dynamo=True, input_names=[source], output_names=[target],
                                        dynamic_shapes=({0: batch, 1: time},), verbose=False)
        finally:
            log.setLevel(level)
        model = program.model_proto
        for message in (model.graph, *model.graph.node, *model.graph.input, *model.graph.output, *model.graph.value_info):
            del message.metadata_props[:]  # stack traces, with the paths of the machine that exported
        for key, value in {**about, "features": f"raw (de-normalised), {width} wide", "nb_code": net.nb_code}.items():
            model.metadata_props.add(key=key, value=str(value))
        path = os.fspath(Path(folder, name))
        try:
            write_atomically(path, lambda file, model=model: file.write(model.SerializeToString()))
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}); name another folder with --out") from None
        yield path, os.path.getsize(path)
