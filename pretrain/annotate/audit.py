"""``egoarm annotate audit``: each stage of the annotation against the truth of synthetic clips.

What is measured is defined in `measures.py` (boxes, masks, depth) and `caption_truth.py` (captions). A stage whose back-end
is the truth itself is labelled "truth" and gets no figures.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from pretrain.annotate.caption_truth import CaptionTruth, recalled, share
from pretrain.annotate.checker import check_caption, describe
from pretrain.annotate.measures import Pairs, depth_measures, detection_measures, mask_measures, match_tracks, pooled
from pretrain.annotate.overlays import Overlay, draw_overlays
from pretrain.annotate.records import Detections, Track
from pretrain.artifact import atomic_write_bytes
from pretrain.clips.schema import Clip
from pretrain.clips.store import ClipStore, open_store

# What `check=true` asks for.
LEAST_OBJECT_IOU = 0.6
LEAST_PRECISION = 0.98
STAGE_MEASURES = {
    "depth": ("depth AbsRel", "depth frame-to-frame error"),
    "detect": ("hand box precision", "hand box recall", "hand side right", "object box precision", "object box recall"),
    "track": ("hand mask IoU", "object mask IoU", "hand track survival", "object track survival"),
}
# What the later stages, captions too, take over from a stage whose back-end is the truth.
_GIVEN = {
    "depth": "depth",
    "detect": "boxes, names, sides and contact states of hands",
    "track": "masks",
}
CLAIM_TYPES = ("contact", "motion", "displacement", "relation", "acting hand", "handover", "one hand")


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """Settings of ``egoarm annotate audit``.

    Attributes:
        store: synthetic clips with their truth.
        annotated: store that ``egoarm annotate`` made of them, with its work directory; None = annotate them now, into
            <out>/annotated, with `backends`.
        out: directory of audit.json and audit.png.
        backends: of that annotation, see configs/annotate.yaml.
        clips: audit the first so many; 0 = all that are annotated.
        pictures: random clips in the picture; 0 = no picture.
        seed: which clips these are.
        workers: processes of that annotation.
        check: exit with code 1 unless the mean IoU of object masks is at least 0.6 and the fact precision of captions at
            least 0.98.
    """

    store: str
    out: str
    annotated: str | None = None
    backends: str = "classical"
    clips: int = 50
    pictures: int = 10
    seed: int = 0
    workers: int = 0
    check: bool = False

    def __post_init__(self) -> None:
        for name in ("store", "out"):
            if not getattr(self, name):
                raise ValueError(f"{name}= is empty: give a directory")
        for name in ("clips", "pictures", "seed", "workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected 0 or more")


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the stages left for one clip; None = that stage failed."""

    depth: np.ndarray | None
    depth_is_relative: bool
    detections: Detections | None
    tracks: tuple[Track, ...] | None
    captions: tuple[str, ...]
    facts: tuple[dict[str, Any], ...]
    rejected: Mapping[str, int]
    reason: str | None  # why there are no captions


@dataclass(frozen=True, kw_only=True)
class ClipAudit:
    """Measures of one clip, and the claims of its captions that are not so, in words."""

    key: str
    measures: Pairs
    false_claims: list[str] = field(default_factory=list)


def run(config: AuditConfig) -> int:
    """Annotates if asked to, measures, prints the table, writes JSON and picture.

    Returns:
        1 if `check` is set and a figure is below its limit, else 0.

    Raises:
        ValueError: stores without truth, that do not belong together, or without the work directory.
        FileNotFoundError: no such store.
    """
    annotated_path = Path(config.annotated) if config.annotated else Path(config.out) / "annotated"
    if config.annotated is None:
        from pretrain.annotate import pipeline

        pipeline.run(
            pipeline.AnnotateConfig(
                store=config.store, out=str(annotated_path), backends=config.backends, clips=config.clips,
                workers=config.workers,
            )
        )  # fmt: skip
    store, annotated = open_store(config.store), open_store(annotated_path)
    backends, hashes = _check_stores(store, annotated)
    number = min(config.clips or len(annotated), len(annotated))
    drawn = set(np.random.default_rng(config.seed).permutation(number)[: config.pictures].tolist())
    audits: list[ClipAudit] = []
    overlays: list[Overlay] = []
    rejected: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for index in tqdm(range(number), unit="clip", desc="audit", disable=None):
        truth = store.read(index)
        _check_truth(truth, store)
        found = read_found(annotated_path, annotated.read(index), hashes)
        audits.append(audit_clip(truth, found, backends))
        rejected.update(found.rejected)
        reasons[found.reason or "captioned"] += 1
        if index in drawn:
            overlays.append(_overlay(truth, found))
    report = summarise(audits, backends, rejected, reasons)
    report |= {"store": {"path": config.store, "manifest_sha256": store.manifest_sha256}}
    report |= {"annotated": {"path": str(annotated_path), "manifest_sha256": annotated.manifest_sha256}}
    print_report(report)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(out / "audit.json", json.dumps(report, indent=1, allow_nan=False).encode())
    if overlays:
        draw_overlays(overlays, out / "audit.png")
    print(f"figures: {out / 'audit.json'}" + (f"\npicture: {out / 'audit.png'}" if overlays else ""))
    failures = shortcomings(report)
    if config.check and failures:
        print("not good enough: " + "; ".join(failures))
        return 1
    return 0


def _check_stores(store: ClipStore, annotated: ClipStore) -> tuple[dict[str, str], dict[str, str]]:
    """(back-end, hash) of each stage."""
    settings = annotated.manifest.get("config", {})
    if annotated.manifest.get("kind") != "annotated" or "stage_hashes" not in settings:
        raise ValueError(f"annotated={annotated.path} was not made by egoarm annotate (its manifest says no stages)")
    source = settings["source"]["manifest_sha256"]
    if source != store.manifest_sha256:
        raise ValueError(
            f"annotated={annotated.path} was made of another store than store={store.path} "
            f"(manifest {source[:12]}, not {store.manifest_sha256[:12]})"
        )
    if not (annotated.path / "work").is_dir():
        raise ValueError(
            f"annotated={annotated.path}: its work directory is gone; the audit needs the stages' own files"
        )
    return settings["backends"], settings["stage_hashes"]


def _check_truth(clip: Clip, store: ClipStore) -> None:
    for name in ("rgb", "depth", "segmentation", "contact", "intrinsics", "world_from_camera"):
        if getattr(clip, name) is None:
            raise ValueError(
                f"store={store.path}: clip {clip.key} has no {name}; the audit needs synthetic clips with truth"
            )


def read_found(annotated: Path, clip: Clip, hashes: Mapping[str, str]) -> Found:
    """What the stages left for a clip, from the annotated store's work directory.

    Raises:
        ValueError: a file of the work directory is missing, or was made under other settings than the store.
    """
    from pretrain.annotate.stages import detections_from_json, read_record, tracks_from_json
    from pretrain.clips.codec import depth_from_mm

    results: dict[str, dict[str, Any] | None] = {}
    reason: str | None = None
    rejected: Mapping[str, int] = {}
    for stage, made_by in hashes.items():
        path = annotated / "work" / stage / f"{clip.key}.{'npz' if stage == 'depth' else 'json'}"
        record = read_record(path, made_by)
        if record is None:
            raise ValueError(f"{path} is missing or of other settings; run the same egoarm annotate again")
        results[stage] = record.result
        if stage == "generate":
            reason, rejected = record.reason, record.rejected
    depth, detect, track, generate = (results[stage] for stage in ("depth", "detect", "track", "generate"))
    return Found(
        depth=depth_from_mm(depth["depth_mm"]) if depth else None,
        depth_is_relative=bool(depth and not depth["metric"]),
        detections=detections_from_json(detect["detections"]) if detect else None,
        tracks=tracks_from_json(track["tracks"]) if track else None,
        captions=tuple(generate["captions"]) if generate else (),
        facts=tuple(generate["facts"]) if generate else (),
        rejected=rejected,
        reason=reason,
    )


def audit_clip(truth: Clip, found: Found, backends: Mapping[str, str]) -> ClipAudit:
    """Everything that is measured in one clip. Stages whose back-end is the truth are not."""
    measures: Pairs = {}
    false_claims: list[str] = []
    if found.depth is not None and backends["depth"] != "truth":
        measures |= depth_measures(truth, found.depth, relative=found.depth_is_relative)
    if backends["detect"] != "truth":
        measures |= detection_measures(truth, found.detections or {})
    if backends["track"] != "truth":
        measures |= mask_measures(truth, found.tracks or (), found.detections or {})
    measures["clips captioned"] = float(bool(found.captions)), 1
    matched = match_tracks(truth, found.tracks or ())
    if found.captions:
        false_claims = _judge_captions(truth, found, matched, measures)
    measures |= recalled(truth, found.facts, matched)
    return ClipAudit(key=truth.key, measures=measures, false_claims=false_claims)


