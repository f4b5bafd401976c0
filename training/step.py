"""One optimisation step. Nothing waits for the device. B windows, T frames, D features, R rows of latents."""
import contextlib
import copy
from types import SimpleNamespace

import torch
import torch.nn as nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from utils.device import all_reduce, rank_and_world
from utils.losses import ReConsLoss

AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def warm_up_steps(args):
    """Return the number of warm-up steps: --warm-up-iter less one, as upstream."""
    return max(args.warm_up_iter - 1, 0)


def learning_rate(step, args):
    """Return upstream's learning rate at a step from 1 through warm-up and training."""
    warm_up = warm_up_steps(args)
    if step <= warm_up:
        return args.lr * (step + 1) / (args.warm_up_iter + 1)
    base = learning_rate(warm_up, args) if warm_up else args.lr  # decays from where the warm-up ended
    return base * args.gamma ** sum(step - warm_up > milestone for milestone in args.lr_scheduler)


class Objective(nn.Module):
    """Windows in, losses out. The convolutions run in the precision of --amp, all else in float32."""

    def __init__(self, net, args):
        super().__init__()
        self.net = net
        self.loss_fn = ReConsLoss(args.recons_loss, net.spec.joints, args.vel_slice)
        self.args, self.amp = args, AMP[args.amp]

    def forward(self, x):
        """x (B, T, D) → losses (4,): recons, vel, commit, weighted total; rows (R, C) and codes (R,)."""
        vqvae = self.net.vqvae
        with torch.autocast(x.device.type, self.amp, enabled=self.amp is not None):
            z_e = vqvae.encoder(x.transpose(1, 2))                                  # (B, C, T/4)
            z_q, commit, rows, idx = vqvae.quantizer.look_up(z_e)
            out = vqvae.decoder(z_q).transpose(1, 2)                                # (B, T, D)
        out = out.to(x.dtype)
        recons = self.loss_fn(out, x)
        vel = self.loss_fn.forward_vel(out, x)
        total = recons + self.args.commit * commit + self.args.loss_vel * vel
        if self.args.loss_heading:
            total = total + self.args.loss_heading * self.loss_fn.forward_heading(out, x)
        return torch.stack([recons, vel, commit, total]), rows, idx


def build_objective(net, args):
    """Return the Objective of `net`, compiled if asked, with gradients averaged over the ranks."""
    objective = Objective(net, args)
    if args.compile:
        objective = torch.compile(objective, fullgraph=True)
    if rank_and_world()[1] > 1:
        objective = DistributedDataParallel(objective, gradient_as_bucket_view=True)
    return objective


@torch.no_grad()
def init_codebook(net, parts):
    """Fill an empty codebook from the first batch's micro-batches (B, T, D)."""
    encoder = copy.deepcopy(net.vqvae.encoder)  # a copy, so that batch norm sees this batch once
    quantizer = net.vqvae.quantizer
    quantizer.init_codebook(torch.cat([quantizer.to_rows(encoder(x.transpose(1, 2))) for x in parts]))


def train_step(objective, net, optimizer, scaler, parts):
    """Run one optimisation step on this rank's micro-batches, equal tensors (B, T, D) on the device.

    optimizer: fused. scaler: GradScaler, enabled for fp16. If the loss or the gradient of any rank is not
    finite, the step is refused on the device: weights and codebook stay unchanged.
    Returns a namespace over the whole batch: losses (4,) as of Objective, counts (K,) or (Q, K) of the codes,
    perplexity, gradient norm, refused () bool, and bad () bool: refused, and not by fp16's loss scale.
    """
    quantizer, world = net.vqvae.quantizer, rank_and_world()[1]
    quantizer.draw_layers()
    if not quantizer.filled:
        init_codebook(net, parts)
    optimizer.zero_grad(set_to_none=True)
    outputs = []
    for left, x in zip(reversed(range(len(parts))), parts):  # the last averages the gradient over the ranks
        with objective.no_sync() if left and world > 1 else contextlib.nullcontext():
            losses, rows, idx = objective(x)
            scaler.scale(losses[-1] / len(parts)).backward()
        outputs.append((losses.detach(), rows, idx))
    losses, rows, idx = zip(*outputs)
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.get_total_norm([p.grad for p in net.parameters() if p.grad is not None])
    loss = all_reduce(torch.stack(losses).mean(0) / world)
    bad = ~torch.isfinite(loss[-1])
    refused = bad | ~torch.isfinite(norm)
    counts = quantizer.update(torch.cat(rows), torch.cat(idx), refused)
    optimizer.found_inf = refused.float()  # a fused optimizer skips the step where this is 1
    optimizer.step()
    scaler.update()
    return SimpleNamespace(losses=loss, counts=counts, perplexity=quantizer.perplexity(counts), norm=norm,
                           refused=refused, bad=bad if scaler.is_enabled() else refused)


class WeightAverage:
    """The moving average of a net's parameters (--ema-weights; arXiv 1803.05407). decay: None for none."""

    def __init__(self, net, decay):
        self.parameters, self.decay = dict(net.named_parameters()) if decay else {}, decay
        self.values = {name: p.detach().clone() for name, p in self.parameters.items()}

    def update(self, step):
        """Move the average towards the weights after a step; at first faster, to forget untrained ones."""
        if self.decay:
            decay = min(self.decay, (1 + step) / (10 + step))
            get_ema_multi_avg_fn(decay)([*self.values.values()], [*self.parameters.values()], step)

    @contextlib.contextmanager
    def applied(self):
        """Give the net the averaged weights within a block, and its own back afterwards."""
        self._swap()
        yield
        self._swap()

    def _swap(self):
        for name, parameter in self.parameters.items():
            parameter.data, self.values[name] = self.values[name], parameter.data

    def state_dict(self):
        """Return the averaged weights, {name: tensor}."""
        return self.values

    def load_state_dict(self, state):
        """Take over averaged weights."""
        for name, value in self.values.items():
            value.copy_(state[name])
