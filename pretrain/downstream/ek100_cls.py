"""EPIC-KITCHENS-100 action recognition with a frozen encoder: by the texts of the classes, and by a linear probe.

Verbs and nouns are read off the actions: the probabilities of the actions "verb:noun" are summed over the other part.

Axes: n clips, C actions, K classes of one kind, E joint dimension, D feature width.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pretrain.downstream.ek100 import Action, read_actions
from pretrain.downstream.features import Extractor
from pretrain.downstream.results import Metric
from pretrain.downstream.statistics import make_metric
from pretrain.downstream.subjects import NEEDS_TEXT, Subject
from pretrain.downstream.task import Outcome, Task

TRAIN, VALIDATION = "EPIC_100_train.csv", "EPIC_100_validation.csv"
# "#C C" marks the wearer of the camera in Ego4D's narrations, on which such models are trained.
TEMPLATES = ("{}", "#C C {}")
KINDS = ("verb", "noun", "action")
TOPS = (1, 5)
FOLDS = 5
# Inverse regularisation of the linear probe on standardised features: strong, since it has more features than clips a class.
PROBE_C = 0.01
_SEED = 20252


def read_ek100_cls(directory: Path) -> Task:
    """EPIC_100_train.csv (on which the linear probe is trained) and EPIC_100_validation.csv (which is scored)."""
    train = read_actions(directory, (TRAIN,), "EK-100's training actions")
    test = read_actions(directory, (VALIDATION,), "EK-100's validation actions")
    return cls_task(test, train)


def cls_task(test: Sequence[Action], fit: Sequence[Action] = ()) -> Task:
    """The classes are all actions of both parts, sorted as strings; the texts of a class are its narrations."""
    texts: dict[str, set[str]] = defaultdict(set)
    for action in (*test, *fit):
        texts[action.action].add(action.text)
    classes = {name: tuple(sorted(texts[name])) for name in sorted(texts)}
    return Task(
        items=tuple(test),
        fit=tuple(fit),
        options={"classes": classes},
        protocol={"classes": len(classes), "templates": list(TEMPLATES), "probe_c": PROBE_C},
    )


def evaluate_ek100_cls(extractor: Extractor, task: Task) -> Outcome:
    """Top-1 and top-5 accuracy of verb, noun and action: zero-shot (with a text tower) and by a linear probe."""
    clips: Sequence[Action] = task.items
    names = list(task.options["classes"])
    metrics: list[Metric] = []
    missing: dict[str, str] = {}
    if extractor.subject.has_text:
        video = extractor.joint([clip.segment for clip in clips])
        texts = class_embeddings(extractor.subject, list(task.options["classes"].values()), TEMPLATES)
        probabilities = (extractor.subject.text_scale * video @ texts.T).softmax(dim=1).numpy()
        metrics += _accuracies("zero-shot", probabilities, names, clips)
    else:
        missing = {f"zero-shot {kind} top-{top}": NEEDS_TEXT for kind in KINDS for top in TOPS}
    probabilities, note = _linear_probe(extractor, task, names)
    metrics += _accuracies("linear", probabilities, names, clips)
    return Outcome(metrics=tuple(metrics), missing=missing, notes=(note,))


def class_embeddings(
    subject: Subject, texts: Sequence[Sequence[str]], templates: Sequence[str]
) -> Float[torch.Tensor, "C E"]:
    """The mean of the embeddings of all texts of a class under all templates, L2-normalised."""
    sentences: list[str] = []
    owner: list[int] = []
    for index, words in enumerate(texts):
        for text in dict.fromkeys(fill(template, word) for word in words for template in templates):
            sentences.append(text)
            owner.append(index)
    embedded = subject.embed_text(sentences)
    total = torch.zeros(len(texts), embedded.shape[1]).index_add_(0, torch.tensor(owner), embedded)
    return F.normalize(total, dim=-1)


def fill(template: str, text: str) -> str:
    """The template around a text; one that begins with "#C C" gets no second one."""
    bare = text.removeprefix("#C C").strip()
    return text if template == "{}" else template.format(bare)


def marginal(
    probabilities: Float[np.ndarray, "n C"], names: Sequence[str], part: str
) -> tuple[list[str], Float[np.ndarray, "n K"]]:
    """Probabilities of actions "verb:noun" summed to those of "verb" or "noun"; "action" stays as it is."""
    if part == "action":
        return list(names), probabilities
    of = [name.split(":")[0 if part == "verb" else 1] for name in names]
    classes = sorted(set(of))
    column = {name: index for index, name in enumerate(classes)}
    sums = np.zeros((len(probabilities), len(classes)))
    np.add.at(sums.T, [column[name] for name in of], probabilities.T)
    return classes, sums


def in_top(
    probabilities: Float[np.ndarray, "n K"], classes: Sequence[str], truth: Sequence[str], top: int
) -> np.ndarray:
    """float64[n]: 1 where the true class is among the `top` most probable ones. Classes that tie with it count as better."""
    column = {name: index for index, name in enumerate(classes)}
    own = probabilities[np.arange(len(truth)), [column[name] for name in truth]]
    return ((probabilities >= own[:, None]).sum(axis=1) <= top).astype(np.float64)


def _accuracies(how: str, probabilities: np.ndarray, names: Sequence[str], clips: Sequence[Action]) -> list[Metric]:
    groups = np.array([clip.group for clip in clips])
    metrics = []
    for kind in KINDS:
        classes, summed = marginal(probabilities, names, kind)
        truth = [getattr(clip, kind) for clip in clips]
        counts = sorted(Counter(truth).values(), reverse=True)
        for top in TOPS:
            metrics.append(
                make_metric(
                    f"{how} {kind} top-{top}",
                    in_top(summed, classes, truth, top),
                    unit="%",
                    chance=sum(counts[:top]) / len(truth),  # always naming the most frequent ones
                    groups=groups,
                )
            )
    return metrics


def _linear_probe(extractor: Extractor, task: Task, names: Sequence[str]) -> tuple[np.ndarray, str]:
    """Probabilities of the actions [n, C]: one logistic regression for verbs and one for nouns on the pooled features, their
    product on the actions that there are. (One over EPIC's 3,806 actions would know nothing of an action seen once.)"""
    test: Sequence[Action] = task.items
    features = extractor.pooled([clip.segment for clip in test])
    if task.fit:
        train = extractor.pooled([clip.segment for clip in task.fit])
        parts = [(train, list(task.fit), np.arange(len(test)))]
        note = f"the linear probe is trained on {len(task.fit)} clips"
    else:
        fold = folds_of([clip.group for clip in test], FOLDS)
        parts = []
        for number in range(FOLDS):
            inside = np.flatnonzero(fold != number)
            parts.append((features[inside], [test[index] for index in inside], np.flatnonzero(fold == number)))
        note = f"the linear probe is cross-fitted over {FOLDS} parts of the {len(test)} clips"
    verbs, nouns = (sorted({name.split(":")[place] for name in names}) for place in (0, 1))
    probabilities = np.zeros((len(test), len(names)))
    for train, actions, rows in parts:
        verb = _fit_and_predict(train, [action.verb for action in actions], features[rows], verbs)
        noun = _fit_and_predict(train, [action.noun for action in actions], features[rows], nouns)
        columns = [(verbs.index(name.split(":")[0]), nouns.index(name.split(":")[1])) for name in names]
        at_verb, at_noun = np.array(columns).T
        product = verb[:, at_verb] * noun[:, at_noun]
        probabilities[rows] = product / np.maximum(product.sum(axis=1, keepdims=True), 1e-300)
    return probabilities, note


def _fit_and_predict(
    train: np.ndarray, labels: Sequence[str], features: np.ndarray, classes: Sequence[str]
) -> Float[np.ndarray, "n K"]:
    """Probabilities of all classes; one that was not among the labels gets 0."""
    result = np.zeros((len(features), len(classes)))
    known = sorted(set(labels))
    columns = [classes.index(name) for name in known]
    if len(known) == 1:
        result[:, columns] = 1
        return result
    model = make_pipeline(StandardScaler(), LogisticRegression(C=PROBE_C, max_iter=500))
    model.fit(train, list(labels))
    result[:, columns] = model.predict_proba(features)
    return result


def folds_of(groups: Sequence[str], folds: int) -> np.ndarray:
    """int64[n]: a part of about equal size for each item, the same for all of a group; depends on the groups alone."""
    names = sorted(set(groups))
    if len(names) < folds:
        raise ValueError(f"{len(names)} clips cannot be cross-fitted in {folds} parts: more clips are needed")
    order = np.random.default_rng(_SEED).permutation(len(names))
    part = {names[index]: place % folds for place, index in enumerate(order)}
    return np.array([part[group] for group in groups])
