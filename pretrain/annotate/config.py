"""Settings of ``egoarm annotate``."""

from dataclasses import dataclass, field

from pretrain.annotate.writers import WriterConfig
from pretrain.launch import LAUNCHERS

STAGES = ("depth", "detect", "track", "generate")
# Back-ends of the four stages that go well together.
PRESETS: dict[str, dict[str, str]] = {
    "truth": {"depth": "truth", "detect": "truth", "track": "truth", "generate": "grammar"},
    "classical": {"depth": "truth", "detect": "truth", "track": "classical", "generate": "grammar"},
    "transformers": {
        "depth": "depth-anything",
        "detect": "grounding-dino",
        "track": "sam2",
        "generate": "transformers",
    },
}


@dataclass(frozen=True, kw_only=True)
class AnnotateConfig:
    """Settings of ``egoarm annotate``.

    Attributes:
        store: clip store to annotate.
        out: directory of the annotated store; <out>/work holds what each stage found, clip by clip.
        backends: name in PRESETS: the back-ends of all stages.
        depth, detect, track, generate: back-end of one stage; None = the preset's.
        clips: annotate the first so many; 0 = all.
        seed: of the captions, together with each clip's index.
        device: of the models: auto, cpu, cuda or mps.
        depth_weights, detect_weights, track_weights: directories of models.
        detections: file or directory with the boxes, for detect=100doh and detect=star-hoi.
        align_depth: one scale and shift for all frames of a teacher of relative depth.
        detect_threshold: least score of a box.
        detect_nms: greatest IoU of two boxes of a kind in a frame.
        writer: settings of the caption writers; its device is this one's.
        launcher: "local" processes or a "ray" cluster.
        workers: processes; 0 = one a core (with Ray: one a core of the cluster); 1 = none but this one.
        ray_address: of a running cluster; "" = start one on this machine.
        clips_per_shard: clips in a tar of the finished store.
        retry_failed: do the clips again whose stage failed.
    """

    store: str
    out: str
    backends: str = "classical"
    depth: str | None = None
    detect: str | None = None
    track: str | None = None
    generate: str | None = None
    clips: int = 0
    seed: int = 0
    device: str = "auto"
    depth_weights: str | None = None
    detect_weights: str | None = None
    track_weights: str | None = None
    detections: str | None = None
    align_depth: bool = True
    detect_threshold: float = 0.3
    detect_nms: float = 0.3
    writer: WriterConfig = field(default_factory=WriterConfig)
    launcher: str = "local"
    workers: int = 0
    ray_address: str = ""
    clips_per_shard: int = 16
    retry_failed: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (
            ("backends", tuple(PRESETS)),
            ("launcher", tuple(LAUNCHERS)),
            ("device", ("auto", "cpu", "cuda", "mps")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(allowed)}")
        for name in ("store", "out"):
            if not getattr(self, name):
                raise ValueError(f"{name}= is empty: give a directory")
        for name, least in (("clips", 0), ("seed", 0), ("workers", 0), ("clips_per_shard", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: expected {least} or more")
        for name in ("detect_threshold", "detect_nms"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected 0 to 1")

    def backend(self, stage: str) -> str:
        """Name of a stage's back-end."""
        return getattr(self, stage) or PRESETS[self.backends][stage]
