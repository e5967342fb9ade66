"""`egoarm probe benchmark=four-tasks`: EgoM2P's predictions of held-out clips beside baselines that need no model.

Its tables have other columns than those of encoders (methods that predict, not features that are read), so it is measured
alone. A fifth of the clips is kept for the baselines' means and the scale of visual odometry; nobody is scored on it.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch

from pretrain.clips.schema import Clip
from pretrain.clips.store import open_store
from pretrain.downstream.four_tasks import BENCHMARK, FourTasksConfig, Prediction, measure, report
from pretrain.downstream.four_tasks_truth import TASKS
from pretrain.downstream.segments import is_store
from pretrain.downstream.subjects import NEEDS_PREDICTOR, Subject
from pretrain.downstream.synthetic_twin import held_out_clips
from pretrain.egom2p.generate import PUBLISHED_TARGETS
from pretrain.egom2p.predict import MEAN, SAMPLE, Predictor
from pretrain.provenance import make_provenance

# task -> what is shown for it.
GIVEN = {"gaze": "rgb", "camera": "rgb", "depth": "rgb", "rgb": "depth"}
# What follows the model's name, of each way to have it predict.
SAMPLED, BLIND = ", sampled", ", another clip given"
WAYS = ("", SAMPLED, BLIND)
_SEED = 20255
_FIT_SHARE = 0.2


class FourTasksSettings(Protocol):
    """What this reads of ProbeConfig."""

    @property
    def data(self) -> str | None: ...
    @property
    def out(self) -> str: ...
    @property
    def clips(self) -> int: ...
    @property
    def allow_train(self) -> bool: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def mode(self) -> str: ...


class EgoM2PPredictor:
    """A trained model in the four tasks, in one of three ways.

    Its own name: the mean of what it thinks possible, for all tasks are scored by distances. SAMPLED: a draw, by the authors'
    schedule or at once (`mode="fast"`). BLIND: the mean given the clip before in the batch in place of this one (its depth
    in place of its depth): what the model knows of clips at large. Where that is as good, what is given has no part in
    the predictions, however they compare with the baselines.
    """

    def __init__(self, subject: Subject, *, mode: str, way: str = "") -> None:
        assert subject.predictor is not None and way in WAYS
        self.name, self.sha256 = f"{subject.name}{way}", subject.sha256
        self.mode, self.estimate, self.is_blind = mode, SAMPLE if way == SAMPLED else MEAN, way == BLIND
        self.predictor: Predictor = subject.predictor

    def predict(self, clips: Sequence[Clip]) -> Prediction:
        known = self.predictor.tokenizers
        found: dict[str, list[np.ndarray | None]] = {}
        seconds: dict[str, float] = {}
        for task in TASKS:
            given = GIVEN[task]
            if task not in known or given not in known:
                continue
            shown = _others(clips) if self.is_blind else clips
            able = [place for place, clip in enumerate(shown) if clip is not None and getattr(clip, given) is not None]
            if not able:
                continue
            began = time.perf_counter()
            results = self.predictor.predict(
                [clip for place in able if (clip := shown[place]) is not None],
                given=[given],
                targets=[PUBLISHED_TARGETS[task]],
                mode=self.mode,
                estimate=self.estimate,
            )
            seconds[task] = time.perf_counter() - began
            column: list[np.ndarray | None] = [None] * len(clips)
            for place, result in zip(able, results, strict=True):
                column[place] = result[task]
            found[task] = column
        return Prediction(
            gaze=found.get("gaze"),
            camera=found.get("camera"),
            depth=found.get("depth"),
            rgb=found.get("rgb"),
            seconds=seconds,
        )


def _others(clips: Sequence[Clip]) -> list[Clip | None]:
    """For each clip the one before it, for the first the last; None where that is the clip itself, or of another size, in whose
    pixels it would be predicted."""
    shapes = [None if clip.rgb is None else clip.rgb.shape[1:3] for clip in clips]
    return [clips[n - 1] if len(clips) > 1 and shapes[n - 1] == shapes[n] else None for n in range(len(clips))]


def run_four_tasks(
    config: FourTasksSettings, subjects: Sequence[Subject], *, baseline: str, device: str, results_file: str
) -> None:
    """Measures, prints a table a task, and writes <out>/<results_file>.

    Raises:
        ValueError: an encoder that is no EgoM2P, or no clip store to measure on.
    """
    began = time.monotonic()
    for subject in subjects:
        if subject.predictor is None:
            raise ValueError(
                f"encoder={subject.name}: {BENCHMARK} {NEEDS_PREDICTOR}; give the directory of a run of egoarm pretrain egom2p"
            )
    if config.data is None or not is_store(config.data):
        raise ValueError(f"data={config.data}: {BENCHMARK} needs a clip store of scenes that were not trained on")
    store = open_store(config.data)
    held_out = held_out_clips(store, subjects, limit=0, unseen=False, allow_train=config.allow_train)
    keys = {clip.key for clip in held_out.clips}
    allowed = [index for index, key in enumerate(store.keys) if key in keys]
    order = np.random.default_rng(_SEED).permutation(allowed)
    fit = max(1, round(_FIT_SHARE * len(order)))
    scored = order[fit:] if not config.clips else order[fit : fit + config.clips]
    predictors = [
        EgoM2PPredictor(_on(subject, device), mode=config.mode, way=way) for subject in subjects for way in WAYS
    ]
    # Methods are timed side by side: OpenCV's must have the threads that PyTorch's have.
    threads_before = cv2.getNumThreads()
    cv2.setNumThreads(torch.get_num_threads())
    results = measure(
        predictors,
        store,
        sorted(scored.tolist()),
        fit_indices=sorted(order[:fit].tolist()),
        config=FourTasksConfig(batch_size=config.batch_size),
    )
    cv2.setNumThreads(threads_before)
    path = Path(config.out) / results_file
    provenance = make_provenance(
        seed=0,
        parents={subject.name: subject.sha256 for subject in subjects},
        data={BENCHMARK: store.manifest_sha256},
        step=0,
        wall_time_s=time.monotonic() - began,
    )
    report(results, baseline, path=path, provenance=provenance)
    print(f"{BENCHMARK} of {len(subjects)} models on {len(scored)} clips, {time.monotonic() - began:.0f} s: {path}")


def _on(subject: Subject, device: str) -> Subject:
    assert subject.predictor is not None
    subject.predictor.to(device)
    return subject
