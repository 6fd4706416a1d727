import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from pose_matrix import pose_matrix

import mspose
from mspose.config import config_hash, read_settings
from mspose.data.images import read_image
from mspose.errors import MsposeError
from mspose.models.backbone import EFFICIENTNET_B0_NAMES
from mspose.run import load_model
from mspose.tools import conversion
from mspose.tools.conversion import convert_checkpoint

SEVEN = ["chess", "fire", "heads", "office", "pumpkin", "redkitchen", "stairs"]
DIM, HIDDEN, LAYERS = (
    16,
    24,
    {"t": (1, 2), "rot": (2, 1)},
)  # (encoder, decoder) layers of each branch


def released_tensors(scenes: int, *, learned: bool) -> dict[str, torch.Tensor]:
    """Random tensors with the names and kinds of shapes of a released checkpoint, in a narrow
    network.
    """
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) / np.sqrt(shape[-1])

    torch.manual_seed(1)
    backbone = timm.create_model("tf_efficientnet_b0").state_dict()
    tensors = {
        f"backbone.0.body.{name}": backbone[timms] for name, timms in EFFICIENTNET_B0_NAMES.items()
    }
    if learned:
        tensors |= {
            f"backbone.1.{axis}_embed.weight": draw(50, DIM // 2) for axis in ("row", "col")
        }

    def linear(name: str, out: int, inner: int) -> None:
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = draw(out, inner), draw(out)

    def norm(name: str) -> None:
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = torch.ones(DIM), torch.zeros(DIM)

    for branch, channels, values in (("t", 112, 3), ("rot", 40, 4)):
        for stack, layers, attentions in zip(
            ("encoder", "decoder"),
            LAYERS[branch],
            (["self_attn"], ["self_attn", "multihead_attn"]),
            strict=True,
        ):
            for layer in range(layers):
                name = f"transformer_{branch}.{stack}.layers.{layer}"
                for attention in attentions:
                    tensors[f"{name}.{attention}.in_proj_weight"] = draw(3 * DIM, DIM)
                    tensors[f"{name}.{attention}.in_proj_bias"] = draw(3 * DIM)
                    linear(f"{name}.{attention}.out_proj", DIM, DIM)
                linear(f"{name}.linear1", 20, DIM)
                linear(f"{name}.linear2", DIM, 20)
                for number in range(1, len(attentions) + 2):
                    norm(f"{name}.norm{number}")
            norm(f"transformer_{branch}.{stack}.norm")
        tensors[f"input_proj_{branch}.weight"] = draw(DIM, channels, 1, 1)
        tensors[f"input_proj_{branch}.bias"] = draw(DIM)
        tensors[f"query_embed_{branch}.weight"] = draw(scenes, DIM)
        linear(f"regressor_head_{branch}.fc_h", HIDDEN, DIM)
        linear(f"regressor_head_{branch}.fc_o", values, HIDDEN)
    linear("scene_embed", 1, 2 * DIM)
    return tensors


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """Seven scenes, learned position encoding, as torch.save writes it."""
    path = tmp_path_factory.mktemp("released") / "mst_7scenes.pth"
    torch.save(released_tensors(7, learned=True), path)
    return path


@pytest.fixture(scope="module")
def converted(checkpoint, tmp_path_factory) -> tuple[Path, str]:
    """(run folder, report); not to be changed."""
    run = tmp_path_factory.mktemp("converted") / "runs" / "released" / "mst"
    return run, convert_checkpoint(checkpoint, out=run)


def save(tensors: dict[str, torch.Tensor], path: Path) -> Path:
    torch.save(tensors, path)
    return path


def write_seven_scenes(root: Path, split: str = "test", frames: int = 2) -> None:
    """The seven scenes in their own layout, one sequence of noise images each."""
    rng = np.random.default_rng(3)
    for scene in SEVEN:
        folder = root / scene / "seq-01"
        folder.mkdir(parents=True)
        (root / scene / f"{split.capitalize()}Split.txt").write_text("sequence1\n")
        for number in range(frames):
            np.savetxt(
                folder / f"frame-{number:06d}.pose.txt",
                pose_matrix(rng.normal(size=3), rng.normal(size=4))[0],
            )
            image = Image.fromarray(rng.integers(0, 255, (36, 48, 3), dtype=np.uint8))
            image.save(folder / f"frame-{number:06d}.color.png")


def test_the_run_folder_loads_and_says_what_it_is(converted, checkpoint):
    run, report = converted
    assert sorted(path.name for path in run.iterdir()) == [
        "config.yaml",
        "model.json",
        "model.safetensors",
    ]
    weights, description = load_model(run)
    tensors = torch.load(checkpoint, weights_only=True)
    assert torch.equal(weights["position_head.out.weight"], tensors["regressor_head_t.fc_o.weight"])
    assert torch.equal(weights["orientation.scene_query"], tensors["query_embed_rot.weight"])
    assert (description["preprocessing"]["resize"], description["preprocessing"]["crop"]) == (
        256,
        224,
    )
    assert description["preprocessing"]["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert description["trained_on"] == {
        "dataset": "7scenes",
        "ground_truth": "original",
        "converted_from": "mst_7scenes.pth",
    }
    estimator = mspose.load(run, "cpu")
    assert estimator.scenes == tuple(SEVEN)
    assert estimator.network.settings.position_encoding == "learned"
    estimate = estimator(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8))
    assert np.isfinite(estimate.position).all()
    assert np.linalg.norm(estimate.orientation) == pytest.approx(1)
    assert estimate.scene in SEVEN

    lines = report.splitlines()
    kept = len(weights)
    assert lines[0].startswith(
        f"{kept} tensors kept, {len(tensors) - kept} that nothing reads dropped: backbone.0.body."
    )
    assert lines[1].startswith(
        "position encoding: learned; position_encoder_layers 1, position_decoder_layers 2"
    )
    assert lines[2:] == [f"scenes: {', '.join(SEVEN)} (7scenes)", str(run)]


