"""`egoarm pretrain egom2p-chain`: clips, tokenizers, tokens, EgoM2P and its four tasks, published as one page by one command.

Every part is the command that stands alone, with the same resuming: what is finished is skipped, what was stopped goes on.
"""

import dataclasses
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.artifact import atomic_write_bytes, atomic_write_text
from pretrain.checkpoints import read_metrics
from pretrain.clips.store import open_store
from pretrain.clips.synth import SynthConfig, run_synth
from pretrain.downstream.comparison import compare, load_results
from pretrain.downstream.four_tasks_probe import BLIND, SAMPLED
from pretrain.downstream.probe import RESULTS_FILE, ProbeConfig
from pretrain.downstream.probe import run as probe
from pretrain.downstream.results import BenchmarkResult
from pretrain.downstream.statistics import PairedDifference
from pretrain.egom2p.bundle import load_egom2p
from pretrain.egom2p.predict import EXACT, FAST, GLANCE, MODES, PredictConfig
from pretrain.egom2p.predict import run as predict
from pretrain.egom2p.tokenizers.store import TokenStoreConfig
from pretrain.egom2p.tokenizers.store import run as store_tokens
from pretrain.egom2p.tokenizers.train import TOKENIZER_DIRECTORY, TokenizerTrainConfig
from pretrain.egom2p.tokenizers.train import run as train_tokenizer
from pretrain.egom2p.train import VALIDATION_FILE, EgoM2PTrainConfig
from pretrain.egom2p.train import run as pretrain

# What a mode is.
_HOW = {
    EXACT: "float32; draws by the authors' schedule",
    FAST: "bfloat16; draws in one step",
    GLANCE: "bfloat16; draws in one step; of the video that is given only the first and the last frame are read, every other token of each",
}
EGOM2P, UNTRAINED = "EgoM2P", "untrained"


@dataclass(frozen=True, kw_only=True)
class ChainConfig:
    """Settings of `egoarm pretrain egom2p-chain`.

    Attributes:
        out: directory of clips, tokenizers, tokens, the model and the measurements.
        results: directory that gets the small files for publication.
        clips: the store that the tokenizers learn from, and the model; more: further scenes that the model alone learns from; heldout: scenes
            that nothing is trained on. What is not there is made.
        tokenizers: name -> its training; `data` and `out` are set here.
        pretrain: of the model; `tokens`, `tokenizers` and `out` are set here.
        tokenize_threads: CPU threads of encoding the store; 0 = torch's default.
        task_clips: held-out clips that the four tasks are measured on; 0 = all.
        pictures: held-out clips whose predictions are drawn; the first is published.
        measure: false only trains.
    """

    out: str
    results: str
    clips: SynthConfig
    more: SynthConfig
    heldout: SynthConfig
    tokenizers: dict[str, TokenizerTrainConfig]
    pretrain: EgoM2PTrainConfig
    tokenize_threads: int = 0
    task_clips: int = 0
    pictures: int = 3
    measure: bool = True

    def __post_init__(self) -> None:
        if self.heldout.seed in (self.clips.seed, self.more.seed):
            raise ValueError(f"heldout.seed={self.heldout.seed} is that of the clips to train on: choose another")
        if self.clips.seed == self.more.seed:
            raise ValueError(f"more.seed={self.more.seed} is that of clips: the same scenes once more; choose another")
        if not self.tokenizers:
            raise ValueError("tokenizers: expected at least one")
        if self.task_clips < 0:
            raise ValueError(f"task_clips: expected at least 0, got {self.task_clips}")
        if self.pictures < 1:
            raise ValueError(f"pictures: expected at least 1, got {self.pictures}")

    def tokenizer_of(self, name: str) -> TokenizerTrainConfig:
        return dataclasses.replace(self.tokenizers[name], data=self.clips.out, out=f"{self.out}/tokenizer-{name}")

    @property
    def tokenizer_paths(self) -> tuple[str, ...]:
        return tuple(f"{self.tokenizer_of(name).out}/{TOKENIZER_DIRECTORY}" for name in self.tokenizers)

    @property
    def tokens(self) -> tuple[TokenStoreConfig, ...]:
        """Of both stores that the model learns from."""
        stores = {"tokens": self.clips.out, "tokens-more": self.more.out}
        return tuple(
            TokenStoreConfig(
                data=data, out=f"{self.out}/{name}", tokenizers=self.tokenizer_paths, threads=self.tokenize_threads
            )
            for name, data in stores.items()
        )

    @property
    def model(self) -> EgoM2PTrainConfig:
        return dataclasses.replace(
            self.pretrain,
            tokens=tuple(store.out for store in self.tokens),
            tokenizers=self.tokenizer_paths,
            out=f"{self.out}/model",
        )


