"""The audit's measures on cases worked by hand, and the whole command on a small store with truth."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrain.annotate.audit import AuditConfig, run, shortcomings
from pretrain.annotate.caption_truth import CaptionTruth, recalled
from pretrain.annotate.checker import check_caption
from pretrain.annotate.facts import spatial_facts
from pretrain.annotate.measures import (
    box_iou,
    depth_measures,
    detection_measures,
    mask_measures,
    match_tracks,
    pooled,
    truth_scene,
)
from pretrain.annotate.overlays import draw_overlays
from pretrain.annotate.records import Detection, encode_mask
from pretrain.clips.build import build_store
from pretrain.clips.schema import Clip
from tests.pretrain.annotate_scenes import FRAMES, make_scene, reaching, still


def make_truth(index: int = 0, *, other: float = 0.2) -> Clip:
    """A left hand reaches the red can; a blue box stands to its right. With the simulator's kind of truth."""
    shift = 0.01 * (index % 3)
    scene = make_scene({"left hand": reaching(-0.24 + shift), "red can": still(0.0), "blue box": still(other)})
    ids = np.zeros((FRAMES, *scene.clip.rgb.shape[1:3]), np.uint8)
    for track in scene.tracks:
        for frame in range(FRAMES):
            mask = track.mask(frame)
            if mask is not None:
                ids[frame][mask] = track.id
    facts: tuple[dict[str, Any], ...] = (
        {"type": "contact", "hand": "left", "object": "red can", "object_id": 3, "start_frame": 4, "end_frame": 8},
        {"type": "motion", "hand": "left", "object": "red can", "object_id": 3, "direction": "approaches",
         "start_frame": 0, "end_frame": 4, "distance_m": [0.17, 0.0]},
        {"type": "displacement", "object": "red can", "object_id": 3, "direction": "up", "amount": 0.1, "unit": "m"},
        {"type": "relation", "frame": 0, "subject": "red can", "subject_id": 3, "relation": "left of",
         "object": "blue box", "object_id": 4, "margin": 20.0},
    )  # fmt: skip
    contact = np.zeros((FRAMES, 2), np.uint8)
    contact[4:, 0] = 3
    return scene.clip.replace(
        key=f"made-up-{index}", segmentation=ids, contact=contact, facts=facts,
        labels={1: "left hand", 2: "right hand", 3: "red can", 4: "blue box"}, captions=("C picks up the red can",),
        meta={"target": 3, "side": "left", "action": "pick up"},
    )  # fmt: skip


def test_perfect_masks_get_one_and_lost_ones_nought() -> None:
    truth = make_truth()
    tracks = truth_scene(truth).tracks
    measures = mask_measures(truth, tracks, {})
    assert measures["hand mask IoU"] == (1.0, 1), "the right hand is never seen"
    assert measures["object mask IoU"] == (1.0, 1), "the box is not held"
    assert measures["object track survival"] == (FRAMES - 1, FRAMES - 1)
    lost = [track for track in tracks if track.label != "red can"]
    assert mask_measures(truth, lost, {})["object mask IoU"] == (0.0, 1)


def test_half_a_mask_has_half_the_iou_and_does_not_survive() -> None:
    truth = make_truth()
    can = next(track for track in truth_scene(truth).tracks if track.label == "red can")
    mask = can.mask(0)
    assert mask is not None
    upper = mask.copy()
    upper[np.nonzero(mask)[0].min() + mask.any(axis=1).sum() // 2 :] = False
    share = upper.sum() / mask.sum()
    broken = replace(can, masks=(encode_mask(upper),) * FRAMES)
    measures = mask_measures(truth, [broken], {})
    assert measures["object mask IoU"][0] == pytest.approx(share)
    contact = Detection(kind="hand", box_xyxy=(0, 0, 5, 5), score=1.0, side="left", contact="portable")
    assert mask_measures(truth, [broken], {4: (contact,)})["object track survival"][1] == FRAMES - 5


def test_nameless_tracks_are_matched_by_overlap() -> None:
    truth = make_truth()
    tracks = [
        replace(track, label="", id=track.id + 7) for track in truth_scene(truth).tracks if track.kind == "object"
    ]
    assert match_tracks(truth, tracks) == {10: 3, 11: 4}


def test_boxes() -> None:
    truth = make_truth()
    rows, columns = np.nonzero(truth.segmentation[5] == 3)
    box = (float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1))
    good = Detection(kind="object", box_xyxy=box, score=0.9, held_by="left")
    stray = replace(good, box_xyxy=(0.0, 0.0, 5.0, 5.0), score=0.5)
    measures = detection_measures(truth, {5: (stray, good), 6: ()})
    assert measures["object box precision"] == (1.0, 2)
    assert measures["object box recall"] == (1.0, 2)
    assert measures["hand box recall"] == (0.0, 2)
    assert box_iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert box_iou((0, 0, 1, 1), (2, 2, 3, 3)) == 0


