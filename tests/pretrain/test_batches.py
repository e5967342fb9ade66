"""Which clips come when: a function of (seed, step, place), whole epochs, the same for any number of processes."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.batches import BatchPlan, stream_batches
from pretrain.egodtm.data import choose_text, split_clips
from pretrain.loop import TrainerConfig

plans = st.builds(
    lambda clips, batch, seed: BatchPlan(indices=tuple(range(7, 7 + clips)), batch_size=min(batch, clips), seed=seed),
    st.integers(1, 40),
    st.integers(1, 12),
    st.integers(0, 2**31),
)


@settings(max_examples=60, deadline=None)
@given(plans, st.integers(0, 5))
def test_an_epoch_takes_each_clip_at_most_once(plan: BatchPlan, epoch: int) -> None:
    steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
    seen = [index for step in steps for index, _ in plan.at(step)]
    assert len(seen) == plan.steps_per_epoch * plan.batch_size == len(set(seen))
    assert set(seen) <= set(plan.indices)
    seeds = [seed for step in steps for _, seed in plan.at(step)]
    assert len(set(seeds)) == len(seeds)


@settings(max_examples=40, deadline=None)
@given(plans, st.integers(0, 100), st.sampled_from([1, 2, 3, 4]))
def test_processes_share_the_batch_of_one(plan: BatchPlan, step: int, world: int) -> None:
    if plan.batch_size % world == 0:
        shared = [sample for rank in range(world) for sample in plan.at(step, rank=rank, world_size=world)]
        assert shared == plan.at(step)


def test_seeds_and_epochs_differ() -> None:
    first, other = (BatchPlan(indices=tuple(range(64)), batch_size=64, seed=seed) for seed in (0, 1))
    assert first.at(0) == first.at(0)
    assert [i for i, _ in first.at(0)] != [i for i, _ in first.at(1)]
    assert [i for i, _ in first.at(0)] != [i for i, _ in other.at(0)]
    assert not {s for _, s in first.at(0)} & {s for _, s in other.at(0)}


def test_too_few_clips() -> None:
    with pytest.raises(ValueError, match="batch_size=9 is more than the 4 clips there are to train on"):
        BatchPlan(indices=(1, 2, 3, 4), batch_size=9, seed=0)


def load_ids(ids):
    time.sleep(0.002 * (ids[0][0] % 3))  # out of step on purpose
    return {"ids": list(ids)}


@pytest.mark.parametrize("prefetch", [0, 1, 4])
def test_the_order_is_kept(prefetch: int) -> None:
    wanted = [[(index, 0)] for index in range(25)]
    assert [batch["ids"] for batch in stream_batches(load_ids, wanted, workers=0, prefetch=prefetch)] == wanted


def test_thread_passes_errors_on_and_can_be_left() -> None:
    def fail(ids):
        if ids[0][0] == 3:
            raise ValueError("clip 3 is damaged")
        return {}

    wanted = [[(index, 0)] for index in range(9)]
    stream = stream_batches(fail, wanted, workers=0, prefetch=2)
    with pytest.raises(ValueError, match="clip 3 is damaged"):
        list(stream)
    left = stream_batches(load_ids, wanted, workers=0, prefetch=1)
    next(left)
    left.close()


def test_still_clips_and_random_colours(square_store) -> None:
    import torch

    from pretrain.egodtm.data import LoadBatch, jitter_colour

    def load(train: bool = True, **changes: float) -> dict:
        loader = LoadBatch(
            square_store, frames=2, image_size=32, depth_size=8, caption_probability=0.0, context_length=77, train=train, **changes
        )  # fmt: skip
        return loader([(index, 7) for index in range(16)])

    plain, still, some = load(), load(still_probability=1.0), load(still_probability=0.5)
    # Depth is scaled by what is seen: not by a frame that has been left out.
    for name in ("video", "depth_valid"):
        assert torch.equal(still[name], plain[name][:, :1].expand_as(plain[name]))
    assert torch.equal(still["depth"][:, 0], still["depth"][:, 1])
    moved = [not torch.equal(a, b) for a, b in zip(some["video"], still["video"], strict=True)]
    assert 0 < sum(moved) < 16
    coloured = load(colour_jitter=0.3)
    assert torch.equal(coloured["depth"], plain["depth"]) and coloured["video"].dtype == torch.uint8
    assert not torch.equal(coloured["video"], plain["video"]) and torch.equal(
        coloured["video"], load(colour_jitter=0.3)["video"]
    )
    held_out = load(train=False)
    for name, value in load(train=False, still_probability=1.0, colour_jitter=0.3).items():
        assert torch.equal(value, held_out[name])
    video = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, -1)
    assert np.array_equal(jitter_colour(video, 0.0, np.random.default_rng(0)), video)
    changed = jitter_colour(video, 0.2, np.random.default_rng(0)).reshape(256, 3).astype(int)
    assert (np.diff(changed, axis=0) >= 0).all() and len({tuple(column) for column in changed.T}) == 3


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 10), st.floats(-5, 5))
def test_depth_by_its_spread_does_not_see_scale_and_offset(seed: int, scale: float, offset: float) -> None:
    import torch

    from pretrain.egodtm.data import by_spread

    random = torch.Generator().manual_seed(seed)
    depth = torch.rand(2, 6, 6, generator=random)
    valid = torch.rand(2, 6, 6, generator=random) > 0.3
    found = by_spread(depth, valid)
    assert found.min() >= 0 and found.max() <= 1 and (found[~valid] == 0).all()
    torch.testing.assert_close(by_spread(scale * depth + offset, valid), found, atol=1e-4, rtol=0)
    kept = depth[valid]
    expected = (0.5 + (kept - kept.mean()) / (6 * (kept - kept.mean()).abs().mean())).clamp(0, 1)
    torch.testing.assert_close(found[valid], expected, atol=1e-5, rtol=0)
    assert (by_spread(torch.ones(2, 6, 6), valid)[valid] == 0.5).all()


def test_worker_processes_give_what_the_thread_gives(square_store) -> None:
    import torch

    from pretrain.egodtm.data import LoadBatch

    load = LoadBatch(
        square_store, frames=2, image_size=32, depth_size=8, caption_probability=0.5, context_length=77, train=True
    )
    plan = BatchPlan(indices=tuple(range(32)), batch_size=4, seed=0)
    wanted = [plan.at(step) for step in range(5)]
    here = list(stream_batches(load, wanted, workers=0, prefetch=2))
    there = list(stream_batches(load, wanted, workers=1, prefetch=2))
    for a, b in zip(here, there, strict=True):
        assert set(a) == {"video", "text_ids", "depth", "depth_valid"}
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert here[0]["video"].shape == (4, 2, 32, 32, 3) and here[0]["depth"].shape == (4, 2, 8, 8)
    assert here[0]["depth"].min() >= 0 and here[0]["depth"].max() <= 1 and here[0]["depth_valid"].all()


def test_captions_replace_narrations_at_the_given_rate() -> None:
    picked = [choose_text("n", ("a", "b"), 0.5, seed) for seed in range(2000)]
    assert abs(picked.count("n") - 1000) < 100
    assert abs(picked.count("a") - 500) < 100
    assert {choose_text("n", ("a", "b"), 0.0, seed) for seed in range(50)} == {"n"}
    assert {choose_text("n", ("a",), 1.0, seed) for seed in range(50)} == {"a"}
    assert choose_text("n", (), 1.0, 0) == "n"


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 300), st.floats(0, 1))
def test_split_is_disjoint_and_whole(clips: int, fraction: float) -> None:
    train, held_out = split_clips(clips, fraction)
    assert sorted(train + held_out) == list(range(clips))
    assert len(held_out) == round(clips * fraction)


def test_learning_rate_warms_up_and_falls() -> None:
    trainer = TrainerConfig(steps=100, warmup_steps=10, learning_rate=1.0, final_learning_rate=0.1)
    rates = [trainer.learning_rate_at(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[10:]))
    assert rates[100] == pytest.approx(0.1)
    assert TrainerConfig(steps=5, warmup_steps=100, learning_rate=1.0).learning_rate_at(0) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("batch_size", 0, "trainer.batch_size: expected at least 1, got 0"),
        ("precision", "fp8", "trainer.precision: expected one of auto, fast, 32-true.*got 'fp8'"),
        ("learning_rate", -1.0, "trainer.learning_rate"),
        ("steps", -1, "trainer.steps: expected at least 0"),
    ],
)
def test_wrong_trainer_settings(field: str, value, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TrainerConfig(**{field: value})
