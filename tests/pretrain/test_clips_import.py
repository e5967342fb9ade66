"""Public data sets to clip stores: each format as it is published, and all that can be wrong with it."""

import itertools
import json
import pickle
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.checkpoints import read_metrics
from pretrain.clips.importing import ImportConfig, RequestTable, midpoints_s, run_import
from pretrain.clips.info import InfoConfig, run_info
from pretrain.clips.schema import Clip
from pretrain.clips.skipping import Skipped
from pretrain.clips.sources import ego4d, epic100
from pretrain.clips.sources.pickles import load_plain
from pretrain.clips.sources.request import (
    ClipRequest,
    LineError,
    VideoPart,
    checked_narration,
    chunked_parts,
    make_key,
    parts_at,
)
from pretrain.clips.sources.table import SOURCES
from pretrain.clips.store import open_store
from pretrain.egodtm.train import PretrainConfig
from pretrain.egodtm.train import run as pretrain
from pretrain.encoder import load_encoder
from pretrain.loop import TrainerConfig

# The tests are no package: their directory is put on the path for the helpers that lie beside them.
sys.path.insert(0, str(Path(__file__).parent))
from coded_video import coded_number, steady, write_audio, write_video

UID = "0a8f6747-7f79-4176-85ca-f5ec01a15435"
OTHER = "1b9e0000-0000-4176-85ca-f5ec01a15435"


def run(tmp_path: Path, source: str, annotations: Path, **changes) -> "list[Clip]":
    config = {
        "frames": 4,
        "image_size": 48,
        "workers": 1,
        "clips_per_shard": 3,
        "videos": str(tmp_path / "videos"),
        "out": str(tmp_path / "store"),
        **changes,
    }
    run_import(ImportConfig(source=source, annotations=str(annotations), **config))
    store = open_store(config["out"])
    return [store.read(index) for index in range(len(store))]


