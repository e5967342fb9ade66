"""Files of weights that others have written, read without running any code in them."""

import argparse
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pretrain.artifact import load_tensors

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


def read_checkpoint(path: Path) -> Mapping[str, Any]:
    """Tensors by name from safetensors, or what a torch file holds, from tensors and plain values alone.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: another kind of file, damaged, or holding objects whose reading would run code from the file.
    """
    if path.suffix == ".safetensors":
        return load_tensors(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}: no such file")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: expected a file ending in {', '.join(SUFFIXES)}")
    try:
        # Training scripts put their arguments beside the weights; a namespace of plain values is harmless.
        with torch.serialization.safe_globals([argparse.Namespace]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds objects that are no tensors, and reading them would run code from the file. Where you trust it, "
            "write its tensors as safetensors and give that file: state = torch.load(path, weights_only=False), the entry of it that "
            "maps names to tensors (such as state['model']), then safetensors.torch.save_file({name: tensor.contiguous() ...}, "
            f"'weights.safetensors') ({str(error).splitlines()[0]})"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{path} is not a whole torch checkpoint: {error}") from error
    if not isinstance(found, Mapping):
        raise ValueError(f"{path}: expected a mapping of names to tensors, found {type(found).__name__}")
    return found
