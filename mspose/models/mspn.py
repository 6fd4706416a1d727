"""MSPN, the multi-scene PoseNet (Blanton, Greenwell, Workman and Jacobs, Extending Absolute Pose
Regression to Multiple Scenes, CVPR Workshops 2020): the baseline without attention.

From the paper: one feature extractor for all scenes, which also classify the scene, and regression
weights per scene, chosen by the true scene in training and by the predicted one otherwise. From
PoseNet (Kendall, Grimes and Cipolla, ICCV 2015): one hidden layer with ReLU and dropout, linear
regressors. Backbone, loss and recipe are those of MS-Transformer here, so that the two compare.
B images, S scenes, C channels.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mspose.config import ModelSettings
from mspose.models.backbone import make_backbone
from mspose.models.network import Observer, PoseNetwork, PoseOutput, without_autocast


class MSPN(PoseNetwork):
    """The mean over space of the backbone's stride-16 map and a hidden layer for all scenes, a
    scene classifier, linear pose heads per scene.

    It reads the settings `backbone`, `pretrained`, `head_hidden` (the hidden layer's width) and
    `dropout` (of the hidden layer), and no others.
    """

    kind = "mspn"
    has_attention = False
    shaping = ("backbone", "head_hidden")

    def __init__(
        self, scenes: Sequence[str], settings: ModelSettings | None = None, **changes: Any
    ) -> None:
        """As `PoseNetwork`."""
        super().__init__(scenes, settings, **changes)
        hidden = self.settings.head_hidden
        self.backbone = make_backbone(self.settings.backbone, pretrained=self.settings.pretrained)
        self.hidden = nn.Linear(self.backbone.position_channels, hidden)
        self.dropout = nn.Dropout(self.settings.dropout)
        self.scene = nn.Linear(hidden, len(self.scenes))
        # The heads of all scenes side by side: rows 3 s .. 3 s + 2, and 4 s .. 4 s + 3, are those
        # of scene s.
        self.position_head = nn.Linear(hidden, 3 * len(self.scenes))
        self.orientation_head = nn.Linear(hidden, 4 * len(self.scenes))

    def forward(
        self,
        image_B3HW: Tensor,
        scene_B: Tensor | None = None,
        *,
        observer: Observer | None = None,  # noqa: ARG002
    ) -> PoseOutput:
        """As `PoseNetwork.forward`; there is no attention, so that the observer is never called."""
        self._check_input(image_B3HW, scene_B)
        map_BCHW, _ = self.feature_maps(image_B3HW)
        # Positions in half precision would be rounded to centimetres, so nothing after the backbone
        # computes in it.
        with without_autocast(image_B3HW.device):
            feature_BC = map_BCHW.mean(dim=(2, 3), dtype=self.scene.weight.dtype)
            hidden_BC = self.dropout(F.relu(self.hidden(feature_BC)))
            log_probability_BS = F.log_softmax(self.scene(hidden_BC), dim=-1)
            if scene_B is None:
                scene_B = log_probability_BS.argmax(dim=-1)
            image_B = torch.arange(scene_B.shape[0], device=scene_B.device)
            position_BS3 = self.position_head(hidden_BC).unflatten(-1, (-1, 3))
            orientation_BS4 = self.orientation_head(hidden_BC).unflatten(-1, (-1, 4))
            return PoseOutput(
                position_B3=position_BS3[image_B, scene_B],
                orientation_B4=orientation_BS4[image_B, scene_B],
                scene_log_probability_BS=log_probability_BS,
                scene_B=scene_B,
                query_key_gap={},
            )