def _judge_captions(truth: Clip, found: Found, matched: dict[int, int], measures: Pairs) -> list[str]:
    assert truth.rgb is not None
    judge = CaptionTruth(truth, matched)
    outcomes: dict[str, list[bool]] = {kind: [] for kind in CLAIM_TYPES}
    false_claims = []
    for caption in found.captions:
        verdict = check_caption(caption, truth.narration, found.facts, frames=len(truth.rgb))
        if verdict.reason is not None:
            raise ValueError(
                f"clip {truth.key}: {caption!r} does not pass this version's checker ({verdict.reason}: {verdict.detail}); "
                "it was annotated by another version: annotate it again, into a new directory"
            )
        for claim, support in zip(verdict.claims, verdict.support, strict=True):
            right = judge.holds(claim, support, found.facts)
            outcomes[claim.type].append(right)
            if not right:
                false_claims.append(f"{describe(claim)} | {caption}")
    measures |= {f"{kind} claims right": share(values) for kind, values in outcomes.items()}
    measures["caption fact precision"] = share([right for values in outcomes.values() for right in values])
    return false_claims


def summarise(
    audits: Sequence[ClipAudit], backends: Mapping[str, str], rejected: Mapping[str, int], reasons: Mapping[str, int]
) -> dict[str, Any]:
    """The report as plain JSON: figures with 95 % intervals by bootstrap over clips."""
    names = [name for names in STAGE_MEASURES.values() for name in names]
    names += ["clips captioned", "caption fact precision", *(f"{kind} claims right" for kind in CLAIM_TYPES)]
    names += [f"{kind} facts found" for kind in ("contact", "motion", "displacement", "relation")]
    clips = [audit.measures for audit in audits]
    return {
        "clips": len(audits),
        "backends": dict(backends),
        "figures": {name: figure for name in names if (figure := pooled(clips, name)) is not None},
        "rejected": dict(sorted(rejected.items())),
        "outcomes": dict(sorted(reasons.items())),
        "false_claims": {audit.key: audit.false_claims for audit in audits if audit.false_claims},
    }


def shortcomings(report: Mapping[str, Any]) -> list[str]:
    """What is below the limits of `check`; masks that are the truth's own are not held to one."""
    failures = []
    limits = [("caption fact precision", LEAST_PRECISION)]
    if report["backends"]["track"] != "truth":
        limits.append(("object mask IoU", LEAST_OBJECT_IOU))
    for name, least in limits:
        figure = report["figures"].get(name)
        if figure is None:
            failures.append(f"{name} was not measured")
        elif figure["value"] < least:
            failures.append(f"{name} is {figure['value']:.3f}, below {least:g}")
    return failures


def print_report(report: Mapping[str, Any]) -> None:
    """The table on the terminal."""
    table = Table("stage", "measure", "figure [95 %]", "n", "clips", title=f"audit of {report['clips']} clips")
    for column in table.columns:
        column.no_wrap = True
    for stage, names in STAGE_MEASURES.items():
        if report["backends"][stage] == "truth":
            table.add_row(stage, "truth: nothing to measure", "", "", "")
        else:
            _add_rows(table, stage, report, names)
        table.add_section()
    others = [name for name in report["figures"] if not any(name in names for names in STAGE_MEASURES.values())]
    _add_rows(table, "generate", report, others)
    console = Console()
    console.print(table)
    given = [words for stage, words in _GIVEN.items() if report["backends"][stage] == "truth"]
    if given:
        console.print(f"given by the truth, so not tested here: {'; '.join(given)}", soft_wrap=True)
    for title, counts in (("clips", report["outcomes"]), ("rejected captions", report["rejected"])):
        console.print(f"{title}: " + (", ".join(f"{number} {name}" for name, number in counts.items()) or "none"))
    for key, claims in report["false_claims"].items():
        for claim in claims:
            console.print(f"not so: {key}: {claim}", markup=False, soft_wrap=True)


def _add_rows(table: Table, stage: str, report: Mapping[str, Any], names: Sequence[str]) -> None:
    head = [stage, f"({report['backends'][stage]})"]
    for name in names:
        if name in report["figures"]:
            figure = report["figures"][name]
            text = f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
            table.add_row(head.pop(0) if head else "", name, text, str(figure["n"]), str(figure["clips"]))


def _overlay(truth: Clip, found: Found) -> Overlay:
    return Overlay(
        clip=truth, tracks=found.tracks or (), detections=found.detections or {}, facts=found.facts,
        text=found.captions or (f"no captions: {found.reason}",), captioned=bool(found.captions),
    )  # fmt: skip
