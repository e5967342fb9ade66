"""Making clip stores: the same bytes on every run, whole shards whatever happens, and on from where it stopped."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pretrain.clips import build, shards
from pretrain.clips.build import build_store
from pretrain.clips.schema import Clip
from pretrain.clips.skipping import Skipped, SkipTally
from pretrain.clips.store import open_store, stream

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {"size": 8, "colors": [1, 2]}
VERSIONS = {"numpy": "1.0"}


def made_clip(index: int, calls: list[int] | None = None) -> Clip:
    if calls is not None:
        calls.append(index)
    random = np.random.default_rng(index)
    return Clip(
        key=f"made-{index:04d}",
        rgb=random.integers(0, 255, (3, 8, 8, 3)).astype(np.uint8),
        rgb_times_s=np.arange(3) / 8,
        depth=random.uniform(0.1, 2, (3, 8, 8)).astype(np.float32),
        narration=f"#C C makes {index}",
    )


def make(directory: Path, n: int = 10, *, generate=made_clip, **changes):
    arguments = {
        "kind": "made",
        "seed": 3,
        "settings": SETTINGS,
        "versions": VERSIONS,
        "clips_per_shard": 4,
        "workers": 1,
    }
    return build_store(directory, generate, n_clips=n, **{**arguments, **changes})


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_the_same_call_gives_the_same_bytes_whatever_the_workers(tmp_path):
    make(tmp_path / "a")
    make(tmp_path / "b", workers=2)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert list(contents(tmp_path / "a")) == ["manifest.json", *(f"shard-00000{i}.tar" for i in range(3))]
    manifest = open_store(tmp_path / "a").manifest
    assert manifest["totals"]["clips"] == 10 and manifest["totals"]["duration_s"] == pytest.approx(10 * 3 / 8)
    assert manifest["config"] == SETTINGS and manifest["versions"] == VERSIONS and manifest["seed"] == 3


def test_a_finished_store_is_left_as_it_is(tmp_path):
    make(tmp_path / "a")
    before = contents(tmp_path / "a")
    calls: list[int] = []
    result = make(tmp_path / "a", generate=partial(made_clip, calls=calls))
    assert calls == [] and result.kept_clips == result.clips == 10
    assert contents(tmp_path / "a") == before


@pytest.mark.parametrize("harm", ["delete", "truncate", "alter"])
def test_only_a_harmed_shard_is_made_again(tmp_path, harm):
    make(tmp_path / "a")
    before = contents(tmp_path / "a")
    shard = tmp_path / "a" / "shard-000001.tar"
    if harm == "delete":
        shard.unlink()
    elif harm == "truncate":
        os.truncate(shard, 100)
    else:
        shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    calls: list[int] = []
    make(tmp_path / "a", generate=partial(made_clip, calls=calls))
    assert calls == [4, 5, 6, 7]
    assert contents(tmp_path / "a") == before


def test_a_store_grows_to_what_one_run_would_have_made(tmp_path):
    make(tmp_path / "a", 6)
    calls: list[int] = []
    make(tmp_path / "a", 10, generate=partial(made_clip, calls=calls))
    assert calls == list(range(4, 10))  # the first shard was full
    make(tmp_path / "b", 10)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    with pytest.raises(ValueError, match="already holds 10 clips, more than n=6"):
        make(tmp_path / "a", 6)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 4}, "seed was 3, now 4"),
        ({"settings": {**SETTINGS, "size": 9}}, "config.size was 8, now 9"),
        ({"versions": {"numpy": "2.0"}}, "versions.numpy was '1.0', now '2.0'"),
        ({"clips_per_shard": 5}, "clips_per_shard was 4, now 5"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_are_refused_by_name(tmp_path, changes, message, finished):
    if finished:
        make(tmp_path / "a")
    else:
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "a", generate=stop_at_six)
    before = contents(tmp_path / "a")
    with pytest.raises(ValueError, match=f"{message}; give the old values, choose another out=, or delete"):
        make(tmp_path / "a", **changes)
    assert contents(tmp_path / "a") == before


def stop_at_six(index: int) -> Clip:
    if index == 6:
        raise KeyboardInterrupt
    return made_clip(index)


def test_a_stopped_run_leaves_whole_shards_and_goes_on(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "a", generate=stop_at_six)
    assert list(contents(tmp_path / "a")) == ["shard-000000.json", "shard-000000.tar"]
    with pytest.raises(FileNotFoundError, match=r"1 shards but no manifest\.json: it was not finished"):
        open_store(tmp_path / "a")
    calls: list[int] = []
    make(tmp_path / "a", generate=partial(made_clip, calls=calls))
    assert calls == list(range(4, 10))
    make(tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def fail_at_six(index: int) -> Clip:
    if index == 6:
        raise ValueError("clip 6 cannot be made")
    return made_clip(index)


def die_at_six(index: int) -> Clip:
    if index == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return made_clip(index)


def test_an_error_in_a_worker_comes_out(tmp_path):
    with pytest.raises(ValueError, match="clip 6 cannot be made"):
        make(tmp_path / "a", generate=fail_at_six, workers=2)
    assert not any(name.startswith(".") or name == "manifest.json" for name in contents(tmp_path / "a"))


def test_a_dead_worker_is_reported(tmp_path):
    with pytest.raises(RuntimeError, match=r"a worker process died .* run the same command again"):
        make(tmp_path / "a", generate=die_at_six, workers=2)
    assert not any(name.startswith(".") or name == "manifest.json" for name in contents(tmp_path / "a"))


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_one_clear_error(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(shards.os, "fsync", full_disk)
        with pytest.raises(ValueError, match=r"cannot write clips to .*: the disk is full; .*another disk with out="):
            make(tmp_path / "a")
    assert contents(tmp_path / "a") == {}
    make(tmp_path / "a")
    make(tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_fills_up_while_writing(tmp_path, monkeypatch):
    # Every write to /dev/full fails as on a full disk, from inside the tar writer.
    opened = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, *a, **k: opened(Path("/dev/full") if "egoarm-tmp" in self.name else self, *a, **k)
    )
    with pytest.raises(ValueError, match="the disk is full"):
        make(tmp_path / "a")
    assert contents(tmp_path / "a") == {}


def test_two_runs_at_once_in_one_directory(tmp_path):
    with build._exclusive(tmp_path), pytest.raises(ValueError, match="another run is writing clips there"):
        make(tmp_path)


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "a").write_text("mine")
    with pytest.raises(ValueError, match="is a file; choose another out="):
        make(tmp_path / "a")


SLOW_RUN = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    import test_clips_build as tests

    def slow_clip(index):
        time.sleep(0.05)
        return tests.made_clip(index)

    if __name__ == "__main__":
        tests.make(Path(sys.argv[2]), 16, generate=slow_clip, workers=2)
    """
)


