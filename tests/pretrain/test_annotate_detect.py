"""Detection: the shared rules, files of boxes with their defects, and the transformers' classes at a tiny size."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from pretrain.annotate.detect import (
    DETECTORS,
    TruthDetector,
    first_contact,
    narrated_things,
    set_broken_apart,
    suppress,
    valid_boxes,
    with_contacts,
    with_sides,
)
from pretrain.annotate.detect_transformers import OPEN_VOCABULARY, query_of
from pretrain.annotate.hoi_files import HandObjectRows, StarHoiJson
from pretrain.annotate.records import Detection, StageFailed
from pretrain.annotate.weights import transformers
from pretrain.clips.schema import Clip


def make_clip(*, frames: int = 6, size: int = 40, key: str = "clip", **more: object) -> Clip:
    rgb = np.random.default_rng(0).integers(0, 255, (frames, size, size, 3)).astype(np.uint8)
    return Clip(key=key, rgb=rgb, rgb_times_s=np.arange(frames) / 8.0, narration="#C C lifts the red can", **more)  # type: ignore[arg-type]


def row(
    x1: float, y1: float, x2: float, y2: float, score: float = 0.9, *, state: int = 0, side: int = 0
) -> list[float]:
    return [x1, y1, x2, y2, score, state, 0.0, 0.0, 0.0, side]


def hand(x1: float, x2: float, score: float = 0.9) -> Detection:
    return Detection(kind="hand", box_xyxy=(x1, 10, x2, 20), score=score)


def thing(x1: float, x2: float, score: float = 0.9, y1: float = 10, y2: float = 20) -> Detection:
    return Detection(kind="object", box_xyxy=(x1, y1, x2, y2), score=score)


# ------------------------------------------------------------------------------------------------------------------ rules


def test_boxes_are_clipped_or_dropped_and_counted() -> None:
    nan = math.nan
    boxes = [(-5, 2, 10, 50), (3, 3, 9, 9), (9, 3, 3, 9), (4, 4, 4, 8), (50, 50, 60, 60), (nan, 0, 5, 5)]
    found = tuple(Detection(kind="object", box_xyxy=box, score=0.5) for box in boxes)
    kept, counts = valid_boxes({0: found, 7: found[:1]}, 40, 40, frames=6)
    assert [one.box_xyxy for one in kept[0]] == [(0, 2, 10, 40), (3, 3, 9, 9)]
    assert set(kept) == {0}
    assert counts == {
        "clipped": 1,
        "dropped: empty or inverted": 2,
        "dropped: no such frame": 1,
        "dropped: not finite": 1,
        "dropped: outside the image": 1,
    }


def test_weak_boxes_and_doubles_are_suppressed() -> None:
    kept = suppress([hand(0, 10, 0.6), hand(1, 11, 0.8), hand(30, 39, 0.2), thing(0, 10, 0.5)], threshold=0.3, nms=0.3)
    assert [(one.kind, one.score) for one in kept] == [("hand", 0.8), ("object", 0.5)]


def test_sides_by_position() -> None:
    sides = [(one.box_xyxy[0], one.side) for one in with_sides([hand(30, 38, 0.5), hand(2, 9), hand(15, 20, 0.4)], 40)]
    assert sides == [(2, "left"), (30, "right")]
    assert [one.side for one in with_sides([hand(25, 35)], 40)] == ["right"]
    assert [one.side for one in with_sides([hand(5, 12)], 40)] == ["left"]


def test_contact_by_boxes() -> None:
    left, right = with_sides([hand(0, 10), hand(30, 40)], 60)
    found = with_contacts([left, right], [thing(8, 14), thing(45, 55)], 60, 60)
    assert [one.contact for one in found if one.kind == "hand"] == ["portable", "none"]
    assert [one.held_by for one in found if one.kind == "object"] == ["left", None]
    # Near is enough: 0.5 px is within 1 % of the diagonal.
    (near, _) = with_contacts([left], [thing(10.5, 14)], 60, 60)
    assert near.contact == "portable"


@pytest.mark.parametrize(
    ("narration", "things"),
    [
        ("#C C pours from the grey mug into the red bowl", ("grey mug", "red bowl")),
        ("#C C picks a bag of clothes from the floor", ("bag", "floor")),
        ("#C C passes the red tube from one hand to the other", ("red tube",)),
        ("#O a man walks", ("man walks",)),  # no parser: an article takes what follows
        ("", ()),
    ],
)
def test_things_of_a_narration(narration: str, things: tuple[str, ...]) -> None:
    assert narrated_things(narration) == things


def test_truth_boxes_are_those_of_the_masks() -> None:
    segmentation = np.zeros((2, 40, 40), np.uint8)
    segmentation[:, 5:15, 20:30] = 2
    segmentation[1, 10:18, 15:20] = 3
    clip = make_clip(frames=2).replace(
        segmentation=segmentation,
        contact=np.array([[0, 0], [0, 3]], np.uint8),
        labels={1: "left hand", 2: "right hand", 3: "box"},
    )
    found = TruthDetector().detect(clip)
    assert [(one.kind, one.side, one.contact) for one in found[0]] == [("hand", "right", "none")]
    assert found[1][0].box_xyxy == (20, 5, 30, 15)
    assert (found[1][1].box_xyxy, found[1][1].held_by, found[1][1].label) == ((15, 10, 20, 18), "right", "box")
    assert first_contact(found) == 1
    with pytest.raises(StageFailed, match="no segmentation"):
        TruthDetector().detect(make_clip())


# ------------------------------------------------------------------------------------------------------------------ files


def write_rows(path: Path, hands: list[tuple[int, list[float]]], objects: list[tuple[int, list[float]]]) -> None:
    np.savez(
        path,
        hands=np.array([one for _, one in hands]).reshape(-1, 10),
        hand_frames=np.array([frame for frame, _ in hands], np.int64),
        objects=np.array([one for _, one in objects]).reshape(-1, 10),
        object_frames=np.array([frame for frame, _ in objects], np.int64),
        frames=np.arange(6),
    )


def test_rows_of_the_detector(tmp_path: Path) -> None:
    pointing = row(0, 10, 10, 20, state=3, side=0)
    pointing[6:9] = [20 / 10_000, 1.0, 0.0]  # 20 px to the right of its middle
    write_rows(
        tmp_path / "clip.npz",
        [
            (1, pointing),
            (1, row(1, 11, 11, 20, 0.5)),
            (2, row(30, 0, 60, 9, 0.8, state=1, side=1)),
            (3, row(9, 9, 5, 5)),
        ],
        [(1, row(9, 10, 15, 20)), (1, row(20, 10, 30, 20, 0.4)), (2, row(0, 0, 5, 5, 0.2))],
    )
    found = HandObjectRows(str(tmp_path)).detect(make_clip())
    assert found[0] == () and found[5] == ()
    assert [(one.kind, one.side, one.contact, one.held_by) for one in found[1]] == [
        ("hand", "left", "portable", None),
        ("object", None, None, None),
        ("object", None, None, "left"),  # not the nearest to the hand: the one that its offset points at
    ]
    assert [(one.side, one.contact) for one in found[2]] == [("right", "self")]
    assert first_contact(found) == 1
    _, counts = valid_boxes(found, 40, 40, 6)
    assert counts == {"clipped": 1, "dropped: empty or inverted": 1}


def saved_array() -> np.ndarray:
    array = np.zeros((12, 4, 10))
    array[4, 1] = row(20, 10, 30, 20, state=4, side=1)
    array[4, 2] = row(28, 12, 36, 18)
    return array


@pytest.mark.parametrize("source", ["npy", "key", "time"])
def test_saved_arrays_and_star_hoi_json(tmp_path: Path, source: str) -> None:
    clip = make_clip(frames=24, meta={"narration_time": 12.5})
    if source == "npy":
        np.save(tmp_path / "clip.npy", saved_array())
        found = HandObjectRows(str(tmp_path)).detect(clip)
    else:
        path = tmp_path / "merged_file_box.json"
        path.write_text(json.dumps({"clip" if source == "key" else "12.500": saved_array().tolist()}))
        found = StarHoiJson(str(path)).detect(clip)
    assert sorted(found) == list(range(1, 24, 2))  # the middles of 12 equal parts of 24 frames
    assert [(one.kind, one.side, one.contact, one.held_by) for one in found[9]] == [
        ("hand", "right", "stationary", None),
        ("object", None, None, "right"),
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no file"),
        (b"", "damaged"),
        (b"PK\x03\x04 torn", "damaged"),
        (np.zeros((3, 4, 9)), "shape"),
        (np.array([{"a": 1}], dtype=object), "damaged"),  # a pickle: never opened
    ],
)
def test_bad_row_files_are_reasons(tmp_path: Path, content: bytes | np.ndarray | None, reason: str) -> None:
    path = tmp_path / "clip.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(StageFailed, match=reason):
        HandObjectRows(str(tmp_path)).detect(make_clip())


@pytest.mark.parametrize(
    ("text", "message"), [("", "empty"), ("{", "not JSON"), ("[1]", "a list"), (None, "merged_file_box.json")]
)
def test_a_bad_json_is_one_error(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "boxes.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message):
        StarHoiJson(str(path))


def test_a_clip_that_the_json_lacks_is_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps({"7.0": [["nonsense"]]}))
    reader = StarHoiJson(str(path))
    with pytest.raises(StageFailed, match="narration time"):
        reader.detect(make_clip())
    with pytest.raises(StageFailed, match="numbers"):
        reader.detect(make_clip(meta={"narration_time": 7}))


# ----------------------------------------------------------------------------------------------------------- transformers


def save_tiny_owlv2(directory: Path) -> None:
    library = transformers()
    text = {
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = library.Owlv2Config(
        text_config={**text, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
        vision_config={**vision, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    library.Owlv2ForObjectDetection(config).save_pretrained(directory)
    letters = [chr(97 + index) for index in range(26)]
    words = ["!", "<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {word: index for index, word in enumerate(words)}
    (directory / "vocab.json").write_text(json.dumps(vocabulary))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = library.CLIPTokenizer(
        str(directory / "vocab.json"), str(directory / "merges.txt"), pad_token="!", model_max_length=16
    )
    image_processor = library.Owlv2ImageProcessor(size={"height": 32, "width": 32})
    library.Owlv2Processor(image_processor, tokenizer).save_pretrained(directory)


def save_tiny_grounding_dino(directory: Path) -> None:
    library = transformers()
    config = library.GroundingDinoConfig(
        backbone_config=library.SwinConfig(
            image_size=32, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2,
            out_features=["stage2", "stage3", "stage4"],
        ),
        text_config=library.BertConfig(
            vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        ),
        d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, num_queries=8, num_feature_levels=4, max_text_len=32,
    )  # fmt: skip
    library.GroundingDinoForObjectDetection(config).save_pretrained(directory)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", "hand", "object", "in", "red", "can"]
    (directory / "vocab.txt").write_text("\n".join(words))
    tokenizer = library.BertTokenizer(str(directory / "vocab.txt"))
    image_processor = library.GroundingDinoImageProcessor(size={"shortest_edge": 96, "longest_edge": 128})
    library.GroundingDinoProcessor(image_processor, tokenizer).save_pretrained(directory)


SAVE_TINY = {"grounding-dino": save_tiny_grounding_dino, "owlv2": save_tiny_owlv2}


@pytest.mark.parametrize("name", OPEN_VOCABULARY)
def test_open_vocabulary_detectors_run(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    SAVE_TINY[name](tmp_path)
    # A random model is sure of nothing: a threshold of 0 keeps its boxes.
    detector = OPEN_VOCABULARY[name](str(tmp_path), "cpu", threshold=0.0, nms=0.5)
    detector.load()
    clip = make_clip(frames=2)
    found = detector.detect(clip)
    assert sorted(found) == [0, 1]
    for boxes in found.values():
        sound, _ = set_broken_apart(boxes)
        assert sound
        hands = [one for one in sound if one.kind == "hand"]
        assert len(hands) <= 2 and len({one.side for one in hands}) == len(hands)
        assert all(one.contact in ("none", "portable") for one in hands)
        assert {one.label for one in sound if one.kind == "object"} <= {"", "red can"}
        assert all(0 <= one.score <= 1 for one in sound)
    kept, _ = valid_boxes(found, 40, 40, 2)
    assert any(kept.values())


@pytest.mark.parametrize("name", ["grounding-dino", "owlv2"])
def test_missing_weights_are_one_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"detect_weights=.*no such directory.*{name[:5]}"):
        OPEN_VOCABULARY[name](str(tmp_path / "absent"))
    assert name in DETECTORS


def test_a_phrase_of_tokens_is_the_nearest_query() -> None:
    queries = ("hand", "object in hand", "red can")
    assert query_of("hand", queries) == "hand"
    assert query_of("object hand", queries) == "object in hand"
    assert query_of("can", queries) == "red can"
    assert query_of("", queries) == ""
