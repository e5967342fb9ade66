"""The one environment class: any suite's simulation behind the Gymnasium contract, with images, appearance levels and seeds."""

from __future__ import annotations

import hashlib
from typing import Any, Protocol

import gymnasium
import mujoco
import numpy as np

from envs.rendering import QUALITIES, Renderer
from envs.shifts import Appearance, AppearanceLevel
from envs.shifts_scenery import Scenery
from envs.spec import EnvSpec, FieldSpec, image_field


class Simulation(Protocol):
    """What a suite's adapter provides. Its physics must depend on nothing but the reset's seed and the actions.

    Attributes:
        model: the MuJoCo model; its cameras are upright.
        data: its state, after `mj_forward` whenever `reset` or `step` has returned.
        control_hz: steps a second of simulated time.
        action_field: shape and meaning of the action.
        state_fields: proprioception, name -> field; `state/<name>` in the observation.
        full_state_field: the privileged state, `state/full` where it is asked for.
    """

    model: mujoco.MjModel
    data: mujoco.MjData
    control_hz: float
    action_field: FieldSpec
    state_fields: dict[str, FieldSpec]
    full_state_field: FieldSpec

    def reset(self, seed: int) -> None:
        """Start the episode that `seed` draws."""
        ...

    def step(self, action: np.ndarray) -> tuple[float, bool]:
        """Apply float32 `action` in [-1, 1] for one control step; return reward and success."""
        ...

    def state_observation(self) -> dict[str, np.ndarray]:
        """Proprioception, as `state_fields` says."""
        ...

    def full_state(self) -> np.ndarray:
        """The privileged state, float64."""
        ...

    def physics_state(self) -> np.ndarray:
        """Everything physical that tells two moments apart, float64: joints, velocities, mocap bodies, where furniture stands, the goal."""
        ...

    def close(self) -> None:
        """Free what the simulation holds."""
        ...


