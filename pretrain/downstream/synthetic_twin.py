"""Twins of the benchmarks made from a clip store, with the clips that an encoder has not been trained on.

Official data cannot be shipped; a twin asks the same kind of question of clips whose narration, action and objects are
known, through the same code, so that its figures are real. They say nothing about the official data.

A clip's verb is its action ("pick up"), its noun the kind of its target, the last word of its label ("can" of "yellow can"):
EPIC's and EGTEA's nouns name kinds, not colours.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.clips.store import ClipStore, open_store
from pretrain.downstream.depth import DepthClip, depth_task
from pretrain.downstream.egomcq import OPTIONS, TYPES, Question
from pretrain.downstream.egoschema import VideoQuestion
from pretrain.downstream.egtea import ActionClip, egtea_task
from pretrain.downstream.ek100 import Action
from pretrain.downstream.ek100_cls import cls_task
from pretrain.downstream.ek100_mir import class_relevancy, mir_task
from pretrain.downstream.nlq import Query, nlq_task
from pretrain.downstream.segments import JOIN, Segment, StoreVideos
from pretrain.downstream.subjects import Subject, Training
from pretrain.downstream.task import Task, counted
from pretrain.egodtm.data import split_clips

_SEED = 20254
# Clips of one long video.
NLQ_CLIPS, SCHEMA_CLIPS = 6, 4
# How many long videos each clip is part of.
NLQ_ROUNDS = 4
PIECES_A_CLIP = 2
LEAST_CLIPS = 12


@dataclass(frozen=True, kw_only=True)
class TwinClip:
    """One clip with its words. Empty verb, noun and label: the store does not say."""

    key: str
    duration_s: float
    narration: str
    verb: str
    noun: str
    nouns: frozenset[str]

    @property
    def segment(self) -> Segment:
        return Segment(self.key, 0.0, round(self.duration_s, 6))

    @property
    def combination(self) -> tuple[str, str]:
        """Verb and target with its colour: what must be new for "unseen" combinations."""
        return self.verb, max(self.nouns, key=len, default=self.noun)


@dataclass(frozen=True, kw_only=True)
class TwinClips:
    """The clips that are held out, in the order of the store.

    Attributes:
        protocol, notes: how they were chosen.
        tasks: robot tasks whose frames the spatial probe reads too; `cache`: where it keeps those.
    """

    source: StoreVideos
    clips: tuple[TwinClip, ...]
    protocol: Mapping[str, Any]
    notes: tuple[str, ...]
    tasks: tuple[str, ...] = ()
    cache: Path = Path("runs/probe/features")


# --------------------------------------------------------------------------------------------------------- which clips


def held_out_clips(
    store: ClipStore, subjects: Sequence[Subject], *, limit: int, unseen: bool, allow_train: bool
) -> TwinClips:
    """The clips of a store that no subject was trained on: the validation split of a run that was trained on this store, all
    clips of another store less those of the same key that a run was trained on (if its store is still there to be asked).

    Args:
        limit: at most so many clips, drawn at random; 0 = all.
        unseen: only clips whose combination of verb and object no subject was trained on.
        allow_train: take all clips of the store.

    Raises:
        ValueError: fewer than LEAST_CLIPS are left.
    """
    source = StoreVideos(store)
    keys = store.keys
    allowed = np.ones(len(keys), bool)
    combinations: set[tuple[str, str]] = set()
    notes: list[str] = []
    trainings: dict[Training, str] = {}
    for subject in subjects:
        if subject.training is not None:
            trainings.setdefault(subject.training, subject.name)  # an untrained twin has that of the trained one
    for training, name in trainings.items():
        trained, same, note = _trained_on(store, keys, training)
        if note:
            notes.append(f"{name}: {note}")
        overlap = np.array([key in trained for key in keys])
        if not allow_train:
            allowed &= ~overlap
        elif overlap.any():
            notes.append(f"{name} was trained on {int(overlap.sum())} of the clips (allow_train=true)")
        if unseen:
            if same is None:
                raise ValueError(
                    f"unseen=true: the store that {name} was trained on is not at {training.data} any more"
                )
            combinations |= {_clip(same, index).combination for index, key in enumerate(same.keys) if key in trained}
    if (~allowed).any():
        notes.append(f"{int(allowed.sum())} of {len(keys)} clips: the others were trained on")
    chosen = np.flatnonzero(allowed)
    clips = [_clip(store, int(index)) for index in chosen]
    if unseen:
        clips = [clip for clip in clips if clip.combination not in combinations]
        notes.append(f"{len(clips)} clips show a combination of verb and object that was not trained on")
    if limit and len(clips) > limit:
        kept = np.sort(np.random.default_rng(_SEED).permutation(len(clips))[:limit])
        clips = [clips[index] for index in kept]
        notes.append(f"{limit} of them, drawn at random")
    if len(clips) < LEAST_CLIPS:
        trained_on = ", ".join(trainings.values()) or "nobody"
        raise ValueError(
            f"data={store.path}: {len(clips)} of its {len(keys)} clips are left that were not trained on (by {trained_on}); "
            f"at least {LEAST_CLIPS} are needed. Give another store, e.g. one of another seed, or allow_train=true"
        )
    protocol = {"twin_of": store.manifest_sha256, "allow_train": allow_train, "unseen": unseen}
    return TwinClips(source=source, clips=tuple(clips), protocol=protocol, notes=tuple(notes))


def _trained_on(store: ClipStore, keys: Sequence[str], training: Training) -> tuple[set[str], ClipStore | None, str]:
    """(keys trained on, the store they are of, what the reader should know)."""
    if training.clips_sha256 == store.manifest_sha256:
        return {keys[index] for index in split_clips(len(keys), training.val_fraction)[0]}, store, ""
    try:
        other = open_store(training.data)
    except (OSError, ValueError):
        other = None
    if other is None or other.manifest_sha256 != training.clips_sha256:
        note = "the store it was trained on is not there to compare keys with; its manifest is another one"
        return set(), None, note
    names = other.keys
    return {names[index] for index in split_clips(len(names), training.val_fraction)[0]}, other, ""


def _clip(store: ClipStore, index: int) -> TwinClip:
    clip = store.read(index, ("text", "rgb_times_s"))
    meta, labels = clip.meta, clip.labels
    involved = [labels.get(meta[part], "") for part in ("target", "other") if isinstance(meta.get(part), int)]
    involved = [label for label in involved if label]
    nouns = {label for label in involved} | {_kind(label) for label in involved}
    return TwinClip(
        key=clip.key,
        duration_s=clip.duration_s or 0.0,
        narration=clip.narration.strip(),
        verb=str(meta.get("action", "")),
        noun=_kind(involved[0]) if involved else "",
        nouns=frozenset(nouns),
    )


def _kind(label: str) -> str:
    """The last word of a label."""
    return label.split()[-1]


# --------------------------------------------------------------------------------------------------------------- twins


def egomcq_twin(data: TwinClips) -> Task:
    """Each clip's narration asks twice. "inter": four other clips at random. "intra": four with the same action or the same
    kind of object. The others' narrations always differ from the question's."""
    random = np.random.default_rng(_SEED)
    clips = _narrated(data)
    questions, skipped = [], Counter[str]()
    for kind in TYPES.values():
        for own in clips:
            others = [clip for clip in clips if clip.narration != own.narration]
            if kind == "intra":
                others = [
                    clip
                    for clip in others
                    if (own.verb and clip.verb == own.verb) or (own.noun and clip.noun == own.noun)
                ]
            if len(others) < OPTIONS - 1:
                skipped[f"an {kind} question with fewer than {OPTIONS - 1} fitting clips"] += 1
                continue
            choices = [others[index].segment for index in random.permutation(len(others))[: OPTIONS - 1]]
            answer = int(random.integers(OPTIONS))
            choices.insert(answer, own.segment)
            questions.append(Question(kind=kind, text=own.narration, choices=tuple(choices), answer=answer))
    return Task(items=tuple(questions), notes=counted(skipped), protocol={"options": OPTIONS})


def ek100_mir_twin(data: TwinClips) -> Task:
    """Clips against their different narrations. A thing's noun classes are its kind and its full name, so that another
    colour of the same kind is worth something and the same thing everything."""
    actions = _actions(data)
    first = list({action.text: action for action in reversed(actions)}.values())[::-1]
    return mir_task(actions, [(action.narration_id, action.text) for action in first], class_relevancy(actions, first))


def ek100_cls_twin(data: TwinClips) -> Task:
    """Verb, noun and action; the linear probe is cross-fitted."""
    return cls_task(_actions(data))


def egtea_twin(data: TwinClips) -> Task:
    """Classes "verb noun", two views of half a clip each."""
    actions = _actions(data)
    items = [
        ActionClip(segment=action.segment, label=f"{action.verb} {action.noun}", group=action.group)
        for action in actions
    ]
    half = min(action.segment.end_s for action in actions) / 2
    return egtea_task(items, sorted({item.label for item in items}), clips=2, crops=1, view_s=half)


def nlq_twin(data: TwinClips) -> Task:
    """Long videos of NLQ_CLIPS clips; the question is the narration of one of them. The head is trained on videos of one half
    of the clips and scored on videos of the other; a clip comes in up to NLQ_ROUNDS videos, so it is the group."""
    random = np.random.default_rng(_SEED)
    clips = _narrated(data)
    order = random.permutation(len(clips))
    halves = [[clips[index] for index in order[part::2]] for part in (0, 1)]
    parts: list[list[Query]] = []
    for half in halves:
        queries: list[Query] = []
        for _ in range(NLQ_ROUNDS):
            shuffled = [half[index] for index in random.permutation(len(half))]
            for start in range(0, len(shuffled) - NLQ_CLIPS + 1, NLQ_CLIPS):
                queries += _long_video(shuffled[start : start + NLQ_CLIPS])
        parts.append(queries)
    window_s = min(clip.duration_s for clip in clips) / PIECES_A_CLIP
    return nlq_task(parts[1], parts[0], rate_hz=1 / window_s, window_s=window_s)


def _long_video(clips: Sequence[TwinClip]) -> list[Query]:
    video = Segment(JOIN.join(clip.key for clip in clips), 0.0, round(sum(clip.duration_s for clip in clips), 6))
    said = Counter(clip.narration for clip in clips)
    queries, start_s = [], 0.0
    for clip in clips:
        end_s = start_s + clip.duration_s
        if said[clip.narration] == 1:
            queries.append(Query(video=video, text=clip.narration, start_s=start_s, end_s=end_s, group=clip.key))
        start_s = end_s
    return queries


def egoschema_twin(data: TwinClips) -> Task:
    """A video of SCHEMA_CLIPS clips; the right answer tells two of them, the wrong ones two clips that it does not hold."""
    random = np.random.default_rng(_SEED)
    clips = _narrated(data)
    questions = []
    for own in clips:
        others = [clip for clip in clips if clip.key != own.key]
        shown = [own, *(others[index] for index in random.permutation(len(others))[: SCHEMA_CLIPS - 1])]
        shown = [shown[index] for index in random.permutation(SCHEMA_CLIPS)]
        here = {clip.narration for clip in shown}
        elsewhere = sorted({clip.narration for clip in clips} - here)
        if len(here) < 2 or len(elsewhere) < 2 * (OPTIONS - 1):
            continue
        told = list(dict.fromkeys(clip.narration for clip in shown))
        two = sorted(random.permutation(len(told))[:2].tolist())
        drawn = [elsewhere[index] for index in random.permutation(len(elsewhere))[: 2 * (OPTIONS - 1)]]
        pairs = [(told[two[0]], told[two[1]]), *zip(drawn[::2], drawn[1::2], strict=True)]
        order = random.permutation(OPTIONS).tolist()
        questions.append(
            VideoQuestion(
                name=own.key,
                video=Segment(JOIN.join(clip.key for clip in shown), 0.0, round(sum(c.duration_s for c in shown), 6)),
                question="",
                options=tuple(" and ".join(pairs[index]) for index in order),
                answer=order.index(0),
                pieces=SCHEMA_CLIPS,
            )
        )
    if not questions:
        raise ValueError(
            f"{data.source.store.path}: its held-out clips have too few different narrations for this benchmark"
        )
    return Task(items=tuple(questions), protocol={"pieces": SCHEMA_CLIPS})


def depth_twin(data: TwinClips) -> Task:
    """Every clip with depth."""
    if "depth" not in data.source.store.manifest["modalities"]:
        raise ValueError(
            f"data={data.source.store.path} has no depth to predict: add it with a depth teacher (egoarm annotate)"
        )
    return depth_task([DepthClip(segment=clip.segment, group=clip.key) for clip in data.clips])


def _narrated(data: TwinClips) -> list[TwinClip]:
    clips = [clip for clip in data.clips if clip.narration]
    if len(clips) < LEAST_CLIPS:
        raise ValueError(
            f"data={data.source.store.path}: {len(clips)} of the {len(data.clips)} clips have a narration, at least "
            f"{LEAST_CLIPS} are needed"
        )
    return clips


def _actions(data: TwinClips) -> list[Action]:
    clips = _narrated(data)
    if nameless := [clip.key for clip in clips if not clip.verb or not clip.noun]:
        raise ValueError(
            f"data={data.source.store.path}: clip {nameless[0]} (of {len(nameless)}) has no action or target in its meta; "
            "this twin needs a store that says them, as egoarm clips synth makes it"
        )
    return [
        Action(
            narration_id=clip.key,
            segment=clip.segment,
            text=clip.narration,
            verb=clip.verb,
            noun=clip.noun,
            nouns=clip.nouns,
            group=clip.key,
        )
        for clip in clips
    ]
