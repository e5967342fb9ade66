"""The synthetic clips: what is drawn, said and stored must agree with each other and with the simulation."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import numpy as np
import pytest

from pretrain.clips.schema import ARRAY_FIELDS, Clip, check_content
from pretrain.clips.sources.synthetic import ACTIONS, SyntheticConfig, generate_clip

pytest.importorskip("mujoco")

SIZE = 96
BEGIN_HELD = {"hand over", "pour", "stack", "put down"}  # the thing is in the hand from the start


def clip_of(action: str, seed: int = 1) -> Clip:
    return generate_clip(0, seed, SyntheticConfig(actions=(action,), image_size=SIZE))


@pytest.fixture(scope="module")
def clips() -> dict[str, Clip]:
    return {action: clip_of(action) for action in ACTIONS}


def camera_at_frame(clip: Clip, frame: int) -> np.ndarray:
    """The camera pose at a frame whose time is also a time of the camera track."""
    place = clip.rgb_times_s[frame] * clip.camera_hz
    assert abs(place - round(place)) < 1e-9
    return clip.world_from_camera[round(place)]


def shared_frames(clip: Clip) -> list[int]:
    places = clip.rgb_times_s * clip.camera_hz
    return [frame for frame, place in enumerate(places) if abs(place - round(place)) < 1e-9]


def points_of(clip: Clip, frame: int, id_: int) -> np.ndarray:
    """float64[N,3]: the pixels of an id, lifted to the world by depth, intrinsics and camera pose."""
    rows, columns = np.nonzero(clip.segmentation[frame] == id_)
    z = clip.depth[frame][rows, columns].astype(np.float64)
    pixels = np.stack([columns + 0.5, rows + 0.5, np.ones(len(rows))])
    local = np.linalg.inv(clip.intrinsics) @ pixels * z
    pose = camera_at_frame(clip, frame)
    return (pose[:3, :3] @ local).T + pose[:3, 3]


# ------------------------------------------------------------------------------------------------- the stream of clips


def test_equal_arguments_give_equal_clips_in_any_order() -> None:
    config = SyntheticConfig(image_size=48)
    first = {index: generate_clip(index, 5, config) for index in (0, 1)}
    again = {index: generate_clip(index, 5, config) for index in (1, 0)}
    for index, clip in first.items():
        for name in ARRAY_FIELDS:
            np.testing.assert_array_equal(getattr(clip, name), getattr(again[index], name), err_msg=name)
        for name in ("key", "labels", "narration", "captions", "facts", "meta"):
            assert getattr(clip, name) == getattr(again[index], name)
    assert not np.array_equal(first[0].rgb, generate_clip(0, 6, config).rgb)


def test_another_process_makes_the_same_clip() -> None:
    """In a process with another hash seed, which changes the order of sets of strings."""
    code = (
        "import hashlib; from pretrain.clips.sources.synthetic import SyntheticConfig, generate_clip;"
        "clip = generate_clip(4, 7, SyntheticConfig(image_size=32));"
        "print(hashlib.sha256(clip.rgb.tobytes() + clip.depth.tobytes() + clip.gaze.tobytes()"
        " + clip.world_from_camera.tobytes() + repr((clip.captions, clip.facts)).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


@pytest.mark.parametrize(("frames", "rgb_fps"), [(12, 8.0), (20, 4.0), (45, 30.0)])
def test_other_lengths_and_rates(frames: int, rgb_fps: float) -> None:
    config = SyntheticConfig(image_size=32, frames=frames, rgb_fps=rgb_fps, pose_fps=20.0)
    clip = generate_clip(0, 2, config)
    check_content(clip)
    assert len(clip.rgb) == frames and len(clip.gaze) == len(clip.world_from_camera) == round(frames / rgb_fps * 20)
    assert clip.duration_s == pytest.approx(frames / rgb_fps)


def test_each_block_of_clips_has_each_action_once() -> None:
    from pretrain.clips.sources.synthetic.generate import action_of

    config = SyntheticConfig()
    for block in range(3):
        drawn = [action_of(block * len(ACTIONS) + i, 4, config) for i in range(len(ACTIONS))]
        assert sorted(drawn) == sorted(ACTIONS)


def test_importing_the_source_does_not_import_mujoco() -> None:
    code = "import sys; import pretrain.clips.sources.synthetic; sys.exit('mujoco' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"actions": ("reach", "pul open")}, "did you mean 'pull open'"),
        ({"scenes": ("garden",)}, "table, counter"),
        ({"frames": 4}, "frames"),
        ({"fov_degrees": (90.0, 60.0)}, "fov_degrees"),
        ({"objects": (2, 9)}, "objects"),
        ({"quality": "best"}, "quality"),
    ],
)
def test_bad_settings_are_refused_by_name(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        SyntheticConfig(**changes)


# ------------------------------------------------------------------------------------------------- hands


def test_the_left_hand_is_the_mirror_image_of_the_right() -> None:
    from pretrain.clips.sources.synthetic.catalogue import make_object
    from pretrain.clips.sources.synthetic.grasp import OPEN, POINT
    from pretrain.clips.sources.synthetic.hands import FINGER_JOINTS, palm_rotation
    from pretrain.clips.sources.synthetic.motion import pose
    from pretrain.clips.sources.synthetic.scene import build_world

    rng = np.random.default_rng(0)
    world = build_world(rng, kind="table", things=[make_object("box", rng)], fov_degrees=70)
    for fingers in (OPEN, POINT, rng.uniform(0, 0.5, len(FINGER_JOINTS))):
        world.set_hand(
            "right", pose(palm_rotation([-0.3, 1, 0.2], [-0.4, 0.1, -1]), np.array([0.2, 0.1, 0.3])), fingers
        )
        world.set_hand("left", pose(palm_rotation([0.3, 1, 0.2], [0.4, 0.1, -1]), np.array([-0.2, 0.1, 0.3])), fingers)
        world.update()
        right, left = (world.data.geom_xpos[world.hand_geoms[side]] for side in ("right", "left"))
        np.testing.assert_allclose(left, right * [-1, 1, 1], atol=1e-9)
        # The display meshes too: their reference frames are placed by the compiler, so compare where the bodies are.
        names = ["thdistal", "ffdistal", "lfmiddle"]
        bodies = {side: [world.model.body(f"{side}/{name}").id for name in names] for side in ("left", "right")}
        np.testing.assert_allclose(
            world.data.xpos[bodies["left"]], world.data.xpos[bodies["right"]] * [-1, 1, 1], atol=1e-9
        )


def test_mirrored_meshes_look_outwards() -> None:
    from pretrain.clips.sources.synthetic.hands import _hand_mesh

    for name in ("palm", "F3", "TH1_z"):
        for side in ("right", "left"):
            mesh = _hand_mesh(name, side)
            a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
            assert np.einsum("fi,fi->", a, np.cross(b, c)) > 0, "the signed volume of an outward mesh is positive"


# ------------------------------------------------------------------------------------------------- actions


def _outcome(action: str, episode) -> None:
    """The physical outcome that the action's name promises."""
    world, plan = episode.world, episode.plan
    end = 1.99
    first, last = plan.thing_pose(plan.target, 0.0), plan.thing_pose(plan.target, end)

    def gap(side: str, time: float) -> float:
        plan.apply(world, time)
        world.update()
        return world.distance(world.hand_geoms[side], world.thing_geoms[plan.target], 0.5)

    other_side = "left" if plan.side == "right" else "right"
    if action == "reach":
        assert gap(plan.side, 0.0) > 0.03 and gap(plan.side, end) < 0.003
        np.testing.assert_array_equal(first, last)
    elif action == "pick up":
        assert first[2, 3] == 0.0 and last[2, 3] > 0.05 and gap(plan.side, end) < 0.003
    elif action == "put down":
        assert first[2, 3] > 0.05 and abs(last[2, 3]) < 1e-9 and last[2, 2] > 1 - 1e-9
        assert gap(plan.side, 0.0) < 0.003 and gap(plan.side, end) > 0.01
    elif action == "stack":
        base = plan.thing_pose(plan.other, end)
        assert abs(last[2, 3] - base[2, 3] - world.things[plan.other].base_height) < 1e-6
        assert np.hypot(*(last - base)[:2, 3]) < world.things[plan.other].base_radius
        assert gap(plan.side, end) > 0.01
    elif action == "push":
        moved = last[:3, 3] - first[:3, 3]
        assert np.hypot(*moved[:2]) > 0.06 and moved[2] == 0.0 and gap(plan.side, end) < 0.003
    elif action == "pour":
        assert last[2, 2] < 0.1, "tilted beyond the horizontal"
        stream, vessel = plan.thing_pose(2, end), plan.thing_pose(plan.other, end)
        assert np.hypot(*(stream - vessel)[:2, 3]) < world.things[plan.other].opening_radius
        assert stream[2, 3] > world.things[plan.other].height and plan.thing_pose(2, 0.0)[2, 3] < -1
    elif action == "hand over":
        assert gap(plan.side, 0.0) < 0.003 and gap(other_side, 0.0) > 0.02
        assert gap(plan.side, end) > 0.01 and gap(other_side, end) < 0.003
    elif action in ("pull open", "open door", "open lid"):
        joint = world.things[plan.target].joint
        assert plan.joints[plan.target](0.0) == 0.0 and plan.joints[plan.target](end) > 0.95 * joint.limit
        assert gap(plan.side, end) < 0.003
    elif action == "push shut":
        joint = world.things[plan.target].joint
        assert plan.joints[plan.target](0.0) == joint.limit and plan.joints[plan.target](end) == 0.0
    elif action == "press":
        joint = world.things[plan.target].joint
        values = [plan.joints[plan.target](time) for time in np.linspace(0, 2, 100)]
        deepest = float(np.linspace(0, 2, 100)[int(np.argmax(values))])
        assert max(values) > 0.99 * joint.limit and values[0] == 0.0 and gap(plan.side, deepest) < 0.003
    elif action == "turn":
        joint = world.things[plan.target].joint
        assert abs(plan.joints[plan.target](end)) > 0.95 * joint.limit and gap(plan.side, end) < 0.003
    else:
        raise AssertionError(f"no outcome is known for {action!r}: add one")


