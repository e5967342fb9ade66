"""What of a policy's encoder is trained: nothing, low-rank adapters, or all of it. The one place where this is decided."""

from __future__ import annotations

from torch import nn

from pretrain.encoder import VideoEncoder

ADAPTATIONS = ("frozen", "lora", "full")


def adapt(encoder: VideoEncoder, adaptation: str, lora_rank: int) -> VideoEncoder:
    """Sets in place which of the encoder's parameters are trained.

    Its normalization statistics and dropout stay as in evaluation under all three (the backbone sees to it), as for the frozen batch norms of ACT and DETR.

    Args:
        adaptation: a name of ADAPTATIONS. "lora" puts low-rank adapters (arXiv 2106.09685) beside every linear layer, or every convolution of an
            encoder without linear layers; `merge_adapters` folds them into the weights again.

    Raises:
        ValueError: there is nothing to train in this encoder.
    """
    if adaptation == "frozen":
        return encoder.frozen()
    encoder.eval()  # "full" leaves what the encoder itself holds fixed, such as sine-cosine positions, as it is
    if not list(encoder.parameters()):
        raise ValueError(
            f"backbone.adaptation={adaptation}: the encoder {encoder.spec.name} has no weights to train; use frozen"
        )
    if adaptation == "lora":
        import pretrain.zoo.vision_ops  # noqa: F401, I001  (peft imports torchvision, which must come through that door)
        import peft

        encoder.requires_grad_(False)
        names = _layers(encoder, nn.Linear) or _layers(encoder, nn.Conv2d)
        if not names:
            raise ValueError(
                f"backbone.adaptation=lora: {encoder.spec.name} has no linear layers or convolutions; use full"
            )
        settings = peft.LoraConfig(r=lora_rank, lora_alpha=2 * lora_rank, target_modules=names, bias="none")
        peft.inject_adapter_in_model(settings, encoder)
    return encoder


def merge_adapters(encoder: VideoEncoder) -> None:
    """Folds low-rank adapters into the weights they adapt: afterwards it is the plain network, with the adapted weights."""
    import pretrain.zoo.vision_ops  # noqa: F401, I001
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(encoder.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(encoder.get_submodule(parent), child, module.get_base_layer())


def _layers(encoder: VideoEncoder, kind: type[nn.Module]) -> list[str]:
    return [name for name, module in encoder.named_modules() if isinstance(module, kind)]
