"""What `egoarm clips info` says and draws."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from pretrain.clips.build import build_store
from pretrain.clips.contact_sheet import draw_contact_sheet
from pretrain.clips.info import InfoConfig, run_info
from pretrain.clips.schema import Clip
from pretrain.clips.skipping import Skipped

SIZE, FRAMES = 32, 6


def made_clip(index: int) -> Clip:
    """A pink square of id 3 and a gaze point in its middle, on black; the hands are not seen."""
    rgb = np.zeros((FRAMES, SIZE, SIZE, 3), np.uint8)
    ids = np.zeros((FRAMES, SIZE, SIZE), np.uint8)
    rgb[:, 8:24, 8:24] = (255, 150, 200)
    ids[:, 8:24, 8:24] = 3
    gaze = np.full((22, 2), 16, np.float32)
    gaze[:3] = np.nan
    contact = np.zeros((FRAMES, 2), np.uint8)
    contact[3:, 1] = 3
    return Clip(
        key=f"made-{index}",
        rgb=rgb,
        rgb_times_s=np.arange(FRAMES) / 8,
        depth=np.where(ids > 0, 0.5, 2).astype(np.float32),
        segmentation=ids,
        labels={1: "left hand", 2: "right hand", 3: "[pink] box"},
        contact=contact,
        gaze=gaze,
        narration=f"#C C looks at box {index % 2}",
        captions=("a [pink] box lies in the middle",),
        meta={"action": "pour" if index == 0 else "push"},
    )


@pytest.fixture
def store_path(tmp_path) -> Path:
    build_store(
        tmp_path / "store", made_clip, kind="made", seed=7, settings={}, versions={},
        n_clips=4, clips_per_shard=2, workers=1,
    )  # fmt: skip
    return tmp_path / "store"


def test_says_what_the_store_holds(store_path, capsys):
    run_info(InfoConfig(path=str(store_path), clips=2, frames=3))
    said = capsys.readouterr().out
    for part in (
        "4 made clips, 3.0 s, 2 shards", "seed 7", "the sha256 of all 2 shards is the manifest's", "6 x 32 x 32 x 3",
        "8 Hz", "30 Hz", "push      3 ####", "pour      1 ####", "[pink] box (4)", "left in 0 clips, right in 4 clips",
        "gaze known in 86.4%", "#C C looks at box 0", "#C C looks at box 1", str(store_path / "contact_sheet.png"),
    ):  # fmt: skip
        assert part in said, part
    assert cv2.imread(str(store_path / "contact_sheet.png")) is not None


def test_a_damaged_shard_ends_it(store_path):
    shard = store_path / "shard-000001.tar"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=r"shard-000001\.tar damaged"):
        run_info(InfoConfig(path=str(store_path)))
    run_info(InfoConfig(path=str(store_path), verify=False, clips=0))
    assert not (store_path / "contact_sheet.png").exists()


def test_contact_sheet_draws_the_gaze_and_the_masks(tmp_path):
    draw_contact_sheet([made_clip(0)], tmp_path / "new" / "sheet.png", frames=2)
    image = cv2.imread(str(tmp_path / "new" / "sheet.png"))[..., ::-1].astype(int)
    ring = np.abs(image - (255, 0, 255)).sum(-1) < 60
    assert 20 < ring.sum() < 2000  # one frame of two: in the first the gaze is not known
    green = np.abs(image - (0, 158, 115)).sum(-1) < 30  # outline and legend of the first object
    assert green.sum() > 50


@pytest.mark.parametrize("missing", ["depth", "segmentation", "gaze", "contact"])
def test_contact_sheet_without_a_modality(tmp_path, missing):
    draw_contact_sheet([made_clip(0).replace(**{missing: None})] * 3, tmp_path / "sheet.png")
    assert cv2.imread(str(tmp_path / "sheet.png")) is not None


@pytest.mark.parametrize(
    ("changes", "message"), [({"clips": -1}, "clips=-1"), ({"frames": 0}, "frames=0"), ({"path": ""}, "DIR")]
)
def test_wrong_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        InfoConfig(**{"path": "x", **changes})


def test_says_what_was_skipped(tmp_path, capsys):
    def holed(index: int) -> Clip | Skipped:
        return Skipped(key=f"made-{index}", source="a", reason="video [cut] short") if index % 2 else made_clip(index)

    build_store(
        tmp_path / "[store]", holed, kind="made", seed=7, settings={}, versions={},
        n_clips=5, clips_per_shard=2, workers=1,
    )  # fmt: skip
    run_info(InfoConfig(path=str(tmp_path / "[store]"), clips=0))
    said = capsys.readouterr().out
    for part in (
        "3 made clips",
        "see",
        "[store]/skipped.jsonl",
        "skipped because",
        "video [cut] short │ 2",
        "all reasons",
    ):
        assert part in said, part
