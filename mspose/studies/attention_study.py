"""Why a run's self-attention works or collapses: measures of its encoders, in `<run>/attention/`.

`attention.json` holds, besides where it comes from: `layers`, one object per encoder layer with its
`branch`, `layer` (from 1), `tokens`, `entropy` (nats) and its limit log(tokens), `similarity`,
`query_key_gap`, `purity`, the `verdict`, the same measures per head, and a histogram of purity over
queries per head; `thresholds` of the verdict; `encoding`, per branch the mean distance of two
tokens' encodings over their distance on the map, of encodings that are added to tokens; `training`,
the query-key gap of every logged step, where there is a log. All are means over frames, queries and
heads.

`samples.npz` holds what figures of a few frames need, as plain arrays. F sample frames, H heads, M
chosen queries, S scenes, P chosen tokens, D channels per head, N tokens of a map of h times w,
row-major; layers and heads from 1:

    image_F         (F, height, width, 3) uint8, the crops that the network gets
    names, scenes   (F,) text: each frame's image and scene
    scene_names     (S,) text: the model's scenes, in the order of the decoder's queries
    grid/<branch>   (2,): h, w
    encoder/<branch>/queries
                    (M, 2): row and column of the chosen queries; the first is the centre
    encoder/<branch>/<layer>/attention
                    (F, H, M, h, w) float16: attention of each chosen query; sums to 1
    encoder/<branch>/<layer>/received
                    (F, H, h, w) float32: mean attention, over all queries, that each key receives
    encoder/<branch>/<layer>/votes
                    (F, H, h, w) int16: number of queries that attend most to this key
    decoder/<branch>/<layer>/attention
                    (F, H, S, h, w) float16: attention of each scene's query
    space/<branch>/tokens
                    (P,): numbers of the tokens whose queries and keys follow, of the first frame
    space/<branch>/<layer>/<head>/query, .../key
                    (P, D) float32, as they enter the attention map
    encoding/<branch>
                    (N, N) float32: distances of tokens' encodings, where they are added to tokens

Arrays of `encoder` and `space` are there for branches with encoder layers, those of `decoder` for
both.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from mspose.attention.attention_json import short, write_study
from mspose.attention.encoding_distance import distance_profile, token_distances
from mspose.attention.measures import AttentionMeasures
from mspose.attention.purity import query_purity
from mspose.attention.sample_frames import SampleFrames
from mspose.config import BRANCHES, TrainingSettings
from mspose.data.frames import evenly
from mspose.errors import MsposeError
from mspose.evaluation import open_for_run
from mspose.files import whole_file
from mspose.inference import load
from mspose.models.attention_map import SIMILAR, SPREAD, AttentionMap
from mspose.models.mstransformer import MSTransformer
from mspose.models.network import PoseNetwork
from mspose.models.stored import read_construction
from mspose.models.token_positions import TOKEN_POSITIONS
from mspose.provenance import provenance
from mspose.run import ATTENTION_FORMAT, ATTENTION_MEASURES, Run, load_model

FRAMES_AT_ONCE = 4
GAPS = "query_key_gap/"
EVALUATION = "median_position_m/train"
"""Logged after the last step of every `training.evaluate_every` epochs."""
BINS = 20  # of the histogram of purity, over 0..1


def study_run(
    run: Path,
    *,
    split: str = "test",
    frames: int = 64,
    neighbours: int = 10,
    samples: int = 3,
    data: dict[str, Any] | None = None,
    device: str = "auto",
    on_bad_frame: str = "stop",
    progress: bool = True,
) -> dict[str, Any]:
    """Study the self-attention in the encoders of a run; writes `attention.json` and `samples.npz`,
    returns the first.

    The network is the trained one in evaluation mode, in the precision of its weights. Memory is
    bounded on any map: statistics stream over frames, and of attention maps and distances only a
    chunk of rows exists at a time.

    Args:
        frames: how many frames of the split at most, spread evenly over the scenes and within each.
        neighbours: how many neighbours of a query purity counts, see `mspose.attention.purity`.
        samples: how many of the frames are kept for figures; with 0 there is no `samples.npz`.
        data: overrides the run's data settings, as in `mspose.evaluation.evaluate_run`.

    Raises:
        MsposeError: the run has no model or no self-attention, the split is not there, or a number
            does not fit.
    """
    layers_of, _ = encoder_layers(run)
    for name, value, least in (
        ("frames", frames, 1),
        ("neighbours", neighbours, 1),
        ("samples", samples, 0),
    ):
        if value < least:
            raise MsposeError(f"{name}: expected at least {least}, found {value}")
    estimator = load(run, device)
    opened = open_for_run(
        run,
        estimator,
        split,
        data=data,
        batch_size=FRAMES_AT_ONCE,
        on_bad_frame=on_bad_frame,
        progress=progress,
    )
    batches, settings, network = opened.batches, opened.settings, estimator.network
    parameter = next(network.parameters())
    rows = spread_over_scenes(batches.frames["scene"], frames)
    measures, sampled = StudyMeasures(neighbours), SampleFrames()
    with torch.inference_mode():
        with tqdm(
            total=len(rows), desc="studying attention", unit="frame", disable=not progress
        ) as bar:
            for batch in batches.in_order(rows):
                network(batch.image_B3HW.to(parameter.dtype), observer=measures)
                bar.update(len(batch.row))
        for batch in batches.in_order(rows[evenly(len(rows), samples)]):
            sampled.frames(batch, batches)
            network(batch.image_B3HW.to(parameter.dtype), observer=sampled)

    layers = measures.as_json()
    if not all(math.isfinite(layer[name]) for layer in layers for name in ATTENTION_MEASURES):
        raise MsposeError(
            f"the attention of the model of {run} is not finite: its weights are unusable"
        )
    distance_of = encoding_distances(
        network, {layer["branch"]: layer["tokens"] for layer in layers}
    )
    study = {
        "format": ATTENTION_FORMAT,
        "experiment": settings.experiment,
        "variant": settings.variant or run.resolve().parent.name,
        "seed": settings.seed,
        "config_hash": estimator.description.get("config_hash"),
        "dataset": opened.dataset,
        "ground_truth": opened.ground_truth,
        "split": split,
        "frames": len(rows),
        "neighbours": neighbours,
        "quick": settings.quick,
        "thresholds": {"similar": SIMILAR, "spread": SPREAD},
        "layers": layers,
        "encoding": {
            branch: {"kind": network.settings.position_encoding, **_profile(distance_NN)}
            for branch, distance_NN in distance_of.items()
        },
        "training": gap_over_training(run, list(layers_of), settings.training),
        "provenance": provenance(parameter.device),
    }
    if samples:
        arrays = sampled.arrays() | {"scene_names": np.array(network.scenes)}
        arrays |= {
            f"grid/{layer['branch']}": np.full(2, math.isqrt(layer["tokens"])) for layer in layers
        }
        arrays |= {
            f"encoding/{branch}": values.astype(np.float32)
            for branch, values in distance_of.items()
        }
        with whole_file(Run(run).samples_file, "wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return write_study(run, study)


def encoder_layers(run: Path) -> tuple[dict[str, int], int]:
    """Return the number of encoder layers per branch that has any, and the number of heads, of a
    run's model.

    Raises MsposeError where the run holds no model, or one without self-attention in encoders.
    """
    settings, _ = read_construction(load_model(run)[1], run)
    if settings.kind != MSTransformer.kind:
        raise MsposeError(
            f"{run}: a model of kind {settings.kind} has no queries and keys whose"
            " attention could be studied: give a run of an MS-Transformer"
        )
    layers = {branch: getattr(settings, f"{branch}_encoder_layers") for branch in BRANCHES}
    if not any(layers.values()):
        raise MsposeError(
            f"{run}: its model has no encoder layers, so there is no self-attention to study"
        )
    return {branch: count for branch, count in layers.items() if count}, settings.heads


def check_choice(run: Path, branch: str | None, layer: int | None, head: int | None) -> None:
    """Refuse a branch, layer or head (from 1) that a run's model does not have; None stands for
    any.
    """
    layers, heads = encoder_layers(run)
    if branch is not None and branch not in layers:
        raise MsposeError(
            f"{run}: its model has no encoder layers in the branch {branch}, only in"
            f" {', '.join(layers)}"
        )
    most = max(layers.values()) if branch is None else layers[branch]
    for name, value, highest in (("layer", layer, most), ("head", head, heads)):
        if value is not None and not 1 <= value <= highest:
            raise MsposeError(
                f"{name}: expected 1 to {highest}, as the model of {run} has, found {value}"
            )


def spread_over_scenes(scene_N: pd.Series, most: int) -> NDArray[np.int64]:
    """Return at most `most` rows, rising: as many of each scene, and evenly spread within it."""
    rows_of = list(scene_N.groupby(scene_N).indices.values())
    share, rest = divmod(most, len(rows_of))
    chosen = [rows[evenly(len(rows), share + (index < rest))] for index, rows in enumerate(rows_of)]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def gap_over_training(
    run: Path, branches: Sequence[str], options: TrainingSettings
) -> dict[str, Any] | None:
    """Read the query-key gap of the logged steps of a training; None without a log of it.

    Returns:
        `step` (from 0), `query_key_gap` (per branch, the gap at these steps), `steps_per_epoch`.
    """
    logged = Run(run).scalars()
    tags = {branch: GAPS + branch for branch in branches}
    if not {EVALUATION, *tags.values()} <= set(logged.columns):
        return None
    gap = logged[list(tags.values())].dropna()
    first_evaluation = int(logged[EVALUATION].dropna().index[0])
    return {
        "step": gap.index.tolist(),
        "query_key_gap": {
            branch: [short(value) for value in gap[tag]] for branch, tag in tags.items()
        },
        "steps_per_epoch": (first_evaluation + 1) // min(options.evaluate_every, options.epochs),
    }


@dataclass
class LayerPurity:
    """Purity of one layer's query regions: its sum over images, and counts of queries by purity."""

    tokens: int
    sum_H: Tensor
    count_HK: Tensor

    @classmethod
    def of(cls, attention: AttentionMap, neighbours: int) -> Self:
        """Measure the images of one call."""
        purity_BHN = query_purity(attention.query_BHQD, attention.key_BHKD, neighbours).cpu()
        # a purity that is on an edge, but for its rounding, belongs to the bin above; 1 to the last
        bin_HM = (BINS * purity_BHN + 1e-3).long().clamp(0, BINS - 1).transpose(0, 1).flatten(1)
        count_HK = torch.stack([bin_M.bincount(minlength=BINS) for bin_M in bin_HM])
        return cls(purity_BHN.shape[2], purity_BHN.double().mean(dim=2).sum(dim=0), count_HK)

    def __add__(self, other: "LayerPurity") -> "LayerPurity":
        return LayerPurity(self.tokens, self.sum_H + other.sum_H, self.count_HK + other.count_HK)


