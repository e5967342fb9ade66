"""NVIDIA's released weights of the video tokenizer, the one EgoM2P was published with, in two ways.

`load_cosmos` puts the tensors of the TorchScript files into our own network (fsq_video.py), which can then be fine-tuned,
run in any precision and exported. `CosmosJitTokenizer` runs the files themselves, as the authors of EgoM2P did.

The release (Hugging Face `nvidia/Cosmos-0.1-Tokenizer-DV4x8x8`, NVIDIA Open Model License) is `encoder.jit` and
`decoder.jit`, or `autoencoder.jit` with both. Nothing is downloaded here, and everything works without: train a tokenizer.
"""

import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from pretrain.artifact import load_tensors_strict
from pretrain.egom2p.tokenizers.fsq_video import FsqVideoConfig, FsqVideoTokenizer
from pretrain.egom2p.tokenizers.tokenizer import Tokenizer, TokenizerSpec

COSMOS_REPOSITORY = "nvidia/Cosmos-0.1-Tokenizer-DV4x8x8"
COSMOS_NAME = "cosmos-dv4x8x8"
ENCODER_FILE, DECODER_FILE, AUTOENCODER_FILE = "encoder.jit", "decoder.jit", "autoencoder.jit"

# What may stand before all names, depending on what was exported.
_PREFIXES = ("", "module.", "model.", "network.", "tokenizer.")
_ROOTS = ("encoder.", "quant_conv.", "quantizer.", "inv_quant.", "post_quant_conv.", "decoder.")

# Constants that an export may hold: the wavelets, and the quantizer's tables, which our network computes.
_CONSTANTS = re.compile(
    r"(?:encoder\.patcher3d|decoder\.unpatcher3d)\.(?:wavelets|_arange|patch_size_buffer)"
    r"|(?:inv_quant\.)?quantizer\.(?:\w+\.)?(?:_levels|_basis|implicit_codebook)"
)
_LEVELS = re.compile(r"(?:inv_quant\.)?quantizer\.(?:\w+\.)?_levels")
# Convolutions that the release's classes own but do not run where a level changes neither space nor time, or only one.
_IDLE = re.compile(r"(?:encoder\.down|decoder\.up)\.\d+\.(?:downsample|upsample)\.conv[123]\.conv3d\.(?:weight|bias)")


# ------------------------------------------------------------------------------------------------- names, dict to dict