def test_the_settings_describe_the_network(converted):
    run, _ = converted
    settings = read_settings(run / "config.yaml")
    assert (settings.experiment, settings.variant, settings.seed) == ("released", "mst", 0)
    assert settings.data.dataset == "7scenes"
    _, description = load_model(run)
    assert description["config_hash"] == config_hash(settings)
    for name in (
        "backbone",
        "dim",
        "heads",
        "head_hidden",
        "position_encoding",
        "orientation_encoder_layers",
    ):
        assert getattr(settings.model, name) == description["settings"][name]
    assert settings.loss.qka_weight == 0


def test_evaluate_and_table_take_the_run(converted, tmp_path, call):
    run = Path(shutil.copytree(converted[0], tmp_path / "runs" / "released" / "mst"))
    write_seven_scenes(tmp_path / "data")
    options = ("--root", tmp_path / "data", "--cache", tmp_path / "cache", "--device=cpu")
    status, out, _ = call("evaluate", run, *options, "--quiet")
    assert (status, "redkitchen" in out) == (0, True)
    metrics = json.loads((run / "metrics.json").read_text())
    assert list(metrics["scenes"]) == SEVEN
    assert metrics["average"]["frames"] == 14
    about = {"dataset": "7scenes", "ground_truth": "original", "seed": 0}
    about |= {"experiment": "released", "variant": "mst"}
    assert {name: metrics[name] for name in about} == about
    assert metrics["provenance"]["model"]["converted_from"] == "mst_7scenes.pth"
    _, table, _ = call("table", tmp_path / "runs")
    assert "released/mst (1 seed, not all test frames)" in table
    # its published row, on the same data set, ground truth and split
    assert "MS-Transformer" in table

    image = tmp_path / "data" / "fire" / "seq-01" / "frame-000001.color.png"
    image.write_bytes(image.read_bytes()[:900])
    call("evaluate", run, *options, "--quiet", "--scenes", "fire", "--on-bad-frame", "skip")
    assert json.loads((run / "metrics.json").read_text())["bad_frames"] == 1
    estimate = mspose.load(run, "cpu")(
        read_image(tmp_path / "data/fire/seq-01/frame-000000.color.png")
    )
    row = (run / "predictions" / "test.csv").read_text().splitlines()[1].split(",")
    np.testing.assert_allclose(estimate.position, [float(value) for value in row[11:14]], atol=1e-4)


