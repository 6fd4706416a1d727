"""Measure speed and memory against a plain reference: `mspose bench`.

Both sides, `mspose` and `mspose.tools.eager_reference`, have equal weights, see equal batches and
run under the same settings of the memory allocator. Times are taken in turn in one process, so that
a machine that slows down slows both; memory is taken in a process of its own for each side.

A measurement has a name such as `ours_train_b8_bfloat16` or `reference_predict_b1`; a ratio is the
reference's median seconds (or bytes) divided by ours: above 1 ours is better.

- `train_b8_*`: seconds of a step: forward, loss with QKA, backward, Adam. The reference runs in
  float32. `*_recomputed`: ours with `training.recompute_backbone`.
- `predict_b*`: seconds of a forward pass; of the network as trained. Without a precision
  in the name, and for the reference always, in float32.
- `load_*`: seconds to load an image on one core. The reference decodes a PNG file by PIL, resizes,
  crops and normalises it; ours crops and normalises one from the warm frame cache. `*_jitter`: with
  random crop and colour jitter on both sides.
- `memory_b32`: peak of a float32 training step: resident memory of the whole process, on a GPU that
  of PyTorch's tensors. Ours with `training.recompute_backbone`, both with the allocator's defaults,
  as `mspose train` leaves them then; `*_not_recomputed`: without, both keeping freed memory, as
  everywhere else.
- `share_of_matrix_rate`: operations per second (matrix products and convolutions of the reference's
  forward pass, three times that for training) divided by those that this machine reaches in
  products of large matrices of that precision.
- `time_by_operation`: shares of one call's time by PyTorch operation, without the operations that
  it calls, the largest first.
"""

import itertools
import json as json_format
import logging
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jsonargparse.typing import PositiveInt
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mspose.allocator import keep_freed_memory
from mspose.config import BRANCHES, AugmentationSettings
from mspose.data.augmentation import Augmentation
from mspose.data.batches import Batch, Batches
from mspose.data.cache import open_cache
from mspose.data.frames import CAMERA_TO_WORLD, frame_table
from mspose.errors import MsposeError
from mspose.files import whole_file
from mspose.inference import SMALL_BATCH, resolve_device
from mspose.losses import PRECISION, Objective, PoseLoss
from mspose.models.backbone import IMAGENET_MEAN, IMAGENET_STD
from mspose.models.compilation import Compiled
from mspose.models.mstransformer import MSTransformer
from mspose.models.network import PoseOutput
from mspose.provenance import provenance
from mspose.tools.eager_reference import EagerReference, reference_batches, reference_transform

log = logging.getLogger("mspose")
Part = Literal["train", "predict", "load", "all"]

FORMAT = 2  # 1: the sides' allocator settings differed, unless a measurement's name says otherwise
PRECISIONS = ("float32", "bfloat16")
TRAINED, PREDICTED, MEMORY = 8, (1, 32), 32  # images in a batch
SMALLER = (4, 8)  # batches from which memory is extrapolated where the whole batch does not fit
LOADED = {"cpu": 8, "cuda": 64}  # images in a batch of the loaders
FRAME_SIZES = ((640, 480), (1920, 1080))
SHORTEST = 0.05  # seconds of one sample; a faster call is repeated within it
OPERATIONS_LISTED = 8
QKA_WEIGHT = 0.1
SCENES = ("chess", "fire", "heads", "office", "pumpkin", "redkitchen", "stairs")


@dataclass(frozen=True)
class Workload:
    """Sizes of what is measured."""

    architecture: dict[str, Any]
    """Arguments of `MSTransformer`."""
    image: int = 224
    """Side in pixels of what the network sees."""
    resize: int = 256
    """Short side of a frame in the cache."""
    matrix: int = 2048
    """Rows of the matrices that the matrix rate is measured on: a power of two."""
    memory_per_image: int = 8 * 10**8
    """Bytes per image that a training step of the reference needs."""
    frames: tuple[int, int] = (256, 16)
    """Frames in the cache, and how many of them the reference loads."""


