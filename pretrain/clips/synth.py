"""``egoarm clips synth``: a store of synthetic ego clips."""

import importlib.metadata
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from pretrain.clips.build import build_store
from pretrain.clips.schema import Clip

KIND = "synthetic"
# A version of one of these decides the pixels or the bytes.
_PACKAGES = ("mujoco", "numpy", "gymnasium-robotics", "robosuite", "opencv-python")


@dataclass(frozen=True, kw_only=True)
class SynthConfig:
    """Settings of ``egoarm clips synth``.

    Attributes:
        out: directory of the store.
        n: clips in the finished store. A larger n later continues the store: full shards are kept, a last shard that
            was not full is made anew, and each clip stays what it was.
        seed: decides every clip together with its index.
        workers: processes; 0 = one a core. Does not change the clips.
        clips_per_shard: clips in a tar; one tar is one unit of work.
        image_size: height and width of the stored frames, px.
        frames: video frames a clip.
        rgb_fps: video frames a second.
    """

    out: str
    n: int = 256
    seed: int = 0
    workers: int = 0
    clips_per_shard: int = 16
    image_size: int = 128
    frames: int = 16
    rgb_fps: float = 8.0

    def __post_init__(self) -> None:
        if not self.out:
            raise ValueError("out= is missing: say where the clips go, e.g. out=runs/clips")
        for name, least in (("n", 1), ("seed", 0), ("workers", 0), ("clips_per_shard", 1), ("frames", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: expected {least} or more")
        if not 16 <= self.image_size <= 2048:
            raise ValueError(f"image_size={self.image_size}: expected 16 to 2048 px")
        if not self.rgb_fps > 0:
            raise ValueError(f"rgb_fps={self.rgb_fps}: expected a rate above 0")

    @property
    def source(self) -> dict[str, Any]:
        """The settings that the generator takes."""
        own = {"out", "n", "seed", "workers", "clips_per_shard"}
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in own}


def run_synth(config: SynthConfig) -> None:
    """Makes, continues or checks the store, and says what was made and where.

    Raises:
        ValueError: see :func:`pretrain.clips.build.build_store`; or the simulators are not installed.
        RuntimeError: a worker process died.
    """
    directory = Path(config.out)
    source_config = _source_config(config.source)
    try:
        result = build_store(
            directory,
            partial(_generate, seed=config.seed, source_config=source_config),
            kind=KIND,
            seed=config.seed,
            settings=asdict(source_config),
            versions=_versions(),
            n_clips=config.n,
            clips_per_shard=config.clips_per_shard,
            workers=config.workers,
        )
    except KeyboardInterrupt:
        print(f"stopped; finished shards are kept in {directory}: the same command goes on from there")
        raise
    made = result.clips - result.kept_clips
    did = (
        "already complete:"
        if made == 0
        else f"made {made} clips" + (f", kept {result.kept_clips}:" if result.kept_clips else ":")
    )
    print(
        f"{did} {result.clips} clips in {result.shards} shards, {result.bytes / 1e6:.1f} MB, in {directory} "
        f"(look at them: egoarm clips info {directory})"
    )


def _source_config(source: dict[str, Any]) -> Any:
    # Only this source needs the simulators: the rest of pretrain works without them.
    try:
        from pretrain.clips.sources.synthetic import SyntheticConfig
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] in ("pretrain", "envs"):
            raise
        raise ValueError(
            f"egoarm clips synth needs {error.name}, which is not installed: pip install 'egoarm[robots]'"
        ) from None
    return SyntheticConfig(**source)


def _generate(index: int, seed: int, source_config: Any) -> Clip:
    from pretrain.clips.sources.synthetic import generate_clip

    return generate_clip(index, seed, source_config)


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions
