"""Opening models of the transformers library from a local directory. Nothing is ever downloaded."""

from pathlib import Path
from typing import Any

import torch

DEVICES = ("auto", "cpu", "cuda", "mps")


def transformers() -> Any:
    """The transformers package, imported late because it is an optional extra and slow to import.

    Raises:
        ValueError: it is not installed.
    """
    # transformers imports torchvision, which must come through this door first.
    import pretrain.zoo.vision_ops  # noqa: F401

    try:
        import transformers
    except ImportError:
        raise ValueError(
            "this back-end needs transformers, which is not installed: pip install 'egoarm[annotate]'; "
            "backends=classical works without"
        ) from None
    transformers.utils.logging.disable_progress_bar()
    return transformers


def weights_directory(path: str | None, *, key: str, model: str) -> Path:
    """The directory of a model's weights, once it looks like one.

    Args:
        path: what the user gave.
        key: the setting that holds it.
        model: whose weights are meant, e.g. "depth-anything/Depth-Anything-V2-Large-hf".

    Raises:
        ValueError: not given, not there, or without config.json.
    """
    remedy = f"get it with: huggingface-cli download {model} --local-dir DIR, then give {key}=DIR"
    if not path:
        raise ValueError(f"{key}= is not given: it names the directory of the weights of {model}; {remedy}")
    directory = Path(path)
    if not directory.is_dir():
        raise ValueError(f"{key}={path}: no such directory; {remedy}")
    if not (directory / "config.json").is_file():
        raise ValueError(f"{key}={path}: no config.json there, so it is not a model directory; {remedy}")
    return directory


def load(cls: Any, directory: Path, *, key: str, **settings: Any) -> Any:
    """`cls.from_pretrained` from a directory alone, without pickles and without running code that lies there.

    Raises:
        ValueError: the directory does not hold what `cls` needs.
    """
    try:
        return cls.from_pretrained(directory, local_files_only=True, trust_remote_code=False, **settings)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{key}={directory}: cannot load a {cls.__name__} from it: {reason}") from error


def load_model(cls: Any, directory: Path, *, key: str, device: str) -> Any:
    """A model in evaluation mode on its device: bf16 on CUDA, fp32 elsewhere (bf16 is slow where the hardware lacks it)."""
    chosen = choose_device(device)
    dtype = torch.bfloat16 if chosen.type == "cuda" else torch.float32
    model = load(cls, directory, key=key, dtype=dtype, use_safetensors=True)
    return model.to(chosen).eval()


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
