"""The commands of `mspose`, as `cli.py` offers them: arguments are parameters before the `*`,
options those behind it, and the help is the docstring.

A command checks which options go together and calls the module that does the work. That module is
imported when its command runs, so that `--help` and a misspelt option are answered without loading
PyTorch.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse.typing import (
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    restricted_number_type,
)

from mspose.config import Settings, SlurmSettings
from mspose.errors import MsposeError

if TYPE_CHECKING:
    AtLeastTwo = int
    Port = int
else:
    AtLeastTwo = restricted_number_type("AtLeastTwo", int, (">=", 2))
    Port = restricted_number_type("Port", int, [(">=", 0), ("<=", 65535)])

OnBadFrame = Literal["stop", "skip"]
COMMON = {
    "batch_size": "images at a time",
    "cache": "folder of the frame cache",
    "dataset": "another data set than the run's: name or path of a card",
    "device": "auto, cpu, cuda, cuda:1, ...",
    "ground_truth": "which poses, where a data set has several",
    "labels": "label files in place of the data set's own",
    "on_bad_frame": "broken or missing images: stop, or leave them out",
    "quiet": "no progress bars",
    "root": "folder of the scenes, in place of the card's",
    "scenes": "some scenes only",
}
"""Help of the options that mean the same in several commands; a docstring's own goes before it."""


class Overrides(dict[str, Any]):
    """Settings that were given on the command line, by dotted name, without the defaults."""


# data


def get_data(
    *,
    dataset: str = "7scenes",
    scenes: list[str] | None = None,
    root: str | None = None,
    archive: str | None = None,
    quiet: bool = False,
) -> None:
    """Download and unpack a published data set, or render a virtual one.

    Args:
        dataset: name or path of a card.
        archive: a local zip, or a folder of <scene>.zip, in place of the download.
    """
    from mspose.data.preparation import get_data

    get_data(dataset, scenes or (), root, archive, progress=not quiet)


def import_data(
    kind: Literal["colmap", "nerfstudio", "tum", "kapture"],
    paths: list[str],
    *,
    out: str,
    images: list[str] | None = None,
    scenes: list[str] | None = None,
    scale: PositiveFloat = 1.0,
    focal_px: PositiveFloat | None = None,
    missing: OnBadFrame | None = None,
    on_bad_frame: OnBadFrame = "stop",
    copy: bool = False,
    split: Literal["blocks", "sequence", "list", "given"] = "blocks",
    block: PositiveInt | None = None,
    test_every: AtLeastTwo | None = None,
    margin: NonNegativeInt | None = None,
    test_sequences: list[str] | None = None,
    test_list: Path | None = None,
    train_list: Path | None = None,
    trajectory: list[str] | None = None,
    image_list: list[str] | None = None,
    tolerance: PositiveFloat | None = None,
    quiet: bool = False,
) -> None:
    """Make a data set of your own from COLMAP, nerfstudio, TUM or kapture folders.

    Args:
        kind: format of the folders.
        paths: one folder per scene (nerfstudio: or transforms.json).
        out: folder to make; its name is the data set's.
        images: folder of the images, one per path.
        scenes: names of the scenes, one per path.
        scale: metres per unit of the poses.
        focal_px: focal length in pixels, in place of the files'.
        missing: images that are not on disk (default: stop; nerfstudio: skip).
        on_bad_frame: broken poses: stop, or leave them out.
        copy: copy the images too, so that the folder can travel.
        split: how to choose test frames.
        block: with blocks, frames per block (default: 50, or fewer).
        test_every: with blocks, every how many-th is for testing (default: 5).
        margin: with blocks, training frames dropped beside a test block.
        test_sequences: with sequence, those for testing.
        test_list: with list, file with a test image per line.
        train_list: with list, file with a training image per line (default: the rest).
        trajectory: with tum, file of poses, one per path.
        image_list: with tum, file of images, one per path.
        tolerance: with tum, seconds between image and pose (default: 0.02).
    """
    from mspose.tools.importing.importer import import_data
    from mspose.tools.importing.splits import SplitBy

    sequences = test_sequences or []
    by = SplitBy(split, block, test_every, margin, sequences, test_list, train_list)
    text = import_data(
        kind,
        paths,
        out,
        split=by,
        images=images or [],
        scenes=scenes or [],
        scale=scale,
        focal_px=focal_px,
        missing=missing,
        on_bad_frame=on_bad_frame,
        copy=copy,
        trajectory=trajectory or [],
        image_list=image_list or [],
        tolerance=tolerance,
        progress=not quiet,
    )
    print(text)


