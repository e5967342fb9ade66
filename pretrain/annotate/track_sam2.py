"""SAM 2 video through transformers.

As in the published pipeline a thing is prompted by its box, and a hand by the middle of its box as a positive point with the
middles of the other hands' and things' boxes as negative points; from the prompt's frame it is followed forward and backward,
and a mask is where the logit is above 0.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pretrain.annotate.detect import middle
from pretrain.annotate.records import Detections, Track
from pretrain.annotate.track import Prompt, choose_prompts, make_track
from pretrain.annotate.weights import choose_device, load, load_model, transformers, weights_directory
from pretrain.clips.schema import Clip


class Sam2Tracker:
    """See the head of this file. The video is brought to the model's size by the processor beside the weights.

    Raises:
        ValueError: the directory of the weights is not there.
    """

    name = "sam2"

    def __init__(self, weights: str | None, device: str = "auto") -> None:
        self._directory = weights_directory(weights, key="track_weights", model="facebook/sam2-hiera-large")
        self._device = device

    def load(self) -> None:
        library = transformers()
        self._processor = load(library.Sam2VideoProcessor, self._directory, key="track_weights")
        self._model = load_model(library.Sam2VideoModel, self._directory, key="track_weights", device=self._device)

    def track(self, clip: Clip, detections: Detections) -> tuple[Track, ...]:
        assert clip.rgb is not None
        prompts = choose_prompts(detections)
        tracks: list[Track] = []
        # What starts in another frame is followed in a session of its own: a session wants all its prompts in one frame.
        for start in dict.fromkeys(prompt.frame for prompt in prompts):
            tracks += self._follow(clip.rgb, [prompt for prompt in prompts if prompt.frame == start], start, detections)
        return tuple(sorted(tracks, key=lambda track: track.id))

    @torch.inference_mode()
    def _follow(self, rgb: np.ndarray, group: Sequence[Prompt], start: int, detections: Detections) -> list[Track]:
        session = self._processor.init_video_session(
            video=list(rgb), inference_device=choose_device(self._device), dtype=self._model.dtype
        )
        logits = {prompt.id: np.full(rgb.shape[:3], -np.inf, np.float32) for prompt in group}
        for prompt in group:
            self._processor.add_inputs_to_inference_session(
                session, start, prompt.id, **prompt_inputs(prompt, [one.box_xyxy for one in detections[start]])
            )
            # A session remembers new inputs of the last call alone, so each is looked at before the next is added.
            self._model(inference_session=session, frame_idx=start)
        for reverse in (False, True):
            for output in self._model.propagate_in_video_iterator(session, start_frame_idx=start, reverse=reverse):
                (masks,) = self._processor.post_process_masks(
                    [output.pred_masks.float()], [list(rgb.shape[1:3])], binarize=False
                )
                for number, mask in zip(output.object_ids or session.obj_ids, masks[:, 0], strict=True):
                    logits[number][output.frame_idx] = mask.cpu().numpy()
        return [_track(prompt, logits[prompt.id]) for prompt in group]


def prompt_inputs(prompt: Prompt, boxes: Sequence[tuple[float, float, float, float]]) -> dict[str, Any]:
    """The prompt as the processor takes it; `boxes` are all those of its frame."""
    if prompt.detection.kind == "object":
        return {"input_boxes": [[list(prompt.box)]]}
    others = [list(middle(box)) for box in boxes if box != prompt.box]
    points = [list(middle(prompt.box)), *others]
    return {"input_points": [[points]], "input_labels": [[[1] + [0] * len(others)]]}


def _track(prompt: Prompt, logits: np.ndarray) -> Track:
    """Masks where the logit is above 0; a frame's score is the mean probability within its mask."""
    masks = logits > 0
    scores = [
        float((1 / (1 + np.exp(-values[mask]))).mean()) if mask.any() else 0.0
        for values, mask in zip(logits, masks, strict=True)
    ]
    return make_track(prompt, list(masks), scores)
