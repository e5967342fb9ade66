"""Results of several encoders side by side: paired differences, the table, and the file they are kept in."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from pretrain.artifact import atomic_write_text
from pretrain.downstream.results import BenchmarkResult, Metric
from pretrain.downstream.statistics import PairedDifference, paired_difference

FORMAT = "egoarm-probe"
FORMAT_VERSION = 1
# Significant digits of the numbers in the file.
_DIGITS = 12


@dataclass(frozen=True, kw_only=True)
class Row:
    """One benchmark and metric: for each encoder, in the order of the columns, its figure or why there is none, and its
    difference from the baseline (None for the baseline itself and where one of them has no items)."""

    benchmark: str
    metric: str
    unit: str
    higher_is_better: bool
    chance: float | None
    cells: tuple[Metric | str, ...]
    differences: tuple[PairedDifference | None, ...]


def check_protocols(results: Sequence[BenchmarkResult]) -> None:
    """Raises ValueError, naming what differs, unless the results of each benchmark have one protocol."""
    first: dict[str, BenchmarkResult] = {}
    for result in results:
        other = first.setdefault(result.benchmark, result)
        if dict(other.protocol) != dict(result.protocol):
            names = sorted(other.protocol.keys() | result.protocol.keys())
            differing = [name for name in names if other.protocol.get(name) != result.protocol.get(name)]
            what = "; ".join(f"{n}: {other.protocol.get(n)!r} and {result.protocol.get(n)!r}" for n in differing)
            raise ValueError(
                f"{result.benchmark} of {other.encoder} and of {result.encoder} are of different protocols and cannot be "
                f"compared ({what}): measure both in the same way"
            )


def compare(results: Sequence[BenchmarkResult], baseline: str) -> tuple[list[str], list[Row]]:
    """(names of the columns, rows in the order of the results).

    Raises:
        ValueError: different protocols, no such baseline, or an encoder with two results of one benchmark.
    """
    check_protocols(results)
    encoders = list(dict.fromkeys(result.encoder for result in results))
    if baseline not in encoders:
        raise ValueError(f"baseline={baseline}: expected one of {', '.join(encoders)}")
    by_place: dict[tuple[str, str], BenchmarkResult] = {}
    for result in results:
        if (result.benchmark, result.encoder) in by_place:
            raise ValueError(f"{result.benchmark} of {result.encoder} is there twice")
        by_place[result.benchmark, result.encoder] = result
    rows = []
    for benchmark in dict.fromkeys(result.benchmark for result in results):
        own = [by_place.get((benchmark, encoder)) for encoder in encoders]
        names = dict.fromkeys(metric.name for result in own if result is not None for metric in result.metrics)
        for name in names:
            rows.append(_row(benchmark, name, own, encoders.index(baseline)))
        if not names:
            cells = tuple(_reason(result, "") for result in own)
            rows.append(
                Row(
                    benchmark=benchmark, metric="", unit="", higher_is_better=True, chance=None, cells=cells,
                    differences=(None,) * len(cells),
                )
            )  # fmt: skip
    return encoders, rows


def _row(benchmark: str, name: str, results: Sequence[BenchmarkResult | None], baseline: int) -> Row:
    cells: list[Metric | str] = []
    for result in results:
        found = None if result is None else next((m for m in result.metrics if m.name == name), None)
        cells.append(_reason(result, name) if found is None else found)
    some = next(cell for cell in cells if isinstance(cell, Metric))
    base = cells[baseline]
    differences = [
        paired_difference(cell, base)
        if place != baseline and isinstance(cell, Metric) and isinstance(base, Metric)
        else None
        for place, cell in enumerate(cells)
    ]
    chance = base.chance if isinstance(base, Metric) else some.chance
    return Row(
        benchmark=benchmark,
        metric=name,
        unit=some.unit,
        higher_is_better=some.higher_is_better,
        chance=chance,
        cells=tuple(cells),
        differences=tuple(differences),
    )


def _reason(result: BenchmarkResult | None, metric: str) -> str:
    if result is None:
        return "not measured"
    return result.missing.get(metric) or result.missing.get("") or "not measured"


# ------------------------------------------------------------------------------------------------------------- printing


def print_table(encoders: Sequence[str], rows: Sequence[Row], baseline: str, console: Console | None = None) -> None:
    """A row a figure: value [95 % interval] of each encoder, and below it the difference from the baseline with interval and
    p. ↑ and ↓ say which direction is better."""
    console = console or Console()
    if not console.is_terminal:
        # A file has no width; a column must not be cut short.
        console.width = max(console.width, 46 + 34 * len(encoders))
    table = Table(title="egoarm probe", caption_justify="left", show_lines=False)
    table.add_column("benchmark")
    table.add_column("metric")
    table.add_column("chance", justify="right")
    for encoder in encoders:
        table.add_column(
            encoder + (" (baseline)" if encoder == baseline and len(encoders) > 1 else ""), overflow="fold"
        )
    last = ""
    for row in rows:
        if last and row.benchmark != last:
            table.add_section()
        arrow = "↑" if row.higher_is_better else "↓"
        unit = f" {row.unit}" if row.unit else ""
        chance = "" if row.chance is None else _figure(row.chance)
        cells = [_cell(cell, difference, row) for cell, difference in zip(row.cells, row.differences, strict=True)]
        table.add_row(
            row.benchmark if row.benchmark != last else "",
            f"{row.metric}{unit} {arrow}" if row.metric else "",
            chance,
            *cells,
        )
        last = row.benchmark
    console.print(table)
    if len(encoders) > 1:
        console.print(
            f"[ ]: 95 % interval. Δ: difference from {baseline} on the same items, its 95 % interval by a paired bootstrap, "
            "and p of a sign-flip test, not corrected for the number of rows. Bold: better, p < 0.05.",
            markup=False,
            style="dim",
        )


def _cell(cell: Metric | str, difference: PairedDifference | None, row: Row) -> str:
    from rich.markup import escape

    if isinstance(cell, str):
        return f"[dim]{escape(cell)}[/dim]"
    text = escape(f"{_figure(cell.value)} [{_figure(cell.low)}, {_figure(cell.high)}]")
    if difference is None:
        return text
    sign = difference.value if row.higher_is_better else -difference.value
    delta = escape(f"Δ {difference.value:+.3g} [{difference.low:+.3g}, {difference.high:+.3g}] p={_p(difference.p)}")
    style = "dim"
    if difference.p < 0.05:
        style = "bold green" if sign > 0 else "red"
    return f"{text}\n[{style}]{delta}[/{style}]"


def _figure(value: float) -> str:
    if not math.isfinite(value):
        return "-"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"


def _p(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.2g}"


# ----------------------------------------------------------------------------------------------------------------- file


def save_results(path: Path, results: Sequence[BenchmarkResult], baseline: str, provenance: Mapping[str, Any]) -> None:
    """Writes the results with their items and the paired differences as JSON, whole or not at all."""
    encoders, rows = compare(results, baseline)
    document = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "baseline": baseline,
        "provenance": dict(provenance),
        "differences": [
            {"benchmark": row.benchmark, "metric": row.metric, "encoder": encoder, **_rounded(vars(difference))}
            for row in rows
            for encoder, difference in zip(encoders, row.differences, strict=True)
            if difference is not None
        ],
        "results": [_result_json(result) for result in results],
    }
    atomic_write_text(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def load_results(path: str | Path) -> list[BenchmarkResult]:
    """The results of an earlier `egoarm probe`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, or of another format version.
    """
    path = Path(path)
    try:
        document = json.loads(path.read_text())
        if document["format"] != FORMAT or document["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format {document['format']!r} version {document['format_version']!r}")
        return [_result_of(entry) for entry in document["results"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a file of results that egoarm probe of this version writes ({type(error).__name__}: {error})"
        ) from None


def _result_json(result: BenchmarkResult) -> dict[str, Any]:
    return {
        "benchmark": result.benchmark,
        "encoder": result.encoder,
        "encoder_sha256": result.encoder_sha256,
        "protocol": dict(result.protocol),
        "notes": list(result.notes),
        "missing": dict(result.missing),
        "metrics": [
            {
                **_rounded(
                    {name: getattr(metric, name) for name in ("name", "value", "low", "high", "unit", "chance")}
                ),
                "higher_is_better": metric.higher_is_better,
                "items": _column(metric.items),
                "groups": _column(metric.groups),
                "strata": _column(metric.strata),
            }
            for metric in result.metrics
        ],
    }


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: a figure that is not finite is null."""
    return {
        name: (float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None) if isinstance(value, float) else value
        for name, value in values.items()
    }


def _column(values: np.ndarray | None) -> list[Any] | None:
    if values is None:
        return None
    if values.dtype.kind != "f":
        return values.tolist()
    return [float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None for value in values.tolist()]


def _result_of(entry: Mapping[str, Any]) -> BenchmarkResult:
    metrics = []
    for metric in entry["metrics"]:
        items = metric["items"]
        metrics.append(
            Metric(
                **{name: metric[name] for name in ("name", "unit", "chance", "higher_is_better")},
                **{name: math.nan if metric[name] is None else metric[name] for name in ("value", "low", "high")},
                items=None if items is None else np.array([math.nan if item is None else item for item in items]),
                **{name: None if metric[name] is None else np.array(metric[name]) for name in ("groups", "strata")},
            )
        )
    return BenchmarkResult(
        benchmark=entry["benchmark"],
        encoder=entry["encoder"],
        encoder_sha256=entry["encoder_sha256"],
        metrics=tuple(metrics),
        protocol=entry["protocol"],
        notes=tuple(entry["notes"]),
        missing=entry["missing"],
    )
