"""Narrations in Ego4D's form and richer captions, written by a small grammar from a clip's facts."""

from __future__ import annotations

from typing import Any

import numpy as np

from pretrain.clips.sources.synthetic.plan import Plan
from pretrain.clips.sources.synthetic.world import World

# {t} is the target, {o} the second thing.
NARRATIONS: dict[str, str] = {
    "reach": "#C C reaches for the {t}",
    "pick up": "#C C picks up the {t}",
    "put down": "#C C puts down the {t}",
    "push": "#C C pushes the {t}",
    "stack": "#C C puts the {t} on the {o}",
    "pour": "#C C pours from the {t} into the {o}",
    "hand over": "#C C passes the {t} from one hand to the other",
    "pull open": "#C C pulls open the {t}",
    "push shut": "#C C pushes the {t} shut",
    "open door": "#C C opens the door of the {t}",
    "open lid": "#C C opens the lid of the {t}",
    "press": "#C C presses the {t}",
    "turn": "#C C turns the {t}",
}


# The same, done by an arm that the wearer watches.
WATCHED: dict[str, str] = {
    "reach": "reach for the {t}",
    "pick up": "pick up the {t}",
    "put down": "put down the {t}",
    "push": "push the {t}",
    "stack": "put the {t} on the {o}",
    "pull open": "pull open the {t}",
    "push shut": "push the {t} shut",
    "open door": "open the door of the {t}",
    "open lid": "open the lid of the {t}",
    "press": "press the {t}",
    "turn": "turn the {t}",
}


def write_watching_captions(
    rng: np.random.Generator, action: str, world: World, plan: Plan, facts: tuple[dict[str, Any], ...]
) -> tuple[str, tuple[str, ...]]:
    """(narration, one to four different captions) of an arm at work. Every clause of a caption is one fact."""
    target = world.things[plan.target].label
    names = {"t": target, "o": world.things[plan.other].label if plan.other is not None else ""}
    narration = "#C C watches a robot arm " + WATCHED[action].format(**names)
    relations = [fact for fact in facts if fact["type"] == "relation"]
    moved = [_movement_clause(fact) for fact in facts if fact["type"] == "displacement" and fact["object"] == target]
    captions: list[str] = []
    first = _relation_clauses(rng, [fact for fact in relations if fact["frame"] == 0], target)
    last = _relation_clauses(rng, [fact for fact in relations if fact["frame"] != 0], target)
    for clauses in ((first,), tuple(moved[:2]), (f"at the end {last}" if last else "",), (first, *moved[:1])):
        said = [clause for clause in clauses if clause]
        text = "; ".join([narration, *said])
        if (said or not captions) and text not in captions:
            captions.append(text)
    return narration, tuple(captions)


def write_captions(
    rng: np.random.Generator, action: str, world: World, plan: Plan, facts: tuple[dict[str, Any], ...]
) -> tuple[str, tuple[str, ...]]:
    """(narration, two to four different captions). Every clause of a caption is one fact."""
    target = world.things[plan.target].label
    names = {"t": target, "o": world.things[plan.other].label if plan.other is not None else ""}
    narration = NARRATIONS[action].format(**names)
    handed = _with_hand(narration, action, plan)
    relations = [fact for fact in facts if fact["type"] == "relation"]
    first = [fact for fact in relations if fact["frame"] == 0]
    last = [fact for fact in relations if fact["frame"] != 0]
    movement = [fact for fact in facts if fact["type"] != "relation"]
    captions: list[str] = []

    def add(text: str) -> None:
        if text not in captions:
            captions.append(text)

    clauses = _relation_clauses(rng, first, target)
    add(handed + (f"; {clauses}" if clauses else ""))
    # In the order in which things happen: the hand nears, touches, moves the thing, and leaves.
    order = ["approaches", "contact", "displacement", "retreats from"]
    movement.sort(key=lambda fact: order.index(fact["direction"] if fact["type"] == "motion" else fact["type"]))
    moved = [_movement_clause(fact) for fact in movement if fact["object"] == target]
    if moved:
        chosen = sorted(rng.choice(len(moved), size=min(2, len(moved)), replace=False))
        add(f"{narration}; " + " and ".join(dict.fromkeys(moved[i] for i in chosen)))
    ending = _relation_clauses(rng, last, target)
    if ending:
        add(f"{handed}; at the end {ending}")
    again = _relation_clauses(rng, first, target)
    if again and moved:
        add(f"{narration}; {again}; {moved[int(rng.integers(len(moved)))]}")
    if len(captions) < 2 and moved:
        add(f"{handed}; {moved[0]}")
    return narration, tuple(captions[:4])


def _with_hand(narration: str, action: str, plan: Plan) -> str:
    """The narration with the acting hand named."""
    if action == "hand over":
        other = "left" if plan.side == "right" else "right"
        return narration.replace("from one hand to the other", f"from the {plan.side} hand to the {other} hand")
    return f"{narration} with the {plan.side} hand"


def _relation_clauses(rng: np.random.Generator, relations: list[dict[str, Any]], target: str) -> str:
    """What the relations say of the target and one other thing, e.g. "the can is left of and above the book"; may be empty."""
    if not relations:
        return ""
    about = str(rng.choice(sorted({fact["object"] for fact in relations})))
    words = [
        {"nearer than": "nearer to the camera than", "farther than": "farther from the camera than"}.get(
            fact["relation"], fact["relation"]
        )
        for fact in relations
        if fact["object"] == about
    ]
    return f"the {target} is {' and '.join(words)} the {about}"


def _movement_clause(fact: dict[str, Any]) -> str:
    thing = fact["object"]
    if fact["type"] == "contact":
        return f"the {fact['hand']} hand touches the {thing}"
    if fact["type"] == "motion":
        return f"the {fact['hand']} hand {fact['direction']} the {thing}"
    direction = fact["direction"]
    amount = fact["amount"]
    if fact["unit"] == "m" and direction in ("up", "down", "left", "right", "away", "nearer"):
        where = {"away": "away from the wearer", "nearer": "towards the wearer"}.get(direction, direction)
        return f"the {thing} moves {100 * amount:.0f} cm {where}"
    return {
        "tilted": f"the {thing} is tilted",
        "turned": f"the {thing} is turned by {np.rad2deg(amount):.0f} degrees",
        "pressed": f"the {thing} is pressed down",
        "opened": f"the {thing} is opened",
        "closed": f"the {thing} is closed",
    }[direction]
