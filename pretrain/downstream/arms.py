"""`egoarm pretrain arms`: EgoDTM and its twins from one seed, and what each has learned after how many clips.

An arm is a pretraining run that differs from the first in one thing. All arms start from the same weights of the video
tower and see the same clips in the same order. The command makes the clips, trains what is not trained yet, measures it
on held-out clips and writes curves, tables and provenance. It can be started twice with different `arms=`, one a core.
"""

import dataclasses
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.artifact import Artifact, atomic_write_bytes, atomic_write_text, load_artifact, save_artifact
from pretrain.checkpoints import read_metrics
from pretrain.clips.synth import SynthConfig, run_synth
from pretrain.downstream.comparison import Row, compare, load_results
from pretrain.downstream.probe import RESULTS_FILE, ProbeConfig
from pretrain.downstream.probe import run as probe
from pretrain.downstream.spatial_scores import SUMMARY
from pretrain.downstream.table import BENCHMARKS
from pretrain.egodtm.train import ENCODER_DIRECTORY, SNAPSHOTS_DIRECTORY, VALIDATION_FILE, PretrainConfig
from pretrain.egodtm.train import run as pretrain

RANDOM = "random"
PIXELS = "pixels-16x16"
SPATIAL = "spatial"
# What an arm may say beside the settings of a run: the clips it sees, in multiples of config.samples.
TIMES = "times"
# Of the headline figures, those on a shipped encoder's card.
CARD_ROWS = tuple(
    re.compile(pattern)
    for pattern in ("^egomcq", "mAP average", "linear verb top-1", "^depth linear .*AbsRel", r"^spatial .*\(grid\)")
)


