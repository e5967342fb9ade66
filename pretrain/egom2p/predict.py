"""`egoarm predict`: given some modalities of a clip, EgoM2P says the others; as arrays, a video and a picture.

What is predicted comes back in physical units: rgb uint8[16, S, S, 3]; depth float32[16, S, S], inverse and relative, near =
1; gaze float32[60, 2], pixels of the clip's image; camera float32[60, 4, 4], world_from_camera in metres, the first sample
being the world; hands float32[60, 2, 21, 3], metres in the first camera's frame.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from pretrain.artifact import atomic_directory, atomic_write_text
from pretrain.clips.schema import Clip
from pretrain.clips.store import open_store
from pretrain.egom2p.bundle import Bundle, load_egom2p
from pretrain.egom2p.generate import MODES as WRITING_MODES
from pretrain.egom2p.generate import PUBLISHED_TARGETS, Target, expected_codes, generate
from pretrain.egom2p.modalities import MODALITIES, VIDEO, ModalityMissing, require_modalities
from pretrain.egom2p.model import TokenSet, concatenate
from pretrain.egom2p.tokenizers.fsq_video import FsqVideoTokenizer
from pretrain.precision import multiplies_bf16

# A clip that the model thinks possible, or the mean of all of them.
SAMPLE, MEAN = "sample", "mean"
ESTIMATES = (SAMPLE, MEAN)
# How it is written, see generate.generate; a glance is written as the fast mode does, and reads less, see Predictor.glance.
EXACT, FAST = WRITING_MODES
GLANCE = "glance"
MODES = (EXACT, FAST, GLANCE)


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Settings of `egoarm predict`.

    Attributes:
        checkpoint: directory of a run of `egoarm pretrain egom2p`.
        clip: a clip store, or `<store>:<number>` for one clip of it.
        given, want: modalities that are shown, and that are asked for, in this order; each that is done joins what is given.
        out: directory of the results.
        clips: of the store, from the first, where `clip` names no single one.
        scheme, steps, schedule, temperature, top_p, top_k, guidance: see generate.Target; null = the authors' for each modality.
        mode: one of MODES: "fast" is one step from a condition read once, without guidance, in bfloat16 where the device
            multiplies it; "glance" is that from little of a video that is given, see Predictor.glance.
        estimate: "sample" draws a possible clip; "mean" is the mean of all, smooth and nearest in squared error, for which
            nothing is drawn and no modality that is wanted sees another; of `mode` it takes the precision and what is read.
        batch_size: clips generated together.
        seed: of the sampling.
        device, threads: where to compute; auto, 0 = torch's own choice.
    """

    checkpoint: str
    clip: str
    given: tuple[str, ...]
    want: tuple[str, ...]
    out: str
    clips: int = 1
    scheme: str | None = None
    steps: int | None = None
    schedule: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    guidance: float | None = None
    mode: str = "exact"
    estimate: str = SAMPLE
    batch_size: int = 4
    seed: int = 0
    device: str = "auto"
    threads: int = 0

    def __post_init__(self) -> None:
        for name in ("given", "want"):
            if not getattr(self, name):
                raise ValueError(f"{name}= is missing: say modalities, e.g. {name}=[rgb]")
            require_modalities(getattr(self, name), name)
        if both := set(self.given) & set(self.want):
            raise ValueError(f"want: {sorted(both)[0]!r} is given already")
        if self.mode not in MODES:
            raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {self.mode!r}")
        if self.estimate not in ESTIMATES:
            raise ValueError(f"estimate: expected one of {', '.join(ESTIMATES)}, got {self.estimate!r}")
        if self.estimate == MEAN and self._drawing:
            raise ValueError(f"{next(iter(self._drawing))}: estimate={MEAN} draws nothing; leave it out")
        for name, least in (("clips", 1), ("batch_size", 1), ("threads", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        _ = self.targets(self.want)  # each says what is wrong with its fields

    def targets(self, want: Sequence[str]) -> list[Target]:
        """How each modality is written: the authors' way, but for what is set."""
        return [dataclasses.replace(PUBLISHED_TARGETS[name], **self._drawing) for name in want]

    @property
    def _drawing(self) -> dict[str, Any]:
        """What is set of how tokens are drawn."""
        fields = ("scheme", "steps", "schedule", "temperature", "top_p", "top_k", "guidance")
        return {name: value for name in fields if (value := getattr(self, name)) is not None}


class Predictor:
    """A loaded model, for use from Python: clips in, physical units out."""

    def __init__(self, bundle: Bundle, *, device: str | torch.device = "cpu") -> None:
        self.bundle, self.model, self.tokenizers = bundle, bundle.model, bundle.tokenizers
        self.to(device)

    def to(self, device: str | torch.device) -> "Predictor":
        self.device = torch.device(device)
        for part in (self.model, *self.tokenizers.values()):
            part.to(self.device)
        return self

    def array_of(self, clip: Clip, name: str) -> np.ndarray:
        """One clip's array in model space. Raises ModalityMissing."""
        shape = self.tokenizers[name].spec.input_shape
        return MODALITIES[name].to_array(clip, shape[-1])

    def encode(self, clips: Sequence[Clip], names: Sequence[str]) -> dict[str, Int64[Tensor, "B N"]]:
        """Tokens of the modalities given.

        Raises:
            ValueError: a modality the model does not know, or that a clip lacks.
        """
        tokens = {}
        for name in names:
            if name not in self.tokenizers:
                raise ValueError(
                    f"given: {name} is not a modality of this model, which has {', '.join(self.tokenizers)}"
                )
            arrays = torch.from_numpy(self._arrays(clips, name))
            tokens[name] = self.tokenizers[name].encode(arrays.to(self.device))
        return tokens

    def glance(self, clips: Sequence[Clip], names: Sequence[str]) -> TokenSet:
        """Tokens of a part of what is given: of video the first and the last frame, each tokenized as an image, which is far
        cheaper than a clip, and of an image every other token, as the black squares of a chessboard lie; sequences whole.

        An approximation twice over: the last frame's ids stand at the last step's places, where the whole clip's would also
        tell the motion of the frames before, and are tokenized in bfloat16 where the device multiplies it.

        Raises:
            ValueError: as `encode`; or a video tokenizer that takes whole clips only.
        """
        config = self.model.config
        videos = [name for name in names if name in self.tokenizers and MODALITIES[name].kind == VIDEO]
        parts = [
            TokenSet.of(config, name, ids, torch.arange(ids.shape[1], device=self.device).expand_as(ids))
            for name, ids in self.encode(clips, [name for name in names if name not in videos]).items()
        ]
        for name in videos:
            tokenizer = self.tokenizers[name]
            if not isinstance(tokenizer, FsqVideoTokenizer):
                raise ValueError(
                    f"mode={GLANCE}: the tokenizer of {name}, {tokenizer.spec.name!r}, is a {tokenizer.architecture} and takes whole "
                    f"clips only; use mode={FAST}"
                )
            ends = torch.from_numpy(self._arrays(clips, name)[:, :, [0, -1]]).to(self.device)
            steps, rows, columns = tokenizer.spec.grid.shape
            cells = torch.arange(rows * columns, device=self.device)
            black = cells[(cells // columns + cells % columns) % 2 == 0]
            low = multiplies_bf16(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=low):
                ids = tokenizer.history_to_ids(ends.transpose(1, 2).flatten(0, 1)[:, :, None])
            ids = ids[:, black].unflatten(0, (-1, 2)).flatten(1)
            places = torch.cat([black, (steps - 1) * rows * columns + black])
            parts.append(TokenSet.of(config, name, ids, places.expand_as(ids)))
        return concatenate(parts)

    def _arrays(self, clips: Sequence[Clip], name: str) -> np.ndarray:
        try:
            return np.stack([self.array_of(clip, name) for clip in clips])
        except ModalityMissing as error:
            keys = ", ".join(clip.key for clip in clips)
            raise ValueError(f"given: {name} cannot be had of every clip ({keys}): {error}") from None

    def physical(self, name: str, decoded: Float[Tensor, "B ..."], clips: Sequence[Clip]) -> list[np.ndarray]:
        """What a tokenizer decoded in physical units, one array a clip."""
        return [
            MODALITIES[name].to_physical(array, context_of(clip))
            for array, clip in zip(decoded.cpu().numpy(), clips, strict=True)
        ]

    def predict(
        self,
        clips: Sequence[Clip],
        *,
        given: Sequence[str],
        targets: Sequence[Target],
        seed: int = 0,
        mode: str = "exact",
        estimate: str = SAMPLE,
    ) -> list[dict[str, np.ndarray]]:
        """The modalities of `targets` for each clip, in physical units.

        Args:
            estimate: "mean" (see generate.expected_codes) takes of `targets` the modalities alone, and no seed.

        Raises:
            ValueError: a modality that the model or a clip does not have, an unknown mode or estimate.
        """
        if estimate not in ESTIMATES:
            raise ValueError(f"estimate: expected one of {', '.join(ESTIMATES)}, got {estimate!r}")
        if mode not in MODES:
            raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")
        for target in targets:
            if target.modality not in self.tokenizers:
                known = ", ".join(self.tokenizers)
                raise ValueError(f"want: {target.modality} is not a modality of this model, which has {known}")
        known = self.glance(clips, given) if mode == GLANCE else self.encode(clips, given)
        writing, speak = EXACT if mode == EXACT else FAST, self.tokenizers
        if estimate == MEAN:
            precision = "auto" if writing == FAST else "float32"
            books = {target.modality: speak[target.modality].codebook() for target in targets}
            codes = expected_codes(self.model, known, books, precision=precision)
            decoded = {name: speak[name].decode_codes(codes[name]) for name in books}
        else:
            tokens = generate(self.model, known, targets, seed=seed, mode=writing, precision="auto")
            decoded = {target.modality: speak[target.modality].decode(tokens[target.modality]) for target in targets}
        columns = {name: self.physical(name, clip, clips) for name, clip in decoded.items()}
        return [{name: column[row] for name, column in columns.items()} for row in range(len(clips))]

    def truth(self, clip: Clip, name: str) -> np.ndarray | None:
        """What the clip itself says, in the same units and size as a prediction, NaN in its gaps; None if it does not."""
        try:
            array = self.array_of(clip, name)
        except ModalityMissing:
            return None
        row = MODALITIES[name]
        physical = row.to_physical(array, context_of(clip))
        if row.channels > row.decoded_channels:
            known = array[:, row.decoded_channels :] > 0
            physical[~known if known.shape[1] > 1 else ~known[:, 0]] = np.nan
        return physical


def context_of(clip: Clip) -> Mapping[str, Any]:
    """What `Modality.to_physical` may need of the clip."""
    return {} if clip.rgb is None else {"image": clip.rgb.shape[1:3]}


def run(config: PredictConfig) -> None:
    """Predicts, writes <out>/<clip>/{prediction.npz, picture.png, video.mp4} and <out>/prediction.json, and says where.

    Raises:
        FileNotFoundError: no model or store there.
        ValueError: a modality that the model or a clip does not have.
    """
    from pretrain.egom2p.pictures import draw_picture, write_video

    if config.threads:
        torch.set_num_threads(config.threads)
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    predictor = Predictor(load_egom2p(config.checkpoint), device=device)
    path, colon, number = config.clip.rpartition(":")
    store = open_store(path if colon and number.isdigit() else config.clip)
    wanted = [int(number)] if colon and number.isdigit() else list(range(min(config.clips, len(store))))
    if wanted[-1] >= len(store):
        raise ValueError(f"clip={config.clip}: the store has clips 0 to {len(store) - 1}")
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    made = []
    for start in range(0, len(wanted), config.batch_size):
        clips = [store.read(index) for index in wanted[start : start + config.batch_size]]
        results = predictor.predict(
            clips,
            given=config.given,
            targets=config.targets(config.want),
            seed=config.seed + start,
            mode=config.mode,
            estimate=config.estimate,
        )
        for clip, result in zip(clips, results, strict=True):
            shown = {name: predictor.truth(clip, name) for name in (*config.given, *config.want)}
            with atomic_directory(out / clip.key) as place:
                np.savez_compressed(place / "prediction.npz", **result)  # pyright: ignore[reportArgumentType]
                draw_picture(place / "picture.png", clip, given=config.given, truth=shown, predicted=result)
                write_video(place / "video.mp4", clip, given=config.given, truth=shown, predicted=result)
            made.append(clip.key)
    record = {"model_sha256": predictor.bundle.sha256, "clips": made, "settings": dataclasses.asdict(config)}
    atomic_write_text(out / "prediction.json", json.dumps(record, indent=2) + "\n")
    print(
        f"predicted {', '.join(config.want)} from {', '.join(config.given)} for {len(made)} clips: {out / made[0]}/picture.png, "
        "prediction.npz, video.mp4"
    )
