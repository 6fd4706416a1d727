"""Every run of every ablation file: its settings, and one training step of it at toy size."""

import dataclasses
from functools import cache
from pathlib import Path

import pytest
import torch

from mspose.config import Settings, flatten, read_settings
from mspose.data.batches import Batch
from mspose.data.versions import with_version
from mspose.losses import Objective, PoseLoss
from mspose.models.kinds import make_network
from mspose.studies.ablation.plan import OURS, QUICK, read_ablation

ROOT = Path(__file__).parents[3]
FILES = sorted((ROOT / "experiments" / "ablations").glob("*.yaml"))


@cache
def runs_of(path: Path, quick: bool) -> list[Settings]:
    return read_ablation(path).runs(quick=quick)


def changed(old: Settings, new: Settings) -> dict[str, object]:
    """The settings that differ, but for those that say which run it is."""
    before, after = flatten(old), flatten(new)
    return {
        name: value for name, value in after.items() if name not in OURS and value != before[name]
    }


def test_the_files_of_the_papers_tables_are_there():
    names = {"qka-and-encoding", "encoder-attention", "collapse-remedies", "position-encodings"}
    names |= {"attention-regularisers", "baselines", "knock-out", "paper-network"}
    assert names == {path.stem for path in FILES}
    settings = [run for path in FILES for run in runs_of(path, False)]
    assert {row.model.kind for row in settings} == {"ms-transformer", "mspn"}
    encodings = {"learned", "sine", "sine-normalized", "rotary", "relative-bias", "none"}
    assert {row.model.position_encoding for row in settings} == encodings
    assert {row.model.query_key_weights for row in settings} == {
        "plain",
        "spectral-norm",
        "sigma-reparam",
    }
    assert {row.model.attention_scale for row in settings} == {"head-dim", "tokens"}
    assert {row.model.query_initialisation for row in settings} == {"normal", "orthogonal"}
    assert {row.loss.entropy_weight > 0 for row in settings if row.loss.entropy_weight} == {
        True,
        False,
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("quick", [False, True])
def test_a_run_differs_from_its_base_in_the_stated_settings_only(path, quick):
    ablation = read_ablation(path)
    base = read_settings(Path(ablation.base))
    base = dataclasses.replace(base, data=with_version(base.data))
    toy = QUICK if quick else {}
    runs = runs_of(path, quick)
    assert len(ablation.seeds) >= 3
    labels = [ablation.reference, *ablation.variants]
    assert [(run.variant, run.seed) for run in runs] == [
        (label, seed) for seed in ablation.seeds for label in labels
    ]
    reference = runs[0]
    everywhere = changed(base, reference)
    assert everywhere.keys() <= ablation.settings.keys() | toy.keys()
    assert all(everywhere[name] == {**ablation.settings, **toy}[name] for name in everywhere)
    for run in runs:
        stated = ablation.variants.get(run.variant, {})
        differs = changed(reference, run)
        assert differs.keys() <= stated.keys()
        assert all(flatten(run)[name] == value for name, value in stated.items())
        assert bool(differs) == (run.variant != ablation.reference)
        name = f"{path.stem}-{base.experiment}" + ("-quick" if quick else "")
        assert (run.experiment, run.runs, run.quick) == (name, "runs", quick)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_fits_other_data_and_every_variant_takes_a_step(path):
    for base in ("7scenes", "redkitchen"):
        assert len(read_ablation(path).rows(base)) == len(read_ablation(path).rows())
    first = read_ablation(path).seeds[0]
    for settings in runs_of(path, True):
        if settings.seed == first:
            terms = one_step(settings)
            assert ("loss/qka" in terms) == (settings.loss.qka_weight > 0)
            assert ("loss/entropy" in terms) == (settings.loss.entropy_weight != 0)
            assert ("loss/diversity" in terms) == (settings.loss.diversity_weight > 0)


def one_step(settings: Settings) -> dict[str, torch.Tensor]:
    """Take a training step on noise as `mspose.training` does; returns its readings."""
    torch.manual_seed(settings.seed)
    network = make_network(["attic", "cellar"], settings.model)
    objective = Objective(network, PoseLoss(settings.loss), "float32", compile=False)
    size = settings.data.crop
    fields = {
        "image_B3HW": torch.randn(2, 3, size, size).contiguous(memory_format=torch.channels_last),
        "position_B3": torch.randn(2, 3),
        "orientation_B4": torch.nn.functional.normalize(torch.randn(2, 4), dim=1),
        "scene_B": torch.tensor([0, 1]),
    }
    names = [field.name for field in dataclasses.fields(Batch)]
    batch = Batch(**{name: fields.get(name) for name in names})
    before = {name: weight.detach().clone() for name, weight in objective.named_parameters()}
    optimizer = torch.optim.Adam(objective.parameters(), lr=settings.training.learning_rate)
    loss, readings = objective(batch)
    loss.backward()
    optimizer.step()
    assert all(value.isfinite() for value in readings.values())
    assert any(
        not torch.equal(before[name], weight) for name, weight in objective.named_parameters()
    )
    return readings