def reasons(tmp_path: Path) -> dict[str, str]:
    """key or source -> reason."""
    lines = (tmp_path / "store" / "skipped.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return {row["key"] or row["source"]: row["reason"] for row in rows}


def numbers(clip: Clip) -> list[int]:
    return [coded_number(picture) for picture in clip.rgb]


def narrated(*lines: tuple[float, str]) -> dict:
    return {"narrations": [{"timestamp_sec": t, "timestamp_frame": 0, "narration_text": text, "annotation_uid": "a"}
                           for t, text in lines], "summaries": []}  # fmt: skip


def write_ego4d(path: Path, videos: dict, wrapped: bool = False) -> Path:
    path.write_text(json.dumps({"videos": videos} if wrapped else videos))
    return path


# --- the four sources, each on a real video of 10 Hz whose frames carry their number ---


def make_ego4d(tmp_path: Path) -> Path:
    write_video(tmp_path / "videos" / f"{UID}.mp4", steady(100, fps=10))
    passes = narrated((1.0, "#C C takes a cup"), (5.9, "#C C pours water"), (9.8, "#O man X\nwalks"))
    return write_ego4d(tmp_path / "narration.json", {UID: {"narration_pass_1": passes, "status": "complete"}})


EGOCLIP_HEADER = ("clip_idx\tvideo_uid\tvideo_dur\tnarration_source\tnarration_ind\tnarration_time\tclip_start\tclip_end\t"
                  "clip_text\ttag_verb\ttag_noun")  # fmt: skip


def egoclip_line(index: int, start: object, end: object, text: str = "#C C picks a bag", uid: str = UID) -> str:
    return f"{index}\t{uid}\t10.0\tnarration_pass_1\t{index}\t1.5\t{start}\t{end}\t{text}\t[93]\t[192, 115, 12]"


def make_egoclip(tmp_path: Path) -> Path:
    write_video(tmp_path / "videos" / f"{UID}.mp4", steady(100, fps=10))
    path = tmp_path / "egoclip.csv"
    path.write_text(
        "\n".join([EGOCLIP_HEADER, egoclip_line(0, 1.0, 3.0), egoclip_line(1, 4.0, 5.0, "#C C cuts")]) + "\n"
    )
    return path


def make_lavila(tmp_path: Path) -> Path:
    for index in range(3):  # the last chunk is shorter
        name = tmp_path / "videos" / f"{UID}.mp4" / f"{index * 15}.mp4"
        write_video(name, steady(150 if index < 2 else 50, fps=10), first=index * 150)
    entries = [
        (UID, 14.0, 16.0, "#C C opens a door"),
        (UID, np.float64(16.5), np.float32(17.5), ["#C C shuts a door", "the door is shut"], [-1.5, -2.0]),
        (UID, 14.0, 31.0, "#C C cleans"),
    ]
    path = tmp_path / "ego4d_train.pkl"
    path.write_bytes(pickle.dumps(entries))
    return path


EPIC_ROW = "P01_11_0,P01,P01_11,00:00:00.560,00:00:01.00,00:00:03.00,1,113,take plate,take,0,plate,2,['plate'],[2]"
EPIC_SECOND = (
    "P01_11_1,P01,P01_11,00:00:03.560,00:00:04.00,00:00:06.00,1,113,put down the plate,put-down,1,plate,2,"
    '"[\'plate\', ""chef\'s knife""]","[2, 4]"'
)


def make_epic100(tmp_path: Path) -> Path:
    write_video(tmp_path / "videos" / "P01" / "videos" / "P01_11.MP4", steady(100, fps=10), codec="mpeg4")
    path = tmp_path / "EPIC_100_train.csv"
    path.write_text("\n".join([",".join(epic100.COLUMNS), EPIC_ROW, EPIC_SECOND]) + "\n")
    return path


MAKERS = {"ego4d": make_ego4d, "egoclip": make_egoclip, "lavila": make_lavila, "epic100": make_epic100}


@pytest.fixture(params=SOURCES)
def source(request) -> str:
    return request.param


def test_a_source_becomes_a_store_that_is_the_same_on_every_run(tmp_path, source, capsys):
    annotations = MAKERS[source](tmp_path)
    clips = run(tmp_path, source, annotations)
    said = capsys.readouterr().out
    assert f"imported {len(clips)} clips in" in said and "clips/s)" in said and "skipped" not in said
    assert len({clip.key for clip in clips}) == len(clips) >= 2
    for clip in clips:
        assert clip.rgb.shape == (4, 48, 72, 3) and clip.narration.startswith("#")
        start = clip.meta["start_s"]
        # The number in the picture is that of the frame shown at the time; 10 frames a second.
        assert numbers(clip) == [int((start + time_s) * 10 + 1e-6) for time_s in clip.rgb_times_s]
    manifest = open_store(tmp_path / "store").manifest
    assert manifest["kind"] == source and "skipped" not in manifest and not (tmp_path / "store/skipped.jsonl").exists()
    run(tmp_path, source, annotations, out=str(tmp_path / "again"), workers=2 if source == "ego4d" else 1)
    for path in (tmp_path / "store").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    run(tmp_path, source, annotations)
    assert "nothing new to import" in capsys.readouterr().out


def test_ego4d_span_of_a_narration(tmp_path):
    first, second, last = run(tmp_path, "ego4d", make_ego4d(tmp_path))
    # beta = (9.8 - 1.0) / 2 = 4.4 s, alpha = 4.9 s: half a width is 0.449 s.
    half_s = 4.4 / 9.8
    assert first.key == f"{UID}-p1-00000" and first.meta["start_s"] == pytest.approx(1.0 - half_s)
    assert np.allclose(second.rgb_times_s, midpoints_s(2 * half_s, 4))
    # The last clip ends with the video, at 10 s, and a line break in its text is white space.
    assert last.duration_s == pytest.approx(10.0 - (9.8 - half_s), abs=1e-6)
    assert last.narration == "#O man X walks"


def test_ego4d_wrapped_with_two_passes(tmp_path):
    write_video(tmp_path / "videos" / f"{UID}.mp4", steady(100, fps=10))
    passes = {"narration_pass_1": narrated((2.0, "#C C sits")), "narration_pass_2": narrated((3.0, "#C C stands"))}
    other = {"narration_pass_2": None}
    clips = run(tmp_path, "ego4d", write_ego4d(tmp_path / "n.json", {UID: passes, OTHER: other}, wrapped=True))
    assert [clip.key for clip in clips] == [f"{UID}-p1-00000", f"{UID}-p2-00000"]
    assert clips[0].duration_s == pytest.approx(1.0)  # one narration: beta is alpha


def test_egoclip_reads_chunks_too(tmp_path):
    annotations = make_lavila(tmp_path).with_suffix(".tsv")
    annotations.write_text(f"{EGOCLIP_HEADER}\n{egoclip_line(7, 14.5, 15.5)}\n")
    (clip,) = run(tmp_path, "egoclip", annotations)
    assert numbers(clip) == [146, 148, 151, 153] and clip.key == f"{UID}-7"
    assert clip.meta["tag_verb"] == [93] and clip.meta["tag_noun"] == [192, 115, 12]


def test_lavila_clip_over_chunk_borders(tmp_path):
    across, within, long = run(tmp_path, "lavila", make_lavila(tmp_path))
    assert numbers(across) == [142, 147, 152, 157]
    assert numbers(long) == [161, 203, 246, 288] and len(long.rgb) == 4
    assert within.narration == "#C C shuts a door"
    assert within.meta["narrations"] == ["#C C shuts a door", "the door is shut"]


def test_lavila_as_lines_of_json(tmp_path):
    entries = load_plain(make_lavila(tmp_path))
    lines = tmp_path / "train.jsonl"
    lines.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    from_lines = run(tmp_path, "lavila", lines, chunk_s=15.0)
    from_pickle = run(tmp_path, "lavila", tmp_path / "ego4d_train.pkl", out=str(tmp_path / "pickled"))
    assert [clip.key for clip in from_lines] == [clip.key for clip in from_pickle]
    assert all(np.array_equal(a.rgb, b.rgb) for a, b in zip(from_lines, from_pickle, strict=True))


def test_lavila_chunks_of_unknown_length(tmp_path):
    annotations = make_lavila(tmp_path)
    for index in (15, 30):
        (tmp_path / "videos" / f"{UID}.mp4" / f"{index}.mp4").unlink()
    with pytest.raises(ValueError, match=r"no recording has two, .*give chunk_s=300 \(LaViLa\) or chunk_s=15"):
        run(tmp_path, "lavila", annotations)


@pytest.mark.parametrize("place", ["P01_11.MP4", "P01_11.mp4", "P01/P01_11.MP4"])
def test_epic100_words_classes_and_places(tmp_path, place):
    annotations = make_epic100(tmp_path)
    (tmp_path / "videos" / "P01" / "videos" / "P01_11.MP4").rename(tmp_path / "videos" / place)
    info = tmp_path / "info.csv"
    info.write_text("video_id,duration,fps,resolution\nP01_11,5.0,10,96x64\n")
    first, second = run(tmp_path, "epic100", annotations)
    assert first.key == "P01_11_0" and first.narration == "#C C takes plate"
    assert first.meta["verb_class"] == 0 and first.meta["noun_class"] == 2 and first.meta["command"] == "take plate"
    assert second.narration == "#C C puts down the plate"
    assert second.meta["all_nouns"] == ["plate", "chef's knife"] and second.meta["all_noun_classes"] == [2, 4]
    run(tmp_path, "epic100", annotations, video_info=str(info), out=str(tmp_path / "b"))
    assert open_store(tmp_path / "b").manifest["skipped"] == {"time outside the video": 1}


def test_square(tmp_path):
    clips = run(tmp_path, "ego4d", make_ego4d(tmp_path), square=True, image_size=32)
    assert clips[0].rgb.shape == (4, 32, 32, 3)


# --- bad input: counted with a reason, or one clear error ---


def test_bad_videos_are_skipped_by_reason(tmp_path, capsys):
    videos = tmp_path / "videos"
    whole = write_video(videos / "good.mp4", steady(100, fps=10))
    (videos / "cut.mp4").write_bytes(whole.read_bytes()[:-300])
    (videos / "empty.mp4").write_bytes(b"")
    write_audio(videos / "sound.mp4")
    write_video(videos / "gap.mp4", [*steady(30, fps=10), *steady(30, fps=10, start_s=7.0)])
    lines = [(0, "good", 1, 2), (1, "cut", 1, 2), (2, "empty", 1, 2), (3, "sound", 1, 2), (4, "gap", 1, 2),
             (5, "gap", 4, 6), (6, "none", 1, 2), (7, "good", 9, 12), (8, "good", 3, 4)]  # fmt: skip
    annotations = tmp_path / "egoclip.csv"
    rows = [egoclip_line(index, start, end, uid=name) for index, name, start, end in lines]
    annotations.write_text("\n".join([EGOCLIP_HEADER, *rows]))
    clips = run(tmp_path, "egoclip", annotations, clips_per_shard=2)
    assert [clip.key for clip in clips] == ["good-0", "gap-4", "good-8"]
    assert reasons(tmp_path) == {
        "cut-1": "video undecodable", "empty-2": "video undecodable", "sound-3": "file without video",
        "gap-5": "frames missing in the span", "none-6": "video missing", "good-7": "time outside the video",
    }  # fmt: skip
    said = capsys.readouterr().out
    assert "imported 3 clips" in said and "of 9 entries in 3 shards" in said and "video undecodable" in said
    manifest = open_store(tmp_path / "store").manifest
    assert sum(manifest["skipped"].values()) == 6 and manifest["totals"]["clips"] == 3
    assert str(tmp_path) not in (tmp_path / "store" / "skipped.jsonl").read_text()
    run_info(InfoConfig(path=str(tmp_path / "store"), clips=0))
    said = capsys.readouterr().out
    assert "skipped because" in said and "video missing" in said and "all reasons" in said


def test_more_videos_later(tmp_path):
    annotations = tmp_path / "egoclip.csv"
    rows = [egoclip_line(index, 1, 2, uid=uid) for index, uid in enumerate([UID, OTHER])]
    annotations.write_text("\n".join([EGOCLIP_HEADER, *rows]))
    write_video(tmp_path / "videos" / f"{UID}.mp4", steady(30, fps=10))
    assert len(run(tmp_path, "egoclip", annotations, clips_per_shard=1)) == 1
    write_video(tmp_path / "videos" / f"{OTHER}.mp4", steady(30, fps=10))
    assert len(run(tmp_path, "egoclip", annotations, clips_per_shard=1)) == 1
    assert len(run(tmp_path, "egoclip", annotations, clips_per_shard=1, retry_skipped=True)) == 2
    assert not (tmp_path / "store" / "skipped.jsonl").exists()


def test_bad_lines_of_ego4d(tmp_path):
    write_video(tmp_path / "videos" / f"{UID}.mp4", steady(100, fps=10))
    good = narrated(*((float(t), f"#C C takes cup {t}") for t in range(1, 7)))
    bad = [
        {"timestamp_sec": float("nan"), "narration_text": "#C C a"},
        {"timestamp_sec": 2.0, "narration_text": "  "},
        {"timestamp_sec": 2.0, "narration_text": "#C C"},
        {"timestamp_sec": 2.0, "narration_text": "#C C holds #unsure"},
        {"timestamp_sec": 1.0, "narration_text": "#C C takes cup 1"},
        {"timestamp_sec": -1.0, "narration_text": "#C C b"},
        {"timestamp_sec": 99.0, "narration_text": "#C C c"},
        {"timestamp_sec": None, "narration_text": "#C C d"},
        {"timestamp_sec": 2.0},
        {"timestamp_sec": 1e300, "narration_text": "#C C g"},
        "text",
    ]
    good["narrations"] += bad
    text = json.dumps({UID: {"narration_pass_1": good}, OTHER: {"narration_pass_1": narrated((1, "#C C e")), "status": "redacted"},
                       "../../etc/passwd": {"narration_pass_1": good}, "void": 3})  # fmt: skip
    # The first video once more: json alone would let the second one win.
    text = f'{text[:-1]}, "{UID}": {{"narration_pass_1": {json.dumps(narrated((3, "#C C f")))}}}}}'
    data = text.encode().replace(b"takes cup 6", b"takes caf\xe9 6")
    (tmp_path / "narration.json").write_bytes(data)
    clips = run(tmp_path, "ego4d", tmp_path / "narration.json", max_skipped_share=1.0)
    assert [clip.narration for clip in clips] == [f"#C C takes cup {t}" for t in range(1, 6)]
    rows = [json.loads(line) for line in (tmp_path / "store" / "skipped.jsonl").read_text().splitlines()]
    assert [row["reason"] for row in rows] == [
        "text not UTF-8", "time not finite", "empty narration", "empty narration", "narration marked #unsure", "duplicate id",
        "time before the video", "time outside the video", "missing or wrong field", "missing or wrong field",
        "time outside the video", "missing or wrong field", "annotation not complete", "invalid id", "missing or wrong field", "duplicate id",
    ]  # fmt: skip
    assert "\\xe9" in rows[0]["detail"] and rows[0]["key"] == f"{UID}-p1-00005"


def test_bad_lines_of_egoclip(tmp_path):
    write_video(tmp_path / "videos" / f"{UID}.mp4", steady(100, fps=10))
    rows = [
        egoclip_line(0, 1, 2).encode(),
        b"one\ttwo",
        egoclip_line(2, 1, 2).encode() + b"\tmore",
        egoclip_line(3, 1, 2, "#C C opens caf\xe9".encode("latin1").decode("latin1")).encode("latin1"),
        egoclip_line(0, 3, 4).encode(),
        egoclip_line(5, "nan", 4).encode(),
        egoclip_line(6, "inf", 4).encode(),
        egoclip_line(7, 4, 3).encode(),
        egoclip_line(8, "one", 3).encode(),
        egoclip_line(9, -2, 3).encode(),
        egoclip_line(10, 1, 2, " ").encode(),
        egoclip_line(14, 0, 1e15).encode(),
        egoclip_line(15, 2, 2.0000001).encode(),
        egoclip_line(11, 1, 2, '"an open quote').encode(),
        b"",
        egoclip_line(12, 2, 3, "#C C sees „ä“ and ☕").encode(),
        egoclip_line(13, 2, 3, uid="..").encode(),
    ]
    (tmp_path / "egoclip.csv").write_bytes(b"\r\n".join([EGOCLIP_HEADER.encode(), *rows]))
    clips = run(tmp_path, "egoclip", tmp_path / "egoclip.csv", max_skipped_share=1.0)
    assert [clip.key for clip in clips] == [f"{UID}-0", f"{UID}-12"]
    assert clips[1].narration == "#C C sees „ä“ and ☕"
    found = [json.loads(line) for line in (tmp_path / "store" / "skipped.jsonl").read_text().splitlines()]
    assert [(row["source"], row["reason"]) for row in found] == [
        ("line 3", "damaged line of annotation"),
        ("line 4", "damaged line of annotation"),
        ("line 5", "text not UTF-8"),
        (f"{UID}.mp4", "duplicate id"),
        ("line 7", "time not finite"),
        ("line 8", "time not finite"),
        ("line 9", "end not after start"),
        ("line 10", "missing or wrong field"),
        ("line 11", "time before the video"),
        ("line 12", "empty narration"),
        ("line 13", "time outside the video"),
        ("line 14", "end not after start"),
        ("line 15", "damaged line of annotation"),
        ("line 18", "invalid id"),
    ]


def test_bad_entries_of_lavila(tmp_path):
    make_lavila(tmp_path)
    good = (UID, 1.0, 2.0, "#C C waits")
    entries = [good, good, (UID, 1.0), 5, (UID, 1.0, 2.0, []), (UID, 2.0, 1.0, "#C C a"), (3, 1.0, 2.0, "b"),
               (UID, 1.0, 2.0, b"bytes"), (UID, 40.0, 41.0, "#C C c"), (UID, 400.0, 401.0, "#C C d"),
               (UID, 10**5000, 2.0, "#C C e"), (UID, [[[[1]]]] * 999, 2.0, "#C C f")]  # fmt: skip
    (tmp_path / "train.pkl").write_bytes(pickle.dumps(entries))
    (clip,) = run(tmp_path, "lavila", tmp_path / "train.pkl", max_skipped_share=1.0)
    assert clip.key == f"{UID}-0000000"
    wrong = "missing or wrong field"
    assert [json.loads(line)["reason"] for line in (tmp_path / "store" / "skipped.jsonl").read_text().splitlines()] == [
        "duplicate id", wrong, wrong, wrong, "end not after start", wrong, wrong, "time outside the video", "video missing", wrong, wrong
    ]  # fmt: skip


def test_bad_lines_of_epic100(tmp_path):
    annotations = make_epic100(tmp_path)
    rows = [
        EPIC_ROW,
        EPIC_ROW.replace("P01_11_0", "P01_11_2").replace("00:00:03.00", "3.0"),
        EPIC_ROW.replace("P01_11_0", "P01_11_3").replace(",0,plate", ",zero,plate"),
        EPIC_ROW.replace("P01_11_0", "P01_11_4").replace("take plate", ""),
        "P01,too,short",
    ]
    annotations.write_text(annotations.read_text() + "\n".join(rows))
    assert len(run(tmp_path, "epic100", annotations, max_skipped_share=1.0)) == 2
    assert reasons(tmp_path) == {
        "P01_11_0": "duplicate id", "P01_11_2": "missing or wrong field", "P01_11_3": "missing or wrong field",
        "P01_11_4": "empty narration", "line 8": "damaged line of annotation",
    }  # fmt: skip


WRONG_FILES = {
    "empty": (b"", r"the file is empty"),
    "utf-16": ("a,b\nc,d\n".encode("utf-16"), r"not UTF-8 text|not a whole pickle"),
    "binary": (bytes(range(256)) * 20, r"not UTF-8 text|not a whole pickle"),
    "other": (b"a,b,c\n1,2,3\n", r"not JSON|its header has no|not a whole pickle"),
    "latin": ("é".encode("latin1") * 100, r"not UTF-8 text|not a whole pickle"),
}


@pytest.mark.parametrize("wrong", WRONG_FILES)
def test_a_wrong_annotation_file_is_one_clear_error(tmp_path, source, wrong):
    data, message = WRONG_FILES[wrong]
    (tmp_path / "videos").mkdir()
    annotations = tmp_path / ("train.pkl" if source == "lavila" else "annotations")
    annotations.write_bytes(data)
    with pytest.raises(ValueError, match=rf"annotations={annotations}: .*({message})"):
        run(tmp_path, source, annotations)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("text", ["[]", "{}", '{"a": {"b": 1}}', "3", '{"videos": {}}'])
def test_other_json_is_not_ego4d(tmp_path, text):
    (tmp_path / "videos").mkdir()
    (tmp_path / "n.json").write_text(text)
    with pytest.raises(ValueError, match=r"expected Ego4D's narration\.json"):
        run(tmp_path, "ego4d", tmp_path / "n.json")


def test_missing_files_and_wrong_settings(tmp_path, source):
    with pytest.raises(FileNotFoundError, match=rf"videos=.*no such directory.* of {source}"):
        run(tmp_path, source, tmp_path / "none")
    (tmp_path / "videos").mkdir()
    with pytest.raises(FileNotFoundError, match=r"annotations=.*no such file"):
        run(tmp_path, source, tmp_path / ("none.pkl" if source == "lavila" else "none"))
    for changes, message in (
        ({"frames": 0}, "frames=0"), ({"max_gap_s": float("nan")}, "max_gap_s=nan"), ({"chunk_s": -1.0}, "chunk_s=-1"),
        ({"max_skipped_share": 2.0}, "max_skipped_share=2"), ({"out": ""}, "out= is empty"), ({"limit": -1}, "limit=-1"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            run(tmp_path, source, tmp_path / "none", **changes)
    with pytest.raises(ValueError, match="source=kinetics: expected one of ego4d, egoclip, lavila, epic100"):
        run(tmp_path, "kinetics", tmp_path / "none")


def test_too_many_failures_end_it(tmp_path):
    write_video(tmp_path / "videos" / "good.mp4", steady(30, fps=10))
    rows = [egoclip_line(index, 1, 2, uid="good" if index < 40 else "gone") for index in range(150)]
    (tmp_path / "egoclip.csv").write_text("\n".join([EGOCLIP_HEADER, *rows]))
    message = r"60 of the first 100 clips were skipped, more than max_skipped_share=0.5 allows: video missing \(60\)"
    with pytest.raises(ValueError, match=message):
        run(tmp_path, "egoclip", tmp_path / "egoclip.csv", frames=1)
    assert len(run(tmp_path, "egoclip", tmp_path / "egoclip.csv", frames=1, max_skipped_share=0.9)) == 40


def test_nothing_at_all(tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "egoclip.csv").write_text(f"{EGOCLIP_HEADER}\n{egoclip_line(0, 1, 2)}\n")
    with pytest.raises(ValueError, match=r"all 1 clips were skipped, so there is no store: video missing \(1\)"):
        run(tmp_path, "egoclip", tmp_path / "egoclip.csv")
    (tmp_path / "egoclip.csv").write_text(f"{EGOCLIP_HEADER}\n")
    with pytest.raises(ValueError, match="no entry in it"):
        run(tmp_path, "egoclip", tmp_path / "egoclip.csv")


def test_limit_grows(tmp_path):
    annotations = make_ego4d(tmp_path)
    assert len(run(tmp_path, "ego4d", annotations, limit=1)) == 1
    assert len(run(tmp_path, "ego4d", annotations, limit=2)) == 2
    assert len(run(tmp_path, "ego4d", annotations)) == 3
    run(tmp_path, "ego4d", annotations, out=str(tmp_path / "whole"))
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "store" / path.name).read_bytes()


# --- pickles ---


class Harmful:
    def __reduce__(self):
        return (eval, ("1 + 1",))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_come_out_of_a_pickle(tmp_path, protocol):
    value = [
        ("uid", 1.5, np.float64(2.5), "ä"), {"a": [1, None, True]}, b"\x00\xff", np.float32(0.5), np.int64(-7), np.bool_(True),
    ]  # fmt: skip
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(value, protocol))
    loaded = load_plain(tmp_path / "a.pkl")
    assert loaded == [("uid", 1.5, 2.5, "ä"), {"a": [1, None, True]}, b"\x00\xff", 0.5, -7, True]
    assert [type(one) for one in loaded[3:]] == [float, int, bool] and type(loaded[0][2]) is float


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Harmful(), r"(builtins|__builtin__)\.eval"),
        (Path("a"), r"pathlib\S*\.\w*Path"),
        (np.zeros(3), r"numpy\.core\.\S*"),
        (np.float64, r"numpy\.float64"),
        (np.dtype([("a", "f8")]), r"the numpy type 'V8'"),
    ],
)
@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_a_pickle_that_names_anything_else_is_refused(tmp_path, value, name, protocol):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([value], protocol))
    with pytest.raises(
        ValueError, match=rf"this pickle names {name}, which may run any code; .*annotations=FILE\.jsonl"
    ):
        load_plain(tmp_path / "a.pkl")


