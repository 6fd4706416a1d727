"""Push models to the Hugging Face hub: `model.safetensors`, `model.json` and a model card.

Imported where it is needed: huggingface_hub is an extra.
"""

import logging
from pathlib import Path
from typing import Any, Self

from huggingface_hub import HfApi, ModelCard, ModelHubMixin, snapshot_download
from huggingface_hub.errors import HFValidationError

from mspose.data.cards import read_card
from mspose.errors import MsposeError
from mspose.models.network import PoseNetwork
from mspose.models.stored import describe_network, save_network
from mspose.run import MODEL, WEIGHTS

ANSWER = 10.0
"""Seconds that the hub has to say whether there is a model."""
log = logging.getLogger("mspose")


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
        save_network(self.network, save_directory)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:  # noqa: ARG002
        """The README.md beside the model."""
        return ModelCard(card_text(self.network, self.name))


def download(
    name: str,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    **options: Any,
) -> Path:
    """The folder, in the hub's cache, with the two files of the model `user/name`.

    All options are those of `huggingface_hub.snapshot_download`. Where the hub does not answer
    within ANSWER seconds, a model that was downloaded before is taken from the cache. Raises
    MsposeError where there is no such model, or neither an answer nor a copy in the cache.
    """
    nowhere = f"{name} holds no model: there is no such folder here"
    no_answer = ""
    if not local_files_only:
        try:  # downloads themselves wait long for a network that is not there
            HfApi(token=token).model_info(name, revision=revision, timeout=ANSWER)
        except (
            Exception
        ) as error:  # of the hub, its HTTP client (which differs between versions) or the network
            if (status := _status(error)) in (400, 401, 403, 404) or isinstance(
                error, HFValidationError
            ):
                what = f"such model with a revision {revision}" if revision else "such model"
                private = (
                    ""
                    if status is None
                    else " that may be read (a private one: after `hf auth login`)"
                )
                raise MsposeError(
                    f"{nowhere}, and the Hugging Face hub has no {what}{private}"
                ) from error
            no_answer = _reason(error)
    here_only = local_files_only or bool(no_answer)
    where = {"revision": revision, "token": token, "local_files_only": here_only, **options}
    try:
        folder = Path(snapshot_download(name, allow_patterns=[WEIGHTS, MODEL], **where))
    except Exception as error:
        if not here_only:
            raise MsposeError(
                f"cannot download {name} from the Hugging Face hub: {_reason(error)}"
            ) from error
        asked = f"; the Hugging Face hub does not answer ({no_answer})" if no_answer else ""
        raise MsposeError(
            f"{nowhere}, and it was not downloaded from the Hugging Face hub before{asked}"
        ) from error
    log.info("%s: from the Hugging Face hub, commit %s", name, folder.name[:12])
    return folder


def push(network: PoseNetwork, repo_id: str, **options: Any) -> str:
    """Upload a network and its model card; see `PoseNetwork.push_to_hub`."""
    describe_network(network)  # says what is missing before anything is made on the hub
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


def _status(error: Exception) -> int | None:
    """HTTP status of the answer in an error; None where there was no answer."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _reason(error: Exception) -> str:
    """The first line of an error that is not empty."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].removesuffix(".")[:200] if lines else type(error).__name__


def card_text(network: PoseNetwork, name: str) -> str:
    """The model card: metadata for the hub, scenes, units, conventions, licence, how to load it."""
    description = describe_network(network)
    learned = description.get("trained_on") or {}
    dataset, preprocessing = learned.get("dataset"), description["preprocessing"]
    backbone, crop = network.architecture["backbone"], preprocessing["crop"]
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
