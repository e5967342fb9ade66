"""EGTEA Gaze+ zero-shot: name the action of a clip by the text of its class; mean-class accuracy over several views.

Axes: n clips, C classes, P views of a clip.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pretrain.downstream.annotations import find_file, read_text, reading
from pretrain.downstream.ek100_cls import class_embeddings, in_top
from pretrain.downstream.features import Extractor, View
from pretrain.downstream.segments import Segment, VideoSource
from pretrain.downstream.statistics import make_metric
from pretrain.downstream.task import Outcome, Task

CLASSES, SPLIT = "action_idx.txt", "test_split1.txt"
TEMPLATES = ("#C C {}",)
# Each view spans this long: 16 frames with a stride of 2 at the data's 24 Hz.
VIEW_S = 32 / 24
CROPS = {1: (0.5,), 3: (0.0, 0.5, 1.0)}


@dataclass(frozen=True, kw_only=True)
class ActionClip:
    """`label`: class name; `group`: the recording session."""

    segment: Segment
    label: str
    group: str

    @property
    def segments(self) -> Sequence[Segment]:
        return (self.segment,)


def read_egtea(directory: Path) -> Task:
    """`action_idx.txt`, lines "Take bowl 1" (or Take_bowl), and `test_split1.txt`, lines "CLIP_ID ACTION_INDEX ...", where
    the clips are videos CLIP_ID.mp4.

    Raises:
        ValueError: a line of another form, an index without a class, a clip or class that is there twice.
    """
    path = find_file(directory, (CLASSES,), "EGTEA's classes")
    names: dict[int, str] = {}
    for line, text in _lines(path):
        with reading(path, f"line {line}"):
            words, _, index = text.rpartition(" ")
            if int(index) in names or not words.strip():
                raise ValueError(f"expected a name and a number that is not there yet, found {text!r}")
            names[int(index)] = words.replace("_", " ").strip().lower()
    path = find_file(directory, (SPLIT,), "EGTEA's first test split")
    clips: dict[str, ActionClip] = {}
    for line, text in _lines(path):
        with reading(path, f"line {line}"):
            clip, index = text.split()[:2]
            if clip in clips:
                raise ValueError(f"clip {clip!r} is there twice")
            if int(index) not in names:
                raise ValueError(f"action {index} is not in {CLASSES}")
            # OP01-R01-PastaSalad-1002316-1004005-F024051-F024101
            session = "-".join(clip.split("-")[:3])
            clips[clip] = ActionClip(segment=Segment(clip), label=names[int(index)], group=session)
    return egtea_task(list(clips.values()), list(names.values()), clips=10, crops=3, view_s=VIEW_S)


def _lines(path: Path) -> list[tuple[int, str]]:
    return [(number, line.strip()) for number, line in enumerate(read_text(path).splitlines(), 1) if line.strip()]


def egtea_task(items: Sequence[ActionClip], classes: Sequence[str], *, clips: int, crops: int, view_s: float) -> Task:
    """`clips` views in time, each `view_s` long, by `crops` in space."""
    return Task(
        items=tuple(items),
        options={"classes": tuple(dict.fromkeys(classes)), "clips": clips, "crops": crops, "view_s": view_s},
        protocol={"views": [clips, crops], "view_s": view_s, "templates": list(TEMPLATES)},
    )


def views_of(segment: Segment, source: VideoSource, *, clips: int, crops: int, view_s: float) -> list[View]:
    """Pieces of `view_s` spread evenly over a segment, from its first to its last second, in each crop."""
    whole = source.resolve(segment)
    width = min(view_s, whole.end_s - whole.start_s)
    starts = (
        np.linspace(whole.start_s, whole.end_s - width, clips)
        if clips > 1
        else [(whole.start_s + whole.end_s - width) / 2]
    )
    return [
        View(Segment(whole.video, round(float(start), 6), round(float(start) + width, 6)), crop)
        for start in starts
        for crop in CROPS[crops]
    ]


def evaluate_egtea(extractor: Extractor, task: Task) -> Outcome:
    """The class of the nearest text to the mean embedding of a clip's views; the mean over the classes of their accuracy."""
    clips: Sequence[ActionClip] = task.items
    options = task.options
    each = [
        views_of(
            clip.segment, extractor.source, clips=options["clips"], crops=options["crops"], view_s=options["view_s"]
        )
        for clip in clips
    ]
    video = extractor.joint([view for views in each for view in views]).unflatten(0, (len(clips), -1)).mean(dim=1)
    texts = class_embeddings(extractor.subject, [(name,) for name in options["classes"]], TEMPLATES)
    labels = np.array([clip.label for clip in clips])
    right = in_top((video @ texts.T).double().numpy(), options["classes"], labels.tolist(), 1)
    groups = np.array([clip.group for clip in clips])
    metrics = (
        make_metric(
            "mean-class accuracy",
            right,
            unit="%",
            chance=1 / len(set(labels.tolist())),  # naming one class always
            groups=groups,
            strata=labels,
        ),
        make_metric(
            "accuracy",
            right,
            unit="%",
            chance=float(np.unique(labels, return_counts=True)[1].max() / len(labels)),
            groups=groups,
        ),
    )
    return Outcome(metrics=metrics)
