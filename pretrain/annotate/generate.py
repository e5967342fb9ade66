"""The generate stage: facts of a scene, captions by a writer, and only those that the checker lets pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from pretrain.annotate.checker import check_caption
from pretrain.annotate.facts import spatial_facts
from pretrain.annotate.records import Captions, CaptionWriter, Scene, StageFailed
from pretrain.annotate.writers import CAPTION_WRITERS, WriterConfig, make_writer

__all__ = ["CAPTION_WRITERS", "NoCaption", "WriterConfig", "caption_scene", "make_writer"]

ALL_REJECTED = "all captions rejected"
FELL_BACK = "written by the grammar instead"


class NoCaption(StageFailed):
    """No caption was accepted. `rejected`: how many were turned down, by reason."""

    def __init__(self, reason: str, rejected: Mapping[str, int]) -> None:
        super().__init__(reason)
        self.rejected = dict(rejected)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.args[0], self.rejected)


def caption_scene(scene: Scene, writer: CaptionWriter, *, seed: int) -> Captions:
    """Captions of a clip that say nothing that is not known.

    Args:
        writer: from :func:`pretrain.annotate.writers.make_writer`; its `config`, if it has one, says how many captions to
            keep, how often to ask and who writes where it fails.
        seed: decides the writer's choices; attempt n gets `seed` + n.

    Raises:
        StageFailed: "no hand", "no contact", "no facts", "server failed: ...", or as NoCaption "all captions rejected:
            ..." with the counts. The clip keeps its text.
    """
    if not any(track.kind == "hand" and any(track.masks) for track in scene.tracks):
        raise StageFailed("no hand")
    facts = spatial_facts(scene)
    if not any(fact["type"] == "contact" for fact in facts):
        raise StageFailed("no contact")
    if all(fact["object"] == "object" for fact in facts if fact["type"] != "relation") and not scene.clip.narration:
        raise StageFailed("no facts: nothing that is touched has a name")
    config = getattr(writer, "config", WriterConfig())
    rejected: Counter[str] = Counter()
    trouble: StageFailed | None = None
    accepted: tuple[str, ...] = ()
    try:
        accepted = _accepted(scene, facts, writer, config, seed, rejected)
    except StageFailed as error:
        trouble = error
    if not accepted and config.fallback and writer.name != config.fallback:
        rejected[FELL_BACK] += 1
        accepted = _accepted(scene, facts, make_writer(config.fallback, config), config, seed, rejected)
        trouble = None
    if trouble is not None:
        raise trouble
    if not accepted:
        raise NoCaption(ALL_REJECTED if rejected else "the writer wrote nothing", rejected)
    return Captions(captions=accepted, facts=facts, rejected=dict(sorted(rejected.items())))


def _accepted(
    scene: Scene,
    facts: tuple[dict[str, Any], ...],
    writer: CaptionWriter,
    config: WriterConfig,
    seed: int,
    rejected: Counter[str],
) -> tuple[str, ...]:
    """What the checker lets pass of the first attempt that brings anything; counts the others in `rejected`."""
    narration = scene.clip.narration
    frames = len(scene.tracks[0].masks)
    for attempt in range(config.attempts):
        captions: dict[str, None] = {}
        for caption in writer.write(narration, facts, seed=seed + attempt):
            verdict = check_caption(caption, narration, facts, frames=frames)
            if verdict.reason is None:
                captions[caption] = None
            else:
                rejected[verdict.reason] += 1
        if captions:
            return tuple(captions)[: config.captions]
    return ()
