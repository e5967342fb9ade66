"""Large contrastive batches in the memory of small ones, with the same gradient (GradCache, arXiv 2101.06983).

The contrastive loss couples all clips of a batch, but only through their embeddings. So a step goes over the batch twice:
first without a graph, for the embeddings of all clips and the loss's gradient by each; then a micro-batch at a time with a
graph, whose backward pass starts from those gradients. The depth loss is a sum over clips and joins the second pass.
"""

from collections.abc import Mapping
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from pretrain.egodtm.depth_losses import depth_divisor, masked_depth_loss
from pretrain.egodtm.losses import contrastive_gradients, world_size
from pretrain.egodtm.model import EgoDTM, LossConfig


class GradCache:
    """A `pretrain.loop.BackwardPass`: loss and gradients of the whole batch, `micro_batch` clips in memory at a time.

    Equal to the plain step up to rounding, dropout apart (its draws are repeated in the second pass, so each step is
    consistent in itself). Over several processes, the embeddings of all are gathered, and gradients are averaged once, with
    the last micro-batch.
    """

    def __init__(self, model: EgoDTM, loss: LossConfig, *, micro_batch: int) -> None:
        self.model, self.loss, self.micro_batch = model, loss, micro_batch

    def __call__(self, fabric: Fabric, wrapped: nn.Module, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Adds the step's gradients to the parameters; returns the scalars that egodtm_loss does.

        Args:
            batch: this process's share, on any device; micro-batches are moved as they are needed.
        """
        count = len(batch["text_ids"])
        parts = [slice(start, min(start + self.micro_batch, count)) for start in range(0, count, self.micro_batch)]
        device = self.model.log_scale.device
        videos, texts, draws = [], [], []
        with torch.no_grad():
            for part in parts:
                draws.append(_generator_states(device))
                micro = _slice(batch, part, fabric)
                output = wrapped(micro["video"], micro["text_ids"], with_depth=False)
                videos.append(output.video)
                texts.append(output.text)
        contrastive, accuracy, (by_video, by_text, by_scale, by_bias) = contrastive_gradients(
            self.loss.contrastive,
            torch.cat(videos),
            torch.cat(texts),
            self.model.log_scale,
            self.model.logit_bias,
            batch["text_ids"].to(device) if self.loss.mask_duplicates else None,
            block=self.micro_batch,
        )
        del videos, texts
        weight = self.loss.contrastive_weight
        with_depth = self.model.decoder is not None
        divisor = depth_divisor(batch["depth"], batch["depth_valid"], device) if with_depth else None
        depth = last_stage = torch.zeros((), device=device)
        for part, states in zip(parts, draws, strict=True):
            _set_generator_states(device, states)
            is_last = part is parts[-1]
            # The processes' gradients are averaged once, so all but the last backward pass keep theirs to themselves.
            with fabric.no_backward_sync(wrapped, enabled=not is_last):
                micro = _slice(batch, part, fabric)
                output = wrapped(micro["video"], micro["text_ids"], all_stages=self.loss.deep_supervision)
                # Its gradient by the parameters is the loss's: the cached gradients are constants. Averaging over the
                # processes divides by their number, while each has only its own clips' part of the sum.
                cached = (output.video * by_video[part]).sum() + (output.text * by_text[part]).sum()
                surrogate = weight * world_size() * cached
                if with_depth:
                    share, last = masked_depth_loss(
                        output.depth,
                        micro["depth"],
                        micro["depth_valid"],
                        error=self.loss.depth_error,
                        deep_supervision=self.loss.deep_supervision,
                        edges=self.loss.depth_edges,
                        divisor=divisor,
                    )
                    surrogate = surrogate + self.loss.depth_weight * share
                    depth, last_stage = depth + share.detach(), last_stage + last
                if is_last and self.model.log_scale.requires_grad:
                    surrogate = surrogate + weight * self.model.log_scale * by_scale
                if is_last and self.model.logit_bias is not None:
                    surrogate = surrogate + weight * self.model.logit_bias * by_bias
                fabric.backward(surrogate)
        scalars = {"contrastive": contrastive, "accuracy": accuracy}
        if with_depth:
            scalars["depth"] = last_stage
        return {"loss": weight * contrastive + self.loss.depth_weight * depth, **scalars}


def _slice(batch: Mapping[str, Any], part: slice, fabric: Fabric) -> dict[str, Any]:
    return fabric.to_device({name: value[part] for name, value in batch.items()})


def _generator_states(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def _set_generator_states(device: torch.device, states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
