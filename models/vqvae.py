"""The motion VQ-VAE: features (N, T, D) → codes (N, T/4) → features (T2M-GPT, arXiv 2301.06052, 3.1)."""
import functools
import warnings
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn as nn

from models.batches import as_array, as_list, decode_rows, in_order, run_in_batches
from models.encdec import Decoder, Encoder
from models.loading import ALIASES, CONSTRUCTOR, NET_ARGS, load_checkpoint, network_args, read_statistics
from models.quantize_cnn import QuantizeEMA, QuantizeEMAReset, Quantizer, QuantizeReset
from models.quantize_fsq import QuantizeFSQ
from models.residual_vq import ResidualVQ
from utils.device import pick_device
from utils.errors import UserError
from utils.motion_process import (
    describe_statistics,
    extract_features,
    normalisation_problem,
    recover_from_ric,
)
from utils.motion_spec import get_spec

# --quantizer → constructor from (nb_code, code_dim, args)
QUANTIZERS = {
    "ema_reset": lambda nb_code, code_dim, args: QuantizeEMAReset(nb_code, code_dim, args.mu),
    "orig": lambda nb_code, code_dim, args: Quantizer(nb_code, code_dim, args.beta),
    "ema": lambda nb_code, code_dim, args: QuantizeEMA(nb_code, code_dim, args.mu),
    "reset": lambda nb_code, code_dim, args: QuantizeReset(nb_code, code_dim),
    "residual": ResidualVQ,
    "fsq": lambda nb_code, code_dim, args: QuantizeFSQ(nb_code, code_dim, args.fsq_levels),
}


class VQVAE_251(nn.Module):
    """Encoder, quantizer and decoder.

    args: a namespace of `dataname`, `quantizer`, and what the quantizer takes of NET_ARGS (`mu`, `beta`, …).
    """

    def __init__(self, args, nb_code=512, code_dim=512, output_emb_width=512, down_t=3, stride_t=2, width=512,
                 depth=3, dilation_growth_rate=3, activation="relu", norm=None):
        super().__init__()
        if output_emb_width != code_dim:
            raise ValueError(f"output_emb_width {output_emb_width} and code_dim {code_dim} must be equal")
        self.code_dim, self.num_code, self.quant, self.down_t = code_dim, nb_code, args.quantizer, down_t
        shape = (get_spec(args.dataname).width, output_emb_width, down_t, stride_t, width, depth,
                 dilation_growth_rate, activation, norm, getattr(args, "block_dropout", 0.0))
        self.encoder, self.decoder = Encoder(*shape), Decoder(*shape)
        self.quantizer = QUANTIZERS[args.quantizer](nb_code, code_dim, args)

    def preprocess(self, x):
        """Return features (N, T, D) of any dtype as (N, D, T) in the weights' dtype, float32 as a rule."""
        return torch.as_tensor(x).transpose(1, 2).to(self.encoder.model[0].weight.dtype)

    def postprocess(self, x):
        """Return the decoder's output (N, D, T) as features (N, T, D), float32 at least."""
        return x.transpose(1, 2).to(torch.promote_types(x.dtype, torch.float32))

    def encode(self, x):
        """Return the codes (N, T / 2**down_t), residual (N, T / 2**down_t, Q), of normalised x (N, T, D)."""
        self.quantizer.require_filled()
        z_e = self.encoder(self.preprocess(x))                                         # (N, C, T')
        codes = self.quantizer.quantize(self.quantizer.to_rows(z_e))
        return codes.unflatten(0, (z_e.shape[0], z_e.shape[2]))

    def forward(self, x):
        """Return the reconstruction (N, T, D), commitment loss and perplexity of normalised x (N, T, D)."""
        if not self.training:
            self.quantizer.require_filled()
        z_e = self.encoder(self.preprocess(x))                                         # (N, C, T')
        z_q, loss, perplexity = self.quantizer(z_e)
        return self.decode(z_q), loss, perplexity

    def forward_decoder(self, x):
        """Return normalised features (N, T, D) of int64 codes, a batch's or one clip's."""
        one = x.ndim == self.quantizer.clip_axes
        z_q = self.quantizer.dequantize(x[None] if one else x)                         # (N, T', C)
        return self.decode(z_q.transpose(1, 2))

    def decode(self, z_q):
        """Return normalised features (N, T, D) of quantized latents (N, C, T')."""
        return self.postprocess(self.decoder(z_q.to(self.decoder.model[0].weight.dtype)))


