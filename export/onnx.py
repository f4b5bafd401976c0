"""A network as two ONNX files: raw features to codes, and codes to raw features. Mean and std are inside."""
import importlib.util
import logging
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn

from utils.errors import UserError
from utils.files import atomic_write


class _RawEncoder(nn.Module):
    """Raw features (N, T, D) → codes (N, T // unit), residual (N, T // unit, Q).

    Frames past the last whole code are left out.
    """

    def __init__(self, net):
        super().__init__()
        self.vqvae, self.unit, self.nb_code = net.vqvae, 2 ** net.down_t, net.nb_code
        for name in ("mean", "std"):
            self.register_buffer(name, torch.as_tensor(np.asarray(getattr(net, name)), dtype=torch.float32))

    def forward(self, features):
        whole = features[:, :features.shape[1] // self.unit * self.unit]
        return self.vqvae.encode((whole - self.mean) / self.std)


class _RawDecoder(_RawEncoder):
    """Codes (N, T') or (N, T', Q) → raw features (N, T' · unit, D). The runtime refuses other codes."""

    def __init__(self, net):
        super().__init__(net)
        self.lowest = 1 - net.vqvae.quantizer.clip_axes  # -1 stands for no residual code
        self.register_buffer("known", torch.arange(net.nb_code) if net.vqvae.quant == "fsq" else None)

    def forward(self, codes):
        codes = torch.where(codes < self.lowest, self.nb_code, codes)  # ONNX counts negatives from the end
        if self.known is not None:
            codes = self.known[codes]  # finite scalars are computed: only a look-up refuses a code
        return self.vqvae.forward_decoder(codes) * self.std + self.mean


def check_onnx():
    """Raise UserError where the packages that torch exports with are missing."""
    for name in ("onnx", "onnxscript"):
        if importlib.util.find_spec(name) is None:
            raise UserError(f"--onnx needs {name}: pip install onnx onnxscript")


def write_onnx(net, folder, about):
    """Write encoder.onnx and decoder.onnx, of any N and T; yield each path and its size in bytes.

    net: HumanVQVAE in eval mode, on the CPU, with mean and std. about: {name: value} for the files' metadata.
    encoder: `features` float32 (N, T, D), raw, in the data set's unit → `codes` int64 (N, T'), residual
    (N, T', Q); decoder: back.
    """
    unit, width, dim = 2 ** net.down_t, net.spec.width, torch.export.Dim
    frames = torch.zeros(2, 16 * unit, width)
    codes = net.vqvae.encode(frames)
    jobs = (("encoder.onnx", _RawEncoder, frames, "features", "codes", dim("frames", min=unit)),
            ("decoder.onnx", _RawDecoder, codes, "codes", "features", dim("length")))
    about = {**about, "features": f"raw (de-normalised), {width} wide", "nb_code": net.nb_code}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of torchvision's operators
    for name, module, example, source, target, time in jobs:
        model = torch.onnx.export(
            module(net).eval(), (example,), dynamo=True, input_names=[source], output_names=[target],
            dynamic_shapes=({0: dim("batch"), 1: time},), verbose=False).model_proto
        graph = model.graph
        for message in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
            del message.metadata_props[:]  # stack traces, with paths of this machine
        for key, value in about.items():
            model.metadata_props.add(key=key, value=str(value))
        data = model.SerializeToString()
        with atomic_write(Path(folder, name)) as file:
            file.write(data)
        yield Path(folder, name), len(data)