@given(st.binary(max_size=60), st.integers(0, 200), st.integers(1, 5))
@settings(max_examples=150, deadline=None)
def test_a_damaged_pickle_is_one_error(tmp_path_factory, noise, place, protocol):
    data = pickle.dumps([(UID, 1.0, np.float64(2.0), "#C C a")], protocol)
    path = tmp_path_factory.mktemp("pickles") / "a.pkl"
    path.write_bytes(data[:place] + noise + data[place + len(noise) // 2 :] or b"x")
    try:
        load_plain(path)
    except ValueError as error:
        assert str(error).startswith(f"annotations={path}: ")


# --- arithmetic ---

seconds = st.floats(0, 40_000)


@given(st.lists(seconds, min_size=1, max_size=40), st.floats(0.1, 60))
def test_spans_hold_their_narration(times_s, alpha_s):
    beta_s = ego4d.mean_gap_s(times_s, alpha_s)
    assert beta_s > 0
    spans = [ego4d.span_of(time_s, beta_s, alpha_s) for time_s in times_s]
    for time_s, (start_s, end_s) in zip(times_s, spans, strict=True):
        assert 0 <= start_s <= time_s <= end_s
        # As long as beta / alpha, but for what lies before the video.
        assert end_s - start_s == pytest.approx(
            min(beta_s / alpha_s, time_s + beta_s / alpha_s / 2), rel=1e-6, abs=1e-6
        )
    ordered = sorted(times_s)
    gaps = np.diff(ordered)
    assert beta_s == pytest.approx(gaps.mean() if len(gaps) and gaps.mean() >= 0.001 else alpha_s)


@given(seconds, st.floats(0.01, 700), st.sampled_from([15.0, 300.0, 0.5, 7.5]))
def test_chunks_cover_a_clip_without_overlap(start_s, duration_s, chunk_s):
    end_s = start_s + duration_s
    parts = chunked_parts("u", start_s, end_s, chunk_s)
    assert parts[0].start_s <= start_s < parts[0].end_s
    assert parts[-1].start_s < end_s or len(parts) == 1
    assert end_s <= parts[-1].end_s * (1 + 1e-12)
    for before, after in itertools.pairwise(parts):
        assert before.end_s == after.start_s
    assert len({part.path for part in parts}) == len(parts)
    assert all(part.end_s - part.start_s == chunk_s for part in parts)
    for time_s in start_s + midpoints_s(duration_s, 8):
        part = parts[parts_at(parts, time_s)]
        assert part.start_s <= time_s <= part.end_s
    assert all(float(Path(part.path).stem) == part.start_s for part in parts)


@given(st.text(max_size=200), st.text(max_size=50))
def test_keys_are_valid_stable_and_apart(one, other):
    key = make_key(one, other)
    assert Clip(key=key).key == key == make_key(one, other) and len(f"{key}.segmentation.npz") <= 100
    if other + "x" != other:
        assert make_key(one, other + "x") != key
    assert make_key(UID, "7") == f"{UID}-7"


@given(st.integers(0, 99), st.integers(0, 59), st.integers(0, 5999))
def test_timestamps(hours, minutes, hundredths):
    text = f"{hours:02d}:{minutes:02d}:{hundredths // 100:02d}.{hundredths % 100:02d}"
    assert epic100.seconds(text) == pytest.approx(hours * 3600 + minutes * 60 + hundredths / 100)


@pytest.mark.parametrize("text", ["", "1:2", "00:60:00", "00:00:61.0", "nan", "-1:00:00"])
def test_wrong_timestamps(text):
    with pytest.raises(LineError, match="expected HH:MM:SS"):
        epic100.seconds(text)


@pytest.mark.parametrize(
    ("command", "verb", "narration"),
    [
        ("take plate", "take", "takes plate"), ("wash hands", "wash", "washes hands"), ("dry cup", "dry", "dries cup"),
        ("put-down knife", "put-down", "puts-down knife"), ("mix", "mix", "mixes"), ("still stir soup", "stir", "still stirs soup"),
        ("stirring soup", "stir", "stirring soup"), ("pick up bag", "take", "picks up bag"), ("Open tap", "open", "opens tap"),
        ("spray tap", "spray", "sprays tap"),
    ],
)  # fmt: skip
def test_commands_become_narrations(command, verb, narration):
    assert epic100.narration_of(command, verb) == f"#C C {narration}"


@pytest.mark.parametrize("text", ["", " \n", "#C", "#C C", "#O", "#C C ."])
def test_a_narration_of_tags_alone_is_empty(text):
    with pytest.raises(LineError, match="empty narration"):
        checked_narration(text)
    assert checked_narration("#C C  takes\ta cup ") == "#C C takes a cup"


def test_the_table_of_requests_gives_back_what_was_written(tmp_path):
    request = ClipRequest(key="a", parts=(VideoPart(path="ü.mp4"), VideoPart(path="b", start_s=15.0, end_s=30.0)), start_s=1.0,
                          end_s=2.0, narration="☕\n", meta={"x": [1]})  # fmt: skip
    rows = [request, Skipped(key="", source="line 2", reason="r"), replace(request, key="c", anchor_s=1.5)]
    table = RequestTable.write(tmp_path, rows)
    assert len(table) == 3 and [table[index] for index in range(3)] == rows


# --- round trip ---


def test_synthetic_clips_there_and_back(tmp_path, square_store):
    """Clips as MP4 with Ego4D's JSON, imported: the same pictures, and a model pretrains on them without depth."""
    store = open_store(square_store)
    videos = {}
    for index in range(16):
        clip = store.read(index, ("rgb", "rgb_times_s", "narration"))
        uid = clip.key
        write_video(tmp_path / "videos" / f"{uid}.mp4", clip.rgb_times_s, pictures=list(clip.rgb), options={"crf": "4"}, pixels="yuv444p",)  # fmt: skip
        videos[uid] = {"narration_pass_1": narrated((1.0, clip.narration)), "status": "complete"}
    # One narration at 1.0 s: with beta = alpha the clip lasts 1 s, from 0.5 to 1.5 s; four of the frames, 0.25 s apart.
    clips = run(tmp_path, "ego4d", write_ego4d(tmp_path / "narration.json", videos), clips_per_shard=8)
    assert len(clips) == 16
    for index, clip in enumerate(clips):
        before = store.read(index, ("rgb", "narration"))
        assert clip.narration == before.narration
        error = (clip.rgb.astype(float) - before.rgb[2:6].astype(float)) ** 2
        assert 10 * np.log10(255**2 / error.mean()) > 30
    trainer = TrainerConfig(
        steps=3, batch_size=4, warmup_steps=1, threads=1, log_every=1, accelerator="cpu", checkpoint_every=3
    )
    out = tmp_path / "run"
    pretrain(
        PretrainConfig(
            data=str(tmp_path / "store"), out=str(out), size="nano", frames=2, depth_weight=0.0, trainer=trainer
        )
    )
    rows = read_metrics(out / "metrics.jsonl")
    assert len(rows) == 3 and all(np.isfinite(row["loss"]) and "depth" not in row for row in rows)
    assert load_encoder(out / "encoder").spec.name == "egodtm-nano"
