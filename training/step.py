"""One optimisation step: learning rate, losses, gradient, update. Nothing here waits for the device.

B windows, T frames, D features, C channels, K codes, R rows of latents.
"""
import contextlib
import copy
import math
from types import SimpleNamespace

import torch
import torch.nn as nn
from torch.nn.parallel import DistributedDataParallel

from utils.device import all_reduce, rank_and_world
from utils.losses import ReConsLoss

AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def warm_up_steps(args):
    """Return the number of warm-up steps: --warm-up-iter less one, as upstream."""
    return max(args.warm_up_iter - 1, 0)


def learning_rate(step, args):
    """Return upstream's learning rate at a step, counted from 1 through warm-up and training.

    Warm-up steps 1 … w-1 (w = --warm-up-iter) run at lr·(step+1)/(w+1). Training starts from the rate
    that the warm-up ended at, times gamma for every milestone that training iteration step-(w-1) has passed,
    or times a half cosine over --total-iter.
    """
    warm_up = warm_up_steps(args)
    if step <= warm_up:
        return args.lr * (step + 1) / (args.warm_up_iter + 1)
    base = args.lr * (warm_up + 1) / (args.warm_up_iter + 1) if warm_up else args.lr
    if args.lr_decay == "cosine":
        return base * (1 + math.cos(math.pi * (step - warm_up - 1) / args.total_iter)) / 2
    return base * args.gamma ** sum(step - warm_up > milestone for milestone in args.lr_scheduler)


def set_learning_rate(optimizer, step, args):
    """Set the learning rate of a step; return it."""
    rate = learning_rate(step, args)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


class Objective(nn.Module):
    """Windows in, losses out: what is differentiated, compiled and wrapped for several ranks.

    The convolutions run in the precision of --amp; quantizer, statistics and losses stay float32.
    """

    def __init__(self, net, args):
        super().__init__()
        self.net = net
        self.loss_fn = ReConsLoss(args.recons_loss, net.spec.joints, args.vel_slice)
        self.commit, self.loss_vel, self.amp = args.commit, args.loss_vel, AMP[args.amp]

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
        total = recons + self.commit * commit + self.loss_vel * vel
        return torch.stack([recons, vel, commit, total]), rows, idx


def build_objective(net, args, compiled=False):
    """Return the Objective of `net`, compiled if asked, with gradients averaged over the ranks."""
    objective = Objective(net, args)
    if compiled:
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
    finite, weights and codebook stay unchanged; that is decided on the device.
    Returns a namespace over the whole batch: losses (4,) as of Objective, counts (K,) or (Q, K) of the codes,
    perplexity, gradient norm, refused () bool, and bad () bool: refused, and not by fp16's loss scale.
    """
    quantizer, world = net.vqvae.quantizer, rank_and_world()[1]
    quantizer.draw_layers()
    if not quantizer.filled:
        init_codebook(net, parts)
    optimizer.zero_grad(set_to_none=True)
    losses, rows, idx = [], [], []
    for x in parts:
        last = len(losses) + 1 == len(parts)  # it averages the gradient over the ranks
        with contextlib.nullcontext() if last or world == 1 else objective.no_sync():
            part = objective(x)
            scaler.scale(part[0][-1] / len(parts)).backward()
        losses.append(part[0].detach())
        rows.append(part[1])
        idx.append(part[2])
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
