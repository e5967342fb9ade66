"""EgoNLQ: when in a long video is the answer to a question? Frozen dense features and a small head of our own.

The head follows VSLNet (Zhang et al. 2020) in outline: query and video meet in each slot, convolutions look at the
neighbourhood, and two scores say whether the answer starts or ends there. It is trained for a fixed number of steps.

Axes: q queries, L slots of a video, D video width, E text width, C head width.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from pretrain.downstream.annotations import find_file, number, read_json, reading
from pretrain.downstream.features import DenseGrid, Extractor, save_dense_features
from pretrain.downstream.segments import Segment
from pretrain.downstream.statistics import make_metric
from pretrain.downstream.task import Outcome, Task, counted

TRAIN, VALIDATION = "nlq_train.json", "nlq_val.json"
RATE_HZ = 1.87
TOPS, THRESHOLDS = (1, 5), (0.3, 0.5)
_SEED = 20253


@dataclass(frozen=True, kw_only=True)
class Query:
    """`video`: the piece that is searched; `start_s`, `end_s`: the answer, in seconds from the start of that piece."""

    video: Segment
    text: str
    start_s: float
    end_s: float
    group: str

    @property
    def segments(self) -> Sequence[Segment]:
        return (self.video,)


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Budget and size of the head."""

    width: int = 64
    layers: int = 2
    kernel: int = 5
    steps: int = 300
    batch_size: int = 32
    learning_rate: float = 1e-3


HEAD = HeadConfig()


def read_nlq(directory: Path) -> Task:
    """`nlq_train.json` and `nlq_val.json`: videos > clips > annotations > language_queries. The clips are videos called by
    their clip_uid (Ego4D's exported clips), in whose time the answers are.

    Raises:
        ValueError: a missing field or a clip_uid that is there twice. Queries without words or without length are skipped
            and counted.
    """
    parts, notes = {}, []
    for name in (TRAIN, VALIDATION):
        path = find_file(directory, (name,), "EgoNLQ's queries")
        parts[name], skipped = _read_part(path)
        notes += [f"{name}: {note}" for note in counted(skipped)]
        if not parts[name]:
            raise ValueError(f"{path}: no query has words and an answer ({', '.join(counted(skipped))})")
    return nlq_task(parts[VALIDATION], parts[TRAIN], rate_hz=RATE_HZ, notes=tuple(notes))


def _read_part(path: Path) -> tuple[list[Query], Counter[str]]:
    queries: list[Query] = []
    skipped: Counter[str] = Counter()
    seen: set[str] = set()
    document = read_json(path, dict)
    with reading(path, "the top level"):
        videos = document["videos"]
    for video in videos:
        with reading(path, f"video {video.get('video_uid')!r}"):
            for clip in video["clips"]:
                name = str(clip["clip_uid"])
                if name in seen:
                    raise ValueError(f"clip_uid {name!r} is there twice")
                seen.add(name)
                length_s = number(clip["clip_end_sec"]) - number(clip["clip_start_sec"])
                for annotation in clip["annotations"]:
                    for query in annotation["language_queries"]:
                        found = _query(query, name, length_s)
                        if isinstance(found, str):
                            skipped[found] += 1
                        else:
                            queries.append(found)
    return queries, skipped


def _query(query: dict[str, Any], clip: str, length_s: float) -> Query | str:
    """The query, or why it is skipped."""
    text = query.get("query")
    if not isinstance(text, str) or not text.strip():
        return "a query without words"
    if "clip_start_sec" not in query or "clip_end_sec" not in query:
        return "a query without an answer"
    start_s, end_s = number(query["clip_start_sec"]), number(query["clip_end_sec"])
    if not 0 <= start_s < end_s or start_s >= length_s:
        return "an answer of no length or outside its clip"
    video = Segment(clip, 0.0, length_s)
    return Query(video=video, text=text.strip(), start_s=start_s, end_s=min(end_s, length_s), group=clip)


def nlq_task(
    queries: Sequence[Query],
    fit: Sequence[Query],
    *,
    rate_hz: float,
    window_s: float | None = None,
    notes: tuple[str, ...] = (),
) -> Task:
    """`window_s`: length of video behind each feature; None = one slot."""
    grid = DenseGrid(rate_hz=rate_hz, window_s=1 / rate_hz if window_s is None else window_s)
    return Task(
        items=tuple(queries),
        fit=tuple(fit),
        options={"grid": grid, "head": HEAD},
        protocol={"rate_hz": grid.rate_hz, "window_s": grid.window_s, "head": vars(HEAD)},
        notes=notes,
    )


