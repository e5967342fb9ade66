"""Makes one clip of somebody who stands around a table and watches a robot arm work."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pretrain.clips.schema import HAND_JOINTS, Clip
from pretrain.clips.sources.synthetic.arm import ArmModel, arm_link_poses, draw_arm
from pretrain.clips.sources.synthetic.camera import (
    HeadRig,
    draw_watching_rig,
    gaze_track,
    inside,
    intrinsics,
    project,
)
from pretrain.clips.sources.synthetic.captions import write_watching_captions
from pretrain.clips.sources.synthetic.config import SyntheticConfig
from pretrain.clips.sources.synthetic.facts import SEEN_PIXELS, watching_facts
from pretrain.clips.sources.synthetic.grasp import Infeasible
from pretrain.clips.sources.synthetic.plan import Plan
from pretrain.clips.sources.synthetic.robot_plan import ROBOT_ACTION_TABLE, SIDE, draw_stage
from pretrain.clips.sources.synthetic.robot_scene import ARM, FLOOR_Z, RobotWorld, Table, build_robot_world

FOV_DEGREES = (35.0, 75.0)
FILLING_M = 0.5  # half of what a narrow view shows, at the target
MAX_ATTEMPTS = 200
CHECK_STEPS = 10
DEEPEST_M = 0.012  # how far the arm may enter what it does not act on
CLEAR_M = 0.12  # of the eyes from the balls around the shapes


@dataclass
class RobotEpisode:
    """A scene with an arm and a plan that passed the checks, before it is drawn."""

    action: str
    scene: str
    world: RobotWorld
    plan: Plan
    rig: HeadRig
    fov_degrees: float
    attempt: int


def watches_robot(index: int, seed: int, config: SyntheticConfig) -> bool:
    """Whether the clip is one of these."""
    return config.robots > 0 and np.random.default_rng([seed, index, 5]).random() < config.robots


def robot_action_of(index: int, seed: int, config: SyntheticConfig) -> str:
    """The clip's action: of those that the settings name, one that an arm can do, in equal numbers a block."""
    actions = [action for action in config.actions if action in ROBOT_ACTION_TABLE]
    block, place = divmod(index, len(actions))
    return actions[np.random.default_rng([seed, block, 6]).permutation(len(actions))[place]]


def make_robot_episode(index: int, seed: int, config: SyntheticConfig, first: int = 0) -> RobotEpisode:
    """Draws scenes, from attempt `first` on, until one can be acted out.

    Raises:
        RuntimeError: none of MAX_ATTEMPTS draws could.
    """
    action = robot_action_of(index, seed, config)
    reasons: list[str] = []
    for attempt in range(first, MAX_ATTEMPTS):
        rng = np.random.default_rng([seed, index, 7, attempt])
        try:
            return _draw_episode(action, rng, config, attempt)
        except Infeasible as reason:
            reasons.append(str(reason))
    raise RuntimeError(
        f"synthetic clip {index} of seed {seed} (a robot arm, {action}): no scene in {MAX_ATTEMPTS} draws worked; "
        f"last: {reasons[-1] if reasons else 'out of sight'}"
    )


def _draw_table(rng: np.random.Generator, kind: str, mount_y: float) -> tuple[Table, float]:
    """(the table, the height of the arm's mount): it stands on the table or on a pedestal beside it."""
    wide = float(rng.uniform(0.45, 1.1))
    far = float(rng.uniform(0.5, 1.0))
    on_table = rng.random() < 0.5
    near = mount_y - float(rng.uniform(0.15, 0.4)) if on_table else mount_y + float(rng.uniform(0.18, 0.24))
    mount_z = 0.0 if on_table else float(rng.uniform(-0.2, 0.1))
    return Table(low=(-wide, near), high=(wide, far), legs=kind == "table"), mount_z


def _draw_fov(rng: np.random.Generator, plan: Plan, rig: HeadRig) -> float:
    """The field of view in degrees; every second one is narrow enough for the work area to fill the picture."""
    low, high = FOV_DEGREES
    if rng.random() < 0.5:
        distance = np.linalg.norm(rig.world_from_camera(0.0)[:3, 3] - plan.thing_pose(plan.target, 0.0)[:3, 3])
        high = max(min(high, 2 * float(np.rad2deg(np.arctan(FILLING_M / distance)))), low)
    return float(rng.uniform(low, high))


