"""Every policy with every read-out, on a tiny random ViT: learns a few rows, trains all it should and nothing else, acts as it promises."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from envs.spec import EnvSpec, FieldSpec, image_field
from policies.act import ACTConfig, ACTPolicy
from policies.adaptation import ADAPTATIONS, merge_adapters
from policies.backbone import Backbone, BackboneConfig
from policies.bc import BCConfig, BCPolicy
from policies.diffusion import DENOISERS, PREDICTIONS, DiffusionConfig, DiffusionPolicy
from policies.diffusion_transformer import TransformerDenoiserConfig
from policies.diffusion_unet import UNetDenoiserConfig
from policies.policy import POLICIES, Policy, PolicySpec
from policies.readouts import READOUTS, ReadoutConfig
from pretrain.egodtm.encoder import EgoDTMEncoder
from pretrain.egodtm.video_vit import VideoViTConfig
from pretrain.encoder import EncoderSpec

CHUNK, ROWS = 5, 8  # an odd number of steps: the U-Net rounds up on its way down
STATE_ONLY = "state"
# Every row of POLICIES that learns by imitation, diffusion with each of its denoisers.
VARIANTS = [name for name, entry in POLICIES.items() if entry.recipe and name != "diffusion"]
VARIANTS += [f"diffusion-{denoiser}" for denoiser in DENOISERS]
SIGHTS = [*READOUTS, STATE_ONLY]


def tiny_encoder() -> EgoDTMEncoder:
    """A random ViT on two frames of 32 pixels, 2 x 2 tokens each."""
    return EgoDTMEncoder(VideoViTConfig(frames=2, image_size=32, width=32, layers=2, heads=2), name="test")


def make_policy(variant: str, sight: str, adaptation: str = "frozen", prediction: str = "sample") -> Policy:
    torch.manual_seed(0)
    image, state = image_field(32), {"dtype": "float32", "unit": "1", "convention": "test"}
    cameras = () if sight == STATE_ONLY else ("left", "right")
    config = BackboneConfig(
        readout="pooled" if sight == STATE_ONLY else sight, adaptation=adaptation, channels=4, keypoints=4, queries=2, width=8, heads=2
    )  # fmt: skip
    spec = PolicySpec(
        policy=variant.partition("-")[0],
        env_spec=EnvSpec(
            task="test", control_hz=10.0, horizon_steps=9, action=FieldSpec(shape=(3,), low=-1.0, high=1.0, **state),
            observation={
                "images/left": image, "images/right": image,
                "state/a": FieldSpec(shape=(3,), **state), "state/b": FieldSpec(shape=(2,), **state),
            },
        ),
        cameras=cameras, state_keys=("state/a", "state/b"), frames=1 + config.latents, stride_steps=1, chunk_steps=CHUNK,
    )  # fmt: skip
    backbone = Backbone(spec, config, tiny_encoder() if cameras else None)
    if variant == "bc":
        return BCPolicy(spec, BCConfig(hidden=64, layers=2), backbone)
    if variant == "act":
        sizes = {"width": 32, "heads": 2, "feedforward": 64, "style_layers": 1, "encoder_layers": 1, "style_dim": 4}
        return ACTPolicy(spec, ACTConfig(**sizes, dropout=0.0), backbone)
    config = DiffusionConfig(
        denoiser=variant.partition("-")[2], prediction=prediction, noise_steps=20, sample_steps=10,
        unet=UNetDenoiserConfig(channels=(16, 32), kernel=3, groups=4, level_width=16),
        transformer=TransformerDenoiserConfig(width=32, heads=2, layers=1, dropout=0.0),
    )  # fmt: skip
    return DiffusionPolicy(spec, config, backbone)


def make_batch(policy: Policy, rows: int = ROWS, seed: int = 0) -> dict[str, Tensor]:
    """Rows as the policy acts on them, with actions that their images and states tell apart."""
    generator = torch.Generator().manual_seed(seed)
    observation: dict[str, Tensor] = {
        f"images/{camera}": torch.randint(0, 256, (rows, policy.spec.frames, 32, 32, 3), generator=generator).to(torch.uint8)
        for camera in policy.spec.cameras
    }  # fmt: skip
    for key, width in (("state/a", 3), ("state/b", 2)):
        observation[key] = torch.randn(rows, 1, width, generator=generator)
    action = torch.rand(rows, CHUNK, 3, generator=generator) * 1.6 - 0.8
    return {**observation, "action": action, "action_is_pad": torch.zeros(rows, CHUNK, dtype=torch.bool)}


def fitted(policy: Policy, batch: dict[str, Tensor]) -> Policy:
    state = torch.cat([batch["state/a"][:, -1], batch["state/b"][:, -1]], dim=-1)
    policy.fit_normalizers(state, batch["action"], batch["action_is_pad"])
    policy.backbone.fit_features(observed(batch))
    return policy


def observed(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in batch.items() if not key.startswith("action")}


@pytest.mark.parametrize(
    ("variant", "sight"),
    [(v, s) for v, s in itertools.product(VARIANTS, SIGHTS) if v in ("bc", "act") or s in ("grid", STATE_ONLY)],
)
def test_overfits_a_few_rows(variant: str, sight: str) -> None:
    policy = make_policy(variant, sight)
    batch = make_batch(policy)
    fitted(policy, batch).train()
    rows = batch | (policy.backbone.encode(batch) if policy.spec.cameras else {})
    if variant.startswith("diffusion"):  # many levels of noise a step
        rows = {key: value.repeat(8, *[1] * (value.ndim - 1)) for key, value in rows.items()}
    optimizer = torch.optim.Adam([p for p in policy.parameters() if p.requires_grad], lr=5e-3)
    for step in range({"bc": 80, "act": 120}.get(variant, 250)):
        torch.manual_seed(step)
        loss, parts = policy(rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.isfinite(loss) and all(torch.isfinite(value) for value in parts.values())
    for module in policy.modules():  # the statistics of this one batch, as a longer training would have them
        if isinstance(module, torch.nn.BatchNorm1d):
            module.momentum = None
            module.reset_running_stats()
    policy(rows)
    predicted = policy.eval().predict_chunk(observed(batch), torch.Generator().manual_seed(0))
    spread = (batch["action"] - batch["action"].mean(dim=0)).abs().mean()
    assert (predicted - batch["action"]).abs().mean() < 0.5 * spread


@pytest.mark.parametrize(
    ("variant", "sight", "adaptation"),
    [(v, s, a) for v, s, a in itertools.product(VARIANTS, SIGHTS, ADAPTATIONS) if s != STATE_ONLY or a == "frozen"],
)
def test_gradient_reaches_all_that_is_trained_and_nothing_else(variant: str, sight: str, adaptation: str) -> None:
    policy = make_policy(variant, sight, adaptation)
    batch = make_batch(policy, rows=3)
    fitted(policy, batch).train()
    torch.manual_seed(0)
    with torch.no_grad():  # adapters start at zero, where the gradient of their other half is zero too
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    policy(batch)[0].backward()
    encoder = dict(policy.backbone.encoder.named_parameters()) if policy.spec.cameras else {}
    trained = {name for name, parameter in encoder.items() if parameter.requires_grad}
    assert {
        "frozen": not trained,
        "lora": trained == {name for name in encoder if "lora_" in name},
        "full": trained == {name for name, parameter in tiny_encoder().named_parameters() if parameter.requires_grad},
    }[adaptation]
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, f"no gradient reaches {name}"
        else:
            assert parameter.grad is None, f"{name} is frozen and gets a gradient"


@pytest.mark.parametrize(("variant", "sight"), itertools.product(VARIANTS, SIGHTS))
def test_chunks_shape_range_and_randomness(variant: str, sight: str) -> None:
    policy = make_policy(variant, sight).eval()
    batch = make_batch(policy, rows=3)
    fitted(policy, batch)

    def generators(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    first = policy.predict_chunk(observed(batch), generators(0, 1, 2))
    assert first.shape == (3, CHUNK, 3) and first.dtype == torch.float32 and first.abs().max() <= 1
    assert torch.equal(first, policy.predict_chunk(observed(batch), generators(0, 1, 2)))
    other = policy.predict_chunk(observed(batch), generators(3, 1, 2))
    assert torch.allclose(first[1:], other[1:], atol=1e-5)
    assert torch.equal(first[0], other[0]) == (not variant.startswith("diffusion"))
    # A row does not depend on the rows beside it.
    alone = policy.predict_chunk({key: value[1:2] for key, value in observed(batch).items()}, generators(1))
    assert torch.allclose(alone, first[1:2], atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_changes_nothing(variant: str) -> None:
    policy = make_policy(variant, "pooled").train()
    batch = make_batch(policy)
    batch["action_is_pad"][:4, 3:] = True
    fitted(policy, batch)
    changed = batch | {"action": batch["action"].masked_fill(batch["action_is_pad"][..., None], 1e3)}
    losses, gradients = [], []
    for rows in (batch, changed):
        torch.manual_seed(1)
        policy.zero_grad()
        loss, _ = policy(rows)
        loss.backward()
        losses.append(loss.detach())
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]))
    assert torch.equal(losses[0], losses[1]) and torch.equal(gradients[0], gradients[1])
    before = [buffer.clone() for name, buffer in policy.named_buffers() if "normalizer" in name]
    fitted(policy, changed)
    after = [buffer for name, buffer in policy.named_buffers() if "normalizer" in name]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim_is_a_function_of_the_initial_noise_alone(prediction: str) -> None:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    policy = make_policy("diffusion-unet", STATE_ONLY, prediction=prediction).eval()
    batch = make_batch(policy, rows=2)
    fitted(policy, batch)
    sampled = policy.predict_chunk(observed(batch), torch.Generator().manual_seed(5))
    # The update of DDIM at eta = 0 written out (arXiv 2010.02502, equation 12), from the highest level down.
    alphas = DDIMScheduler(num_train_timesteps=20, beta_schedule="squaredcos_cap_v2").alphas_cumprod
    x = torch.randn(2, CHUNK, 3, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        condition = policy.backbone(observed(batch))
        for level in range(19, 0, -2):
            predicted = policy.denoiser(x, torch.full((2,), level), condition)
            alpha, before = alphas[level], alphas[level - 2] if level >= 2 else torch.tensor(1.0)
            if prediction == "epsilon":
                noise, clean = predicted, ((x - (1 - alpha).sqrt() * predicted) / alpha.sqrt()).clamp(-1, 1)
            else:
                noise, clean = (x - alpha.sqrt() * predicted) / (1 - alpha).sqrt(), predicted.clamp(-1, 1)
            x = before.sqrt() * clean + (1 - before).sqrt() * noise
    expected = policy.action_normalizer.unnormalize(x).clamp(-1, 1)
    assert torch.allclose(sampled, expected, atol=1e-5)


@pytest.mark.parametrize("sight", list(READOUTS))
def test_features_stand_for_images(sight: str) -> None:
    policy = make_policy("bc", sight).eval()
    batch = observed(make_batch(policy, rows=3))
    features = policy.backbone.encode(batch)
    assert features["features/left"].shape == (3, policy.backbone.config.latents, *policy.backbone.feature_shape)
    state = {"state": torch.cat([batch["state/a"][:, -1], batch["state/b"][:, -1]], dim=-1)}
    assert torch.equal(policy.backbone(batch).vector, policy.backbone(features | state).vector)
    assert policy.backbone(batch).vector.shape == (3, policy.backbone.condition_dim)


@pytest.mark.parametrize("adaptation", ["lora", "full"])
def test_training_mode_keeps_the_encoders_statistics_and_merging_keeps_its_output(adaptation: str) -> None:
    policy = make_policy("bc", "grid", adaptation)
    assert not policy.train().backbone.encoder.training and policy.head.training
    if adaptation == "lora":
        plain = set(make_policy("bc", "grid").state_dict())
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                if "lora_" in name:
                    parameter.normal_(std=0.1)
        batch = observed(make_batch(policy, rows=2))
        before = policy.eval().predict_chunk(batch)
        merge_adapters(policy.backbone.encoder)
        assert set(policy.state_dict()) == plain
        assert torch.allclose(before, policy.predict_chunk(batch), atol=1e-4)


ENCODER = EncoderSpec(
    name="test", frames=1, fps=0.0, image_size=32, grid=(1, 3, 5), embed_dim=4, mean=(0.5,) * 3, std=(0.5,) * 3, resize="stretch", weights_sha256="",
)  # fmt: skip


def test_noise_of_the_linear_readout_is_that_of_noisy_tokens() -> None:
    """Drawn after the map, it has the mean and the covariance that noise on every token has after it; evaluation has none."""
    torch.manual_seed(0)
    readout = READOUTS["linear"].build(ENCODER, ReadoutConfig(latent=3, noise=2.0))
    _, rows, columns = ENCODER.grid
    tokens = torch.randn(1, 1, rows * columns, ENCODER.embed_dim)
    plain = readout.eval()(tokens)[0, 0]
    torch.testing.assert_close(plain, readout.project(tokens.flatten(1))[0])
    many = tokens.expand(40_000, -1, -1, -1)
    drawn = readout.train()(many)[:, 0]
    noisy = readout.project((many + 2.0 * torch.randn_like(many))[:, -1].flatten(1))
    torch.testing.assert_close(drawn.mean(0), plain, atol=0.05, rtol=0)
    torch.testing.assert_close(drawn.T.cov(), noisy.T.cov(), atol=0.1, rtol=0.05)
    with pytest.raises(ValueError, match="noise=-1"):
        ReadoutConfig(noise=-1)


@pytest.mark.parametrize("name", list(READOUTS))
def test_readouts_declare_their_shape(name: str) -> None:
    entry = READOUTS[name]
    config = ReadoutConfig(channels=2, keypoints=3, queries=2, width=8, heads=2, history=3)
    readout = entry.build(ENCODER, config)
    shape = (2, 3 if entry.over_time else 1, *((4,) if entry.needs == "pooled" else (15, 4)))
    assert readout(torch.randn(shape)).shape == (2, readout.places, readout.width)


def test_spatial_softmax_finds_a_bright_token() -> None:
    readout = READOUTS["spatial-softmax"].build(ENCODER, ReadoutConfig(keypoints=1))
    with torch.no_grad():
        readout.project.weight.copy_(torch.tensor([[100.0, 0.0, 0.0, 0.0]]))
    tokens = torch.zeros(1, 1, 15, 4)
    tokens[0, 0, 1 * 5 + 4, 0] = 1.0  # row 1 of 3, column 4 of 5
    np.testing.assert_allclose(readout(tokens)[0, 0].detach(), [1.0, 0.0], atol=1e-5)  # x to the right, y down


def test_flare_is_differences_and_the_newest() -> None:
    readout = READOUTS["flare"].build(ENCODER, ReadoutConfig(history=3))
    latents = torch.randn(2, 3, 4)
    expected = torch.stack([latents[:, 1] - latents[:, 0], latents[:, 2] - latents[:, 1], latents[:, 2]], dim=1)
    assert torch.equal(readout(latents), expected)


def test_grid_keeps_places_and_attention_does_not() -> None:
    tokens, moved = torch.randn(1, 1, 15, 4), torch.randn(1, 1, 15, 4)
    moved[:, :, 1:] = tokens[:, :, 1:]
    grid = READOUTS["grid"].build(ENCODER, ReadoutConfig(channels=2))
    assert (grid(tokens) != grid(moved))[0].any(dim=-1).nonzero().flatten().tolist() == [0]
    attention = READOUTS["attention"].build(ENCODER, ReadoutConfig(queries=2, width=8, heads=2))
    shuffled = tokens[:, :, torch.randperm(15)]
    assert torch.allclose(attention(tokens), attention(shuffled), atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BackboneConfig(readout="gird"), "did you mean 'grid'"),
        (lambda: BackboneConfig(adaptation="half"), "backbone.adaptation=half"),
        (lambda: BackboneConfig(width=10, heads=4), "backbone.width=10"),
        (lambda: BackboneConfig(history=1), "backbone.history=1"),
        (lambda: ACTConfig(width=10, heads=4), "act.width=10"),
        (lambda: DiffusionConfig(denoiser="mlp"), "diffusion.denoiser=mlp"),
        (lambda: DiffusionConfig(sample_steps=200), "diffusion.sample_steps=200"),
        (lambda: UNetDenoiserConfig(channels=(10,)), "multiple of groups"),
        (lambda: UNetDenoiserConfig(kernel=4), "odd"),
        (lambda: TransformerDenoiserConfig(width=10, heads=4), "width=10"),
    ],
)
def test_bad_settings_are_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
