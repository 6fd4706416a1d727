import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from unittest.mock import create_autospec

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from mspose import evaluation
from mspose.attention.advice import advice
from mspose.attention.attention_json import read_study, study_table
from mspose.attention.encoding_distance import distance_profile, token_distances
from mspose.attention.purity import query_purity
from mspose.cli import main
from mspose.config import TrainingSettings, config_hash, read_settings, write_settings
from mspose.errors import MsposeError
from mspose.inference import load
from mspose.models.attention_map import AttentionMap, token_similarity
from mspose.models.mstransformer import MSTransformer
from mspose.models.network import Observer
from mspose.run import Run, load_model, save_model
from mspose.studies import attention_figures
from mspose.studies.attention_study import (
    StudyMeasures,
    check_choice,
    gap_over_training,
    spread_over_scenes,
    study_run,
)
from mspose.verdict import Thresholds, verdict

TOKENS = {"position": 9, "orientation": 25}  # of crops of 40 pixels
DEPTH = {"position": 1, "orientation": 2}


def copy_of(run: Path, folder: Path) -> Path:
    """A copy of a run with its events, in the layout of run folders."""
    target = folder / "runs" / "small" / "all" / run.name
    shutil.copytree(
        run, target, ignore=shutil.ignore_patterns("checkpoint.pt", "predictions", "attention")
    )
    return target


def study(run: Path, folder: Path, **options):
    data = {"cache": str(folder / "cache")}
    return study_run(
        run, **{"data": data, "neighbours": 5, "progress": False, "device": "cpu"} | options
    )


@pytest.fixture(scope="module")
def studied(small_run, tmp_path_factory) -> Path:
    """A run with its study; not to be changed."""
    folder = tmp_path_factory.mktemp("studied")
    run = copy_of(small_run, folder)
    study(run, folder, frames=6, samples=2)
    return run


@pytest.fixture
def own_run(small_run, tmp_path) -> Path:
    """A run that the test may change."""
    return copy_of(small_run, tmp_path)


@pytest.fixture
def arrays(studied) -> dict[str, np.ndarray]:
    with np.load(studied / "attention" / "samples.npz", allow_pickle=False) as file:
        return dict(file)


def rebuilt(run: Path, **changes) -> Path:
    """The same run with a fresh model of another architecture."""
    _, description = load_model(run)
    settings = description["settings"] | changes
    torch.manual_seed(0)
    network = MSTransformer(description["scenes"], **settings)
    save_model(run, network.state_dict(), {**description, "settings": settings})
    return run


class Whole(Observer):
    """The whole attention maps with queries and keys, in float64."""

    def __init__(self) -> None:
        self.encoders, self.decoders, self.tokens_of = {}, {}, {}

    def encoder(self, branch, layer, attention):
        query, key = attention.query_BHQD.double(), attention.key_BHKD.double()
        weight_BHQK = (attention.scale * query @ key.mT).softmax(dim=-1)
        self.encoders.setdefault((branch, layer + 1), []).append((query, key, weight_BHQK))

    def tokens(self, branch, layer, before_BNC, after_BNC):
        pair = before_BNC.double(), after_BNC.double()
        self.tokens_of.setdefault((branch, layer + 1), []).append(pair)

    def decoder(self, branch, layer, weight_BHSN):
        self.decoders.setdefault((branch, layer + 1), []).append(weight_BHSN.double())


@pytest.fixture
def whole(studied) -> tuple[Whole, list[str]]:
    """What an observer sees of the frames that were studied, and their names."""
    estimator = load(studied, "cpu")
    cache = {"cache": str(studied.parents[3] / "cache")}
    opened = evaluation.open_for_run(
        studied, estimator, "test", data=cache, batch_size=1, progress=False
    )
    rows = [0, 2, 4, 5, 7, 9]  # three of five of each scene
    seen = Whole()
    with torch.inference_mode():
        for batch in opened.batches.in_order(rows):
            estimator.network(batch.image_B3HW, observer=seen)
    return seen, opened.batches.frames["image"].iloc[rows].tolist()


# attention.json


