"""The table of benchmarks: what each needs, how it is read, made and scored."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pretrain.downstream import synthetic_twin as twin
from pretrain.downstream.depth import evaluate_depth
from pretrain.downstream.egomcq import evaluate_egomcq, read_egomcq
from pretrain.downstream.egoschema import evaluate_egoschema, read_egoschema
from pretrain.downstream.egtea import evaluate_egtea, read_egtea
from pretrain.downstream.ek100_cls import evaluate_ek100_cls, read_ek100_cls
from pretrain.downstream.ek100_mir import evaluate_ek100_mir, read_ek100_mir
from pretrain.downstream.features import Extractor
from pretrain.downstream.nlq import evaluate_nlq, read_nlq
from pretrain.downstream.spatial_scores import SUMMARY
from pretrain.downstream.spatial_twin import evaluate_spatial, read_no_spatial, spatial_task
from pretrain.downstream.task import Outcome, Task


def _always(_: str) -> bool:
    return True


def _read_no_depth(directory: Path) -> Task:
    raise ValueError(
        f"data={directory} is no clip store: depth is measured on the clips of a store with depth "
        "(egoarm clips import, egoarm annotate, or egoarm clips synth make one)"
    )


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A row of BENCHMARKS.

    Attributes:
        about: one line for lists.
        needs_text: whether an encoder without a text tower has no figure at all here.
        needs_tokens: whether it reads the token grid, not the pooled feature alone.
        read: official annotations of a directory -> the task.
        twin: held-out clips of a store -> the task.
        evaluate: features of one encoder and the task -> figures.
        is_headline: name of a metric -> whether the printed table has it; the file has all.
    """

    about: str
    needs_text: bool
    read: Callable[[Path], Task]
    twin: Callable[[twin.TwinClips], Task]
    evaluate: Callable[[Extractor, Task], Outcome]
    needs_tokens: bool = False
    is_headline: Callable[[str], bool] = _always


BENCHMARKS: dict[str, Benchmark] = {
    "egomcq": Benchmark(
        about="EgoMCQ: which of five clips shows the sentence",
        needs_text=True, read=read_egomcq, twin=twin.egomcq_twin, evaluate=evaluate_egomcq,
    ),
    "ek100-mir": Benchmark(
        about="EPIC-KITCHENS-100 multi-instance retrieval, mAP and nDCG",
        needs_text=True, read=read_ek100_mir, twin=twin.ek100_mir_twin, evaluate=evaluate_ek100_mir,
    ),
    "ek100-cls": Benchmark(
        about="EPIC-KITCHENS-100 action recognition, zero-shot and by a linear probe",
        needs_text=False, read=read_ek100_cls, twin=twin.ek100_cls_twin, evaluate=evaluate_ek100_cls,
    ),
    "egtea": Benchmark(
        about="EGTEA Gaze+ zero-shot action recognition",
        needs_text=True, read=read_egtea, twin=twin.egtea_twin, evaluate=evaluate_egtea,
    ),
    "nlq": Benchmark(
        about="EgoNLQ: when in a long video is the answer",
        needs_text=True, read=read_nlq, twin=twin.nlq_twin, evaluate=evaluate_nlq,
    ),
    "egoschema": Benchmark(
        about="EgoSchema: questions with five answers about a long video",
        needs_text=True, read=read_egoschema, twin=twin.egoschema_twin, evaluate=evaluate_egoschema,
    ),
    "depth": Benchmark(
        about="depth by a linear head on frozen tokens, and by the model's decoder",
        needs_text=False, read=_read_no_depth, twin=twin.depth_twin, evaluate=evaluate_depth, needs_tokens=True,
    ),
    "spatial": Benchmark(
        about="places of hands and objects by ridge regression from frozen tokens",
        needs_text=False, read=read_no_spatial, twin=spatial_task, evaluate=evaluate_spatial,
        is_headline=lambda metric: SUMMARY in metric,
    ),
}  # fmt: skip

# The twins that "all-synthetic" makes.
SYNTHETIC: tuple[str, ...] = ("egomcq", "ek100-mir", "ek100-cls", "egtea", "nlq", "egoschema", "depth")
