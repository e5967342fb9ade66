"""EPIC-KITCHENS-100 multi-instance retrieval: rank sentences for a clip and clips for a sentence, by graded relevancy.

Relevancy of a clip and a sentence: (IoU of their verb classes + IoU of their noun classes) / 2 (Damen et al. 2022, section
4.6, after Wray et al. 2021); 1 = the same action in other words.

- mAP: a result is relevant only where relevancy is 1; mean over the queries of the average precision.
- nDCG: only the top k count, k the number of the query's non-zero relevancies; the gain of rank r is relevancy / log2(r + 1),
  divided by that of the ideal order.

Axes: V clips, S sentences, q queries, m candidates.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float64

from pretrain.downstream.annotations import find_file, read_csv, read_matrix
from pretrain.downstream.ek100 import Action, read_actions
from pretrain.downstream.features import Extractor
from pretrain.downstream.statistics import make_metric
from pretrain.downstream.task import Outcome, Task

VIDEOS = "EPIC_100_retrieval_test.csv"
SENTENCES = "EPIC_100_retrieval_test_sentence.csv"
RELEVANCY = "caption_relevancy_EPIC_100_retrieval_test"
DIRECTIONS = ("V->T", "T->V")


def read_ek100_mir(directory: Path) -> Task:
    """The retrieval csv, the sentence csv (which clips' narrations are the sentences) and the relevancy matrix [V, S], as
    .pkl (only an array of floats is admitted), .npz or .npy.

    Raises:
        ValueError: a sentence that no clip has; a matrix of another shape.
    """
    actions = read_actions(directory, (VIDEOS,), "the clips of EK-100's retrieval test")
    path = find_file(directory, (SENTENCES,), "the sentences of EK-100's retrieval test")
    rows = read_csv(path, ("narration_id", "narration"), key="narration_id")
    known = {action.narration_id for action in actions}
    if lost := [row["narration_id"] for row in rows if row["narration_id"] not in known]:
        raise ValueError(f"{path}: {len(lost)} narration_ids are not in {VIDEOS}, e.g. {lost[0]}")
    matrix_path = find_file(directory, [RELEVANCY + end for end in (".npz", ".npy", ".pkl")], "its relevancy matrix")
    relevancy = read_matrix(matrix_path)
    if relevancy.shape != (len(actions), len(rows)):
        raise ValueError(
            f"{matrix_path}: {relevancy.shape[0]} x {relevancy.shape[1]}, expected {len(actions)} clips x {len(rows)} sentences"
        )
    return mir_task(actions, [(row["narration_id"], row["narration"]) for row in rows], relevancy)


def mir_task(
    actions: Sequence[Action], sentences: Sequence[tuple[str, str]], relevancy: Float64[np.ndarray, "V S"]
) -> Task:
    """`sentences`: (narration_id of a clip that has it, the words)."""
    options = {
        "sentences": tuple(sentences),
        "relevancy": relevancy,
        "row": {action.narration_id: row for row, action in enumerate(actions)},
    }
    return Task(items=tuple(actions), options=options, protocol={"sentences": len(sentences)})


def class_relevancy(clips: Sequence[Action], sentences: Sequence[Action]) -> Float64[np.ndarray, "V S"]:
    """Relevancy from the classes: (IoU of verbs + IoU of nouns) / 2. An action has one verb, so its IoU is 0 or 1."""
    verbs = np.array([[clip.verb == sentence.verb for sentence in sentences] for clip in clips], np.float64)
    names = sorted({noun for action in (*clips, *sentences) for noun in action.nouns})
    column = {noun: index for index, noun in enumerate(names)}

    def members(actions: Sequence[Action]) -> np.ndarray:
        table = np.zeros((len(actions), len(names)))
        for row, action in enumerate(actions):
            table[row, [column[noun] for noun in action.nouns]] = 1
        return table

    a, b = members(clips), members(sentences)
    both = a @ b.T
    either = a.sum(axis=1)[:, None] + b.sum(axis=1)[None] - both
    return (verbs + both / np.maximum(either, 1)) / 2


def evaluate_ek100_mir(extractor: Extractor, task: Task) -> Outcome:
    """mAP and nDCG of both directions and their averages."""
    clips: Sequence[Action] = task.items
    # A dropped clip leaves the matrix, and so does a sentence whose own clip was dropped.
    row = task.options["row"]
    group_of = {clip.narration_id: clip.group for clip in clips}
    columns = [index for index, (owner, _) in enumerate(task.options["sentences"]) if owner in group_of]
    sentences = [task.options["sentences"][index] for index in columns]
    relevancy = task.options["relevancy"][np.ix_([row[clip.narration_id] for clip in clips], columns)]
    video = extractor.joint([clip.segment for clip in clips])
    text = extractor.subject.embed_text([words for _, words in sentences])
    similarity = (video @ text.T).double().numpy()

    groups = (
        np.array([clip.group for clip in clips]),
        np.array([group_of[owner] for owner, _ in sentences]),
    )
    views = ((similarity, relevancy), (similarity.T, relevancy.T))
    metrics, notes = [], []
    for name, score, chance in (
        ("mAP", average_precision, expected_average_precision),
        ("nDCG", ndcg, expected_ndcg),
    ):
        items = [score(*view) for view in views]
        expected = [float(np.nanmean(chance(view[1]))) for view in views]
        for direction, values, by_chance, group in zip(DIRECTIONS, items, expected, groups, strict=True):
            metrics.append(make_metric(f"{name} {direction}", values, unit="%", chance=by_chance, groups=group))
            if unanswerable := int(np.isnan(values).sum()):
                notes.append(f"{name} {direction}: {unanswerable} queries have no relevant result and are left out")
        metrics.append(
            make_metric(
                f"{name} average",
                np.concatenate(items),
                unit="%",
                chance=float(np.mean(expected)),
                groups=np.concatenate(groups),
                strata=np.repeat(DIRECTIONS, [len(values) for values in items]),
            )
        )
    return Outcome(metrics=tuple(metrics), notes=tuple(notes))


def _ranked(similarity: Float[np.ndarray, "q m"], relevancy: Float[np.ndarray, "q m"]) -> Float[np.ndarray, "q m"]:
    """Relevancies in the order of falling similarity; ties in the order of the candidates."""
    return np.take_along_axis(relevancy, np.argsort(-similarity, axis=1, kind="stable"), axis=1)


def average_precision(
    similarity: Float[np.ndarray, "q m"], relevancy: Float[np.ndarray, "q m"]
) -> Float64[np.ndarray, " q"]:
    """Of each query, relevant meaning relevancy 1; NaN for a query without any."""
    hits = _ranked(similarity, relevancy) >= 1
    found = hits.cumsum(axis=1)
    total = found[:, -1]
    precision = np.where(hits, found / np.arange(1, hits.shape[1] + 1), 0)
    return np.where(total > 0, precision.sum(axis=1) / np.maximum(total, 1), np.nan)


def ndcg(similarity: Float[np.ndarray, "q m"], relevancy: Float[np.ndarray, "q m"]) -> Float64[np.ndarray, " q"]:
    """Of each query, over its top k results with k its number of non-zero relevancies; NaN where k is 0."""
    counted, discount = _top_k(relevancy)
    gain = (_ranked(similarity, relevancy) * discount * counted).sum(axis=1)
    ideal = (-np.sort(-relevancy, axis=1) * discount * counted).sum(axis=1)
    return np.divide(gain, ideal, out=np.full(len(gain), np.nan), where=ideal > 0)


def _top_k(relevancy: Float[np.ndarray, "q m"]) -> tuple[np.ndarray, np.ndarray]:
    places = np.arange(relevancy.shape[1])
    return places[None] < (relevancy > 0).sum(axis=1, keepdims=True), 1 / np.log2(places + 2)


def expected_average_precision(relevancy: Float[np.ndarray, "q m"]) -> Float64[np.ndarray, " q"]:
    """Of a random order: with R relevant of m, (H_m + (R - 1) / (m - 1) * (m - H_m)) / m, H_m the harmonic number. (Place k
    is relevant with probability R / m, and its precision is then (1 + (k - 1)(R - 1) / (m - 1)) / k on average.)"""
    candidates = relevancy.shape[1]
    relevant = (relevancy >= 1).sum(axis=1)
    harmonic = (1 / np.arange(1, candidates + 1)).sum()
    share = (relevant - 1) / max(candidates - 1, 1)
    return np.where(relevant > 0, (harmonic + share * (candidates - harmonic)) / candidates, np.nan)


def expected_ndcg(relevancy: Float[np.ndarray, "q m"]) -> Float64[np.ndarray, " q"]:
    """Of a random order: each place gains the mean relevancy."""
    counted, discount = _top_k(relevancy)
    gain = relevancy.mean(axis=1) * (discount * counted).sum(axis=1)
    ideal = (-np.sort(-relevancy, axis=1) * discount * counted).sum(axis=1)
    return np.divide(gain, ideal, out=np.full(len(gain), np.nan), where=ideal > 0)
