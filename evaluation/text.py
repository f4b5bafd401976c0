"""FID, diversity, R-precision and matching score with the extractors, by the published protocol."""
import numpy as np
import torch

from evaluation import metrics
from models.batches import BATCH_FRAMES, equal_length_batches, evaluating, forward_clips
from utils.device import all_reduce, rank_and_world
from utils.errors import UserError
from utils.word_vectorizer import POS_TAGS

CAPTIONS = 256  # in a batch


def evaluate_text(net, clips, captioned, draws, extractors, seed=0, batch_frames=BATCH_FRAMES):
    """Return the published table's numbers, of reconstructed motion (`top1` …) and real (`top1_real` …).

    draws: `draw(captioned, rng)` of each repetition. seed: of the pairs that diversity measures.
    The numbers are means over the repetitions; `intervals` holds half-widths of their 95 % intervals.
    Each rank takes a share. Raises UserError where fewer clips than one batch of 32 have captions.
    """
    m, unit = len(draws[0][0]), 2 ** net.down_t
    if not m:
        raise UserError(f"{len(captioned.clip)} captioned clips; FID and R-precision need a batch of 32")
    extractors = extractors.to(next(net.parameters()).device).eval()
    crops = [np.stack([captioned.clip[entry], start, length], 1) for entry, _, start, length in draws]
    crops, which = np.unique(np.concatenate(crops), axis=0, return_inverse=True)
    captions, spoken = np.unique([caption for _, caption, _, _ in draws], return_inverse=True)
    clip, start, length = crops.T
    length = length // unit * unit  # as drawn, unless a code is longer than the protocol's four frames
    real, pred = _embed_motion(net, clips, clip, start, length, extractors, batch_frames).numpy()
    text = _embed_text(captioned, captions, extractors).numpy()
    pairs, rows = 300 if m > 300 else min(100, m), []
    for r, (crop, caption) in enumerate(zip(which.reshape(-1, m), spoken.reshape(-1, m))):
        rng = np.random.default_rng([seed, r])
        row = {"fid": metrics.frechet_distance(*metrics.gaussian(real[crop]), *metrics.gaussian(pred[crop]))}
        for end, motion in (("_real", real[crop]), ("", pred[crop])):
            shares, row[f"matching_score{end}"] = metrics.retrieval(text[caption], motion)
            row.update({f"top{k}{end}": share for k, share in enumerate(shares, 1)})
            row[f"diversity{end}"] = metrics.diversity(motion, pairs, rng)
        rows.append(row)
    table = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    intervals = {name: 1.96 * float(column.std()) / len(rows) ** 0.5 for name, column in table.items()}
    return dict({name: float(column.mean()) for name, column in table.items()}, intervals=intervals,
                repetitions=len(draws), text_clips=m, diversity_pairs=pairs)


def _embed_motion(net, clips, clip, start, length, extractors, batch_frames):
    """Return embeddings (2, m, E) float64 of m real crops and their reconstructions."""
    own = (net.mean, net.std)
    seen = own if extractors.mean is None else (extractors.mean, extractors.std)
    like, (rank, world) = next(extractors.parameters()), rank_and_world()
    mean, std, to_mean, to_std = (torch.as_tensor(np.asarray(a)).to(like) for a in (*own, *seen))
    result = torch.zeros(2, len(length), extractors.embedding, dtype=torch.float64)
    with evaluating(net):
        for batch in equal_length_batches(length, batch_frames)[rank::world]:
            x, out, _ = forward_clips(net, clips, clip[batch], start[batch], length[batch[0]])
            lengths = torch.as_tensor(length[batch], device=x.device)
            for embedded, motion in zip(result, (x, out)):
                motion = (motion * std + mean - to_mean) / to_std
                embedded[batch] = extractors.embed_motion(motion, lengths).cpu().double()
    return all_reduce(result)


def _embed_text(captioned, captions, extractors):
    """Return embeddings (C, E) float64 of captions (C,), by index."""
    (rank, world), device = rank_and_world(), next(extractors.parameters()).device
    table = torch.from_numpy(extractors.vectorizer.vectors).to(device)
    result = torch.zeros(len(captions), extractors.embedding, dtype=torch.float64)
    for start in range(0, len(captions), CAPTIONS)[rank::world]:
        part = slice(start, start + CAPTIONS)
        arrays = (array[captions[part]] for array in (captioned.rows, captioned.tags, captioned.tokens))
        rows, tags, tokens = (torch.from_numpy(array).to(device) for array in arrays)
        one_hot = torch.nn.functional.one_hot(tags, len(POS_TAGS)).to(table.dtype)
        result[part] = extractors.text_encoder(table[rows], one_hot, tokens).cpu().double()
    return all_reduce(result)
