"""Makes one synthetic clip from (index, seed, config), and from nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pretrain.clips.schema import HAND_JOINTS, Clip
from pretrain.clips.sources.synthetic.actions import ACTION_TABLE
from pretrain.clips.sources.synthetic.camera import HeadRig, draw_rig, gaze_track, inside, intrinsics, project
from pretrain.clips.sources.synthetic.captions import write_captions
from pretrain.clips.sources.synthetic.catalogue import CATEGORIES
from pretrain.clips.sources.synthetic.config import SyntheticConfig
from pretrain.clips.sources.synthetic.facts import contact_state, spatial_facts
from pretrain.clips.sources.synthetic.grasp import TOUCH_M, Infeasible
from pretrain.clips.sources.synthetic.hands import SIDES
from pretrain.clips.sources.synthetic.plan import Plan, with_distractors
from pretrain.clips.sources.synthetic.robot_clip import generate_robot_clip, watches_robot
from pretrain.clips.sources.synthetic.scene import build_world
from pretrain.clips.sources.synthetic.world import World

MAX_ATTEMPTS = 60
CHECK_S = 1 / 24
EARLY_S = 0.5  # a touch longer than this before the planned one is a collision on the way
DEEPEST_M = 0.004  # how far solid shapes may overlap: less than can be seen


@dataclass
class Episode:
    """A scene with a plan that passed the checks, before it is drawn."""

    action: str
    scene: str
    world: World
    plan: Plan
    rig: HeadRig
    fov_degrees: float
    attempt: int


def action_of(index: int, seed: int, config: SyntheticConfig) -> str:
    """The clip's action: every run of len(config.actions) clips has each action once, in a random order."""
    block, place = divmod(index, len(config.actions))
    order = np.random.default_rng([seed, block, 1]).permutation(len(config.actions))
    return config.actions[order[place]]


def make_episode(index: int, seed: int, config: SyntheticConfig) -> Episode:
    """Draws scenes until one can be acted out.

    Raises:
        RuntimeError: none of MAX_ATTEMPTS draws could.
    """
    action = action_of(index, seed, config)
    reasons: list[str] = []
    for attempt in range(MAX_ATTEMPTS):
        rng = np.random.default_rng([seed, index, 2, attempt])
        try:
            return _draw_episode(action, rng, config, attempt)
        except Infeasible as reason:
            reasons.append(str(reason))
    raise RuntimeError(
        f"synthetic clip {index} of seed {seed} ({action}): no scene in {MAX_ATTEMPTS} draws worked; last: {reasons[-1]}"
    )


def _draw_episode(action: str, rng: np.random.Generator, config: SyntheticConfig, attempt: int) -> Episode:
    row = ACTION_TABLE[action]
    scene = str(rng.choice(config.scenes))
    fov_degrees = float(rng.uniform(*config.fov_degrees))
    cast = row.cast(rng)
    count = int(rng.integers(config.objects[0], config.objects[1] + 1))
    cast.placed = with_distractors(cast, rng, count, tuple(CATEGORIES))
    world = build_world(rng, kind=scene, things=[placed.model for placed in cast.placed], fov_degrees=fov_degrees)
    for number, placed in enumerate(cast.placed):
        world.set_thing(number, placed.pose)
    plan = row.plan(world, cast, rng, config.duration_s)
    plan.look_around_first(rng, world)
    plan.stir_idle_hands(rng, config.duration_s)
    rig = draw_rig(rng, plan, config.duration_s)
    episode = Episode(
        action=action, scene=scene, world=world, plan=plan, rig=rig, fov_degrees=fov_degrees, attempt=attempt
    )
    check_episode(episode, config)
    return episode


def check_episode(episode: Episode, config: SyntheticConfig) -> None:
    """Refuses a plan in which solid shapes overlap visibly, a grip is lost, or the action is out of view."""
    world, plan, rig = episode.world, episode.plan, episode.rig
    matrix = intrinsics(episode.fov_degrees, config.image_size)
    times = np.arange(0.0, config.duration_s, CHECK_S)
    seen_target = seen_hand = 0
    acting = {plan.side} | {side for side, _, _, _ in plan.grips}
    involved = {plan.target, plan.other} | {thing for _, thing, _, _ in plan.grips}
    for time in times:
        plan.apply(world, time)
        world.update()
        gripped = {thing for _, thing in plan.grips_at(time)}
        for side in SIDES:
            hand = world.hand_geoms[side]
            if world.distance(hand, world.support, 0.0) < -DEEPEST_M:
                raise Infeasible(f"the {side} hand enters the table at {time:.2f}")
            for thing, geoms in enumerate(world.thing_geoms):
                # Hands overlap nothing visibly, and touch only what the action is about.
                least = -DEEPEST_M if side in acting and thing in involved else TOUCH_M
                if geoms and world.distance(hand, geoms, least + 1e-4) < least:
                    raise Infeasible(f"the {side} hand runs into the {world.things[thing].label} at {time:.2f}")
        if time < plan.arrival - EARLY_S and not plan.grips_at(time):
            hand, target = world.hand_geoms[plan.side], world.thing_geoms[plan.target]
            if world.distance(hand, target, TOUCH_M + 1e-4) < TOUCH_M:
                raise Infeasible(f"the {plan.side} hand touches the {world.things[plan.target].label} too early")
        if world.distance(world.hand_geoms["left"], world.hand_geoms["right"], 0.0) < -DEEPEST_M:
            raise Infeasible("the hands enter each other")
        for thing in {plan.target} | gripped:
            others = [g for i, geoms in enumerate(world.thing_geoms) if i != thing for g in geoms]
            if world.distance(world.thing_geoms[thing], others + world.support, 0.0) < -DEEPEST_M:
                raise Infeasible(f"the {world.things[thing].label} enters something")
        for side, thing in plan.grips_at(time):
            if world.distance(world.hand_geoms[side], world.thing_geoms[thing], 0.1) > 0.004:
                raise Infeasible("the grip is lost")
        camera = rig.world_from_camera(time)
        middle = plan.thing_pose(plan.target, time) @ [0, 0, world.things[plan.target].height / 2, 1]
        seen_target += inside(project(middle[:3], camera, matrix), config.image_size)
        palm = plan.hands[plan.side].palm(time) @ [0, 0, 0.08, 1]
        seen_hand += inside(project(palm[:3], camera, matrix), config.image_size)
    if seen_target < 0.85 * len(times) or seen_hand < 0.65 * len(times):
        raise Infeasible(f"the action is out of view (target {seen_target}, hand {seen_hand})")


