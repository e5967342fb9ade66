"""The public data sets that ``egoarm clips import`` knows."""

from collections.abc import Callable, Iterator
from pathlib import Path

from pretrain.clips.skipping import Skipped
from pretrain.clips.sources import (
    adt,
    arctic,
    ego4d,
    egoclip,
    egoexo4d,
    egogen,
    epic100,
    h2o,
    holoassist,
    hot3d,
    lavila,
    taco,
)
from pretrain.clips.sources.options import SourceOptions
from pretrain.clips.sources.recording import SequenceSource
from pretrain.clips.sources.request import ClipRequest

# Narrated video. (annotation file, directory of the videos, options) -> what to cut, in the order of the file; a line that gives no clip
# gives its reason.
ReadRequests = Callable[[Path, Path, SourceOptions], Iterator[ClipRequest | Skipped]]

SOURCES: dict[str, ReadRequests] = {
    "ego4d": ego4d.read_requests,
    "egoclip": egoclip.read_requests,
    "lavila": lavila.read_requests,
    "epic100": epic100.read_requests,
}

# Video with camera, gaze or depth, from one root directory.
RECORDINGS: dict[str, SequenceSource] = {
    "holoassist": holoassist.SOURCE,
    "h2o": h2o.SOURCE,
    "taco": taco.SOURCE,
    "arctic": arctic.SOURCE,
    "egogen": egogen.SOURCE,
    "egoexo4d": egoexo4d.EGOEXO4D,
    "hot3d-aria": hot3d.HOT3D_ARIA,
    "hot3d-quest": hot3d.HOT3D_QUEST,
    "adt": adt.ADT,
}
