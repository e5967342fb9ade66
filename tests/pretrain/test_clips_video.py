"""The frame that is shown at a time, whatever the file's rate, start, frame order and damage."""

import itertools
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from pretrain.clips import video
from pretrain.clips.video import VideoError, probe_video, read_frames

# The tests are no package: their directory is put on the path for the helpers that lie beside them.
sys.path.insert(0, str(Path(__file__).parent))
from coded_video import (
    HEIGHT,
    WIDTH,
    coded_number,
    coded_picture,
    index_first,
    steady,
    varying,
    write_audio,
    write_video,
)

N = 60
TIMES = {"constant": steady(N), "variable": varying(N), "late": steady(N, start_s=5.0)}
# Three B-frames between others, also across key frames; codecs with another order of frames, and without one.
CODECS = {
    "b-frames": ("libx264", {"bf": "3", "b_strategy": "0"}),
    "open": ("libx264", {"bf": "3", "b_strategy": "0", "x264-params": "open-gop=1:keyint=12"}),
    "mpeg4": ("mpeg4", {}),
}


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("rate", TIMES)
def test_the_exact_frame_is_returned(tmp_path, rate, codec, suffix):
    name, options = CODECS[codec]
    times_s = TIMES[rate]
    path = write_video(tmp_path / f"a.{suffix}", times_s, codec=name, options=options)
    from_start_s = [time_s - times_s[0] for time_s in times_s]
    between_s = [(before + after) / 2 for before, after in itertools.pairwise(from_start_s)]
    chosen = np.random.default_rng(1).permutation(N - 1)[:20].tolist()
    assert [coded_number(picture) for picture in read_frames(path, [between_s[i] for i in chosen])] == chosen
    for number in (0, 1, 11, 12, 13, 29, N - 1):
        # At its very time, and one by one, so that each is a seek.
        assert coded_number(read_frames(path, [from_start_s[number]])[0]) == number


def test_any_order_with_repeats_and_far_apart(tmp_path):
    path = write_video(tmp_path / "a.mp4", steady(100, fps=10))
    frames = read_frames(path, [9.0, 0.0, 9.04, 4.55, 0.0, 9.9])
    assert [coded_number(picture) for picture in frames] == [90, 0, 90, 45, 0, 99]
    assert frames.dtype == np.uint8 and frames.shape == (6, HEIGHT, WIDTH, 3)
    assert np.abs(frames[1].astype(int) - coded_picture(0)).mean() < 4


