"""FID, diversity, R-precision and matching score with the extractors, by the published protocol.

Repetitions share work: a crop or a caption that several of them draw goes through the networks once. m drawn clips, E embedding.
"""
import numpy as np
import torch

from evaluation import metrics
from models.batches_old import BATCH_FRAMES, buckets, can_mix, evaluating, forward_clips
from utils.errors import UserError
from utils.motion_spec import MAX_MOTION_LENGTH


def evaluate_text(net, clips, captioned, draws, extractors, mean, std, seed=0, device=None, batch_frames=BATCH_FRAMES, rank=0, world_size=1,
                  reduce=None):
    """The published table's numbers, for reconstructed (`fid`, `top1` …) and for real motion (`top1_real` …).

    clips: as `load_split` returns, normalised with mean and std (D,); captioned: as `load_captioned` returns; draws: a list of
    `draw(captioned, rng)`, one for each repetition; extractors: with `vectorizer`, and `mean`, `std` or None. seed: of the pairs that
    diversity measures. rank, world_size: this process embeds every world_size-th batch of motions and of captions, all with the same draws;
    `reduce(tensor)` adds a float64 CPU tensor up over the ranks, in place. Returns {name: mean over repetitions}, with `intervals` {name:
    half-width of the 95 % interval}, `text_clips` per repetition and `diversity_pairs`. Raises UserError where fewer clips than one batch
    of 32 have captions.
    """
    if not len(draws[0][0]):
        raise UserError(f"{len(captioned.clip)} captioned clips; FID and R-precision need at least one batch of 32")
    unit = 2 ** net.down_t
    if unit > 32:
        raise UserError(f"a code of this net is {unit} frames; the extractors' protocol draws clips too short for that")
    device = device or next(net.parameters()).device
    extractors = extractors.to(device).eval()
    crops = np.concatenate([np.stack([captioned.clip[entry], start, length], 1) for entry, _, start, length in draws])
    crops, which = np.unique(crops, axis=0, return_inverse=True)
    crops[:, 2] = crops[:, 2] // unit * unit  # as drawn, unless a code is longer than the protocol's four frames
    captions, spoken = np.unique(np.concatenate([caption for _, caption, _, _ in draws]), return_inverse=True)
    share = slice(rank, None, world_size)
    motion = _embed_motion(net, clips, *crops.T, extractors, mean, std, device, batch_frames, share)
    text = _embed_text(captioned, captions, extractors, device, share)
    if reduce:
        reduce(motion)
        reduce(text)
    (real, pred), text = motion.numpy(), text.numpy()
    m = len(draws[0][0])
    pairs = 300 if m > 300 else min(100, m)
    rows = []
    for r, (crop, caption) in enumerate(zip(which.reshape(-1, m), spoken.reshape(-1, m))):
        rng = np.random.default_rng([seed, r])
        row = {"fid": metrics.frechet_distance(*metrics.gaussian(real[crop]), *metrics.gaussian(pred[crop]))}
        for suffix, motion in (("_real", real[crop]), ("", pred[crop])):
            shares, row[f"matching_score{suffix}"] = metrics.retrieval(text[caption], motion)
            row.update({f"top{k}{suffix}": share for k, share in enumerate(shares, 1)})
            row[f"diversity{suffix}"] = metrics.diversity(motion, pairs, rng)
        rows.append(row)
    summary = {name: metrics.confidence([row[name] for row in rows]) for name in rows[0]}
    return {**{name: value for name, (value, _) in summary.items()}, "text_clips": m, "diversity_pairs": pairs, "repetitions": len(draws),
            "intervals": {name: half for name, (_, half) in summary.items()}}


def _embed_motion(net, clips, clip, start, length, extractors, mean, std, device, batch_frames, share=slice(None)):
    """Embeddings of real and reconstructed crops, (2, m, E) float64, of a share of the batches; zeros elsewhere.

    Each crop is reconstructed at its own length.
    """
    own = [mean, std, mean if extractors.mean is None else extractors.mean, std if extractors.std is None else extractors.std]
    mean, std, to_mean, to_std = (torch.as_tensor(np.asarray(a), dtype=torch.float32, device=device) for a in own)
    same = torch.equal(mean, to_mean) and torch.equal(std, to_std)
    result = torch.zeros(2, len(length), extractors.embedding, dtype=torch.float64)
    with evaluating(net):
        for batch in buckets(length, batch_frames, can_mix(net))[share]:
            x, out, _, valid = forward_clips(net, clips, clip[batch], start[batch], length[batch], device)
            lengths = torch.as_tensor(length[batch], device=device).clamp(max=MAX_MOTION_LENGTH)
            for embedded, motion in zip(result, (x, out)):
                if not same:
                    motion = torch.where(valid[..., None], (motion * std + mean - to_mean) / to_std, 0.0)
                embedded[batch] = extractors.embed_motion(motion.float(), lengths).cpu().double()
    return result


def _embed_text(captioned, captions, extractors, device, share=slice(None), batch=256):
    """Embeddings (C, E) float64 of captions (C,), by index, of a share of the batches; zeros elsewhere."""
    table = torch.from_numpy(extractors.vectorizer.vectors).to(device)
    order = np.argsort(captioned.tokens[captions], kind="stable")  # similar lengths together
    result = torch.zeros(len(captions), extractors.embedding, dtype=torch.float64)
    for places in np.split(order, range(batch, len(order), batch))[share]:
        part = captions[places]
        rows, tags, tokens = (torch.from_numpy(array[part]).to(device) for array in (captioned.rows, captioned.tags, captioned.tokens))
        one_hot = torch.nn.functional.one_hot(tags, extractors.text_encoder.pos_emb.in_features).to(table.dtype)
        result[places] = extractors.embed_text(table[rows], one_hot, tokens).cpu().double()
    return result