def check_data(
    folder: str,
    *,
    scenes: list[str] | None = None,
    root: str | None = None,
    splits: list[str] | None = None,
    ground_truth: str | None = None,
    labels: list[str] | None = None,
    out: str | None = None,
    quiet: bool = False,
) -> None:
    """Read everything of a data set, say what is wrong or odd, draw the trajectories.

    Args:
        folder: folder with a card in it, a card, or a data set's name.
        splits: some splits only (default: all).
        out: folder of picture and check.json (default: check/ beside the card).
    """
    from mspose.tools.checking.check import check_data

    checked = check_data(
        folder,
        scenes=scenes or [],
        root=root,
        splits=splits or [],
        ground_truth=ground_truth,
        labels=labels or [],
        out=out,
        progress=not quiet,
    )
    print(checked.text)
    if checked.has_errors:
        sys.exit(1)


def cache_data(
    *,
    config: str | None = None,
    dataset: str | None = None,
    scenes: list[str] | None = None,
    root: str | None = None,
    resize: PositiveInt | None = None,
    split: str | None = None,
    ground_truth: str | None = None,
    labels: list[str] | None = None,
    cache: str | None = None,
    on_bad_frame: OnBadFrame | None = None,
    quiet: bool = False,
) -> None:
    """Decode and resize every frame now, not on first use.

    Args:
        config: experiment whose data settings count where none follows.
        dataset: name or path of a card (default: 7scenes).
        resize: short side of the frames in pixels (default: 256).
        split: one split only (default: train and test).
        cache: folder of the frame cache (default: datasets/.cache).
    """
    from mspose.config import read_settings
    from mspose.data.preparation import cache_data
    from mspose.resources import experiment_file

    base = read_settings(experiment_file(config)) if config else Settings()
    changes: dict[str, Any] = {
        "dataset": dataset or (None if config else "7scenes"),
        "scenes": scenes,
        "root": root,
        "ground_truth": ground_truth,
        "labels": labels,
        "resize": resize,
        "cache": cache,
    }
    data = replace(base.data, **{name: value for name, value in changes.items() if value})
    text = cache_data(
        data.dataset,
        [split] if split else ["train", "test"],
        short_side=data.resize,
        on_bad_frame=on_bad_frame or base.on_bad_frame,
        progress=not quiet,
        **data.source(),
    )
    print(text)


def list_data() -> None:
    """List the data sets that there are, and which of their scenes are here."""
    from mspose.data.preparation import list_data

    print(list_data())


# train