def test_near_times_are_one_seek(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", steady(100, fps=10))
    sought: list[float] = []
    decode = video._decode_from
    monkeypatch.setattr(video, "_decode_from", lambda *a: sought.append(round(a[3], 1)) or decode(*a))
    read_frames(path, [0.5, 1.5, 1.0, 7.0, 7.1])
    assert sought == [0.5, 7.0]


@pytest.mark.parametrize(("size", "shape"), [(None, (64, 96)), (32, (32, 48)), (100, (100, 150))])
def test_size_is_the_short_side(tmp_path, size, shape):
    path = write_video(tmp_path / "a.mp4", steady(8))
    frames = read_frames(path, [0.1], size=size)
    assert frames.shape == (1, *shape, 3) and coded_number(frames[0]) == 3


@pytest.mark.parametrize("rotation", [90, -90, 180])
def test_rotation_is_honoured(tmp_path, rotation):
    path = write_video(tmp_path / "a.mp4", steady(8), rotation=rotation)
    upright = read_frames(path, [0.1], size=48)[0]
    expected = np.rot90(coded_picture(3), rotation // 90)
    assert upright.shape[:2] == ((48, 72) if rotation == 180 else (72, 48))
    stored = np.rot90(upright, -rotation // 90)
    assert coded_number(stored) == 3
    info = probe_video(path)
    assert (info.height, info.width) == expected.shape[:2]


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_probe(tmp_path, suffix):
    even = probe_video(write_video(tmp_path / f"a.{suffix}", steady(N, start_s=2.0)))
    assert even.duration_s == pytest.approx(2.0, abs=0.04) and even.fps == pytest.approx(30, rel=0.01)
    assert (even.width, even.height, even.is_variable_rate) == (WIDTH, HEIGHT, False)
    assert even.frames == (N if suffix == "mp4" else None)
    uneven = probe_video(write_video(tmp_path / f"b.{suffix}", varying(N)))
    assert uneven.is_variable_rate and uneven.duration_s == pytest.approx(varying(N)[-1], abs=0.1)


def test_a_gap_is_shown_through_or_refused(tmp_path):
    path = write_video(tmp_path / "a.mp4", [*steady(15), *steady(15, start_s=3.0)])
    assert coded_number(read_frames(path, [2.0])[0]) == 14
    assert coded_number(read_frames(path, [0.2], max_gap_s=1.0)[0]) == 6
    with pytest.raises(VideoError, match=r"no frame between 0\.467 s and 3\.000 s, where 2\.000 s is wanted") as caught:
        read_frames(path, [0.2, 2.0], max_gap_s=1.0)
    assert caught.value.reason == video.FRAMES_MISSING
    assert probe_video(path).is_variable_rate


def reason_of(path: Path, *times_s: float) -> str:
    with pytest.raises(VideoError, match=path.name) as caught:
        read_frames(path, times_s)
    return caught.value.reason


def test_times_outside(tmp_path):
    path = write_video(tmp_path / "a.mp4", steady(N))
    assert coded_number(read_frames(path, [2.0 - 0.01])[0]) == N - 1
    assert reason_of(path, 1.0, 2.1) == reason_of(path, -0.1) == reason_of(path, 500.0) == video.TIME_OUTSIDE
    for wrong in ([], [float("nan")], [float("inf")]):
        with pytest.raises(ValueError, match="expected one or more finite numbers"):
            read_frames(path, wrong)
    with pytest.raises(ValueError, match="size=0"):
        read_frames(path, [0.0], size=0)


@pytest.mark.parametrize("form", ["index first", "mkv"])
def test_a_truncated_file_gives_what_it_holds(tmp_path, form):
    whole = write_video(tmp_path / ("a.mkv" if form == "mkv" else "a.mp4"), steady(N))
    if form == "index first":
        whole = index_first(whole, tmp_path / "b.mp4")
    cut = tmp_path / f"cut{whole.suffix}"
    cut.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * 0.7)])
    assert coded_number(read_frames(cut, [0.1])[0]) == 3
    assert reason_of(cut, 1.8) == reason_of(cut, 0.1, 1.8) == video.VIDEO_TRUNCATED
    assert reason_of(cut, 9.0) == video.TIME_OUTSIDE


def test_files_that_are_no_video(tmp_path):
    whole = write_video(tmp_path / "a.mp4", steady(N))
    files = {
        "cut.mp4": whole.read_bytes()[:-200],  # the index, which is last, is not whole
        "empty.mp4": b"",
        "noise.mp4": os.urandom(2000),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        assert reason_of(tmp_path / name, 0.0) == video.VIDEO_UNDECODABLE
    assert reason_of(write_audio(tmp_path / "sound.mp4"), 0.0) == video.VIDEO_NOT_VIDEO
    assert reason_of(tmp_path / "none.mp4", 0.0) == reason_of(tmp_path, 0.0) == video.VIDEO_MISSING
    avi = write_video(tmp_path / "a.avi", steady(N), options={"bf": "2"})
    assert reason_of(avi, 0.0) == video.VIDEO_UNTIMED
    with pytest.raises(VideoError):
        probe_video(tmp_path / "noise.mp4")


def test_damage_within_never_gives_a_wrong_frame(tmp_path):
    whole = write_video(tmp_path / "a.mp4", steady(N))
    data = bytearray(whole.read_bytes())
    for place in range(len(data) // 2, len(data) // 2 + 150):
        data[place] ^= 0x5A
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(data)
    refused = 0
    for number in range(N):
        try:
            assert coded_number(read_frames(damaged, [number / 30])[0]) == number
        except VideoError as error:
            assert error.reason == video.VIDEO_UNDECODABLE
            refused += 1
    assert 0 < refused < N
