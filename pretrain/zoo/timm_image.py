"""Any image model of timm as a VideoEncoder of one frame. Nothing is downloaded: weights are random or from a file."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pretrain.artifact import load_tensors, load_tensors_strict
from pretrain.encoder import EncoderOutput, EncoderSpec, VideoEncoder
from pretrain.encoder_table import TIMM_PREFIX
from pretrain.zoo.vision_ops import timm


class TimmEncoder(VideoEncoder):
    """tokens: the model's last feature map or patch tokens, frame grid (1, h, w). pooled: its own pooling (class token,
    average, attention: whatever its classifier reads). Size, crop and statistics are the model's own."""

    architecture = "timm"

    def __init__(
        self,
        model_name: str,
        *,
        name: str,
        image_size: int | None = None,
        settings: Mapping[str, Any] | None = None,
        norm_epsilon: float | None = None,
    ) -> None:
        """Args:
        image_size: H = W, pixels; None: the model's own.
        settings: what else timm builds the model with, plain values.
        norm_epsilon: of every LayerNorm; None: the model's own.
        """
        more = {"settings": dict(settings or {}), "norm_epsilon": norm_epsilon}
        config = {"model_name": model_name, "image_size": image_size}
        super().__init__(_PLACEHOLDER, config | {key: value for key, value in more.items() if value})
        self.model = _create(model_name, image_size, settings or {})
        if norm_epsilon is not None:
            for module in self.model.modules():
                if isinstance(module, nn.LayerNorm):
                    module.eps = norm_epsilon
        data = timm.data.resolve_model_data_config(self.model)
        size = image_size or int(data["input_size"][-1])
        with torch.inference_mode():
            was_training = self.model.training
            self.model.eval()
            tokens, (rows, columns) = self._tokens(self.model.forward_features(torch.zeros(1, 3, size, size)))
            self.model.train(was_training)
        self.spec = EncoderSpec(
            name=name,
            frames=1,
            fps=0.0,
            image_size=size,
            grid=(1, rows, columns),
            embed_dim=tokens.shape[-1],
            mean=tuple(data["mean"]),
            std=tuple(data["std"]),
            resize="center-crop",
            weights_sha256="",
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any], spec: EncoderSpec) -> Self:
        more = {key: config.get(key) for key in ("settings", "norm_epsilon")}
        encoder = cls(config["model_name"], name=spec.name, image_size=config["image_size"], **more)
        encoder.spec = spec
        return encoder

    def features(self, x: Float[Tensor, "B 1 3 H W"]) -> EncoderOutput:
        features = self.model.forward_features(x[:, 0])
        tokens, _ = self._tokens(features)
        pooled = self.model.forward_head(features, pre_logits=True)
        return EncoderOutput(tokens=tokens, pooled=pooled, grid=self.spec.grid)

    def _tokens(self, features: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """timm's three layouts of features (NCHW maps, NHWC maps, prefix + patch tokens) to [B, N, D] and (h, w)."""
        if features.ndim == 4:
            if getattr(self.model, "output_fmt", "NCHW") == "NHWC":
                features = features.permute(0, 3, 1, 2)
            return features.flatten(2).transpose(1, 2), (features.shape[2], features.shape[3])
        tokens = features[:, getattr(self.model, "num_prefix_tokens", 0) :]
        patch_embed = getattr(self.model, "patch_embed", None)
        grid = getattr(patch_embed, "grid_size", None)
        if grid is None or grid[0] * grid[1] != tokens.shape[1]:
            raise ValueError(
                f"timm model {self.config['model_name']!r}: {tokens.shape[1]} tokens do not form a known grid; "
                "choose a convolutional model or a plain ViT"
            )
        return tokens, (int(grid[0]), int(grid[1]))


_PLACEHOLDER = EncoderSpec(
    name="timm",
    frames=1,
    fps=0.0,
    image_size=1,
    grid=(1, 1, 1),
    embed_dim=1,
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    resize="center-crop",
    weights_sha256="",
)


def _create(model_name: str, image_size: int | None, settings: Mapping[str, Any]) -> nn.Module:
    if not timm.is_model(model_name):
        close = difflib.get_close_matches(model_name, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(TIMM_PREFIX + match for match in close)}? " if close else ""
        raise ValueError(f"unknown timm model {model_name!r}: {hint}`timm.list_models()` lists all of them")
    size = {} if image_size is None else {"img_size": image_size}
    return timm.create_model(model_name, pretrained=False, num_classes=0, **size, **settings)


def build_timm_encoder(name: str, *, seed: int) -> VideoEncoder:
    """`<model>` with random weights from the seed, or `<model>@<file.safetensors>` with the file's.

    Raises:
        ValueError: no such model, or the file's tensors do not fit it.
        FileNotFoundError: the weights file is not there.
    """
    model_name, _, weights = name.partition("@")
    if weights and not Path(weights).is_file():
        raise FileNotFoundError(
            f"no weights file at {weights} for timm/{model_name}. It is the model.safetensors of "
            f"https://huggingface.co/timm/{model_name}.<tag> (nothing is downloaded here); "
            f"without it, timm/{model_name} gives the same network with random weights"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = TimmEncoder(model_name, name=f"{TIMM_PREFIX}{model_name}")
    if weights:
        tensors = load_tensors(weights)
        # A published file has the ImageNet classifier, which a feature extractor has no place for.
        classifier = encoder.model.pretrained_cfg.get("classifier") or ()
        prefixes = (classifier,) if isinstance(classifier, str) else tuple(classifier)
        kept = {
            key: value for key, value in tensors.items() if not any(key.startswith(f"{prefix}.") for prefix in prefixes)
        }
        load_tensors_strict(encoder.model, kept, weights)
    return encoder.renamed(f"{TIMM_PREFIX}{name}").eval()
