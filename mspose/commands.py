"""Commands of `mspose` that join several functions, or check which options go together.

Arguments are parameters before the `*`, options those behind it, and the help is the docstring, see
`cli.py`. What does the work is imported when its command runs, so that `--help` and a misspelt
option are answered without loading PyTorch.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from jsonargparse.typing import (
    ClosedUnitInterval,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from mspose.config import Settings, dashed
from mspose.errors import MsposeError

OnBadFrame = Literal["stop", "skip"]


# train


def train(settings: Settings, *, scenes: list[str] | None = None, progress: bool = True) -> str:
    """Train a model, or continue a run where it stopped.

    Args:
        scenes: the same as --data.scenes, as in --scenes chess fire.
    """
    from mspose.allocator import keep_freed_memory
    from mspose.training import train

    settings = _with_scenes(settings, scenes)
    if not settings.training.recompute_backbone:  # which says that memory is short
        keep_freed_memory()
    folder = train(settings, progress=is_main() and progress)
    return f"{folder}\nevaluate it with: mspose evaluate {folder}"


def evaluate(
    run: Path | None = None,
    *,
    predictions: Path | None = None,
    split: str | None = None,
    given_scene: bool = False,
    thresholds: list[tuple[PositiveFloat, PositiveFloat]] | None = None,
    batch_size: PositiveInt = 32,
    compile: bool = False,
    method: str | None = None,
    device: str = "auto",
    on_bad_frame: OnBadFrame = "stop",
    dataset: str | None = None,
    ground_truth: str | None = None,
    scenes: list[str] | None = None,
    root: str | None = None,
    labels: list[str] | None = None,
    cache: str | None = None,
    progress: bool = True,
) -> str:
    """Predict a split with a run's model and compute medians and recall.

    Args:
        run: folder of a trained or converted run.
        predictions: a predictions file to compute metrics from, in place of a run: a row per image
            with its true and its estimated pose (docs/results.md), compared with the labels of
            --dataset; mspose predict writes no such file.
        split: split to predict (default: test).
        given_scene: use the true scene in place of the predicted one.
        thresholds: recall pairs in metres and degrees, [[0.05,5],[0.25,2]].
        compile: compile the network first, for long splits on a GPU.
        method: with --predictions, a name for tables.
        dataset: another data set than the run's; with --predictions, its name.
        ground_truth: another ground truth than the run's.
    """
    if (run is None) == (predictions is None):
        raise MsposeError(
            "evaluate takes the folder of a run, or --predictions FILE: give one of them"
        )
    data = {"scenes": scenes, "root": root, "labels": labels, "cache": cache}
    idle: dict[str, Any] = {"given_scene": given_scene, "cache": cache, "compile": compile}
    if run:
        idle = {"method": method}
    elif dataset is None:
        idle |= data
    _refuse(idle, f"without effect on {run or predictions}, leave it out")

    from mspose.allocator import keep_freed_memory
    from mspose.evaluation import evaluate_predictions, evaluate_run, summary

    keep_freed_memory()
    data = _given({"dataset": dataset, "ground_truth": ground_truth, **data})
    if predictions is not None:
        metrics, path = evaluate_predictions(
            predictions, thresholds=thresholds or [], split=split, method=method, **data
        )
        return f"{summary(metrics)}\n{path}"
    assert run is not None
    metrics, path = evaluate_run(
        run,
        split=split or "test",
        given_scene=given_scene,
        data=data,
        thresholds=thresholds or [],
        batch_size=batch_size,
        device=device,
        compile=compile,
        on_bad_frame=on_bad_frame,
        progress=is_main() and progress,
    )
    return f"{summary(metrics)}\nreport it with: mspose report {run}\n{path}"


def baselines(
    settings: Settings, *, scenes: list[str] | None = None, progress: bool = True
) -> None:
    """Evaluate baselines: mean training pose, pose of the most similar training image, structure.

    Structure needs the focal length: keypoints matched with similar training images, PnP.

    Args:
        scenes: the same as --data.scenes, as in --scenes chess fire.
    """
    from mspose.data.preparation import render_if_virtual
    from mspose.evaluation import summary
    from mspose.studies.baselines import evaluate_baselines

    settings = _with_scenes(settings, scenes)
    data = settings.data
    render_if_virtual(data.dataset, data.root, data.scenes, progress=progress)
    results = evaluate_baselines(settings, progress=progress)
    for variant, (metrics, path) in results.items():
        print(f"{variant}\n{summary(metrics)}\n{path}")


# look


def table(
    runs: list[str] | None = None,
    *,
    ablation: str | None = None,
    seeds: list[NonNegativeInt] | None = None,
    block: PositiveInt | None = None,
    format: Literal["markdown", "latex", "csv"] = "markdown",
    kind: Literal["median", "quantiles", "recall", "recall-scenes", "auc"] = "median",
    costs: list[str] | None = None,
    published: bool = True,
    dataset: str | None = None,
    ground_truth: str | None = None,
    split: str | None = None,
    digits: NonNegativeInt = 2,
    out: Path | None = None,
) -> str | None:
    """Print the paper-style table of finished runs, beside the published rows.

    Args:
        runs: runs, or folders of runs (default: runs).
        ablation: the table of this ablation, its file or its name, from runs and records.
        seeds: with --ablation, some seeds only.
        block: with --ablation, neighbouring frames that the bootstrap draws together (default: by
            the autocorrelation of the errors).
        format: form of the text.
        kind: median errors; their quantiles; recall; recall of every scene; area under recall.
        costs: further columns: parameters, megabytes, milliseconds_per_image.
        published: show published rows of the same data set (true or false).
        dataset: only runs on this data set; of an ablation, the base experiment.
        ground_truth: only runs on this ground truth.
        split: only this split.
        digits: decimals of metres.
        out: file to write, in place of printing.
    """
    filters: dict[str, Any] = {"ground_truth": ground_truth, "split": split}
    if ablation:
        of_runs = {"kind": kind != "median", "published": not published, "digits": digits != 2}
        of_runs["costs"] = bool(costs)
        _refuse({**of_runs, **filters}, "without effect beside --ablation, leave it out")

        from mspose.studies.ablation.finished import ROOTS
        from mspose.studies.ablation.table import ablation_table

        text = ablation_table(
            ablation, runs or ROOTS, dataset=dataset, seeds=seeds, block=block, format=format
        )
    else:
        idle = {"seeds": seeds, "block": block}
        _refuse(idle, "without effect without --ablation, leave it out")

        from mspose.studies.tables import table_text

        text = table_text(
            runs or ["runs"],
            format=format,
            kind=kind,
            costs=costs or (),
            published=published,
            digits=digits,
            dataset=dataset,
            **filters,
        )
    if out is None:
        return text.removesuffix("\n")
    from mspose.files import whole_file

    with whole_file(out) as file:
        file.write(text)
    return None


# study


def attention(
    runs: list[str],
    *,
    split: str = "test",
    knock_out: bool = False,
    frames: PositiveInt | None = None,
    neighbours: PositiveInt = 10,
    samples: PositiveInt = 3,
    branch: Literal["position", "orientation"] | None = None,
    layer: PositiveInt | None = None,
    head: PositiveInt | None = None,
    projection: Literal["tsne", "pca"] = "tsne",
    uniform: ClosedUnitInterval | None = None,
    similar: ClosedUnitInterval | None = None,
    numbers: bool = True,
    pictures: bool = True,
    out: Path | None = None,
    device: str = "auto",
    on_bad_frame: OnBadFrame = "stop",
    dataset: str | None = None,
    ground_truth: str | None = None,
    scenes: list[str] | None = None,
    root: str | None = None,
    labels: list[str] | None = None,
    cache: str | None = None,
    progress: bool = True,
) -> None:
    """Study the attention of finished runs: what it selects, and what it is worth.

    Entropy, similarity, query-key gap, purity and a verdict per layer, advice, and pictures.

    Args:
        runs: folders of runs; several share their pictures.
        split: split whose frames are used.
        knock_out: measure in metres and degrees what the encoders' self-attention is worth, by
            replacing it in the trained network.
        frames: largest number of frames, spread evenly over the scenes (default: 64; of the
            knock-out, all).
        neighbours: nearest neighbours of a query that purity counts.
        samples: frames that pictures show.
        branch: branch of the query-key space.
        layer: encoder layer that pictures show, from 1 (default: the last).
        head: head that pictures show, from 1 (default: all, or 1).
        projection: projection of queries and keys; pca is fast.
        uniform: entropy, as a share of its limit, from which on attention is called uniform
            (default: as in the run's settings, 0.9).
        similar: similarity of queries from which on it is else called collapsed (default: as in
            the run's settings, 0.9).
        numbers: with false, take those of an earlier call and draw anew.
        pictures: with false, numbers alone.
        out: folder for pictures of several runs together (default: attention/ in their common one).
        ground_truth: another ground truth than the run's.
    """
    data = _given(
        {
            "dataset": dataset,
            "ground_truth": ground_truth,
            "scenes": scenes,
            "root": root,
            "labels": labels,
            "cache": cache,
        }
    )
    if not numbers:
        changed = {
            "split": split != "test",
            "knock_out": knock_out,
            "frames": frames is not None,
            "uniform": uniform is not None,
            "similar": similar is not None,
            "neighbours": neighbours != 10,
            "samples": samples != 3,
            "device": device != "auto",
            "on_bad_frame": on_bad_frame != "stop",
        }
        _refuse(
            {**changed, **data},
            "without effect on the numbers of an earlier call, leave out --numbers false",
        )
    from mspose.allocator import keep_freed_memory
    from mspose.attention.advice import advice
    from mspose.attention.attention_json import label, read_study, study_table
    from mspose.run import Run
    from mspose.studies.attention_study import check_choice, study_run
    from mspose.studies.knock_out import knock_out_grid

    keep_freed_memory()
    folders = [Path(name) for name in dict.fromkeys(map(os.path.abspath, runs))]
    if numbers:
        for folder in folders:
            check_choice(folder, branch, layer, head)
        studies = [
            study_run(
                folder,
                data=data,
                split=split,
                frames=frames,
                neighbours=neighbours,
                samples=samples,
                knock_out=knock_out,
                thresholds=_given({"uniform": uniform, "similar": similar}),
                device=device,
                on_bad_frame=on_bad_frame,
                progress=progress,
            )
            for folder in folders
        ]
    else:
        studies = [read_study(folder) for folder in folders]
    print(study_table(studies))
    if len(knocked_out := knock_out_grid(studies)):
        table = knocked_out.to_markdown(index=False, disable_numparse=True)
        print(f"\n{table}\n\n† the interval includes 0")
    for folder, study in zip(folders, studies, strict=True):
        if not Run(folder).config_file.is_file():  # a record of the study alone
            continue
        lines = advice(study, Run(folder).settings)
        print("\n".join([f"\n{label(study)} (docs/attention.md):", *lines]))
    if not pictures:
        return
    from mspose.studies.attention_figures import draw

    if out is None and len(folders) > 1:
        out = Path(os.path.commonpath(folders)) / "attention"
    drawn = draw(folders, out=out, branch=branch, layer=layer, head=head, projection=projection)
    for path in drawn:
        print(os.path.relpath(path))


def cell(file: Path) -> Path:
    """Make one run of an ablation, or go on with it: train, evaluate, study its attention.

    Args:
        file: its settings, as mspose ablate wrote them into runs/.../cells/.
    """
    from mspose.allocator import keep_freed_memory
    from mspose.config import read_settings
    from mspose.studies.ablation.single_run import complete

    settings = read_settings(file)
    if not settings.training.recompute_backbone:
        keep_freed_memory()
    return complete(settings, progress=False)


def paper(
    runs: list[str] | None = None,
    *,
    out: Path = Path("paper"),
    ablation: list[str] | None = None,
) -> str:
    """Write the tables and figures of the paper that finished runs allow, with an index.

    Tables are Markdown, LaTeX and CSV, figures PDF and PNG. The index names for each what makes it,
    what it was made from and what is missing.

    Args:
        runs: folders of runs and records (default: runs and experiments/results).
        out: folder to write.
        ablation: ablation files (default: those in experiments/ablations/).
    """
    from mspose.studies.paper.writing import make_paper, summary

    pieces = make_paper(runs or [], out, ablations=ablation or [])
    return f"{summary(pieces)}\n{out / 'index.html'}"


def is_main() -> bool:
    """Return True in the one process of torchrun that prints.

    The same as `mspose.distributed.is_main`, which loads PyTorch.
    """
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["RANK"] == "0"


def _with_scenes(settings: Settings, scenes: list[str] | None) -> Settings:
    return replace(settings, data=replace(settings.data, scenes=scenes)) if scenes else settings


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _refuse(options: dict[str, Any], why: str) -> None:
    """Raise MsposeError where one of the options was given."""
    if idle := [f"--{dashed(name)}" for name, value in options.items() if value]:
        raise MsposeError(f"{', '.join(idle)}: {why}")