class StudyMeasures(AttentionMeasures):
    """Measures the encoders' self-attention, and the purity of its query regions."""

    def __init__(self, neighbours: int) -> None:
        """Take the number of neighbours that purity counts."""
        super().__init__()
        self.neighbours = neighbours
        self.purity: dict[tuple[str, int], LayerPurity] = {}

    def encoder(self, branch: str, layer: int, attention: AttentionMap) -> None:
        """Add the images of one layer in one forward pass."""
        super().encoder(branch, layer, attention)
        key, purity = (branch, layer + 1), LayerPurity.of(attention, self.neighbours)
        self.purity[key] = self.purity[key] + purity if key in self.purity else purity

    def as_json(self) -> list[dict[str, Any]]:
        """Return the objects of `layers` in `attention.json`."""
        return [self._layer(*key) for key in self.layers]

    def _layer(self, branch: str, number: int) -> dict[str, Any]:
        layer, purity = self.layers[branch, number], self.purity[branch, number]
        purity_H = purity.sum_H / layer.images
        heads = [
            {**head, "purity": value}
            for head, value in zip(layer.heads(), purity_H.tolist(), strict=True)
        ]
        mean = {**layer.mean(), "purity": float(purity_H.mean())}
        share_HK = purity.count_HK.double() / purity.count_HK.sum(dim=1, keepdim=True)
        return {
            "branch": branch,
            "layer": number,
            "tokens": purity.tokens,
            "entropy_limit": short(mean["entropy_limit"]),
            **{name: short(mean[name]) for name in ATTENTION_MEASURES},
            "verdict": layer.verdict,
            "heads": [{name: short(head[name]) for name in ATTENTION_MEASURES} for head in heads],
            "purity_histogram": {
                "edges": [edge / BINS for edge in range(BINS + 1)],
                "share": [[short(share) for share in share_K] for share_K in share_HK.tolist()],
            },
        }


def encoding_distances(
    network: PoseNetwork, tokens_of: dict[str, int]
) -> dict[str, NDArray[np.float64]]:
    """Compute per branch (N, N), the distances of tokens' encodings, where encoders add these to
    their tokens.
    """
    if TOKEN_POSITIONS[network.settings.position_encoding].encoder is not None:
        return {}
    distance_of, encoding = {}, network.get_submodule("position_encoding")
    parameter = next(network.parameters())
    for branch, tokens in tokens_of.items():
        side = math.isqrt(tokens)
        with torch.inference_mode():
            added_NC = encoding(side, side, parameter.dtype, parameter.device).added_NC
        distance_of[branch] = token_distances(added_NC)
    return distance_of


def _profile(distance_NN: NDArray[np.float64]) -> dict[str, Sequence[float]]:
    side = math.isqrt(len(distance_NN))
    grid, token = distance_profile(distance_NN, side, side)
    return {"grid_distance": grid.tolist(), "token_distance": [short(value) for value in token]}
