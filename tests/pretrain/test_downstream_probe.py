"""`egoarm probe` end to end: every row of the table on a made-up store, what is held out, what is refused."""

import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import yaml

from pretrain.clips.build import build_store
from pretrain.clips.dataset import ClipDataset
from pretrain.clips.schema import Clip
from pretrain.clips.store import open_store
from pretrain.downstream import comparison, features, nlq
from pretrain.downstream.ek100 import COLUMNS
from pretrain.downstream.features import Extractor
from pretrain.downstream.probe import ProbeConfig, run
from pretrain.downstream.segments import FileVideos, Segment, StoreSpans, StoreVideos
from pretrain.downstream.statistics import make_metric
from pretrain.downstream.subjects import load_model, load_subject, unique_names
from pretrain.downstream.synthetic_twin import held_out_clips
from pretrain.downstream.table import BENCHMARKS, SYNTHETIC
from pretrain.egodtm.data import split_clips
from pretrain.egodtm.train import PretrainConfig
from pretrain.egodtm.train import run as pretrain
from pretrain.loop import TrainerConfig

ROOT = Path(__file__).resolve().parents[2]
COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 70, 230), "yellow": (230, 210, 50)}
KINDS = ("square", "bar", "frame")
VERBS = {"push": "pushes", "pull": "pulls", "lift": "lifts"}
CLIPS, FRAMES, SIZE = 96, 8, 32


