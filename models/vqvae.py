"""The motion VQ-VAE: (N, T, D) features → (N, T/4) codes → (N, T, D) features (T2M-GPT, arXiv 2301.06052, section 3.1)."""
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn as nn

from models.batches_old import apart, buckets, can_mix, evaluating, lay_out
from models.encdec import Decoder, Encoder
from models.loading import load_checkpoint
from models.quantize_cnn import QUANTIZERS
from utils.errors import UserError
from utils.motion_process import describe_statistics, extract_features, recover_from_ric
from utils.motion_spec import SPECS, get_spec

# what rebuilds a net: recorded in every checkpoint under 'args'
NET_ARGS = ("dataname", "quantizer", "mu", "beta", "nb_code", "code_dim", "output_emb_width", "down_t", "stride_t", "width", "depth",
            "dilation_growth_rate", "vq_act", "vq_norm")


class VQVAE_251(nn.Module):
    """Encoder, quantizer and decoder. `args` needs `dataname`, `quantizer`, `mu`, `beta`; the width of a frame follows the data set."""

    def __init__(self, args, nb_code=1024, code_dim=512, output_emb_width=512, down_t=3, stride_t=2, width=512, depth=3,
                 dilation_growth_rate=3, activation="relu", norm=None):
        super().__init__()
        if output_emb_width != code_dim:
            raise ValueError(f"output_emb_width is {output_emb_width}, code_dim {code_dim}: codes are latents, so they must be equal")
        self.code_dim, self.num_code, self.quant = code_dim, nb_code, args.quantizer
        frame = get_spec(args.dataname).width
        shape = (frame, output_emb_width, down_t, stride_t, width, depth, dilation_growth_rate)
        self.encoder = Encoder(*shape, activation=activation, norm=norm)
        self.decoder = Decoder(*shape, activation=activation, norm=norm)
        self.quantizer = QUANTIZERS[args.quantizer](nb_code, code_dim, args)

    def encode(self, x):
        """x (N, T, D) normalised features → (N, T/4) int64 code indices."""
        z_e = self.encoder(x.transpose(1, 2)).transpose(1, 2)                          # (N, T/4, C)
        z_e = z_e.to(self.quantizer.codes.dtype)
        return self.quantizer.quantize(z_e.reshape(-1, z_e.shape[-1])).view(z_e.shape[:2])

    def forward(self, x):
        """x (N, T, D) normalised features → reconstruction (N, T, D), commitment loss, perplexity."""
        z_e = self.encoder(x.transpose(1, 2))                                          # (N, C, T/4)
        z_q, loss, perplexity = self.quantizer(z_e)
        return self.decoder(z_q).transpose(1, 2), loss, perplexity

    def forward_decoder(self, x):
        """x (N, T') int64 code indices, or one row (T',) → features (N, T, D), normalised."""
        z_q = self.quantizer.dequantize(torch.atleast_2d(x))                           # (N, T', C)
        return self.decoder(z_q.transpose(1, 2)).transpose(1, 2)


