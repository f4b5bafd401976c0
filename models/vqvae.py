"""The motion VQ-VAE: (N, T, D) features → (N, T/4) codes → (N, T, D) features (T2M-GPT, arXiv 2301.06052, section 3.1)."""
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn as nn

from models.encdec import Decoder, Encoder
from models.quantize_cnn import QUANTIZERS
from utils.checkpoint import load_checkpoint
from utils.errors import UserError
from utils.motion_process import recover_from_ric
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
    """The public network; its state-dict keys are upstream's. `mean` and `std` (D,) are set when a checkpoint brings them."""

    def __init__(self, args, nb_code=512, code_dim=512, output_emb_width=512, down_t=3, stride_t=2, width=512, depth=3,
                 dilation_growth_rate=3, activation="relu", norm=None):
        super().__init__()
        self.spec = get_spec(args.dataname)
        self.nb_joints, self.nb_code, self.down_t = self.spec.joints, nb_code, down_t
        self.mean = self.std = None
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

    @torch.no_grad()
    def reconstruct(self, features):
        """Raw features → joints of their reconstruction.

        features: (T, D) or (N, T, D) array or tensor, de-normalised, T ≥ 2**down_t (frames past a multiple of it are left out).
        Returns (…, T, J, 3) joint positions in the data set's unit (t2m: metres). Raises UserError without statistics.
        """
        features = torch.as_tensor(np.asarray(features), dtype=torch.float32)
        normalised, single = self.normalise(features), features.dim() == 2
        out = self(normalised[None] if single else normalised)[0]
        return self.to_joints(out[0] if single else out)

    def normalise(self, features):
        """Raw features (…, T, D) → normalised ones on the net's device, cut to whole codes."""
        mean, std = self._statistics()
        unit = 2 ** self.down_t
        if features.shape[-2] < unit or features.shape[-1] != self.spec.width:
            raise UserError(f"features have shape {tuple(features.shape)}, expected at least {unit} frames of width {self.spec.width}")
        features = features[..., :features.shape[-2] // unit * unit, :].to(mean.device)
        return (features - mean) / std

    def to_joints(self, normalised):
        """Normalised features (…, T, D) → joint positions (…, T, J, 3)."""
        mean, std = self._statistics()
        return recover_from_ric(normalised * std + mean, self.nb_joints)

    def _statistics(self):
        if self.mean is None:
            raise UserError("this net has no statistics: the checkpoint carries none, so set net.mean and net.std to (D,) arrays first")
        like = next(self.parameters())
        return tuple(torch.as_tensor(np.asarray(a), dtype=like.dtype, device=like.device) for a in (self.mean, self.std))


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
