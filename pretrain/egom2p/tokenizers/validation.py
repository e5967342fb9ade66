"""Does a tokenizer keep what a clip says? Held-out clips through ids and back, beside their own mean.

The per-clip mean (one number a channel) is what a code of a single constant could say at best: a tokenizer that does not
beat it by far carries nothing that happens in a clip.

Axes: as in pretrain.egom2p.modalities.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from pretrain.clips.store import ClipStore
from pretrain.egom2p.camera import poses_from_9d
from pretrain.egom2p.modalities import MODALITIES, VIDEO, ModalityMissing
from pretrain.egom2p.tokenizers.tokenizer import Tokenizer, code_usage
from pretrain.egom2p.windows import read_modalities

Array = Float32[np.ndarray, "..."]


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """Scores of one modality on held-out clips; means over the clips.

    Attributes:
        clips: that have the modality; skipped: the others, by reason.
        mse, mse_clip_mean: squared error in model space of the tokenizer and of each clip's mean, where valid; None
            without clips, as is perplexity.
        clips_better: on how many the tokenizer's is the smaller.
        physical, physical_clip_mean: the same in units a person knows, see MEASURES.
        codes_used, perplexity: how many ids occur, and exp of the entropy of their frequencies.
        vocabulary: ids there are.
    """

    clips: int
    skipped: dict[str, int]
    mse: float | None
    mse_clip_mean: float | None
    clips_better: int
    physical: dict[str, float]
    physical_clip_mean: dict[str, float]
    codes_used: int
    perplexity: float | None
    vocabulary: int

    def line(self, name: str) -> str:
        """The verdict in words."""
        if self.mse is None or self.mse_clip_mean is None:
            return f"{name}: no held-out clip has it: nothing was measured"
        verdict = "better" if self.mse < self.mse_clip_mean else "NOT better"
        units = "; ".join(
            f"{measure} {value:.3g} (mean {self.physical_clip_mean[measure]:.3g})"
            for measure, value in self.physical.items()
        )
        return (
            f"{name} on {self.clips} held-out clips: squared error {self.mse:.3g}, per-clip mean {self.mse_clip_mean:.3g} "
            f"({verdict}; on {self.clips_better} clips); {units}; {self.codes_used} of {self.vocabulary} codes used, perplexity "
            f"{self.perplexity:.0f}"
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def reconstruction(
    tokenizer: Tokenizer, store: ClipStore, indices: Sequence[int], *, batch_size: int
) -> dict[str, Reconstruction]:
    """Modality -> its scores on the first two seconds of these clips, whole pictures; the tokenizer's mode is kept."""
    was_training = tokenizer.training
    tokenizer.eval()
    try:
        return {name: _measure(tokenizer, store, indices, name, batch_size) for name in tokenizer.spec.modalities}
    finally:
        tokenizer.train(was_training)


def _measure(
    tokenizer: Tokenizer, store: ClipStore, indices: Sequence[int], name: str, batch_size: int
) -> Reconstruction:
    skipped: Counter[str] = Counter()
    counts = torch.zeros(tokenizer.spec.grid.vocabulary)
    # mse and the physical measures of the tokenizer, then of the mean, a row a clip.
    rows: list[tuple[dict[str, float], dict[str, float]]] = []
    device = next(tokenizer.parameters()).device
    for batch in _batches(store, indices, name, tokenizer.spec.input_shape[-1], batch_size, skipped):
        x = torch.from_numpy(np.stack([array for array, _ in batch])).to(device)
        ids = tokenizer.encode(x)
        decoded = tokenizer.decode(ids).float().cpu().numpy()
        counts += torch.bincount(ids.flatten().cpu(), minlength=len(counts))
        for (array, context), output in zip(batch, decoded, strict=True):
            truth, weight = split_mask(name, array)
            guesses = (output, clip_mean(name, truth, weight))
            ours, mean = ({"mse": _mse(g, truth, weight)} | MEASURES[name](g, truth, weight, context) for g in guesses)
            rows.append((ours, mean))
    ours, mean = (_column_means([row[side] for row in rows]) for side in (0, 1))
    usage = code_usage(torch.repeat_interleave(counts.long()), len(counts)) if rows else {}
    return Reconstruction(
        clips=len(rows),
        skipped=dict(skipped),
        mse=ours.pop("mse", None),
        mse_clip_mean=mean.pop("mse", None),
        clips_better=sum(row[0]["mse"] < row[1]["mse"] for row in rows),
        physical=ours,
        physical_clip_mean=mean,
        codes_used=int(usage.get("codes_used", 0)),
        perplexity=float(usage["perplexity"]) if usage else None,
        vocabulary=len(counts),
    )


