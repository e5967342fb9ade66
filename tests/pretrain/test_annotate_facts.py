"""Spatial facts from masks, depth and camera of scenes whose geometry is known."""

import json
from dataclasses import replace

import pytest

from pretrain.annotate.facts import spatial_facts
from pretrain.annotate.records import Detection
from pretrain.annotate.surfaces import narration_objects
from tests.pretrain.annotate_scenes import make_scene, reaching, still


def only(facts, kind):
    return [fact for fact in facts if fact["type"] == kind]


def test_reach_gives_contact_and_approach() -> None:
    facts = spatial_facts(make_scene({"left hand": reaching(), "red can": still(0.0)}))
    (contact,) = only(facts, "contact")
    assert (contact["hand"], contact["object"], contact["object_id"]) == ("left", "red can", 3)
    assert 3 <= contact["start_frame"] <= 4
    assert contact["end_frame"] == 8
    (motion,) = only(facts, "motion")
    assert (motion["direction"], motion["start_frame"]) == ("approaches", 0)
    assert motion["distance_m"][0] == pytest.approx(0.17, abs=0.02)
    assert json.loads(json.dumps(facts)) == list(facts)


def test_retreat_is_the_mirror_of_approach() -> None:
    path = reaching()
    facts = spatial_facts(make_scene({"right hand": lambda frame: path(8 - frame), "red can": still(0.0)}))
    (motion,) = only(facts, "motion")
    assert (motion["hand"], motion["direction"], motion["end_frame"]) == ("right", "retreats from", 8)


def test_hand_in_front_of_a_thing_does_not_touch_it() -> None:
    facts = spatial_facts(make_scene({"left hand": reaching(z=0.45, stop=-0.04), "red can": still(0.0, half=0.08)}))
    assert not only(facts, "contact")
    assert not only(facts, "motion")


def test_without_metric_depth_the_masks_and_relative_depth_decide() -> None:
    touching = spatial_facts(make_scene({"left hand": reaching(stop=-0.07), "red can": still(0.0)}, metric=False))
    (motion,) = only(touching, "motion")
    assert only(touching, "contact")
    assert "distance_px" in motion and "distance_m" not in motion
    before = spatial_facts(make_scene({"left hand": reaching(z=0.4, stop=-0.04), "red can": still(0.0)}, metric=False))
    assert not only(before, "contact")
    assert not only(before, "displacement")


@pytest.mark.parametrize(
    ("step", "direction"),
    [((0.1, 0, 0), "right"), ((-0.1, 0, 0), "left"), ((0, -0.1, 0), "up"), ((0, 0.1, 0), "down"), ((0, 0, 0.15), "away"),
     ((0, 0, -0.12), "nearer")],
)  # fmt: skip
@pytest.mark.parametrize("posed", [True, False])
def test_displacement_has_direction_and_amount(step, direction, posed) -> None:
    def carried(dx):
        return lambda frame: (dx + step[0] * frame / 8, step[1] * frame / 8, 0.6 + step[2] * frame / 8, 0.05)

    def hand(frame):
        x, y, z, _ = carried(-0.085)(frame)
        return x, y, z, 0.03

    facts = only(spatial_facts(make_scene({"left hand": hand, "red can": carried(0.0)}, posed=posed)), "displacement")
    amount = max(map(abs, step))
    if not posed and amount < 0.1 + 0.01:
        assert len(facts) <= 1  # near the wider margin of a camera that is only seen to stand still
        return
    (fact,) = facts
    assert (fact["direction"], fact["object"], fact["unit"]) == (direction, "red can", "m")
    assert fact["amount"] == pytest.approx(amount, abs=0.015)


def test_without_poses_a_moving_camera_gives_no_displacement() -> None:
    scene = make_scene({"left hand": lambda f: (-0.075 + 0.02 * f, 0, 0.6, 0.03), "red can": lambda f: (0.02 * f, 0, 0.6, 0.04)}, posed=False)  # fmt: skip
    assert only(spatial_facts(scene), "displacement")
    rgb = scene.clip.rgb.copy()
    rgb[-1] += 60
    assert not only(spatial_facts(replace(scene, clip=scene.clip.replace(rgb=rgb))), "displacement")


def test_what_no_hand_touches_does_not_move() -> None:
    facts = spatial_facts(
        make_scene({"left hand": still(-0.25), "red can": lambda frame: (0.02 * frame, 0, 0.6, 0.04)})
    )
    assert not only(facts, "displacement")


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (still(0.2), {"left of"}),
        (still(-0.2), {"right of"}),
        (still(0.0, y=-0.1, z=0.8, half=0.05), {"nearer than"}),
        (still(0.085), {"beside"}),
        (still(0.0, y=0.1), {"above"}),
    ],
)
def test_relations_of_two_things(other, expected) -> None:
    facts = only(spatial_facts(make_scene({"red can": still(0.0), "blue box": other})), "relation")
    assert {fact["relation"] for fact in facts} == expected
    assert {(fact["subject"], fact["object"]) for fact in facts} == {("red can", "blue box")}
    assert {(fact["frame"], fact["when"]) for fact in facts} == {(0, "first"), (8, "last")}


def test_relations_are_of_the_frames_in_which_both_are_seen() -> None:
    late = lambda frame: (0.2, 0, 0.6, 0.04) if frame >= 2 else None  # noqa: E731
    facts = only(spatial_facts(make_scene({"red can": still(0.0), "blue box": late})), "relation")
    assert {fact["frame"] for fact in facts} == {2, 8}
    middle = lambda frame: (0.2, 0, 0.6, 0.04) if 3 <= frame <= 5 else None  # noqa: E731
    assert not only(spatial_facts(make_scene({"red can": still(0.0), "blue box": middle})), "relation")


def test_detected_state_none_ends_a_contact() -> None:
    hand = Detection(kind="hand", box_xyxy=(0, 0, 9, 9), score=1.0, side="left", contact="none")
    scene = make_scene({"left hand": reaching(), "red can": still(0.0)}, detections={7: (hand,), 8: (hand,)})
    (contact,) = only(spatial_facts(scene), "contact")
    assert contact["end_frame"] == 6


def test_the_only_touched_thing_without_a_name_is_the_narrations() -> None:
    scene = make_scene(
        {"left hand": reaching(), "object": still(0.0)}, narration="#C C picks up the red can from the shelf"
    )
    assert only(spatial_facts(scene), "contact")[0]["object"] == "red can"
    nameless = make_scene({"left hand": reaching(), "object": still(0.0)}, narration="")
    assert only(spatial_facts(nameless), "contact")[0]["object"] == "object"


@pytest.mark.parametrize(
    ("narration", "nouns"),
    [
        ("#C C picks up the red can", ("red can",)),
        ("#C C pours from the grey mug into the red bowl", ("grey mug", "red bowl")),
        ("#C C passes the tube from one hand to the other", ("tube",)),
        ("#C C wipes her left hand with a cloth", ("cloth",)),
        ("#O man X takes the cup", ("cup",)),
        ("", ()),
    ],
)
def test_nouns_of_narrations(narration, nouns) -> None:
    assert narration_objects(narration) == nouns


def test_clips_own_truth_is_not_read() -> None:
    scene = make_scene({"left hand": reaching(), "red can": still(0.0)})
    lied = scene.clip.replace(facts=({"type": "contact", "hand": "right", "object": "moon", "object_id": 9},))
    assert spatial_facts(replace(scene, clip=lied)) == spatial_facts(scene)