def hand_track(world: World, plan: Plan, times: np.ndarray) -> np.ndarray:
    """float32[K,2,21,3]: the joints of both hands in the world at each time, in the order of HAND_JOINTS.

    Leaves the hands of the world as they are at the last time.
    """
    track = np.empty((len(times), len(SIDES), len(HAND_JOINTS), 3), np.float32)
    for number, time in enumerate(times):
        for side, hand in plan.hands.items():
            world.set_hand(side, hand.palm(time), hand.fingers(time))
        world.update()
        track[number] = world.hand_joints()
    return track


def generate_clip(index: int, seed: int, config: SyntheticConfig) -> Clip:
    """Makes the clip `index` of the stream of `seed`; equal arguments give equal clips in any process and order.

    Raises:
        FileNotFoundError: the packages that hold the meshes are not installed.
        RuntimeError: no GL back-end, or no feasible scene.
    """
    from envs.rendering import Renderer

    if watches_robot(index, seed, config):
        return generate_robot_clip(index, seed, config)
    episode = make_episode(index, seed, config)
    world, plan, rig = episode.world, episode.plan, episode.rig
    matrix = intrinsics(episode.fov_degrees, config.image_size)
    frame_times = np.arange(config.frames) / config.rgb_fps
    pose_times = np.arange(round(config.duration_s * config.pose_fps)) / config.pose_fps
    id_of_geom = np.append(world.segmentation_ids(), 0)  # the last row is the background's -1

    size = (config.frames, config.image_size, config.image_size)
    rgb, depth = np.empty((*size, 3), np.uint8), np.empty(size, np.float32)
    segmentation, contact = np.empty(size, np.uint8), np.zeros((config.frames, 2), np.uint8)
    with Renderer(world.model, height=config.image_size, width=config.image_size, quality=config.quality) as renderer:
        for number, time in enumerate(frame_times):
            plan.apply(world, time, rig.shoulders(time))
            world.set_camera(rig.world_from_camera(time))
            world.update_for_display()
            images = renderer.render(world.model, world.data, "head", ("rgb", "depth", "segmentation"))
            rgb[number], depth[number] = images["rgb"], images["depth"]
            segmentation[number] = id_of_geom[images["segmentation"]]
            contact[number] = contact_state(world, plan, time)

    gaze_rng = np.random.default_rng([seed, index, 3])
    gaze = gaze_track(gaze_rng, plan, rig, matrix, pose_times, config.image_size)
    labels = {1: "left hand", 2: "right hand"} | {3 + i: thing.label for i, thing in enumerate(world.things)}
    facts = spatial_facts(episode.action, world, plan, rig, frame_times, contact, segmentation, depth, matrix)
    narration, captions = write_captions(np.random.default_rng([seed, index, 4]), episode.action, world, plan, facts)
    return Clip(
        key=f"synthetic-{seed}-{index:07d}",
        rgb=rgb,
        rgb_times_s=frame_times,
        depth=depth,
        segmentation=segmentation,
        labels=labels,
        contact=contact,
        intrinsics=matrix,
        world_from_camera=np.stack([rig.world_from_camera(time) for time in pose_times]),
        camera_hz=config.pose_fps,
        gaze=gaze,
        gaze_hz=config.pose_fps,
        hands=hand_track(world, plan, pose_times),
        hands_hz=config.pose_fps,
        narration=narration,
        captions=captions,
        facts=facts,
        meta={
            "source": "synthetic",
            "seed": seed,
            "index": index,
            "action": episode.action,
            "scene": episode.scene,
            "side": plan.side,
            "target": 3 + plan.target,
            "other": None if plan.other is None else 3 + plan.other,
            "arrival_s": float(plan.arrival),
            "fov_degrees": episode.fov_degrees,
            "objects": [thing.label for thing in world.things],
        },
    )
