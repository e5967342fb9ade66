"""The synthetic clips of somebody who watches a robot arm: what is drawn, said and stored agrees with the simulation."""

from __future__ import annotations

import re

import numpy as np
import pytest

from pretrain.clips.schema import ARRAY_FIELDS, Clip, check_content
from pretrain.clips.sources.synthetic import SyntheticConfig, generate_clip
from pretrain.clips.sources.synthetic.config import ROBOT_ACTIONS
from pretrain.clips.synth import source_settings

pytest.importorskip("mujoco")

SIZE = 64
HANDLED = ("pull open", "open door", "open lid", "turn")


def config_of(action: str, **changes) -> SyntheticConfig:
    return SyntheticConfig(**{"actions": (action,), "image_size": SIZE, "robots": 1.0, **changes})


@pytest.fixture(scope="module")
def clips() -> dict[str, Clip]:
    return {action: generate_clip(0, 3, config_of(action)) for action in ROBOT_ACTIONS}


def assert_equal(one: Clip, other: Clip) -> None:
    for name in ARRAY_FIELDS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    for name in ("key", "labels", "narration", "captions", "facts", "meta"):
        assert getattr(one, name) == getattr(other, name)


# ------------------------------------------------------------------------------------------------- the stream of clips


def test_the_table_and_the_settings_name_the_same_actions() -> None:
    from pretrain.clips.sources.synthetic.robot_plan import ROBOT_ACTION_TABLE

    assert tuple(ROBOT_ACTION_TABLE) == ROBOT_ACTIONS


def test_equal_arguments_give_equal_clips_in_any_order() -> None:
    config = SyntheticConfig(image_size=32, robots=1.0)
    first = {index: generate_clip(index, 5, config) for index in (0, 1)}
    for index in (1, 0):
        assert_equal(first[index], generate_clip(index, 5, config))
    assert not np.array_equal(first[0].rgb, generate_clip(0, 6, config).rgb)


def test_the_other_clips_stay_what_they_are() -> None:
    from pretrain.clips.sources.synthetic.robot_clip import watches_robot

    mixed, plain = SyntheticConfig(image_size=32, robots=0.5), SyntheticConfig(image_size=32)
    watched = [watches_robot(index, 1, mixed) for index in range(200)]
    assert 70 < sum(watched) < 130
    index = watched.index(False)
    assert_equal(generate_clip(index, 1, mixed), generate_clip(index, 1, plain))
    assert "robot" in generate_clip(watched.index(True), 1, mixed).meta