def _batches(
    store: ClipStore, indices: Sequence[int], name: str, size: int, batch_size: int, skipped: Counter[str]
) -> Iterator[list[tuple[Array, dict[str, Any]]]]:
    """Arrays of the clips that have the modality, each with its context for to_physical."""
    batch: list[tuple[Array, dict[str, Any]]] = []
    for index in indices:
        clip = read_modalities(store, index, (name,))
        try:
            array = MODALITIES[name].to_array(clip, size)
        except ModalityMissing as error:
            skipped[str(error)] += 1
            continue
        batch.append((array, {} if clip.rgb is None else {"image": clip.rgb.shape[1:3]}))
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def split_mask(name: str, array: Array) -> tuple[Array, Array]:
    """Values as a tokenizer decodes them, and weights of their shape: 1 where the clip knows the value, else 0.

    Mask channels come last, and each covers an equal part of the values in order (gaze: one for x and y; hands: one a hand).
    """
    row = MODALITIES[name]
    masks = row.channels - row.decoded_channels
    if not masks:
        return array, np.ones_like(array)
    values, mask = array[..., : row.decoded_channels], array[..., row.decoded_channels :]
    return values, np.repeat(mask, row.decoded_channels // masks, axis=-1)


def clip_mean(name: str, truth: Array, weight: Array) -> Array:
    """The mean of each channel over the clip's known values, everywhere."""
    axes = tuple(range(1, truth.ndim)) if MODALITIES[name].kind == VIDEO else (0,)
    total = weight.sum(axis=axes, keepdims=True)
    mean = (truth * weight).sum(axis=axes, keepdims=True) / np.maximum(total, 1)
    return np.broadcast_to(mean, truth.shape).astype(np.float32)


def _mse(guess: Array, truth: Array, weight: Array) -> float:
    return float((np.square(guess - truth, dtype=np.float64) * weight).sum() / weight.sum())


def _column_means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} if rows else {}


# ---------------------------------------------------------------------------------------------------- physical measures


def _video(guess: Array, truth: Array, weight: Array, context: Mapping[str, Any]) -> dict[str, float]:
    """PSNR over the range of pixels (rgb) or of inverse depth, capped at 100 dB."""
    del weight, context
    mse = np.square((np.clip(guess, -1, 1) - truth) / 2, dtype=np.float64).mean()
    return {"psnr_db": min(100.0, -10 * math.log10(max(float(mse), 1e-30)))}


def _gaze(guess: Array, truth: Array, weight: Array, context: Mapping[str, Any]) -> dict[str, float]:
    """Mean distance in pixels of the clip's image, over valid samples."""
    to_pixels = MODALITIES["gaze"].to_physical
    distance = np.linalg.norm(to_pixels(guess, context) - to_pixels(truth, context), axis=-1)
    return {"error_px": float(distance[weight[:, 0] > 0].mean())}


def _camera(guess: Array, truth: Array, weight: Array, context: Mapping[str, Any]) -> dict[str, float]:
    """Mean error of position in metres and of rotation in degrees, in the first true camera's frame."""
    del weight, context
    ours, true = (poses_from_9d(torch.from_numpy(code).double()).numpy() for code in (guess, truth))
    position = np.linalg.norm(ours[:, :3, 3] - true[:, :3, 3], axis=-1).mean()
    # |R - R'| (Frobenius) = 2 sqrt 2 sin(angle / 2): unlike the arc cosine of the trace it is exact for small angles.
    chord = np.linalg.norm(ours[:, :3, :3] - true[:, :3, :3], axis=(1, 2)) / math.sqrt(8)
    angle = np.degrees(2 * np.arcsin(np.clip(chord, 0, 1))).mean()
    return {"position_m": float(position), "rotation_deg": float(angle)}


def _hands(guess: Array, truth: Array, weight: Array, context: Mapping[str, Any]) -> dict[str, float]:
    """Mean distance of joints in metres, over known hands."""
    del context
    error = (guess - truth).reshape(len(truth), -1, 3)
    known = weight.reshape(error.shape)[..., 0] > 0
    return {"joint_m": float(np.linalg.norm(error, axis=-1)[known].mean())}


# Modality -> (decoded, true values, weights, context) of one clip -> measure, its unit in its name.
MEASURES: dict[str, Callable[[Array, Array, Array, Mapping[str, Any]], dict[str, float]]] = {
    "rgb": _video,
    "depth": _video,
    "gaze": _gaze,
    "camera": _camera,
    "hands": _hands,
}