PAPER = Workload({"scenes": SCENES, "backbone": "efficientnet_b0", "pretrained": False})
LAYERS = ("encoder_layers", "decoder_layers")
TOY = Workload(
    {"scenes": SCENES[:3], "backbone": "test_efficientnet", "pretrained": False}
    | {"dim": 16, "heads": 2, "feedforward": 16, "head_hidden": 16}
    | {f"{branch}_{layers}": 1 for branch in BRANCHES for layers in LAYERS},
    image=64,
    resize=72,
    matrix=256,
    memory_per_image=3 * 10**7,
    frames=(2, 1),
)


def bench(
    part: Part = "all",
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
        json: file for all measurements: experiments/results/bench-<machine>.json
        markdown: file for the table, beside printing it.

    Raises:
        MsposeError: the device is not there, a process failed, or a file cannot be written.
    """
    measured = Results(resolve_device(device), TOY if quick else PAPER, repeat)
    if part in ("train", "all"):
        measure_memory(measured)  # first, while this process is small
    keep_freed_memory()
    if part in ("load", "all"):
        for width, height in FRAME_SIZES:
            measure_loading(measured, width, height)
    if part in ("train", "all"):
        measure_training(measured, compile)
    if part in ("predict", "all"):
        measure_prediction(measured, compile)
    results = measured.as_dict()
    table = make_table(results)
    print(table, end="", flush=True)
    for name, text in ((json, json_format.dumps(results, indent=2) + "\n"), (markdown, table)):
        if name is not None:
            with whole_file(name) as file:
                file.write(text)


@dataclass
class Results:
    """Measurements by name, and the ratios that compare them."""

    device: torch.device
    workload: Workload
    repeat: int
    samples: dict[str, list[float]] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)
    """Number in each sample."""
    peak_bytes: dict[str, float] = field(default_factory=dict)
    compared: dict[str, tuple[str, str]] = field(default_factory=dict)
    """For each ratio, the measurement of the reference and ours."""
    time_by_operation: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, samples: Sequence[float], images: int, reference: str) -> None:
        """Add samples in seconds of `images` images each; compare ours with `reference`."""
        self.samples[name], self.images[name] = list(samples), images
        if name != reference:
            self.compared[name.removeprefix("ours_")] = reference, name

    def note(self, text: str) -> None:
        """Say in the log and in the results what was left out or is unusual."""
        log.warning("%s", text)
        self.notes.append(text)

    def as_dict(self) -> dict[str, Any]:
        """Compute medians, ratios and rates, and return all that the JSON file holds."""
        operations = operations_per_image(self.workload)
        rate = {
            name: matrix_rate(PRECISION[name], self.device, self.workload.matrix, self.repeat)
            for name in PRECISIONS
        }
        seconds = {name: statistics.median(samples) for name, samples in self.samples.items()}
        images_per_second = {name: self.images[name] / seconds[name] for name in seconds}
        share = {}
        for name, images in images_per_second.items():
            if "load" not in name:
                work = operations["train" if "train" in name else "predict"]
                share[name] = work * images / rate["bfloat16" if "bfloat16" in name else "float32"]
        amount = seconds | self.peak_bytes
        return {
            "format": FORMAT,
            "about": __doc__,
            "machine": describe_machine(self.device),
            "quick": self.workload is TOY,
            "repeat": self.repeat,
            "workload": asdict(self.workload),
            "operations_per_image": operations,
            "matrix_operations_per_second": rate,
            "ratio": {
                name: amount[reference] / amount[ours]
                for name, (reference, ours) in self.compared.items()
            },
            "compared": self.compared,
            "seconds": seconds,
            "images_per_second": images_per_second,
            "share_of_matrix_rate": share,
            "time_by_operation": self.time_by_operation,
            "peak_bytes": self.peak_bytes,
            "samples": self.samples,
            "notes": self.notes,
        }


class Call(NamedTuple):
    """Something to time: a function without arguments, and the forward pass that it runs."""

    run: Callable[[], object]
    forward: Callable[..., Any]


def make_sides(workload: Workload, device: torch.device) -> tuple[MSTransformer, nn.Module]:
    """Our network and the reference, with equal weights."""
    torch.manual_seed(0)
    network = MSTransformer(**workload.architecture)
    return network.to(device), EagerReference(network).to(device)


def random_batch(workload: Workload, count: int, device: torch.device) -> Batch:
    """`count` random images with labels, the same in every call."""
    generator = torch.Generator().manual_seed(count)
    image_B3HW = torch.randn(count, 3, workload.image, workload.image, generator=generator)
    return Batch(
        image_B3HW=image_B3HW.to(device),
        position_B3=torch.randn(count, 3, generator=generator).to(device),
        orientation_B4=torch.randn(count, 4, generator=generator).to(device),
        scene_B=(torch.arange(count) % len(workload.architecture["scenes"])).to(device),
        row=np.arange(count),
        whole=count,
    )


def our_training_step(
    network: MSTransformer, batch: Batch, precision: str = "float32", compile: bool = False
) -> Call:
    """One step as the training loop does it: forward, loss, backward, Adam."""
    loss_of = PoseLoss(qka_weight=QKA_WEIGHT).to(batch.image_B3HW.device)
    objective = Objective(network.train(), loss_of, precision, compile=compile)
    weights = list(objective.parameters())
    optimizer = torch.optim.Adam(weights, lr=1e-4, eps=1e-10, weight_decay=1e-4, fused=True)

    def step() -> None:
        loss, _ = objective(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, math.inf)
        optimizer.step()

    return Call(step, objective.estimate)


def reference_training_step(reference: nn.Module, batch: Batch) -> Call:
    """The same step as the released code does it, in float32."""
    reference.train()
    loss_of = PoseLoss(qka_weight=QKA_WEIGHT).to(batch.image_B3HW.device)
    weights = [*reference.parameters(), *loss_of.parameters()]
    optimizer = torch.optim.Adam(weights, lr=1e-4, eps=1e-10, weight_decay=1e-4)

    def step() -> None:
        output = reference(batch.image_B3HW, batch.scene_B)
        loss = loss_of(output, batch.position_B3, batch.orientation_B4, batch.scene_B)
        optimizer.zero_grad()
        torch.stack(list(loss.values())).sum().backward()
        optimizer.step()

    return Call(step, reference)


def prediction(
    network: nn.Module, batch: Batch, precision: str = "float32", compile: bool = False
) -> Call:
    """A forward pass as evaluation does it, of a network in evaluation mode."""
    device = batch.image_B3HW.device
    small = device.type == "cuda" and len(batch.row) <= SMALL_BATCH
    forward = Compiled(network.forward, small=small) if compile else network.forward

    def predict() -> PoseOutput:
        with (
            torch.inference_mode(),
            torch.autocast(device.type, PRECISION[precision], enabled=precision != "float32"),
        ):
            return forward(batch.image_B3HW)

    return Call(predict, forward)


def measure_training(results: Results, compile: bool) -> None:
    """Time a training step of the reference, ours, and ours with the backbone computed twice."""
    log.info("measuring training steps")
    ours, reference = make_sides(results.workload, results.device)
    batch = random_batch(results.workload, TRAINED, results.device)
    name = f"train_b{TRAINED}"
    calls = {f"reference_{name}": reference_training_step(reference, batch)}
    for precision, compiled in _variants(compile):
        step = our_training_step(ours, batch, precision, bool(compiled))
        calls[f"ours_{name}_{precision}{compiled}"] = step
    recomputing, _ = make_sides(results.workload, results.device)
    recomputing.recompute_backbone = True
    calls[f"ours_{name}_float32_recomputed"] = our_training_step(recomputing, batch)
    time_network(results, calls, TRAINED)


def measure_prediction(results: Results, compile: bool) -> None:
    """Time a forward pass of either side."""
    log.info("measuring prediction")
    ours, reference = make_sides(results.workload, results.device)
    ours.eval()
    reference.eval()
    for count in PREDICTED:
        batch = random_batch(results.workload, count, results.device)
        name = f"predict_b{count}"
        calls = {f"reference_{name}": prediction(reference, batch)}
        for precision, compiled in _variants(compile):
            suffix = compiled if precision == "float32" else f"_{precision}{compiled}"
            calls[f"ours_{name}{suffix}"] = prediction(ours, batch, precision, bool(compiled))
        time_network(results, calls, count)


def _variants(compile: bool) -> Iterator[tuple[str, str]]:
    """(precision, "" or "_compiled") of what is measured of our side."""
    return itertools.product(PRECISIONS, ("", "_compiled") if compile else ("",))


def time_network(results: Results, calls: Mapping[str, Call], images: int) -> None:
    """Time the calls in turn, and compare ours with the reference, which is the first."""
    if any(isinstance(call.forward, Compiled) for call in calls.values()):
        torch.compiler.reset()  # a function is compiled for few kinds of calls, of all networks
    runs = {name: call.run for name, call in calls.items()}
    samples = interleaved(runs, device=results.device, repeat=results.repeat)
    reference = next(iter(calls))
    for name, (run, forward) in calls.items():
        if isinstance(forward, Compiled) and forward.chosen is forward.function:
            results.note(f"{name} was not measured: torch.compile cannot be used here")
            continue
        results.add(name, samples[name], images, reference)
        if not isinstance(forward, Compiled):
            results.time_by_operation[name] = time_by_operation(run, results.device)


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    *,
    device: torch.device,
    repeat: int,
    warm_up: int = 2,
    shortest: float = SHORTEST,
) -> dict[str, list[float]]:
    """Take `repeat` samples of the seconds of every call, in the order A B C A B C ...

    Before that each is called `warm_up` times; the last of these says how many calls make a sample
    of at least `shortest` seconds.
    """
    times = {}
    for name, call in calls.items():
        for _ in range(warm_up):
            seconds = _seconds(call, 1, device)
        times[name] = max(1, math.ceil(shortest / max(seconds, 1e-6)))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeat):
        for name, call in calls.items():
            samples[name].append(_seconds(call, times[name], device))
    return samples


def _seconds(call: Callable[[], object], times: int, device: torch.device) -> float:
    synchronize = partial(torch.cuda.synchronize, device) if device.type == "cuda" else int
    synchronize()
    start = time.perf_counter()
    for _ in range(times):
        call()
    synchronize()
    return (time.perf_counter() - start) / times


def time_by_operation(call: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Shares of one call's time that its most costly PyTorch operations take, the largest first."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler writes to stderr
    activities = {torch.profiler.ProfilerActivity.CPU}
    if device.type == "cuda":
        activities.add(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        call()
    attribute = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    times = {
        event.key: getattr(event, attribute)
        for event in profiler.key_averages()
        if event.key.startswith("aten::")
    }
    total = sum(times.values())
    largest = sorted(times, key=lambda name: -times[name])[:OPERATIONS_LISTED]
    return {name: times[name] / total for name in largest if times[name]}


def measure_loading(results: Results, width: int, height: int) -> None:
    """Time loading on one core: PNG files by PIL, one image at a time, against the frame cache.

    Both end with normalised batches on the device. With jitter, crops are random and colours change
    on both sides.
    """
    log.info("measuring loading, %dx%d", width, height)
    workload, device = results.workload, results.device
    cached, decoded = workload.frames
    crop: dict[str, Any] = {"crop": workload.image, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    with tempfile.TemporaryDirectory(prefix="mspose-bench-") as temporary:
        folder = Path(temporary)
        frames = write_frames(folder, width, height, cached)
        files = [folder / image for image in frames["image"][:decoded]]
        frames, cache = open_cache(
            frames, folder, short_side=workload.resize, folder=folder / "cache", progress=False
        )
        count = LOADED[device.type]
        batches = Batches(
            frames, cache, scenes=["library"], batch_size=count, device=device, **crop
        )
        for jitter in (False, True):
            transform = reference_transform(
                resize=workload.resize, random_crop=jitter, jitter=jitter, **crop
            )
            name = f"load_{width}x{height}" + ("_jitter" if jitter else "")
            reference = f"reference_{name}"
            drawn = partial(
                batches.epoch,
                0,
                0,
                equalize_scenes=False,
                augmentation=Augmentation(AugmentationSettings()) if jitter else None,
            )
            read = partial(reference_batches, files, transform, count)
            calls = {
                reference: partial(_load, read, device),
                f"ours_{name}": partial(_load, drawn, device),
            }
            with one_core():
                samples = interleaved(calls, device=device, repeat=results.repeat, warm_up=1)
            for side, loaded in ((reference, decoded), (f"ours_{name}", cached)):
                seconds = [sample / loaded for sample in samples[side]]
                results.add(side, seconds, 1, reference)


def write_frames(folder: Path, width: int, height: int, frames: int) -> pd.DataFrame:
    """Write PNG files of smooth pictures with the noise of a camera's sensor; return their table.

    Without noise of a grey level the files would be smaller and faster to decode than photographs.
    """
    rng = np.random.default_rng(0)
    pictures = min(frames, 8)  # further frames are the same files under other names
    for number in range(frames):
        path = folder / f"{number:06d}.png"
        if number >= pictures:
            path.hardlink_to(folder / f"{number % pictures:06d}.png")
            continue
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        image_HW3 = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
        noisy_HW3 = image_HW3 + rng.normal(0.0, 1.0, image_HW3.shape)
        Image.fromarray(noisy_HW3.round().clip(0, 255).astype(np.uint8)).save(path)
    return frame_table(
        dataset=f"bench-{width}x{height}",
        ground_truth="none",
        split="train",
        scene=["library"] * frames,
        sequence=["seq-01"] * frames,
        image=[f"{number:06d}.png" for number in range(frames)],
        position_B3=np.zeros((frames, 3)),
        orientation=np.tile([1.0, 0.0, 0.0, 0.0], (frames, 1)),
        convention=CAMERA_TO_WORLD,
        where=str,
        source=str(folder),
    )


def _load(batches: Callable[[], Iterable[Batch | Tensor]], device: torch.device) -> None:
    for batch in batches():
        if isinstance(batch, Tensor):  # of the reference; our batches are on the device
            batch.to(device)


@contextmanager
def one_core() -> Iterator[None]:
    """Run on one core: PIL uses no more, and ours is not to win by using more."""
    threads, cores = torch.get_num_threads(), os.sched_getaffinity(0)
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)


def measure_memory(results: Results) -> None:
    """Measure peak memory of a training step of either side, ours with the backbone computed twice
    and once.

    Where the machine has too little, the peak is extrapolated from two smaller batches.
    """
    log.info("measuring memory")
    needed, free = results.workload.memory_per_image * MEMORY, free_memory(results.device)
    for suffix, recompute in (("", True), ("_not_recomputed", False)):
        ratio = f"memory_b{MEMORY}{suffix}"
        for side in ("reference", "ours"):
            run = partial(run_alone, side, results.workload, results.device, recompute)
            if free >= needed:
                (peak,) = run((MEMORY,))
            else:
                small, large = run(SMALLER)
                slope = (large - small) / (SMALLER[1] - SMALLER[0])
                peak = round(large + slope * (MEMORY - SMALLER[1]))
                results.note(
                    f"{side}_{ratio} is extrapolated from batches {SMALLER[0]} and {SMALLER[1]}:"
                    f" up to {needed / 1e9:.0f} GB are needed, {free / 1e9:.1f} GB are free"
                )
            results.peak_bytes[f"{side}_{ratio}"] = peak
        results.compared[ratio] = f"reference_{ratio}", f"ours_{ratio}"


def run_alone(
    side: str, workload: Workload, device: torch.device, recompute: bool, counts: Sequence[int]
) -> list[int]:
    """Run `training_memory` in a fresh process, since the allocator's settings and the highest
    memory hold for a whole process. Raises MsposeError where it fails.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        threads = torch.get_num_threads()
        task = pool.submit(training_memory, side, workload, device, recompute, counts, threads)
        try:
            return task.result()
        except RuntimeError as error:  # of PyTorch, or of a process that the system has ended
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise MsposeError(
                f"a training step of {side} at batch {counts[-1]} failed, most likely for want of"
                f" memory: {reason}"
            ) from error


def training_memory(
    side: str,
    workload: Workload,
    device: torch.device,
    recompute: bool,
    counts: Sequence[int],
    threads: int,
) -> list[int]:
    """Most memory in bytes that this process has had after two training steps of each batch size,
    on a GPU that of PyTorch's tensors. The sizes grow; freed memory is kept unless the backbone is
    computed twice, as by `mspose train`.
    """
    # if memory runs out, the system is to end this process and no other
    Path("/proc/self/oom_score_adj").write_text("1000", encoding="utf-8")
    torch.set_num_threads(threads)
    if not recompute:
        keep_freed_memory()
    ours, reference = make_sides(workload, device)
    ours.recompute_backbone = recompute
    peaks = []
    for count in counts:
        batch = random_batch(workload, count, device)
        if side == "ours":
            step = our_training_step(ours, batch)
        else:
            step = reference_training_step(reference, batch)
        for _ in range(2):  # Adam's state is there from the second on
            step.run()
        if device.type == "cuda":
            peaks.append(torch.cuda.max_memory_allocated(device))
        else:  # VmHWM: the ru_maxrss of getrusage starts at the size of the parent process
            peaks.append(kernel_bytes("self/status", "VmHWM"))
    return peaks


def free_memory(device: torch.device) -> int:
    """Bytes that the device can still give away."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return kernel_bytes("meminfo", "MemAvailable")


def kernel_bytes(file: str, name: str) -> int:
    """Bytes that a line of a file in /proc states in kB."""
    lines = Path("/proc", file).read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Processor, cores, memory (bytes), versions and settings that times depend on."""
    about = {
        **provenance(device),
        "device_type": device.type,
        "cpu": provenance("cpu")["device"],
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "memory_bytes": kernel_bytes("meminfo", "MemTotal"),
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT"),
    }
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        about |= {"cuda": torch.version.cuda, "gpu_memory_bytes": memory}
    return about


def matrix_rate(dtype: torch.dtype, device: torch.device, size: int, repeat: int) -> float:
    """Floating-point operations per second of a product of two matrices of `size` rows.

    The faster of `torch.matmul` and a 1x1 convolution with channels last: on a CPU these may run
    in different libraries.
    """
    left, right = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    map_1CHW = left.T.reshape(1, size, 32, -1).contiguous(memory_format=torch.channels_last)
    calls = {
        "product": partial(torch.matmul, left, right),
        "convolution": partial(F.conv2d, map_1CHW, right.reshape(size, size, 1, 1)),
    }
    samples = interleaved(calls, device=device, repeat=repeat)
    return 2 * size**3 / min(map(statistics.median, samples.values()))


def operations_per_image(workload: Workload) -> dict[str, float]:
    """Floating-point operations per image of `predict`, the reference's forward pass, and `train`.

    Training counts as three forward passes: PyTorch's counter takes the backward pass of a
    depthwise convolution for a full one's.
    """
    device = torch.device("meta")
    reference = make_sides(workload, device)[1].eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        reference(random_batch(workload, 1, device).image_B3HW)
    forward = float(counter.get_total_flops())
    return {"predict": forward, "train": 3 * forward}


def make_table(results: dict[str, Any]) -> str:
    """Markdown of what the JSON file holds: the machine, the ratios, and where the time goes."""
    machine, rate = results["machine"], results["matrix_operations_per_second"]
    names = dict.fromkeys((machine["device"], machine["cpu"]))
    changed = " with changes" if machine["dirty"] else ""
    lines = [
        f"{', '.join(names)}, {machine['threads']} threads on {machine['cores']} cores, torch"
        f" {machine['torch']}, {machine['time_utc'][:10]}, commit"
        f" {(machine['commit'] or 'unknown')[:9]}{changed}. Matrix products at"
        f" {rate['float32'] / 1e9:,.0f} GFLOP/s in float32, {rate['bfloat16'] / 1e9:,.0f} GFLOP/s"
        " in bfloat16."
    ]
    if results["quick"]:
        lines.append("Toy sizes: these numbers say nothing about speed.")
    lines += ["", "| | reference | ours | ratio | ours, images/s | ours, of the matrix rate |"]
    lines += ["|:---|---:|---:|---:|---:|---:|"]
    for name, (reference, ours) in results["compared"].items():
        cells = [_cell(results, reference), _cell(results, ours)]
        cells.append(f"**{results['ratio'][name]:.2f}**")
        images = results["images_per_second"].get(ours)
        cells.append("" if images is None else f"{images:,.4g}")
        share = results["share_of_matrix_rate"].get(ours)
        cells.append("" if share is None else f"{share:.0%}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    if results["time_by_operation"]:
        lines += ["", "| | time by operation |", "|:---|:---|"]
    for name, shares in results["time_by_operation"].items():
        listed = ", ".join(f"{operation} {share:.0%}" for operation, share in shares.items())
        lines.append(f"| {name} | {listed} |")
    lines += [f"\n{note}" for note in results["notes"]]
    return "\n".join(lines) + "\n"


def _cell(results: dict[str, Any], name: str) -> str:
    """Memory in GB, or seconds per step (train), batch (predict) or image (load)."""
    if name in results["peak_bytes"]:
        return f"{results['peak_bytes'][name] / 1e9:.2f} GB"
    seconds = results["seconds"][name]
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