class ManipulationEnv(gymnasium.Env):
    """A manipulation task: `reset(seed=...)`, `step(action)`, observations as `env_spec` says.

    - The same seed gives the same episode: placements, physics and, at a given level and quality, pixels.
    - The appearance is drawn from the seed by a stream of its own: placements and physics do not depend on the level.
    - `terminated` becomes true at the first success, `truncated` at the horizon; after either, `reset` must follow.
    - `info["success"]` is always a bool. After `reset`, `info["seed"]` is the episode's seed and `info["initial_state_hash"]` the hex sha256 of
      the physical state at its start.
    - Without a seed, `reset` draws one from the generator that the last seeded `reset` started.
    - With `redraw_every`, the appearance is drawn anew after every so many control steps too, as domain randomization of demonstrations: the draw
      is a function of the episode's seed and the step. Physics is not touched.
    - Observations are new arrays each time. Drawing is most of a step's cost: with `images=False`, `reset` and `step` draw nothing and leave the
      `images/...` keys out. What is not drawn changes nothing else.

    Use `envs.tasks.make_env` to make one.
    """

    render_mode = "rgb_array"

    def __init__(
        self,
        *,
        task: str,
        simulation: Simulation,
        horizon_steps: int,
        level: AppearanceLevel,
        cameras: tuple[str, ...],
        image_size: int,
        quality: str,
        renderer: Renderer | None = None,
        privileged: bool = False,
        redraw_every: int = 0,
    ) -> None:
        if redraw_every < 0:
            raise ValueError(
                f"{task}: redraw_every={redraw_every}: expected 0 (once an episode) or a number of control steps"
            )
        _check_images(task, simulation.model, cameras, image_size, quality, renderer)
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": simulation.control_hz}
        self.simulation = simulation
        self.level = level
        self._appearance = Appearance(simulation.model)
        # What an episode's frames show besides the model, for those who draw it themselves.
        self.scenery: Scenery | None = None
        self._cameras = cameras
        self._image_size = image_size
        self._quality = quality
        self._renderer = renderer
        self._owns_renderer = renderer is None
        self._privileged = privileged
        self._redraw_every = redraw_every
        self._episode_seed = 0
        self._steps = 0
        self._needs_reset = True
        self._closed = False

        observation = {f"images/{camera}": image_field(image_size) for camera in cameras}
        observation |= {f"state/{name}": field for name, field in simulation.state_fields.items()}
        if privileged:
            observation["state/full"] = simulation.full_state_field
        self.env_spec = EnvSpec(
            task=task,
            control_hz=simulation.control_hz,
            horizon_steps=horizon_steps,
            observation=observation,
            action=simulation.action_field,
        )
        self.observation_space = gymnasium.spaces.Dict({key: _space_of(field) for key, field in observation.items()})
        self.action_space = _space_of(simulation.action_field)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None, images: bool = True
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start an episode; see the class for what is in `info` and for `images`.

        Raises:
            ValueError: a negative seed.
        """
        if seed is not None and seed < 0:
            raise ValueError(f"the seed must be a non-negative integer, got {seed}")
        super().reset(seed=seed)
        episode_seed = int(self.np_random.integers(2**31)) if seed is None else int(seed)
        self.simulation.reset(episode_seed)
        # The physical state is already final.
        self._redraw(episode_seed)
        self._episode_seed = episode_seed
        self._steps = 0
        self._needs_reset = False
        state = np.ascontiguousarray(self.simulation.physics_state(), dtype=np.float64)
        info = {
            "success": False,
            "seed": episode_seed,
            "initial_state_hash": hashlib.sha256(state.tobytes()).hexdigest(),
        }
        return self._observe(images), info

    def step(
        self, action: np.ndarray, *, images: bool = True
    ) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Apply `action` (clipped to [-1, 1]) for one control step; see the class for `images`.

        Raises:
            ValueError: wrong shape, or not finite.
            gymnasium.error.ResetNeeded: the episode has ended or never begun.
        """
        if self._needs_reset:
            raise gymnasium.error.ResetNeeded(
                f"{self.env_spec.task}: call reset() before step(): no episode is under way"
            )
        field = self.env_spec.action
        command = np.asarray(action, dtype=np.float32)
        if command.shape != field.shape:
            raise ValueError(
                f"{self.env_spec.task}: action of shape {command.shape}, expected {field.shape} ({field.convention})"
            )
        if not np.isfinite(command).all():
            raise ValueError(f"{self.env_spec.task}: the action has elements that are not finite: {command}")
        reward, success = self.simulation.step(np.clip(command, -1.0, 1.0))
        self._steps += 1
        terminated = bool(success)
        truncated = not terminated and self._steps >= self.env_spec.horizon_steps
        self._needs_reset = terminated or truncated
        if self._redraw_every and self._steps % self._redraw_every == 0:
            self._redraw(int(np.random.SeedSequence([self._episode_seed, self._steps]).generate_state(1)[0] >> 1))
        return self._observe(images), float(reward), terminated, truncated, {"success": terminated}

    def state(self) -> np.ndarray:
        """The physical state, float64, for demonstration files; its meaning is the suite's."""
        return np.array(self.simulation.physics_state(), dtype=np.float64)

    @property
    def renderer(self) -> Renderer:
        """The renderer in use, made at first need; other environments of the task may share it while this one is open."""
        if self._closed:
            raise RuntimeError(f"{self.env_spec.task} is closed; make a new one")
        if self._renderer is None:
            size = self._image_size
            self._renderer = Renderer(self.simulation.model, height=size, width=size, quality=self._quality)
        return self._renderer

    def render(self) -> np.ndarray:
        """RGB of the first camera, uint8 [H, W, 3]."""
        if not self._cameras:
            raise ValueError(f"{self.env_spec.task} was made with no cameras; make it with cameras=None to render")
        return self._draw(self._cameras[0])

    def close(self) -> None:
        """Free the renderer, if it is the env's own, and the simulation; safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._needs_reset = True
        if self._owns_renderer and self._renderer is not None:
            self._renderer.close()
        self._renderer = None
        self.simulation.close()

    def _redraw(self, seed: int) -> None:
        self._appearance.redraw(self.level, seed, self.simulation.data)
        self.scenery = self._appearance.scenery(self.level, seed, self.simulation.data, self._cameras)

    def _observe(self, images: bool) -> dict[str, np.ndarray]:
        observation = {f"images/{camera}": self._draw(camera) for camera in self._cameras if images}
        state = {f"state/{name}": value for name, value in self.simulation.state_observation().items()}
        if self._privileged:
            state["state/full"] = self.simulation.full_state()
        for key, value in state.items():
            array = np.array(value, dtype=np.float32)
            assert array.shape == self.env_spec.observation[key].shape, f"{key} has shape {array.shape}"
            observation[key] = array
        return observation

    def _draw(self, camera: str) -> np.ndarray:
        return self.renderer.render(self.simulation.model, self.simulation.data, camera, scenery=self.scenery)["rgb"]


def _space_of(field: FieldSpec) -> gymnasium.spaces.Box:
    low = -np.inf if field.low is None else field.low
    high = np.inf if field.high is None else field.high
    return gymnasium.spaces.Box(low, high, shape=field.shape, dtype=np.dtype(field.dtype).type)


def _check_images(
    task: str, model: mujoco.MjModel, cameras: tuple[str, ...], image_size: int, quality: str, renderer: Renderer | None
) -> None:
    if isinstance(cameras, str):
        raise ValueError(f"{task}: cameras must be a tuple of names, got the string {cameras!r}")
    known = [model.camera(i).name for i in range(model.ncam)]
    for camera in cameras:
        if camera not in known:
            raise ValueError(f"{task} has no camera {camera!r}; its cameras are {', '.join(known)}")
    if len(set(cameras)) != len(cameras):
        raise ValueError(f"{task}: a camera is named twice in {cameras}")
    if image_size < 1:
        raise ValueError(f"{task}: image_size must be at least 1 pixel, got {image_size}")
    if quality not in QUALITIES:
        raise ValueError(f"{task}: unknown rendering quality {quality!r}; expected one of {', '.join(QUALITIES)}")
    if renderer is not None:
        given, expected = (renderer.height, renderer.width, renderer.quality), (image_size, image_size, quality)
        if given != expected:
            raise ValueError(
                f"{task}: the shared renderer draws height, width, quality {given}, the environment needs {expected}"
            )
