"""MSPN, the multi-scene PoseNet (Blanton, Greenwell, Workman and Jacobs, Extending Absolute Pose
Regression to Multiple Scenes, CVPR Workshops 2020): the baseline without attention.

What is the paper's: one extractor of features for all scenes, which also classify the scene, and
scene-specific weights of the regression, chosen by the true scene in training and by the predicted
one otherwise. What is this repository's,
so that its networks compare: backbone, loss and recipe. PoseNet's (Kendall, Grimes and Cipolla,
ICCV 2015): one hidden layer with ReLU and dropout, linear regressors. B images, S scenes, C
channels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mspose.models.backbone import make_backbone
from mspose.models.kernels import Dropout, Linear
from mspose.models.network import (
    Observer,
    PoseNetwork,
    PoseOutput,
    check_probabilities,
    check_scenes,
    check_sizes,
    without_autocast,
)


class MSPN(PoseNetwork):
    """A backbone's features and a hidden layer for all scenes, a scene classifier, linear pose
    heads per scene.
    """

    kind = "mspn"
    has_attention = False

    def __init__(
        self,
        *,
        scenes: Sequence[str],
        backbone: str = "efficientnet_b0",
        pretrained: bool = True,
        head_hidden: int = 1024,
        dropout: float = 0.1,
    ) -> None:
        """Build the network; its hidden layer, classifier and heads start at random, as PyTorch's
        linear layers do.

        Args:
            scenes: names of the scenes, in the order of their indices.
            backbone: see `mspose.models.backbone.make_backbone`; its map of stride 16 is averaged
                over space.
            pretrained: start the backbone from ImageNet weights.
            head_hidden: width of the hidden layer.
            dropout: of the hidden layer.

        Raises:
            MsposeError: no scene, a scene named twice, a size or a dropout out of its range, an
                unknown backbone, or weights that cannot be had.
        """
        super().__init__()
        self.scenes = tuple(scenes)
        self.architecture = {
            "scenes": list(self.scenes),
            "backbone": backbone,
            "head_hidden": head_hidden,
            "dropout": dropout,
        }
        check_scenes(self.architecture["scenes"])
        check_sizes(self.architecture, {"head_hidden": 1})
        check_probabilities(self.architecture, ("dropout",))
        self.backbone = make_backbone(backbone, pretrained=pretrained)
        self.hidden = Linear(self.backbone.position_channels, head_hidden)
        self.dropout = Dropout(dropout)
        self.scene = Linear(head_hidden, len(self.scenes))
        # All scenes' heads side by side: rows 3 s .. 3 s + 2, and 4 s .. 4 s + 3, are those of
        # scene s.
        self.position_head = Linear(head_hidden, 3 * len(self.scenes))
        self.orientation_head = Linear(head_hidden, 4 * len(self.scenes))

    def forward(
        self,
        image_B3HW: Tensor,
        scene_B: Tensor | None = None,
        *,
        observer: Observer | None = None,  # noqa: ARG002
    ) -> PoseOutput:
        """As `PoseNetwork.forward`; there is no attention, so that the observer is never called."""
        self._check_input(image_B3HW, scene_B)
        map_BCHW, _ = self._feature_maps(image_B3HW)
        # Positions in half precision would be rounded to centimetres, so nothing after the backbone
        # computes in it.
        with without_autocast(image_B3HW.device):
            feature_BC = map_BCHW.mean(dim=(2, 3), dtype=self.scene.weight.dtype)
            hidden_BC = self.dropout(F.relu(self.hidden(feature_BC)))
            log_probability_BS = F.log_softmax(self.scene(hidden_BC), dim=-1)
            if scene_B is None:
                scene_B = log_probability_BS.argmax(dim=-1)
            image_B = torch.arange(scene_B.shape[0], device=scene_B.device)
            return PoseOutput(
                position_B3=self.position_head(hidden_BC).unflatten(-1, (-1, 3))[image_B, scene_B],
                orientation_B4=self.orientation_head(hidden_BC).unflatten(-1, (-1, 4))[
                    image_B, scene_B
                ],
                scene_log_probability_BS=log_probability_BS,
                scene_B=scene_B,
                query_key_gap={},
            )
