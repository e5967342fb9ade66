"""``egoarm clips synth``: a store of synthetic ego clips."""

import importlib.metadata
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

from pretrain.clips.build import build_store
from pretrain.clips.schema import Clip
from pretrain.clips.sources.synthetic.config import SyntheticConfig

KIND = "synthetic"
# The packages whose version decides the motion, the pixels or the bytes.
_PACKAGES = ("mujoco", "numpy", "gymnasium-robotics", "robosuite", "opencv-python")


@dataclass(frozen=True, kw_only=True)
class SynthConfig(SyntheticConfig):
    """Settings of ``egoarm clips synth``: those of the source, and how many clips go where.

    Attributes:
        out: directory of the store.
        n: clips in the finished store. A larger n later continues the store: full shards are kept, a last shard that
            was not full is made anew, and each clip stays what it was.
        seed: decides every clip together with its index.
        workers: processes; 0 = one a core. Does not change the clips.
        clips_per_shard: clips in a tar; one tar is one unit of work.
    """

    out: str
    n: int = 256
    seed: int = 0
    workers: int = 0
    clips_per_shard: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.out:
            raise ValueError("out= is empty: say where the clips go, e.g. out=runs/clips")
        for name, least in (("n", 1), ("seed", 0), ("workers", 0), ("clips_per_shard", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: expected {least} or more")

    @property
    def source(self) -> SyntheticConfig:
        """The settings of the source alone."""
        return SyntheticConfig(**{field.name: getattr(self, field.name) for field in fields(SyntheticConfig)})


def run_synth(config: SynthConfig) -> None:
    """Makes, continues or checks the store, and says what was made and where.

    Raises:
        ValueError: see :func:`pretrain.clips.build.build_store`; or the simulators are not installed.
        RuntimeError: a worker process died.
    """
    _check_installed()
    directory = Path(config.out)
    result = build_store(
        directory,
        partial(_generate, seed=config.seed, source=config.source),
        kind=KIND,
        seed=config.seed,
        settings=source_settings(config.source),
        versions={name: importlib.metadata.version(name) for name in _PACKAGES},
        n_clips=config.n,
        clips_per_shard=config.clips_per_shard,
        workers=config.workers,
    )
    made_clips = result.clips - result.kept_clips
    kept = f", kept {result.kept_clips}" if result.kept_clips else ""
    print(
        f"{f'made {made_clips}{kept}' if made_clips else 'already complete'}: {result.clips} clips in {result.shards} shards, {result.bytes / 1e6:.1f} MB, in {directory}\n"
        f"look at them: egoarm clips info {directory}"
    )


def source_settings(source: SyntheticConfig) -> dict:
    """What the manifest holds; without robots it says nothing of them, so that older stores go on."""
    return {name: value for name, value in asdict(source).items() if name != "robots" or value}


def _check_installed() -> None:
    for name in _PACKAGES:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            raise ValueError(
                f"synthetic clips need {name}, which is not installed: pip install 'egoarm[robots]'"
            ) from None


def _generate(index: int, seed: int, source: SyntheticConfig) -> Clip:
    # Only this source needs the simulators: the rest of pretrain works without them.
    from pretrain.clips.sources.synthetic import generate_clip

    return generate_clip(index, seed, source)