@pytest.mark.parametrize("action", ACTIONS)
def test_the_action_comes_about(action: str) -> None:
    from pretrain.clips.sources.synthetic.generate import make_episode

    for index in range(2):
        episode = make_episode(index, 2, SyntheticConfig(actions=(action,)))
        assert episode.action == action
        assert 3 <= len(episode.world.things) <= 8
        _outcome(action, episode)


@pytest.mark.parametrize("action", ACTIONS)
def test_nothing_overlaps_between_the_checked_times(action: str) -> None:
    """Looked at more often than the generator does, nothing is much deeper."""
    from pretrain.clips.sources.synthetic.generate import make_episode

    episode = make_episode(1, 9, SyntheticConfig(actions=(action,)))
    world, plan = episode.world, episode.plan
    for time in np.linspace(0.0, 1.99, 67):
        plan.apply(world, time)
        world.update()
        for side in ("left", "right"):
            solid = world.support + [geom for geoms in world.thing_geoms for geom in geoms]
            assert world.distance(world.hand_geoms[side], solid, 0.0) > -0.010, f"{side} hand at {time:.2f} s"


# ------------------------------------------------------------------------------------------------- what is stored


@pytest.mark.parametrize("action", ACTIONS)
def test_the_clip_is_whole_and_the_action_is_in_view(clips: dict[str, Clip], action: str) -> None:
    clip = clips[action]
    check_content(clip)
    assert clip.rgb.shape == (16, SIZE, SIZE, 3) and clip.world_from_camera.shape == (60, 4, 4) and len(clip.gaze) == 60
    assert clip.meta["action"] == action and clip.meta["seed"] == 1 and clip.meta["index"] == 0
    hand = 1 if clip.meta["side"] == "left" else 2
    for id_ in (hand, clip.meta["target"]):
        seen = (clip.segmentation == id_).sum(axis=(1, 2)) >= 8
        assert seen.mean() > 0.6, f"{clip.labels[id_]} is seen in {seen.sum()} of 16 frames"
    assert clip.depth.min() > 0.15 and clip.depth.max() < 10.0
    assert clip.rgb.std() > 15, "the frames are not flat"