def test_layers_hold_what_whole_maps_in_float64_give(studied, whole):
    layers = read_study(studied)["layers"]
    assert [(layer["branch"], layer["layer"]) for layer in layers] == list(whole[0].encoders)
    for layer in layers:
        seen = whole[0].encoders[layer["branch"], layer["layer"]]
        query, key, weight = (torch.cat(parts) for parts in zip(*seen, strict=True))
        tokens = TOKENS[layer["branch"]]
        assert layer["tokens"] == query.shape[2] == tokens
        assert layer["entropy_limit"] == pytest.approx(math.log(tokens), rel=1e-5)
        unit = torch.nn.functional.normalize(weight, dim=-1)
        pairs = ~torch.eye(tokens, dtype=torch.bool)
        measured_H = {
            "entropy": -(weight * weight.log()).sum(dim=-1).mean(dim=(0, 2)),
            "similarity": (unit @ unit.mT)[:, :, pairs].mean(dim=(0, 2)),
            "query_key_gap": (query.mean(dim=2) - key.mean(dim=2)).norm(dim=-1).mean(dim=0),
            "purity": query_purity(query, key, 5).mean(dim=(0, 2)),
        }
        for name, values in measured_H.items():
            assert [head[name] for head in layer["heads"]] == pytest.approx(
                values.tolist(), rel=2e-5
            ), name
            assert layer[name] == pytest.approx(float(values.mean()), rel=2e-5), name
        measured = layer["entropy"], layer["similarity"], layer["entropy_limit"]
        assert layer["verdict"] == verdict(*measured)
        pairs = whole[0].tokens_of[layer["branch"], layer["layer"]]
        before, after = (
            float(torch.cat([token_similarity(tokens) for tokens in of]).mean())
            for of in zip(*pairs, strict=True)
        )
        assert layer["token_similarity"] == pytest.approx(
            {"before": before, "after": after}, abs=1e-5
        )


def test_decoder_layers_hold_what_whole_maps_give_of_every_scene(studied, whole):
    found = read_study(studied)["decoder"]
    assert [(layer["branch"], layer["layer"]) for layer in found] == list(whole[0].decoders)
    for layer in found:
        weight_FHSN = torch.cat(whole[0].decoders[layer["branch"], layer["layer"]])
        entropy_S = -(weight_FHSN * weight_FHSN.log()).sum(dim=-1).mean(dim=(0, 1))
        unit = torch.nn.functional.normalize(weight_FHSN, dim=-1)
        cosine = float((unit[:, :, 0] * unit[:, :, 1]).sum(dim=-1).mean())  # two scenes
        assert [scene["scene"] for scene in layer["scenes"]] == ["attic", "cellar"]
        assert [scene["entropy"] for scene in layer["scenes"]] == pytest.approx(
            entropy_S.tolist(), rel=2e-5
        )
        assert layer["entropy"] == pytest.approx(float(entropy_S.mean()), rel=2e-5)
        assert layer["entropy_limit"] == pytest.approx(math.log(TOKENS[layer["branch"]]), rel=1e-5)
        for values in (layer, *layer["scenes"]):
            assert values["similarity"] == pytest.approx(cosine, rel=2e-5)
            assert values["verdict"] == verdict(
                values["entropy"], values["similarity"], layer["entropy_limit"]
            )


def test_a_model_of_one_scene_has_no_similarity_of_scenes_and_no_verdict(own_run, tmp_path):
    weights, description = load_model(own_run)
    for branch in TOKENS:
        weights[f"{branch}.scene_query"] = weights[f"{branch}.scene_query"][:1].clone()
    save_model(own_run, weights, {**description, "scenes": ["attic"]})
    (own_run / "attention-at-start.json").unlink()
    data = {"cache": str(tmp_path / "cache"), "scenes": ["attic"]}
    study(own_run, tmp_path, frames=2, samples=0, data=data)
    found = read_study(own_run)
    for layer in found["decoder"]:
        (scene,) = layer["scenes"]
        assert layer["similarity"] is layer["verdict"] is scene["verdict"] is None
        assert layer["entropy"] == scene["entropy"] > 0
    assert "–" in study_table([found])