def import_cosmos(state: Mapping[str, Tensor], config: FsqVideoConfig, *, where: str) -> dict[str, Tensor]:
    """Tensors of the released networks, as float32, by the names of `FsqVideoTokenizer(config)`.

    Args:
        state: of the autoencoder, or of encoder and decoder together.
        where: says in errors where it came from.

    Raises:
        ValueError: names every tensor that is missing, surplus or of another shape, or the quantizer's other levels.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in _without_prefix(state).items():
        if _LEVELS.fullmatch(name) and tuple(tensor.tolist()) != config.levels:
            raise ValueError(f"{where}: the quantizer has levels {tensor.tolist()}, expected {list(config.levels)}")
        if not _CONSTANTS.fullmatch(name):
            tensors[name] = tensor.float() if tensor.is_floating_point() else tensor
    with torch.device("meta"):
        expected = FsqVideoTokenizer(config, name=COSMOS_NAME).state_dict()
    tensors = {name: tensor for name, tensor in tensors.items() if name in expected or not _IDLE.fullmatch(name)}
    problems = []
    if missing := sorted(expected.keys() - tensors.keys()):
        problems.append(f"missing: {_shortened(missing)}")
    if surplus := sorted(tensors.keys() - expected.keys()):
        problems.append(f"no place for: {_shortened(surplus)}")
    misshaped = [
        f"{name} is {tuple(tensors[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & tensors.keys())
        if tensors[name].shape != expected[name].shape
    ]
    if misshaped:
        problems.append(f"other shapes: {_shortened(misshaped)}")
    if problems:
        raise ValueError(
            f"{where} does not fit the video tokenizer: {'; '.join(problems)}. Expected the encoder and the decoder of "
            f"{COSMOS_REPOSITORY}; of another release, give the configuration that belongs to it"
        )
    return tensors


def _without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) and name.removeprefix(prefix).startswith(_ROOTS) for name in state):
            return {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return dict(state)


def _shortened(names: Sequence[str], shown: int = 6) -> str:
    return ", ".join(names[:shown]) + (f" ... ({len(names)} in all)" if len(names) > shown else "")


# ------------------------------------------------------------------------------------------------------------ the files


def cosmos_files(directory: str | Path) -> list[Path]:
    """The released files in `directory`: encoder.jit and decoder.jit if both are there, else autoencoder.jit.

    Raises:
        FileNotFoundError: names what is missing and where it comes from.
    """
    directory = Path(directory)
    halves = [directory / ENCODER_FILE, directory / DECODER_FILE]
    if all(path.is_file() for path in halves):
        return halves
    if (directory / AUTOENCODER_FILE).is_file():
        return [directory / AUTOENCODER_FILE]
    raise _missing(next(path for path in halves if not path.is_file()))


def _missing(path: Path) -> FileNotFoundError:
    return FileNotFoundError(
        f"no file {path}: NVIDIA's video tokenizer is not part of EgoArm and nothing is downloaded here. Fetch it where "
        f"there is a network (`hf download {COSMOS_REPOSITORY} --local-dir {path.parent}`), or train a tokenizer of your "
        "own: everything but the published tokens works without it"
    )


def _script(file: Path | io.BytesIO, device: torch.device | str, where: str) -> torch.jit.ScriptModule:
    """A TorchScript file. torch's own reader makes tensors and TorchScript of it, never Python objects."""
    try:
        return torch.jit.load(file, map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{where} is not a whole TorchScript file: {str(error).splitlines()[0]}") from error


def load_cosmos(
    directory: str | Path,
    config: FsqVideoConfig | None = None,
    *,
    name: str = COSMOS_NAME,
    modalities: tuple[str, ...] = ("rgb", "depth"),
) -> FsqVideoTokenizer:
    """Our network with the released weights, in float32 and evaluation mode.

    Args:
        config: of the released network; None is the published DV4x8x8 on 16 frames of 256 px. The network is
            convolutional: `FsqVideoConfig(image_size=..., frames=...)` makes the same weights take other clips.

    Raises:
        FileNotFoundError: the files are not there.
        ValueError: they are damaged or do not fit `config`.
    """
    config = FsqVideoConfig() if config is None else config
    files = cosmos_files(directory)
    state: dict[str, Tensor] = {}
    for path in files:
        state |= _script(path, "cpu", str(path)).state_dict()
    where = " and ".join(str(path) for path in files)
    tensors = import_cosmos(state, config, where=where)
    tokenizer = FsqVideoTokenizer(config, name=name, modalities=modalities)
    load_tensors_strict(tokenizer, tensors, where)
    return tokenizer.renamed(name).eval()


class CosmosJitTokenizer(Tokenizer):
    """The released encoder.jit and decoder.jit, run as they are, in the precision of their weights.

    The files' bytes are its tensors, so an artifact of it is whole without them. It cannot be trained.
    """

    architecture = "cosmos-jit"
    clips_at_once = 4
    encoder_file: Tensor
    decoder_file: Tensor

    def __init__(
        self,
        config: FsqVideoConfig,
        encoder_bytes: int,
        decoder_bytes: int,
        *,
        name: str = COSMOS_NAME,
        modalities: tuple[str, ...] = ("rgb", "depth"),
    ) -> None:
        spec = TokenizerSpec(name=name, modalities=modalities, grid=config.grid, input_shape=config.input_shape)
        sizes = {"encoder_bytes": encoder_bytes, "decoder_bytes": decoder_bytes}
        super().__init__(spec, {"video": dataclasses.asdict(config), **sizes})
        self.shape = config
        self.register_buffer("encoder_file", torch.zeros(encoder_bytes, dtype=torch.uint8))
        self.register_buffer("decoder_file", torch.zeros(decoder_bytes, dtype=torch.uint8))
        self._scripts: dict[str, tuple[tuple[torch.device, int], torch.jit.ScriptModule]] = {}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], spec: TokenizerSpec) -> Self:
        """An empty one, whose files' bytes are loaded after."""
        tokenizer = cls(
            FsqVideoConfig(**config["video"]), config["encoder_bytes"], config["decoder_bytes"],
            name=spec.name, modalities=spec.modalities,
        )  # fmt: skip
        tokenizer.spec = spec
        return tokenizer

    @classmethod
    def from_directory(
        cls,
        directory: str | Path,
        config: FsqVideoConfig | None = None,
        *,
        name: str = COSMOS_NAME,
        modalities: tuple[str, ...] = ("rgb", "depth"),
    ) -> Self:
        """Reads encoder.jit and decoder.jit; `config` as of `load_cosmos`.

        Raises:
            FileNotFoundError: one is not there.
            ValueError: one is no TorchScript file, or a blank clip does not come back in the shape of `config`.
        """
        contents = []
        for path in (Path(directory) / ENCODER_FILE, Path(directory) / DECODER_FILE):
            if not path.is_file():
                raise _missing(path)
            contents.append(torch.frombuffer(bytearray(path.read_bytes() or b"\0"), dtype=torch.uint8))
        config = FsqVideoConfig() if config is None else config
        tokenizer = cls(config, len(contents[0]), len(contents[1]), name=name, modalities=modalities)
        tokenizer.encoder_file.copy_(contents[0])
        tokenizer.decoder_file.copy_(contents[1])
        try:
            tokenizer.decode(tokenizer.encode(torch.zeros(1, *config.input_shape)))
        except RuntimeError as error:
            raise ValueError(
                f"{ENCODER_FILE} and {DECODER_FILE} in {directory} do not run on a blank clip "
                f"[1, {', '.join(map(str, config.input_shape))}]: {str(error).strip().splitlines()[-1]}"
            ) from error
        return tokenizer.renamed(name).eval()

    def _half(self, name: str) -> torch.jit.ScriptModule:
        """The script of one file, on the device of its bytes."""
        contents = getattr(self, name)
        key = (contents.device, contents._version)
        if name not in self._scripts or self._scripts[name][0] != key:
            script = _script(
                io.BytesIO(contents.cpu().numpy().tobytes()), contents.device, f"{self.spec.name}'s {name}"
            )
            self._scripts[name] = (key, script)
        return self._scripts[name][1]

    def clips_to_ids(self, x: Float[Tensor, "B 3 T S S"]) -> Int64[Tensor, "B N"]:
        script = self._half("encoder_file")
        missing = self.shape.padded_frames - x.shape[2]
        x = torch.cat([x, x[:, :, -1:].expand(-1, -1, missing, -1, -1)], dim=2)
        given = script(x.to(_precision(script)))
        ids, expected = given[0], self.spec.grid.shape
        if ids.is_floating_point() or tuple(ids.shape[1:]) != expected or int(ids.max()) >= self.spec.grid.vocabulary:
            raise ValueError(
                f"{ENCODER_FILE} of {self.spec.name!r} gave {str(ids.dtype).removeprefix('torch.')} {list(ids.shape)} up "
                f"to {float(ids.max()):g}, expected ids [B, {', '.join(map(str, expected))}] below "
                f"{self.spec.grid.vocabulary}: it belongs to another release than the configuration"
            )
        return ids.flatten(1).long()

    def ids_to_clips(self, ids: Int64[Tensor, "B N"]) -> Float[Tensor, "B 3 T S S"]:
        script = self._half("decoder_file")
        video = script(ids.unflatten(1, self.spec.grid.shape).int())
        channels, _, side, _ = self.spec.input_shape
        expected = (channels, self.shape.padded_frames, side, side)
        if tuple(video.shape[1:]) != expected:
            raise ValueError(
                f"{DECODER_FILE} of {self.spec.name!r} gave {list(video.shape)}, expected "
                f"[B, {', '.join(map(str, expected))}]: it belongs to another release than the configuration"
            )
        return video[:, :, : self.shape.frames].float().clamp(-1, 1)

    def codebook(self) -> Float[Tensor, "V K"]:
        raise ValueError(
            f"tokenizer {self.spec.name!r} runs finished files, whose decoder takes ids alone: no mean can be decoded; "
            "load_cosmos puts the same weights into a network that takes codes"
        )

    def codes_to_clips(self, codes: Float[Tensor, "B N K"]) -> Float[Tensor, "B 3 T S S"]:
        raise AssertionError("decode_codes has asked for the codebook")

    def loss(self, x: Float[Tensor, "B 3 T S S"]) -> tuple[Tensor, dict[str, Tensor]]:
        raise ValueError(
            f"tokenizer {self.spec.name!r} runs finished files and cannot be trained; load_cosmos puts the same weights "
            "into a network that can"
        )


def _precision(script: torch.jit.ScriptModule) -> torch.dtype:
    found = (tensor.dtype for tensor in (*script.parameters(), *script.buffers()) if tensor.is_floating_point())
    return next(found, torch.float32)