@pytest.mark.parametrize("action", ACTIONS)
def test_depth_masks_and_camera_agree_with_the_scene(clips: dict[str, Clip], action: str) -> None:
    """Every pixel of every thing, lifted to the world, lies on that thing; and the hands' pixels near their palms."""
    from pretrain.clips.sources.synthetic.generate import make_episode

    clip = clips[action]
    episode = make_episode(0, 1, SyntheticConfig(actions=(action,), image_size=SIZE))
    world, plan = episode.world, episode.plan
    checked = 0
    for frame in shared_frames(clip):
        time = clip.rgb_times_s[frame]
        plan.apply(world, time)
        world.update()
        for thing in range(len(world.things)):
            points = points_of(clip, frame, 3 + thing)
            geoms = [g for g, id_ in enumerate(world.segmentation_ids()) if id_ == 3 + thing]
            if len(points) == 0:
                continue
            centres, radii = world.data.geom_xpos[geoms], world.model.geom_rbound[geoms]
            gaps = np.linalg.norm(points[:, None] - centres[None], axis=2) - radii
            assert gaps.min(axis=1).max() < 0.01, world.things[thing].label
            checked += len(points)
        for id_, side in ((1, "left"), (2, "right")):
            points = points_of(clip, frame, id_)
            if len(points):
                away = np.linalg.norm(points - plan.hands[side].palm(time)[:3, 3], axis=1)
                assert away.max() < 0.75
    assert checked > 100