def test_thresholds_are_those_of_the_run_or_of_the_call(own_run, tmp_path):
    settings = read_settings(own_run / "config.yaml")
    changed = replace(settings, attention=replace(settings.attention, uniform=1.0, similar=0.0))
    write_settings(own_run / "config.yaml", changed)
    found = study(own_run, tmp_path, frames=2, samples=0)
    assert {layer["verdict"] for layer in found["layers"]} == {"collapsed"}
    found = study(own_run, tmp_path, frames=2, samples=0, thresholds={"uniform": 0.0})
    assert found["thresholds"] == {"uniform": 0.0, "similar": 0.0}
    assert {layer["verdict"] for layer in found["layers"]} == {"uniform"}


# the start


def test_training_records_attention_before_its_first_step(studied, small_settings):
    found = read_study(studied)
    assert found["start"] == "recorded in training"
    recorded = json.loads((studied / "attention-at-start.json").read_text())
    for part in ("layers", "decoder"):
        assert [
            {"branch": layer["branch"], "layer": layer["layer"], **layer["start"]}
            for layer in found[part]
        ] == recorded[part]
        assert {layer["branch"] for layer in recorded[part]} == set(TOKENS)
    logged = Run(studied).scalars()
    for layer in recorded["layers"]:
        tag = "attention_entropy/{branch}_layer_{layer}".format(**layer)
        assert logged[tag][0] == pytest.approx(layer["entropy"], rel=1e-5)
        assert logged[tag].dropna().index.tolist() == [0, 9]


def test_without_a_record_the_start_is_that_of_the_network_built_anew(own_run, tmp_path):
    recorded = json.loads((own_run / "attention-at-start.json").read_text())
    (own_run / "attention-at-start.json").unlink()
    found = study(own_run, tmp_path, frames=4, samples=0)
    assert found["start"] == "measured on the network built anew from its seed"
    for part in ("layers", "decoder"):
        for layer, wanted in zip(found[part], recorded[part], strict=True):
            # other frames
            assert layer["start"]["entropy"] == pytest.approx(wanted["entropy"], rel=0.02)
            assert layer["start"]["entropy"] != pytest.approx(layer["entropy"], rel=1e-6)


def test_where_the_seed_makes_another_network_the_start_is_unknown(own_run, tmp_path):
    (own_run / "attention-at-start.json").unlink()
    settings = read_settings(own_run / "config.yaml")
    write_settings(own_run / "config.yaml", replace(settings, seed=6))
    found = study(own_run, tmp_path, frames=2, samples=0)
    assert found["start"].startswith("unknown: training did not record it, and its seed now makes")
    assert [layer["start"] for layer in found["layers"]] == [None] * 3
    assert found["start"] in study_table([found])
    for log in own_run.glob("events*"):
        log.unlink()
    found = study(own_run, tmp_path, frames=2, samples=0)
    assert found["start"].endswith("there is no log of its first step")
    assert found["training"] is read_study(own_run)["training"] is None


# knock-out


def test_a_knock_out_is_kept_with_its_words_and_errors(own_run, tmp_path):
    found = study(own_run, tmp_path, samples=0, knock_out=True)
    assert read_study(own_run) == found
    assert found["knock_out"]["frames"] == 10
    assert len(found["knock_out"]["rows"]) == 3 * (3 + 3)
    assert {layer["worth"] for layer in found["layers"]} <= {"matters", "does not matter"}
    assert Run(own_run).knock_out_file.read_text().count("\n") == 11
    found = study(own_run, tmp_path, frames=4, samples=0, knock_out=True)
    assert found["frames"] == found["knock_out"]["frames"] == 4


def test_histograms_count_the_queries_by_their_purity(studied, whole):
    for layer in read_study(studied)["layers"]:
        query, key, _ = (
            torch.cat(x)
            for x in zip(*whole[0].encoders[layer["branch"], layer["layer"]], strict=True)
        )
        histogram = layer["purity_histogram"]
        assert histogram["edges"] == pytest.approx(np.linspace(0, 1, 21).tolist())
        for head, shares in enumerate(histogram["share"]):
            values = np.round(query_purity(query, key, 5)[:, head].numpy(), 6).ravel()
            assert set(np.round(5 * values, 4) % 1) == {0}  # fifths: every second bin's lower edge
            expected = [(values == fifth / 5).mean() for fifth in range(6)]
            assert [*shares[::4], shares[-1]] == pytest.approx(expected, abs=1e-5)
            assert sum(shares) == pytest.approx(1, abs=1e-4)


