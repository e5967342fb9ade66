"""The official annotation formats, written here exactly as their publishers write them, and what breaks in them."""

import codecs
import csv
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrain.downstream.annotations import read_csv, read_json, read_matrix, read_text, seconds
from pretrain.downstream.egomcq import read_egomcq
from pretrain.downstream.egoschema import read_egoschema
from pretrain.downstream.egtea import read_egtea
from pretrain.downstream.ek100 import COLUMNS
from pretrain.downstream.ek100_cls import read_ek100_cls
from pretrain.downstream.ek100_mir import RELEVANCY, SENTENCES, VIDEOS, read_ek100_mir
from pretrain.downstream.nlq import read_nlq
from pretrain.downstream.segments import Segment

# ---------------------------------------------------------------------------------------------------------------- egomcq


def mcq_entry(kind: int, answer: int, text: str = "#C C picks up the cup") -> dict[str, Any]:
    choices = {
        str(option): {
            "video_uid": f"video-{option if kind == 1 else 0}",
            "clip_start": str(10.5 + option),
            "clip_end": 11.75 + option,
            "clip_text": f"#C C does {option}",
            "tag_verb": "[93]",
            "tag_noun": "[192, 115]",
        }
        for option in range(5)
    }
    return {"answer": answer, "types": kind, "query": choices[str(answer)] | {"clip_text": text}, "choices": choices}


def write_json(path: Path, document: Any) -> Path:
    path.write_text(json.dumps(document))
    return path


def test_egomcq_type_1_is_inter_and_type_2_is_intra(tmp_path: Path) -> None:
    write_json(tmp_path / "egomcq.json", {"0": mcq_entry(1, 3), "1": mcq_entry(2, 0)})
    inter, intra = read_egomcq(tmp_path).items
    # By what the types mean, not by the order in which they are printed: five videos, and one.
    assert inter.kind == "inter" and len({choice.video for choice in inter.choices}) == 5
    assert intra.kind == "intra" and len({choice.video for choice in intra.choices}) == 1
    assert inter.choices[inter.answer] == Segment("video-3", 13.5, 14.75)


