"""Seconds and memory of EgoM2P's generation against the authors' schedule restated plainly: python -m benchmarks.egom2p_generate

python -m benchmarks.egom2p_generate --json generate.json     # Base: an hour or more of one core, 16 GB of memory
python -m benchmarks.egom2p_generate --check                  # exits 1 when a promise below is not kept
python -m benchmarks.egom2p_generate --size tiny --tokens 640 # a trial of a minute

rgb to camera and rgb to depth of one clip, all tokens of rgb given, at the authors' settings (3 linear roar steps, guidance
2, temperature 0.01, top-p 0.8), on random weights. plain is `benchmarks.egom2p_plain`; exact and fast are the modes of
`pretrain.egom2p.generate` as `egoarm predict` runs them: exact in float32, fast in bfloat16 where the device multiplies
that. plain carries the slots of the target that are still empty, and in guidance's second pass those of the condition,
through the encoder, masked, as the authors' training does. With --more also each mode in the other precision, and
plain-dropped, which leaves empty slots out, as the authors' generation does. Each figure is from a
process of its own: its own CPU time, so that other programs disturb it less, and the peak of its resident memory as a whole,
weights and libraries included. plain has its weights in memory, as torch.load leaves them; ours map the file, so that token
tables that are not used are not read.

exact must draw plain's tokens from the same seed. Attention that is summed in another order is not equal to the last bit, so
a draw that falls on the edge between two tokens may go either way, and what is drawn after it then depends on it: it counts
as the same if each token that differs in the first step that does was drawn within rounding of another.

The arithmetic's limit is the multiplications that the exact schedule needs (counted in `operations`), at the rate of the
fastest matrix product that this machine was found to do.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from benchmarks.egom2p_plain import plain_generate
from benchmarks.peak_memory import MIB, PeakMeter, in_fresh_process
from pretrain.egom2p.generate import PUBLISHED_TARGETS, Target, generate
from pretrain.egom2p.model import SIZES, EgoM2P, EgoM2PConfig, TokenGrid, published_grids
from pretrain.egom2p.sampling import ClipRandom

TASKS = ("camera", "depth")
# Least speed-up over plain, and most memory as a share of plain's.
PROMISED = {"exact": {"camera": 3.0, "depth": 4.0}, "fast": {"camera": 8.0, "depth": 12.0}}
PROMISED_MEMORY = 0.4
SEED = 0

# A draw within this share of the total weight of another token's may go either way: rounding of the logits (about 1e-5)
# over the temperature, with room.
ROUNDING_SLACK = 0.01

PLAIN = ("plain", "plain-dropped")
RUNS = {
    "exact": {"mode": "exact"},
    "fast": {"mode": "fast", "precision": "auto"},
    "exact-bf16": {"mode": "exact", "precision": "bfloat16"},
    "fast-fp32": {"mode": "fast"},
}


def main() -> int:
    """Run the benchmark; the exit status."""
    arguments = _parse()
    torch.set_num_threads(arguments.threads)
    if arguments.one:
        print(json.dumps(_one(arguments, *arguments.one)))
        return 0
    config = _config(arguments)
    variants = ["plain", "exact", "fast", *(["plain-dropped", "exact-bf16", "fast-fp32"] if arguments.more else [])]
    with tempfile.TemporaryDirectory() as folder:
        _fresh(arguments, folder, "all", "weights")
        rate = _fresh(arguments, folder, "all", "rate")["flops_per_s"]
        rows = []
        for task in arguments.tasks:
            for variant in variants:
                rows.append({"task": task, "variant": variant, **_fresh(arguments, folder, task, variant)})
                print(f"  {task} {variant}: {rows[-1]['seconds']:.1f} s", flush=True)
        rate = max(rate, _fresh(arguments, folder, "all", "rate")["flops_per_s"])
    tasks = {
        task: _summary(config, task, [row for row in rows if row["task"] == task], rate) for task in arguments.tasks
    }
    result = {
        "size": arguments.size,
        "condition_tokens": arguments.tokens,
        "threads": arguments.threads,
        "processor": _processor(),
        "torch": torch.__version__,
        "matmul_gflops": rate / 1e9,
        "tasks": tasks,
        "kept": _kept(tasks),
    }
    _print(result)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
        print(f"written: {arguments.json}")
    return int(arguments.check and not all(result["kept"].values()))


# ------------------------------------------------------------------------------------------------------------ measuring


def _one(arguments: argparse.Namespace, task: str, variant: str) -> dict[str, Any]:
    """One figure, in this process."""
    weights = arguments.folder / "model.safetensors"
    if variant == "rate":
        return {"flops_per_s": _matmul_rate(_config(arguments))}
    torch.manual_seed(SEED)
    model = EgoM2P(_config(arguments)).eval()
    if variant == "weights":
        save_file(model.state_dict(), weights)
        return {}
    # Mapped weights take memory as they are read.
    model.load_state_dict(load_file(weights), assign=variant not in PLAIN)
    grid = model.config.grids["rgb"]
    given = {"rgb": torch.randint(grid.vocabulary, (1, grid.tokens), generator=torch.Generator().manual_seed(SEED))}
    target = PUBLISHED_TARGETS[task]
    # Libraries load their kernels, with a model too small to count.
    _warm_up(target, variant)
    slack: list[float] = []
    meter, began, on_the_clock = PeakMeter(torch.device("cpu")), time.process_time(), time.perf_counter()
    if variant in PLAIN:
        tokens, found = plain_generate(model, given, [target], seed=SEED, encode_padding=variant == "plain")
        slack = found[task][0].tolist()
    else:
        tokens = generate(model, given, [target], seed=SEED, **RUNS[variant])
    return {
        "seconds": time.process_time() - began,
        "wall_seconds": time.perf_counter() - on_the_clock,
        "peak_mib": (meter.before + meter.peak()) / MIB,
        "before_mib": meter.before / MIB,
        "tokens": tokens[task][0].tolist(),
        "slack": slack,
    }


def _warm_up(target: Target, variant: str) -> None:
    grids = {"rgb": TokenGrid(shape=(1, 2, 2), vocabulary=8), target.modality: TokenGrid(shape=(4,), vocabulary=8)}
    if target.modality == "depth":
        grids["depth"] = grids["rgb"]
    model, given = EgoM2P(EgoM2PConfig.of_size("nano", grids)), {"rgb": torch.zeros(1, 4, dtype=torch.int64)}
    if variant in PLAIN:
        plain_generate(model, given, [target])
    else:
        generate(model, given, [target], **RUNS[variant])


def _matmul_rate(config: EgoM2PConfig) -> float:
    """Operations a second of the fastest of the model's matrix products, each the best of some tries."""
    best = 0.0
    for rows, inner, outer in ((2048, config.width, config.hidden), (2048, config.hidden, config.width), (1024,) * 3):
        x, w = torch.randn(rows, inner), torch.randn(outer, inner)
        F.linear(x, w)
        for _ in range(8):
            began = time.process_time()
            F.linear(x, w)
            best = max(best, 2 * rows * inner * outer / (time.process_time() - began))
    return best


