"""What a run of EgoDTM starts from (`init=`): towers with somebody else's CLIP weights, or a whole EgoDTM that goes on with other clips."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pretrain.egodtm.model import EgoDTM
from pretrain.zoo.clip_weights import fit_to, rename, weights_file
from pretrain.zoo.weight_files import read_checkpoint

_HEADS = ("patch_projection.", "pyramid.", "decoder.")  # of depth
OWN_TENSOR = "video.vit.class_token"  # no CLIP checkpoint has this name


def initialise(model: EgoDTM, init: str) -> list[str]:
    """Copies the tensors of the file `init` names into `model`: <run>/model/model.safetensors of an EgoDTM, or what
    pretrain/zoo/clip_weights.py reads.

    Returns:
        lines that say what was taken, left out, and left at its random start.

    Raises:
        FileNotFoundError, ValueError: no such file, or it does not fit; `model` is then unchanged.
    """
    path = weights_file(init)
    tensors = read_checkpoint(path)
    if OWN_TENSOR in tensors:
        return _go_on(model, tensors, f"init={init}")
    weights = rename(tensors, where=f"init={init}")
    video = model.config.video
    fitted = fit_to(weights, model.state_dict(), grid_side=video.grid_side, frames=video.frames, where=f"init={init}")
    with torch.no_grad():
        model.load_state_dict(fitted.tensors, strict=False)
    # The depth head is never in such a file; naming its tensors one by one would hide the others.
    fresh = [name for name in fitted.fresh if not name.startswith(_HEADS)]
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


def _go_on(model: EgoDTM, tensors: Mapping[str, Tensor], where: str) -> list[str]:
    """Takes over an EgoDTM of the same shape; a depth head may be missing on either side."""
    own = model.state_dict()
    shared = {name: tensor for name, tensor in tensors.items() if name in own}
    for name, tensor in shared.items():
        if tensor.shape != own[name].shape:
            raise ValueError(
                f"{where}: {name} is {list(tensor.shape)} there and {list(own[name].shape)} here: an EgoDTM goes on only with "
                "the size, frames, image_size, stem and joint_dim it was trained with"
            )
    left_out, fresh = (sorted(set(a) - set(b)) for a, b in ((tensors, own), (own, tensors)))
    if other := [name for name in left_out + fresh if not name.startswith(_HEADS)]:
        raise ValueError(f"{where}: {other[0]} is only on one side: expected an EgoDTM of the same size and settings")
    model.load_state_dict(shared, strict=False)
    said = "left out" if left_out else "as it starts without"
    return [f"{where}: goes on from an EgoDTM, {len(shared)} tensors"] + (
        [f"  {said}: the depth head"] if left_out or fresh else []
    )