class HumanVQVAE(nn.Module):
    """The public network; its state-dict keys are upstream's. `mean` and `std` (D,) are set when a checkpoint brings them.

    `forward`, `encode` and `forward_decoder` are the network itself: normalised batches on its device. `tokenize`, `decode_joints`,
    `reconstruct` and `play` are for looking at motion: raw features or joints in, codes or joints out, as tensors on the CPU. They take one
    clip, a batch, or a list of clips of any lengths, which comes back as a list, each as if it had been alone. They run in eval mode
    without gradients. Where frames remain past the last whole code (2**down_t frames) they are left out, as in evaluation.
    """

    def __init__(self, args, nb_code=512, code_dim=512, output_emb_width=512, down_t=3, stride_t=2, width=512, depth=3,
                 dilation_growth_rate=3, activation="relu", norm=None):
        super().__init__()
        self.spec = get_spec(args.dataname)
        self.nb_joints, self.nb_code, self.down_t = self.spec.joints, nb_code, down_t
        self.mean = self.std = self.iteration = None
        self.vqvae = VQVAE_251(args, nb_code, code_dim, output_emb_width, down_t, stride_t, width, depth, dilation_growth_rate,
                               activation=activation, norm=norm)

    @classmethod
    def from_args(cls, args):
        """Build from a namespace holding every name of NET_ARGS (the options module's, or a checkpoint's)."""
        return cls(args, args.nb_code, args.code_dim, args.output_emb_width, args.down_t, args.stride_t, args.width, args.depth,
                   args.dilation_growth_rate, args.vq_act, args.vq_norm)

    @classmethod
    def from_checkpoint(cls, path, device="cpu", **overrides):
        """Rebuild a trained net, in eval mode, from a file alone.

        A checkpoint of this project carries its arguments and statistics. An upstream file carries neither: sizes are read off its
        tensors, and what they cannot tell (`quantizer`, `vq_act`, `dilation_growth_rate`, `mu`, `beta`) comes from keywords, whose
        defaults are the published recipe. Raises UserError for a file that is damaged or of another network.
        """
        checkpoint = load_checkpoint(path)
        args = SimpleNamespace(**{**infer_args(checkpoint["net"], path), **_known(checkpoint.get("args")), **overrides})
        net = cls.from_args(args)
        load_net(net, checkpoint, path)
        net.args, net.remarks = vars(args), []
        net.iteration = checkpoint.get("iter")
        net.recipe = dict(checkpoint.get("args") or {})
        return net.to(device).eval()

    def encode(self, x):
        """x (N, T, D) normalised features, T at least 2**down_t → (N, T/4) int64 code indices."""
        return self.vqvae.encode(x)

    def forward(self, x):
        """x (N, T, D) normalised features → reconstruction (N, T, D), commitment loss, perplexity."""
        return self.vqvae(x)

    def forward_decoder(self, x):
        """x (N, T/4) int64 code indices, or one row of them → features (N, T, D), normalised."""
        return self.vqvae.forward_decoder(x)

    def tokenize(self, motion):
        """A motion → its codes, (T/4,) int64 (T / 2**down_t in general).

        motion: features (T, D), de-normalised, or joints (T, J, 3) in the data set's unit and at its frame rate, as arrays or tensors; T of
        2**down_t or more, and one frame more for joints, of which `extract_features` makes T - 1 rows. (N, T, D) or (N, T, J, 3) gives
        (N, T/4), a list gives a list. Raises UserError for other shapes, for what is not finite, and without statistics.
        """
        clips, together = _as_list(motion, lambda array: 3 if self._are_joints(array) else 2)
        clips = [self.normalise(self._features(clip), f"clip {i}") for i, clip in enumerate(clips)]
        return together(self._in_batches(self.encode, clips))

    def decode_joints(self, codes):
        """Codes (T',) → joints (4·T', J, 3) float32 in the data set's unit (t2m: metres), 2**down_t frames a code.

        (N, T') gives (N, 4·T', J, 3), a list of rows of any lengths gives a list. Raises UserError for what is no row of codes.
        """
        rows, together = _as_list(codes, lambda array: 1)
        for row in rows:
            if row.ndim != 1 or len(row) == 0 or row.dtype.kind not in "iu" or row.min() < 0 or row.max() >= self.nb_code:
                raise UserError(f"{row.dtype} codes of shape {row.shape}{_span(row)}; expected a row of whole numbers, 0 … {self.nb_code - 1}")
        device = next(self.parameters()).device
        rows = [torch.from_numpy(row.astype(np.int64)).to(device) for row in rows]
        features = self._in_batches(self.forward_decoder, rows, 2 ** self.down_t)
        return together([self.to_joints(row.to(device)).cpu() for row in features])

    def reconstruct(self, motion):
        """A motion, as `tokenize` takes it → joints of its reconstruction, (T, J, 3) float32 in the data set's unit (t2m: metres).

        That is `decode_joints(tokenize(motion))`. Features start at the origin and face +z, whatever the joints given did; so does this.
        """
        return self.decode_joints(self.tokenize(motion))

    def play(self, clip, **options):
        """One motion, or one row of codes, as a player (visualize/player.py): the last line of a notebook's cell shows it.

        A motion's reconstruction is drawn over the original in grey, with its codes under the time line. options: of `player_html`.
        """
        from visualize.player import player  # here, for the drawing is loaded by those who look alone
        clip, options = _array(clip), {"unit": 2 ** self.down_t, **options}
        if clip.ndim == 1:
            return player(self.decode_joints(clip), self.spec, codes=clip, **options)
        features = self._features(clip)
        codes = self.tokenize(features)
        joints = self.decode_joints(codes)
        original = recover_from_ric(torch.as_tensor(features), self.nb_joints)
        return player(joints, self.spec, reference=original[..., :joints.shape[-3], :, :], codes=codes, **options)

    def normalise(self, features, name="a motion"):
        """Raw features (…, T, D), array or tensor → normalised ones on the net's device, cut to whole codes. UserErrors call them `name`."""
        like, unit = self._statistics()[0], 2 ** self.down_t
        features = _array(features)
        if features.ndim < 2 or features.shape[-2] < unit or features.shape[-1] != self.spec.width:
            raise UserError(f"{name} has shape {features.shape}; expected features ({unit} frames or more, {self.spec.width}), or joints "
                            f"({unit + 1} frames or more, {self.nb_joints}, 3)")
        finite = np.isfinite(features).all(-1)
        if not finite.all():
            raise UserError(f"{name} is NaN or Inf, first in frame {np.argwhere(~finite)[0, -1]}; expected finite numbers")
        features = features[..., :features.shape[-2] // unit * unit, :]
        normalised = (features - np.asarray(self.mean)) / np.asarray(self.std)         # in float64, rounded once, as in training
        return torch.from_numpy(normalised.astype(np.float32)).to(like)

    def to_joints(self, normalised):
        """Normalised features (…, T, D) → joint positions (…, T, J, 3), on the net's device."""
        mean, std = self._statistics()
        return recover_from_ric(normalised * std + mean, self.nb_joints)

    def _statistics(self):
        if self.mean is None:
            raise UserError("this net has no statistics: the checkpoint carries none, so set net.mean and net.std to (D,) arrays first")
        like = next(self.parameters())
        return tuple(torch.as_tensor(np.asarray(a), dtype=like.dtype, device=like.device) for a in (self.mean, self.std))

    def _are_joints(self, array):
        return array.shape[-2:] == (self.nb_joints, 3)

    def _features(self, clip):
        """Raw features of one clip (T, D), or of joints (T, J, 3)."""
        return extract_features(clip, self.spec.name) if clip.ndim == 3 and self._are_joints(clip) and len(clip) > 1 else clip

    def _in_batches(self, f, rows, frames=1):
        """f (N, T, …) → (N, T', …), a part of the network, of rows (T, …) of any lengths, several at a time; each as if it were alone, in order.

        frames: that one step of a row stands for. Results are on the CPU.
        """
        lengths, results = np.array([len(row) for row in rows]) * frames, [None] * len(rows)
        with evaluating(self):
            for batch in buckets(lengths, mixed=can_mix(self)):
                places, inside = lay_out(lengths[batch], 2 ** self.down_t)
                laid = rows[0].new_zeros(inside.size // frames, *rows[0].shape[1:])
                for i, place in zip(batch, places // frames):
                    laid[place:place + len(rows[i])] = rows[i]
                with apart(self, lengths[batch]):
                    out = f(laid.unflatten(0, (len(inside), -1))).flatten(0, 1).cpu().numpy()
                step = inside.size // len(out)  # frames that one step of a result stands for
                for i, place in zip(batch, places):
                    results[i] = out[place // step:(place + lengths[i]) // step].copy()
        return [torch.from_numpy(result) for result in results]  # out here, for a tensor of inference mode may not be changed in place

    def _repr_html_(self):
        """What the net is, as a table for a notebook."""
        spec, vqvae, quantizer = self.spec, self.vqvae, self.vqvae.quantizer
        unit = 2 ** self.down_t
        rows = {
            "data set": f"{spec.name}: {spec.joints} joints, {spec.width} features a frame, {spec.fps:g} frames/s",
            "quantizer": f"{vqvae.quant}, {self.nb_code} codes of {vqvae.code_dim} channels" + ("" if quantizer.filled else ", not filled yet"),
            "a code": f"{unit} frames, {unit / spec.fps:g} s: {np.log2(self.nb_code) * spec.fps / unit:.0f} bits/s",
            "width": f"{vqvae.encoder.model[0].out_channels} channels",
            "parameters": f"{sum(p.numel() for p in self.parameters()) / 1e6:.2f} M",
            "iteration": "not known" if self.iteration is None else f"{self.iteration:,}, warm-up included",
            "mean and std": "none: set net.mean and net.std" if self.std is None else f"of the {describe_statistics(np.asarray(self.std))}'s kind"}
        cells = "".join(f"<tr><th style='text-align:left'>{name}</th><td style='text-align:left'>{text}</td></tr>" for name, text in rows.items())
        return f"<table>{cells}</table>"


def _array(value):
    """An array of an array, a tensor of any device, or nested lists."""
    return value.detach().cpu().numpy() if torch.is_tensor(value) else np.asarray(value)


def _as_list(value, axes):
    """One value, a batch of values along a first axis, or a list of them → list of arrays, and what puts their results together alike.

    axes: function from an array to the number of axes that one value would have.
    """
    if isinstance(value, (list, tuple)) and len(value) and np.ndim(value[0]):
        return [_array(each) for each in value], list
    array = _array(value)
    if array.ndim == axes(array):
        return [array], lambda results: results[0]
    if array.ndim == 0 or len(array) == 0:
        raise UserError(f"nothing there: shape {array.shape}; expected a clip, a batch or a list of clips")
    return list(array), torch.stack


def _span(row):
    return f", {row.min()} … {row.max()}" if row.size and row.dtype.kind in "iuf" else ""


def _known(args):
    return {name: args[name] for name in NET_ARGS if name in args} if args else {}


def infer_args(state, path="checkpoint"):
    """What a state-dict's tensors say of its net, as a dict of NET_ARGS; the published recipe where they say nothing."""
    try:
        width, frame, _ = state["vqvae.encoder.model.0.weight"].shape
        codes = state["vqvae.quantizer.codebook" if "vqvae.quantizer.codebook" in state else "vqvae.quantizer.embedding.weight"]
        dataname = {spec.width: spec.name for spec in reversed(SPECS.values())}[frame]
    except KeyError as error:
        raise UserError(f"{path}: not a motion VQ-VAE checkpoint ({error} not found); expected upstream's state-dict under 'net'") from None
    blocks = [key for key in state if key.startswith("vqvae.encoder.model.2.1.model.") and key.endswith("conv1.weight")]
    down_t = sum(key.startswith("vqvae.encoder.model.") and key.endswith(".0.weight") and key.count(".") == 5 for key in state)
    norm = None
    if "vqvae.encoder.model.2.1.model.0.norm1.weight" in state:
        # LN and GN look alike in a state-dict; BN has running statistics
        norm = "BN" if "vqvae.encoder.model.2.1.model.0.norm1.running_mean" in state else "LN"
    return dict(dataname=dataname, quantizer="ema_reset" if "vqvae.quantizer.codebook" in state else "orig", mu=0.99, beta=1.0,
                nb_code=codes.shape[0], code_dim=codes.shape[1], output_emb_width=codes.shape[1], down_t=down_t, stride_t=2, width=width,
                depth=len(blocks), dilation_growth_rate=3, vq_act="relu", vq_norm=norm)


def load_net(net, checkpoint, path="checkpoint"):
    """Load a checkpoint's weights, codebook statistics and mean/std into `net`, all or nothing.

    Raises UserError with every field in which the file differs from the net; nothing is loaded then.
    """
    state, own = checkpoint["net"], net.state_dict()
    differing = [f"{key} {'missing' if key not in state else tuple(state[key].shape)}, expected {tuple(own[key].shape)}"
                 for key in own if key not in state or state[key].shape != own[key].shape]
    differing += [f"{key} {tuple(state[key].shape)}, expected none" for key in state if key not in own]
    quantizer, recorded = net.vqvae.quantizer, _known(checkpoint.get("args"))
    if recorded.get("quantizer", net.vqvae.quant) != net.vqvae.quant:
        differing.insert(0, f"quantizer {recorded['quantizer']}, expected {net.vqvae.quant}")
    if recorded.get("dataname", net.spec.name) != net.spec.name and get_spec(recorded["dataname"]).width != net.spec.width:
        differing.insert(0, f"dataname {recorded['dataname']}, expected {net.spec.name}")
    if differing:
        more = f"; and {len(differing) - 4} more" if len(differing) > 4 else ""
        raise UserError(f"{path}: of another network: {'; '.join(differing[:4])}{more}; nothing was loaded")
    net.load_state_dict(state, strict=True)
    if checkpoint.get("quantizer"):
        quantizer.load_training_state(checkpoint["quantizer"])
    if checkpoint.get("mean") is not None:
        net.mean, net.std = (np.asarray(checkpoint[name], dtype=np.float64) for name in ("mean", "std"))
