"""Hands and touched things by open-vocabulary detectors of the transformers library: Grounding DINO and OWLv2.

The queries are "hand", "object in hand" and the things that the narration names. The models tell neither sides nor contact;
the rules of `pretrain.annotate.detect` do. Input size and normalisation are those of the processor beside the weights.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from pretrain.annotate.detect import box_iou, narrated_things, set_broken_apart, suppress, with_contacts, with_sides
from pretrain.annotate.records import Detection, Detections
from pretrain.annotate.weights import choose_device, load, load_model, transformers, weights_directory
from pretrain.clips.schema import Clip

HAND_QUERY = "hand"
HELD_QUERY = "object in hand"
_SAME_BOX_IOU = 0.5

# (query, score, box) of one finding.
_Found = tuple[str, float, tuple[float, float, float, float]]


class OpenVocabularyDetector(ABC):
    """What both models share.

    Args:
        weights: directory of the model.
        device: auto, cpu, cuda or mps.
        threshold: least score of a box.
        nms: greatest IoU of two boxes of a kind in a frame.

    Raises:
        ValueError: the directory is not there.
    """

    name: str
    model_name: str  # where the weights come from
    model_class: str  # in transformers

    def __init__(self, weights: str | None, device: str = "auto", *, threshold: float = 0.3, nms: float = 0.3) -> None:
        self._directory = weights_directory(weights, key="detect_weights", model=self.model_name)
        self._device, self._threshold, self._nms = device, threshold, nms

    def load(self) -> None:
        library = transformers()
        self._processor = load(library.AutoProcessor, self._directory, key="detect_weights")
        model_class = getattr(library, self.model_class)
        self._model = load_model(model_class, self._directory, key="detect_weights", device=self._device)

    def detect(self, clip: Clip) -> Detections:
        assert clip.rgb is not None
        queries = tuple(dict.fromkeys((HAND_QUERY, HELD_QUERY, *narrated_things(clip.narration))))
        return {frame: self._frame(image, queries) for frame, image in enumerate(clip.rgb)}

    def _frame(self, image: UInt8[np.ndarray, "H W 3"], queries: Sequence[str]) -> tuple[Detection, ...]:
        height, width = image.shape[:2]
        found = [
            Detection(
                kind="hand" if query == HAND_QUERY else "object",
                box_xyxy=box,
                score=score,
                label="" if query in (HAND_QUERY, HELD_QUERY) else query,
            )
            for query, score, box in self._find(image, queries)
        ]
        sound, broken = set_broken_apart(found)
        kept = [_with_name(one, sound) for one in suppress(sound, threshold=self._threshold, nms=self._nms)]
        hands = with_sides([one for one in kept if one.kind == "hand"], width)
        things = [one for one in kept if one.kind == "object"]
        return (*with_contacts(hands, things, height, width), *broken)

    @torch.inference_mode()
    def _find(self, image: UInt8[np.ndarray, "H W 3"], queries: Sequence[str]) -> list[_Found]:
        inputs = self._inputs(image, queries).to(choose_device(self._device))
        inputs["pixel_values"] = inputs["pixel_values"].to(self._model.dtype)
        outputs = self._model(**inputs)
        for name in ("logits", "pred_boxes"):
            outputs[name] = outputs[name].float()
        (result,) = self._results(outputs, inputs, [image.shape[:2]], queries)
        return [
            (query, float(score), (float(box[0]), float(box[1]), float(box[2]), float(box[3])))
            for query, score, box in zip(
                result["text_labels"], result["scores"].tolist(), result["boxes"].tolist(), strict=True
            )
            if query
        ]

    @abstractmethod
    def _inputs(self, image: np.ndarray, queries: Sequence[str]) -> Any:
        """What the processor makes of one image and the queries."""

    @abstractmethod
    def _results(self, outputs: Any, inputs: Any, sizes: list[Any], queries: Sequence[str]) -> list[dict[str, Any]]:
        """For each image "scores", "boxes" in its pixels, and "text_labels", the query of each box ("" for none)."""


class GroundingDino(OpenVocabularyDetector):
    """Grounding DINO. All queries are one text, "hand. object in hand. red can."; a box belongs to the query whose words
    its tokens make up best, so a mixture such as "object hand" counts for the longest query with all of these words."""

    name = "grounding-dino"
    model_name = "IDEA-Research/grounding-dino-base"
    model_class = "GroundingDinoForObjectDetection"

    def _inputs(self, image: np.ndarray, queries: Sequence[str]) -> Any:
        return self._processor(images=image, text=" ".join(f"{query}." for query in queries), return_tensors="pt")

    def _results(self, outputs: Any, inputs: Any, sizes: list[Any], queries: Sequence[str]) -> list[dict[str, Any]]:
        results = self._processor.post_process_grounded_object_detection(
            outputs,
            inputs["input_ids"],
            threshold=self._threshold,
            text_threshold=min(self._threshold, 0.25),
            target_sizes=sizes,
        )
        for result in results:
            result["text_labels"] = [query_of(words, queries) for words in result["text_labels"]]
        return results


def query_of(words: str, queries: Sequence[str]) -> str:
    """The query that a phrase of tokens stands for: most words in common for its length; "" for none."""
    said = set(words.replace("#", "").split())

    def agreement(query: str) -> float:
        asked = set(query.split())
        return len(said & asked) / len(said | asked)

    best = max(queries, key=agreement)
    return best if agreement(best) > 0 else ""


class Owlv2(OpenVocabularyDetector):
    """OWLv2. Each query is a text of its own. Boxes come out in the padded square; its processor brings them back."""

    name = "owlv2"
    model_name = "google/owlv2-base-patch16-ensemble"
    model_class = "Owlv2ForObjectDetection"

    def _inputs(self, image: np.ndarray, queries: Sequence[str]) -> Any:
        # Padded to the tokenizer's length (16), as the model was trained; a longer name loses its end.
        text = [[f"a photo of a {query}" for query in queries]]
        return self._processor(images=image, text=text, padding="max_length", truncation=True, return_tensors="pt")

    def _results(self, outputs: Any, inputs: Any, sizes: list[Any], queries: Sequence[str]) -> list[dict[str, Any]]:
        return self._processor.post_process_grounded_object_detection(
            outputs, threshold=self._threshold, target_sizes=sizes, text_labels=[list(queries)]
        )


def _with_name(one: Detection, found: Sequence[Detection]) -> Detection:
    """Gives "object in hand" the best name from the narration that was found for about the same box."""
    if one.kind == "hand" or one.label:
        return one
    names = [other for other in found if other.label and box_iou(one.box_xyxy, other.box_xyxy) > _SAME_BOX_IOU]
    return replace(one, label=max(names, key=lambda other: other.score).label) if names else one


OPEN_VOCABULARY: dict[str, Callable[..., OpenVocabularyDetector]] = {"grounding-dino": GroundingDino, "owlv2": Owlv2}