def test_depth_measures() -> None:
    truth = make_truth()
    assert truth.depth is not None
    assert depth_measures(truth, truth.depth, relative=False)["depth AbsRel"] == (0.0, 1)
    wrong = depth_measures(truth, 1.1 * truth.depth, relative=False)
    assert wrong["depth AbsRel"][0] == pytest.approx(0.1, abs=1e-5)
    assert wrong["depth frame-to-frame error"][0] == pytest.approx(0, abs=1e-6), "a constant factor does not flicker"
    relative = (1 / (3.0 / truth.depth + 2.0)).astype(np.float32)
    assert depth_measures(truth, relative, relative=True)["depth AbsRel"][0] == pytest.approx(0, abs=1e-3)
    flicker = truth.depth * np.where(np.arange(FRAMES) % 2, 1.05, 1.0).astype(np.float32)[:, None, None]
    measured = depth_measures(truth, flicker, relative=False)["depth frame-to-frame error"][0]
    assert measured == pytest.approx(np.log(1.05), abs=1e-4)
    nothing = depth_measures(truth, np.zeros_like(truth.depth), relative=False)
    assert pooled([nothing], "depth AbsRel") is None


@pytest.mark.parametrize(
    ("caption", "right"),
    [
        ("the left hand touches the red can", True),
        ("the red can moves about 9 cm up", True),
        ("the red can moves about 20 cm up", False),
        ("the red can moves 9 cm left", False),
        ("the red can is left of the blue box", True),
        ("the left hand approaches the red can", True),
        ("the left hand approaches the blue box", False),
        ("the red can is touched by the right hand", False),
        ("C picks up the red can with the left hand", True),
        ("at the end the red can is nearer to the camera than the blue box", False),
    ],
)
def test_claims_are_judged_by_the_truth_and_not_by_the_facts_that_were_found(caption: str, right: bool) -> None:
    truth = make_truth()
    believed: tuple[dict[str, Any], ...] = (
        {"type": "contact", "hand": "left", "object": "red can", "object_id": 3, "start_frame": 4, "end_frame": 8},
        {"type": "contact", "hand": "right", "object": "red can", "object_id": 3, "start_frame": 4, "end_frame": 8},
        {"type": "motion", "hand": "left", "object": "red can", "object_id": 3, "direction": "approaches", "start_frame": 0, "end_frame": 4},
        {"type": "motion", "hand": "left", "object": "blue box", "object_id": 4, "direction": "approaches", "start_frame": 0, "end_frame": 4},
        {"type": "displacement", "object": "red can", "object_id": 3, "direction": "up", "amount": 0.09 if "9 cm" in caption else 0.2, "unit": "m"},
        {"type": "displacement", "object": "red can", "object_id": 3, "direction": "left", "amount": 0.09, "unit": "m"},
        {"type": "relation", "frame": 0, "subject": "red can", "subject_id": 3, "relation": "left of", "object": "blue box", "object_id": 4, "margin": 20.0},
        {"type": "relation", "frame": 8, "subject": "red can", "subject_id": 3, "relation": "nearer than", "object": "blue box", "object_id": 4, "margin": 0.1},
    )  # fmt: skip
    verdict = check_caption(caption, truth.narration, believed, frames=FRAMES)
    assert verdict.reason is None, (verdict.reason, verdict.detail)
    judge = CaptionTruth(truth, {1: 1, 3: 3, 4: 4})
    (claim,), (support,) = verdict.claims, verdict.support
    assert judge.holds(claim, support, believed) == right