def run(config: ChainConfig) -> None:
    """Makes what is not there yet, measures it on the held-out scenes, and writes config.results."""
    run_synth(config.clips)
    run_synth(config.more)
    for name in config.tokenizers:
        train_tokenizer(config.tokenizer_of(name))
    for store in config.tokens:
        store_tokens(store)
    pretrain(config.model)
    if not config.measure:
        return
    run_synth(config.heldout)
    out, results = Path(config.out), Path(config.results)
    results.mkdir(parents=True, exist_ok=True)
    model = config.model.out
    bundle = load_egom2p(model)
    for mode in MODES:
        measured = out / f"four-tasks-{mode}" / RESULTS_FILE
        if _is_of(measured, config, bundle.sha256):
            print(f"four-tasks, {mode} mode: measured already: {measured}")
            continue
        probe(
            ProbeConfig(
                encoder=(model, f"random:{model}"),
                names=(EGOM2P, UNTRAINED),
                benchmark="four-tasks",
                data=config.heldout.out,
                clips=config.task_clips,
                out=str(measured.parent),
                baseline=EGOM2P,
                mode=mode,
                threads=config.pretrain.trainer.threads,
            )
        )
    for mode in MODES:
        shutil.copyfile(out / f"four-tasks-{mode}" / RESULTS_FILE, results / f"four-tasks-{mode}.json")
    known = bundle.model.config.names
    want = tuple(name for name in ("depth", "gaze", "camera", "hands") if name in known)
    predict(
        PredictConfig(
            checkpoint=model,
            clip=config.heldout.out,
            clips=config.pictures,
            given=("rgb",),
            want=want,
            out=str(out / "prediction"),
        )
    )
    record = json.loads((out / "prediction/prediction.json").read_text())
    shutil.copyfile(out / "prediction" / record["clips"][0] / "picture.png", results / "prediction.png")
    atomic_write_bytes(results / "curves.png", _curves(config))
    atomic_write_text(results / "README.md", _page(config, results))
    print(f"EgoM2P's chain: {results / 'README.md'}")


# ---------------------------------------------------------------------------------------------------------- publication


