"""Turns down captions that state a fact which is not among the facts.

A caption is read by a closed vocabulary (`claims.py`) and passes only if it is understood whole and each of its claims
is supported by a fact or said by the narration itself. Why a caption fails is one of `REASONS`, which are counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pretrain.annotate.claims import Claim, Unreadable, Vocabulary, read_claims
from pretrain.annotate.facts import OPPOSITE, when_of

LONGEST_CAPTION = 400
# A caption rounds lengths, so that "about 10 cm" is what 8 cm may be called.
AMOUNT_SLACK = {"m": 0.0251, "rad": 0.03}

REASONS = (
    "empty", "too long", "states no fact", "unknown word", "unknown object", "not understood",
    "false contact", "false motion", "false displacement", "false relation", "false acting hand", "false handover",
    "false one hand",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Attributes:
    reason: None = accepted, else one of REASONS; detail: what it was, for people.
    claims: what the caption states, where it was understood.
    support: for each claim the facts that support it; empty where the narration says it.
    """

    caption: str
    reason: str | None
    detail: str = ""
    claims: tuple[Claim, ...] = ()
    support: tuple[tuple[Mapping[str, Any], ...], ...] = ()


def check_caption(caption: str, narration: str, facts: Sequence[Mapping[str, Any]], *, frames: int) -> Verdict:
    """Whether a caption says only what is known.

    Args:
        facts: as :func:`pretrain.annotate.facts.spatial_facts` gives them.
        frames: of the clip: a contact that lasts until frame `frames` - 1 lasts "until the end".
    """
    if not caption.strip():
        return Verdict(caption=caption, reason="empty")
    if len(caption) > LONGEST_CAPTION:
        return Verdict(caption=caption, reason="too long", detail=f"{len(caption)} characters")
    vocabulary = Vocabulary(narration, facts)
    try:
        claims = read_claims(caption, vocabulary)
    except Unreadable as error:
        kind, detail = error.args
        return Verdict(caption=caption, reason=kind, detail=detail)
    try:
        given = set(read_claims(narration, vocabulary, skip_narration=False)) if narration else set()
    except Unreadable:
        given = set()
    support: list[tuple[Mapping[str, Any], ...]] = []
    for claim in claims:
        found = supporting(claim, facts, frames=frames)
        if not found and claim not in given:
            return Verdict(caption=caption, reason=f"false {claim.type}", detail=describe(claim), claims=claims)
        support.append(found)
    if not claims:
        return Verdict(caption=caption, reason="states no fact")
    return Verdict(caption=caption, reason=None, claims=claims, support=tuple(support))


def supporting(claim: Claim, facts: Sequence[Mapping[str, Any]], *, frames: int) -> tuple[Mapping[str, Any], ...]:
    """The facts by which a claim is so; none = it is not known to be."""
    return tuple(_SUPPORT[claim.type](claim, facts, frames))


def describe(claim: Claim) -> str:
    """A claim in words, for logs and tables."""
    amount = ""
    if claim.amount is not None:
        turned = claim.said == "turned"
        amount = f" {math.degrees(claim.amount):.0f} degrees" if turned else f" {100 * claim.amount:g} cm"
    words = (
        claim.type,
        "/".join(claim.hands),
        " or ".join(claim.subjects),
        claim.said + amount,
        claim.other,
        claim.when,
    )
    return " ".join(word for word in words if word)


def _contacts(claim: Claim, facts: Sequence[Mapping[str, Any]], hands: tuple[str, ...]) -> list[Mapping[str, Any]]:
    return [
        fact
        for fact in facts
        if fact["type"] == "contact" and fact["object"] in claim.subjects and (not hands or fact["hand"] in hands)
    ]


def _contact(claim: Claim, facts: Sequence[Mapping[str, Any]], frames: int) -> list[Mapping[str, Any]]:
    found = _contacts(claim, facts, claim.hands)
    if claim.said == "ends":
        return [] if claim.when == "first" else [fact for fact in found if fact["end_frame"] < frames - 1]
    if claim.when == "first":
        return [fact for fact in found if fact["start_frame"] == 0]
    if claim.when == "last":
        return [fact for fact in found if fact["end_frame"] == frames - 1]
    return found


def _motion(claim: Claim, facts: Sequence[Mapping[str, Any]], frames: int) -> list[Mapping[str, Any]]:
    found = [
        fact
        for fact in facts
        if fact["type"] == "motion"
        and (fact["hand"], fact["object"], fact["direction"]) == (claim.hands[0], claim.subjects[0], claim.said)
    ]
    return [fact for fact in found if _at(claim.when, fact, frames)]


def _at(when: str, fact: Mapping[str, Any], frames: int) -> bool:
    return {"": True, "first": fact["start_frame"] == 0, "last": fact["end_frame"] == frames - 1}[when]


def _displacement(claim: Claim, facts: Sequence[Mapping[str, Any]], frames: int) -> list[Mapping[str, Any]]:
    return [
        fact
        for fact in facts
        if fact["type"] == "displacement"
        and (fact["object"], fact["direction"]) == (claim.subjects[0], claim.said)
        and claim.when != "first"
        and (claim.amount is None or abs(claim.amount - fact["amount"]) <= AMOUNT_SLACK[fact["unit"]])
    ]


def _relation(claim: Claim, facts: Sequence[Mapping[str, Any]], frames: int) -> list[Mapping[str, Any]]:
    pair = (claim.subjects[0], claim.other)
    wanted = {(*pair, claim.said)}
    if claim.said == "below":
        wanted = {(*pair[::-1], "above")}
    elif claim.said in OPPOSITE:
        wanted.add((*pair[::-1], OPPOSITE[claim.said]))
    about = [fact for fact in facts if fact["type"] == "relation" and {fact["subject"], fact["object"]} == set(pair)]
    found = [fact for fact in about if (fact["subject"], fact["object"], fact["relation"]) in wanted]
    return [fact for fact in found if fact.get("when", when_of(fact["frame"], frames)) == (claim.when or "first")]


def _acting(claim: Claim, facts: Sequence[Mapping[str, Any]], frames: int) -> list[Mapping[str, Any]]:
    return _contacts(claim, facts, claim.hands)


def _handover(claim: Claim, facts: Sequence[Mapping[str, Any]], frames: int) -> list[Mapping[str, Any]]:
    giving, taking = (_contacts(claim, facts, (side,)) for side in claim.hands)
    for gave in giving:
        for took in taking:
            same = gave["object_id"] == took["object_id"]
            if same and gave["start_frame"] < took["start_frame"] and gave["end_frame"] < took["end_frame"]:
                return [gave, took]
    return []


def _one_hand(claim: Claim, facts: Sequence[Mapping[str, Any]], frames: int) -> list[Mapping[str, Any]]:
    found = _contacts(claim, facts, ())
    return found if len({fact["hand"] for fact in found}) == 1 else []


_SUPPORT = {
    "contact": _contact,
    "motion": _motion,
    "displacement": _displacement,
    "relation": _relation,
    "acting hand": _acting,
    "handover": _handover,
    "one hand": _one_hand,
}
