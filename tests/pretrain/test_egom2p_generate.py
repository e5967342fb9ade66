"""Generation gives the tokens of its plain restatement, alone and in a batch, whatever is given and wanted."""

import dataclasses
from collections.abc import Sequence

import pytest
import torch

from benchmarks.egom2p_plain import plain_generate
from pretrain.egom2p import generate as module
from pretrain.egom2p.generate import PUBLISHED_TARGETS, Target, expected_codes, generate
from pretrain.egom2p.modalities import TokenGrid
from pretrain.egom2p.model import EgoM2P, EgoM2PConfig, TokenSet

GRIDS = {
    "rgb": TokenGrid(shape=(2, 4, 4), vocabulary=300),
    "depth": TokenGrid(shape=(2, 4, 4), vocabulary=300),
    "gaze": TokenGrid(shape=(12,), vocabulary=40),
    "camera": TokenGrid(shape=(10,), vocabulary=40),
}


@pytest.fixture(scope="module")
def model() -> EgoM2P:
    """In float64, so that attention summed in another order draws the same tokens."""
    torch.manual_seed(0)
    model = EgoM2P(EgoM2PConfig.of_size("nano", GRIDS)).double()
    with torch.no_grad():
        # Larger tables: what a token is should matter.
        for table in (model.encoder_tokens, model.decoder_tokens):
            table.mul_(25)
    return model


def tokens(names: Sequence[str], batch: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randint(GRIDS[n].vocabulary, (batch, GRIDS[n].tokens), generator=generator) for n in names}


