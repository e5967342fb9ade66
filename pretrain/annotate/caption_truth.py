"""Whether what a caption states is so, by the truth of a synthetic clip.

Contacts, handovers, displacements and who acts are judged by the simulator's own facts, contacts and meta. It has relations
only between the clip's target and other things, at the first and last frame: where it has one of the opposite kind, the claim
is false. Relations of other pairs, of hands and at other frames, and motions relative to things that are not the target, are
judged by the same definitions as facts.py's with the true masks, depth and camera, at the frames of the facts behind the claim,
by margins half as wide (`Margins.loosened`): what is less plain than a caption should say, but so, is not counted as wrong.

A stated amount is right within 3 cm or 30 % of the simulator's displacement, whichever is larger.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from pretrain.annotate.checker import supporting
from pretrain.annotate.claims import Claim
from pretrain.annotate.facts import OPPOSITE, PLAIN, relations_at, spatial_facts
from pretrain.annotate.measures import truth_scene
from pretrain.annotate.surfaces import Surfaces
from pretrain.clips.schema import Clip

AMOUNT_M, AMOUNT_SHARE = 0.03, 0.30
LOOSE = PLAIN.loosened()
_SHARED_TYPES = ("contact", "motion", "displacement", "relation")


class CaptionTruth:
    """Judges the claims of one clip. `truth_ids`: track id -> id in the truth (0 = none)."""

    def __init__(self, truth: Clip, truth_ids: Mapping[int, int]) -> None:
        assert truth.rgb is not None
        self.truth, self.frames, self.truth_ids = truth, len(truth.rgb), truth_ids

    @cached_property
    def surfaces(self) -> Surfaces:
        return Surfaces(truth_scene(self.truth), seen_pixels=LOOSE.seen_pixels)

    @cached_property
    def measured(self) -> tuple[dict[str, Any], ...]:
        """Facts by the true masks, with loose margins."""
        return spatial_facts(truth_scene(self.truth), LOOSE)

    @cached_property
    def target(self) -> int:
        return int(self.truth.meta.get("target", 0))

    def holds(self, claim: Claim, support: Sequence[Mapping[str, Any]], facts: Sequence[Mapping[str, Any]]) -> bool:
        """Whether a claim is so.

        Args:
            support: the computed facts that support it.
            facts: all computed facts, which say what its names mean.
        """
        renamed = self._renamed(claim, facts)
        if renamed is None:
            return False
        if claim.type == "relation":
            return self._relation_holds(support)
        if claim.type == "displacement":
            return self._displacement_holds(renamed)
        if claim.type == "motion":
            target = self.truth.labels.get(self.target)
            given = self.truth.facts if renamed.subjects[0] == target else self.measured
            return bool(supporting(renamed, given, frames=self.frames))
        if not supporting(renamed, self.truth.facts, frames=self.frames):
            return False
        if claim.type == "acting hand" and self.truth.meta.get("action") != "hand over" and "side" in self.truth.meta:
            return claim.hands == (self.truth.meta["side"],)
        return True

    def _renamed(self, claim: Claim, facts: Sequence[Mapping[str, Any]]) -> Claim | None:
        """The claim with the truth's names; None if it is about something that the truth does not have."""
        names = {}
        for fact in facts:
            for key in ("subject", "object"):
                if key in fact:
                    names[fact[key]] = self.truth.labels.get(self.truth_ids.get(fact[f"{key}_id"], 0))
        subjects = tuple(name for name in (names.get(one) for one in claim.subjects) if name)
        other = names.get(claim.other) or "" if claim.other else ""
        if not subjects or bool(other) != bool(claim.other):
            return None
        return replace(claim, subjects=subjects, other=other)

    def _displacement_holds(self, claim: Claim) -> bool:
        for fact in self.truth.facts:
            if fact["type"] == "displacement" and (fact["object"], fact["direction"]) == (
                claim.subjects[0],
                claim.said,
            ):
                slack = max(AMOUNT_M, AMOUNT_SHARE * fact["amount"])
                return claim.amount is None or abs(claim.amount - fact["amount"]) <= slack
        return False

    def _relation_holds(self, support: Sequence[Mapping[str, Any]]) -> bool:
        things = {thing.id: thing for thing in self.surfaces.things}
        for fact in support:
            pair = [things.get(self.truth_ids.get(fact[key], 0)) for key in ("subject_id", "object_id")]
            frame, relation = fact["frame"], fact["relation"]
            one, other = pair
            if one is None or other is None or not all(thing.seen(frame, LOOSE.seen_pixels) for thing in (one, other)):
                continue
            if self._simulator_denies(one.id, other.id, frame, relation):
                continue
            if any(found == relation for found, _, _ in relations_at(self.surfaces, one, other, frame, LOOSE)):
                return True
            if self._simulator_says(one.id, other.id, frame, relation):
                return True
        return False

    def _simulator_says(self, one: int, other: int, frame: int, relation: str) -> bool:
        return any(
            fact["type"] == "relation"
            and fact["frame"] == frame
            and (
                (fact["subject_id"], fact["object_id"], fact["relation"]) == (one, other, relation)
                or (fact["object_id"], fact["subject_id"], OPPOSITE.get(fact["relation"])) == (one, other, relation)
            )
            for fact in self.truth.facts
        )

    def _simulator_denies(self, one: int, other: int, frame: int, relation: str) -> bool:
        if relation not in OPPOSITE or relation == "beside":
            return False
        return self._simulator_says(one, other, frame, OPPOSITE[relation])


def recalled(
    truth: Clip, facts: Sequence[Mapping[str, Any]], truth_ids: Mapping[int, int]
) -> dict[str, tuple[float, int]]:
    """For each type the number of the simulator's facts that were found, and of all. Relations count only between things
    that were tracked; displacements only those that facts.py knows (no doors, lids and knobs)."""
    counts = {kind: [0.0, 0] for kind in _SHARED_TYPES}
    tracked = set(truth_ids.values())
    known = ("hand", "direction", "relation")
    for fact in truth.facts:
        kind = fact["type"]
        if kind == "relation" and not {fact["subject_id"], fact["object_id"]} <= tracked:
            continue
        if kind == "displacement" and fact["direction"] not in ("up", "down", "left", "right", "away", "nearer"):
            continue
        counts[kind][1] += 1
        counts[kind][0] += any(
            found["type"] == kind
            and all(found.get(key) == fact.get(key) for key in known if kind != "relation")
            and _same_things(found, fact, truth_ids)
            for found in facts
        )
    return {f"{kind} facts found": (float(hits), int(total)) for kind, (hits, total) in counts.items()}


def _same_things(found: Mapping[str, Any], fact: Mapping[str, Any], truth_ids: Mapping[int, int]) -> bool:
    if fact["type"] != "relation":
        return truth_ids.get(found["object_id"]) == fact["object_id"]
    if abs(found["frame"] - fact["frame"]) > 1:
        return False
    one, other = truth_ids.get(found["subject_id"]), truth_ids.get(found["object_id"])
    pair = (fact["subject_id"], fact["object_id"])
    if (one, other) == pair:
        return found["relation"] == fact["relation"]
    return (other, one) == pair and OPPOSITE.get(found["relation"]) == fact["relation"]


def share(values: Sequence[bool]) -> tuple[float, int]:
    return float(np.sum(values)), len(values)