def _curves(config: ChainConfig) -> bytes:
    """Training loss of each tokenizer, and of each modality of the model."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    runs = {name: Path(config.tokenizer_of(name).out) for name in config.tokenizers}
    figure, axes = plt.subplots(1, len(runs) + 1, figsize=(4.0 * (len(runs) + 1), 3.4), layout="constrained")
    for axis, (name, place) in zip(axes, runs.items(), strict=False):
        rows = read_metrics(place / "metrics.jsonl")
        axis.plot([row["step"] for row in rows], [row["loss"] for row in rows], linewidth=1)
        axis.set_title(f"tokenizer {name}: loss")
        axis.set_xlabel("step")
        axis.set_yscale("log")
    rows = read_metrics(Path(config.model.out) / "metrics.jsonl")
    for name in load_egom2p(config.model.out).model.config.names:
        points = [(row["step"] * config.model.trainer.batch_size, row[name]) for row in rows if name in row]
        axes[-1].plot(*zip(*points, strict=True), linewidth=1, label=name)
    axes[-1].set_title("EgoM2P: cross-entropy")
    axes[-1].set_xlabel("clips seen")
    axes[-1].legend(frameon=False, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return buffer.getvalue()


def _is_of(measured: Path, config: ChainConfig, model_sha256: str) -> bool:
    """Whether a file of results is of this model and these held-out clips."""
    if not measured.exists():
        return False
    provenance, protocol = json.loads(measured.read_text())["provenance"], load_results(measured)[0].protocol
    store = open_store(config.heldout.out)
    could_be_scored = len(store) - protocol["fit_items"]
    return (
        provenance["parents"].get(EGOM2P) == model_sha256
        and provenance["data"].get("four-tasks") == store.manifest_sha256
        and protocol["items"] == min(config.task_clips or could_be_scored, could_be_scored)
    )


def _page(config: ChainConfig, results: Path) -> str:
    """Everything from files that the parts wrote."""
    bundle = load_egom2p(config.model.out)
    trainer = config.model.trainer
    lines = [
        "# EgoM2P on synthetic clips",
        "",
        f"Made by `egoarm pretrain egom2p-chain` from commit {bundle.provenance['git_sha']}. The model saw {trainer.steps * trainer.batch_size:,} clips in "
        f"{bundle.provenance['wall_time_s'] / 3600:.1f} h{_start(config)}. The tokenizers' and the model's validation clips are held out of the store that was "
        "trained on; the four tasks are measured on other scenes. One training seed: intervals are of the test clips.",
        "",
        "## Tokenizers: reconstruction of held-out clips",
        "",
        "| modality | clips | squared error | per-clip mean's | better on | in units (per-clip mean's) | codes used | perplexity |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in config.tokenizers:
        report = json.loads((Path(config.tokenizer_of(name).out) / VALIDATION_FILE).read_text())
        lines += [_tokenizer_row(modality, figures) for modality, figures in report.items()]
    lines += [
        "",
        "## The model: tokens of held-out clips, masked as in training",
        "",
        "Gain: cross-entropy given another clip's tokens at the same places minus given the clip's own, with its 95 % interval over clips. A "
        "model that does not use what it is given has none.",
        "",
        "| modality | cross-entropy | of the tokens' frequencies | gain | right | tokens |",
        "|---|---|---|---|---|---|",
    ]
    for name, figures in json.loads((Path(config.model.out) / VALIDATION_FILE).read_text()).items():
        lines.append(
            f"| {name} | {figures['loss']:.3f} | {figures['chance']:.3f} | {_gain_cell(figures)} | {figures['accuracy']:.1%} | {figures['tokens']:,} |"
        )
    lines += ["", "![curves](curves.png)", "", "![one held-out clip](prediction.png)", ""]
    for mode in MODES:
        lines += _four_tasks(results / f"four-tasks-{mode}.json", mode)
    return "\n".join(lines) + "\n"


def _start(config: ChainConfig) -> str:
    return f", after what {config.pretrain.init} had seen, from which it went on" if config.pretrain.init else ""


def _gain_cell(figures: Mapping[str, float]) -> str:
    """Bold where the interval lies above 0; a run from before there was a gain has none."""
    if "gain" not in figures:
        return "-"
    text = f"{figures['gain']:+.4f} [{figures['gain_low']:+.4f}, {figures['gain_high']:+.4f}]"
    return f"**{text}**" if figures["gain_low"] > 0 else text


def _tokenizer_row(modality: str, figures: Mapping[str, Any]) -> str:
    units = "; ".join(
        f"{name} {value:.3g} ({figures['physical_clip_mean'][name]:.3g})" for name, value in figures["physical"].items()
    )
    return (
        f"| {modality} | {figures['clips']} | {figures['mse']:.3g} | {figures['mse_clip_mean']:.3g} | {figures['clips_better']} | {units} | "
        f"{figures['codes_used']} of {figures['vocabulary']} | {figures['perplexity']:.0f} |"
    )


def _four_tasks(path: Path, mode: str) -> list[str]:
    results = load_results(path)
    lines = [
        f"## The four tasks, {mode} mode",
        "",
        f"{_HOW[mode].capitalize()}. {EGOM2P} is the mean of what the model thinks possible; `{SAMPLED.removeprefix(', ')}` is a draw; `{BLIND.removeprefix(', ')}`: the mean when "
        f"another clip stands in for what is given: where that is as good, the model does not use what it is given. In the second table of each task "
        f"{EGOM2P} minus each method on the same clips, with 95 % intervals of a paired bootstrap; bold: better or worse beyond chance.",
        "",
    ]
    for benchmark in dict.fromkeys(result.benchmark for result in results):
        own = [result for result in results if result.benchmark == benchmark]
        names = list(dict.fromkeys(metric.name for result in own for metric in result.metrics))
        lines += [
            f"{benchmark} ({own[0].protocol['items']} clips; values with 95 % intervals)",
            "",
            f"| method | {' | '.join(names)} |",
            "|" + "---|" * (1 + len(names)),
        ]
        lines += [_method_row(result.encoder, result.metrics, names) for result in own]
        lines += ["", *_difference_table(own), ""]
    return lines


def _difference_table(results: Sequence[BenchmarkResult]) -> list[str]:
    """EgoM2P minus each other method, as `egoarm probe` pairs them; a row a method that has a figure."""
    encoders, rows = compare(results, EGOM2P)
    rows = [row for row in rows if row.metric and any(row.differences)]
    lines = [f"| {EGOM2P} minus | {' | '.join(row.metric for row in rows)} |", "|" + "---|" * (1 + len(rows))]
    for place, method in enumerate(encoders):
        if any(row.differences[place] for row in rows):
            cells = [_difference_cell(row.differences[place], row.higher_is_better) for row in rows]
            lines.append(f"| {method} | {' | '.join(cells)} |")
    return lines


def _difference_cell(difference: PairedDifference | None, higher_is_better: bool) -> str:
    """Turned round: what is kept is the method minus EgoM2P."""
    if difference is None:
        return "-"
    text = f"{-difference.value:+.3g} [{-difference.high:+.3g}, {-difference.low:+.3g}]"
    if difference.low <= 0 <= difference.high:
        return text
    return f"**{text}, {'better' if (difference.value < 0) == higher_is_better else 'worse'}**"


def _method_row(method: str, metrics: Sequence[Any], names: Sequence[str]) -> str:
    by_name = {metric.name: metric for metric in metrics}
    cells = [
        f"{by_name[name].value:.3g} [{by_name[name].low:.3g}, {by_name[name].high:.3g}]" if name in by_name else "-"
        for name in names
    ]
    return f"| {method} | {' | '.join(cells)} |"
