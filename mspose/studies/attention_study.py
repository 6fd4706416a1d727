"""Why a run's attention works or collapses: measures of it, in `<run>/attention/`.

`attention.json` holds, besides where it comes from: `layers`, one object per encoder layer with its
`branch`, `layer` (from 1), `tokens`, `entropy` (nats) and its limit log(tokens), `similarity`,
`query_key_gap`, `purity`, the `verdict`, `start` (entropy and similarity before the first step of
the training), `token_similarity` before and after the layer, `worth` where a knock-out was
measured, the same measures per head, and a histogram of purity over queries per head; `decoder`,
one per decoder layer with `entropy`, its limit, `similarity` (of the scenes' queries), `verdict`,
`start`, and these per scene; `start`, where the values at the start come from; `thresholds` of the
verdict; `encoding`, per branch the mean distance of two tokens' encodings over their distance on
the map, of encodings that are added to tokens; `training`, the query-key gap of every logged step,
where there is a log; `knock_out`, see `mspose.studies.knock_out`. All are means over frames,
queries and heads. Similarity and verdict of a single scene's query are null.

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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from mspose.attention.attention_json import read_start, short, short_or_none, start_of, write_study
from mspose.attention.encoding_distance import distance_profile, encoding_distances
from mspose.attention.measures import AttentionMeasures
from mspose.attention.purity import query_purity
from mspose.attention.sample_frames import SampleFrames
from mspose.config import BRANCHES, TrainingSettings
from mspose.data.batches import Batches
from mspose.data.frames import evenly
from mspose.errors import MsposeError
from mspose.evaluation import open_for_run
from mspose.files import whole_file
from mspose.inference import load
from mspose.models.attention_map import AttentionMap
from mspose.models.mstransformer import MSTransformer
from mspose.models.stored import read_construction
from mspose.provenance import provenance
from mspose.run import ATTENTION_FORMAT, ATTENTION_MEASURES, Run, load_model
from mspose.studies.initial_network import initial_network
from mspose.studies.knock_out import evaluate_knock_outs, summarise, worth, write_knock_out_errors
from mspose.verdict import Thresholds, verdict

FRAMES = 64
FRAMES_AT_ONCE = 4
EVALUATED_AT_ONCE = 16  # by the knock-out, which keeps no attention maps
GAPS = "query_key_gap/"
EVALUATION = "median_position_m/train"
"""Logged after the last step of every `training.evaluate_every` epochs."""
BINS = 20  # of the histogram of purity, over 0..1


def study_run(
    run: Path,
    *,
    split: str = "test",
    frames: int | None = None,
    neighbours: int = 10,
    samples: int = 3,
    knock_out: bool = False,
    thresholds: Mapping[str, float] | None = None,
    data: dict[str, Any] | None = None,
    device: str = "auto",
    on_bad_frame: str = "stop",
    progress: bool = True,
) -> dict[str, Any]:
    """Study the attention of a run; writes `attention.json` and `samples.npz`, returns the first.

    The network is the trained one in evaluation mode, in the precision of its weights. Memory is
    bounded on any map: statistics stream over frames, and of attention maps and distances only a
    chunk of rows exists at a time.

    Args:
        frames: how many frames of the split at most, spread evenly over the scenes and within each;
            by default `FRAMES`, and all for the knock-out.
        neighbours: how many neighbours of a query purity counts, see `mspose.attention.purity`.
        samples: how many of the frames are kept for figures; with 0 there is no `samples.npz`.
        knock_out: evaluate the network without its encoders' self-attention as well, and keep the
            errors of its frames in `knock-out.csv`.
        thresholds: of the verdict, by the names in `mspose.verdict.Thresholds`, in place of those
            in the run's settings.
        data: overrides the run's data settings, as in `mspose.evaluation.evaluate_run`.

    Raises:
        MsposeError: the run has no model or no self-attention, the split is not there, or a number
            does not fit.
    """
    encoder_layers(run)  # which refuses runs without self-attention
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
    assert isinstance(network, MSTransformer)
    judged_by = settings.attention.thresholds._replace(**(thresholds or {}))
    parameter = next(network.parameters())
    rows = spread_over_scenes(batches.frames["scene"], FRAMES if frames is None else frames)
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

    layers = measures.encoder_layers(judged_by)
    if not all(math.isfinite(layer[name]) for layer in layers for name in ATTENTION_MEASURES):
        raise MsposeError(
            f"the attention of the model of {run} is not finite: its weights are unusable"
        )
    decoder = measures.decoder_layers(network.scenes, judged_by)
    start, at_start = attention_at_start(run, batches, rows, data)
    for part, found in (("layers", layers), ("decoder", decoder)):
        values_of = {
            (layer["branch"], layer["layer"]): {
                name: layer[name] for name in ("entropy", "similarity")
            }
            for layer in at_start.get(part, ())
            if layer["entropy"] is not None
        }
        for layer in found:
            layer["start"] = values_of.get((layer["branch"], layer["layer"]))
    knocked_out = None
    if knock_out:
        every = np.arange(len(batches.frames)) if frames is None else rows
        batches.batch_size = EVALUATED_AT_ONCE
        errors = evaluate_knock_outs(network, batches, every, progress=progress)
        write_knock_out_errors(Run(run).knock_out_file, errors)
        knocked_out = summarise(errors)
        for layer in layers:
            layer["worth"] = worth(knocked_out, layer["branch"], layer["layer"])
    sides = {layer["branch"]: math.isqrt(layer["tokens"]) for layer in layers}
    distance_of = encoding_distances(network, sides)
    study = {
        "format": ATTENTION_FORMAT,
        "experiment": settings.experiment,
        "variant": settings.variant or run.resolve().parent.name,
        "seed": settings.seed,
        "config_hash": estimator.description.get("config_hash"),
        "dataset": opened.card.name,
        "ground_truth": opened.ground_truth,
        "split": split,
        "frames": len(rows),
        "neighbours": neighbours,
        "quick": settings.quick,
        "thresholds": judged_by._asdict(),
        "start": start,
        "layers": layers,
        "decoder": decoder,
        "knock_out": knocked_out,
        "encoding": {
            branch: {
                "kind": network.settings.position_encoding,
                **distance_profile(distance_NN, sides[branch]),
            }
            for branch, distance_NN in distance_of.items()
        },
        "training": gap_over_training(run, list(sides), settings.training),
        "provenance": provenance(parameter.device),
    }
    if samples:
        arrays = sampled.arrays() | {"scene_names": np.array(network.scenes)}
        for branch, side in sides.items():
            arrays[f"grid/{branch}"] = np.full(2, side)
        for branch, distance_NN in distance_of.items():
            arrays[f"encoding/{branch}"] = distance_NN.astype(np.float32)
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


class StudyMeasures(AttentionMeasures):
    """Measures the encoders' self-attention, and the purity of its query regions."""

    def __init__(self, neighbours: int) -> None:
        """Take the number of neighbours that purity counts."""
        super().__init__()
        self.neighbours = neighbours
        self.histograms: dict[tuple[str, int], Tensor] = {}
        """count_HK by layer: the numbers of queries by purity."""

    def encoder(self, branch: str, layer: int, attention: AttentionMap) -> None:
        """Add the images of one layer in one forward pass."""
        super().encoder(branch, layer, attention)
        key = branch, layer + 1
        purity_BHN = query_purity(attention.query_BHQD, attention.key_BHKD, self.neighbours).cpu()
        self.layers[key].add({"purity": purity_BHN.double().mean(dim=2)})
        # a purity that is on an edge, but for its rounding, belongs to the bin above; 1 to the last
        bin_HM = (BINS * purity_BHN + 1e-3).long().clamp(0, BINS - 1).transpose(0, 1).flatten(1)
        count_HK = torch.stack([bin_M.bincount(minlength=BINS) for bin_M in bin_HM])
        self.histograms[key] = self.histograms.get(key, 0) + count_HK

    def encoder_layers(self, thresholds: Thresholds) -> list[dict[str, Any]]:
        """Return the objects of `layers` in `attention.json`, without start and worth."""
        return [self._encoder_layer(key, thresholds) for key in self.layers]

    def _encoder_layer(self, key: tuple[str, int], thresholds: Thresholds) -> dict[str, Any]:
        layer, count_HK = self.layers[key], self.histograms[key]
        mean = layer.mean()
        share_HK = count_HK.double() / count_HK.sum(dim=1, keepdim=True)
        return {
            "branch": key[0],
            "layer": key[1],
            "tokens": layer.tokens,
            "entropy_limit": short(mean["entropy_limit"]),
            **{name: short(mean[name]) for name in ATTENTION_MEASURES},
            "verdict": layer.verdict(thresholds),
            "start": None,
            "token_similarity": {
                name: short(value) for name, value in self.tokens_of[key].mean().items()
            },
            "worth": None,
            "heads": [
                {name: short(head[name]) for name in ATTENTION_MEASURES} for head in layer.parts()
            ],
            "purity_histogram": {
                "edges": [edge / BINS for edge in range(BINS + 1)],
                "share": [[short(share) for share in share_K] for share_K in share_HK.tolist()],
            },
        }

    def decoder_layers(self, scenes: Sequence[str], thresholds: Thresholds) -> list[dict[str, Any]]:
        """Return the objects of `decoder` in `attention.json`, without start."""

        def of(values: Mapping[str, float]) -> dict[str, Any]:
            measured = values["entropy"], values["similarity"], values["entropy_limit"]
            return {
                "entropy": short(values["entropy"]),
                "similarity": short_or_none(values["similarity"]),
                "verdict": verdict(*measured, thresholds),
            }

        return [
            {
                "branch": branch,
                "layer": number,
                "tokens": layer.tokens,
                "entropy_limit": short(layer.mean()["entropy_limit"]),
                **of(layer.mean()),
                "start": None,
                "scenes": [
                    {"scene": scene, **of(values)}
                    for scene, values in zip(scenes, layer.parts(), strict=True)
                ],
            }
            for (branch, number), layer in self.decoders.items()
        ]


def attention_at_start(
    run: Path, batches: Batches, rows: NDArray[np.int64], data: dict[str, Any] | None
) -> tuple[str, dict[str, Any]]:
    """Find the attention of a run's network before its first step.

    It is what training recorded. Where it recorded nothing, the network is built anew from its seed
    and measured on frames `rows`, if that is the network with which the training began.

    Returns:
        Where it comes from, or why it is unknown, and the content of `attention-at-start.json`,
        empty where it is unknown.
    """
    if (recorded := read_start(run)) is not None:
        return "recorded in training", recorded
    try:
        network = initial_network(run, str(batches.device), data)
    except MsposeError as error:
        return f"unknown: training did not record it, and {error}", {}
    measures = AttentionMeasures()
    with torch.inference_mode():
        for batch in batches.in_order(rows):
            network(batch.image_B3HW, observer=measures)
    return "measured on the network built anew from its seed", start_of(measures)
