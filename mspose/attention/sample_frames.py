"""The attention of a few sample frames as plain arrays, for figures.

`mspose.studies.attention_study` lists the arrays. B images, H heads, N tokens, M chosen queries, P
chosen points, R queries of a chunk, S scenes, D channels per head.
"""

import math
from collections import defaultdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mspose.data.batches import Batch, Batches
from mspose.data.frames import evenly
from mspose.models.attention_map import AttentionMap
from mspose.models.network import Observer

CHOSEN_QUERIES = ((0.5, 0.5), (0.2, 0.2), (0.2, 0.8), (0.8, 0.2), (0.8, 0.8))
"""Rows and columns of the chosen encoder queries, as shares of the map's sides: the centre and
towards the corners.
"""
POINTS = 1024
"""Tokens whose queries and keys are kept at most: all of a 28 x 28 map."""


class SampleFrames(Observer):
    """Keeps the attention of sample frames. Maps are square, as the network's crops are."""

    def __init__(self) -> None:
        self._of_frames: dict[str, list[NDArray[Any]]] = defaultdict(list)
        self._once: dict[str, NDArray[Any]] = {}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return everything kept so far by name."""
        return self._once | {name: np.concatenate(parts) for name, parts in self._of_frames.items()}

    def frames(self, batch: Batch, batches: Batches) -> None:
        """Keep the images of a batch, as the network gets them, with their names and scenes."""
        image_B3HW = denormalized(batch, batches)
        self._add("image_F", (255 * image_B3HW).round().permute(0, 2, 3, 1), torch.uint8)
        for name, column in (("names", "image"), ("scenes", "scene")):
            self._of_frames[name].append(batches.frames[column].iloc[batch.row].to_numpy(dtype=str))

    def encoder(self, branch: str, layer: int, attention: AttentionMap) -> None:
        """Keep the attention of a few queries, what each key receives, and of the first frame
        queries and keys.
        """
        name, tokens = f"encoder/{branch}/{layer + 1}", attention.query_BHQD.shape[2]
        side = math.isqrt(tokens)
        query_M = query_tokens(side)
        self._once[f"encoder/{branch}/queries"] = np.stack(np.divmod(query_M, side), axis=1).astype(
            np.int16
        )
        chosen = torch.from_numpy(query_M).to(attention.query_BHQD.device)
        weight_BHMN = attention.of_queries(chosen).log_weight().exp()
        self._add(f"{name}/attention", weight_BHMN.unflatten(-1, (side, side)), torch.float16)

        received_BHN = weight_BHMN.new_zeros(*weight_BHMN.shape[:2], tokens)
        votes_BHN = torch.zeros_like(received_BHN)
        for log_weight_BHRN in attention.log_weights():
            received_BHN += log_weight_BHRN.exp().sum(dim=2)
            best_BHR = log_weight_BHRN.argmax(dim=-1)
            votes_BHN.scatter_add_(2, best_BHR, torch.ones_like(best_BHR, dtype=votes_BHN.dtype))
        self._add(
            f"{name}/received", (received_BHN / tokens).unflatten(-1, (side, side)), torch.float32
        )
        self._add(f"{name}/votes", votes_BHN.unflatten(-1, (side, side)), torch.int16)

        if f"space/{branch}/{layer + 1}/1/query" not in self._once:
            token_P = evenly(tokens, POINTS)
            self._once[f"space/{branch}/tokens"] = token_P.astype(np.int16)
            for kind, points_HND in (
                ("query", attention.query_BHQD[0]),
                ("key", attention.key_BHKD[0]),
            ):
                for head, points_ND in enumerate(points_HND.float().cpu().numpy(), start=1):
                    self._once[f"space/{branch}/{layer + 1}/{head}/{kind}"] = points_ND[token_P]

    def decoder(self, branch: str, layer: int, weight_BHSN: Tensor) -> None:
        """Keep the attention of every scene's query."""
        side = math.isqrt(weight_BHSN.shape[-1])
        weight_BHSHW = weight_BHSN.unflatten(-1, (side, side))
        self._add(f"decoder/{branch}/{layer + 1}/attention", weight_BHSHW, torch.float16)

    def _add(self, name: str, values: Tensor, dtype: torch.dtype) -> None:
        self._of_frames[name].append(values.to(dtype).cpu().numpy())


def denormalized(batch: Batch, batches: Batches) -> Tensor:
    """Return image_B3HW of a batch in RGB 0..1, on the CPU."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (batches.mean, batches.std))
    return (batch.image_B3HW.float().cpu() * std + mean).clamp(0, 1)


def query_tokens(side: int) -> NDArray[np.int64]:
    """Return the numbers of the tokens at `CHOSEN_QUERIES` of a map of side times side tokens,
    row-major, each once.
    """
    cells = np.minimum((np.array(CHOSEN_QUERIES) * side).astype(np.int64), side - 1)
    tokens = cells[:, 0] * side + cells[:, 1]
    return tokens[np.sort(np.unique(tokens, return_index=True)[1])]
