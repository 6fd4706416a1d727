import copy
import io
import json
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mspose
from mspose.cli import main
from mspose.errors import MsposeError
from mspose.tools.exporting import export
from mspose.tools.exporting.deployed import OUTPUTS
from mspose.tools.exporting.export import export_run
from mspose.tools.exporting.formats import trace

FILES = {"torch-export": "model.pt2", "onnx": "model.onnx"}
PAGE = (Path(__file__).parents[3] / "docs" / "tools.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def exported(small_run, tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """A run with a file of each format in it, and what was printed."""
    pytest.importorskip("onnxruntime")
    run = Path(shutil.copytree(small_run, tmp_path_factory.mktemp("exported") / "run"))
    printed, programs = {}, []

    def trace_once(module):  # it takes seconds, and is the same for both
        if not programs:
            programs.append(trace(module))
        return programs[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "trace", trace_once)
        for name in FILES:
            out, err = io.StringIO(), io.StringIO()
            with redirect_stdout(out), redirect_stderr(err):
                main(["export", str(run), "--format", name])
            assert err.getvalue() == ""
            printed[name] = out.getvalue()
    return run, printed


@pytest.fixture(scope="module")
def session(exported):
    import onnxruntime

    path = exported[0] / "model.onnx"
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def program(exported) -> tuple[torch.export.ExportedProgram, dict]:
    """The file of torch.export, and what it says of itself."""
    extra = {"metadata.json": ""}
    program = torch.export.load(exported[0] / "model.pt2", extra_files=extra)
    return program, json.loads(extra["metadata.json"])


@pytest.fixture(scope="module")
def answers(session, program):
    """Functions of images that open the files as a user does."""
    program = program[0].module()
    return {
        "onnx": lambda image: dict(zip(OUTPUTS, session.run(None, {"image": image}), strict=True)),
        "torch-export": lambda image: {
            name: x.numpy() for name, x in program(torch.from_numpy(image)).items()
        },
    }


@pytest.mark.parametrize("name", FILES)
def test_what_was_written_is_said(exported, name):
    run, printed = exported
    lines = printed[name].splitlines()
    assert re.fullmatch(rf"{run}/{FILES[name]} \(\d+\.\d MB\)", lines[-1])
    assert re.search(
        r"deviation from mspose.load: position \d\.\de-0[5-9] m, .* over 14 images", lines[-2]
    )
    assert lines[0].startswith(
        "input   image: RGB image of any size: uint8 (batch, height, width, 3)"
    )
    assert [line.split()[1].rstrip(":") for line in lines[1:-2]] == list(OUTPUTS)


def test_the_files_are_whole(exported, small_run):
    names = {path.name for path in exported[0].iterdir()} - {
        path.name for path in small_run.iterdir()
    }
    assert names == set(FILES.values())  # no second file with weights, no temporary one


@pytest.mark.parametrize("name", FILES)
def test_images_of_any_number_and_size_get_the_poses_of_the_model(answers, exported, name):
    estimator = mspose.load(exported[0], "cpu")
    rng = np.random.default_rng(1)
    for shape in ((1, 60, 80, 3), (7, 81, 47, 3), (4, 48, 48, 3), (2, 1, 1, 3), (1, 500, 901, 3)):
        image_BHW3 = rng.integers(0, 256, shape, dtype=np.uint8)
        found = answers[name](image_BHW3)
        kinds = {key: (value.dtype, value.shape) for key, value in found.items()}
        batch = shape[0]
        assert kinds == {
            "position": (np.float32, (batch, 3)),
            "orientation": (np.float32, (batch, 4)),
            "scene_probabilities": (np.float32, (batch, 2)),
            "scene": (np.int64, (batch,)),
        }
        for index, estimate in enumerate(estimator.estimates(list(image_BHW3))):
            np.testing.assert_allclose(found["position"][index], estimate.position, atol=1e-4)
            np.testing.assert_allclose(found["orientation"][index], estimate.orientation, atol=1e-4)
            probabilities = list(estimate.scene_probabilities.values())
            np.testing.assert_allclose(
                found["scene_probabilities"][index], probabilities, atol=1e-4
            )
            assert estimator.scenes[found["scene"][index]] == estimate.scene


def test_the_files_say_what_they_are(session, program, small_run):
    in_onnx = session.get_modelmeta().custom_metadata_map
    _, told = program
    description = json.loads((small_run / "model.json").read_text())
    assert told["scenes"] == ["attic", "cellar"]
    assert told["outputs"] == OUTPUTS
    assert "camera-to-world" in told["conventions"]
    assert told["config_hash"] == description["config_hash"]
    assert told["preprocessing"]["crop"] == 40
    assert told["made_by"].startswith(f"mspose {mspose.__version__}, torch ")
    assert {
        key: told[key] if isinstance(told[key], str) else json.loads(in_onnx[key]) for key in told
    } == told
    assert set(in_onnx) == set(told)
    (image,) = session.get_inputs()
    assert (image.name, image.type) == ("image", "tensor(uint8)")
    assert image.shape == ["batch", "height", "width", 3]
    assert {output.name: output.shape for output in session.get_outputs()} == {
        "position": ["batch", 3],
        "orientation": ["batch", 4],
        "scene_probabilities": ["batch", 2],
        "scene": ["batch"],
    }


def test_the_documented_lines_run_without_mspose(exported, tmp_path):
    blocks = [
        block for block in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "model.onnx" in block
    ]
    (code,) = blocks
    for file in FILES.values():
        shutil.copy(exported[0] / file, tmp_path)
    Image.fromarray(np.full((60, 80, 3), 90, np.uint8)).save(tmp_path / "image.jpg")
    code += "import sys\nassert 'mspose' not in sys.modules\n"
    code += "print(position[0], poses['position'][0].tolist())\n"
    words, options = [sys.executable, "-c", code], {"capture_output": True, "text": True}
    finished = subprocess.run(words, cwd=tmp_path, check=False, timeout=120, **options)
    assert finished.returncode == 0, finished.stderr
    found = re.findall(r"-?\d+\.\d*(?:e-?\d+)?", finished.stdout.splitlines()[-1])
    numbers = [float(number) for number in found]
    np.testing.assert_allclose(numbers[:3], numbers[3:], atol=1e-4)


def test_a_file_that_answers_otherwise_is_not_kept(exported, program, tmp_path, monkeypatch):
    another = copy.deepcopy(program[0])
    with torch.no_grad():
        another.state_dict["network.position_head.out.bias"] += 3e-4
    monkeypatch.setattr(export, "trace", lambda _: another)
    (tmp_path / "model.pt2").write_bytes(b"what was there before")
    message = r"not kept: largest deviation position 3\.0e-04 m, .*; at most 0\.0001"
    with pytest.raises(MsposeError, match=message):
        export_run(exported[0], format="torch-export", out=tmp_path / "model.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]
    assert (tmp_path / "model.pt2").read_bytes() == b"what was there before"


def fail(*_):
    print("much talk")
    raise RuntimeError("\n\ncannot do this\nand so on") from ValueError("no such operation\nat all")


@pytest.mark.parametrize("step", ["trace", "deviation"])
def test_what_exporters_and_readers_do_not_take_is_one_line(
    exported, tmp_path, monkeypatch, capsys, step
):
    format = export.FORMATS["onnx"]._replace(write=lambda *_: b"", open=lambda _: None)
    monkeypatch.setitem(export.FORMATS, "onnx", format)
    monkeypatch.setattr(export, "trace", lambda _: None)
    monkeypatch.setattr(export, step, fail)
    with pytest.raises(MsposeError, match=r"run cannot be exported as onnx: no such operation$"):
        export_run(exported[0], format="onnx", out=tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        ("{folder} --format onnx", "holds no model"),
        ("{run} --format onnx --scene garage", "scene garage is unknown .*: attic, cellar"),
        ("{run} --format onnx --out {folder}", "cannot write .*: it is a folder"),
        ("{run} --format torch-export --out {folder}/model.onnx", "--out .* ends in .pt2"),
        ("{run} --format onnx --out {run}/model.json/model.onnx", "cannot write .*model.onnx: "),
        ("{run} --format tflite", "onnx.*torch-export"),
        ("{run}", "format"),
    ],
)
def test_what_cannot_be_exported_is_said_in_one_line(exported, tmp_path, refused, words, pattern):
    refused(pattern, "export", *words.format(run=exported[0], folder=tmp_path).split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_without_the_extra_it_is_named(small_run, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    message = rf"--format onnx needs {package}: pip install onnx onnxscript onnxruntime"
    with pytest.raises(MsposeError, match=message):
        export_run(small_run, format="onnx", out=tmp_path / "model.onnx")


def test_a_model_without_finite_answers_is_not_exported(small_run, tmp_path, monkeypatch):
    run = Path(shutil.copytree(small_run, tmp_path / "run"))
    estimator = mspose.load(run, "cpu")
    with torch.no_grad():
        estimator.network.position_head.out.bias[0] = torch.nan
    monkeypatch.setattr(export, "load", lambda *_: estimator)
    monkeypatch.setattr(export, "trace", lambda _: pytest.fail("it was traced all the same"))
    with pytest.raises(MsposeError, match="is no pose"):
        export_run(run, format="torch-export")
    assert not (run / "model.pt2").exists()