def evaluate_nlq(extractor: Extractor, task: Task) -> Outcome:
    """R@1 and R@5 at IoU 0.3 and 0.5, and the mean IoU of the first answer. Chance is the same head without the video: what
    the words of a question and the usual places and lengths of answers give away."""
    grid: DenseGrid = task.options["grid"]
    features = dense_features(extractor, task, grid)
    test = _batch(extractor, task.items, features, grid)
    train = _batch(extractor, task.fit, features, grid)
    truth = np.array([[query.start_s, query.end_s] for query in task.items])
    overlaps = []
    for blind in (False, True):
        head = train_head(train.blinded() if blind else train, task.options["head"])
        spans = predict_spans(head, test.blinded() if blind else test, top=max(TOPS))
        seconds = spans.numpy() / grid.rate_hz + np.array([0.0, 1.0 / grid.rate_hz])
        # The last slot may reach past the end of the video.
        lengths = np.array([query.video.end_s - query.video.start_s for query in task.items])
        overlaps.append(span_iou(np.minimum(seconds, lengths[:, None, None]), truth[:, None]))
    groups = np.array([query.group for query in task.items])
    metrics = []
    scores = {
        f"R@{top} IoU {threshold}": [
            (overlap[:, :top].max(axis=1) >= threshold).astype(np.float64) for overlap in overlaps
        ]
        for top in TOPS
        for threshold in THRESHOLDS
    } | {"mIoU": [overlap[:, 0] for overlap in overlaps]}
    for name, (seen, unseen) in scores.items():
        metrics.append(make_metric(name, seen, unit="%", chance=float(unseen.mean()), groups=groups))
    note = f"the head is trained on {len(task.fit)} queries; chance is the same head without video features"
    return Outcome(metrics=tuple(metrics), notes=(note,))


def dense_features(extractor: Extractor, task: Task, grid: DenseGrid) -> dict[Segment, Float[Tensor, "L D"]]:
    """Pooled features of every video of the task at the grid's rate, which are also written where the extractor exports."""
    videos = task.segments()
    windows = {video: grid.segments(video.video, video.start_s, video.end_s) for video in videos}
    rows = torch.from_numpy(extractor.pooled([window for part in windows.values() for window in part]))
    features = dict(zip(videos, rows.split([len(part) for part in windows.values()]), strict=True))
    if extractor.export is not None:
        for video, own in features.items():
            save_dense_features(
                extractor.export / f"{video.video}.npz",
                own.numpy(),
                video=video.video,
                start_s=video.start_s,
                grid=grid,
                joint=extractor.subject.join(own).numpy(),
            )
    return features


# --------------------------------------------------------------------------------------------------------------- the head


@dataclass(frozen=True)
class SpanBatch:
    """Padded queries. `video` standardised features, `similarity` cosine of query and slot in the joint space, `span` the
    first and the last slot of the answer."""

    video: Float[Tensor, "q L D"]
    similarity: Float[Tensor, "q L"]
    valid: Bool[Tensor, "q L"]
    text: Float[Tensor, "q E"]
    span: Int[Tensor, "q 2"]

    def blinded(self) -> "SpanBatch":
        return SpanBatch(
            torch.zeros_like(self.video), torch.zeros_like(self.similarity), self.valid, self.text, self.span
        )

    def rows(self, index: Tensor) -> "SpanBatch":
        return SpanBatch(*(value[index] for value in vars(self).values()))


def _batch(
    extractor: Extractor, queries: Sequence[Query], features: dict[Segment, Tensor], grid: DenseGrid
) -> SpanBatch:
    text = extractor.subject.embed_text([query.text for query in queries])
    every = torch.cat(list(features.values()))
    mean, deviation = every.mean(dim=0), every.std(dim=0) + 1e-6
    length = max(len(features[query.video]) for query in queries)
    video = torch.zeros(len(queries), length, every.shape[1])
    similarity, valid = torch.zeros(len(queries), length), torch.zeros(len(queries), length, dtype=torch.bool)
    span = torch.zeros(len(queries), 2, dtype=torch.long)
    for row, query in enumerate(queries):
        own = features[query.video]
        video[row, : len(own)] = (own - mean) / deviation
        similarity[row, : len(own)] = extractor.subject.join(own) @ text[row]
        valid[row, : len(own)] = True
        first = min(int(query.start_s * grid.rate_hz + 1e-6), len(own) - 1)
        last = min(max(int(np.ceil(query.end_s * grid.rate_hz - 1e-6)) - 1, first), len(own) - 1)
        span[row] = torch.tensor([first, last])
    return SpanBatch(video, similarity, valid, text, span)


