"""The checker lets pass what the facts say, and nothing else."""

import string
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.annotate.checker import REASONS, check_caption
from pretrain.annotate.facts import OPPOSITE
from pretrain.annotate.grammar import fact_sentence, write_captions

FRAMES = 16
NAMES = ("red can", "blue box", "bread", "wooden drawer")
NARRATION = "#C C picks up the red can"
CONTACT = {"type": "contact", "hand": "left", "object": "red can", "object_id": 3, "start_frame": 5, "end_frame": 15}
APPROACH = {"type": "motion", "hand": "left", "object": "red can", "object_id": 3, "direction": "approaches",
            "start_frame": 0, "end_frame": 5, "distance_m": [0.2, 0.01]}  # fmt: skip
UP = {"type": "displacement", "object": "red can", "object_id": 3, "direction": "up", "amount": 0.12, "unit": "m"}
LEFT_OF = {"type": "relation", "frame": 0, "subject": "red can", "subject_id": 3, "relation": "left of",
           "object": "blue box", "object_id": 4, "margin": 30.0, "when": "first"}  # fmt: skip
ABOVE = LEFT_OF | {"frame": 15, "relation": "above", "margin": 0.05, "when": "last"}
FACTS = (CONTACT, APPROACH, UP, LEFT_OF, ABOVE)


def reason(caption: str, facts: tuple[dict[str, Any], ...] = FACTS, narration: str = NARRATION) -> str | None:
    return check_caption(caption, narration, facts, frames=FRAMES).reason


@pytest.mark.parametrize(
    "caption",
    [
        "#C C picks up the red can with the left hand",
        "C picks up the red can using his left hand; the red can moves about 12 cm up.",
        "The left hand approaches and touches the red can, then the red can moves 10 cm upwards",
        "The wearer picks up the red can, which is to the left of the blue box",
        "C picks up the can; at first the can is left of the box; at the end the can is above the box",
        "At the end, the red can is above the blue box; the blue box is right of the red can at first",
        "#C C picks up the red can; at the end the blue box is below the red can",
        "C holds the red can; the red can is lifted by about 12 cm",
        "C picks up the red can with only one hand",
    ],
)
def test_what_the_facts_say_passes(caption: str) -> None:
    verdict = check_caption(caption, NARRATION, FACTS, frames=FRAMES)
    assert (verdict.reason, verdict.detail) == (None, "")
    assert verdict.claims


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("", "empty"),
        ("the red can is left of the blue box " * 20, "too long"),
        ("C picks up the red can", "states no fact"),
        ("C picks up the red can with the right hand", "false acting hand"),
        ("C picks up the red can with both hands", "false acting hand"),
        ("the right hand touches the red can", "false contact"),
        ("both hands touch the red can", "false contact"),
        ("the left hand touches the blue box", "false contact"),
        ("the left hand lets go of the red can", "false contact"),
        ("at first the left hand touches the red can", "false contact"),
        ("the left hand retreats from the red can", "false motion"),
        ("the red can moves 12 cm down", "false displacement"),
        ("the red can moves 40 cm up", "false displacement"),
        ("the blue box moves up", "false displacement"),
        ("the red can is opened", "false displacement"),
        ("the red can is right of the blue box", "false relation"),
        ("the blue box is left of the red can", "false relation"),
        ("at the end the red can is left of the blue box", "false relation"),
        ("the red can is above the blue box", "false relation"),
        ("the left hand touches the red can and the green cup", "unknown object"),
        ("the left hand touches the yellow can", "unknown object"),
        ("C slowly picks up the red can with the left hand", "unknown word"),
        ("C picks up the red can on the blue box; the left hand touches the red can", "unknown word"),
        ("C picks up the blue box; the left hand touches the red can", "not understood"),
        ("the red can is not left of the blue box", "unknown word"),
        ("C picks up two red can; the left hand touches the red can", "not understood"),
        ("it is left of the blue box", "not understood"),
        ("the left hand touches the red can 3 times", "not understood"),
        ("▁the▁ qzx zqj", "unknown word"),
    ],
)
def test_what_the_facts_do_not_say_is_refused(caption: str, expected: str) -> None:
    assert reason(caption) == expected
    assert expected in REASONS


def test_the_narrations_own_claims_are_allowed() -> None:
    narration = "#C C holds the cup with the right hand"
    assert reason("C holds the cup with the right hand; the left hand touches the red can", narration=narration) is None
    assert reason("the right hand touches the cup", narration=narration) in ("false contact", None)
    assert reason("C holds the cup with the left hand", narration=narration) is not None


@pytest.mark.parametrize(
    ("direction", "amount", "unit", "said"),
    [("opened", 1.1, "rad", "is opened"), ("tilted", 1.2, "rad", "is tilted"), ("pressed", 0.02, "m", "is pressed down"),
     ("turned", 0.8803, "rad", "is turned by 50 degrees")],
)  # fmt: skip
def test_the_simulators_other_displacements_are_read(direction: str, amount: float, unit: str, said: str) -> None:
    facts = (UP | {"direction": direction, "amount": amount, "unit": unit},)
    assert reason(f"#C C picks up the red can; the red can {said}", facts) is None
    assert reason(f"#C C picks up the red can; the red can {said}") == "false displacement"
    assert reason("the red can is turned by 80 degrees", facts) == "false displacement"


