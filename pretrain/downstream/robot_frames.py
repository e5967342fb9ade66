"""Meta-World frames of varied appearance with the true places of hand and object, for the spatial probe.

The one module of the benchmarks that knows the simulators: they are imported when frames have to be drawn, and not before.
Axes:  F stored frames of an episode, q query frames of an episode.
"""

import hashlib
import io
import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8
from tqdm import tqdm

from pretrain.artifact import atomic_write_bytes
from pretrain.downstream.spatial_targets import POSITION, SpatialSource, number_targets

# The seeds of demonstrations. Those that policies are selected and tested on begin at 100,000 (eval_robot/protocol.py):
# a recipe that was chosen by looking at them would have seen the test.
DEMO_SEEDS = range(0, 100_000)

# Random actions are held for this many steps, long enough to leave the expert's path by centimetres.
NOISE_STEPS = 5
FORMAT_VERSION = 1

ROBOT_TARGETS = number_targets(
    [
        ("hand position", "mm", 1000.0, 3, POSITION),
        ("object position", "mm", 1000.0, 3, POSITION),
        ("hand-object distance", "mm", 1000.0, 1, POSITION),
        ("gripper opening", "mm", 100.0, 1, POSITION),  # the state has it in units of 0.1 m
    ]
)


@dataclass(frozen=True, kw_only=True)
class RobotFramesConfig:
    """Which episodes, and which frames of them.

    Attributes:
        task: a key of envs.tasks.TASKS of Meta-World; level: as envs.tasks.find_level reads it.
        episodes: seeds `first_seed` and up, one episode and one appearance each, kept whether the expert succeeds or not.
        queries: labelled frames an episode, evenly from its first to its last stored frame.
        image_size: side in pixels.
        every_steps: control steps between stored frames; 5 is 16 frames a second, which holds the history of encoders of 8
            frames a second exactly as policies see it.
        noise: probability that a block of NOISE_STEPS steps takes a random action in place of the expert's.
    """

    task: str
    level: str = "varied-2"
    episodes: int = 80
    first_seed: int = 90_000
    queries: int = 4
    image_size: int = 128
    every_steps: int = 5
    noise: float = 0.25

    def __post_init__(self) -> None:
        if not self.task.startswith("metaworld/"):
            raise ValueError(f"task={self.task}: expected a task of Meta-World, e.g. metaworld/drawer-open")
        for name in ("episodes", "queries", "image_size", "every_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if self.first_seed not in DEMO_SEEDS or self.first_seed + self.episodes > DEMO_SEEDS.stop:
            raise ValueError(
                f"episodes={self.episodes} from first_seed={self.first_seed}: expected seeds within {DEMO_SEEDS.start} to "
                f"{DEMO_SEEDS.stop - 1}; the others are kept for selecting and testing policies"
            )
        if not 0 <= self.noise < 1:
            raise ValueError(f"noise={self.noise}: expected a probability below 1")

    @property
    def content(self) -> dict[str, Any]:
        """What frames and labels depend on besides the simulator."""
        return {"format_version": FORMAT_VERSION} | asdict(self)

    def cache_path(self, cache: str | Path) -> Path:
        drawn = {name: value for name, value in self.content.items() if name != "queries"}
        key = hashlib.sha256(json.dumps(drawn, sort_keys=True).encode()).hexdigest()[:16]
        return Path(cache) / f"{self.task.replace('/', '-')}-{self.level}-{key}.npz"


@dataclass(frozen=True, kw_only=True)
class _Episode:
    rgb: UInt8[np.ndarray, "F H W 3"]
    labels: Float64[np.ndarray, "F 8"]


def robot_source(config: RobotFramesConfig, cache: str | Path) -> SpatialSource:
    """The episodes of `config`, drawn once and kept in the directory `cache`.

    Raises:
        ValueError: unknown task or level, or a cache file that is not one.
        RuntimeError: the simulators are not installed, or nothing can draw here.
    """
    path = config.cache_path(cache)
    if not path.exists():
        _store(path, config, _draw_episodes(config))
    episodes, control_hz = _read(path, config)
    frame_of = [
        np.unique(np.round(np.linspace(0, len(episode.rgb) - 1, config.queries)).astype(np.int64))
        for episode in episodes
    ]
    return SpatialSource(
        name=config.task.removeprefix("metaworld/"),
        fps=control_hz / config.every_steps,
        scenes=tuple(f"seed-{config.first_seed + number}" for number in range(len(episodes))),
        load=lambda scene: episodes[scene].rgb,
        scene_of=np.repeat(np.arange(len(episodes)), [len(frames) for frames in frame_of]),
        frame_of=np.concatenate(frame_of),
        values=np.concatenate([episode.labels[frames] for episode, frames in zip(episodes, frame_of, strict=True)]),
        targets=ROBOT_TARGETS,
        identity={"kind": "robot"} | config.content,
    )


# --------------------------------------------------------------------------------------------------------- the simulator


def _draw_episodes(config: RobotFramesConfig) -> tuple[list[_Episode], float]:
    """Rolls out the disturbed expert and draws every `every_steps`-th step; also the control rate in Hz."""
    try:
        from envs.experts import make_expert
        from envs.rendering import Renderer
        from envs.tasks import find_task, make_env
    except ImportError as error:
        raise RuntimeError(
            f"frames of {config.task} need the simulators: {error}. Remedy: pip install 'egoarm[robots]'"
        ) from error
    row = find_task(config.task)
    # Nothing is drawn by the environment itself: only every few steps are needed, and drawing is what costs.
    env = make_env(config.task, level=config.level, cameras=row.cameras[:1], privileged=True)
    episodes = []
    try:
        simulation = env.simulation
        expert = make_expert(config.task, env)
        with Renderer(simulation.model, height=config.image_size, width=config.image_size) as renderer:
            seeds = range(config.first_seed, config.first_seed + config.episodes)
            for seed in tqdm(seeds, desc=f"frames of {config.task}", unit="episode", disable=None):
                observation, _ = env.reset(seed=seed, images=False)
                expert.reset()
                # A stream of its own: the placements are drawn from the bare seed.
                random = np.random.default_rng([seed, 0x5BA71A])
                rgb, labels = [], []
                held: np.ndarray | None = None
                ended = False
                for step in range(env.env_spec.horizon_steps + 1):
                    if step % config.every_steps == 0:
                        drawn = renderer.render(simulation.model, simulation.data, row.cameras[0], scenery=env.scenery)
                        rgb.append(drawn["rgb"])
                        labels.append(_labels(observation["state/full"]))
                    if ended:
                        break
                    if step % NOISE_STEPS == 0:
                        disturbed = random.uniform() < config.noise
                        action = random.uniform(-1, 1, env.env_spec.action.shape).astype(np.float32)
                        held = action if disturbed else None
                    command = expert.act(observation) if held is None else held
                    observation, _, terminated, truncated, _ = env.step(command, images=False)
                    ended = terminated or truncated
                episodes.append(_Episode(rgb=np.stack(rgb), labels=np.stack(labels)))
    finally:
        env.close()
    return episodes, float(env.env_spec.control_hz)


def _labels(full_state: np.ndarray) -> Float64[np.ndarray, " 8"]:
    """Columns of ROBOT_TARGETS from Meta-World's 39-d state: hand xyz, opening, first object's xyz, world metres."""
    hand, opening, place = full_state[:3], full_state[3], full_state[4:7]
    return np.array([*hand, *place, np.linalg.norm(hand - place), opening], np.float64)


# ----------------------------------------------------------------------------------------------------------------- cache


def _store(path: Path, config: RobotFramesConfig, drawn: tuple[list[_Episode], float]) -> None:
    episodes, control_hz = drawn
    header = {"config": config.content, "control_hz": control_hz}
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        header=np.frombuffer(json.dumps(header).encode(), np.uint8),
        lengths=np.array([len(episode.rgb) for episode in episodes], np.int64),
        rgb=np.concatenate([episode.rgb for episode in episodes]),
        labels=np.concatenate([episode.labels for episode in episodes]),
    )
    atomic_write_bytes(path, buffer.getvalue())


def _read(path: Path, config: RobotFramesConfig) -> tuple[list[_Episode], float]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            header = json.loads(archive["header"].tobytes())
            lengths, rgb, labels = archive["lengths"], archive["rgb"], archive["labels"]
            ends = np.cumsum(lengths)
            episodes = [
                _Episode(rgb=rgb[end - length : end], labels=labels[end - length : end])
                for end, length in zip(ends, lengths, strict=True)
            ]
            control_hz = float(header["control_hz"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is not a whole cache of robot frames ({error}); delete it to draw them again"
        ) from error
    if len(episodes) != config.episodes:
        raise ValueError(
            f"{path} holds {len(episodes)} episodes, expected {config.episodes}; delete it to draw them again"
        )
    return episodes, control_hz