@pytest.mark.parametrize("wait_for_shards", [0, 2])
def test_killed_at_any_moment_it_goes_on(tmp_path, wait_for_shards):
    script = tmp_path / "run.py"
    script.write_text(SLOW_RUN)
    directory = tmp_path / "a"
    command = [sys.executable, str(script), str(Path(__file__).parent), str(directory)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "EGOARM_TEST_RUN": str(directory)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(directory.glob("shard-*.tar"))) < wait_for_shards or not list(directory.glob(".egoarm-tmp-*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in directory.glob("shard-*.tar")}
    for sidecar in directory.glob("shard-*.json"):
        entry = json.loads(sidecar.read_text())["shard"]
        assert shards.sha256_file(directory / entry["name"]) == entry["sha256"]
    assert _workers_end(directory)
    subprocess.run(command, env=environment, check=True, stderr=subprocess.DEVNULL)
    make(tmp_path / "b", 16)
    assert contents(directory) == contents(tmp_path / "b")
    still = [name for name, mtime in kept.items() if (directory / name).stat().st_mtime_ns == mtime]
    assert len(still) >= wait_for_shards - 1  # a tar whose sidecar was not yet written is made again


def _workers_end(directory: Path) -> bool:
    """Whether the spawned workers of a killed run end by themselves."""
    mark = f"EGOARM_TEST_RUN={directory}".encode()
    for _ in range(200):
        if not any(mark in _environment(process) for process in Path("/proc").glob("[0-9]*")):
            return True
        time.sleep(0.05)
    return False


def _environment(process: Path) -> bytes:
    try:
        return (process / "environ").read_bytes()
    except OSError:
        return b""


# --- clips that cannot be made ---

# A hole in the first shard, the whole of the second, and one in the last: clips 0..9, 4 a shard.
HOLES = {1: "empty narration", 4: "video missing", 5: "video missing", 6: "video missing", 7: "video missing", 9: "ä"}


def holed_clip(index: int, calls: list[int] | None = None, holes: dict[int, str] = HOLES) -> Clip | Skipped:
    if calls is not None:
        calls.append(index)
    if index in holes:
        return Skipped(key=f"made-{index:04d}", source=f"{index}.mp4", reason=holes[index], detail="ü\n")
    return made_clip(index)


def stop_at_eight(index: int) -> Clip | Skipped:
    if index == 8:
        raise KeyboardInterrupt
    return holed_clip(index)


def test_skipped_clips_are_counted_and_listed(tmp_path):
    result = make(tmp_path / "a", generate=holed_clip)
    assert (result.clips, result.shards, result.kept_clips) == (4, 2, 0)
    assert result.skipped == {"video missing": 4, "empty narration": 1, "ä": 1}
    make(tmp_path / "b", generate=holed_clip, workers=2)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    # The shard without a clip has no tar.
    assert list(contents(tmp_path / "a")) == ["manifest.json", "shard-000000.tar", "shard-000002.tar", "skipped.jsonl"]
    store = open_store(tmp_path / "a")
    store.verify()
    assert store.manifest["skipped"] == result.skipped and store.manifest["totals"]["clips"] == len(store) == 4
    assert store.keys == ["made-0000", "made-0002", "made-0003", "made-0008"]
    assert [store.read(index).narration[-1] for index in range(4)] == list("0238")
    assert [clip.key for clip in stream(tmp_path / "a")] == store.keys
    rows = [json.loads(line) for line in (tmp_path / "a" / "skipped.jsonl").read_text().splitlines()]
    assert [row["index"] for row in rows] == sorted(HOLES)
    assert rows[0] == {
        "index": 1, "key": "made-0001", "source": "1.mp4", "reason": "empty narration", "detail": "ü\n"
    }  # fmt: skip


def test_a_manifest_without_skips_does_not_speak_of_them(tmp_path):
    make(tmp_path / "a")
    assert "skip" not in (tmp_path / "a" / "manifest.json").read_text()


def test_a_finished_store_with_holes_is_left_as_it_is(tmp_path):
    first = make(tmp_path / "a", generate=holed_clip)
    before = contents(tmp_path / "a")
    calls: list[int] = []
    again = make(tmp_path / "a", generate=partial(holed_clip, calls=calls))
    assert calls == [] and again.skipped == first.skipped and again.kept_clips == again.clips == 4
    assert contents(tmp_path / "a") == before


def test_a_stopped_run_with_holes_goes_on(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "a", generate=stop_at_eight)
    assert list(contents(tmp_path / "a")) == ["shard-000000.json", "shard-000000.tar", "shard-000001.json"]
    calls: list[int] = []
    make(tmp_path / "a", generate=partial(holed_clip, calls=calls))
    assert calls == [8, 9]
    make(tmp_path / "b", generate=holed_clip)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_store_with_holes_grows_to_what_one_run_would_have_made(tmp_path):
    make(tmp_path / "a", 6, generate=holed_clip)
    calls: list[int] = []
    make(tmp_path / "a", 10, generate=partial(holed_clip, calls=calls))
    assert calls == list(range(4, 10))
    make(tmp_path / "b", 10, generate=holed_clip)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    with pytest.raises(ValueError, match="already holds 10 clips, more than n=6"):
        make(tmp_path / "a", 6, generate=holed_clip)


@pytest.mark.parametrize("harm", ["delete", "alter"])
def test_a_lost_list_of_skips_is_made_again(tmp_path, harm):
    make(tmp_path / "a", generate=holed_clip)
    before = contents(tmp_path / "a")
    listed = tmp_path / "a" / "skipped.jsonl"
    listed.unlink() if harm == "delete" else listed.write_text("nonsense")
    make(tmp_path / "a", generate=holed_clip)
    assert contents(tmp_path / "a") == before


def test_skipped_clips_are_tried_again_when_asked(tmp_path):
    make(tmp_path / "a", generate=holed_clip)
    calls: list[int] = []
    mended = partial(holed_clip, calls=calls, holes={9: "ä"})
    make(tmp_path / "a", generate=mended, retry_skipped=True)
    assert calls == list(range(10))
    make(tmp_path / "b", generate=partial(holed_clip, holes={9: "ä"}))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    calls.clear()
    make(tmp_path / "a", generate=partial(holed_clip, calls=calls, holes={}), retry_skipped=True)
    assert calls == [8, 9]
    make(tmp_path / "c")
    assert contents(tmp_path / "a") == contents(tmp_path / "c")  # nothing is left of the list


def test_no_clip_at_all_is_an_error(tmp_path):
    holes = dict.fromkeys(range(10), "video missing") | {3: "empty narration"}
    with pytest.raises(ValueError, match=r"all 10 clips were skipped, .*: video missing \(9\), empty narration \(1\)"):
        make(tmp_path / "a", generate=partial(holed_clip, holes=holes))
    with pytest.raises(FileNotFoundError, match=r"manifest\.json"):
        open_store(tmp_path / "a")


def every_third(index: int) -> Clip | Skipped:
    if index % 3:
        return Skipped(key=str(index), source="", reason=f"reason {index % 7 // 2}")
    return made_clip(index)


@pytest.mark.parametrize("workers", [1, 2])
def test_too_many_skips_stop_the_run(tmp_path, workers):
    settings = {"generate": every_third, "workers": workers, "clips_per_shard": 10}
    with pytest.raises(
        ValueError, match=r"of the first \d+ clips were skipped, .*max_skipped_share=0\.5 allows: reason"
    ):
        make(tmp_path / "a", 200, max_skipped_share=0.5, **settings)
    assert not any(name.startswith(".") or name == "manifest.json" for name in contents(tmp_path / "a"))
    assert make(tmp_path / "a", 200, max_skipped_share=0.7, **settings).clips == 67
    make(tmp_path / "b", 200, **settings)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_share_is_not_looked_at_before_100_clips(tmp_path):
    assert make(tmp_path / "a", 99, generate=every_third, max_skipped_share=0.0, clips_per_shard=50).clips == 33


def test_the_error_shows_the_three_commonest_reasons():
    with SkipTally(Path("store"), 1000, 99, (), 0.0) as tally:
        tally("")
        with pytest.raises(ValueError, match=r"1 of the first 101 clips .* allows: a \(1\); mend"):
            tally("a")
        for reason in "bbbccccdd":
            with pytest.raises(ValueError):
                tally(reason)
        with pytest.raises(ValueError, match=r"allows: c \(4\), b \(3\), d \(3\); mend"):
            tally("d")