def _draw_episode(action: str, rng: np.random.Generator, config: SyntheticConfig, attempt: int) -> RobotEpisode:
    """The cheap checks come before the scene is compiled."""
    row = ROBOT_ACTION_TABLE[action]
    scene = str(rng.choice(config.scenes))
    mount_y = float(rng.uniform(-0.62, -0.45))
    table, mount_z = _draw_table(rng, scene, mount_y)
    mount = np.array([float(rng.uniform(-0.08, 0.08)), mount_y, mount_z])
    arm = draw_arm(rng, mount=mount, floor_z=0.0 if table.low[1] < mount_y else FLOOR_Z, fingers=not row.rod)
    stage = draw_stage(action, rng, arm, table)
    plan = row.plan(stage, rng, config.duration_s)
    times = np.linspace(0.0, config.duration_s, CHECK_STEPS)
    # Every frame must be within reach, and the way between them.
    between = np.linspace(0.0, config.duration_s, 4 * CHECK_STEPS)
    check_reach(arm, plan, np.concatenate([np.arange(config.frames) / config.rgb_fps, between]))
    rig = draw_watching_rig(rng, plan, config.duration_s)
    fov_degrees = _draw_fov(rng, plan, rig)
    check_view(
        plan, rig, times, intrinsics(fov_degrees, config.image_size), config.image_size, stage.placed[0].model.height
    )
    world = build_robot_world(
        rng,
        arm=arm,
        table=table,
        things=[placed.model for placed in stage.placed],
        view_from=rig.world_from_camera(0.0)[:3, 3],
        fov_degrees=fov_degrees,
    )
    check_clear(world, plan, rig, times)
    return RobotEpisode(
        action=action, scene=scene, world=world, plan=plan, rig=rig, fov_degrees=fov_degrees, attempt=attempt
    )


def check_reach(arm: ArmModel, plan: Plan, times: np.ndarray) -> None:
    """Refuses a plan in which the tool is out of reach at a time."""
    for time in times:
        hand = plan.hands[SIDE]
        arm_link_poses(arm, hand.palm(time), float(hand.fingers(time)[0]))


def check_view(plan: Plan, rig: HeadRig, times: np.ndarray, matrix: np.ndarray, size: int, height: float) -> None:
    """Refuses a view from which tool or target are often outside the picture."""
    tool = target = 0
    for time in times:
        camera = rig.world_from_camera(time)
        tool += inside(project(plan.hands[SIDE].palm(time)[:3, 3], camera, matrix), size)
        middle = plan.thing_pose(plan.target, time) @ [0.0, 0.0, height / 2, 1.0]
        target += inside(project(middle[:3], camera, matrix), size)
    if tool < 0.7 * len(times) or target < 0.8 * len(times):
        raise Infeasible(f"the action is out of view (target {target}, tool {tool})")


def check_clear(world: RobotWorld, plan: Plan, rig: HeadRig, times: np.ndarray) -> None:
    """Refuses a plan in which the arm runs into the table, into things it does not act on, or into the watcher's face."""
    acting = {plan.target, plan.other}
    others = [g for i, geoms in enumerate(world.thing_geoms) if i not in acting for g in geoms] + world.walls
    for time in times:
        plan.apply(world, time)
        world.update()
        if world.distance(world.arm_geoms, world.support, 0.0) < -0.004:
            raise Infeasible(f"the arm enters the table at {time:.2f}")
        if world.distance(world.arm_geoms, others, 0.0) < -DEEPEST_M:
            raise Infeasible(f"the arm runs into something at {time:.2f}")
        body = [g for g in world.arm_geoms if g not in world.tool_geoms]
        if world.distance(body, world.thing_geoms[plan.target], 0.0) < -DEEPEST_M:
            raise Infeasible(f"the arm enters the {world.things[plan.target].label} at {time:.2f}")
        eye = rig.world_from_camera(time)[:3, 3]
        gaps = np.linalg.norm(world.data.geom_xpos - eye, axis=1) - world.model.geom_rbound
        near = world.arm_geoms + [g for geoms in world.thing_geoms for g in geoms]
        if gaps[near].min() < CLEAR_M:
            raise Infeasible("something is right before the eyes")