class SpanHead(nn.Module):
    """Slots and a query to scores of the answer's first and last slot."""

    def __init__(self, video_width: int, text_width: int, config: HeadConfig) -> None:
        super().__init__()
        width = config.width
        self.video = nn.Linear(video_width, width)
        self.text = nn.Linear(text_width, width)
        self.meet = nn.Linear(3 * width + 2, width)
        self.layers = nn.ModuleList(
            nn.Conv1d(width, width, config.kernel, padding=config.kernel // 2) for _ in range(config.layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(config.layers))
        self.scores = nn.Linear(width, 2)

    def forward(self, batch: SpanBatch) -> Float[Tensor, "q L 2"]:
        video = self.video(batch.video)
        text = self.text(batch.text)[:, None].expand_as(video)
        place = torch.arange(video.shape[1]) / batch.valid.sum(dim=1, keepdim=True)
        # Similarities of trained towers differ by hundredths: their rank within the video is what matters.
        near = batch.similarity - batch.similarity.mean(dim=1, keepdim=True)
        extra = torch.stack([10 * near, place.expand_as(near)], dim=-1)
        x = self.meet(torch.cat([video, text, video * text, extra], dim=-1))
        keep = batch.valid[..., None].float()
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = norm(x + F.gelu(layer((x * keep).transpose(1, 2)).transpose(1, 2)))
        return self.scores(x).masked_fill(~batch.valid[..., None], -1e9)


def train_head(train: SpanBatch, config: HeadConfig) -> SpanHead:
    """Cross-entropy of the first and of the last slot, AdamW, the fixed budget; the same head for the same input."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(_SEED)
        head = SpanHead(train.video.shape[-1], train.text.shape[-1], config)
        optimizer = torch.optim.AdamW(head.parameters(), lr=config.learning_rate, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
        for _ in range(config.steps):
            chosen = train.rows(torch.randint(len(train.text), (min(config.batch_size, len(train.text)),)))
            scores = head(chosen)
            loss = F.cross_entropy(scores[..., 0], chosen.span[:, 0]) + F.cross_entropy(
                scores[..., 1], chosen.span[:, 1]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return head.eval()


@torch.inference_mode()
def predict_spans(head: SpanHead, batch: SpanBatch, *, top: int, rows: int = 32) -> Int[Tensor, "q top 2"]:
    """The `top` best (first, last) slots of each query, first <= last, by the sum of their log-probabilities."""
    spans = []
    for start in range(0, len(batch.text), rows):
        part = batch.rows(torch.arange(start, min(start + rows, len(batch.text))))
        scores = head(part).log_softmax(dim=1)
        length = scores.shape[1]
        pairs = scores[:, :, None, 0] + scores[:, None, :, 1]
        pairs = pairs.masked_fill(~torch.ones(length, length, dtype=torch.bool).triu(), float("-inf")).flatten(1)
        best = pairs.topk(min(top, length * (length + 1) // 2), dim=1).indices
        best = torch.cat([best, best[:, -1:].expand(-1, top - best.shape[1])], dim=1)
        spans.append(torch.stack([best // length, best % length], dim=-1))
    return torch.cat(spans)


def span_iou(a: Float[np.ndarray, "*n 2"], b: Float[np.ndarray, "*n 2"]) -> Float64[np.ndarray, "*n"]:
    """Intersection over union of intervals (start, end)."""
    both = np.clip(np.minimum(a[..., 1], b[..., 1]) - np.maximum(a[..., 0], b[..., 0]), 0, None)
    either = (a[..., 1] - a[..., 0]) + (b[..., 1] - b[..., 0]) - both
    return np.where(either > 0, both / np.maximum(either, 1e-12), 0.0)