def test_no_more_than_a_chunk_of_queries_times_keys_exists_at_a_time():
    """On 28x28 maps of 8 heads whole float32 maps of four images are 79 MB, pooled float64
    distances twice 79 MB.
    """
    biggest = 0

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal biggest
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                biggest = max(biggest, out.numel() // (len(out) if out.dim() == 4 else 1))
            return out

    query, key = torch.randn(2, 1, 8, 784, 4).unbind()
    with Largest():
        StudyMeasures(10).encoder("orientation", 0, AttentionMap(query, key, 1.0))
    assert 0 < biggest <= 8 * 256 * 2 * 784


def test_the_study_says_what_it_is_of(studied):
    found = read_study(studied)
    settings = read_settings(studied / "config.yaml")
    about = {"format": 3, "experiment": "small", "variant": "all", "seed": 5}
    about |= {"dataset": "small", "split": "test"}
    about |= {"ground_truth": "made-up", "frames": 6, "neighbours": 5, "quick": False}
    about |= {"config_hash": config_hash(settings), "thresholds": Thresholds()._asdict()}
    assert {name: found[name] for name in about} == about
    assert found["provenance"]["torch"]


def test_runs_that_were_quick_tries_are_marked(own_run, tmp_path):
    settings = replace(read_settings(own_run / "config.yaml"), quick=True)
    write_settings(own_run / "config.yaml", settings)
    found = study(own_run, tmp_path, frames=1, samples=0)
    assert found["quick"] is True
    assert "small/all/seed-5 (quick)" in study_table([found])
    assert not (own_run / "attention" / "samples.npz").exists()


@pytest.mark.parametrize(
    ("most", "expected"), [(4, [0, 4, 5, 6]), (3, [0, 4, 5]), (1, [0]), (99, range(7))]
)
def test_frames_are_spread_over_scenes_and_within_them(most, expected):
    assert spread_over_scenes(pd.Series(["b"] * 5 + ["c"] * 2), most).tolist() == list(expected)


# the encoding


def test_distances_between_encodings_and_their_profile(studied, arrays):
    encode = load(studied, "cpu").network.position_encoding
    position_NC = encode(3, 3, torch.float64, torch.device("cpu")).added_NC.numpy()
    by_hand = np.linalg.norm(position_NC[:, None] - position_NC, axis=2)
    np.testing.assert_allclose(arrays["encoding/position"], by_hand, rtol=1e-5, atol=1e-6)
    encoding = read_study(studied)["encoding"]
    assert {branch: profile["kind"] for branch, profile in encoding.items()} == dict.fromkeys(
        TOKENS, "sine"
    )
    profile = encoding["position"]
    assert profile["grid_distance"] == [0, 1, 1.5, 2, 3]  # 0, 1, sqrt 2, 2 and sqrt 5, sqrt 8
    row, column = np.divmod(np.arange(9), 3)
    steps = abs(row[:, None] - row) + abs(column[:, None] - column)
    expected = [0, by_hand[steps == 1].mean()]
    assert profile["token_distance"][:2] == pytest.approx(expected, rel=1e-5)


def test_the_profile_of_an_encoding_that_is_the_place_itself_is_the_distance_on_the_map():
    row, column = np.divmod(np.arange(12), 4)
    distance_NN = token_distances(torch.tensor(np.stack([row, column], axis=1)))
    profile = distance_profile(distance_NN, 4)
    np.testing.assert_allclose(profile["token_distance"], profile["grid_distance"], atol=0.25)
    assert profile["token_distance"][:2] == [0, 1]


@pytest.mark.parametrize(
    ("name", "added"),
    [("learned", True), ("rotary", False), ("relative-bias", False), ("none", False)],
)
def test_encodings_that_are_not_added_to_tokens_have_no_distances(own_run, tmp_path, name, added):
    found = study(rebuilt(own_run, position_encoding=name), tmp_path, frames=1, samples=1)
    assert bool(found["encoding"]) == added
    with np.load(own_run / "attention" / "samples.npz") as file:
        assert ("encoding/position" in file) == added


# the log of the training


def test_the_gap_over_training_is_the_log_s(studied):
    training = read_study(studied)["training"]
    assert training["steps_per_epoch"] == 5  # 18 frames in batches of 4
    assert training["step"] == [0]  # of ten steps in all
    assert training["query_key_gap"].keys() == TOKENS.keys()
    assert all(0 < values[0] < 100 for values in training["query_key_gap"].values())


def test_steps_that_a_later_process_did_again_count_once(tmp_path):
    options = TrainingSettings(epochs=4, evaluate_every=2)
    for first, last, value in ((0, 50, 1.0), (20, 80, 2.0)):
        writer = SummaryWriter(str(tmp_path), purge_step=first, filename_suffix=f".{first}")
        for step in range(first, last, 10):
            writer.add_scalar("query_key_gap/position", value, step)
        writer.add_scalar("median_position_m/train", 1.0, 19 if first == 0 else 39)
        writer.close()
    found = gap_over_training(tmp_path, ["position"], options)
    assert found == {
        "step": [0, 10, 20, 30, 40, 50, 60, 70],
        "query_key_gap": {"position": [1.0, 1.0, *[2.0] * 6]},
        "steps_per_epoch": 10,
    }


# samples.npz


def test_samples_are_the_frames_as_the_network_sees_them(arrays, whole, small_data):
    assert arrays["names"].tolist() == [whole[1][0], whole[1][-1]]
    assert arrays["scenes"].tolist() == ["attic", "cellar"]
    assert arrays["scene_names"].tolist() == ["attic", "cellar"]
    assert arrays["image_F"].dtype == np.uint8
    assert arrays["image_F"].shape == (2, 40, 40, 3)
    from mspose.data.images import read_image, resize_short_side

    crop = resize_short_side(read_image(small_data.parent / arrays["names"][1]), 48)[4:44, 12:52]
    assert np.abs(arrays["image_F"][1].astype(int) - crop).max() <= 1


def test_samples_hold_attention_and_what_keys_receive(arrays, whole):
    for (branch, layer), seen in whole[0].encoders.items():
        side = math.isqrt(TOKENS[branch])
        assert arrays[f"grid/{branch}"].tolist() == [side, side]
        weight = torch.cat([seen[0][2], seen[-1][2]]).numpy()
        row, column = arrays[f"encoder/{branch}/queries"].T
        assert (row[0], column[0]) == (side // 2, side // 2)
        name = f"encoder/{branch}/{layer}"
        chosen = weight[:, :, row * side + column].reshape(2, 2, -1, side, side)
        np.testing.assert_allclose(arrays[f"{name}/attention"], chosen, rtol=2e-3, atol=1e-6)
        received = weight.mean(axis=2).reshape(2, 2, side, side)
        np.testing.assert_allclose(arrays[f"{name}/received"], received, rtol=1e-4)
        best = weight.argmax(axis=-1)
        votes = np.array(
            [[np.bincount(head, minlength=side**2) for head in image] for image in best]
        )
        np.testing.assert_array_equal(arrays[f"{name}/votes"].reshape(2, 2, -1), votes)
        for head in (1, 2):
            token = arrays[f"space/{branch}/tokens"]
            for index, kind in enumerate(("query", "key")):
                points = seen[0][index][0, head - 1][token]
                np.testing.assert_allclose(
                    arrays[f"space/{branch}/{layer}/{head}/{kind}"], points, atol=1e-6
                )
    for (branch, layer), seen in whole[0].decoders.items():
        side = math.isqrt(TOKENS[branch])
        expected = torch.cat([seen[0], seen[-1]]).unflatten(-1, (side, side))
        np.testing.assert_allclose(
            arrays[f"decoder/{branch}/{layer}/attention"], expected, rtol=2e-3, atol=1e-6
        )


# bad input


def test_a_branch_without_encoder_layers_leaves_the_other_to_study(own_run, tmp_path):
    found = study(rebuilt(own_run, position_encoder_layers=0), tmp_path, frames=1, samples=1)
    assert {layer["branch"] for layer in found["layers"]} == {"orientation"}
    assert found["encoding"].keys() == {"orientation"}
    rebuilt(own_run, orientation_encoder_layers=0)
    with pytest.raises(MsposeError, match=r"seed-5: its model has no encoder layers"):
        study(own_run, tmp_path)


def test_models_that_cannot_be_studied_are_refused(own_run, tmp_path):
    weights, description = load_model(own_run)
    weights["position.encoder.layers.0.norm1.weight"].fill_(torch.nan)
    save_model(own_run, weights, description)
    with pytest.raises(MsposeError, match=r"seed-5 is not finite"):
        study(own_run, tmp_path)
    settings = {**description["settings"], "kind": "mspn"}
    save_model(own_run, weights, {**description, "settings": settings})
    with pytest.raises(MsposeError, match=r"seed-5: a model of kind mspn has no queries and keys"):
        study(own_run, tmp_path)
    (own_run / "model.safetensors").unlink()
    with pytest.raises(MsposeError, match=r"holds no model \(model.safetensors is missing\)"):
        study(own_run, tmp_path)
    assert not (own_run / "attention").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"neighbours": 18},
            "neighbours: expected 1 to 17, fewer than the 9 queries and 9 keys of an image, found",
        ),
        ({"split": "vali"}, "vali"),
    ],
)
def test_numbers_and_splits_that_do_not_fit_are_refused(studied, options, message):
    before = (studied / "attention" / "attention.json").read_bytes()
    with pytest.raises(MsposeError, match=message):
        study(studied, studied.parents[3], **options)
    assert (studied / "attention" / "attention.json").read_bytes() == before


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (("position", 2, None), r"layer: expected 1 to 1, as the model of .*seed-5 has, found 2"),
        ((None, 3, None), r"layer: expected 1 to 2"),
        (("orientation", 2, 3), r"head: expected 1 to 2"),
        ((None, 0, None), r"layer: expected 1 to 2"),
    ],
)
def test_layers_and_heads_that_are_not_there_are_refused(studied, choice, message):
    check_choice(studied, "orientation", 2, 2)
    check_choice(studied, None, None, None)
    with pytest.raises(MsposeError, match=message):
        check_choice(studied, *choice)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 4},
        {"start": None},
        {"decoder": [{"branch": "position", "layer": 1, "tokens": 9, "scenes": []}]},
        {"knock_out": {"frames": 2, "rows": [{"branch": "both", "by": "mean", "worth": "maybe"}]}},
        {"split": None},
        {"seed": "0"},
        {"quick": 1},
        {"layers": []},
        {"layers": [{"branch": "up"}]},
        {"layers": [{"verdict": "healthy"}]},
        {"layers": [{"query_key_gap": "1"}]},
        {"layers": [{"heads": [{}]}]},
        {"layers": [{"purity_histogram": {}}]},
        {"encoding": {"position": {"grid_distance": [1.0]}}},
        {"training": {"steps_per_epoch": 1, "step": [1], "query_key_gap": {"position": []}}},
    ],
)
def test_files_that_are_no_study_are_refused_with_the_remedy(studied, tmp_path, change):
    found = read_study(studied)
    if change.get("layers"):
        change = {"layers": [found["layers"][0] | layer for layer in change["layers"]]}
    path = tmp_path / "attention" / "attention.json"
    path.parent.mkdir()
    for content in (json.dumps(found | change), "[]"):
        path.write_text(content)
        with pytest.raises(
            MsposeError, match=r"is not a study of attention .*; run `mspose attention .*` again"
        ):
            read_study(tmp_path)