def test_a_relation_that_the_simulator_denies_is_false() -> None:
    truth = make_truth()
    opposite = truth.replace(facts=(truth.facts[-1] | {"relation": "right of"},))
    facts = [fact for fact in spatial_facts(truth_scene(truth)) if fact["type"] == "relation" and fact["frame"] == 0]
    verdict = check_caption("the red can is left of the blue box", truth.narration, facts, frames=FRAMES)
    ids = {3: 3, 4: 4}
    assert CaptionTruth(truth, ids).holds(verdict.claims[0], verdict.support[0], facts)
    assert not CaptionTruth(opposite, ids).holds(verdict.claims[0], verdict.support[0], facts)


def test_recall_counts_the_simulators_facts() -> None:
    truth = make_truth()
    found = recalled(truth, spatial_facts(truth_scene(truth)), {1: 1, 3: 3, 4: 4})
    assert found == {"contact facts found": (1.0, 1), "motion facts found": (1.0, 1),
                     "displacement facts found": (0.0, 1), "relation facts found": (1.0, 1)}  # fmt: skip


def test_pooled_weighs_clips_by_what_was_measured() -> None:
    figure = pooled([{"a": (1.0, 1)}, {"a": (0.0, 3)}, {"a": (0.0, 0)}, {}], "a")
    assert figure is not None
    assert (figure["value"], figure["n"], figure["clips"]) == (0.25, 4, 2)
    assert figure["low"] == 0 and figure["high"] == 1


def test_limits_of_check() -> None:
    report: dict[str, Any] = {"backends": {"track": "classical"}, "figures": {"object mask IoU": {"value": 0.59}}}
    assert len(shortcomings(report)) == 2
    report["figures"] = {"object mask IoU": {"value": 0.6}, "caption fact precision": {"value": 0.98}}
    assert shortcomings(report) == []
    del report["figures"]["object mask IoU"]
    assert shortcomings(report | {"backends": {"track": "truth"}}) == []


@pytest.fixture(scope="module")
def truth_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("truth")
    build_store(
        directory, make_truth, kind="made-up", seed=0, settings={}, versions={}, n_clips=3, clips_per_shard=4, workers=1
    )
    return directory


@pytest.mark.parametrize("backends", ["truth", "classical"])
def test_the_command_from_clips_to_table(
    truth_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture, backends
) -> None:
    out = tmp_path / "audit"
    config = AuditConfig(
        store=str(truth_store), out=str(out), clips=3, backends=backends, pictures=2, workers=1, check=True
    )
    code = run(config)
    report = json.loads((out / "audit.json").read_text())
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert report["figures"]["caption fact precision"]["value"] == 1.0
    assert report["outcomes"] == {"captioned": 3}
    assert ("object mask IoU" in report["figures"]) == (backends == "classical")
    assert "truth: nothing to measure" in printed
    assert (out / "audit.png").read_bytes()[:4] == b"\x89PNG"
    again = run(replace(config, annotated=str(out / "annotated"), out=str(tmp_path / "again")))
    assert again == 0
    assert json.loads((tmp_path / "again" / "audit.json").read_text())["figures"] == report["figures"]


def test_stores_that_do_not_belong_together(truth_store: Path, square_store: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not made by egoarm annotate"):
        run(AuditConfig(store=str(truth_store), annotated=str(square_store), out=str(tmp_path)))
    with pytest.raises(FileNotFoundError):
        run(AuditConfig(store=str(truth_store), annotated=str(tmp_path / "none"), out=str(tmp_path)))
    with pytest.raises(ValueError, match="out= is empty"):
        AuditConfig(store="x", out="")
    with pytest.raises(ValueError, match="clips=-1"):
        AuditConfig(store="x", out="y", clips=-1)
    with pytest.raises(ValueError, match="at least one clip"):
        draw_overlays([], tmp_path / "x.png")
