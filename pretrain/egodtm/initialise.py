"""EgoDTM's towers from somebody else's CLIP weights (`init=`)."""

import torch

from pretrain.egodtm.model import EgoDTM
from pretrain.zoo.clip_weights import fit_to, rename, weights_file
from pretrain.zoo.weight_files import read_checkpoint


def initialise(model: EgoDTM, init: str) -> list[str]:
    """Copies the tensors of the file `init` names (see pretrain/zoo/clip_weights.py) into `model`.

    Returns:
        lines that say what was taken, left out, and left at its random start.

    Raises:
        FileNotFoundError, ValueError: no such file, or it does not fit; `model` is then unchanged.
    """
    path = weights_file(init)
    weights = rename(read_checkpoint(path), where=f"init={init}")
    video = model.config.video
    fitted = fit_to(weights, model.state_dict(), grid_side=video.grid_side, frames=video.frames, where=f"init={init}")
    with torch.no_grad():
        model.load_state_dict(fitted.tensors, strict=False)
    # The depth head is never in such a file; naming its tensors one by one would hide the others.
    heads = ("patch_projection.", "pyramid.", "decoder.")
    fresh = [name for name in fitted.fresh if not name.startswith(heads)]
    if len(fresh) < len(fitted.fresh):
        fresh.append("the depth head")
    return [
        f"init={init}: {len(fitted.tensors)} tensors of {weights.layout}'s layout from {path}",
        f"  left out: {', '.join(fitted.left_out) or 'nothing'}",
        f"  as they start without: {', '.join(_shortened(fresh)) or 'nothing'}",
        "  EgoDTM has exact GELU; weights that were trained with QuickGELU (OpenAI's, and what was tuned from them) are "
        "a little off until training makes up for it",
    ]


def _shortened(names: list[str]) -> list[str]:
    """A tower that is fresh as a whole, in one word."""
    text = [name for name in names if name.startswith("text.")]
    if len(text) > 1:
        return [name for name in names if name not in text] + ["the text tower"]
    return names
