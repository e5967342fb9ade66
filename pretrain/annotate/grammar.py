"""Sentences for facts, and captions from them by a small grammar: the writer that needs no weights.

The sentences are those that `claims.py` reads back, so each caption of the grammar passes the checker.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pretrain.annotate.checker import supporting
from pretrain.annotate.claims import Claim
from pretrain.annotate.facts import OPPOSITE, hands_that_touch
from pretrain.annotate.surfaces import narration_objects

_WORDS = {
    "contact": ("the {hand} hand touches the {object}", "the {object} is touched by the {hand} hand"),
    "approaches": ("the {hand} hand approaches the {object}", "the {hand} hand moves towards the {object}"),
    "retreats from": ("the {hand} hand retreats from the {object}", "the {hand} hand moves away from the {object}"),
    "displacement": ("the {object} moves {amount}{where}",),
}
_PASSING = re.compile(r"from one hand to (?:the other|another)(?: hand)?", re.IGNORECASE)
_WHERE = {"away": "away from the wearer", "nearer": "towards the wearer"}
_RELATION = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "beside": ("beside", "next to"),
    "above": ("above",),
    "nearer than": ("nearer to the camera than", "closer to the camera than"),
    "farther than": ("farther from the camera than",),
}
_TIME = {"first": ("", "", "at first "), "last": ("at the end ",)}


def fact_sentence(fact: Mapping[str, Any], *, rng: np.random.Generator | None = None) -> str:
    """One clause for one fact, e.g. "the red can moves about 10 cm up"; without `rng` the plainest wording."""

    def pick(options: Sequence[str]) -> str:
        return options[int(rng.integers(len(options)))] if rng is not None else options[0]

    if fact["type"] == "relation":
        when = _when(fact)
        return f"{pick(_TIME[when])}the {fact['subject']} is {pick(_RELATION[fact['relation']])} the {fact['object']}"
    if fact["type"] == "displacement":
        amount = (
            f"about {100 * fact['amount']:.0f} cm "
            if fact["unit"] == "m" and pick(("yes", "yes", "no")) == "yes"
            else ""
        )
        where = _WHERE.get(fact["direction"], fact["direction"])
        if not amount and where in ("left", "right"):
            where = f"to the {where}"
        return pick(_WORDS["displacement"]).format(object=fact["object"], amount=amount, where=where)
    key = fact["direction"] if fact["type"] == "motion" else "contact"
    return pick(_WORDS[key]).format(hand=fact["hand"], object=fact["object"])


def _when(fact: Mapping[str, Any]) -> str:
    return fact.get("when") or ("first" if fact["frame"] == 0 else "last")


def write_captions(narration: str, facts: Sequence[Mapping[str, Any]], *, seed: int, most: int = 4) -> tuple[str, ...]:
    """Up to `most` different captions, each the narration with one to three facts. Without a narration the facts alone."""
    rng = np.random.default_rng([seed, 7])
    text = " ".join(narration.split()).rstrip(" .")
    handed = _with_hand(text, facts)
    movements = _movements(facts)
    relations = [fact for fact in facts if fact["type"] == "relation"]
    by_time = {when: [fact for fact in relations if _when(fact) == when] for when in _TIME}
    captions: dict[str, None] = {}

    def say(fact: Mapping[str, Any]) -> str:
        return fact_sentence(fact, rng=rng)

    def add(head: str, *clauses: str) -> None:
        body = " and ".join(dict.fromkeys(clause for clause in clauses if clause))
        parts = [part for part in (head, body) if part]
        if body or head != text:
            captions["; ".join(parts)] = None

    touched = set.union(*hands_that_touch(facts).values())
    start = _relation_clause(rng, by_time["first"], "first", touched)
    end = _relation_clause(rng, by_time["last"], "last", touched)
    add(handed, start)
    if movements:
        chosen = sorted(rng.choice(len(movements), size=min(2, len(movements)), replace=False))
        add(text, *(say(movements[index]) for index in chosen))
    if end:
        add(handed, end)
    if start and movements:
        add(
            text,
            _relation_clause(rng, by_time["first"], "first", touched),
            say(movements[int(rng.integers(len(movements)))]),
        )
    if len(captions) < 2 and movements:
        add(handed, say(movements[-1]))
    return tuple(caption for caption in captions if caption)[:most]


def _movements(facts: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """In the order in which things happen: a hand nears, touches, moves the thing, and leaves."""
    order = ["approaches", "contact", "displacement", "retreats from"]
    moved = [fact for fact in facts if fact["type"] != "relation"]
    return sorted(moved, key=lambda fact: order.index(fact["direction"] if fact["type"] == "motion" else fact["type"]))


def _with_hand(text: str, facts: Sequence[Mapping[str, Any]]) -> str:
    """The narration with the hand that acts, where exactly one hand touches its first thing that is touched, and it names none itself."""
    nouns = narration_objects(text)
    if passing := _PASSING.search(text):
        for giver, taker in (("left", "right"), ("right", "left")):
            claim = Claim(type="handover", hands=(giver, taker), subjects=nouns)
            if supporting(claim, facts, frames=1):
                return text.replace(passing[0], f"from the {giver} hand to the {taker} hand")
    if not text or not nouns or re.search(r"\bhands?\b", text, re.IGNORECASE):
        return text
    touched = hands_that_touch(facts)
    thing = next((noun for noun in nouns if any(noun in names for names in touched.values())), None)
    acting = [side for side, names in touched.items() if thing in names]
    return f"{text} with the {acting[0]} hand" if len(acting) == 1 else text


def _relation_clause(rng: np.random.Generator, relations: list[Mapping[str, Any]], when: str, touched: set[str]) -> str:
    """What the relations say of one pair, e.g. "the can is left of and nearer to the camera than the book"; "" = nothing.

    Pairs with a thing that a hand touches come first, and pairs of things before pairs with a hand.
    """

    def rank(fact: Mapping[str, Any]) -> tuple[bool, bool]:
        return not {fact["subject"], fact["object"]} & touched, min(fact["subject_id"], fact["object_id"]) <= 2

    best = min(map(rank, relations), default=None)
    pairs = sorted({(fact["subject"], fact["object"]) for fact in relations if rank(fact) == best})
    if not pairs:
        return ""
    subject, other = pairs[int(rng.integers(len(pairs)))]
    said = {fact["relation"] for fact in relations if (fact["subject"], fact["object"]) == (subject, other)}
    if other in touched and subject not in touched and said <= set(OPPOSITE):
        subject, other, said = other, subject, {OPPOSITE[relation] for relation in said}
    words = [options[int(rng.integers(len(options)))] for relation, options in _RELATION.items() if relation in said]
    time = _TIME[when][int(rng.integers(len(_TIME[when])))]
    return f"{time}the {subject} is {' and '.join(words)} the {other}"
