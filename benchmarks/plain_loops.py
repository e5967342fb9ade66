"""What benchmarks.rollout is measured against: the simulators' own Gymnasium environments, each drawn by its own `render()` at 480x480."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch

from envs.rendering import gl_backend
from pretrain.encoder import VideoEncoder


def _metaworld() -> gymnasium.Env:
    import metaworld as metaworld  # registers its environments

    return gymnasium.make("Meta-World/MT1", env_name="drawer-open-v3", render_mode="rgb_array", camera_name="corner2")


def _gymnasium_robotics(name: str, **options: Any) -> gymnasium.Env:
    import gymnasium_robotics

    gymnasium.register_envs(gymnasium_robotics)
    return gymnasium.make(name, render_mode="rgb_array", **options)


PLAIN_LOOPS: dict[str, Callable[[], gymnasium.Env]] = {
    "metaworld": _metaworld,
    "kitchen": lambda: _gymnasium_robotics("FrankaKitchen-v1", tasks_to_complete=["slide cabinet"]),
    "adroit": lambda: _gymnasium_robotics("AdroitHandPen-v1"),
}


class PlainLoop:
    """One environment, one frame drawn and one encoder call a step, actions at random."""

    def __init__(self, make: Callable[[], gymnasium.Env], encoder: VideoEncoder) -> None:
        gl_backend()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.env = make()
            self.env.reset(seed=0)
        self.encoder = encoder.frozen()
        self.frames = [self._draw()] * encoder.spec.frames

    def run(self, steps: int) -> int:
        """The number of env steps."""
        with torch.no_grad():
            for _ in range(steps):
                clip = torch.from_numpy(np.stack(self.frames)[None])
                self.encoder(self.encoder.preprocess(clip))
                _, _, terminated, truncated, _ = self.env.step(self.env.action_space.sample())
                if terminated or truncated:
                    self.env.reset()
                self.frames = [*self.frames[1:], self._draw()]
        return steps

    def _draw(self) -> np.ndarray:
        frame = self.env.render()
        assert isinstance(frame, np.ndarray) and frame.shape == (480, 480, 3), frame
        return frame

    def close(self) -> None:
        self.env.close()
