"""Every cell of every ablation file: what it changes, and one training step of it at toy size."""

import dataclasses
from functools import cache
from pathlib import Path

import pytest
import torch

from mspose.ablation.plan import OURS, QUICK, Cell, read_ablation
from mspose.config import Settings, flatten, read_settings
from mspose.data.batches import Batch
from mspose.data.versions import with_version
from mspose.losses import PoseLoss
from mspose.models.kinds import make_network
from mspose.objective import Objective

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "experiments" / "ablations").glob("*.yaml"))


@cache
def cells_of(path: Path, quick: bool) -> list[Cell]:
    return read_ablation(path).cells(quick=quick)


ROWS = [(path, label) for path in FILES for label in read_ablation(path).labels]


def changed(old: Settings, new: Settings) -> dict[str, object]:
    """The settings that differ, but for those that say which cell it is."""
    before, after = flatten(old), flatten(new)
    return {name: value for name, value in after.items() if name not in OURS and value != before[name]}


def test_the_files_of_the_papers_tables_are_there():
    names = {"qka-and-encoding", "encoder-attention", "collapse-remedies", "position-encodings"}
    assert names | {"attention-regularisers", "baselines"} == {path.stem for path in FILES}
    settings = [cell.settings for path in FILES for cell in cells_of(path, False)]
    assert {row.model.kind for row in settings} == {"ms-transformer", "mspn"}
    encodings = {"learned", "sine", "sine-normalized", "rotary", "relative-bias", "none"}
    assert {row.model.position_encoding for row in settings} == encodings
    assert {row.model.query_key_weights for row in settings} == {"plain", "spectral-norm", "sigma-reparam"}
    assert {row.model.attention_scale for row in settings} == {"head-dim", "tokens"}
    assert {row.model.query_initialisation for row in settings} == {"normal", "orthogonal"}
    assert {row.loss.entropy_weight > 0 for row in settings if row.loss.entropy_weight} == {True, False}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("quick", [False, True])
def test_a_cell_differs_from_its_base_in_the_stated_settings_only(path, quick):
    ablation = read_ablation(path)
    base = read_settings(ablation.base)
    base = dataclasses.replace(base, data=with_version(base.data))
    toy = QUICK if quick else {}
    cells = cells_of(path, quick)
    assert len(ablation.seeds) >= 3
    assert [(cell.label, cell.seed) for cell in cells] == [
        (label, seed) for seed in ablation.seeds for label in ablation.labels
    ]
    reference = cells[0].settings
    everywhere = changed(base, reference)
    assert everywhere.keys() <= ablation.settings.keys() | toy.keys()
    assert all(everywhere[name] == {**ablation.settings, **toy}[name] for name in everywhere)
    for cell in cells:
        stated = ablation.variants.get(cell.label, {})
        differs = changed(reference, cell.settings)
        assert differs.keys() <= stated.keys()
        assert all(flatten(cell.settings)[name] == value for name, value in stated.items())
        assert bool(differs) == (cell.label != ablation.reference)
        name = f"{path.stem}-{base.experiment}" + ("-quick" if quick else "")
        assert cell.folder == Path("runs") / name / cell.label / f"seed-{cell.seed}"
        assert cell.folder == cell.settings.run_folder("any")
        assert (cell.settings.quick, cell.settings.seed) == (quick, cell.seed)


@pytest.mark.parametrize("base", ["7scenes", "redkitchen"])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_fits_other_data(path, base):
    assert list(read_ablation(path).rows(base)) == list(read_ablation(path).labels)


@pytest.mark.parametrize(("path", "label"), ROWS, ids=[f"{path.stem}/{label}" for path, label in ROWS])
def test_every_cell_takes_a_step(path, label):
    cells = [cell for cell in cells_of(path, True) if cell.label == label]
    assert len(cells) >= 3
    for cell in cells:
        terms = one_step(cell)
        assert ("loss/qka" in terms) == (cell.settings.loss.qka_weight > 0)
        assert ("loss/entropy" in terms) == (cell.settings.loss.entropy_weight != 0)
        assert ("loss/diversity" in terms) == (cell.settings.loss.diversity_weight > 0)


def one_step(cell: Cell) -> dict[str, torch.Tensor]:
    """A training step on noise, as `mspose.training` takes it; its readings. All that should learn has a gradient."""
    settings = cell.settings
    torch.manual_seed(settings.seed)
    network = make_network(scenes=["attic", "cellar"], **vars(settings.model))
    objective = Objective(network, PoseLoss(**vars(settings.loss)), "float32", compile=False)
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
    assert any(not torch.equal(before[name], weight) for name, weight in objective.named_parameters())
    return readings
