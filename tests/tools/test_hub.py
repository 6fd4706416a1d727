"""Models from and to the Hugging Face hub: a server on this machine, or never asked."""

import json
import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

import mspose
from mspose.errors import MsposeError
from mspose.models.mspn import MSPN
from mspose.models.mstransformer import MSTransformer
from mspose.models.network import PoseNetwork
from mspose.models.stored import model_folder
from mspose.run import MODEL, WEIGHTS, load_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "somebody/rooms"
PREPARED = {"preprocessing": {"resize": 48, "crop": 40}}


@pytest.fixture
def mspn() -> MSPN:
    torch.manual_seed(0)
    return MSPN(scenes=["attic"], backbone="test_resnet", pretrained=False, head_hidden=8).eval()


def answers(network: PoseNetwork) -> torch.Tensor:
    image_B3HW = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        output = network(image_B3HW)
    return torch.cat(
        [output.position_B3, output.orientation_B4, output.scene_log_probability_BS], dim=1
    )


class Hub:
    """A server that speaks as much of the hub's language as a download needs."""

    def __init__(self, folder: Path):
        self.files = {name: (folder / name).read_bytes() for name in (WEIGHTS, MODEL)}
        self.files["harmful.bin"] = b"not to be downloaded"
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                hub.asked.append(f"{self.command} {path}")
                if path in (f"/api/models/{NAME}", f"/api/models/{NAME}/revision/main"):
                    files = [{"rfilename": name} for name in hub.files]
                    self.answer(json.dumps({"id": NAME, "sha": COMMIT, "siblings": files}).encode())
                elif path.startswith(f"/api/models/{NAME}/tree/"):
                    entries = [
                        {
                            "type": "file",
                            "path": name,
                            "size": len(data),
                            "oid": f"{len(data):040x}",
                        }
                        for name, data in hub.files.items()
                    ]
                    self.answer(json.dumps(entries).encode())
                elif path.startswith(f"/{NAME}/resolve/"):
                    self.answer(hub.files[path.rpartition("/")[2]])
                else:
                    self.answer(b'{"error": "Repository not found"}', 404, "RepoNotFound")

            def answer(self, data: bytes, status: int = 200, error: str = "") -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.send_header("ETag", f'"{len(data):040x}"')
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("X-Error-Code", error)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def ask_at(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        address + "/{repo_id}/resolve/{revision}/{filename}",
    )