def train(settings: Settings, *, scenes: list[str] | None = None, quiet: bool = False) -> None:
    """Train a model, or continue a run where it stopped.

    Args:
        scenes: the same as --data.scenes, as in --scenes chess fire.
    """
    from mspose.allocator import keep_freed_memory
    from mspose.training import train

    settings = _with_scenes(settings, scenes)
    if not settings.training.recompute_backbone:  # which says that memory is short
        keep_freed_memory()
    folder = train(settings, progress=is_main() and not quiet)
    _print(f"{folder}\nevaluate it with: mspose evaluate {folder}")


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
    quiet: bool = False,
) -> None:
    """Predict a split with a run's model and compute medians and recall.

    Args:
        run: folder of a trained or converted run.
        predictions: a predictions file to compute metrics from, in place of a run.
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
    idle = {"method": method} if run else {"given_scene": given_scene, **data, "compile": compile}
    _refuse(idle, f"without effect on {run or predictions}, leave it out")

    from mspose.allocator import keep_freed_memory
    from mspose.evaluation import evaluate_predictions, evaluate_run, summary

    keep_freed_memory()
    if predictions is not None:
        metrics, path = evaluate_predictions(
            predictions,
            thresholds=thresholds or [],
            dataset=dataset,
            ground_truth=ground_truth,
            split=split,
            method=method,
        )
        return _print(f"{summary(metrics)}\n{path}")
    assert run is not None
    metrics, path = evaluate_run(
        run,
        split=split or "test",
        given_scene=given_scene,
        data=_given({"dataset": dataset, "ground_truth": ground_truth, **data}),
        thresholds=thresholds or [],
        batch_size=batch_size,
        device=device,
        compile=compile,
        on_bad_frame=on_bad_frame,
        progress=is_main() and not quiet,
    )
    return _print(f"{summary(metrics)}\nreport it with: mspose report {run}\n{path}")


def baselines(settings: Settings, *, scenes: list[str] | None = None, quiet: bool = False) -> None:
    """Evaluate two baselines: the mean training pose, and the most similar training image's.

    Args:
        scenes: the same as --data.scenes, as in --scenes chess fire.
    """
    from mspose.data.preparation import render_if_virtual
    from mspose.evaluation import summary
    from mspose.studies.baselines import evaluate_baselines

    settings = _with_scenes(settings, scenes)
    data = settings.data
    render_if_virtual(data.dataset, data.root, data.scenes, progress=not quiet)
    results = evaluate_baselines(settings, progress=not quiet)
    for variant, (metrics, path) in results.items():
        print(f"{variant}\n{summary(metrics)}\n{path}")


# look


def table(
    runs: list[str] | None = None,
    *,
    ablation: str | None = None,
    seeds: list[NonNegativeInt] | None = None,
    format: Literal["markdown", "latex", "csv"] = "markdown",
    kind: Literal["median", "recall", "recall-scenes"] = "median",
    published: bool = True,
    dataset: str | None = None,
    ground_truth: str | None = None,
    split: str | None = None,
    digits: NonNegativeInt = 2,
    out: Path | None = None,
) -> None:
    """Print the paper-style table of finished runs, beside the published rows.

    Args:
        runs: runs, or folders of runs (default: runs).
        ablation: the table of this ablation, its file or its name, from runs and records.
        seeds: with --ablation, some seeds only.
        format: form of the text.
        kind: errors; recall; recall of every scene.
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
        _refuse({**of_runs, **filters}, "without effect beside --ablation, leave it out")

        from mspose.studies.ablation.finished import ROOTS
        from mspose.studies.ablation.table import ablation_table

        text = ablation_table(ablation, runs or ROOTS, dataset=dataset, seeds=seeds, format=format)
    else:
        _refuse({"seeds": seeds}, "without effect without --ablation, leave it out")

        from mspose.studies.tables import table_text

        text = table_text(
            runs or ["runs"],
            format=format,
            kind=kind,
            published=published,
            digits=digits,
            dataset=dataset,
            **filters,
        )
    if out is None:
        sys.stdout.write(text)
        return
    from mspose.files import whole_file

    with whole_file(out) as file:
        file.write(text)


def report(
    runs: list[str],
    *,
    out: str | None = None,
    split: str | None = None,
    title: str | None = None,
) -> None:
    """Write one self-contained HTML page about the results of runs.

    It has a table, recall curves, errors, trajectories, frames, training, attention and settings,
    needs no network and can be passed on.

    Args:
        runs: folders of evaluated runs, or folders that hold some.
        out: the page (default: report.html in the run's folder, of several in the current one).
        split: another evaluation than that of the test split, such as train.
        title: title of the page.
    """
    from mspose.tools.report import make_report

    print(make_report(runs, out=out, split=split, title=title))


def view(
    run: Path,
    *,
    split: str = "test",
    scene: str | None = None,
    root: str | None = None,
    port: Port = 8080,
    host: str = "127.0.0.1",
) -> None:
    """Show the poses of a run's predictions in a 3-D viewer in the browser.

    Truth against estimate. Nothing is predicted anew; the page is served until Ctrl-C, to this
    machine alone.

    Args:
        run: folder of an evaluated run.
        split: split whose predictions are shown.
        scene: scene to begin with (default: the first; the page has all).
        root: folder of the scenes' images, in place of the run's.
        port: the first that is free from this one on; 0: any.
        host: address to listen at (default: this machine alone).
    """
    from mspose.tools.viewer.server import view_run

    view_run(run, split=split, scene=scene, root=root, host=host, port=port)


# study