def test_studies_of_older_formats_are_read_with_the_words_of_the_present(studied, tmp_path):
    """Format 1 called the query-key gap `gap`, and both said `healthy`; committed records do."""
    found = read_study(studied)
    lacking = dict.fromkeys(("start", "token_similarity", "worth"))
    expected = {
        **found,
        "start": "unknown: studied by an older version",
        "layers": [{**layer, **lacking} for layer in found["layers"]],
        "decoder": [],
    }
    older = json.loads(json.dumps(found))
    for layer in older["layers"]:
        layer["verdict"] = "healthy"
    for name in ("start", "decoder", "knock_out"):
        del older[name]
    older |= {"format": 2, "thresholds": {"similar": 0.9, "spread": 0.9}}
    oldest = json.loads(json.dumps(older).replace('"query_key_gap": ', '"gap": ')) | {
        "format": 1,
        "training": found["training"],
    }
    (tmp_path / "attention").mkdir()
    for content in (older, oldest):
        (tmp_path / "attention" / "attention.json").write_text(json.dumps(content))
        assert read_study(tmp_path) == expected
    records = list(Path("experiments/results").glob("*/*/seed-0"))
    studies = [read_study(run) for run in records if (run / "attention").is_dir()]
    assert studies
    for layer in (layer for study in studies for layer in study["layers"]):
        assert layer["query_key_gap"] > 0
        assert (layer["verdict"] == "uniform") == (layer["entropy"] >= 0.9 * layer["entropy_limit"])


