"""The encoders there are by name, and how an artifact's network is built again. `pretrain.encoder.load_encoder` reads these tables.

A plain name is that of trained weights, which ship with the package. What has random weights says so, by `random:`, or has no
trained weights at all (conv-small, which a policy trains; the pixels themselves).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pretrain.encoder import EncoderSpec, VideoEncoder

RANDOM_PREFIX = "random:"
TIMM_PREFIX = "timm/"
SHIPPED_DIRECTORY = Path(__file__).resolve().parent / "shipped"


@dataclass(frozen=True, kw_only=True)
class EncoderEntry:
    """A row of ENCODERS.

    Attributes:
        build: seed -> encoder, with weights drawn from that seed (the same seed gives the same weights) unless it is shipped.
        about: one line for lists.
        is_video: whether the order of frames reaches the features.
        is_shipped: whether its trained weights come with the package, as an artifact of that name under SHIPPED_DIRECTORY.
    """

    build: Callable[[int], VideoEncoder]
    about: str
    is_video: bool
    is_shipped: bool = False


def shipped_directory(name: str) -> Path | None:
    """Where the artifact of a shipped encoder is; None for any other name."""
    return SHIPPED_DIRECTORY / name if name in ENCODERS and ENCODERS[name].is_shipped else None


# -------------------------------------------------------------------------------- building (the imports are slow: on call)


def _build_shipped(name: str) -> Callable[[int], VideoEncoder]:
    def build(seed: int) -> VideoEncoder:
        from pretrain.encoder import load_encoder_artifact

        del seed  # trained weights
        return load_encoder_artifact(SHIPPED_DIRECTORY / name)

    return build


def _build_egodtm(size: str) -> Callable[[int], VideoEncoder]:
    def build(seed: int) -> VideoEncoder:
        from pretrain.egodtm.encoder import random_encoder

        return random_encoder(size, seed=seed)

    return build


def _build_egom2p(size: str) -> Callable[[int], VideoEncoder]:
    def build(seed: int) -> VideoEncoder:
        from pretrain.egom2p.encoder import random_encoder

        return random_encoder(size, seed=seed)

    return build


def _build_timm(name: str, seed: int, is_untrained: bool = False) -> VideoEncoder:
    from pretrain.zoo.timm_image import build_timm_encoder

    return build_timm_encoder(name.partition("@")[0] if is_untrained else name, seed=seed)


def _build_released(family: str) -> Callable[[str, int, bool], VideoEncoder]:
    def build(name: str, seed: int, is_untrained: bool) -> VideoEncoder:
        from pretrain.zoo.released import build_released_encoder

        return build_released_encoder(f"{family}/{name}", seed=seed, is_untrained=is_untrained)

    return build


def _build_conv_small(seed: int) -> VideoEncoder:
    from pretrain.zoo.conv_small import random_encoder

    return random_encoder(seed=seed)


def _build_pixels(seed: int) -> VideoEncoder:
    from pretrain.zoo.pixels import PixelEncoder

    del seed  # there are no weights to draw
    return PixelEncoder(side=16)


ENCODERS: dict[str, EncoderEntry] = {
    "egodtm-tiny": EncoderEntry(
        build=_build_shipped("egodtm-tiny"),
        about="EgoDTM's video tower, ViT-Tiny/16, 2 x 112 px, trained on synthetic clips",
        is_video=True,
        is_shipped=True,
    ),
    "random:egodtm-small": EncoderEntry(
        build=_build_egodtm("small"), about="EgoDTM's video tower, ViT-Small/16, 4 x 224 px, random", is_video=True
    ),
    "random:egodtm-base": EncoderEntry(
        build=_build_egodtm("base"), about="EgoDTM's video tower, ViT-Base/16, 4 x 224 px, random", is_video=True
    ),
    "random:egom2p-tiny": EncoderEntry(
        build=_build_egom2p("tiny"), about="EgoM2P's encoder on the tokens of 5 x 64 px, random", is_video=True
    ),
    "timm/vit_tiny_patch16_224": EncoderEntry(
        build=lambda seed: _build_timm("vit_tiny_patch16_224", seed),
        about="timm ViT-Tiny/16 on one image, random",
        is_video=False,
    ),
    "timm/resnet18": EncoderEntry(
        build=lambda seed: _build_timm("resnet18", seed), about="timm ResNet-18 on one image, random", is_video=False
    ),
    "conv-small": EncoderEntry(
        build=_build_conv_small, about="four convolutions on one 112 px image, to train end to end", is_video=False
    ),
    "pixels-16x16": EncoderEntry(build=_build_pixels, about="the image at 16x16 pixels, no weights", is_video=False),
}

# "<family>/<the rest of the name>": (the rest, seed, whether without trained weights) -> encoder. For the weights of others,
# which come from the user's files.
FAMILIES: dict[str, Callable[[str, int, bool], VideoEncoder]] = {
    "timm": _build_timm,
    **{family: _build_released(family) for family in ("r3m", "vc1", "mvp", "theia", "spa")},
}


# -------------------------------------------------------------------------------------------- building an artifact's again


def _rebuild_egodtm(config: Mapping[str, Any], spec: EncoderSpec) -> VideoEncoder:
    from pretrain.egodtm.encoder import EgoDTMEncoder

    return EgoDTMEncoder.from_config(config, spec)


def _rebuild_egom2p(config: Mapping[str, Any], spec: EncoderSpec) -> VideoEncoder:
    from pretrain.egom2p.encoder import EgoM2PEncoder

    return EgoM2PEncoder.from_config(config, spec)


def _rebuild_timm(config: Mapping[str, Any], spec: EncoderSpec) -> VideoEncoder:
    from pretrain.zoo.timm_image import TimmEncoder

    return TimmEncoder.from_config(config, spec)


def _rebuild_pixels(config: Mapping[str, Any], spec: EncoderSpec) -> VideoEncoder:
    from pretrain.zoo.pixels import PixelEncoder

    return PixelEncoder.from_config(config, spec)


def _rebuild_conv_small(config: Mapping[str, Any], spec: EncoderSpec) -> VideoEncoder:
    from pretrain.zoo.conv_small import ConvSmallEncoder

    return ConvSmallEncoder.from_config(config, spec)


# How an artifact's network is built again from its config and spec; its weights are loaded after.
ARCHITECTURES: dict[str, Callable[[Mapping[str, Any], EncoderSpec], VideoEncoder]] = {
    "egodtm": _rebuild_egodtm,
    "egom2p": _rebuild_egom2p,
    "timm": _rebuild_timm,
    "pixels": _rebuild_pixels,
    "conv": _rebuild_conv_small,
}