def test_who_passes_what_to_whom() -> None:
    narration = "#C C passes the red can from one hand to the other"
    right = CONTACT | {"hand": "right", "start_frame": 0, "end_frame": 9}
    facts = (CONTACT, right)
    assert any("from the right hand to the left hand" in text for text in write_captions(narration, facts, seed=0))
    assert reason("C passes the red can from the right hand to the left hand", facts, narration) is None
    assert reason("C passes the red can from the left hand to the right hand", facts, narration) == "false handover"


def test_things_swapped_in_the_narration_are_refused() -> None:
    narration = "#C C puts the red can on the blue box"
    assert reason("C puts the red can on the blue box with the left hand", narration=narration) is None
    swapped = "C puts the blue box on the red can; the left hand touches the red can"
    assert reason(swapped, narration=narration) == "not understood"


@st.composite
def fact_sets(draw) -> tuple[str, tuple[dict[str, Any], ...]]:
    """A narration and facts that do not contradict each other; each thing is touched by one hand at most."""
    things = draw(st.permutations(NAMES))[: draw(st.integers(2, 4))]
    ids = {name: 3 + place for place, name in enumerate(things)}
    facts: list[dict[str, Any]] = []
    for name in things[: draw(st.integers(1, 2))]:
        side = draw(st.sampled_from(("left", "right")))
        about = {"object": name, "object_id": ids[name]}
        facts.append({"type": "contact", "hand": side, **about, "start_frame": 4, "end_frame": 15})
        if draw(st.booleans()):
            facts.append({"type": "motion", "hand": side, **about, "direction": "approaches", "start_frame": 0,
                          "end_frame": 4, "distance_m": [0.2, 0.0]})  # fmt: skip
        for pair in draw(
            st.lists(st.sampled_from((("up", "down"), ("left", "right"), ("away", "nearer"))), unique=True)
        ):
            amount = draw(st.floats(0.05, 0.6))
            facts.append({"type": "displacement", **about, "direction": draw(st.sampled_from(pair)), "amount": amount,
                          "unit": "m"})  # fmt: skip
    relations = draw(st.lists(st.sampled_from((("left of", "right of"), ("nearer than", "farther than"))), unique=True))
    for frame, when in ((0, "first"), (15, "last")):
        for options in relations:
            facts.append({"type": "relation", "frame": frame, "subject": things[0], "subject_id": ids[things[0]],
                          "relation": draw(st.sampled_from(options)), "object": things[1], "object_id": ids[things[1]],
                          "margin": 0.2, "when": when})  # fmt: skip
    return f"#C C picks up the {things[0]}", tuple(facts)


@settings(max_examples=60, deadline=None)
@given(fact_sets(), st.integers(0, 10_000))
def test_captions_of_the_grammar_always_pass(known, seed: int) -> None:
    narration, facts = known
    captions = write_captions(narration, facts, seed=seed)
    assert captions
    for caption in captions:
        assert check_caption(caption, narration, facts, frames=FRAMES).reason is None, caption


@settings(max_examples=60, deadline=None)
@given(fact_sets(), st.integers(0, 10_000))
def test_a_sentence_with_one_thing_swapped_is_always_refused(known, seed: int) -> None:
    narration, facts = known
    rng = np.random.default_rng(seed)
    fact = facts[int(rng.integers(len(facts)))]
    for wrong in swaps(fact):
        sentence = fact_sentence(wrong, rng=rng)
        caption = f"{narration}; {sentence}"
        assert check_caption(caption, narration, facts, frames=FRAMES).reason is not None, (caption, fact)
    told = fact_sentence(fact, rng=rng)
    assert check_caption(f"{narration}; {told}", narration, facts, frames=FRAMES).reason is None, told


def swaps(fact: dict[str, Any]) -> list[dict[str, Any]]:
    """The fact with another side, direction, relation, time order, amount or thing."""
    wrong = [fact | {"object": "green cup"}]
    if "hand" in fact:
        wrong.append(fact | {"hand": {"left": "right", "right": "left"}[fact["hand"]]})
    if fact["type"] == "motion":
        wrong.append(fact | {"direction": "retreats from"})
    if fact["type"] == "displacement":
        opposite = {"up": "down", "left": "right", "away": "nearer"}
        opposite |= {value: key for key, value in opposite.items()}
        wrong.append(fact | {"direction": opposite[fact["direction"]]})
        # Without its amount the sentence would be true.
        wrong += [fact | {"amount": fact["amount"] + 0.2, "direction": opposite[fact["direction"]]}]
    if fact["type"] == "relation":
        wrong.append(fact | {"relation": OPPOSITE[fact["relation"]]})
        wrong.append(fact | {"subject": fact["object"], "object": fact["subject"]})
        wrong.append(fact | {"subject": "green cup"})
    return wrong


@pytest.mark.parametrize("off_cm", [-9, -4, 4, 9, 30])
@pytest.mark.parametrize("amount", [0.12, 0.2, 0.41])
def test_a_wrong_amount_is_refused(off_cm: int, amount: float) -> None:
    facts = (UP | {"amount": amount},)
    assert reason(f"the red can moves {100 * amount:.0f} cm up", facts) is None
    assert reason(f"the red can moves {100 * amount + off_cm:.0f} cm up", facts) == "false displacement"


@settings(max_examples=80, deadline=None)
@given(st.text(alphabet=string.printable + "é▁\u0000🙂@<>#", max_size=80))
def test_no_text_breaks_the_checker_or_passes_by_chance(text: str) -> None:
    verdict = check_caption(text, NARRATION, FACTS, frames=FRAMES)
    assert verdict.reason in REASONS
    assert check_caption(text, text, FACTS, frames=FRAMES).reason in (*REASONS, None)