def test_files_that_are_missing_or_broken_are_refused_with_the_remedy(tmp_path):
    with pytest.raises(
        MsposeError, match=r"holds no study of its attention .*: run `mspose attention "
    ):
        read_study(tmp_path)
    (tmp_path / "attention").mkdir()
    (tmp_path / "attention" / "attention.json").write_text('{"format": 1')
    with pytest.raises(MsposeError, match="is not JSON"):
        read_study(tmp_path)


# mspose attention


def test_the_verb_studies_runs_prints_their_table_and_draws(
    small_run, tmp_path, capsys, monkeypatch
):
    """What is drawn is for the tests of pictures; here it is what is asked for, in terms that
    `draw` takes.
    """
    draw = create_autospec(attention_figures.draw, return_value=[tmp_path / "entropy.png"])
    monkeypatch.setattr("mspose.studies.attention_figures.draw", draw)
    runs = [copy_of(small_run, tmp_path / name) for name in ("a", "b")]
    words = ["--frames=4", "--neighbours=3", "--samples=1", "--projection=pca", "--layer=1"]
    words += ["--device=cpu", "--quiet", f"--cache={tmp_path / 'cache'}"]
    main(["attention", *map(str, runs), *words, "--root", str(root_of(small_run))])
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.startswith("| small/all/seed-5")]
    encoders = [["position", "1"], ["orientation", "1"], ["orientation", "2"]]
    decoders = [["position", "1"], ["orientation", "1"]]
    assert [re.sub(r"\s+", "", line).split("|")[2:4] for line in lines] == [
        *(2 * encoders),
        *(2 * decoders),
    ]
    for run in runs:
        lines = advice(read_study(run), read_settings(run / "config.yaml"))
        assert lines
        assert all(line in printed.splitlines() for line in lines)
    assert "entropy.png" in printed
    for run in runs:
        found = read_study(run)
        assert (found["frames"], found["neighbours"]) == (4, 3)
        assert (run / "attention" / "samples.npz").is_file()
    choice = {"branch": None, "layer": 1, "head": None, "projection": "pca"}
    draw.assert_called_once_with(runs, out=tmp_path / "attention", **choice)


