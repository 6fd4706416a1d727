"""Made-up studies of attention, as `attention.json` and `samples.npz` hold them."""

import math

import numpy as np

from mspose.attention.attention_json import write_study
from mspose.verdict import verdict

EDGES = [round(0.05 * edge, 2) for edge in range(21)]


def layer(branch, number, tokens, *, entropy, similarity, purity, heads=4, gap=3.0):
    """One encoder layer; `entropy` as a share of its limit."""
    rng = np.random.default_rng(100 * number + tokens)
    limit = math.log(tokens)
    share = []
    for _ in range(heads):
        counts, _ = np.histogram(rng.beta(8 * purity, 8 * (1.0001 - purity), 400), EDGES)
        share.append((counts / counts.sum()).tolist())
    head = {"entropy": entropy * limit, "similarity": similarity, "purity": purity}
    head["query_key_gap"] = gap
    return {
        "branch": branch,
        "layer": number,
        "tokens": tokens,
        "entropy": entropy * limit,
        "entropy_limit": limit,
        "similarity": similarity,
        "query_key_gap": gap,
        "purity": purity,
        "verdict": verdict(entropy * limit, similarity, limit),
        "start": None,
        "token_similarity": {"before": 0.1 * number, "after": 0.1 * number + 0.1},
        "worth": None,
        "heads": [head] * heads,
        "purity_histogram": {"edges": EDGES, "share": share},
    }


def study(
    variant="neither",
    *,
    layers=(2, 2),
    tokens=(196, 784),
    entropy=0.9,
    similarity=0.5,
    purity=0.9,
    gap=4.0,
    kind="learned",
    steps=1000,
    epoch=180,
    seed=0,
):
    """The content of an `attention.json`; `layers` and `tokens` of the position and of the
    orientation branch.
    """
    rng = np.random.default_rng(seed)
    branches = dict(zip(("position", "orientation"), zip(layers, tokens, strict=True), strict=True))
    shift = 0.02 * seed
    listed = [
        layer(
            branch,
            number + 1,
            count,
            entropy=entropy - 0.05 * number - shift,
            similarity=similarity,
            purity=purity,
        )
        for branch, (depth, count) in branches.items()
        for number in range(depth)
    ]
    step = list(range(0, steps, 10))
    reach = np.arange(0, 20.5, 0.5)
    training = {
        "step": step,
        "steps_per_epoch": epoch,
        "query_key_gap": {
            branch: (
                (gap + 3 * np.exp(-np.array(step) / 60) + rng.normal(0, 0.05, len(step))).tolist()
            )
            for branch, (depth, _) in branches.items()
            if depth
        },
    }
    return {
        "format": 3,
        "experiment": "made-up",
        "variant": variant,
        "seed": seed,
        "config_hash": "0" * 12,
        "dataset": "virtual",
        "split": "test",
        "frames": 4,
        "neighbours": 10,
        "quick": False,
        "provenance": {},
        "start": "unknown: made up",
        "layers": listed,
        "decoder": [],
        "knock_out": None,
        "encoding": {
            branch: {
                "kind": kind,
                "grid_distance": reach.tolist(),
                "token_distance": (
                    (5 * (1 - np.exp(-reach / 4)) if kind == "sine" else 0 * reach + 4).tolist()
                ),
            }
            for branch in branches
            if kind in ("learned", "sine", "sine-normalized")
        },
        "training": training if steps else None,
    }


def knock_out(layers=(2, 2), seed=0, size_m=0.01):
    """The object `knock_out` of an `attention.json`: nothing does worse than the other two."""
    rng = np.random.default_rng(seed)
    depth = dict(zip(("position", "orientation"), layers, strict=True))
    wholes = [(branch, None) for branch in ("both", *depth)]
    places = wholes + [(name, n + 1) for name, count in depth.items() for n in range(count)]
    rows = []
    for branch, number in places:
        for by in ("mean", "own", "nothing"):
            row = {"branch": branch, "layer": number, "by": by}
            for error, size in (("position_m", size_m), ("orientation_deg", 0.3)):
                difference = size * (rng.normal(0.2) + 3 * (by == "nothing"))
                low, high = difference - size, difference + size
                found = {"median": 10 * size + difference, "difference": difference}
                row[error] = {**found, "low": low, "high": high}
            matters = any(row[error]["low"] > 0 for error in ("position_m", "orientation_deg"))
            rows.append({**row, "worth": "matters" if matters else "does not matter"})
    intact = {"position_m": 0.1, "orientation_deg": 3.0}
    return {"frames": 40, "level": 0.95, "resamples": 2000, "intact": intact, "rows": rows}


def softmax(score):
    weight = np.exp(score - score.max(axis=-1, keepdims=True))
    return weight / weight.sum(axis=-1, keepdims=True)


def samples(
    *,
    layers=(2, 2),
    sides=(4, 6),
    scenes=("attic", "cellar"),
    frames=2,
    heads=2,
    pixels=24,
    points=400,
    seed=0,
):
    """The content of a `samples.npz` whose queries and keys are drawn at random; attention is
    computed from them.
    """
    rng = np.random.default_rng(seed)
    arrays = {
        "image_F": rng.integers(0, 256, (frames, pixels, pixels, 3), dtype=np.uint8),
        "names": np.array([f"frame-{frame}.png" for frame in range(frames)]),
        "scenes": np.array([scenes[frame % len(scenes)] for frame in range(frames)]),
        "scene_names": np.array(scenes),
    }
    for branch, depth, side in zip(("position", "orientation"), layers, sides, strict=True):
        tokens = side * side
        map_shape = (side, side)
        for number in range(1, 3):
            weight = softmax(3 * rng.normal(size=(frames, heads, len(scenes), tokens)))
            arrays[f"decoder/{branch}/{number}/attention"] = weight.reshape(
                *weight.shape[:3], side, side
            ).astype(np.float16)
        if not depth:
            continue
        chosen = np.unique(np.linspace(0, tokens - 1, 3).astype(int))
        kept = np.unique(np.linspace(0, tokens - 1, min(points, tokens)).astype(int))
        arrays[f"grid/{branch}"] = np.array(map_shape)
        arrays[f"encoder/{branch}/queries"] = np.stack(np.divmod(chosen, side), axis=1)
        arrays[f"space/{branch}/tokens"] = kept
        arrays[f"encoding/{branch}"] = rng.random((tokens, tokens)).astype(np.float32)
        for number in range(1, depth + 1):
            query, key = rng.normal(size=(2, frames, heads, tokens, 8))
            weight = softmax(query @ key.swapaxes(-1, -2))
            name = f"encoder/{branch}/{number}"
            votes = (weight.argmax(axis=-1)[..., None] == np.arange(tokens)).sum(axis=2)
            arrays[f"{name}/attention"] = (
                weight[:, :, chosen].reshape(frames, heads, -1, *map_shape).astype(np.float16)
            )
            arrays[f"{name}/received"] = (
                weight.mean(axis=2).reshape(frames, heads, *map_shape).astype(np.float32)
            )
            arrays[f"{name}/votes"] = votes.reshape(frames, heads, *map_shape).astype(np.int16)
            for head in range(heads):
                for kind, points_ND in (("query", query[0, head]), ("key", key[0, head])):
                    arrays[f"space/{branch}/{number}/{head + 1}/{kind}"] = points_ND[kept].astype(
                        np.float32
                    )
    return arrays


def write_run(run, content, arrays=None):
    """A run folder with a study, and samples where they are given."""
    write_study(run, content)
    if arrays is not None:
        np.savez(run / "attention" / "samples.npz", **arrays)
    return run