class HumanVQVAE(nn.Module):
    """The public network; its state-dict keys are upstream's.

    `forward`, `encode` and `forward_decoder` take normalised batches. `tokenize`, `decode_joints` and
    `reconstruct` take raw motion and return tensors on the CPU: of one clip, of a batch, or of a list of
    clips of any lengths, each as if alone. Frames past the last whole code go.

    After `from_checkpoint`, `args` holds the network's arguments, `recipe` all that the file records,
    `iteration` its step, `mean` and `std` (D,) its statistics, and `remarks` lines on what was assumed.
    """

    @functools.wraps(VQVAE_251.__init__)
    def __init__(self, args, *sizes, **options):
        super().__init__()
        self.spec = get_spec(args.dataname)
        self.vqvae = VQVAE_251(args, *sizes, **options)
        self.nb_joints, self.nb_code, self.down_t = self.spec.joints, self.vqvae.num_code, self.vqvae.down_t
        self.mean = self.std = self.iteration = None
        self.args, self.recipe, self.remarks = {}, {}, []

    @classmethod
    def from_args(cls, args):
        """Build from a namespace; where it lacks a name of NET_ARGS, the published value counts."""
        values = {name: getattr(args, name, default) for name, default in NET_ARGS.items()}
        net = cls(SimpleNamespace(**values), *(values[name] for name in CONSTRUCTOR))
        net.args = values
        return net

    @classmethod
    def from_checkpoint(cls, path, device="cpu", **overrides):
        """Rebuild a trained net, in eval mode, from a file alone; with averaged weights where it holds them.

        path: as of `load_checkpoint`. overrides: names of NET_ARGS, `activation` or `norm`, for what the file
        does not record (upstream's). Raises UserError where one contradicts the file, for a file that is
        damaged or of another network, and for a missing device; TypeError for other keywords.
        """
        names = [ALIASES.get(name, name) for name in overrides]
        if not set(names) <= set(NET_ARGS) or len(set(names)) < len(names):
            raise TypeError(f"from_checkpoint: unexpected or repeated keyword among {', '.join(overrides)}")
        checkpoint, device = load_checkpoint(path), pick_device(device)
        args, remarks = network_args(checkpoint, path, overrides)
        try:
            net = cls.from_args(SimpleNamespace(**args))
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None
        checkpoint["net"] = {**checkpoint["net"], **checkpoint["ema"]}
        load_net(net, checkpoint, path)
        net.recipe, net.remarks = checkpoint["args"], remarks
        return net.to(device).eval()

    def encode(self, x):
        """Return the codes (N, T / 2**down_t), int64, of *normalised* features; `tokenize` takes raw ones.

        Residual codes are (N, T / 2**down_t, Q), the coarse layer first. x: (N, T, D), T at least 2**down_t.
        Raises UserError for other shapes, NaN and Inf.
        """
        x = self._check_features(x)
        if not bool(torch.isfinite(x).all()):
            raise UserError("the features hold NaN or Inf; expected finite numbers")
        return self.vqvae.encode(x)

    def forward(self, x):
        """Return the reconstruction (N, T, D), commitment loss and perplexity of normalised x (N, T, D)."""
        return self.vqvae(self._check_features(x))

    def forward_decoder(self, x):
        """Return normalised features (N, T, D) of codes (N, T') or (T',), whole numbers.

        Residual codes are (N, T', q) or (T', q), q ≤ Q: missing layers and -1 count as zero.
        """
        x, layers = self._tensor(x), self.vqvae.quantizer.num_layers
        axes = self.vqvae.quantizer.clip_axes
        wanted = "(N, T') or (T',)" if axes == 1 else f"(N, T', q) or (T', q) with q at most {layers}"
        fits = x.ndim in (axes, axes + 1) and x.numel() and not x.is_floating_point()
        if not fits or (axes == 2 and x.shape[-1] > layers):
            raise UserError(f"codes of {x.dtype}, shape {tuple(x.shape)}; expected integers {wanted}")
        low, high = torch.stack(x.long().aminmax()).tolist()
        if low < 1 - axes or high >= self.nb_code:
            raise UserError(f"codes run from {low} to {high}; expected {1 - axes} … {self.nb_code - 1}")
        return self.vqvae.forward_decoder(x.long())

    def tokenize(self, motion):
        """Return the codes (T / 2**down_t,), int64, of a *raw* motion; `encode` takes normalised features.

        motion: de-normalised features (T, D), or joints (T, J, 3) in the data set's unit and frame rate.
        (N, T, D) or (N, T, J, 3) gives (N, T'), a list gives a list; residual codes have one more axis, Q.
        Warns once where a clip looks normalised already. Raises UserError for other shapes, for NaN and Inf,
        and without statistics.
        """
        clips, together = as_list(motion, lambda a: 3 if a.shape[-2:] == (self.nb_joints, 3) else 2)
        clips = [self.normalise(self._raw(clip), f"clip {i}") for i, clip in enumerate(clips)]
        for i, clip in enumerate(clips):
            if problem := normalisation_problem(clip.float().cpu(), 3, np.inf):
                warnings.warn(f"clip {i} does not look raw: after normalising, {problem}", stacklevel=2)
                break
        batches = run_in_batches(self, lambda batch: self.encode(torch.stack([clips[i] for i in batch])),
                                 [len(clip) for clip in clips])
        return together(in_order(batches, len(clips)))

    def decode_joints(self, codes):
        """Return joints (T, J, 3), float32, in the data set's unit, of one clip's codes (T',) or (T', q).

        A code gives 2**down_t frames. A batch (N, T') or (N, T', q) gives (N, T, J, 3), a list gives a list.
        Raises UserError for what is no row of codes.
        """
        rows, together = as_list(codes, lambda array: self.vqvae.quantizer.clip_axes)
        return together([self.to_joints(each) for each in in_order(decode_rows(self, rows), len(rows))])

    def reconstruct(self, motion):
        """Return `decode_joints(tokenize(motion))`: joints (T, J, 3) that start at the origin and face +z."""
        return self.decode_joints(self.tokenize(motion))

    def play(self, clip, layers=None, **options):
        """Return a notebook's player of one clip's codes, or of a motion under its reconstruction.

        layers: numbers of residual layers to decode, one player each, side by side; None: all, in one player.
        options: of visualize/player.py.
        """
        from visualize.player import beside, player  # slow to import, and only notebooks need it
        codes, unit = as_array(clip), 2 ** self.down_t
        if codes.dtype.kind == "f":
            features = self._raw(codes)
            codes = self.tokenize(features).numpy()
            original = recover_from_ric(torch.as_tensor(features), self.nb_joints)
            options = {"reference": original[:len(codes) * unit], **options}
        codes = codes.reshape(len(codes), -1)                                          # (T', q)
        options = {"codes": codes[:, 0], "unit": unit, **options}
        players = []
        for count in layers or [codes.shape[1]]:
            kept = codes[:, 0] if self.vqvae.quantizer.clip_axes == 1 else codes[:, :count]
            title = {"title": f"{count} layer{'s' * (count > 1)}"} if layers else {}
            players.append(player(self.decode_joints(kept), self.spec, **{**title, **options}))
        return beside(*players) if layers else players[0]

    def normalise(self, features, name="a motion"):
        """Return raw features (…, T, D) as normalised ones on the net's device, cut to whole codes."""
        unit, (mean, std), features = 2 ** self.down_t, self._statistics(), as_array(features)
        if features.ndim < 2 or features.shape[-2] < unit or features.shape[-1] != self.spec.width:
            raise UserError(f"{name} has shape {features.shape}; expected features ({unit} frames or more, "
                            f"{self.spec.width}) or joints ({unit + 1} frames or more, {self.nb_joints}, 3)")
        finite = np.isfinite(features).all(-1)
        if not finite.all():
            raise UserError(f"{name} is NaN or Inf, first in frame {np.argwhere(~finite)[0, -1]}")
        features = features[..., :features.shape[-2] // unit * unit, :]
        normalised = (features - mean) / std                   # in float64, rounded once, as in training
        return torch.from_numpy(normalised.astype(np.float32)).to(next(self.parameters()))

    def to_joints(self, normalised):
        """Return joints (…, T, J, 3) of normalised features (…, T, D), on their device."""
        mean, std = (torch.from_numpy(a).to(normalised) for a in self._statistics())
        return recover_from_ric(normalised * std + mean, self.nb_joints)

    def _statistics(self):
        if self.mean is None or self.std is None:
            raise UserError("this net has no statistics: set net.mean and net.std to arrays (D,) first")
        return np.asarray(self.mean, np.float64), np.asarray(self.std, np.float64)

    def _raw(self, clip):
        """Return raw features (T, D) of one clip: itself, or what is extracted of joints (T, J, 3)."""
        is_joints = clip.shape[1:] == (self.nb_joints, 3) and len(clip) > 1
        return extract_features(clip, self.spec.name) if is_joints else clip

    def _tensor(self, value):
        """Return a tensor on the net's device of a tensor, an array or nested lists."""
        tensor = value if torch.is_tensor(value) else torch.from_numpy(np.array(value))
        return tensor.to(next(self.parameters()).device)

    def _check_features(self, x):
        x, least = self._tensor(x), 2 ** self.down_t
        if x.ndim != 3 or x.shape[2] != self.spec.width or x.shape[1] < least:
            raise UserError(f"shape {tuple(x.shape)}; expected (N, T, {self.spec.width}), T at least {least}")
        return x

    def extra_repr(self):
        quantizer = self.vqvae.quantizer
        layers = f"{quantizer.num_layers} × " if quantizer.num_layers > 1 else ""
        kind = "not set" if self.std is None else f"{describe_statistics(np.asarray(self.std))} variant"
        return "\n".join([
            f"{self.spec.name}: {self.nb_joints} joints, {self.spec.width} features a frame",
            f"{self.vqvae.quant}: {layers}{self.nb_code} codes of {2 ** self.down_t} frames, "
            f"width {quantizer.code_dim}{'' if quantizer.filled else ', not filled yet'}",
            f"iteration: {self.iteration}; mean and std: {kind}", *self.remarks])


def load_net(net, checkpoint, path="checkpoint"):
    """Load weights, codebook statistics, mean, std and iteration of a loaded checkpoint, all or nothing.

    Raises UserError naming the fields in which the file differs from the net.
    """
    state, own = checkpoint["net"], net.state_dict()
    shapes = {name: [tuple(tensors[name].shape) if name in tensors else "none" for tensors in (state, own)]
              for name in {**own, **state}}
    wrong = [f"{name} {found}, expected {fits}" for name, (found, fits) in shapes.items() if found != fits]
    if wrong:
        raise UserError(f"{path}: of another network in {len(wrong)} tensors: {wrong[0]}")
    mean, std = read_statistics(checkpoint, net.spec.width, path)
    quantizer, saved = net.vqvae.quantizer, checkpoint.get("quantizer")
    for name, value in quantizer.training_state().items() if saved else ():
        found = saved.get(name) if isinstance(saved, dict) else None
        alike = type(found) is type(value) and np.shape(found) == np.shape(value)
        if not alike or not bool(torch.isfinite(torch.as_tensor(found)).all()):
            raise UserError(f"{path}: {name} of its quantizer is missing, of another shape, NaN or Inf")
    net.load_state_dict(state)
    if saved:
        quantizer.load_training_state(saved)
    net.mean, net.std, net.iteration = mean, std, checkpoint.get("iter")
