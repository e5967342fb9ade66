"""Has the training learned anything? Held-out clips against predictors that have seen no image.

An objective that does not beat these on its own task is not evidence for or against pretraining.

Depth: the error of the last stage against that of the training clips' mean depth at each pixel.
Retrieval: which held-out text is nearest to a clip, and the other way round, among all held-out clips. Equal texts count as
hits, so chance is that of always naming the most frequent text.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float
from scipy.stats import binomtest
from torch import Tensor

from pretrain.egodtm.data import LoadBatch
from pretrain.egodtm.model import EgoDTM

# Enough training clips for a mean image; more change it little.
_MEAN_CLIPS = 256


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Scores on held-out clips. Depth fields are None for a model without depth.

    Attributes:
        clips: held-out clips, also the size of the retrieval pool.
        depth_mse, depth_l1: mean errors of inverse depth in [0, 1].
        depth_mse_mean, depth_l1_mean: the same of the per-pixel mean predictor.
        depth_clips_better: clips on which the model's squared error is the smaller.
        retrieval_video_to_text, retrieval_text_to_video: share of first places that are right.
        retrieval_chance: share that naming the most frequent text gets.
        retrieval_p: one-sided binomial p at that chance of the worse direction's hits (features that have collapsed can do
            well in one direction).
    """

    clips: int
    depth_mse: float | None
    depth_mse_mean: float | None
    depth_l1: float | None
    depth_l1_mean: float | None
    depth_clips_better: int | None
    retrieval_video_to_text: float
    retrieval_text_to_video: float
    retrieval_chance: float
    retrieval_p: float

    def scalars(self) -> dict[str, float]:
        return {f"val/{name}": float(value) for name, value in asdict(self).items() if value is not None}

    def lines(self) -> list[str]:
        """The verdict in words."""
        lines = []
        if self.depth_mse is not None and self.depth_mse_mean is not None:
            verdict = "better" if self.depth_mse < self.depth_mse_mean else "NOT better"
            lines.append(
                f"depth on {self.clips} held-out clips: squared error {self.depth_mse:.4f}, per-pixel mean "
                f"{self.depth_mse_mean:.4f} ({verdict}; on {self.depth_clips_better} clips)"
            )
        verdict = "better than" if self.retrieval_p < 0.05 else "NOT distinguishable from"
        lines.append(
            f"retrieval among {self.clips}: video to text {self.retrieval_video_to_text:.1%}, text to video "
            f"{self.retrieval_text_to_video:.1%}, chance {self.retrieval_chance:.1%} ({verdict} chance, "
            f"p = {self.retrieval_p:.2g})"
        )
        return lines


@torch.inference_mode()
def validate(
    model: EgoDTM, load: LoadBatch, *, held_out: Sequence[int], train: Sequence[int], batch_size: int
) -> Validation:
    """Scores `model` on the clips `held_out`; `train` are those the mean depth is taken from. `load` is not random."""
    was_training = model.training
    model.eval()
    device = model.log_scale.device
    videos, texts, errors = [], [], []
    mean = _mean_depth(load, train[:: max(1, len(train) // _MEAN_CLIPS)], batch_size) if load.with_depth else None
    for chunk in _chunks(held_out, batch_size):
        batch = load([(index, 0) for index in chunk])
        output = model(batch["video"].to(device), batch["text_ids"].to(device), all_stages=False)
        videos.append(output.video.float().cpu())
        texts.append(output.text.float().cpu())
        if output.depth is not None and mean is not None:
            target, valid = batch["depth"], batch["depth_valid"]
            errors.append(_errors(output.depth[-1].float().cpu(), mean, target, valid))
    model.train(was_training)

    names = [load.dataset.sample(index, 0)["narration"] for index in held_out]
    similarity = torch.cat(videos) @ torch.cat(texts).T
    to_text = _hits(similarity, names)
    to_video = _hits(similarity.T, names)
    count = len(held_out)
    chance = max(Counter(names).values()) / count
    depth = torch.cat(errors) if errors else None
    means = [None] * 4 if depth is None else depth.nanmean(dim=0).tolist()
    return Validation(
        clips=count,
        depth_mse=means[0],
        depth_mse_mean=means[1],
        depth_l1=means[2],
        depth_l1_mean=means[3],
        depth_clips_better=None if depth is None else int((depth[:, 0] < depth[:, 1]).sum()),
        retrieval_video_to_text=to_text / count,
        retrieval_text_to_video=to_video / count,
        retrieval_chance=chance,
        retrieval_p=float(binomtest(min(to_text, to_video), count, chance, alternative="greater").pvalue),
    )


def _chunks(indices: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(indices), size):
        yield indices[start : start + size]


def _mean_depth(load: LoadBatch, indices: Sequence[int], batch_size: int) -> Float[Tensor, "T h w"]:
    """Mean inverse depth of the valid values at each frame and pixel."""
    total = count = torch.zeros(())
    for chunk in _chunks(indices, batch_size):
        batch = load([(index, 0) for index in chunk])
        valid = batch["depth_valid"]
        total = total + (batch["depth"] * valid).sum(dim=0)
        count = count + valid.sum(dim=0)
    return total / count.clamp(min=1)


def _errors(
    predicted: Float[Tensor, "B T h w"], mean: Float[Tensor, "T h w"], target: Tensor, valid: Tensor
) -> Float[Tensor, "B 4"]:
    """Per clip: squared error of the model and of the mean, absolute error of both. NaN for a clip without depth."""
    weight = valid.float()
    pixels = weight.flatten(1).sum(dim=1)
    columns = []
    for power in (2, 1):
        for guess in (predicted, mean.expand_as(target)):
            error = (guess - target).abs() ** power * weight
            columns.append(error.flatten(1).sum(dim=1) / pixels)
    return torch.stack(columns, dim=1)


def _hits(similarity: Float[Tensor, "n n"], names: Sequence[str]) -> int:
    nearest = similarity.argmax(dim=1).tolist()
    return sum(names[found] == names[asked] for asked, found in enumerate(nearest))
