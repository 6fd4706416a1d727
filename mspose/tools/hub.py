"""Push models to the Hugging Face hub: `model.safetensors`, `model.json` and a model card.

Imported where it is needed: huggingface_hub is an extra.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi

from mspose.data.cards import read_card
from mspose.errors import MsposeError, none_if_broken
from mspose.models.network import PoseNetwork
from mspose.models.stored import http_status, reason
from mspose.run import MODEL, WEIGHTS


def push(
    network: PoseNetwork,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    branch: str | None = None,
    **options: Any,
) -> str:
    """Upload a network and a model card to the Hugging Face hub; returns the commit's URL.

    Args:
        network: it knows how images are prepared (`PoseNetwork.describe`).
        repo_id: `user/name`.
        private: visible to its owner alone, where it is new.
        token: of the account, where `hf auth login` was not called.
        branch: made where it is not there (default: main).
        options: of `HfApi.upload_folder`: `commit_message`, `create_pr`, or
            `ignore_patterns="README.md"` to keep a card that is there.

    Raises:
        MsposeError: as `save_pretrained` does, and where the hub cannot be reached or refuses.
    """
    network.describe()  # says what is missing before anything is made on the hub
    api = HfApi(token=token)
    try:
        name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if branch is not None:
            api.create_branch(name, branch=branch, exist_ok=True)
        with TemporaryDirectory() as folder:
            network.save_pretrained(folder)
            Path(folder, "README.md").write_text(card_text(network, name), encoding="utf-8")
            return str(
                api.upload_folder(repo_id=name, folder_path=folder, revision=branch, **options)
            )
    except (MsposeError, TypeError):
        raise
    except Exception as error:
        login = http_status(error) in (401, 403)
        advice = "; log in with `hf auth login`, or give token=" if login else ""
        raise MsposeError(
            f"cannot push to {repo_id} on the Hugging Face hub: {reason(error)}{advice}"
        ) from error


def card_text(network: PoseNetwork, name: str) -> str:
    """The model card: metadata for the hub, scenes, units, conventions, licence, how to load it."""
    description = network.describe()
    learned = description.get("trained_on") or {}
    dataset, preprocessing = learned.get("dataset"), description["preprocessing"]
    backbone, crop = network.settings.backbone, preprocessing["crop"]
    trained = f"Trained on the data set {dataset}" if dataset else "Training data not recorded"
    if frames := learned.get("frames"):
        trained += f", {frames} frames"
    if truth := learned.get("ground_truth"):
        trained += f", ground truth `{truth}`"
    if source := learned.get("converted_from"):
        trained += f"; converted from the checkpoint `{source}`"
    scenes = ", ".join(f"`{scene}`" for scene in network.scenes)
    return f"""---
library_name: mspose
tags:
- camera-pose-estimation
- visual-localization
- absolute-pose-regression
---

# {name}: absolute camera poses by regression

One RGB image in, the camera's position and orientation and the scene out. A model of mspose, kind
`{network.kind}`, backbone `{backbone}`.

- Scenes: {scenes}. It knows no others.
- Position: the camera's centre in metres, in the scene's own frame.
- Orientation: unit quaternion `w x y z`, camera-to-world; camera axes: x right, y down, z forward.
- Images: RGB of any size; resized to {preprocessing["resize"]} pixels on the short side; the
  central {crop} x {crop} pixels are used.

{trained}. {_licence_note(dataset)}

```python
import mspose

estimator = mspose.load("{name}")
estimate = estimator(image)  # RGB uint8 (H, W, 3)
estimate.position, estimate.orientation, estimate.scene
```

The network alone, a PyTorch module:
`{type(network).__module__}.{type(network).__name__}.from_pretrained("{name}")`.
The weights are in `{WEIGHTS}`, all else that is needed in `{MODEL}`.
"""


def _licence_note(dataset: str | None) -> str:
    # the card of a data set of one's own may be elsewhere
    card = none_if_broken(lambda: read_card(dataset)) if dataset else None
    if card and card.licence:
        return f"The data set's licence, which may limit the use of the weights: {card.licence}."
    return "The licence of the training data may limit the use of the weights."
