"""EgoMCQ: one sentence, five clips, which one shows it? The answer is the clip nearest to the sentence.

Two types of question: "inter", whose five clips come from different videos, and "intra", whose clips come from one video and
are harder. In the annotations type 1 is inter and type 2 is intra; several published evaluations print the two names swapped,
which shows by intra above inter (usual figures are about 90 and 60).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from pretrain.downstream.annotations import find_file, number, read_json, reading
from pretrain.downstream.features import Extractor
from pretrain.downstream.segments import Segment
from pretrain.downstream.statistics import make_metric
from pretrain.downstream.task import Outcome, Task, counted

OPTIONS = 5
TYPES = {1: "inter", 2: "intra"}
FILE = "egomcq.json"


@dataclass(frozen=True, kw_only=True)
class Question:
    """`kind`: of TYPES' names; `answer`: index of the right one of `choices`."""

    kind: str
    text: str
    choices: tuple[Segment, ...]
    answer: int

    @property
    def segments(self) -> Sequence[Segment]:
        return self.choices

    @property
    def group(self) -> str:
        return self.choices[self.answer].video


def read_egomcq(directory: Path) -> Task:
    """`egomcq.json`: {"0": {"answer": 0-4, "types": 1|2, "query": {"clip_text"}, "choices": {"0".."4": {"video_uid",
    "clip_start", "clip_end"}}}}; times are seconds, as numbers or strings.

    Raises:
        ValueError: a broken entry, named. Questions without text are skipped and counted.
    """
    path = find_file(directory, (FILE,), "EgoMCQ's questions")
    questions, skipped = [], Counter[str]()
    for name, entry in read_json(path, dict).items():
        with reading(path, f"question {name!r}"):
            kind, answer = entry["types"], entry["answer"]
            if kind not in TYPES:
                raise ValueError(f"types is {kind!r}, expected 1 (inter) or 2 (intra)")
            if not isinstance(answer, int) or not 0 <= answer < OPTIONS:
                raise ValueError(f"answer is {answer!r}, expected 0 to {OPTIONS - 1}")
            choices = [_segment(entry["choices"][str(option)]) for option in range(OPTIONS)]
            text = str(entry["query"]["clip_text"]).strip()
        if not text:
            skipped["a question without text"] += 1
        elif any(choice.end_s <= choice.start_s for choice in choices):
            skipped["a question with a clip of no length"] += 1
        else:
            questions.append(Question(kind=TYPES[kind], text=text, choices=tuple(choices), answer=answer))
    return Task(items=tuple(questions), notes=counted(skipped), protocol={"options": OPTIONS})


def _segment(choice: dict) -> Segment:
    return Segment(str(choice["video_uid"]), number(choice["clip_start"]), number(choice["clip_end"]))


def evaluate_egomcq(extractor: Extractor, task: Task) -> Outcome:
    """Accuracy of each type."""
    questions: Sequence[Question] = task.items
    choices = [choice for question in questions for choice in question.choices]
    video = extractor.joint(choices).unflatten(0, (len(questions), OPTIONS)).numpy()
    text = extractor.subject.embed_text([question.text for question in questions]).numpy()
    chosen = choose(np.einsum("qoe,qe->qo", video, text))
    metrics = []
    for kind in TYPES.values():
        asked = [index for index, question in enumerate(questions) if question.kind == kind]
        if asked:
            right = np.array([chosen[index] == questions[index].answer for index in asked], np.float64)
            groups = np.array([questions[index].group for index in asked])
            metrics.append(make_metric(f"{kind} accuracy", right, unit="%", chance=1 / OPTIONS, groups=groups))
    return Outcome(metrics=tuple(metrics))


def choose(similarity: Float[np.ndarray, "n o"]) -> Int[np.ndarray, " n"]:
    """The most similar option; -1, which is never right, where options tie for it: features that have collapsed would
    otherwise score by the place of the answer."""
    best = similarity.max(axis=1, keepdims=True)
    return np.where((similarity == best).sum(axis=1) == 1, similarity.argmax(axis=1), -1)
