"""A batch in micro-batches has the loss and the gradients of the batch at once."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric

from pretrain.egodtm.depth_decoder import DepthDecoderConfig
from pretrain.egodtm.gradcache import GradCache
from pretrain.egodtm.losses import CONTRASTIVE, contrastive_gradients, contrastive_loss
from pretrain.egodtm.model import DECODER_SIZES, EgoDTM, EgoDTMConfig, LossConfig, egodtm_loss
from pretrain.egodtm.text import TextConfig, tokenize
from pretrain.egodtm.video_vit import VideoViTConfig
from pretrain.loop import TrainerConfig, fit

CLIPS = 7


def nano(contrastive: str, with_depth: bool = True) -> EgoDTM:
    torch.manual_seed(0)
    return EgoDTM(
        EgoDTMConfig(
            video=VideoViTConfig.of_size("nano", frames=2),
            text=TextConfig.of_size("nano"),
            decoder=DepthDecoderConfig(**DECODER_SIZES["nano"]) if with_depth else None,
            joint_dim=16,
            contrastive=contrastive,
        )
    )


def made_batch(model: EgoDTM, clips: int = CLIPS) -> dict[str, torch.Tensor]:
    """Unequal numbers of valid pixels, a clip without any, two equal texts."""
    generator = torch.Generator().manual_seed(1)
    frames, side = model.config.video.frames, model.config.depth_size or 8
    depth = torch.rand(clips, frames, side, side, generator=generator)
    valid = depth > torch.linspace(0, 0.9, clips)[:, None, None, None]
    valid[1] = False
    depth[1] = float("nan")
    texts = [f"#C C picks up {'the red can' if i in (0, 3) else f'thing {i} ' * (i + 1)}" for i in range(clips)]
    return {
        "video": torch.randint(0, 256, (clips, frames, 40, 40, 3), dtype=torch.uint8, generator=generator),
        "text_ids": tokenize(texts),
        "depth": depth,
        "depth_valid": valid,
    }


def gradients(model: EgoDTM) -> dict[str, torch.Tensor]:
    return {n: p.grad for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}


def plain_step(model: EgoDTM, batch: dict[str, torch.Tensor], loss: LossConfig) -> dict[str, torch.Tensor]:
    total, scalars = egodtm_loss(
        model(batch["video"], batch["text_ids"]),
        log_scale=model.log_scale,
        bias=model.logit_bias,
        text_ids=batch["text_ids"],
        depth=batch["depth"],
        depth_valid=batch["depth_valid"],
        config=loss,
    )
    total.backward()
    return scalars


def assert_equal_steps(model: EgoDTM, expected: EgoDTM, found: dict, scalars: dict) -> None:
    for name, value in scalars.items():
        assert float(found[name]) == pytest.approx(float(value), rel=1e-5, abs=1e-7), name
    wanted = gradients(expected)
    assert gradients(model).keys() == wanted.keys()
    whole = torch.cat([g.flatten() for g in wanted.values()]).norm()
    for name, gradient in gradients(model).items():
        # Relative to the tensor's own gradient, except where that is rounding (the bias of attention's keys).
        assert (gradient - wanted[name]).norm() <= 1e-5 * max(wanted[name].norm(), 1e-3 * whole), name


@pytest.mark.parametrize(
    ("contrastive", "micro_batch", "error", "deep", "duplicates", "with_depth"),
    [
        ("infonce", 3, "l1", True, True, True),
        ("infonce", 1, "silog", True, False, True),
        ("infonce", 4, "mse", False, True, True),
        ("infonce", 2, "mse", False, True, False),
        ("siglip", 3, "ssi", True, True, True),
        ("siglip", 2, "ssi_trimmed", False, False, True),
        ("siglip", CLIPS, "l1", True, True, True),
    ],
)
def test_micro_batches_are_the_batch(
    contrastive: str, micro_batch: int, error: str, deep: bool, duplicates: bool, with_depth: bool
) -> None:
    loss = LossConfig(
        contrastive_weight=0.7,
        depth_weight=1.3,
        contrastive=contrastive,
        depth_error=error,
        depth_edges=0.4,
        deep_supervision=deep,
        mask_duplicates=duplicates,
    )
    plain, cached = nano(contrastive, with_depth), nano(contrastive, with_depth)
    batch = made_batch(plain)
    scalars = plain_step(plain, batch, loss)
    fabric = Fabric(accelerator="cpu", devices=1)
    wrapped = fabric.setup_module(cached)
    found = GradCache(cached, loss, micro_batch=micro_batch)(fabric, wrapped, batch)
    assert found.keys() == scalars.keys()
    assert_equal_steps(cached, plain, dict(found), scalars)
    # Learned scale and bias are among the parameters compared.
    assert ("logit_bias" in gradients(cached)) == ("log_scale" in gradients(cached)) == (contrastive == "siglip")


@pytest.mark.parametrize("contrastive", CONTRASTIVE)
def test_bf16_micro_batches(contrastive: str) -> None:
    """In bf16 the clips round differently in another batch, no more; the embeddings and losses are fp32."""
    loss, found = LossConfig(contrastive=contrastive), []
    for micro_batch in (3, CLIPS):
        model = nano(contrastive)
        fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
        scalars = GradCache(model, loss, micro_batch=micro_batch)(fabric, fabric.setup_module(model), made_batch(model))
        assert scalars["loss"].dtype == torch.float32
        found.append((scalars, gradients(model)))
    exact = nano(contrastive)
    scalars = plain_step(exact, made_batch(exact), loss)
    whole = torch.cat([g.flatten() for g in gradients(exact).values()])
    for half_scalars, half in found:
        assert float(half_scalars["loss"]) == pytest.approx(float(scalars["loss"]), rel=0.02)
        assert half.keys() == gradients(exact).keys()
        assert (torch.cat([g.flatten() for g in half.values()]) - whole).norm() < 0.1 * whole.norm()


def test_both_passes_draw_the_same() -> None:
    """With dropout a clip's embedding in the second pass is the one whose gradient was cached."""
    model = nano("infonce", with_depth=False)
    model.video.vit.ln_post.register_forward_hook(lambda module, inputs, output: F.dropout(output, 0.5))
    seen = []
    model.text.register_forward_hook(lambda *_: seen.append(torch.get_rng_state()))
    fabric = Fabric(accelerator="cpu", devices=1)
    embeddings = []
    model.video_projection.register_forward_hook(lambda module, inputs, output: embeddings.append(output.detach()))
    GradCache(model, LossConfig(), micro_batch=3)(fabric, fabric.setup_module(model), made_batch(model))
    first, second = embeddings[:3], embeddings[3:]
    assert len(second) == 3 and not torch.equal(first[0], first[1])
    for before, after in zip(first, second, strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize(("kind", "block"), itertools.product(CONTRASTIVE, (1, 3, 8)))
def test_blocks_of_rows_are_the_matrix(kind: str, block: int) -> None:
    generator = torch.Generator().manual_seed(0)
    video, text = (F.normalize(torch.randn(8, 5, generator=generator, dtype=torch.float64), dim=-1) for _ in range(2))
    ids = torch.tensor([[1], [2], [1], [3], [4], [2], [5], [6]])
    log_scale, bias = torch.tensor(1.7, dtype=torch.float64), torch.tensor(-2.0, dtype=torch.float64)
    leaves = [x.clone().requires_grad_() for x in (video, text, log_scale, bias)]
    expected, accuracy = contrastive_loss(kind, leaves[0], leaves[1], leaves[2].exp(), leaves[3], ids)
    expected.backward()
    loss, found_accuracy, found = contrastive_gradients(kind, video, text, log_scale, bias, ids, block=block)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(found_accuracy, accuracy)
    for gradient, leaf in zip(found, leaves, strict=True):
        torch.testing.assert_close(gradient, torch.zeros_like(leaf) if leaf.grad is None else leaf.grad)


def test_a_loss_that_knows_no_micro_batches_says_so(tmp_path: Path) -> None:
    from pretrain.batches import BatchPlan

    with pytest.raises(ValueError, match=r"trainer.micro_batch=2: heads trains on whole batches only"):
        fit(
            fabric=Fabric(accelerator="cpu", devices=1),
            model=torch.nn.Linear(1, 1),
            compute_loss=lambda model, batch: (model(batch), {}),
            load=lambda ids: {},
            plan=BatchPlan(indices=(0, 1), batch_size=2, seed=0),
            trainer=TrainerConfig(micro_batch=2, batch_size=2),
            directory=tmp_path,
            title="heads",
        )


def _run_rank(contrastive: str, micro_batch: int, directory: str) -> None:
    """One of two processes; rank 0 writes its averaged gradients and scalars."""
    torch.set_num_threads(1)
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    loss = LossConfig(contrastive=contrastive, depth_error="silog")
    model = nano(contrastive)
    wrapped = fabric.setup_module(model)
    batch = made_batch(model, clips=8)
    own = slice(4 * fabric.global_rank, 4 * fabric.global_rank + 4)
    share = {name: value[own] for name, value in batch.items()}
    for _ in range(2):  # the second time DDP would complain of a first that was not finished
        model.zero_grad()
        if micro_batch:
            scalars = GradCache(model, loss, micro_batch=micro_batch)(fabric, wrapped, share)
        else:
            total, scalars = egodtm_loss(
                wrapped(share["video"], share["text_ids"]),
                log_scale=model.log_scale,
                bias=model.logit_bias,
                text_ids=share["text_ids"],
                depth=share["depth"],
                depth_valid=share["depth_valid"],
                config=loss,
            )
            fabric.backward(total)
    if fabric.is_global_zero:
        torch.save(gradients(model), f"{directory}/gradients.pt")
        Path(directory, "scalars.json").write_text(json.dumps({k: float(v) for k, v in scalars.items()}))


@pytest.mark.slow
@pytest.mark.parametrize(("contrastive", "micro_batch"), [("infonce", 3), ("siglip", 2), ("siglip", 0), ("infonce", 0)])
def test_two_processes_are_one(contrastive: str, micro_batch: int, tmp_path: Path) -> None:
    """micro_batch 0: the plain loss over two processes, whose gathered gradients must be those of the whole batch too."""
    subprocess.run(
        [sys.executable, __file__, contrastive, str(micro_batch), str(tmp_path)],
        check=True,
        timeout=200,
    )
    plain = nano(contrastive)
    scalars = plain_step(plain, made_batch(plain, clips=8), LossConfig(contrastive=contrastive, depth_error="silog"))
    found = torch.load(tmp_path / "gradients.pt", weights_only=True)
    wanted = gradients(plain)
    whole = torch.cat([g.flatten() for g in wanted.values()]).norm()
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() <= 1e-5 * max(gradient.norm(), 1e-3 * whole), name
    said = json.loads((tmp_path / "scalars.json").read_text())
    assert said["contrastive"] == pytest.approx(float(scalars["contrastive"]), rel=1e-5)
    assert said["accuracy"] == pytest.approx(float(scalars["accuracy"]))


if __name__ == "__main__":
    _run_rank(sys.argv[1], int(sys.argv[2]), sys.argv[3])