def generate_robot_clip(index: int, seed: int, config: SyntheticConfig) -> Clip:
    """Makes the clip `index` of the stream of `seed`; equal arguments give equal clips in any process and order.

    Raises:
        FileNotFoundError: the packages that hold the meshes are not installed.
        RuntimeError: no GL back-end, or no feasible scene.
    """
    attempt = 0
    while True:
        episode = make_robot_episode(index, seed, config, attempt)
        images = _draw(episode, config)
        if images is not None:
            return _clip(index, seed, config, episode, images)
        attempt = episode.attempt + 1


def _draw(episode: RobotEpisode, config: SyntheticConfig) -> dict[str, np.ndarray] | None:
    """The frames, or None where the target is hidden in the first one."""
    from envs.rendering import Renderer

    world, plan, rig = episode.world, episode.plan, episode.rig
    id_of_geom = np.append(world.segmentation_ids(), 0)  # the last row is the background's -1
    size = (config.frames, config.image_size, config.image_size)
    images = {
        "rgb": np.empty((*size, 3), np.uint8),
        "depth": np.empty(size, np.float32),
        "segmentation": np.empty(size, np.uint8),
    }
    least = max(SEEN_PIXELS * (config.image_size / 128) ** 2, 2)
    with Renderer(world.model, height=config.image_size, width=config.image_size, quality=config.quality) as renderer:
        for number in range(config.frames):
            time = number / config.rgb_fps
            plan.apply(world, time)
            world.set_camera(rig.world_from_camera(time))
            world.update_for_display()
            drawn = renderer.render(world.model, world.data, "head", ("rgb", "depth", "segmentation"))
            images["rgb"][number], images["depth"][number] = drawn["rgb"], drawn["depth"]
            images["segmentation"][number] = id_of_geom[drawn["segmentation"]]
            if number == 0 and (images["segmentation"][0] == 3 + plan.target).sum() < least:
                return None
    return images


def _clip(index: int, seed: int, config: SyntheticConfig, episode: RobotEpisode, images: dict[str, np.ndarray]) -> Clip:
    world, plan, rig = episode.world, episode.plan, episode.rig
    matrix = intrinsics(episode.fov_degrees, config.image_size)
    frame_times = np.arange(config.frames) / config.rgb_fps
    pose_times = np.arange(round(config.duration_s * config.pose_fps)) / config.pose_fps
    gaze = gaze_track(np.random.default_rng([seed, index, 8]), plan, rig, matrix, pose_times, config.image_size)
    facts = watching_facts(world, plan, rig, frame_times, images["segmentation"], images["depth"], matrix)
    narration, captions = write_watching_captions(
        np.random.default_rng([seed, index, 9]), episode.action, world, plan, facts
    )
    labels = {3 + i: thing.label for i, thing in enumerate(world.things)} | {3 + len(world.things): ARM}
    return Clip(
        key=f"synthetic-{seed}-{index:07d}",
        rgb=images["rgb"],
        rgb_times_s=frame_times,
        depth=images["depth"],
        segmentation=images["segmentation"],
        labels=labels,
        contact=np.zeros((config.frames, 2), np.uint8),
        intrinsics=matrix,
        world_from_camera=np.stack([rig.world_from_camera(time) for time in pose_times]),
        camera_hz=config.pose_fps,
        gaze=gaze,
        gaze_hz=config.pose_fps,
        hands=np.full((len(pose_times), 2, len(HAND_JOINTS), 3), np.nan, np.float32),
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
            "robot": 3 + len(world.things),
            "target": 3 + plan.target,
            "other": None if plan.other is None else 3 + plan.other,
            "arrival_s": float(plan.arrival),
            "fov_degrees": episode.fov_degrees,
            "objects": [thing.label for thing in world.things],
        },
    )