def make_clip(index: int, prefix: str = "clip") -> Clip:
    """A thing of some colour and shape moves right, left or up over a sloping floor."""
    random = np.random.default_rng(index)
    colour, kind = list(COLOURS)[index % 4], KINDS[(index // 4) % 3]
    verb = list(VERBS)[(index // 12) % 3]
    rgb = random.integers(90, 130, (FRAMES, SIZE, SIZE, 3)).astype(np.uint8)
    floor = np.linspace(3.0, 1.0, SIZE, dtype=np.float32)[:, None]
    depth = np.broadcast_to(floor, (FRAMES, SIZE, SIZE)).copy()
    segmentation = np.zeros((FRAMES, SIZE, SIZE), np.uint8)
    near = float(random.uniform(0.4, 0.8))
    height, width = {"square": (10, 10), "bar": (5, 16), "frame": (12, 12)}[kind]
    for frame in range(FRAMES):
        way = frame / (FRAMES - 1)
        top = round((1 - way if verb == "lift" else 0.5) * (SIZE - height))
        left = round({"push": way, "pull": 1 - way, "lift": 0.5}[verb] * (SIZE - width))
        rgb[frame, top : top + height, left : left + width] = COLOURS[colour]
        depth[frame, top : top + height, left : left + width] = near
        segmentation[frame, top : top + height, left : left + width] = 3
        segmentation[frame, -8:, left : left + 6] = 2
    label = f"{colour} {kind}"
    return Clip(
        key=f"{prefix}-{index:03d}",
        rgb=rgb,
        rgb_times_s=np.arange(FRAMES) / 4.0,
        depth=depth,
        segmentation=segmentation,
        contact=np.tile(np.array([0, 3 * (index % 2)], np.uint8), (FRAMES, 1)),
        intrinsics=np.array([[SIZE, 0, SIZE / 2], [0, SIZE, SIZE / 2], [0, 0, 1.0]]),
        labels={1: "left hand", 2: "right hand", 3: label},
        narration=f"#C C {VERBS[verb]} the {label}",
        captions=(f"C {VERBS[verb]} the {label}, {near:.1f} m away",),
        meta={"action": verb, "target": 3, "other": None},
    )


def write_store(directory: Path, make=make_clip, clips: int = CLIPS) -> Path:
    build_store(
        directory, make, kind="things", seed=0, settings={}, versions={}, n_clips=clips, clips_per_shard=32, workers=1
    )
    return directory


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tmp_path_factory.mktemp("probe") / "store")


@pytest.fixture(scope="module")
def trained(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("probe-run") / "run"
    trainer = TrainerConfig(steps=30, batch_size=8, warmup_steps=3, threads=1, accelerator="cpu")
    pretrain(
        PretrainConfig(data=str(store), out=str(out), size="nano", frames=2, val_fraction=0.5, seed=3, trainer=trainer)
    )
    return out


@pytest.fixture(scope="module")
def probed(trained: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All twins of a run, its untrained twin and an encoder without texts."""
    out = tmp_path_factory.mktemp("probe-out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nlq, "HEAD", nlq.HeadConfig(steps=30, width=16))
        run(config_for(trained, store, out, names=("trained", "untrained", "pixels")))
    return out


def config_for(trained: Path, store: Path, out: Path, **changes) -> ProbeConfig:
    settings = {
        "encoder": (str(trained), f"random:{trained}", "pixels-16x16"),
        "data": str(store),
        "out": str(out),
        "device": "cpu",
    }
    return ProbeConfig(**(settings | changes))


def document(out: Path) -> dict:
    return json.loads((out / "probe.json").read_text())


# ------------------------------------------------------------------------------------------------------------- the table


def test_every_twin_has_figures_with_intervals_and_pairs(probed: Path) -> None:
    results = comparison.load_results(probed / "probe.json")
    assert [(r.benchmark, r.encoder) for r in results] == [
        (name, encoder) for name in SYNTHETIC for encoder in ("trained", "untrained", "pixels")
    ]
    for result in results:
        if result.encoder == "pixels" and BENCHMARKS[result.benchmark].needs_text:
            assert result.metrics == () and result.missing == {"": "needs a text tower"}
            continue
        assert result.metrics
        for metric in result.metrics:
            assert metric.low <= metric.value + 1e-9 and metric.value <= metric.high + 1e-9, metric.name
            assert metric.chance is not None and np.isfinite(metric.chance)
            assert metric.items is not None and len(metric.items) >= 20
    columns, rows = comparison.compare(results, "untrained")
    assert columns == ["trained", "untrained", "pixels"]
    assert all(row.differences[1] is None for row in rows)
    assert all(row.differences[0] is not None for row in rows)
    decoder = next(row for row in rows if row.metric == "decoder inverse RMSE")
    assert decoder.cells[2] == "needs a depth decoder"
    # Thirty steps of training are enough for depth.
    assert decoder.differences[0] is not None and decoder.differences[0].high < 0


def test_the_printed_table_says_what_a_reader_needs(
    trained: Path,
    store: Path,
    probed: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Everything is in the cache: no frame is read again.
    def forbidden(*_: object) -> None:
        raise AssertionError("features were computed again")

    monkeypatch.setattr(features.Extractor, "_extract", forbidden)
    kept = ("egomcq", "ek100-mir", "depth")
    before = document(probed)
    shutil.copytree(probed / "features", tmp_path / "features")
    config = config_for(
        trained, store, tmp_path, names=("trained", "untrained", "pixels"), baseline="untrained", benchmark=kept
    )
    run(config)
    said = capsys.readouterr().out
    for words in (
        "intra accuracy % ↑", "nDCG average % ↑", "linear metric RMSE m ↓", "needs a text tower", "untrained (baseline)",
        "48 of 96 clips: the others were trained on", "probe.json",
    ):  # fmt: skip
        assert words in said, words
    after = document(tmp_path)
    assert after["results"] == [result for result in before["results"] if result["benchmark"] in kept]
    assert {row["encoder"] for row in after["differences"]} == {"trained", "pixels"}


def test_results_of_two_runs_are_put_side_by_side(
    trained: Path, store: Path, probed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_for(
        trained, store, tmp_path, encoder=str(trained), names=("again",), benchmark="egomcq",
        results=(str(probed / "probe.json"),), baseline="trained",
    )  # fmt: skip
    run(config)
    differences = {row["encoder"]: row for row in document(tmp_path)["differences"]}
    assert differences["again"]["value"] == 0 and differences["again"]["p"] == 1
    assert "untrained" in capsys.readouterr().out
    # Another choice of clips is another protocol.
    with pytest.raises(ValueError, match=r"egomcq of again and of trained .* different protocols.*items: 60 and"):
        run(config_for(
            trained, store, tmp_path, encoder=str(trained), names=("again",), benchmark="egomcq", clips=30,
            results=(str(probed / "probe.json"),),
        ))  # fmt: skip


def test_protocols_that_differ_are_refused_by_name() -> None:
    def result(encoder: str, frames: int) -> comparison.BenchmarkResult:
        return comparison.BenchmarkResult(
            benchmark="egomcq", encoder=encoder, encoder_sha256="", metrics=(make_metric("x", np.ones(3)),),
            protocol={"frames": frames},
        )  # fmt: skip

    with pytest.raises(ValueError, match=r"egomcq of a and of b are of different protocols.*frames: 4 and 8"):
        comparison.compare([result("a", 4), result("b", 8)], "a")
    with pytest.raises(ValueError, match="baseline=c: expected one of a"):
        comparison.compare([result("a", 4)], "c")


# --------------------------------------------------------------------------------------------------------- what is measured


def test_only_held_out_clips_are_used(trained: Path, store: Path) -> None:
    subject = load_subject(str(trained))
    data = held_out_clips(open_store(store), [subject], limit=0, unseen=False, allow_train=False)
    train, held_out = split_clips(CLIPS, 0.5)
    assert [clip.key for clip in data.clips] == [f"clip-{index:03d}" for index in held_out]
    assert "48 of 96 clips: the others were trained on" in data.notes
    every = held_out_clips(open_store(store), [subject], limit=0, unseen=False, allow_train=True)
    assert len(every.clips) == CLIPS and every.notes == (
        f"{trained} was trained on {len(train)} of the clips (allow_train=true)",
    )
    new = held_out_clips(open_store(store), [load_subject("pixels-16x16")], limit=20, unseen=False, allow_train=False)
    assert len(new.clips) == 20


def test_another_store_with_the_same_clips_is_seen_through(trained: Path, tmp_path: Path) -> None:
    subject = load_subject(str(trained))
    grown = open_store(write_store(tmp_path / "grown", clips=CLIPS + 24))
    data = held_out_clips(grown, [subject], limit=0, unseen=False, allow_train=False)
    assert len(data.clips) == CLIPS // 2 + 24
    foreign = open_store(write_store(tmp_path / "other", make=lambda index: make_clip(index, "other"), clips=40))
    assert len(held_out_clips(foreign, [subject], limit=0, unseen=False, allow_train=False).clips) == 40
    with pytest.raises(ValueError, match=r"4 of its 40 clips are left that were not trained on.*another seed"):
        # Most combinations of verb and thing were seen.
        held_out_clips(foreign, [subject], limit=0, unseen=True, allow_train=False)


def test_the_untrained_twin_is_the_start_of_training_text_tower_included(
    trained: Path, store: Path, tmp_path: Path
) -> None:
    start = tmp_path / "start"
    pretrain(
        PretrainConfig(
            data=str(store), out=str(start), size="nano", frames=2, val_fraction=0.5, seed=3,
            trainer=TrainerConfig(steps=0, batch_size=8, accelerator="cpu"),
        )
    )  # fmt: skip
    begun, twin = load_model(start / "model").state_dict(), load_model(trained / "model", untrained=True).state_dict()
    assert all(torch.equal(begun[name], twin[name]) for name in begun)
    whole = load_model(trained / "model").state_dict()
    assert any(name.startswith("text.") and not torch.equal(whole[name], twin[name]) for name in whole)
    assert load_subject(f"random:{trained}").fingerprint != load_subject(str(trained)).fingerprint


def test_what_can_be_measured(trained: Path) -> None:
    assert load_subject(str(trained)).has_depth and load_subject(str(trained / "model")).has_text
    alone = load_subject(str(trained / "encoder"))
    assert not alone.has_text and alone.training is not None
    assert load_subject(f"random:{trained / 'encoder'}").encoder.spec.weights_sha256 == load_model(
        trained / "model", untrained=True
    ).encoder().spec.weights_sha256  # fmt: skip
    with pytest.raises(FileNotFoundError, match="no encoder at"):
        load_subject("runs/nowhere")
    with pytest.raises(ValueError, match="holds no model/ or encoder/"):
        load_subject(str(trained.parent))
    assert unique_names(["a/x", "b/x", "random:a/x"]) == ["a/x", "b/x", "random:a/x"]
    assert unique_names(["a/x", "random:a/x", "timm/resnet18"]) == ["x", "random:x", "timm/resnet18"]
    with pytest.raises(ValueError, match="given twice"):
        unique_names(["a", "a"])


def test_wrong_settings_are_named(trained: Path, store: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="benchmark=egomqc: did you mean egomcq"):
        ProbeConfig(encoder="a", benchmark="egomqc")
    with pytest.raises(ValueError, match="names: 1 given for 2 encoders"):
        ProbeConfig(encoder=("a", "b"), names=("x",))
    with pytest.raises(ValueError, match="encoder= is missing"):
        ProbeConfig(encoder="")
    with pytest.raises(ValueError, match="baseline=z: expected one of run"):
        run(config_for(trained, store, tmp_path, encoder=str(trained), baseline="z"))
    with pytest.raises(ValueError, match="frames=4, but run takes 2"):
        run(config_for(trained, store, tmp_path, encoder=str(trained), frames=4))
    with pytest.raises(ValueError, match=r"different numbers of frames \(run 2, random:egom2p-tiny 5\)"):
        run(config_for(trained, store, tmp_path, encoder=(str(trained), "random:egom2p-tiny")))
    with pytest.raises(FileNotFoundError, match="no such directory"):
        run(config_for(trained, store, tmp_path, data=str(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match="is no clip store"):
        run(config_for(trained, store, tmp_path, data=str(tmp_path)))
    with pytest.raises(ValueError, match="not a file of results"):
        (tmp_path / "x.json").write_text("{}")
        run(config_for(trained, store, tmp_path, results=(str(tmp_path / "x.json"),)))


def test_yaml_is_the_dataclass_with_its_defaults() -> None:
    written = yaml.safe_load((ROOT / "configs/probe.yaml").read_text())
    written = {key: tuple(value) if isinstance(value, list) else value for key, value in written.items()}
    assert ProbeConfig(**(written | {"encoder": "x"})) == ProbeConfig(encoder="x")


# ------------------------------------------------------------------------------------------------------------ where it reads


def test_a_clip_is_seen_as_validation_of_training_sees_it(store: Path) -> None:
    source, dataset = StoreVideos(store), ClipDataset(store, frames=3, image_size=24, depth_size=12, train=False)
    for index in (0, 17):
        sample = dataset.sample(index, 0)
        key = sample["key"]
        np.testing.assert_array_equal(source.read(Segment(key, 0, 2), 3, 24), sample["video"].numpy())
        metres, valid = source.read_depth(Segment(key), 3, 12)
        assert (valid == sample["depth_valid"].numpy()).all() and 0.4 < metres.min() < metres.max() <= 3.0


def test_clips_are_shown_one_after_the_other(store: Path) -> None:
    source = StoreVideos(store)
    joined = "clip-003+clip-040"
    assert source.duration_s(joined) == pytest.approx(4.0) and source.has(joined) and not source.has("clip-003+x")
    assert source.resolve(Segment(joined, 2.5, 3.5)) == Segment("clip-040", 0.5, 1.5)
    across = source.read(Segment(joined, 1.0, 3.0), 2, SIZE)
    np.testing.assert_array_equal(across[0], source.read(Segment("clip-003", 1.5, 1.5), 1, SIZE)[0])
    np.testing.assert_array_equal(across[1], source.read(Segment("clip-040", 0.5, 0.5), 1, SIZE)[0])


def write_video(path: Path, seconds: int, first_grey: int = 0) -> None:
    """25 frames a second, each second 20 grey levels brighter than the one before; twice as wide as high."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for frame in range(25 * seconds):
            grey = np.full((32, 64, 3), first_grey + 20 * (frame // 25), np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def test_files_and_chunks_are_videos(tmp_path: Path) -> None:
    write_video(tmp_path / "P01" / "P01_11.MP4", 4, 20)
    write_video(tmp_path / "long.mp4" / "0.mp4", 2, 20)
    write_video(tmp_path / "long.mp4" / "2.mp4", 2, 60)
    source = FileVideos(tmp_path)
    assert source.has("P01_11") and source.has("long") and not source.has("0")
    assert source.duration_s("long") == pytest.approx(4.0, abs=0.05)
    for video in ("P01_11", "long"):
        frames = source.read(Segment(video, 0, 4), 4, 16)
        assert frames.shape == (4, 16, 16, 3)
        np.testing.assert_allclose(frames.mean(axis=(1, 2, 3)), [20, 40, 60, 80], atol=4)
    assert source.resolve(Segment("P01_11")).end_s == pytest.approx(4.0, abs=0.05)
    write_video(tmp_path / "P02" / "P01_11.mp4", 1)
    with pytest.raises(ValueError, match="two videos are called P01_11"):
        FileVideos(tmp_path)


def test_an_imported_store_is_asked_by_video_and_time(tmp_path: Path) -> None:
    def make(index: int) -> Clip:
        clip = make_clip(index)
        return clip.replace(meta={"video_uid": f"v{index // 2}", "start_s": 100.0 + 2 * (index % 2)})

    source = StoreSpans(write_store(tmp_path / "imported", make=make, clips=4))
    assert source.has("v1") and not source.has("v2")
    assert source.resolve(Segment("v1", 102.5, 103.5)) == Segment("clip-003", 0.5, 1.5)
    assert source.resolve(Segment("v0", 101.75, 102.75)) == Segment("clip-001", 0.0, 0.75)
    with pytest.raises(ValueError, match=r"no clip of .* shows it from 200 to 201 s"):
        source.resolve(Segment("v0", 200.0, 201.0))


def test_official_questions_on_video_files(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """EgoMCQ as published, over files of which one is missing and one is damaged."""
    for number in range(6):
        write_video(tmp_path / "videos" / f"v{number}.mp4", 3, 20 * number)
    (tmp_path / "videos" / "v6.mp4").write_bytes(b"not a video")
    questions = {}
    for number in range(24):
        videos = [f"v{(number + option) % 6}" for option in range(5)]
        if number < 2:
            videos[4] = ("v6", "v7")[number]
        choices = {
            str(option): {"video_uid": video, "clip_start": "0.5", "clip_end": 2.0, "clip_text": "#C C x"}
            for option, video in enumerate(videos)
        }
        questions[str(number)] = {
            "answer": number % 5, "types": 1 + number % 2, "query": {"clip_text": "#C C pushes"}, "choices": choices,
        }  # fmt: skip
    annotations = tmp_path / "annotations"
    annotations.mkdir()
    (annotations / "egomcq.json").write_text(json.dumps(questions))
    config = config_for(
        trained,
        annotations,
        tmp_path / "out",
        encoder=str(trained),
        videos=str(tmp_path / "videos"),
        benchmark="egomcq",
    )
    run(config)
    said = capsys.readouterr().out
    assert "dropped 2 of 24 items, whose videos cannot be read: " in said
    assert "v7 (no such video)" in said and "v6.mp4: video undecodable" in said.replace("\n", " ")
    (result,) = comparison.load_results(tmp_path / "out/probe.json")
    assert result.protocol["kind"] == "official" and result.protocol["items"] == 22
    assert {metric.name for metric in result.metrics} == {"inter accuracy", "intra accuracy"}
    with pytest.raises(ValueError, match=r"2 of 24 items have videos that cannot be read, more than max_missing=0\.05"):
        run(config_for(
            trained, annotations, tmp_path / "out", encoder=str(trained), videos=str(tmp_path / "videos"),
            benchmark="egomcq", max_missing=0.05,
        ))  # fmt: skip
    with pytest.raises(ValueError, match="give their videos with videos="):
        run(config_for(trained, annotations, tmp_path / "out", encoder=str(trained), benchmark="egomcq"))


def test_an_image_encoder_sees_each_frame(store: Path) -> None:
    extractor = Extractor(load_subject("pixels-16x16"), StoreVideos(store), frames=2)
    segment = Segment("clip-005")
    tokens = extractor.tokens([segment])
    assert tokens.shape == (1, 2 * 256, 3)
    np.testing.assert_allclose(extractor.pooled([segment])[0], tokens[0].astype(np.float32).mean(axis=0), atol=1e-3)


def test_a_damaged_cache_is_made_again(store: Path, tmp_path: Path) -> None:
    def extractor() -> Extractor:
        return Extractor(load_subject("pixels-16x16"), StoreVideos(store), frames=2, cache=tmp_path)

    first = extractor().pooled([Segment("clip-001")])
    (file,) = tmp_path.glob("*.npz")
    file.write_bytes(file.read_bytes()[:50])
    np.testing.assert_array_equal(extractor().pooled([Segment("clip-001")]), first)


def test_depth_that_says_nothing_is_counted(
    store: Path, tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def make(index: int) -> Clip:
        clip = make_clip(index, "odd")
        assert clip.depth is not None
        return clip.replace(depth=np.full_like(clip.depth, {0: 0.0, 1: 1.5}[index])) if index < 2 else clip

    odd = write_store(tmp_path / "odd", make=make, clips=20)
    run(config_for(trained, odd, tmp_path / "out", encoder=str(trained), benchmark="depth"))
    said = capsys.readouterr().out
    assert "skipped 1: a clip without any known depth" in said and "skipped 1: a clip of constant depth" in said
    assert document(tmp_path / "out")["results"][0]["metrics"][0]["items"].__len__() == 18


def test_the_spatial_probe_is_a_row_like_the_others(
    trained: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(config_for(trained, store, tmp_path, benchmark="spatial", clips=24, names=("trained", "untrained", "pixels")))
    results = comparison.load_results(tmp_path / "probe.json")
    assert all(result.protocol == results[0].protocol and result.metrics for result in results)
    assert results[0].protocol["sources"]["clips"]["clips"] == 24
    said = capsys.readouterr().out
    assert "spatial error" in said and "more rows are in the file" in said


# ------------------------------------------------------------------------------------------------- official data, end to end

TWO_VERBS = ("take plate,take,0,plate,2,['plate'],[2]", "wash cup,wash,4,cup,13,['cup'],[13]")


def write_rows(path: Path, videos: range) -> None:
    rows = [
        f"v{number}_0,P01,v{number},00:00:01.00,00:00:00.50,00:00:02.50,1,99,{TWO_VERBS[number % 2]}"
        for number in videos
    ]
    path.write_text("\n".join([",".join(COLUMNS), *rows]) + "\n")


def write_mir(directory: Path) -> None:
    write_rows(directory / "EPIC_100_retrieval_test.csv", range(8))
    (directory / "EPIC_100_retrieval_test_sentence.csv").write_text(
        "narration_id,narration\nv0_0,take plate\nv1_0,wash cup\n"
    )
    same = np.arange(8)[:, None] % 2 == np.arange(2)
    np.save(directory / "caption_relevancy_EPIC_100_retrieval_test.npy", same.astype(np.float32))


def write_cls(directory: Path) -> None:
    write_rows(directory / "EPIC_100_train.csv", range(4))
    write_rows(directory / "EPIC_100_validation.csv", range(4, 8))


def write_egtea(directory: Path) -> None:
    (directory / "action_idx.txt").write_text("Take plate 1\nWash cup 2\n")
    (directory / "test_split1.txt").write_text("".join(f"v{number} {1 + number % 2} 1\n" for number in range(8)))


def write_nlq(directory: Path) -> None:
    for name, videos in (("train", range(4)), ("val", range(4, 8))):
        clips = [
            {
                "clip_uid": f"v{number}", "clip_start_sec": 0, "clip_end_sec": 3.0,
                "annotations": [{"language_queries": [
                    {"query": "when is it washed?", "clip_start_sec": 1.0, "clip_end_sec": 2.0}
                ]}],
            }
            for number in videos
        ]  # fmt: skip
        (directory / f"nlq_{name}.json").write_text(json.dumps({"videos": [{"video_uid": "u", "clips": clips}]}))


def write_egoschema(directory: Path) -> None:
    questions = [
        {"q_uid": f"v{number}", "question": "what?"}
        | {f"option {option}": f"washes {option} cups" for option in range(5)}
        for number in range(8)
    ]
    (directory / "questions.json").write_text(json.dumps(questions))
    (directory / "subset_answers.json").write_text(json.dumps({f"v{number}": number % 5 for number in range(8)}))


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("videos")
    for number in range(8):
        write_video(directory / f"v{number}.mp4", 3, 20 * number)
    return directory


@pytest.mark.parametrize(
    ("benchmark", "write", "metric"),
    [
        ("ek100-mir", write_mir, "nDCG average"),
        ("ek100-cls", write_cls, "linear verb top-1"),
        ("egtea", write_egtea, "mean-class accuracy"),
        ("nlq", write_nlq, "R@5 IoU 0.5"),
        ("egoschema", write_egoschema, "accuracy"),
    ],
)
def test_official_annotations_on_video_files(
    trained: Path, videos: Path, tmp_path: Path, benchmark: str, write, metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nlq, "HEAD", nlq.HeadConfig(steps=5, width=16))
    write(tmp_path)
    out = tmp_path / "out"
    config = config_for(
        trained, tmp_path, out, encoder=str(trained), videos=str(videos), benchmark=benchmark, dense_features=True
    )
    run(config)
    (result,) = comparison.load_results(out / "probe.json")
    assert result.protocol["kind"] == "official" and metric in {found.name for found in result.metrics}
    if benchmark == "nlq":
        with np.load(out / "dense_features/run/v5.npz", allow_pickle=False) as file:
            assert file["features"].shape == (6, 32) and file["joint"].shape == (6, 256)
            assert file["times_s"][1] == pytest.approx(1.5 / 1.87)