def _fresh(arguments: argparse.Namespace, folder: str, task: str, variant: str) -> dict[str, Any]:
    words = ["--one", task, variant, "--folder", folder, "--size", arguments.size, "--tokens", str(arguments.tokens)]
    words += ["--threads", str(arguments.threads)]
    return in_fresh_process("benchmarks.egom2p_generate", words, threads=arguments.threads)


def _config(arguments: argparse.Namespace) -> EgoM2PConfig:
    grids = published_grids()
    if arguments.tokens != grids["rgb"].tokens:
        # What they look like does not change what they cost.
        video = TokenGrid(shape=(1, 1, arguments.tokens), vocabulary=grids["rgb"].vocabulary)
        grids |= {"rgb": video, "depth": video}
    return EgoM2PConfig.of_size(arguments.size, grids)


# ----------------------------------------------------------------------------------------------------------- arithmetic


def operations(config: EgoM2PConfig, condition: int, target: Target, *, mode: str = "exact") -> float:
    """Multiplications and additions of matrix products that one clip's roar schedule needs: nothing on padding, logits of
    the drawn places only; mode "fast": without guidance, in one step, read once."""
    width, hidden, grid = config.width, config.hidden, config.grids[target.modality]
    mlp = 3 * width * hidden

    def encode(count: int) -> float:
        layer = 2 * count * (4 * width**2 + mlp) + 4 * count**2 * width
        return config.encoder_layers * layer + 2 * count * width**2

    def decode(count: int, context: int) -> float:
        layer = 2 * count * (4 * width**2 + mlp) + 4 * count**2 * width
        if context:
            layer += 4 * width**2 * (count + context) + 4 * count * context * width
        return config.decoder_layers * layer

    if mode == "fast":
        return encode(condition) + decode(grid.tokens, condition) + 2 * grid.tokens * width * grid.vocabulary
    total, written = 0.0, 0
    for count, _ in target.plan(grid.tokens):
        for context in (condition + written, written)[: 1 if target.guidance == 1 else 2]:
            total += encode(context) + decode(count, context) + 2 * count * width * grid.vocabulary
        written += count
    return total


# ------------------------------------------------------------------------------------------------------------ comparing