def attention(
    runs: list[str],
    *,
    split: str = "test",
    frames: PositiveInt = 64,
    neighbours: PositiveInt = 10,
    samples: PositiveInt = 3,
    branch: Literal["position", "orientation"] | None = None,
    layer: PositiveInt | None = None,
    head: PositiveInt | None = None,
    projection: Literal["tsne", "pca"] = "tsne",
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
    quiet: bool = False,
) -> None:
    """Study the self-attention in the encoders of finished runs.

    Entropy, similarity, query-key gap, purity and a verdict per layer, and pictures.

    Args:
        runs: folders of runs; several share their pictures.
        split: split whose frames are used.
        frames: largest number of frames, spread evenly over the scenes.
        neighbours: nearest neighbours of a query that purity counts.
        samples: frames that pictures show.
        branch: branch of the query-key space.
        layer: encoder layer that pictures show, from 1 (default: the last).
        head: head that pictures show, from 1 (default: all, or 1).
        projection: projection of queries and keys; pca is fast.
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
            "frames": frames != 64,
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
    from mspose.attention.attention_json import read_study, study_table
    from mspose.studies.attention_study import check_choice, study_run

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
                device=device,
                on_bad_frame=on_bad_frame,
                progress=not quiet,
            )
            for folder in folders
        ]
    else:
        studies = [read_study(folder) for folder in folders]
    print(study_table(studies))
    if not pictures:
        return
    from mspose.studies.attention_figures import draw

    if out is None and len(folders) > 1:
        out = Path(os.path.commonpath(folders)) / "attention"
    drawn = draw(folders, out=out, branch=branch, layer=layer, head=head, projection=projection)
    for path in drawn:
        print(os.path.relpath(path))


def ablate(
    file: str,
    *,
    dataset: str | None = None,
    seeds: list[NonNegativeInt] | None = None,
    variants: list[str] | None = None,
    runs: str | None = None,
    jobs: PositiveInt | None = None,
    launcher: Literal["local", "slurm"] | None = None,
    quick: bool = False,
    record: str | None = None,
    quiet: bool = False,
    slurm: SlurmSettings,
    overrides: Overrides,
) -> None:
    """Run the variants of an ablation file over its seeds, and print their table.

    What has a result is skipped, what was interrupted goes on. Settings given here hold for all
    variants; what is not given is as in the base experiment, whatever default stands below.

    Args:
        file: an ablation file, or its name in experiments/ablations/.
        dataset: another base experiment, its name in experiments/ or a path; auto: real data that
            is here.
        seeds: in place of the file's, as in --seeds 0 1.
        variants: some rows only, by their labels, as in --variants qka both.
        runs: folder of all runs (default: runs).
        jobs: cells at once (default: 1; quick: the cores; slurm: all).
        launcher: this machine (default), or a cluster.
        quick: toy size, to see that everything runs.
        record: folder for a copy of the results without models, to keep in git.
        quiet: no progress table.
    """
    from mspose.studies.ablation.runner import ablate

    chosen = {"runs": runs, "launcher": launcher}
    text, failures = ablate(
        file,
        dataset=dataset,
        seeds=seeds,
        variants=variants or (),
        jobs=jobs,
        quick=quick,
        record=record,
        slurm=slurm,
        overrides=overrides,
        progress=not quiet,
        **_given(chosen),
    )
    print(text)
    if failures:
        raise MsposeError(
            f"{len(failures)} failed: {', '.join(failures)}; the same command tries again"
        )


def cell(file: Path, *, progress: bool = False) -> None:
    """Run one cell of an ablation, or go on with it: train, evaluate, study its attention.

    Args:
        file: its settings, as mspose ablate wrote them into runs/.../cells/.
        progress: show progress bars.
    """
    from mspose.allocator import keep_freed_memory
    from mspose.config import read_settings
    from mspose.studies.ablation.single_run import complete

    settings = read_settings(file)
    if not settings.training.recompute_backbone:
        keep_freed_memory()
    print(complete(settings, progress=progress))


def paper(
    runs: list[str] | None = None,
    *,
    out: Path = Path("paper"),
    ablation: list[str] | None = None,
) -> None:
    """Write the tables and figures of the paper that finished runs allow, with an index.

    Tables are Markdown, LaTeX and CSV, figures PDF and PNG. The index names for each what makes it,
    what it was made from and what is missing.

    Args:
        runs: folders of runs and records (default: runs and experiments/results).
        out: folder to write.
        ablation: ablation files (default: those in experiments/ablations/).
    """
    from mspose.studies.paper import make_paper, summary

    pieces = make_paper(runs or [], out, ablations=ablation or [])
    print(f"{summary(pieces)}\n{out / 'index.html'}")


# deploy


def predict(
    run: str,
    images: list[str],
    *,
    scene: str | None = None,
    format: Literal["csv", "jsonl", "tum", "colmap"] = "csv",
    out: Path | None = None,
    every: PositiveInt | None = None,
    fps: PositiveFloat | None = None,
    focal_px: PositiveFloat | None = None,
    batch_size: PositiveInt = 16,
    device: str = "auto",
    on_bad_frame: OnBadFrame = "stop",
    quiet: bool = False,
) -> None:
    """Estimate the poses of images, of the images in folders, or of videos.

    A pose is the camera centre in metres and the camera-to-world quaternion w x y z, in the scene
    that the model takes each image for. Poses are written as they are computed.

    Args:
        run: folder of a run or of a model, or user/name on the hub.
        images: images; folders, for all images in them and in folders below; videos that OpenCV
            opens.
        scene: the scene of all images (default: predicted for each).
        format: csv; JSON lines; TUM trajectory (timestamp tx ty tz qx qy qz qw); COLMAP's
            images.txt, world-to-camera.
        out: file to write, in place of printing; with colmap, folder of a model without points.
        every: of a video, one frame in so many (default: all).
        fps: images a second, for timestamps of tum (default: the numbers that their names are, else
            1).
        focal_px: focal length of the images in their own pixels, compared with training and used
            for COLMAP's cameras (default: from EXIF; for cameras, else as in training).
        quiet: no progress bar.
    """
    from mspose.allocator import keep_freed_memory
    from mspose.tools.prediction.predict import predict_poses

    keep_freed_memory()
    predict_poses(
        run,
        images,
        out=out,
        format=format,
        scene=scene,
        every=every,
        fps=fps,
        focal_px=focal_px,
        batch_size=batch_size,
        device=device,
        on_bad_frame=on_bad_frame,
        progress=not quiet,
    )
    if out is not None:
        print(out)


def export(
    run: str,
    *,
    format: Literal["onnx", "torch-export"],
    out: Path | None = None,
    scene: str | None = None,
) -> None:
    """Write a run's model as one file for deployment: images of any size in, poses out.

    It is kept only where it answers as the model does.

    Args:
        run: folder of a run or of a model, or user/name on the hub.
        format: onnx, for onnxruntime and others; torch-export, for PyTorch without mspose.
        out: file to write (default: model.onnx or model.pt2 in the run's folder).
        scene: the scene of all images (default: the file predicts it).
    """
    from mspose.tools.exporting.export import export_run

    print(export_run(run, format, out, scene))


def convert(
    checkpoint: Path,
    *,
    out: Path,
    scenes: list[str] | None = None,
    dataset: str | None = None,
) -> None:
    """Turn a checkpoint of the released MS-Transformer or ActMST code into a run.

    Args:
        checkpoint: a .pth or .safetensors file of tensors.
        out: folder of the run to write.
        scenes: scene names in the order of the checkpoint's indices.
        dataset: data set it was trained on (default: by the number of scenes).
    """
    from mspose.tools.conversion import convert_checkpoint

    print(convert_checkpoint(checkpoint, out, scenes=scenes, dataset=dataset))


def bench(
    part: Literal["train", "predict", "load", "all"] = "all",
    *,
    device: str = "auto",
    repeat: PositiveInt = 7,
    compile: bool = False,
    quick: bool = False,
    json: str | None = None,
    markdown: str | None = None,
) -> None:
    """Measure speed and memory against a plain reference, and print a table.

    Args:
        part: what to measure.
        repeat: samples of each measurement, whose median is taken.
        compile: measure our side through torch.compile as well.
        quick: toy sizes, to see that everything runs.
        json: file for all measurements, experiments/results/bench-<machine>.json.
        markdown: file for the table, beside printing it.
    """
    from mspose.tools.bench import bench

    bench(
        part,
        device=device,
        repeat=repeat,
        compile=compile,
        quick=quick,
        json=json,
        markdown=markdown,
    )


def is_main() -> bool:
    """Return True in the one process of torchrun that prints.

    The same as `mspose.distributed.is_main`, which loads PyTorch.
    """
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["RANK"] == "0"


def _print(text: str) -> None:
    if is_main():
        print(text)


def _with_scenes(settings: Settings, scenes: list[str] | None) -> Settings:
    return replace(settings, data=replace(settings.data, scenes=scenes)) if scenes else settings


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _refuse(options: dict[str, Any], why: str) -> None:
    """Raise MsposeError where one of the options was given."""
    if idle := [f"--{name}" for name, value in options.items() if value]:
        raise MsposeError(f"{', '.join(idle)}: {why}")