def test_the_middle_of_a_thing_projects_into_its_mask_at_its_depth(clips: dict[str, Clip]) -> None:
    from pretrain.clips.sources.synthetic.generate import make_episode

    full = {"can", "bottle", "milk carton", "cereal box", "box", "ball", "book", "bread", "lemon", "lime"}
    hits = 0
    for action in ("reach", "pick up", "push", "stack", "press"):
        clip = clips[action]
        episode = make_episode(0, 1, SyntheticConfig(actions=(action,), image_size=SIZE))
        for thing, model in enumerate(episode.world.things):
            if model.category not in full:
                continue
            middle = (episode.plan.thing_pose(thing, 0.0) @ [0, 0, model.height / 2, 1])[:3]
            pose = clip.world_from_camera[0]
            local = pose[:3, :3].T @ (middle - pose[:3, 3])
            x, y = (clip.intrinsics @ local)[:2] / local[2]
            if not (0 <= x < SIZE and 0 <= y < SIZE):
                continue
            seen = int(clip.segmentation[0, int(y), int(x)])
            depth = float(clip.depth[0, int(y), int(x)])
            if seen == 3 + thing:
                hits += 1
                assert local[2] - 0.13 < depth < local[2] + 0.005
            else:  # something in front of it
                assert seen != 0 and depth < local[2]
    assert hits >= 6


# ------------------------------------------------------------------------------------------------- gaze, facts, captions


def test_the_eyes_are_on_the_target_before_the_hand_is(clips: dict[str, Clip]) -> None:
    leads = []
    for action in set(ACTIONS) - BEGIN_HELD - {"push shut", "open door"}:
        clip = clips[action]
        hand = 0 if clip.meta["side"] == "left" else 1
        touched = clip.rgb_times_s[np.argmax(clip.contact[:, hand] == clip.meta["target"])]
        on_target = []
        for sample, (x, y) in enumerate(clip.gaze):
            if np.isnan(x):
                continue
            frame = min(round(sample / clip.gaze_hz * 8), 15)
            rows, columns = np.nonzero(clip.segmentation[frame] == clip.meta["target"])
            if len(rows) and np.hypot(rows + 0.5 - y, columns + 0.5 - x).min() < 0.04 * SIZE:
                on_target.append(sample / clip.gaze_hz)
        assert on_target, f"{action}: the eyes never meet the target"
        leads.append(touched - on_target[0])
    assert np.mean(np.array(leads) > 0.2) > 0.8 and 0.3 < np.median(leads) < 1.2


