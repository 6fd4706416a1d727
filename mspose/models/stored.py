"""Reading stored models: where they lie, what built them, their weights."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mspose.config import ModelSettings
from mspose.errors import MsposeError
from mspose.libraries import require
from mspose.run import MODEL, WEIGHTS

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
"""`user/name`."""
HUB_TIMEOUT = 10.0
"""Seconds that the hub has to say whether there is a model."""
log = logging.getLogger("mspose")


def model_folder(source: Path | str, **hub_options: Any) -> Path:
    """Return the folder of a model: `source` itself, or where the model `user/name` of the Hugging
    Face hub was downloaded to (see `download`).

    The hub is asked for a name of the form `user/name` that is no folder here and does not begin
    with one, as a mistyped `runs/name` does.
    """
    folder, name = Path(source), str(source)
    if folder.exists() or HUB_NAME.fullmatch(name) is None or folder.parent.exists():
        return folder
    return download(name, **hub_options)


def download(
    name: str,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    **options: Any,
) -> Path:
    """Fetch the two files of the model `user/name`, both of one commit, into the hub's cache.

    All options are those of `huggingface_hub.snapshot_download`. Where the hub does not answer
    within HUB_TIMEOUT seconds, a model that was downloaded before is taken from the cache.

    Raises:
        MsposeError: huggingface_hub is not installed, there is no such model, or neither an answer
            nor a copy in the cache.
    """
    nowhere = f"{name} holds no model: there is no such folder here"
    try:
        require("huggingface_hub")
    except MsposeError as error:
        raise MsposeError(f"{nowhere}, and {error}") from error
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError

    no_answer = ""
    if not local_files_only:
        try:  # downloads themselves wait long for a network that is not there
            HfApi(token=token).model_info(name, revision=revision, timeout=HUB_TIMEOUT)
        except Exception as error:  # of the hub, its HTTP client or the network: of many kinds
            if (status := http_status(error)) in (400, 401, 403, 404) or isinstance(
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
            no_answer = reason(error)
    here_only = local_files_only or bool(no_answer)
    where = {"revision": revision, "token": token, "local_files_only": here_only, **options}
    try:
        folder = Path(snapshot_download(name, allow_patterns=[WEIGHTS, MODEL], **where))
    except Exception as error:
        if not here_only:
            raise MsposeError(
                f"cannot download {name} from the Hugging Face hub: {reason(error)}"
            ) from error
        asked = f"; the Hugging Face hub does not answer ({no_answer})" if no_answer else ""
        raise MsposeError(
            f"{nowhere}, and it was not downloaded from the Hugging Face hub before{asked}"
        ) from error
    log.info("%s: from the Hugging Face hub, commit %s", name, folder.name[:12])
    return folder


def http_status(error: Exception) -> int | None:
    """Status of the answer that an HTTP client raised; None where there was no answer."""
    return getattr(getattr(error, "response", None), "status_code", None)


def reason(error: Exception) -> str:
    """First line of an error's text, at most 200 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].removesuffix(".")[:200] if lines else type(error).__name__


def read_construction(
    description: Mapping[str, Any], source: Path | str
) -> tuple[ModelSettings, list[str]]:
    """Return the settings that built a model, and its scenes, as its `model.json` says.

    Models of earlier versions, which have `kind` and `architecture` in place of `settings` and
    `scenes`, are read too: a setting that such a file does not name has its default.

    Raises:
        MsposeError: there are none, naming `source`.
    """
    try:
        if "architecture" in description:
            named = {"kind": description["kind"], **description["architecture"]}
            scenes = named.pop("scenes")
        else:
            named, scenes = description["settings"], description["scenes"]
        if not isinstance(scenes, list):
            raise TypeError(f"scenes is {scenes!r:.40}, expected a list of names")
        return ModelSettings(**named), scenes
    except (KeyError, TypeError, ValueError) as error:
        raise unfit_description(source, error) from error


def unfit_description(source: Path | str, why: Exception | str) -> MsposeError:
    """Make the error of a `model.json` that describes no model of this version."""
    return MsposeError(f"{source}/{MODEL} does not describe a model of this version: {why}")


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """Fill the network; MsposeError names what is missing, left over or of another shape."""
    own = network.state_dict()
    wrong = [f"{name} is missing" for name in own if name not in weights]
    wrong += [f"{name} is not part of this model" for name in weights if name not in own]
    wrong += [
        f"{name} is {tuple(weights[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise MsposeError(
            f"{source} holds a model of another architecture: {'; '.join(wrong[:3])}{more}"
        )
    network.load_state_dict(weights)