CASES = {
    "rgb to depth": (["rgb"], [Target(modality="depth")]),
    "rgb to camera": (["rgb"], [Target(modality="camera")]),
    "without guidance": (["rgb"], [Target(modality="depth", guidance=1.0, temperature=1.0)]),
    "warm": (["rgb"], [Target(modality="depth", temperature=1.0, steps=5, schedule="cosine")]),
    "top-k": (["rgb"], [Target(modality="depth", temperature=2.0, top_k=7, top_p=0.0, guidance=1.5)]),
    "greedy": (["rgb"], [Target(modality="gaze", temperature=0.0)]),
    "maskgit": (
        ["rgb", "gaze"],
        [Target(modality="depth", scheme="maskgit", schedule="cosine", steps=4, guidance=3.0)],
    ),
    "warm maskgit": (
        ["depth"],
        [
            Target(
                modality="rgb", scheme="maskgit", steps=6, temperature=1.5, temperature_schedule="linear", guidance=1.0
            )
        ],
    ),
    "greedy maskgit": (["rgb"], [Target(modality="gaze", scheme="maskgit", temperature=0.0)]),
    "small modalities": (["gaze"], [Target(modality="camera", steps=10)]),
    "chained": (
        ["rgb"],
        [
            Target(modality="depth", temperature=0.5),
            Target(modality="camera", scheme="maskgit", steps=2),
            Target(modality="gaze", steps=5, guidance=1.0),
        ],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_exact_mode_is_the_authors_schedule(model: EgoM2P, case: str) -> None:
    names, targets = CASES[case]
    given = tokens(names, 3)
    batched = generate(model, given, targets, seed=[5, 9, 2])
    for clip, seed in enumerate((5, 9, 2)):
        alone = {name: ids[clip : clip + 1] for name, ids in given.items()}
        plain = plain_generate(model, alone, targets, seed=seed).tokens
        ours = generate(model, alone, targets, seed=seed)
        assert set(plain) == set(ours) == set(batched) == {target.modality for target in targets}
        for name in plain:
            assert torch.equal(ours[name], plain[name]), name
            assert torch.equal(batched[name][clip], plain[name][0]), name


def test_a_part_of_the_tokens_can_be_given(model: EgoM2P) -> None:
    """All of them as a set are as by name, and places that are left out have no part in the result."""
    given, targets = tokens(["rgb"], 3), [Target(modality="camera", steps=4)]
    book = {"gaze": torch.rand(40, 3)}
    whole = TokenSet.whole(model.config, given)
    for mode in ("exact", "fast"):
        by_name, as_set = (generate(model, known, targets, seed=3, mode=mode) for known in (given, whole))
        assert torch.equal(by_name["camera"], as_set["camera"])
    assert torch.equal(expected_codes(model, given, book)["gaze"], expected_codes(model, whole, book)["gaze"])
    places = torch.tensor([0, 5, 17, 31]).expand(3, -1)
    part = TokenSet.of(model.config, "rgb", given["rgb"].gather(1, places), places)
    other = {"rgb": ((given["rgb"] + 7) % 300).scatter(1, places, part.ids)}
    again = TokenSet.of(model.config, "rgb", other["rgb"].gather(1, places), places)
    found = expected_codes(model, part, book)["gaze"]
    assert torch.equal(found, expected_codes(model, again, book)["gaze"])
    assert not torch.allclose(found, expected_codes(model, given, book)["gaze"])
    with pytest.raises(ValueError, match="it is also given"):
        generate(model, part, [Target(modality="rgb")])
    with pytest.raises(ValueError, match="at least one modality given"):
        generate(model, TokenSet.empty(3), targets)


def test_the_authors_padding_changes_nothing(model: EgoM2P) -> None:
    names, targets = CASES["chained"]
    given = tokens(names, 1)
    plain = plain_generate(model, given, targets).tokens
    padded = plain_generate(model, given, targets, encode_padding=True).tokens
    assert all(torch.equal(plain[name], padded[name]) for name in plain)


@pytest.mark.parametrize("case", ["chained", "maskgit", "small modalities"])
def test_slices_and_joined_passes_change_nothing(model: EgoM2P, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names, targets = CASES[case]
    given = tokens(names, 2)
    found = []
    for small, slice_of in ((0, 2**24), (10**6, 2**24), (0, 700)):
        monkeypatch.setattr(module, "SMALL_PASS", small)
        monkeypatch.setattr(module, "LOGITS_AT_A_TIME", slice_of)
        found.append(generate(model, given, targets))
    for other in found[1:]:
        assert all(torch.equal(found[0][name], other[name]) for name in other)


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_what_is_given_and_the_seed_decide(model: EgoM2P, mode: str) -> None:
    targets = [Target(modality="depth", temperature=1.0), Target(modality="gaze", scheme="maskgit", temperature=1.0)]
    given = tokens(["rgb"], 2)
    first = generate(model, given, targets, seed=1, mode=mode)
    for name, ids in first.items():
        grid = GRIDS[name]
        assert ids.shape == (2, grid.tokens) and ids.dtype == torch.int64
        assert int(ids.min()) >= 0 and int(ids.max()) < grid.vocabulary
        assert not torch.equal(ids[0], ids[1])
    again = generate(model, given, targets, seed=1, mode=mode)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(generate(model, given, targets, seed=2, mode=mode)["depth"], first["depth"])
    other = generate(model, tokens(["rgb"], 2, seed=7), targets, seed=1, mode=mode)
    assert not torch.equal(other["depth"], first["depth"])
    # A clip's own seed is the base's with its place added.
    second = generate(model, {"rgb": given["rgb"][1:]}, targets, seed=2, mode=mode)
    assert all(torch.equal(second[name][0], first[name][1]) for name in first)


def test_a_finished_target_conditions_the_next(model: EgoM2P) -> None:
    warm = [Target(modality=name, temperature=1.0) for name in ("depth", "gaze")]
    given = tokens(["rgb"], 1)
    chained = generate(model, given, warm, seed=3)
    # The same random numbers are left after another number of draws only by drawing them, so compare through the plain one.
    assert torch.equal(plain_generate(model, given, warm, seed=3).tokens["gaze"], chained["gaze"])
    greedy = [dataclasses.replace(target, temperature=0.0) for target in warm]
    with_depth = {**given, **tokens(["depth"], 1, seed=5)}
    assert not torch.equal(
        generate(model, with_depth, greedy[1:], seed=3)["gaze"], generate(model, given, greedy[1:], seed=3)["gaze"]
    )


def test_fast_mode_is_the_first_step_for_every_token(model: EgoM2P, monkeypatch: pytest.MonkeyPatch) -> None:
    """One exact step without guidance is what it does; in parts, each is such a step of its own."""
    given = tokens(["rgb", "gaze"], 2)
    one_step = Target(modality="depth", steps=1, guidance=1.0, temperature=1.0)
    fast = generate(model, given, [Target(modality="depth", temperature=1.0)], mode="fast")
    assert torch.equal(fast["depth"], generate(model, given, [one_step])["depth"])
    monkeypatch.setattr(module, "FAST_QUERIES", 20)
    in_parts = generate(model, given, [Target(modality="depth", temperature=1.0)], mode="fast")["depth"]
    first_half = generate(model, given, [dataclasses.replace(one_step, steps=2)])["depth"]
    assert 16 <= int((in_parts[0] == first_half[0]).sum()) < 32


def test_fast_targets_do_not_see_each_other(model: EgoM2P) -> None:
    given = tokens(["rgb"], 1)
    greedy = [Target(modality=name, temperature=0.0) for name in ("depth", "gaze")]
    both = generate(model, given, greedy, mode="fast")
    assert torch.equal(both["gaze"], generate(model, given, greedy[1:], mode="fast")["gaze"])


def test_expected_codes_are_the_mean_over_the_distribution(model: EgoM2P, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the plain sum, per clip, whatever is asked for beside, and in slices."""
    given = tokens(["rgb"], 3)
    books = {
        name: torch.randn(GRIDS[name].vocabulary, 5, generator=torch.Generator().manual_seed(7))
        for name in ("depth", "gaze")
    }
    means = expected_codes(model, given, books)
    condition = TokenSet.whole(model.config, given)
    for name, book in books.items():
        places = torch.arange(GRIDS[name].tokens).expand(3, -1)
        with torch.no_grad():
            hidden = model.decode(
                TokenSet.of(model.config, name, torch.zeros_like(places), places), model.encode(condition)
            )
            plain = (model.logits(hidden, name).float().softmax(-1)[..., None] * book).sum(-2)
        torch.testing.assert_close(means[name], plain, atol=1e-5, rtol=1e-5)
    one = expected_codes(model, {"rgb": given["rgb"][1:2]}, {"gaze": books["gaze"]})
    torch.testing.assert_close(one["gaze"], means["gaze"][1:2], atol=1e-5, rtol=1e-5)
    assert all(torch.equal(means[name], again) for name, again in expected_codes(model, given, books).items())
    monkeypatch.setattr(module, "LOGITS_AT_A_TIME", 700)
    for name, sliced in expected_codes(model, given, books).items():
        torch.testing.assert_close(sliced, means[name], atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(module, "FAST_QUERIES", 11)
    assert expected_codes(model, given, books)["depth"].shape == (3, 32, 5)


def test_expected_codes_are_what_draws_average_to(model: EgoM2P) -> None:
    given = {"rgb": tokens(["rgb"], 1)["rgb"].expand(4000, -1)}
    book = torch.randn(GRIDS["gaze"].vocabulary, 3, generator=torch.Generator().manual_seed(2))
    mean = expected_codes(model, {"rgb": given["rgb"][:1]}, {"gaze": book})["gaze"][0]
    drawn = generate(model, given, [Target(modality="gaze", temperature=1.0, top_p=0.0)], mode="fast")["gaze"]
    torch.testing.assert_close(book[drawn].mean(0), mean, atol=0.12, rtol=0)


def test_codebooks_of_another_model_are_refused(model: EgoM2P) -> None:
    with pytest.raises(ValueError, match="41 codes for 40 ids"):
        expected_codes(model, tokens(["rgb"], 1), {"gaze": torch.zeros(41, 2)})
    with pytest.raises(ValueError, match="also given"):
        expected_codes(model, tokens(["rgb"], 1), {"rgb": torch.zeros(300, 2)})


def test_bfloat16(model: EgoM2P) -> None:
    single = EgoM2P(model.config)
    single.load_state_dict(model.state_dict())
    given = tokens(["rgb"], 2)
    exact = generate(single, given, [Target(modality="depth", temperature=0.0)])["depth"]
    low = generate(single, given, [Target(modality="depth", temperature=0.0)], precision="bfloat16")["depth"]
    assert low.shape == exact.shape and float((low == exact).float().mean()) > 0.5


def test_published_settings() -> None:
    for name, target in PUBLISHED_TARGETS.items():
        assert target.modality == name
    depth = PUBLISHED_TARGETS["depth"].plan(5120)
    assert [count for count, _ in depth] == [1707, 1707, 1706]
    assert {(rule.temperature, rule.top_p, rule.top_k) for _, rule in depth} == {(0.01, 0.8, 0)}
    assert [count for count, _ in PUBLISHED_TARGETS["gaze"].plan(30)] == [6] * 5
    assert len(PUBLISHED_TARGETS["rgb"].plan(5120)) == 6


BAD = {
    "unknown given": (
        {"rgb": (1, 32), "sound": (1, 3)},
        ["depth"],
        "modality 'sound': this model has rgb, depth, gaze",
    ),
    "unknown target": ({"rgb": (1, 32)}, ["sound"], "target 'sound': this model has rgb, depth, gaze, camera"),
    "also given": ({"rgb": (1, 32)}, ["rgb"], "target rgb: it is also given"),
    "twice": ({"rgb": (1, 32)}, ["depth", "depth"], "target depth: it is wanted 2 times"),
    "token count": ({"rgb": (1, 31)}, ["depth"], r"tokens of rgb: expected \[B, 32\]"),
    "clips": (
        {"rgb": (2, 32), "gaze": (3, 12)},
        ["depth"],
        "the same number of clips in each modality, got .*'rgb': 2",
    ),
    "nothing given": ({}, ["depth"], "at least one modality given and one wanted"),
    "nothing wanted": ({"rgb": (1, 32)}, [], "at least one modality given and one wanted"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests(model: EgoM2P, case: str) -> None:
    shapes, wanted, message = BAD[case]
    given = {name: torch.zeros(shape, dtype=torch.int64) for name, shape in shapes.items()}
    with pytest.raises(ValueError, match=message):
        generate(model, given, [Target(modality=name) for name in wanted])


def test_ids_of_another_vocabulary(model: EgoM2P) -> None:
    given = tokens(["rgb"], 1)
    given["rgb"][0, 3] = 300
    with pytest.raises(ValueError, match=r"tokens of rgb: ids from \d+ to 300, expected 0 to 299"):
        generate(model, given, [Target(modality="depth")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "quick"}, "mode: expected one of exact, fast"),
        ({"precision": "float16"}, "precision: expected one of float32, bfloat16"),
        ({"seed": [1, 2, 3]}, "seed: expected one number, or one for each of 2 clips, got 3"),
    ],
)
def test_bad_settings(model: EgoM2P, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(model, tokens(["rgb"], 2), [Target(modality="depth")], **arguments)


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_more_steps_than_tokens(model: EgoM2P, mode: str) -> None:
    with pytest.raises(ValueError, match="target camera: steps: expected 1 to 10, the number of tokens, got 11"):
        generate(model, tokens(["rgb"], 1), [Target(modality="camera", steps=11)], mode=mode)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scheme": "beam"}, "scheme: expected one of roar, maskgit"),
        ({"guidance": -1.0}, "guidance: expected at least 0"),
        ({"guidance": float("nan")}, "guidance: expected at least 0"),
        ({"temperature": -0.5}, "temperature: expected"),
        ({"temperature_schedule": "falling"}, "temperature_schedule: expected constant, linear or onex"),
        ({"top_p": 2.0}, "top_p: expected"),
    ],
)
def test_bad_targets(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"target gaze: {message}"):
        Target(modality="gaze", **fields)
