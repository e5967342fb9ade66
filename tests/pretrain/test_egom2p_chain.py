"""`egoarm pretrain egom2p-chain` on rendered clips, at a size that learns nothing: everything is made and published."""

from pathlib import Path

import pytest

from egoarm import main


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_chain_publishes_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        f"out={tmp_path / 'runs'}",
        f"results={tmp_path / 'results'}",
        "pictures=1",
        "clips.n=26",
        "more.n=16",
        "heldout.n=18",
    ]
    words += [f"{part}.image_size=32" for part in ("clips", "more", "heldout")]
    for name in ("video", "gaze", "camera", "hands"):
        trainer = f"tokenizers.{name}.trainer"
        words += [
            f"{trainer}.steps=3",
            f"{trainer}.batch_size=4",
            f"{trainer}.threads=1",
            f"tokenizers.{name}.size=nano",
        ]
    words += ["tokenizers.video.image_size=32", "pretrain.size=nano", "pretrain.masking.input_tokens=60"]
    words += ["pretrain.trainer.steps=3", "pretrain.trainer.batch_size=4", "pretrain.trainer.threads=1"]
    assert main(["pretrain", "egom2p-chain", *words]) == 0, capsys.readouterr().err
    page = (tmp_path / "results/README.md").read_text()
    for part in (
        "Tokenizers",
        "| gain |",
        "| hands |",
        "four-tasks camera",
        "visual odometry",
        "fast mode",
        "glance mode",
        "| EgoM2P |",
        "| EgoM2P, sampled |",
        "| EgoM2P minus |",
    ):
        assert part in page, part
    for name in (
        "curves.png",
        "prediction.png",
        "four-tasks-exact.json",
        "four-tasks-fast.json",
        "four-tasks-glance.json",
    ):
        assert (tmp_path / "results" / name).stat().st_size > 500
    capsys.readouterr()
    assert main(["pretrain", "egom2p-chain", *words, "measure=false"]) == 0
    assert capsys.readouterr().out.count("already") == 9, "what is finished is skipped"
    assert main(["pretrain", "egom2p-chain", *words]) == 0
    assert capsys.readouterr().out.count("measured already") == 3
    assert (tmp_path / "results/README.md").read_text() == page
