"""What several tests need: a small data set made from walks, and arguments of a small run."""
import os
import signal

import numpy as np
import torch

from models.vqvae import HumanVQVAE
from options.option_vq import get_args_parser
from utils.motion_spec import get_spec

SMALL_NET = ("--width", "32", "--code-dim", "32", "--output-emb-width", "32", "--nb-code", "16", "--depth",
             "2", "--device", "cpu")


def make_clip(dataname, frames, seed):
    """Plausible features (frames, D): a root that walks and turns, limbs that swing, contacts that switch."""
    rng, spec = np.random.default_rng(seed), get_spec(dataname)
    time = np.arange(frames)[:, None] / spec.fps
    phase = rng.uniform(0, 2 * np.pi, spec.width)
    clip = 0.2 * np.sin(2 * np.pi * rng.uniform(0.3, 1.2) * time + phase) + rng.normal(0, 0.3, spec.width)
    clip[:, 0] *= 0.05
    clip[:, 1:3] *= 0.05
    clip[:, 3] = 0.9 + 0.05 * np.sin(time[:, 0])
    clip[:, spec.slices["contacts"]] = np.sin(4 * time + phase[:4]) > 0
    return clip.astype(np.float32)


def make_dataset(root, dataname="t2m", lengths=(80, 100, 64, 70, 30, 90, 66, 75), val=2, seed=0):
    """A folder in the HumanML3D layout; returns it. The last `val` clips are the validation split."""
    spec = get_spec(dataname)
    (root / "new_joint_vecs").mkdir(parents=True)
    names = [f"{i:06d}" for i in range(len(lengths))]
    clips = [make_clip(dataname, frames, seed + i) for i, frames in enumerate(lengths)]
    for name, clip in zip(names, clips):
        np.save(root / "new_joint_vecs" / f"{name}.npy", clip)
    every = np.concatenate(clips)
    np.save(root / "Mean.npy", every.mean(0))
    std = every.std(0)
    for part in spec.slices.values():
        std[part] = std[part].mean()
    np.save(root / "Std.npy", std)
    train = names[:len(names) - val]
    for split, ids in (("train", train), ("val", names[len(train):]), ("test", names[len(train):]),
                       ("all", names)):
        (root / f"{split}.txt").write_text("".join(f"{name}\n" for name in ids))
    return root


def small_args(root, out, *flags):
    """Arguments of a small, quick run on `root` into `out`, without pictures."""
    return get_args_parser([*SMALL_NET, "--data-root", str(root), "--out-dir", str(out), "--exp-name", "run",
                            "--batch-size", "4",
                            "--window-size", "32", "--total-iter", "12", "--warm-up-iter", "4",
                            "--print-iter", "5", "--eval-iter", "6",
                            "--save-iter", "5", "--nb-vis", "0", *flags])


def save_small_net(path, root, seed=0, **flags):
    """Save a small net whose codebook is filled from `root`'s clips, with its statistics; return its path.

    It looks as after 12 iterations and 3 of warm-up, for tests that need only a run's file.
    """
    args = get_args_parser([*SMALL_NET, "--data-root", str(root)])
    for name, value in dict(flags, warm_up_iter=4).items():
        setattr(args, name, value)
    torch.manual_seed(seed)
    net = HumanVQVAE.from_args(args)
    mean, std = (np.load(root / f"{name}.npy").astype(np.float64) for name in ("Mean", "Std"))
    clips = [np.load(root / "new_joint_vecs" / f"{name}.npy")[:64] for name in ("000000", "000001", "000002")]
    net(torch.from_numpy(((np.stack(clips) - mean) / std).astype(np.float32)))
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(dict(net=net.state_dict(), args=vars(args), iter=15, mean=torch.from_numpy(mean),
                    std=torch.from_numpy(std), quantizer=net.vqvae.quantizer.training_state()), path)
    return path


def excess(net, x, codes):
    """Return how much farther codes (T',) lie from the latents of x (1, T, D) than the nearest do, and the
    gap to the second nearest. Which of two codes that tie is taken hangs on the last bit."""
    with torch.no_grad():
        z_e = net.vqvae.encoder(x.transpose(1, 2))[0].t()
        distance = torch.cdist(z_e.double(), net.vqvae.quantizer.codes.double())
    best = distance.topk(2, largest=False).values
    taken = distance.gather(1, torch.as_tensor(codes)[:, None])[:, 0]
    return float((taken - best[:, 0]).max()), float((best[:, 1] - best[:, 0]).min())


def signal_at(monkeypatch, step):
    """Have the next training send itself SIGUSR1 in its step-th step."""
    import train_vq
    real, count = train_vq.train_step, [0]

    def counted(*args):
        count[0] += 1
        if count[0] == step:
            os.kill(os.getpid(), signal.SIGUSR1)
        return real(*args)

    monkeypatch.setattr(train_vq, "train_step", counted)
