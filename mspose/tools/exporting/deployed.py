"""Camera images to poses in one graph: the preprocessing of `mspose.load`, the network, unit
quaternions.

All can be traced for images of any size: no branch depends on a size. B images, H x W pixels, C
pixels a side of the crop, R pixels of the image along an axis of the crop.
"""

import torch
from torch import Tensor, nn

from mspose.data.images import normalize
from mspose.models.network import PoseNetwork

PRECISION = 22  # bits of PIL's fixed-point weights
HALF = PRECISION // 2
OUTPUTS = {
    "position": "camera centre in metres, in the frame of the scene: float32 (batch, 3)",
    "orientation": "unit quaternion w x y z, w >= 0, camera-to-world: float32 (batch, 4)",
    "scene_probabilities": "of each scene that the model knows, 0 to 1: float32 (batch, scenes)",
    "scene": "index of the pose's scene among the scenes, from 0: int64 (batch)",
}
"""Outputs of a deployed network, with their shapes."""


class GraphPreprocessing(nn.Module):
    """`mspose.inference.Preprocessing` as tensor operations, with the same pixels.

    PIL resizes along rows, then along columns, each time with integer weights and rounding to whole
    pixel values; only what the centre crop keeps is computed. Integers stay exact in float32
    up to 2^24, so each weight of 22 bits is split into two halves; 11 bits are also what
    half-precision matrix units hold exactly.
    """

    def __init__(
        self, resize: int, crop: int, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        """Take the arguments of `mspose.inference.Preprocessing`."""
        super().__init__()
        self.resize, self.crop = resize, crop
        self.mean, self.std = mean, std

    def forward(self, image_BHW3: Tensor) -> Tensor:
        """RGB uint8 (B, H, W, 3) to the network's input (B, 3, crop, crop)."""
        height, width = image_BHW3.shape[1:3]
        # at least the shorter side and little more, without torch.sym_min, which older exporters
        # do not know
        squares = height * height, width * width
        short = height * width * sum(squares) // (height * squares[0] + width * squares[1]) + 1
        # pixels of the image under the crop, at least
        reach = (self.crop + 3) * short // self.resize + 6
        row_R, row_weight_2RC = self._weights(height, width, reach)
        column_R, column_weight_2RC = self._weights(width, height, reach)
        region_BRR3 = image_BHW3.index_select(1, row_R).index_select(2, column_R)
        rows_B3RC = _blend(region_BRR3.permute(0, 3, 1, 2).float(), column_weight_2RC)
        crop_B3CC = _blend(rows_B3RC.transpose(2, 3), row_weight_2RC).transpose(2, 3)
        return normalize(crop_B3CC / 255, self.mean, self.std)

    def _weights(self, length: int, other: int, reach: int) -> tuple[Tensor, Tensor]:
        """Indices of `reach` neighbouring pixels along an axis of the image, and both halves of
        their weights in each pixel of the crop.

        PIL's weight of pixel x in pixel c of the resized axis is 1 - |x + 1/2 - (c + 1/2) s| /
        max(s, 1), s the reduction, or 0, over the sum of these; here in whole numbers, times 2^22
        and rounded.
        """
        size, other_size = (torch.full((), value, dtype=torch.int64) for value in (length, other))
        resized = self.resize * size // torch.minimum(size, other_size)
        spare = resized - self.crop
        left = (spare + spare // 2 % 2) // 2  # half of it, rounded to even
        widest = torch.maximum(size, resized)
        first = (((2 * left + 1) * size - 2 * widest) // (2 * resized) - 1).clamp(min=0)
        index_R1 = (first + torch.arange(reach)).unsqueeze(1)
        pixel_1C = left + torch.arange(self.crop)
        distance_RC = ((2 * index_R1 + 1) * resized - (2 * pixel_1C + 1) * size).abs()
        share_RC = (2 * widest - distance_RC).clamp(min=0) * (index_R1 < size)
        total_1C = share_RC.sum(dim=0, keepdim=True)
        weight_RC = (share_RC * 2 ** (PRECISION + 1) + total_1C) // (2 * total_1C)
        halves_2RC = torch.stack((weight_RC // 2**HALF, weight_RC % 2**HALF)).float()
        return index_R1.squeeze(1).clamp(max=size - 1), halves_2RC


def _blend(image_B3RR: Tensor, weight_2RC: Tensor) -> Tensor:
    """Weighted sums along the last axis, rounded to whole values: floor(sum / 2^22 + 1/2)."""
    high_NC, low_NC = (image_B3RR.flatten(0, 2) @ weight_RC for weight_RC in weight_2RC.unbind())
    carried_NC = torch.floor((low_NC + 2 ** (PRECISION - 1)) / 2**HALF)
    return torch.floor((high_NC + carried_NC) / 2**HALF).unflatten(0, image_B3RR.shape[:3])


class Deployed(nn.Module):
    """A network with its preprocessing before it and unit quaternions behind it."""

    def __init__(
        self, preprocessing: GraphPreprocessing, network: PoseNetwork, scene: int | None = None
    ) -> None:
        """Wrap a network in evaluation mode; `scene` is the index of the images' scene."""
        super().__init__()
        self.preprocessing = preprocessing
        self.network = network
        self.scene = scene

    def forward(self, image_BHW3: Tensor) -> dict[str, Tensor]:
        """Map RGB uint8 (B, H, W, 3) of any size to `OUTPUTS`."""
        scene_B = None
        if self.scene is not None:
            scene_B = torch.full((image_BHW3.shape[0],), self.scene, dtype=torch.int64)
        output = self.network(self.preprocessing(image_BHW3), scene_B)
        values = (
            output.position_B3,
            unit_quaternion(output.orientation_B4),
            output.scene_log_probability_BS.exp(),
            output.scene_B,
        )
        return dict(zip(OUTPUTS, values, strict=True))


def unit_quaternion(quaternion_B4: Tensor) -> Tensor:
    """`mspose.poses.normalize_quaternion` as tensor operations: the first non-zero is positive."""
    w_B1, x_B1, y_B1, z_B1 = quaternion_B4.split(1, dim=1)
    leading_B1 = torch.where(
        w_B1 != 0, w_B1, torch.where(x_B1 != 0, x_B1, torch.where(y_B1 != 0, y_B1, z_B1))
    )
    unit_B4 = quaternion_B4 / torch.linalg.vector_norm(quaternion_B4, dim=1, keepdim=True)
    return torch.where(leading_B1 < 0, -unit_B4, unit_B4)
