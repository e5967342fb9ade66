"""The image itself, a few pixels wide, as an encoder: the row every trained encoder has to beat."""

from collections.abc import Mapping
from typing import Any, Self

from jaxtyping import Float
from torch import Tensor

from pretrain.artifact import tensors_sha256
from pretrain.encoder import EncoderOutput, EncoderSpec, VideoEncoder


class PixelEncoder(VideoEncoder):
    """tokens: the side x side pixels, RGB scaled to [-1, 1] (D = 3). pooled: their mean colour.

    The policy heads that flatten the token grid get the image itself; a head that pools gets next to nothing, as it should.
    """

    architecture = "pixels"

    def __init__(self, *, side: int) -> None:
        spec = EncoderSpec(
            name=f"pixels-{side}x{side}",
            frames=1,
            fps=0.0,
            image_size=side,
            grid=(1, side, side),
            embed_dim=3,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            resize="stretch",
            weights_sha256=tensors_sha256({}),
        )
        super().__init__(spec, {"side": side})

    @classmethod
    def from_config(cls, config: Mapping[str, Any], spec: EncoderSpec) -> Self:
        encoder = cls(side=config["side"])
        encoder.spec = spec
        return encoder

    def features(self, x: Float[Tensor, "B 1 3 H W"]) -> EncoderOutput:
        tokens = x[:, 0].flatten(2).transpose(1, 2)
        return EncoderOutput(tokens=tokens, pooled=tokens.mean(dim=1), grid=self.spec.grid)