def test_a_store_without_robots_says_nothing_of_them() -> None:
    """So that stores made before there were any go on."""
    assert "robots" not in source_settings(SyntheticConfig())
    assert source_settings(SyntheticConfig(robots=0.25))["robots"] == 0.25


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"robots": 1.5}, "a share of 0 to 1"), ({"robots": 0.5, "actions": ("pour", "hand over")}, "does none of pour")],
)
def test_bad_settings_are_refused_by_name(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        SyntheticConfig(**changes)


# ------------------------------------------------------------------------------------------------- the arm


@pytest.mark.parametrize("seed", range(12))
def test_the_links_of_an_arm_meet(seed: int) -> None:
    from pretrain.clips.sources.synthetic.arm import LINKS, arm_link_poses, draw_arm
    from pretrain.clips.sources.synthetic.robot_plan import UP, tool_pose

    rng = np.random.default_rng(seed)
    arm = draw_arm(rng, mount=np.array([0.0, -0.5, 0.0]), floor_z=-0.8, fingers=seed % 2 == 0)
    assert 0.6 < arm.upper_m + arm.fore_m < 0.9 and set(arm.pieces) == set(LINKS)
    tool = tool_pose(np.array([0.1, 0.0, 0.1]), np.array([0.1, 0.2, -1.0]), np.array([1.0, 0.2, 0.0]))
    poses = arm_link_poses(arm, tool, 0.05)
    for link in poses.values():
        np.testing.assert_allclose(link[:3, :3] @ link[:3, :3].T, np.eye(3), atol=1e-9)
        assert np.linalg.det(link[:3, :3]) > 0
    for link, length, after in (("upper", arm.upper_m, "fore"), ("fore", arm.fore_m, "wrist")):
        np.testing.assert_allclose(poses[link] @ [0, 0, length, 1], poses[after][:, 3], atol=1e-9)
    np.testing.assert_allclose(poses["hand"] @ [0, 0, arm.tool_m, 1], tool[:, 3], atol=1e-9)
    assert np.linalg.norm(poses["finger 0"][:3, 3] - poses["finger 1"][:3, 3]) == pytest.approx(0.05)
    nudged = tool.copy()
    nudged[:3, 3] += 1e-4 * UP
    for link, place in arm_link_poses(arm, nudged, 0.05).items():
        assert np.abs(place - poses[link]).max() < 0.01, "a small move of the tool is a small move of the arm"


def test_a_tool_out_of_reach_is_refused() -> None:
    from pretrain.clips.sources.synthetic.arm import arm_link_poses, draw_arm
    from pretrain.clips.sources.synthetic.grasp import Infeasible
    from pretrain.clips.sources.synthetic.robot_plan import tool_pose

    arm = draw_arm(np.random.default_rng(0), mount=np.zeros(3), floor_z=0.0, fingers=True)
    with pytest.raises(Infeasible, match="reach"):
        arm_link_poses(arm, tool_pose(np.array([0.0, 1.5, 0.0]), -np.eye(3)[2], np.eye(3)[0]), 0.0)


# ------------------------------------------------------------------------------------------------- what happens


@pytest.mark.parametrize("action", ROBOT_ACTIONS)
@pytest.mark.parametrize("index", [0, 1])
def test_the_action_comes_about(action: str, index: int) -> None:
    from pretrain.clips.sources.synthetic.robot_clip import make_robot_episode
    from pretrain.clips.sources.synthetic.robot_plan import SIDE

    episode = make_robot_episode(index, 2, config_of(action))
    world, plan = episode.world, episode.plan
    plan.apply(world, plan.arrival + 0.2)
    world.update()
    gap = world.distance(world.tool_geoms, world.thing_geoms[plan.target], 1.0)
    first, last = plan.thing_pose(0, 0.0), plan.thing_pose(0, 2.0)
    if action in ("pick up", *HANDLED):
        assert abs(gap) < 0.004, "the fingers are on it"
    elif action in ("press", "push", "push shut"):
        assert abs(gap) < 0.02
    elif action == "reach":
        assert gap < 0.08
    for _, thing, start, end in plan.grips:
        held = [np.linalg.inv(plan.hands[SIDE].palm(time)) @ plan.thing_pose(thing, time) for time in (start, end)]
        np.testing.assert_allclose(held[0], held[1], atol=1e-6, err_msg="what is held follows the tool")
    if action == "pick up":
        assert last[2, 3] - first[2, 3] > 0.05
    elif action == "put down":
        assert abs(last[2, 3]) < 1e-6 < first[2, 3]
    elif action == "stack":
        assert last[2, 3] == pytest.approx(world.things[plan.other].base_height)
    elif action == "push":
        assert np.linalg.norm(last[:3, 3] - first[:3, 3]) > 0.07 and abs(last[2, 3]) < 1e-6
    elif action != "reach":
        shares = np.array([plan.joints[0](time) for time in np.linspace(0, 2, 40)]) / world.things[0].joint.limit
        assert abs(shares - shares[0]).max() > 0.5 and shares.min() >= -1e-9 and shares.max() <= 1 + 1e-9


@pytest.mark.parametrize("action", ROBOT_ACTIONS)
def test_the_clip_is_whole(clips: dict[str, Clip], action: str) -> None:
    clip = clips[action]
    check_content(clip)
    assert np.isnan(clip.hands).all() and not clip.contact.any(), "nobody's hands are there"
    assert np.isfinite(clip.depth).all() and clip.depth.min() > 0.05 and clip.depth.max() < 12.0
    assert clip.labels[clip.meta["robot"]] == "robot arm" and clip.meta["action"] == action
    for id_ in (clip.meta["robot"], clip.meta["target"]):
        assert (clip.segmentation[0] == id_).any()
    assert clip.rgb.std() > 8 and np.abs(np.diff(clip.rgb.astype(int), axis=0)).max() > 30
    assert np.isfinite(clip.gaze).all(axis=1).mean() > 0.5
    assert 35 <= clip.meta["fov_degrees"] <= 75


@pytest.mark.parametrize("action", ROBOT_ACTIONS)
def test_depth_puts_the_target_where_it_is(clips: dict[str, Clip], action: str) -> None:
    from pretrain.clips.sources.synthetic.robot_clip import make_robot_episode

    clip = clips[action]
    episode = make_robot_episode(0, 3, config_of(action), _attempt_of(clip, action))
    episode.plan.apply(episode.world, 0.0)
    episode.world.update()
    geoms = episode.world.thing_geoms[0]
    rows, columns = np.nonzero(clip.segmentation[0] == clip.meta["target"])
    pixels = np.stack([columns + 0.5, rows + 0.5, np.ones(len(rows))])
    local = np.linalg.inv(clip.intrinsics) @ pixels * clip.depth[0][rows, columns]
    points = (clip.world_from_camera[0][:3, :3] @ local).T + clip.world_from_camera[0][:3, 3]
    centres, radii = episode.world.data.geom_xpos[geoms], episode.world.model.geom_rbound[geoms]
    outside = (np.linalg.norm(points[:, None] - centres, axis=2) - radii).min(axis=1)
    assert outside.max() < 0.03, "every pixel of the target lies in the balls around its shapes"


def _attempt_of(clip: Clip, action: str) -> int:
    """The draw that the clip was made from: the first whose camera is the clip's."""
    from pretrain.clips.sources.synthetic.robot_clip import make_robot_episode

    attempt = 0
    while True:
        episode = make_robot_episode(0, 3, config_of(action), attempt)
        if np.array_equal(episode.rig.world_from_camera(0.0), clip.world_from_camera[0]):
            return attempt
        attempt = episode.attempt + 1


# ------------------------------------------------------------------------------------------------- what is said


@pytest.mark.parametrize("action", ROBOT_ACTIONS)
def test_captions_say_what_the_facts_say(clips: dict[str, Clip], action: str) -> None:
    clip = clips[action]
    target = clip.labels[clip.meta["target"]]
    assert clip.narration.startswith("#C C watches a robot arm ") and target in clip.narration
    assert 1 <= len(clip.captions) <= 4 and len(set(clip.captions)) == len(clip.captions)
    assert all(caption.startswith(clip.narration) for caption in clip.captions)
    assert {fact["type"] for fact in clip.facts} <= {"displacement", "relation"}
    known = " ".join(clip.labels.values())
    for fact in clip.facts:
        assert fact["object"] in known
        if fact["type"] == "relation" and fact["relation"] in ("left of", "right of"):
            columns = [
                np.nonzero(clip.segmentation[fact["frame"]] == fact[id_])[1].mean()
                for id_ in ("subject_id", "object_id")
            ]
            assert (columns[0] < columns[1]) == (fact["relation"] == "left of")


def test_left_and_right_are_the_watchers() -> None:
    """A thing that is pushed to the left moves to the left in the picture, wherever the watcher stands."""
    checked = 0
    for index in range(8):
        clip = generate_clip(index, 4, config_of("push"))
        for fact in clip.facts:
            if fact["type"] == "displacement" and fact["direction"] in ("left", "right") and fact["amount"] > 0.06:
                masks = [np.nonzero(clip.segmentation[frame] == clip.meta["target"])[1] for frame in (0, -1)]
                if min(len(mask) for mask in masks) > 5:
                    # The head follows a little: compare with how far it turned.
                    turned = _column(clip, 0) - _column(clip, -1)
                    moved = masks[1].mean() - masks[0].mean() + turned
                    assert (moved < 0) == (fact["direction"] == "left")
                    checked += 1
    assert checked >= 2


def _column(clip: Clip, frame: int) -> float:
    """The column in which the middle of the work area is seen."""
    pose = clip.world_from_camera[0 if frame == 0 else round(clip.rgb_times_s[-1] * clip.camera_hz)]
    local = pose[:3, :3].T @ (np.array([0.0, 0.1, 0.05]) - pose[:3, 3])
    return float((clip.intrinsics @ local)[0] / local[2])