@pytest.fixture
def hub(small_run, monkeypatch, tmp_path):
    """A hub that has the model of `small_run` as NAME; its cache is empty."""
    from huggingface_hub import constants

    there = Hub(small_run)
    ask_at(there.address, monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    yield there
    there.stop()


@pytest.fixture
def never_asked(monkeypatch, tmp_path):
    """Whoever asks the hub fails."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("never_asked")
def test_a_run_folder_gives_its_network_and_saves_as_the_same_two_files(small_run, tmp_path):
    network = MSTransformer.from_pretrained(small_run)
    assert isinstance(network, MSTransformer)
    assert not network.training
    assert torch.equal(answers(network), answers(mspose.load(small_run, device="cpu").network))
    network.save_pretrained(tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == sorted([WEIGHTS, MODEL])
    for name in (WEIGHTS, MODEL):
        assert (tmp_path / "saved" / name).read_bytes() == (small_run / name).read_bytes()
    again = MSTransformer.from_pretrained(str(tmp_path / "saved"))
    assert torch.equal(answers(network), answers(again))


@pytest.mark.usefixtures("never_asked")
def test_a_network_made_by_hand_says_what_is_missing_and_then_loads_anywhere(mspn, tmp_path):
    with pytest.raises(
        MsposeError, match=r"resize and crop missing.*network.description = "
    ) as raised:
        mspn.save_pretrained(tmp_path / "mspn")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "mspn").exists()
    mspn.description = PREPARED
    mspn.save_pretrained(tmp_path / "mspn")
    again = MSPN.from_pretrained(tmp_path / "mspn")
    assert torch.equal(answers(again), answers(mspn))
    estimator = mspose.load(tmp_path / "mspn")
    assert (estimator.preprocessing.resize, estimator.preprocessing.crop) == (48, 40)
    assert estimator.preprocessing.mean == mspn.mean


@pytest.mark.usefixtures("never_asked")
def test_a_class_does_not_load_another_kind(small_run, mspn, tmp_path):
    mspn.description = PREPARED
    mspn.save_pretrained(tmp_path)
    with pytest.raises(MsposeError, match="holds a network of kind ms-transformer, not mspn"):
        MSPN.from_pretrained(small_run)
    with pytest.raises(MsposeError, match="holds a network of kind mspn, not ms-transformer"):
        MSTransformer.from_pretrained(tmp_path)
    assert isinstance(mspose.load(tmp_path).network, MSPN)


def test_another_program_s_model_is_not_replaced_but_our_own_is(mspn, tmp_path):
    mspn.description = PREPARED
    (tmp_path / WEIGHTS).write_bytes(b"theirs")
    with pytest.raises(MsposeError, match="holds a model that is not mspose's"):
        mspn.save_pretrained(tmp_path)
    assert (tmp_path / WEIGHTS).read_bytes() == b"theirs"
    (tmp_path / WEIGHTS).unlink()
    for _ in range(2):
        mspn.save_pretrained(tmp_path)
    assert torch.equal(answers(MSPN.from_pretrained(tmp_path)), answers(mspn))


def test_a_description_that_is_no_json_leaves_nothing_half_written(mspn, tmp_path):
    mspn.description = {**PREPARED, "notes": {1, 2}}
    with pytest.raises(TypeError):
        mspn.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.usefixtures("never_asked")
@pytest.mark.parametrize(
    "name",
    ["nowhere", "/no/model", "./runs/none", "runs/none", "a/b/c", "user/", "a b/c", "-x/y", "~/m"],
)
def test_what_is_no_name_on_the_hub_is_never_asked_for(name, tmp_path):
    (tmp_path / "runs").mkdir()  # and so runs/none is a mistyped folder
    with pytest.raises(MsposeError, match=r"holds no model \(model.json is missing\)"):
        mspose.load(name)


@pytest.mark.usefixtures("never_asked")
def test_without_huggingface_hub_one_line_says_what_to_install():
    with pytest.raises(MsposeError, match=r"pip install huggingface_hub") as raised:
        mspose.load(NAME)
    assert "\n" not in str(raised.value)


def test_a_model_of_the_hub_answers_as_that_of_the_folder(hub, small_run, tmp_path, caplog):
    caplog.set_level("INFO", "mspose")
    network = MSTransformer.from_pretrained(NAME)
    assert torch.equal(answers(network), answers(MSTransformer.from_pretrained(small_run)))
    assert f"{NAME}: from the Hugging Face hub, commit {COMMIT[:12]}" in caplog.text
    assert not any("harmful" in path or "config.json" in path for path in hub.asked)
    folder = model_folder(Path(NAME))
    assert sorted(path.name for path in folder.iterdir()) == sorted([WEIGHTS, MODEL])
    assert tmp_path / "cache" in folder.parents
    assert mspose.load(NAME).description == load_model(small_run)[1]
    before = len(hub.asked)
    again = MSTransformer.from_pretrained(NAME, local_files_only=True)
    assert len(hub.asked) == before
    assert torch.equal(answers(again), answers(network))
    hub.stop()
    assert torch.equal(
        answers(MSTransformer.from_pretrained(NAME)), answers(network)
    )  # offline: the copy


def test_options_of_a_download_reach_the_hub(hub, tmp_path):
    with pytest.raises(MsposeError, match="no such model with a revision v2"):
        MSTransformer.from_pretrained(NAME, revision="v2")
    MSTransformer.from_pretrained(
        NAME, revision="main", cache_dir=tmp_path / "other", token="hf_secret"
    )
    assert any((tmp_path / "other").rglob(MODEL))
    assert f"GET /api/models/{NAME}/revision/v2" in hub.asked


def test_neither_a_folder_nor_a_model_of_the_hub(hub):
    with pytest.raises(
        MsposeError,
        match=r"runs/none holds no model: there is no such folder here, .* hub has no such",
    ):
        mspose.load("runs/none")
    with pytest.raises(MsposeError, match=r"a\.\.b/none holds no model"):
        mspose.load("a..b/none")
    with pytest.raises(MsposeError, match="not downloaded from the Hugging Face hub before"):
        MSTransformer.from_pretrained(NAME, local_files_only=True)
    hub.stop()
    with pytest.raises(
        MsposeError, match=r"not downloaded .* before; the Hugging Face hub does not answer"
    ) as raised:
        mspose.load("runs/none")
    assert "\n" not in str(raised.value)


def test_pushing_uploads_the_two_files_and_a_card(small_run, monkeypatch, tmp_path):
    from huggingface_hub import HfApi, ModelCard
    from huggingface_hub.hf_api import RepoUrl

    from mspose.tools.hub import push

    seen = {}

    def create(self, repo_id, **options):
        seen["private"] = options["private"]
        return RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload(self, *, repo_id, folder_path, commit_message, **_):
        seen.update(repo_id=repo_id, message=commit_message)
        shutil.copytree(folder_path, tmp_path / "uploaded")
        return "https://huggingface.co/commit"

    monkeypatch.setattr(HfApi, "create_repo", create)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    network = MSTransformer.from_pretrained(small_run)
    assert (
        push(network, NAME, private=True, commit_message="two rooms")
        == "https://huggingface.co/commit"
    )
    assert seen == {"private": True, "repo_id": NAME, "message": "two rooms"}
    assert sorted(path.name for path in (tmp_path / "uploaded").iterdir()) == [
        "README.md",
        MODEL,
        WEIGHTS,
    ]
    assert torch.equal(
        answers(MSTransformer.from_pretrained(tmp_path / "uploaded")), answers(network)
    )
    card = ModelCard.load(tmp_path / "uploaded" / "README.md")
    assert card.data.library_name == "mspose"
    for said in (
        "`attic`, `cellar`",
        "metres",
        "w x y z",
        f'mspose.load("{NAME}")',
        "data set small",
    ):
        assert said in card.text, said


def test_what_keeps_a_push_from_succeeding_is_one_line(hub, mspn):
    from mspose.tools.hub import push

    with pytest.raises(MsposeError, match="resize and crop missing"):
        push(mspn, NAME)
    assert hub.asked == []
    mspn.description = PREPARED
    with pytest.raises(MsposeError, match=rf"cannot push to {NAME}") as raised:
        push(mspn, NAME)
    assert "\n" not in str(raised.value)


def test_the_card_quotes_the_licence_that_the_data_set_s_card_names(mspn):
    from mspose.tools.hub import card_text

    mspn.description = {
        **PREPARED,
        "trained_on": {"dataset": "virtual", "frames": 10, "ground_truth": "rendered"},
    }
    assert "MIT, as the code that renders it" in card_text(mspn, NAME)
    mspn.description = PREPARED
    assert "Training data not recorded. The licence of the training data" in card_text(mspn, NAME)