def test_gaze_has_gaps_and_small_noise() -> None:
    config = SyntheticConfig(image_size=32)
    tracks = [generate_clip(index, 3, config).gaze for index in range(4)]
    gaps = np.isnan(np.concatenate(tracks)[:, 0])
    assert 0.0 < gaps.mean() < 0.35
    steps = np.concatenate([np.linalg.norm(np.diff(track, axis=0), axis=1) for track in tracks])
    steps = steps[np.isfinite(steps)] / 32
    assert np.median(steps) < 0.03 and steps.max() > 0.05, "still fixations, and jumps between them"


@pytest.mark.parametrize("action", ACTIONS)
def test_facts_hold_in_the_stored_arrays(clips: dict[str, Clip], action: str) -> None:
    clip = clips[action]
    kinds = {fact["type"] for fact in clip.facts}
    assert "contact" in kinds and "relation" in kinds
    for fact in clip.facts:
        assert clip.labels[fact["object_id"]] == fact["object"]
        if fact["type"] == "contact":
            hand = ("left", "right").index(fact["hand"])
            assert (clip.contact[fact["start_frame"] : fact["end_frame"] + 1, hand] == fact["object_id"]).all()
        elif fact["type"] == "motion":
            start, end = fact["distance_m"]
            assert (end < start) == (fact["direction"] == "approaches")
        elif fact["type"] == "relation":
            frame = fact["frame"]
            masks = [clip.segmentation[frame] == fact[key] for key in ("subject_id", "object_id")]
            assert all(mask.any() for mask in masks)
            if fact["relation"] in ("left of", "right of"):
                columns = [np.nonzero(mask)[1].mean() for mask in masks]
                assert (columns[0] < columns[1]) == (fact["relation"] == "left of")
            elif fact["relation"] in ("nearer than", "farther than"):
                depths = [np.median(clip.depth[frame][mask]) for mask in masks]
                assert (depths[0] < depths[1]) == (fact["relation"] == "nearer than")
            elif frame in shared_frames(clip):
                heights = [np.median(points_of(clip, frame, fact[key])[:, 2]) for key in ("subject_id", "object_id")]
                assert heights[0] > heights[1]


def test_displacements_are_seen_in_depth_and_masks(clips: dict[str, Clip]) -> None:
    clip = clips["pick up"]
    up = [f for f in clip.facts if f["type"] == "displacement" and f["direction"] == "up"]
    assert len(up) == 1 and up[0]["object_id"] == clip.meta["target"]
    heights = [np.median(points_of(clip, frame, clip.meta["target"])[:, 2]) for frame in (0, 12)]
    assert 0.02 < heights[1] - heights[0] < up[0]["amount"] + 0.06


@pytest.mark.parametrize("action", ACTIONS)
def test_captions_say_only_what_the_facts_say(clips: dict[str, Clip], action: str) -> None:
    clip = clips[action]
    target = clip.labels[clip.meta["target"]]
    assert clip.narration.startswith("#C C ") and target in clip.narration
    assert 2 <= len(clip.captions) <= 4 and len(set(clip.captions)) == len(clip.captions)
    relations = {(f["relation"], f["object"]) for f in clip.facts if f["type"] == "relation"}
    for caption in clip.captions:
        assert caption.startswith("#C C ")
        for clause in caption.split("; ")[1:]:
            match = re.fullmatch(rf"(?:at the end )?the {re.escape(target)} is (.*) the (.*)", clause)
            if match is None or match.group(2) not in clip.labels.values():
                continue
            for phrase in match.group(1).split(" and "):
                word = phrase.replace(" to the camera", "").replace(" from the camera", "")
                assert (word, match.group(2)) in relations, clause
        named = re.findall(r"with the (left|right) hand", caption)
        assert all(side == clip.meta["side"] for side in named)
