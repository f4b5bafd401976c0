"""A network as two ONNX files: raw features to codes, and codes to raw features. Mean and std are inside."""
import importlib.util
import logging
from pathlib import Path

import torch
import torch.nn as nn

from export.hub import describe
from utils.errors import UserError
from utils.files import atomic_write


class _RawEncoder(nn.Module):
    """Raw features (N, T, D) → codes (N, T // unit), residual (N, T // unit, Q)."""

    def __init__(self, net):
        super().__init__()
        self.vqvae, self.unit, self.nb_code = net.vqvae, 2 ** net.down_t, net.nb_code
        for name in ("mean", "std"):
            self.register_buffer(name, torch.as_tensor(getattr(net, name)).float())

    def forward(self, features):
        whole = features[:, :features.shape[1] // self.unit * self.unit]  # the rest makes no code
        return self.vqvae.encode((whole - self.mean) / self.std)


class _RawDecoder(_RawEncoder):
    """Codes (N, T') or (N, T', Q) → raw features (N, T' · unit, D). The runtime refuses other codes."""

    def __init__(self, net):
        super().__init__(net)
        self.lowest = 1 - net.vqvae.quantizer.clip_axes  # -1 stands for no residual code
        self.register_buffer("known", torch.arange(self.lowest, net.nb_code))

    def forward(self, codes):
        codes = torch.where(codes < self.lowest, self.nb_code, codes)  # ONNX counts negatives from the end
        codes = self.known[codes - self.lowest]  # a look-up refuses what it does not hold
        return self.vqvae.forward_decoder(codes) * self.std + self.mean


def write_onnx(net, folder):
    """Write encoder.onnx, `features` float32 (N, T, D) → `codes` int64 (N, T'), and decoder.onnx, back.

    net: HumanVQVAE in eval mode, on the CPU, with mean and std. Raises UserError for missing packages.
    """
    if None in map(importlib.util.find_spec, ("onnx", "onnxscript")):
        raise UserError("--onnx needs two packages: pip install onnx onnxscript")
    unit, dim = 2 ** net.down_t, torch.export.Dim
    frames = torch.zeros(2, 16 * unit, net.spec.width)
    codes = net.vqvae.encode(frames)
    jobs = (("encoder.onnx", _RawEncoder, frames, "features", "codes", dim("frames", min=unit)),
            ("decoder.onnx", _RawDecoder, codes, "codes", "features", dim("length")))
    about = describe(net) | {"features": f"raw (de-normalised), {net.spec.width} wide"}
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
        with atomic_write(Path(folder, name)) as file:
            file.write(model.SerializeToString())
