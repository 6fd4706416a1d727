"""Push models to the Hugging Face hub: `model.safetensors`, `model.json` and a model card.

Imported where it is needed: huggingface_hub is an extra.
"""

from pathlib import Path
from typing import Any, Self

from huggingface_hub import ModelCard, ModelHubMixin

from mspose.data.cards import read_card
from mspose.errors import MsposeError
from mspose.models.network import PoseNetwork
from mspose.models.stored import http_status as _status
from mspose.models.stored import reason as _reason
from mspose.run import MODEL, WEIGHTS


class HubModel(ModelHubMixin):
    """A network for the hub's mixin, which uploads the files that `save_pretrained` writes.

    The network does not inherit from the mixin, which would add a second description of it, a
    config.json.
    """

    network: PoseNetwork
    name: str
    """`user/name`."""

    @classmethod
    def of(cls, network: PoseNetwork, name: str) -> Self:
        """Wrap a network; arguments of `__init__` would be written into config.json."""
        model = cls()
        model.network, model.name = network, name
        return model

    def _save_pretrained(self, save_directory: Path) -> None:
        self.network.save_pretrained(save_directory)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:  # noqa: ARG002
        """The README.md beside the model."""
        return ModelCard(card_text(self.network, self.name))


def push(network: PoseNetwork, repo_id: str, **options: Any) -> str:
    """Upload a network and a model card to the Hugging Face hub; returns the commit's URL.

    `repo_id` is `user/name`; `options` (`private`, `token`, `branch`, `commit_message`,
    `create_pr`, or `ignore_patterns="README.md"` to keep a card that is there) are those of
    `ModelHubMixin.push_to_hub`. Raises MsposeError as `save_pretrained` does, and where the hub
    cannot be reached or refuses.
    """
    network.describe()  # says what is missing before anything is made on the hub
    try:
        return str(HubModel.of(network, repo_id).push_to_hub(repo_id, **options))
    except (MsposeError, TypeError):
        raise
    except Exception as error:
        advice = (
            "; log in with `hf auth login`, or give token=" if _status(error) in (401, 403) else ""
        )
        raise MsposeError(
            f"cannot push to {repo_id} on the Hugging Face hub: {_reason(error)}{advice}"
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
    try:
        licence = read_card(dataset).licence if dataset else ""
    except MsposeError:  # a data set of one's own, whose card is elsewhere
        licence = ""
    if licence:
        return f"The data set's licence, which may limit the use of the weights: {licence}."
    return "The licence of the training data may limit the use of the weights."
