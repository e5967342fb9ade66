"""The spatial probe as a row of the table of benchmarks: on the held-out clips of a store, and on robot frames."""

from pathlib import Path
from typing import Any

from pretrain.downstream.depth import DepthClip
from pretrain.downstream.features import Extractor
from pretrain.downstream.robot_frames import RobotFramesConfig, robot_source
from pretrain.downstream.spatial import SpatialData, spatial_probe
from pretrain.downstream.spatial_targets import clip_source
from pretrain.downstream.synthetic_twin import TwinClips
from pretrain.downstream.task import Outcome, Task


def read_no_spatial(directory: Path) -> Task:
    raise ValueError(f"data={directory} is no clip store: the spatial probe reads a store of egoarm clips synth")


def spatial_task(data: TwinClips) -> Task:
    """The held-out clips, and the frames of the robot tasks that were asked for."""
    store = data.source.store
    sources = [clip_source(store, indices=[data.source.index(clip.key) for clip in data.clips])]
    for task in data.tasks:
        sources.append(robot_source(RobotFramesConfig(task=task), data.cache))
    items: list[Any] = [DepthClip(segment=clip.segment, group=clip.key) for clip in data.clips]
    return Task(items=tuple(items), options={"data": SpatialData(sources=tuple(sources))})


def evaluate_spatial(extractor: Extractor, task: Task) -> Outcome:
    """Error of a ridge regression from frozen tokens to hands, objects and contact."""
    encoder = extractor.subject.encoder
    result = spatial_probe(encoder, data=task.options["data"], device=extractor.device)
    return Outcome(metrics=result.metrics, notes=result.notes, protocol=result.protocol)
