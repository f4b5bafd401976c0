"""One step of training: learning rate, losses, gradient, update. Which windows, when to look and what to save are the script's.

Nothing here waits for the device. B windows, T frames, D features, C channels, K codes, R rows of latents.
"""
import contextlib
import copy
from types import SimpleNamespace

import torch
import torch.nn as nn
from torch.nn.parallel import DistributedDataParallel

from utils.device import all_reduce, rank_and_world

AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def learning_rate(step, args):
    """Upstream's schedule as a function of the step, counted from 1 through warm-up and training.

    Warm-up steps 1 … w-1 (w = --warm-up-iter) run at lr·(step+1)/(w+1); training starts from the rate the warm-up ended at, times gamma
    for every milestone that training iteration step-(w-1) has passed.
    """
    warm_up = max(args.warm_up_iter - 1, 0)
    if step <= warm_up:
        return args.lr * (step + 1) / (args.warm_up_iter + 1)
    base = args.lr * (warm_up + 1) / (args.warm_up_iter + 1) if warm_up else args.lr
    return base * args.gamma ** sum(step - warm_up > milestone for milestone in args.lr_scheduler)


class Objective(nn.Module):
    """Windows in, losses out: what is differentiated, compiled and wrapped for several ranks, around a net that stays as it is.

    loss_fn: ReConsLoss. args: `commit`, `loss_vel` weigh the parts, `amp` (off | bf16 | fp16) is the convolutions' precision; quantizer,
    statistics and losses are float32 whatever it is.
    """

    def __init__(self, net, loss_fn, args):
        super().__init__()
        self.net, self.loss_fn = net, loss_fn
        self.commit, self.loss_vel, self.amp = args.commit, args.loss_vel, AMP[args.amp]

    def forward(self, x):
        """x (B, T, D) → recons, vel, commit and their weighted total, to descend on, (4,); rows (R, C), codes (R,) for the codebook's update."""
        vqvae = self.net.vqvae
        with torch.autocast(x.device.type, self.amp, enabled=self.amp is not None):
            z_e = vqvae.encoder(x.transpose(1, 2))                                      # (B, C, T/4)
            z_q, commit, rows, idx = vqvae.quantizer.look_up(z_e)
            out = vqvae.decoder(z_q).transpose(1, 2)                                    # (B, T, D)
        out = out.to(x.dtype)
        recons, vel = self.loss_fn(out, x), self.loss_fn.forward_vel(out, x)
        total = recons + self.commit * commit + self.loss_vel * vel
        return torch.stack([recons, vel, commit, total]), rows, idx


def build_objective(net, loss_fn, args, compiled=False):
    """The Objective of args, compiled or not, its gradients averaged over the ranks where there are several."""
    objective = Objective(net, loss_fn, args)
    if compiled:
        objective = torch.compile(objective, fullgraph=True)
    if rank_and_world()[1] > 1:
        # codebook and statistics are no parameters: their update adds up over the ranks by itself
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(objective, [name for name, _ in objective.named_buffers()])
        objective = DistributedDataParallel(objective, gradient_as_bucket_view=True)
    return objective


def train_step(objective, net, optimizer, scaler, chunks, halted):
    """One step on this rank's windows, given as equal parts (B, T, D) on the device. optimizer: fused; scaler: GradScaler, enabled for fp16.

    A loss, latent or gradient that is not finite, on any rank, moves neither weights nor codebook, nor does anything once `halted` () bool.
    Returns a namespace, over the whole batch of all ranks: values (4,) as of Objective, counts (K,) of the codes, the gradient's norm (),
    refused () bool. Everything is decided on the device.
    """
    quantizer, world = net.vqvae.quantizer, rank_and_world()[1]
    if not quantizer.filled:
        with torch.no_grad():  # a copy, so that batch norm sees this batch once
            encoder = copy.deepcopy(net.vqvae.encoder)
            quantizer.init_codebook(torch.cat([quantizer.to_rows(encoder(x.transpose(1, 2))) for x in chunks]))
    optimizer.zero_grad(set_to_none=True)
    values, seen = 0, []
    for n, x in enumerate(chunks, 1):
        with objective.no_sync() if world > 1 and n < len(chunks) else contextlib.nullcontext():
            part, rows, idx = objective(x)
            # the gradient tells every rank: an infinite smooth L1 alone has a finite one
            gate = torch.where(torch.isfinite(part[-1].detach()) & ~halted, 1.0, float("nan"))
            scaler.scale(part[-1] * gate / len(chunks)).backward()
        values = values + part.detach() / (len(chunks) * world)
        seen.append((rows, idx))
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.get_total_norm([p.grad for p in net.parameters() if p.grad is not None])
    refused = ~torch.isfinite(norm)
    rows, idx = seen[0] if len(seen) == 1 else map(torch.cat, zip(*seen))
    counts = quantizer.update(rows, idx, refused)
    optimizer.found_inf = refused.float()
    scaler.step(optimizer)
    scaler.update()
    return SimpleNamespace(values=all_reduce(values), counts=counts, norm=norm, refused=refused)
