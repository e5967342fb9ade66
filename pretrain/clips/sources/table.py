"""The public data sets that ``egoarm clips import`` knows."""

from collections.abc import Callable, Iterator
from pathlib import Path

from pretrain.clips.skipping import Skipped
from pretrain.clips.sources import ego4d, egoclip, epic100, lavila
from pretrain.clips.sources.options import SourceOptions
from pretrain.clips.sources.request import ClipRequest

# (annotation file, directory of the videos, options) -> what to cut, in the order of the file; a line that gives no clip
# gives its reason.
ReadRequests = Callable[[Path, Path, SourceOptions], Iterator[ClipRequest | Skipped]]

SOURCES: dict[str, ReadRequests] = {
    "ego4d": ego4d.read_requests,
    "egoclip": egoclip.read_requests,
    "lavila": lavila.read_requests,
    "epic100": epic100.read_requests,
}