def test_egomcq_skips_and_counts_what_cannot_be_asked(tmp_path: Path) -> None:
    write_json(tmp_path / "egomcq.json", {"0": mcq_entry(1, 3), "1": mcq_entry(2, 0, text="  ")})
    task = read_egomcq(tmp_path)
    assert len(task.items) == 1 and task.notes == ("skipped 1: a question without text",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"types": 3}, r"question '0': types is 3, expected 1 \(inter\) or 2 \(intra\)"),
        ({"answer": 5}, "question '0': answer is 5, expected 0 to 4"),
        ({"choices": {}}, "question '0': field '0' is missing"),
        ({"query": {}}, "question '0': field 'clip_text' is missing"),
    ],
)
def test_egomcq_errors_name_the_question(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write_json(tmp_path / "egomcq.json", {"0": mcq_entry(1, 3) | change})
    with pytest.raises(ValueError, match=message):
        read_egomcq(tmp_path)


# ----------------------------------------------------------------------------------------------------------------- ek100

# As in the published csv of EPIC-KITCHENS-100.
EK100_ROWS = [
    "P01_11_0,P01,P01_11,00:00:00.560,00:00:00.00,00:00:01.89,1,113,take plate,take,0,plate,2,['plate'],[2]",
    "P01_11_1,P01,P01_11,00:00:02.360,00:01:01.50,00:01:03.00,3690,3780,put plate on rack,put-on,1,plate,2,\"['plate', 'rack']\",\"[2, 43]\"",
    "P02_03_7,P02,P02_03,01:00:00.000,01:00:00.25,01:00:01.25,1,60,take cup,take,0,cup,13,['cup'],[13]",
]


def write_ek100(path: Path, rows: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([",".join(COLUMNS), *rows]) + "\n")
    return path


def write_mir(directory: Path, relevancy: np.ndarray) -> None:
    write_ek100(directory / "retrieval_annotations" / VIDEOS, EK100_ROWS)
    (directory / "retrieval_annotations" / SENTENCES).write_text(
        "narration_id,narration\nP01_11_0,take plate\nP02_03_7,take cup\n"
    )
    (directory / "relevancy").mkdir()
    with open(directory / "relevancy" / f"{RELEVANCY}.pkl", "wb") as file:
        pickle.dump(relevancy, file)


def test_ek100_mir(tmp_path: Path) -> None:
    relevancy = np.array([[1.0, 0.5], [0.5, 0.0], [0.5, 1.0]])
    write_mir(tmp_path, relevancy)
    task = read_ek100_mir(tmp_path)
    assert [action.narration_id for action in task.items] == ["P01_11_0", "P01_11_1", "P02_03_7"]
    # Times, not frame numbers: the videos differ in their rates.
    assert task.items[1].segment == Segment("P01_11", 61.5, 63.0)
    assert task.items[2].segment == Segment("P02_03", 3600.25, 3601.25)
    assert task.items[1].nouns == {"2", "43"} and task.items[1].action == "1:2"
    assert task.options["sentences"] == (("P01_11_0", "take plate"), ("P02_03_7", "take cup"))
    np.testing.assert_array_equal(task.options["relevancy"], relevancy)


def test_ek100_mir_refuses_what_does_not_fit(tmp_path: Path) -> None:
    write_mir(tmp_path, np.ones((3, 3)))
    with pytest.raises(ValueError, match="3 x 3, expected 3 clips x 2 sentences"):
        read_ek100_mir(tmp_path)
    (tmp_path / "retrieval_annotations" / SENTENCES).write_text("narration_id,narration\nP09_1_1,stir\n")
    with pytest.raises(ValueError, match=r"1 narration_ids are not in .*P09_1_1"):
        read_ek100_mir(tmp_path)


def test_ek100_cls(tmp_path: Path) -> None:
    write_ek100(tmp_path / "EPIC_100_train.csv", EK100_ROWS[:2])
    write_ek100(tmp_path / "EPIC_100_validation.csv", EK100_ROWS[2:])
    task = read_ek100_cls(tmp_path)
    assert len(task.items) == 1 and len(task.fit) == 2
    # Sorted as strings, as the published labels are.
    assert list(task.options["classes"]) == ["0:13", "0:2", "1:2"]
    assert task.options["classes"]["0:2"] == ("take plate",)


def test_ek100_errors_name_line_and_field(tmp_path: Path) -> None:
    path = write_ek100(tmp_path / "EPIC_100_train.csv", [EK100_ROWS[0], EK100_ROWS[0]])
    write_ek100(tmp_path / "EPIC_100_validation.csv", EK100_ROWS)
    with pytest.raises(ValueError, match="narration_id 'P01_11_0' is there twice, lines 2 and 3"):
        read_ek100_cls(tmp_path)
    write_ek100(path, [EK100_ROWS[0].replace("00:00:01.89", "00:00:00.00")])
    with pytest.raises(ValueError, match=r"line 2 \(P01_11_0\): it stops at 00:00:00.00, not after its start"):
        read_ek100_cls(tmp_path)
    path.write_text("narration_id,video_id\nP01,P01_11\n")
    with pytest.raises(ValueError, match=r"EPIC_100_train\.csv: column participant_id, .* missing"):
        read_ek100_cls(tmp_path)
    write_ek100(path, ["P01_11_0,P01,P01_11"])
    with pytest.raises(ValueError, match="line 2: expected 15 columns"):
        read_ek100_cls(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"EPIC_100_train\.csv is not there"):
        read_ek100_cls(tmp_path)


def test_a_csv_with_quoted_lists_is_what_the_csv_module_writes(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([["id", "nouns"], ["1", "['a', 'b']"]])
    assert read_csv(path, ("id", "nouns")) == [{"id": "1", "nouns": "['a', 'b']"}]
    assert seconds("01:02:03.50") == 3723.5


# ----------------------------------------------------------------------------------------------------------------- egtea


def test_egtea(tmp_path: Path) -> None:
    (tmp_path / "action_idx.txt").write_text("Inspect/Read recipe 1\nTake_bowl 2\nCut onion 3\n")
    (tmp_path / "test_split1.txt").write_text(
        "OP01-R01-PastaSalad-1002316-1004005-F024051-F024101 2 1 5\nOP02-R03-Burger-5-6-F1-F2 3 2 1\n"
    )
    task = read_egtea(tmp_path)
    assert [clip.label for clip in task.items] == ["take bowl", "cut onion"]
    assert task.items[0].group == "OP01-R01-PastaSalad"
    assert task.items[0].segment.video == "OP01-R01-PastaSalad-1002316-1004005-F024051-F024101"
    assert task.protocol["views"] == [10, 3]
    (tmp_path / "test_split1.txt").write_text("a-b-c-d 9 1\n")
    with pytest.raises(ValueError, match=r"test_split1\.txt: line 1: action 9 is not in action_idx\.txt"):
        read_egtea(tmp_path)


# ------------------------------------------------------------------------------------------------------------------- nlq


def nlq_document(queries: list[dict[str, Any]], clip: str = "clip-a") -> dict[str, Any]:
    entry = {
        "clip_uid": clip, "source_clip_uid": "s", "video_start_sec": 100.0, "video_end_sec": 580.0, "video_start_frame": 3000,
        "video_end_frame": 17400, "clip_start_sec": 0, "clip_end_sec": 480.0, "clip_start_frame": 0, "clip_end_frame": 14400,
        "annotations": [{"annotation_uid": "x", "language_queries": queries}],
    }  # fmt: skip
    video = {"video_uid": "v", "split": "train", "clips": [entry]}
    return {"version": "1", "date": "220216", "description": "NLQ", "manifest": "m.csv", "videos": [video]}


def nlq_query(text: Any, start_s: float, end_s: float) -> dict[str, Any]:
    return {
        "query": text, "template": "Objects: Where is object X?", "slot_x": "cup", "verb_x": "", "slot_y": None, "verb_y": None,
        "clip_start_sec": start_s, "clip_end_sec": end_s, "video_start_sec": 100 + start_s, "video_end_sec": 100 + end_s,
        "video_start_frame": 1, "video_end_frame": 2, "raw_tags": [],
    }  # fmt: skip


def test_nlq(tmp_path: Path) -> None:
    missing = nlq_query("what?", 1, 2)
    del missing["query"]
    queries = [nlq_query("where was the cup?", 30.5, 33.0), nlq_query(None, 1, 2), missing, nlq_query("x", 5, 5)]
    write_json(tmp_path / "nlq_val.json", nlq_document(queries))
    write_json(tmp_path / "nlq_train.json", nlq_document([nlq_query("who?", 0, 1)]))
    task = read_nlq(tmp_path)
    (query,) = task.items
    assert (query.text, query.start_s, query.end_s) == ("where was the cup?", 30.5, 33.0)
    assert query.video == Segment("clip-a", 0.0, 480.0) and len(task.fit) == 1
    assert task.notes == (
        "nlq_val.json: skipped 2: a query without words",
        "nlq_val.json: skipped 1: an answer of no length or outside its clip",
    )
    write_json(tmp_path / "nlq_val.json", nlq_document([{"query": "test split"}]))
    with pytest.raises(ValueError, match="no query has words and an answer"):
        read_nlq(tmp_path)


# ------------------------------------------------------------------------------------------------------------- egoschema


def test_egoschema(tmp_path: Path) -> None:
    entries = [
        {"q_uid": name, "google_drive_id": "g", "question": "what is C doing?"}
        | {f"option {number}": f"answer {number}" for number in range(5)}
        for name in ("q-1", "q-2")
    ]
    write_json(tmp_path / "questions.json", entries)
    write_json(tmp_path / "subset_answers.json", {"q-2": 4})
    task = read_egoschema(tmp_path)
    (question,) = task.items
    assert question.name == "q-2" and question.answer == 4 and question.options[4] == "answer 4"
    assert task.notes == ("skipped 1: a question whose answer is not public",)
    write_json(tmp_path / "questions.json", [*entries, entries[1]])
    with pytest.raises(ValueError, match="entry 2: q_uid 'q-2' is there twice"):
        read_egoschema(tmp_path)


# ------------------------------------------------------------------------------------------------------------ any reader


def test_empty_and_foreign_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "egomcq.json"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"egomcq\.json is empty \(0 bytes\)"):
        read_egomcq(tmp_path)
    path.write_bytes(b'{"0": \n "\xe9"}')
    with pytest.raises(ValueError, match="line 2: byte 0xe9 is not UTF-8"):
        read_egomcq(tmp_path)
    path.write_text('{"0": {}, "0": {}}')
    with pytest.raises(ValueError, match="key '0' is there twice"):
        read_egomcq(tmp_path)
    path.write_text('{"0": ')
    with pytest.raises(ValueError, match="line 1: not JSON"):
        read_egomcq(tmp_path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="expected a JSON dict on top, found list"):
        read_json(path, dict)
    path.write_bytes(codecs.BOM_UTF8 + b"a")
    assert read_text(path) == "a"
    with pytest.raises(FileNotFoundError, match=r"no such directory; it should hold egomcq\.json"):
        read_egomcq(tmp_path / "nowhere")


class Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch BOOM",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickled_array_of_floats_is_read_in_every_protocol(tmp_path: Path, protocol: int) -> None:
    matrix = np.random.default_rng(0).random((3, 4)).astype(np.float32 if protocol % 2 else np.float64)
    path = tmp_path / "m.pkl"
    path.write_bytes(pickle.dumps(matrix, protocol=protocol))
    np.testing.assert_array_equal(read_matrix(path), matrix)


def test_nothing_else_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "m.pkl"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match=r"refers to (posix|nt)\.system; only a numpy array of floats"):
        read_matrix(path)
    path.write_bytes(pickle.dumps(np.array([[Bomb()]], dtype=object)))
    with pytest.raises(ValueError, match="refers to"):
        read_matrix(path)
    assert not (tmp_path / "BOOM").exists()
    for other in ({"a": 1}, np.array([[1, 2]]), np.zeros(3), np.array([["a"]])):
        path.write_bytes(pickle.dumps(other))
        with pytest.raises(ValueError, match="expected a matrix of floats"):
            read_matrix(path)
    path.write_bytes(pickle.dumps(np.array([[1.0, np.nan]])))
    with pytest.raises(ValueError, match="not finite"):
        read_matrix(path)
    path.write_bytes(pickle.dumps(np.ones((50, 50)))[:-200])
    with pytest.raises(ValueError, match=r"not a whole array file|only a numpy array"):
        read_matrix(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="empty"):
        read_matrix(path)
    np.savez(tmp_path / "m.npz", relevancy=np.eye(2))
    np.testing.assert_array_equal(read_matrix(tmp_path / "m.npz"), np.eye(2))