@pytest.mark.parametrize(
    ("folder", "names"),
    [
        ("runs/released/actmst", ("released", "actmst", 0)),
        ("runs/released/actmst/seed-2", ("released", "actmst", 2)),
        ("runs/actmst", ("released", "actmst", 0)),
        ("elsewhere/actmst", ("elsewhere", "actmst", 0)),
        ("runs/7scenes/seed-3-of-theirs", ("7scenes", "seed-3-of-theirs", 0)),
    ],
)
def test_names_follow_the_folder(folder, names, tmp_path):
    assert conversion._names(tmp_path / folder) == names


def test_named_scenes_and_a_data_set_of_ones_own(own_data, tmp_path):
    path = save(released_tensors(2, learned=False), tmp_path / "two.pth")
    with pytest.raises(MsposeError, match="the checkpoint has 2 scenes.*name them, --scenes"):
        convert_checkpoint(path, out=tmp_path / "run")
    with pytest.raises(
        MsposeError, match="no published data set has the scenes cellar, attic: .*--dataset"
    ):
        convert_checkpoint(path, out=tmp_path / "run", scenes=["cellar", "attic"])
    with pytest.raises(MsposeError, match="7scenes has no scene 'attic'; its scenes: chess"):
        convert_checkpoint(
            path, out=tmp_path / "run", scenes=["cellar", "attic"], dataset="7scenes"
        )
    assert not (tmp_path / "run").exists()
    report = convert_checkpoint(
        path, out=tmp_path / "run", scenes=["cellar", "attic"], dataset=str(own_data)
    )
    assert "position encoding: sine" in report
    assert mspose.load(tmp_path / "run", "cpu").scenes == ("cellar", "attic")
    settings = read_settings(tmp_path / "run" / "config.yaml")
    assert (settings.data.dataset, settings.loss.qka_weight) == (str(own_data), 0.1)


def test_four_scenes_are_cambridges(tmp_path):
    path = save(released_tensors(4, learned=False), tmp_path / "four.pth")
    report = convert_checkpoint(path, out=tmp_path / "run")
    assert "scenes: KingsCollege, OldHospital, ShopFacade, StMarysChurch (cambridge)" in report
    assert load_model(tmp_path / "run")[1]["trained_on"]["ground_truth"] == "sfm"
    with pytest.raises(MsposeError, match="cambridge has no scene"):
        convert_checkpoint(
            path,
            out=tmp_path / "b",
            scenes=["chess", "fire", "heads", "office"],
            dataset="cambridge",
        )


def test_a_folder_that_holds_something_is_left_alone(checkpoint, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    for out in (tmp_path / "run", tmp_path / "run" / "notes.txt"):
        with pytest.raises(MsposeError, match="is not an empty folder: convert into a new one"):
            convert_checkpoint(checkpoint, out=out)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]
    (tmp_path / "empty").mkdir()
    convert_checkpoint(checkpoint, out=tmp_path / "empty")
    assert mspose.load(tmp_path / "empty", "cpu").scenes == tuple(SEVEN)


def test_a_tensor_that_is_missing_is_named(checkpoint, tmp_path):
    tensors = torch.load(checkpoint, weights_only=True)
    tensors.pop("scene_embed.bias")
    with pytest.raises(MsposeError, match="missing: scene_embed.bias"):
        convert_checkpoint(save(tensors, tmp_path / "cut.pth"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_full_disk_leaves_no_half_of_a_run(checkpoint, tmp_path, monkeypatch):
    def full(*_):
        raise MsposeError("cannot write model.safetensors: No space left on device")

    monkeypatch.setattr(conversion, "save_model", full)
    with pytest.raises(MsposeError, match="No space left"):
        convert_checkpoint(checkpoint, out=tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []
    monkeypatch.undo()
    assert re.match(r"\d+ tensors kept", convert_checkpoint(checkpoint, out=tmp_path / "run"))