def _summary(config: EgoM2PConfig, task: str, rows: list[dict[str, Any]], rate: float) -> dict[str, Any]:
    """Ratios of one task; the tokens are compared here and not handed on."""
    plain = next(row for row in rows if row["variant"] == "plain")
    condition, target = config.grids["rgb"].tokens, PUBLISHED_TARGETS[task]
    out: dict[str, Any] = {}
    for row in rows:
        numbers = {key: row[key] for key in ("seconds", "wall_seconds", "peak_mib", "before_mib")}
        numbers["faster"] = plain["seconds"] / row["seconds"]
        numbers["memory"] = row["peak_mib"] / plain["peak_mib"]
        if row["variant"] in ("exact", "fast-fp32"):
            numbers["tflop"] = operations(config, condition, target, mode=RUNS[row["variant"]]["mode"]) / 1e12
            numbers["limit_seconds"] = numbers["tflop"] * 1e12 / rate
            numbers["share_of_limit"] = numbers["limit_seconds"] / row["seconds"]
        numbers["equal_tokens"] = sum(a == b for a, b in zip(row["tokens"], plain["tokens"], strict=True))
        out[row["variant"]] = numbers
    exact = next(row for row in rows if row["variant"] == "exact")
    differing = first_differences(target, plain["tokens"], exact["tokens"])
    out["tokens"] = len(plain["tokens"])
    out["first_differences"] = [plain["slack"][place] for place in differing]
    out["same_tokens"] = all(slack < ROUNDING_SLACK for slack in out["first_differences"])
    return out


def first_differences(target: Target, plain: list[int], ours: list[int]) -> list[int]:
    """Places of the tokens that differ in the first roar step in which any does: until then both read the same."""
    order = ClipRandom([SEED]).order(len(plain))[0].tolist()
    start = 0
    for count, _ in target.plan(len(plain)):
        differing = [place for place in order[start : start + count] if plain[place] != ours[place]]
        if differing:
            return differing
        start += count
    return []


def _kept(tasks: dict[str, Any]) -> dict[str, bool]:
    """Promise -> whether it is kept."""
    kept = {}
    for task, found in tasks.items():
        for mode, promised in PROMISED.items():
            kept[f"{task} {mode} at least {promised[task]:g} times as fast"] = found[mode]["faster"] >= promised[task]
        kept[f"{task} exact at most {PROMISED_MEMORY:g} of the memory"] = found["exact"]["memory"] <= PROMISED_MEMORY
        kept[f"{task} exact draws the same tokens"] = found["same_tokens"]
    return kept


def _print(result: dict[str, Any]) -> None:
    print(
        f"EgoM2P-{result['size']}, rgb of {result['condition_tokens']} tokens given, 1 clip, {result['threads']} threads of "
        f"{result['processor']}, matrix products at {result['matmul_gflops']:.0f} GFLOP/s"
    )
    print(
        f"{'':22}{'CPU s':>9}{'peak MiB':>10}{'faster':>8}{'memory':>8}{'limit s':>9}{'of limit':>9}{'equal tokens':>14}"
    )
    for task, found in result["tasks"].items():
        for variant in (*PLAIN[:1], *RUNS, *PLAIN[1:]):
            if variant not in found:
                continue
            row = found[variant]
            limit = f"{row['limit_seconds']:>9.1f}{row['share_of_limit']:>9.0%}" if "tflop" in row else " " * 18
            print(
                f"rgb>{task} {variant:13}".ljust(22)
                + f"{row['seconds']:>9.1f}{row['peak_mib']:>10.0f}{row['faster']:>8.2f}"
                f"{row['memory']:>8.2f}{limit}{row['equal_tokens']:>7} of {found['tokens']}"
            )
    for task, found in result["tasks"].items():
        if found["first_differences"]:
            print(
                f"rgb>{task}: {len(found['first_differences'])} draws of the first step that differs, the farthest "
                f"{max(found['first_differences']):.1e} of the weight from plain's token (rounding: below {ROUNDING_SLACK:g})"
            )
    for promise, is_kept in result["kept"].items():
        print(f"{'kept' if is_kept else 'NOT KEPT'}: {promise}")


def _processor() -> str:
    """The processor's name, which a speed means nothing without."""
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--size", default="base", choices=[name for name in SIZES], help="of the model")
    parser.add_argument("--tokens", type=int, default=5120, help="of rgb and of depth; 5120 are published")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS, help="what is generated from rgb")
    parser.add_argument(
        "--more", action="store_true", help="also each mode in the other precision, and plain without padding"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--check", action="store_true", help="exit 1 when a promise is not kept")
    parser.add_argument("--one", nargs=2, metavar=("TASK", "VARIANT"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.tokens < 3:
        parser.error(f"--tokens {arguments.tokens}: give at least 3, a token a step")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
