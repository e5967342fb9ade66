"""EgoSchema: a question about three minutes of video with five answers, by the similarity of "question answer" and video.

No language model reads the question: what is measured is whether the joint space of video and text holds the answer.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch.nn.functional as F

from pretrain.downstream.annotations import find_file, read_json, reading
from pretrain.downstream.egomcq import OPTIONS, choose
from pretrain.downstream.features import Extractor
from pretrain.downstream.segments import Segment, VideoSource
from pretrain.downstream.statistics import make_metric
from pretrain.downstream.task import Outcome, Task, counted

QUESTIONS = "questions.json"
ANSWERS = ("subset_answers.json", "answers.json")
# The embedding of a long video is the mean of this many pieces side by side.
PIECES = 16


@dataclass(frozen=True, kw_only=True)
class VideoQuestion:
    """`options`: five answers, `answer` the index of the right one; `pieces`: what the video is cut into."""

    name: str
    video: Segment
    question: str
    options: tuple[str, ...]
    answer: int
    pieces: int

    @property
    def segments(self) -> Sequence[Segment]:
        return (self.video,)

    @property
    def group(self) -> str:
        return self.name


def read_egoschema(directory: Path) -> Task:
    """`questions.json`, a list of {"q_uid", "question", "option 0".."option 4"}, and the answers {"q_uid": 0-4}, which are
    public for a subset: the other questions are counted and left out. Videos are called by their q_uid.

    Raises:
        ValueError: a missing field, a q_uid that is there twice, an answer that is no option.
    """
    path = find_file(directory, (QUESTIONS,), "EgoSchema's questions")
    answers_path = find_file(directory, ANSWERS, "EgoSchema's answers")
    answers = read_json(answers_path, dict)
    questions: dict[str, VideoQuestion] = {}
    unanswered = 0
    for place, entry in enumerate(read_json(path, list)):
        with reading(path, f"entry {place}"):
            name = str(entry["q_uid"])
            if name in questions:
                raise ValueError(f"q_uid {name!r} is there twice")
            if name not in answers:
                unanswered += 1
                continue
            answer = answers[name]
            if not isinstance(answer, int) or not 0 <= answer < OPTIONS:
                raise ValueError(f"{answers_path.name} says {answer!r} for {name}, expected 0 to {OPTIONS - 1}")
            options = tuple(str(entry[f"option {option}"]).strip() for option in range(OPTIONS))
            questions[name] = VideoQuestion(
                name=name,
                video=Segment(name),
                question=str(entry["question"]).strip(),
                options=options,
                answer=answer,
                pieces=PIECES,
            )
    notes = counted({"a question whose answer is not public": unanswered})
    return Task(items=tuple(questions.values()), notes=notes, protocol={"pieces": PIECES})


def pieces_of(video: Segment, source: VideoSource, pieces: int) -> list[Segment]:
    whole = source.resolve(video)
    edges = np.linspace(whole.start_s, whole.end_s, pieces + 1)
    return [
        Segment(whole.video, round(float(start), 6), round(float(end), 6)) for start, end in itertools.pairwise(edges)
    ]


def evaluate_egoschema(extractor: Extractor, task: Task) -> Outcome:
    """Accuracy of the option whose text is nearest to the video."""
    questions: Sequence[VideoQuestion] = task.items
    pieces = [pieces_of(question.video, extractor.source, question.pieces) for question in questions]
    joint = extractor.joint([piece for part in pieces for piece in part])
    means = [rows.mean(dim=0) for rows in joint.split([len(part) for part in pieces])]
    texts = [f"{question.question} {option}".strip() for question in questions for option in question.options]
    text = extractor.subject.embed_text(texts).unflatten(0, (len(questions), OPTIONS))
    similarity = np.stack([(own @ F.normalize(mean, dim=0)).numpy() for own, mean in zip(text, means, strict=True)])
    answer = np.array([question.answer for question in questions])
    right = (choose(similarity) == answer).astype(np.float64)
    return Outcome(metrics=(make_metric("accuracy", right, unit="%", chance=1 / OPTIONS),))
