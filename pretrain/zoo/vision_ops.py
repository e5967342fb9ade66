"""The one door to torchvision, timm and open_clip.

torchvision's wheel has no compiled operators when torch is a CPU build, and then `import torchvision` fails while it
registers shape functions for `torchvision::nms` ("operator torchvision::nms does not exist"). timm and open_clip import
torchvision, so they fail with it. Declaring the schemas of the missing operators first lets the import finish; only
calling a detection operator would then fail, and nothing here calls one.

Every import of those three packages goes through this module, so that the declaration always comes first:

    from pretrain.zoo.vision_ops import timm
"""

import sys
from collections.abc import Callable

import torch
from torch import Tensor

_OPERATORS = ("nms", "qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def _declare_missing_operators() -> torch.library.Library | None:
    """Declares the operators that are absent; with a complete torchvision build there are none and nothing is done."""
    try:
        import torchvision  # noqa: F401  (a complete build declares its own operators)
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        # What the failed import left behind is half initialised: the next import must start afresh.
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
    else:
        return None
    library = torch.library.Library("torchvision", "DEF")
    for operator in _OPERATORS:
        if not hasattr(torch.ops.torchvision, operator):
            library.define(operator + _SCHEMA)
    return library


# Kept alive for the life of the process: dropping the Library takes its declarations back.
_library = _declare_missing_operators()

import timm  # noqa: E402
import timm.models.vision_transformer as timm_vit  # noqa: E402


def clip_tokenizer(context_length: int) -> Callable[[list[str]], Tensor]:
    """CLIP's byte-pair tokenizer from open_clip, whose package ships the vocabulary (no download).

    Imported on call, because open_clip takes a second to import and only text needs it. The result maps N strings to
    int64[N, context_length], padded with 0 and cut so that the end-of-text token is always there.
    """
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer(context_length=context_length)


__all__ = ["clip_tokenizer", "timm", "timm_vit"]