@dataclass(frozen=True, kw_only=True)
class ArmsConfig:
    """Settings of `egoarm pretrain arms` and `egoarm pretrain ablation`.

    Attributes:
        out: directory of the runs and the probes.
        results: directory that gets the small files for publication.
        title: of the published page.
        arms: name -> what it changes of `pretrain` (dotted names for trainer's); the first arm is the one that the others
            are compared with.
        only: arms to train now; empty = all. Arms trained before are measured too.
        samples: clips that each arm sees, or `times` as many.
        snapshots: clips seen at which each arm is also measured.
        benchmarks: measured at the end of every arm.
        tasks: of Meta-World, whose frames the spatial probe reads too.
        clips: the store to train on; heldout: the one to measure on. Both are made if they are not there.
        pretrain: the settings all arms share; `out`, `data`, snapshots and trainer.steps are set here.
        train: false only measures what is trained, without the clips it was trained on (runs made on another machine).
        measure: false only trains.
        ship: an arm whose encoder is published too, in half precision, with a card; null = none.
        ship_to: the directory that gets it.
    """

    out: str
    results: str
    title: str
    arms: dict[str, dict[str, Any]]
    only: tuple[str, ...] = ()
    samples: int
    snapshots: tuple[int, ...]
    benchmarks: tuple[str, ...]
    tasks: tuple[str, ...]
    clips: SynthConfig
    heldout: SynthConfig
    pretrain: PretrainConfig
    train: bool = True
    measure: bool = True
    ship: str | None = None
    ship_to: str | None = None

    def __post_init__(self) -> None:
        if not self.arms or {RANDOM, PIXELS} & self.arms.keys():
            raise ValueError(f"arms: name at least one, and none {RANDOM!r} (the untrained network) or {PIXELS!r}")
        if unknown := [arm for arm in self.only if arm not in self.arms]:
            raise ValueError(f"only: unknown {unknown[0]!r}; expected some of {', '.join(self.arms)}")
        if self.ship is not None and self.ship not in self.arms:
            raise ValueError(f"ship: unknown arm {self.ship!r}; expected one of {', '.join(self.arms)}")
        if (self.ship is None) != (self.ship_to is None):
            raise ValueError(f"ship={self.ship}, ship_to={self.ship_to}: give the arm and the directory, or neither")
        if self.samples < self.pretrain.trainer.batch_size:
            raise ValueError(f"samples={self.samples}: less than one batch of {self.pretrain.trainer.batch_size}")
        if self.clips.seed == self.heldout.seed:
            raise ValueError(f"heldout.seed={self.heldout.seed} is that of the clips to train on: choose another")
        for arm in self.arms:
            _ = self.pretrain_of(arm)

    def run_of(self, arm: str) -> Path:
        return Path(self.out) / arm

    def samples_of(self, arm: str) -> int:
        return self.samples * self.arms[arm].get(TIMES, 1)

    def pretrain_of(self, arm: str) -> PretrainConfig:
        """The arm's run. Snapshots at its end or beyond are left out: the end is kept anyway."""
        own: dict[str, Any] = {}
        trainer: dict[str, Any] = {}
        for name, value in self.arms[arm].items():
            if name != TIMES:
                (trainer if name.startswith("trainer.") else own)[name.removeprefix("trainer.")] = value
        samples = self.samples_of(arm)
        try:
            changed = dataclasses.replace(self.pretrain.trainer, **trainer)
            return dataclasses.replace(
                self.pretrain,
                data=self.clips.out,
                out=str(self.run_of(arm)),
                snapshots=tuple(clips for clips in self.snapshots if clips < samples),
                trainer=dataclasses.replace(changed, steps=samples // changed.batch_size),
                **own,
            )
        except TypeError as error:
            raise ValueError(f"arms.{arm}: {error}; expected settings of egoarm pretrain") from None


def run(config: ArmsConfig) -> None:
    """Trains, or goes on with, the arms; then measures all that are trained and writes config.results."""
    if config.train:
        run_synth(config.clips)
        for arm in config.only or config.arms:
            pretrain(config.pretrain_of(arm))
    if not config.measure:
        return
    trained = [arm for arm in config.arms if (config.run_of(arm) / ENCODER_DIRECTORY).is_dir()]
    if not trained:
        raise ValueError(f"{config.out}: none of the arms {', '.join(config.arms)} is trained; leave out train=false")
    run_synth(config.heldout)
    out = Path(config.results)
    out.mkdir(parents=True, exist_ok=True)
    ends = _measure_ends(config, trained)
    curves = _measure_curves(config, trained, ends)
    atomic_write_text(out / "curves.json", json.dumps(curves, indent=1) + "\n")
    atomic_write_bytes(out / "curves.png", _plot(curves))
    atomic_write_text(out / "README.md", _page(config, trained, ends, curves))
    if config.ship in trained:
        ship(config, config.ship, ends)
    print(f"arms {', '.join(trained)}: {out / 'README.md'}")


def _probe_config(
    config: ArmsConfig, name: str, encoders: Mapping[str, str], benchmarks: Sequence[str], baseline: str
) -> ProbeConfig:
    return ProbeConfig(
        encoder=tuple(encoders.values()),
        names=tuple(encoders),
        benchmark=tuple(benchmarks),
        data=config.heldout.out,
        clips=0,
        out=str(Path(config.out) / "probe" / name),
        baseline=baseline,
        tasks=config.tasks,
        threads=config.pretrain.trainer.threads,
    )


def _random_twin(config: ArmsConfig, trained: Sequence[str]) -> str:
    return f"random:{config.run_of(trained[0])}"


def _measure_ends(config: ArmsConfig, trained: Sequence[str]) -> Path:
    """Every benchmark at the end of every arm, beside the untrained network and plain pixels."""
    encoders = {arm: str(config.run_of(arm)) for arm in trained}
    encoders |= {RANDOM: _random_twin(config, trained), PIXELS: PIXELS}
    setting = _probe_config(config, "ends", encoders, config.benchmarks, trained[0])
    probe(setting)
    return Path(setting.out) / RESULTS_FILE


def _measure_curves(config: ArmsConfig, trained: Sequence[str], ends: Path) -> list[dict[str, Any]]:
    """One point a snapshot and end: the objectives on their own validation clips, and the spatial error with its interval."""
    points = {arm: (arm, config.samples_of(arm), config.run_of(arm)) for arm in trained}
    spatial = {result.encoder: result for result in load_results(ends) if result.benchmark == SPATIAL}
    snapshots = {
        f"{arm} {clips}": (arm, clips, config.run_of(arm) / SNAPSHOTS_DIRECTORY / str(clips))
        for arm in trained
        for clips in config.pretrain_of(arm).snapshots
    }
    if snapshots:
        encoders = {name: str(path) for name, (_, _, path) in snapshots.items()}
        setting = _probe_config(config, "snapshots", encoders, [SPATIAL], next(iter(encoders)))
        probe(setting)
        spatial |= {result.encoder: result for result in load_results(Path(setting.out) / RESULTS_FILE)}
    curves = []
    for name, (arm, clips, path) in {**points, **snapshots, RANDOM: (RANDOM, 0, None)}.items():
        found = spatial[name].metrics if name in spatial else ()
        file = None if path is None else path / VALIDATION_FILE
        curves.append(
            {
                "arm": arm,
                "clips": clips,
                "spatial": {m.name: [m.value, m.low, m.high] for m in found if SUMMARY in m.name},
                "validation": json.loads(file.read_text()) if file is not None and file.is_file() else None,
            }
        )
    for arm in trained:
        rows = read_metrics(config.run_of(arm) / "metrics.jsonl")
        batch_size = config.pretrain_of(arm).trainer.batch_size
        curves.append({"arm": arm, "training": rows[:: max(1, len(rows) // 200)], "batch_size": batch_size})
    return curves


# ---------------------------------------------------------------------------------------------------------- publication


def ship(config: ArmsConfig, arm: str, ends: Path) -> None:
    """The arm's encoder as config.ship_to: fp16, which halves the file and changes features by about 1e-3 of their size.

    Args:
        ends: the file of results that the card's table is made from.
    """
    assert config.ship_to is not None
    whole = load_artifact(config.run_of(arm) / ENCODER_DIRECTORY)
    place = Path(config.ship_to)
    tensors = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in whole.tensors.items()}
    provenance = {name: value for name, value in whole.provenance.items() if name != "model_sha256"}
    provenance["parents"] = {**whole.provenance["parents"], "fp32": whole.sha256}
    save_artifact(
        place,
        kind=whole.kind,
        name=whole.name,
        tensors=tensors,
        config=whole.config,
        spec=whole.spec,
        provenance=provenance,
    )
    atomic_write_text(place / "MODEL_CARD.md", _card(config, arm, whole, ends))


def _card(config: ArmsConfig, arm: str, whole: Artifact, ends: Path) -> str:
    """What a user has to know before using it."""
    setting, spec = config.pretrain_of(arm), whole.spec
    columns, rows = compare(load_results(ends), arm)
    report = json.loads((config.run_of(arm) / VALIDATION_FILE).read_text())
    depth = "" if report["depth_mse"] is None else (
        f" Squared error of inverse depth {report['depth_mse']:.4f}, of the per-pixel mean {report['depth_mse_mean']:.4f}."
    )  # fmt: skip
    parameters = sum(tensor.numel() for tensor in whole.tensors.values())
    sees = "one image" if spec["frames"] == 1 else f"{spec['frames']} frames at {spec['fps']:g} Hz"
    return "\n".join(
        [
            f"# {whole.name} ({arm})",
            "",
            f"- **What**: EgoDTM's video tower, {parameters / 1e6:.1f} M parameters in fp16; {sees} of {spec['image_size']} px; "
            f"tokens {tuple(spec['grid'])} of width {spec['embed_dim']}, and a pooled feature.",
            f"- **Use**: `egoarm train encoder={whole.name} ...`; `encoder=random:{whole.name}` is the same network with fresh weights, the fair control.",
            f"- **Data**: {config.clips.n:,} synthetic egocentric clips (seed {config.clips.seed}), made by EgoArm itself; no real video, no weights of others.",
            f"- **Training**: {_start(config, arm)}{config.samples_of(arm):,} clips seen, {whole.provenance['wall_time_s'] / 3600:.1f} h of {_machine(whole)}, commit {(whole.provenance['git_sha'] or 'unknown')[:12]}, seed {setting.seed}.",
            f"- **On held-out clips of that store**: retrieval {report['retrieval_video_to_text']:.1%} and {report['retrieval_text_to_video']:.1%} "
            f"(chance {report['retrieval_chance']:.1%}).{depth}",
            f"- **Limits**: rendered hands, tables and a few dozen kinds of objects; {_robots(config)} (`spatial` below says how it reads robot "
            "frames beside random weights); small images. What it is worth in success rate: results/study.",
            "",
            f"## Measured ({config.results})",
            "",
            "On clips of other scenes, and on frames of robot tasks (spatial).",
            "",
            *_table(
                columns,
                [row for row in rows if any(found.search(f"{row.benchmark} {row.metric}") for found in CARD_ROWS)],
                arm,
            ),
            "",
        ]
    )


def _robots(config: ArmsConfig) -> str:
    if not config.clips.robots:
        return "no robot arm in its training"
    return f"a generic robot arm in {config.clips.robots:.0%} of its clips, none of the tasks' own arms or scenes"


def _machine(artifact: Artifact) -> str:
    gpus = artifact.provenance["device"]["gpus"]
    return gpus[0] if gpus else "one CPU core"


def _start(config: ArmsConfig, arm: str) -> str:
    init = config.pretrain_of(arm).init
    return "" if init is None else f"from {init}, whose training came before; "


def _plot(curves: Sequence[Mapping[str, Any]]) -> bytes:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    points = [entry for entry in curves if "spatial" in entry]
    summaries = list(points[0]["spatial"])
    overall = [name for name in summaries if name.startswith("all:")] or summaries
    figure, axes = plt.subplots(1, 2 + len(overall), figsize=(4.2 * (2 + len(overall)), 3.6), layout="constrained")
    arms = list(dict.fromkeys(entry["arm"] for entry in points if entry["arm"] != RANDOM))
    for number, arm in enumerate(arms):
        colour = f"C{number}"
        for entry in curves:
            if entry["arm"] == arm and "training" in entry:
                for axis, name in zip(axes, ("contrastive", "depth"), strict=False):
                    rows = [row for row in entry["training"] if name in row]
                    seen = [row["step"] * entry["batch_size"] for row in rows]
                    axis.plot(seen, [row[name] for row in rows], color=colour, linewidth=1, label=arm if rows else None)
                    axis.set_title(f"training: {name}")
        own = sorted((entry for entry in points if entry["arm"] == arm), key=lambda entry: entry["clips"])
        for axis, name in zip(axes[2:], overall, strict=True):
            value, low, high = zip(*(entry["spatial"][name] for entry in own), strict=True)
            below = [middle - end for middle, end in zip(value, low, strict=True)]
            above = [end - middle for middle, end in zip(value, high, strict=True)]
            axis.errorbar(
                [e["clips"] for e in own], value, [below, above], color=colour, marker="o", capsize=3, label=arm
            )
    for axis, name in zip(axes[2:], overall, strict=True):
        value = next(entry for entry in points if entry["arm"] == RANDOM)["spatial"][name][0]
        axis.axhline(value, color="0.5", linestyle="--", label="random weights")
        axis.set_title(name)
        axis.set_xscale("log")
    for axis in axes:
        axis.set_xlabel("clips seen")
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return buffer.getvalue()


def _page(config: ArmsConfig, trained: Sequence[str], ends: Path, curves: Sequence[Mapping[str, Any]]) -> str:
    """The table in words and figures, made from the files above and nothing else."""
    first = load_artifact(config.run_of(trained[0]) / ENCODER_DIRECTORY)
    columns, rows = compare(load_results(ends), trained[0])
    lines = [
        f"# {config.title}",
        "",
        f"Trained from commit {first.provenance['git_sha']}. Validation clips are held out of the store that was trained on; "
        "everything else is measured on clips of other scenes, which no arm has seen.",
        "Arms of one seed and shape start from the same weights; those of one seed and batch size see the same clips in the same "
        "order. `random` is the first arm's network untrained.",
        "",
        "| arm | clips seen | depth: squared error / per-pixel mean's | retrieval video to text / text to video / chance | p |",
        "|---|---|---|---|---|",
    ]
    for entry in curves:
        if (report := entry.get("validation")) is None:
            continue
        depth = "-" if report["depth_mse"] is None else f"{report['depth_mse']:.4f} / {report['depth_mse_mean']:.4f}"
        hits = [report[f"retrieval_{name}"] for name in ("video_to_text", "text_to_video", "chance")]
        lines.append(
            f"| {entry['arm']} | {entry['clips']:,} | {depth} | {' / '.join(f'{hit:.1%}' for hit in hits)} | "
            f"{report['retrieval_p']:.2g} |"
        )
    settings = json.dumps(dataclasses.asdict(config.pretrain_of(trained[0])), indent=1)
    return "\n".join(
        [*lines, "", "![curves](curves.png)", "", *_table(columns, rows, trained[0]), "", "Settings of the first arm:", "", "```json", settings, "```", ""]
    )  # fmt: skip


def _table(columns: Sequence[str], rows: Sequence[Row], baseline: str) -> list[str]:
    """Headline figures in Markdown, marked where the paired difference from the baseline is beyond chance."""
    lines = [
        f"Values with 95 % intervals; + better and - worse than {baseline} on the same items (p < 0.05 each, not corrected for the "
        "number of rows). One training seed: the intervals are of the test clips, not of the training.",
        "",
        f"| benchmark | metric | chance | {' | '.join(columns)} |",
        "|" + "---|" * (3 + len(columns)),
    ]
    for row in rows:
        if not BENCHMARKS[row.benchmark].is_headline(row.metric):
            continue
        cells = []
        for cell, difference in zip(row.cells, row.differences, strict=True):
            if isinstance(cell, str):
                cells.append(cell)
                continue
            mark = ""
            if difference is not None and difference.p < 0.05:
                mark = " +" if (difference.value > 0) == row.higher_is_better else " -"
            cells.append(f"{cell.value:.3g} [{cell.low:.3g}, {cell.high:.3g}]{mark}")
        arrow = "↑" if row.higher_is_better else "↓"
        chance = "" if row.chance is None else f"{row.chance:.3g}"
        lines.append(f"| {row.benchmark} | {row.metric} {row.unit} {arrow} | {chance} | {' | '.join(cells)} |")
    return lines