def test_the_verb_measures_what_attention_is_worth(own_run, tmp_path, capsys):
    words = ["attention", str(own_run), "--knock-out", "--samples=1", "--device=cpu", "--quiet"]
    words += [f"--cache={tmp_path / 'cache'}", "--neighbours=3", "--uniform=0.5"]
    main([*words, "--root", str(root_of(own_run))])
    printed = capsys.readouterr().out
    assert printed.count("nothing knocked out") == 1
    assert printed.count("mean of all values") == 3 + 3
    found = read_study(own_run)
    assert found["knock_out"]["frames"] == 10
    assert {layer["verdict"] for layer in found["layers"]} == {"uniform"}
    assert (own_run / "attention" / "knock-out.png").is_file()


def root_of(run: Path) -> Path:
    return Path(read_settings(run / "config.yaml").data.dataset).parent


def test_the_verb_can_draw_anew_from_numbers_alone_and_leave_pictures_out(
    studied, tmp_path, capsys
):
    run = tmp_path / "record"
    (run / "attention").mkdir(parents=True)
    shutil.copy(studied / "attention" / "attention.json", run / "attention")
    main(["attention", str(run), "--numbers=false", "--pictures=false"])
    assert capsys.readouterr().out.count("small/all/seed-5") == 3 + 2  # encoder, decoder layers
    assert list((run / "attention").iterdir()) == [run / "attention" / "attention.json"]
