"""Tracking: what is followed, the classical tracker's masks against the truth, SAM 2's classes at a tiny size."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pretrain.annotate.config import AnnotateConfig
from pretrain.annotate.detect import TruthDetector
from pretrain.annotate.records import Detection, Detections, StageFailed, Track, encode_mask
from pretrain.annotate.track import (
    TRACKERS,
    TruthTracker,
    choose_prompts,
    contacts,
    make_track,
    paint,
    without_twins,
)
from pretrain.annotate.track_sam2 import Sam2Tracker, prompt_inputs
from pretrain.annotate.weights import transformers
from pretrain.clips.schema import Clip

LABELS = {1: "left hand", 2: "right hand", 3: "red can", 4: "green ball"}
COLOURS = {0: (110, 110, 120), 1: (200, 160, 130), 2: (200, 160, 130), 3: (210, 40, 40), 4: (50, 190, 60)}


def make_scene(*, frames: int = 6, size: int = 64, contact_from: int = 2) -> Clip:
    """A right hand reaches a red can from the right and pushes it to the left; a green ball lies beside."""
    rows, columns = np.mgrid[0:size, 0:size]
    segmentation = np.zeros((frames, size, size), np.uint8)
    depth = np.broadcast_to(np.linspace(2.0, 1.0, size, dtype=np.float32)[:, None], segmentation.shape).copy()
    contact = np.zeros((frames, 2), np.uint8)
    for frame in range(frames):
        pushed = max(frame - contact_from, 0) * 3
        reach = max(contact_from - frame, 0) * 3
        can = (abs(columns - (30 - pushed)) < 6) & (abs(rows - 28) < 8)
        hand = (abs(columns - (47 - pushed + reach)) < 12) & (abs(rows - 30) < 4)
        ball = np.hypot(columns - 12, rows - 52) < 6
        for number, mask in ((4, ball), (3, can), (2, hand)):
            segmentation[frame][mask] = number
            depth[frame][mask] = 1.0 - 0.1 * (number == 2)
        contact[frame, 1] = 3 if frame >= contact_from else 0
    noise = np.random.default_rng(0).integers(-6, 7, (frames, size, size, 3))
    palette = np.array([COLOURS[number] for number in range(5)])
    return Clip(
        key="scene",
        rgb=np.clip(palette[segmentation] + noise, 0, 255).astype(np.uint8),
        rgb_times_s=np.arange(frames) / 8.0,
        depth=depth,
        segmentation=segmentation,
        contact=contact,
        labels=LABELS,
        narration="#C C pushes the red can",
    )


def box(kind: str, x: float, *, width: float = 10, score: float = 0.9, **more: str | None) -> Detection:
    return Detection(kind=kind, box_xyxy=(x, 10, x + width, 20), score=score, **more)  # type: ignore[arg-type]


def mean_iou(track: Track, truth: np.ndarray) -> float:
    values = []
    for frame, mask in enumerate(truth):
        found = track.mask(frame)
        found = np.zeros_like(mask) if found is None else found
        values.append((found & mask).sum() / (found | mask).sum())
    return float(np.mean(values))


def test_masks_survive_their_encoding() -> None:
    mask = np.random.default_rng(0).random((7, 9)) < 0.5
    track = Track(id=3, kind="object", label="can", side=None, masks=(encode_mask(mask), None), scores=(1.0, 0.0))
    again = Track.from_json(track.to_json())
    assert np.array_equal(again.mask(0), mask)
    assert again.mask(1) is None and encode_mask(np.zeros((7, 9), bool)) is None


def test_prompts_come_from_the_first_frame_with_contact() -> None:
    detections: Detections = {
        0: (box("hand", 0, side="left", contact="none"), box("hand", 40, side="right", contact="none")),
        1: (box("hand", 20, side="right", contact="portable"), box("object", 28, held_by="right", label="can")),
        2: (
            box("hand", 30, side="right", contact="portable"),
            box("object", 38, held_by="right", label="can"),
            box("object", 5, held_by="left", label="ball"),
        ),
    }
    prompts = choose_prompts(detections)
    assert [(one.id, one.frame, one.detection.label or one.detection.side) for one in prompts] == [
        (1, 0, "left"),
        (2, 1, "right"),
        (3, 1, "can"),
        (4, 2, "ball"),
    ]


@pytest.mark.parametrize(
    ("detections", "reason"),
    [
        ({}, "no hand"),
        ({0: (box("object", 0, held_by=None),)}, "no hand"),
        ({0: (box("hand", 0, side="left", contact="none"), box("object", 30))}, "no contact"),
        ({0: (box("hand", 0, side="left", contact=None),)}, "no contact"),
        ({0: (box("hand", 0, side="left", contact="portable"),)}, "no box of a touched thing"),
    ],
)
def test_what_cannot_be_followed_is_a_reason(detections: Detections, reason: str) -> None:
    with pytest.raises(StageFailed, match=reason):
        choose_prompts(detections)


@pytest.mark.parametrize("name", ["truth", "classical"])
def test_weightless_trackers_find_the_masks(name: str) -> None:
    scene = make_scene()
    assert scene.segmentation is not None
    detections = TruthDetector().detect(scene)
    tracker = TRACKERS[name](AnnotateConfig(store="in", out="out"))
    tracks = {track.label: track for track in tracker.track(scene, detections)}
    assert tracks["right hand"].id == 2 and tracks["red can"].id == 3
    for label, number in (("red can", 3), ("right hand", 2)):
        assert mean_iou(tracks[label], scene.segmentation == number) > 0.85, label
        assert all(0 <= score <= 1 for score in tracks[label].scores)
    assert ("green ball" in tracks) == (name == "truth")  # it is neither touched nor named


def test_the_classical_tracker_works_without_depth() -> None:
    scene = make_scene()
    assert scene.segmentation is not None
    tracks = TRACKERS["classical"](AnnotateConfig(store="in", out="out")).track(
        scene.replace(depth=None, segmentation=None, contact=None), TruthDetector().detect(scene)
    )
    found = {track.label: track for track in tracks}
    assert mean_iou(found["red can"], scene.segmentation == 3) > 0.8


def test_twins_are_dropped_and_the_lost_are_a_reason() -> None:
    scene = make_scene()
    assert scene.segmentation is not None
    prompt = choose_prompts(TruthDetector().detect(scene))[-1]
    masks = list(scene.segmentation == 3)
    one = make_track(prompt, masks, [1.0] * 6)
    twin = Track(id=4, kind="object", label="tin", side=None, masks=one.masks, scores=one.scores)
    assert without_twins((one, twin)) == (one,)
    nothing = make_track(prompt, [np.zeros_like(mask) for mask in masks], [0.0] * 6)
    with pytest.raises(StageFailed, match="lost"):
        without_twins((nothing,))


def test_painting_gives_the_truth_back() -> None:
    scene = make_scene()
    assert scene.segmentation is not None and scene.contact is not None
    detections = TruthDetector().detect(scene)
    tracks = TruthTracker().track(scene, detections)
    assert np.array_equal(paint(tracks, 6, 64, 64), scene.segmentation)
    assert np.array_equal(contacts(detections, tracks, 6), scene.contact)
    # Looked at in two frames only: the others count as the nearest.
    some = {frame: detections[frame] for frame in (0, 4)}
    assert contacts(some, tracks, 6)[:, 1].tolist() == [0, 0, 0, 3, 3, 3]


def test_sam2_prompts_are_those_of_the_published_pipeline() -> None:
    detections = TruthDetector().detect(make_scene())
    hand, thing = choose_prompts(detections)
    boxes = [one.box_xyxy for one in detections[2]]
    assert prompt_inputs(thing, boxes) == {"input_boxes": [[list(thing.box)]]}
    inputs = prompt_inputs(hand, boxes)
    assert inputs["input_labels"] == [[[1, 0]]]
    assert inputs["input_points"][0][0][0] == [(hand.box[0] + hand.box[2]) / 2, (hand.box[1] + hand.box[3]) / 2]
    assert len(inputs["input_points"][0][0]) == 2


def save_tiny_sam2(directory: Path) -> Path:
    """A randomly initialised SAM 2 video model of a few layers, with its processors, as the published ones are saved."""
    library = transformers()
    torch.manual_seed(0)
    config = library.Sam2VideoConfig(
        vision_config={
            "model_type": "sam2_vision_model",
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "hidden_size": 8,
                "image_size": [128, 128],
                "blocks_per_stage": [1, 1, 2, 1],
                "embed_dim_per_stage": [8, 16, 32, 64],
                "num_attention_heads_per_stage": [1, 1, 2, 2],
                "window_size_per_stage": [8, 4, 4, 4],
                "window_positional_embedding_background_size": [4, 4],
                "global_attention_blocks": [3],
            },
            "backbone_channel_list": [64, 32, 16, 8],
            "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
            "fpn_hidden_size": 128,
        },
        prompt_encoder_config={"hidden_size": 128, "image_size": 128},
        mask_decoder_config={
            "hidden_size": 128,
            "mlp_dim": 32,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 16,
        },
        image_size=128,
        memory_attention_hidden_size=128,
        memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=32,
        memory_attention_rope_feat_sizes=[8, 8],
        memory_encoder_hidden_size=128,
        memory_encoder_output_channels=64,
        mask_downsampler_embed_dim=128,
        memory_fuser_embed_dim=128,
        memory_fuser_intermediate_dim=32,
    )
    library.Sam2VideoModel(config).save_pretrained(directory)
    size = {"height": 128, "width": 128}
    library.Sam2VideoProcessor(
        library.Sam2ImageProcessor(size=size), library.Sam2VideoVideoProcessor(size=size)
    ).save_pretrained(directory)
    return directory


def test_sam2_follows_hands_and_things_both_ways(tmp_path: Path) -> None:
    scene = make_scene(frames=4)
    tracker = Sam2Tracker(str(save_tiny_sam2(tmp_path / "sam2")), "cpu")
    tracker.load()
    tracks = tracker.track(scene, TruthDetector().detect(scene))
    assert [(track.id, track.kind, track.label) for track in tracks] == [
        (2, "hand", "right hand"),
        (3, "object", "red can"),
    ]
    for track in tracks:
        assert len(track.masks) == len(track.scores) == 4
        for frame, mask in enumerate(track.masks):
            # Every frame was reached: a random model's logits are neither all above nor all far below 0 by chance.
            assert mask is None or mask["size"] == [64, 64]
            assert (track.scores[frame] > 0.5) == (mask is not None)
    assert any(mask for track in tracks for mask in track.masks)


def test_missing_weights_are_one_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"track_weights= is not given.*facebook/sam2-hiera-large"):
        Sam2Tracker(None)
    with pytest.raises(ValueError, match="no such directory"):
        Sam2Tracker(str(tmp_path / "absent"))
    (tmp_path / "config.json").write_text("{}")
    tracker = Sam2Tracker(str(tmp_path))
    with pytest.raises(ValueError, match=r"track_weights=.*cannot load a Sam2VideoProcessor"):
        tracker.load()
