"""The generate stage with each writer: the grammar, a tiny real language model, and a real local server."""

import json
import pickle
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pretrain.annotate.checker import REASONS, check_caption
from pretrain.annotate.generate import FELL_BACK, NoCaption, caption_scene
from pretrain.annotate.records import Scene, StageFailed
from pretrain.annotate.writers import CAPTION_WRITERS, PROMPTS, Prompt, WriterConfig, make_writer, read_answer
from tests.pretrain.annotate_scenes import FRAMES, make_scene, reaching, still

TRUE = "C picks up the red can with the left hand; the red can is left of the blue box"
FALSE = "C picks up the red can with the right hand"


@pytest.fixture(scope="module")
def scene() -> Scene:
    return make_scene({"left hand": reaching(), "red can": still(0.0), "blue box": still(0.2)})


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LlamaForCausalLM with a word-level tokenizer, saved as transformers saves them."""
    import pretrain.zoo.vision_ops  # noqa: F401 - torchvision comes through this door

    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    import torch

    directory = tmp_path_factory.mktemp("language-model")
    words = [
        "<unk>",
        "<s>",
        "</s>",
        *re.findall(r"\S+", "the a left right hand red can blue box is of touches moves up cm 10 ; . C"),
    ]
    words += [f"word{number}" for number in range(40)]
    core = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: id_ for id_, word in enumerate(words)}, unk_token="<unk>")
    )
    core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(directory)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=1024, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(directory)
    return directory


class _Server(ThreadingHTTPServer):
    """Answers each request by the next of `script`, the last again and again; keeps what it was asked."""

    script: list[tuple[int, bytes, float]]
    asked: list[dict[str, Any]]
    keys: list[str | None]


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        self.server.asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))) | {"path": self.path})
        self.server.keys.append(self.headers.get("authorization"))
        status, body, wait_s = self.server.script.pop(0) if len(self.server.script) > 1 else self.server.script[0]
        time.sleep(wait_s)
        try:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client did not wait

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[_Server]:
    served = _Server(("127.0.0.1", 0), _Handler)
    served.script, served.asked, served.keys = [], [], []
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield served
    served.shutdown()
    thread.join()
    served.server_close()


def answer(*lines: str, status: int = 200, wait_s: float = 0.0) -> tuple[int, bytes, float]:
    return status, json.dumps({"choices": [{"message": {"content": "\n".join(lines)}}]}).encode(), wait_s


def server_config(server: _Server, **changes: Any) -> WriterConfig:
    url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    return WriterConfig(
        base_url=url, model_name="tiny", **({"backoff_s": 0.01, "retries": 2, "timeout_s": 5.0} | changes)
    )


# --- the stage -----------------------------------------------------------------------------------------------------------


def test_grammar_writes_only_what_passes(scene: Scene) -> None:
    writer = make_writer("grammar", WriterConfig())
    result = caption_scene(scene, writer, seed=3)
    assert result == caption_scene(scene, writer, seed=3)
    assert len(result.captions) >= 2
    assert not result.rejected
    for caption in result.captions:
        assert check_caption(caption, scene.clip.narration, result.facts, frames=FRAMES).reason is None
    assert any("with the left hand" in caption for caption in result.captions)
    others = {caption_scene(scene, writer, seed=seed).captions for seed in range(6)}
    assert len(others) > 1


@pytest.mark.parametrize(
    ("things", "narration", "reason"),
    [
        ({"red can": still(0.0)}, "#C C walks", "no hand"),
        ({"left hand": still(-0.25), "red can": still(0.1)}, "#C C walks", "no contact"),
        ({"left hand": reaching(), "object": still(0.0)}, "", "no facts"),
    ],
)
def test_scenes_without_anything_to_say_fail_with_a_reason(things, narration, reason) -> None:
    with pytest.raises(StageFailed, match=reason):
        caption_scene(make_scene(things, narration=narration), make_writer("grammar", WriterConfig()), seed=0)


def test_a_scene_without_narration_gets_facts_alone() -> None:
    scene = make_scene({"left hand": reaching(), "red can": still(0.0)}, narration="")
    assert "the left hand" in caption_scene(scene, make_writer("grammar", WriterConfig()), seed=0).captions[0]


# --- language model ------------------------------------------------------------------------------------------------------


def test_nonsense_of_a_language_model_is_refused_and_counted(scene: Scene, language_model: Path) -> None:
    config = WriterConfig(caption_weights=str(language_model), max_tokens=24, device="cpu")
    with pytest.raises(NoCaption, match="all captions rejected") as caught:
        caption_scene(scene, make_writer("transformers", config), seed=0)
    assert sum(caught.value.rejected.values()) >= config.attempts
    assert set(caught.value.rejected) <= set(REASONS)
    copied = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - made one line before; so it crosses processes
    assert copied.rejected == caught.value.rejected


def test_the_grammar_steps_in_only_if_asked_to_and_says_so(scene: Scene, language_model: Path) -> None:
    config = WriterConfig(caption_weights=str(language_model), max_tokens=24, device="cpu", fallback="grammar")
    result = caption_scene(scene, make_writer("transformers", config), seed=0)
    assert result.captions
    assert result.rejected[FELL_BACK] == 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_language_model_repeats_itself_for_a_seed(scene: Scene, language_model: Path, temperature: float) -> None:
    writer: Any = make_writer(
        "transformers",
        WriterConfig(caption_weights=str(language_model), max_tokens=16, temperature=temperature, device="cpu"),
    )
    first = writer.write("C picks up the can", (), seed=1)
    assert first and first == writer.write("C picks up the can", (), seed=1)
    assert (writer.write("C picks up the can", (), seed=2) == first) == (temperature == 0.0)
    if temperature == 0.0:
        batch = writer.write_batch([("C picks up the can", ()), ("the box " * 30, ())], seed=0)
        assert batch[0] == first, "padding must not change an answer"


def test_chat_template_is_used_where_the_tokenizer_has_one(language_model: Path) -> None:
    writer: Any = make_writer("transformers", WriterConfig(caption_weights=str(language_model), device="cpu"))
    tokenizer, _ = writer._loaded
    plain = writer._text("C walks", ())
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    assert writer._text("C walks", ()).startswith("<system>You rewrite")
    assert writer._text("C walks", ()).endswith("<assistant>")
    assert plain.startswith("You rewrite")


def test_prompt_longer_than_the_context_fails_that_clip(scene: Scene, language_model: Path) -> None:
    config = WriterConfig(caption_weights=str(language_model), max_tokens=1000, device="cpu")
    with pytest.raises(StageFailed, match="max_tokens=1000"):
        caption_scene(scene, make_writer("transformers", config), seed=0)


# --- server --------------------------------------------------------------------------------------------------------------


def test_server_that_answers_well(scene: Scene, server: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTION_KEY", "secret")
    server.script = [answer(f"1. {TRUE}", f'- "{FALSE}"', "", "total nonsense")]
    writer = make_writer("openai", server_config(server, api_key_env="CAPTION_KEY"))
    writer = pickle.loads(pickle.dumps(writer))  # noqa: S301 - made one line before; so it crosses processes
    result = caption_scene(scene, writer, seed=5)
    assert result.captions == (TRUE,)
    assert result.rejected == {"false acting hand": 1, "unknown word": 1}
    (asked,) = server.asked
    assert (asked["path"], asked["model"], asked["seed"]) == ("/v1/chat/completions", "tiny", 5)
    assert "the left hand touches the red can" in asked["messages"][1]["content"]
    assert server.keys == ["Bearer secret"]


def test_overload_and_errors_are_tried_again(scene: Scene, server: _Server) -> None:
    server.script = [answer(status=500), answer(status=429), answer(TRUE)]
    assert caption_scene(scene, make_writer("openai", server_config(server)), seed=0).captions == (TRUE,)
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("reply", "message", "requests"),
    [
        (answer(status=500), "HTTP 500", 3),
        (answer(TRUE, wait_s=0.4), "no answer within 0.1 s", 3),
        ((200, b"<html>not JSON", 0.0), "no chat completion", 3),
        ((200, b'{"choices": []}', 0.0), "no chat completion", 3),
        ((200, b'{"choices": [{"message": {"content": null}}]}', 0.0), "no chat completion", 3),
        ((401, b"who are you?", 0.0), "HTTP 401: who are you", 1),
    ],
)
def test_server_that_fails_costs_the_clip_only(
    scene: Scene, server: _Server, reply, message: str, requests: int
) -> None:
    server.script = [reply]
    config = server_config(server, timeout_s=0.1 if reply[2] else 5.0)
    with pytest.raises(StageFailed, match=message):
        caption_scene(scene, make_writer("openai", config), seed=0)
    assert len(server.asked) == requests


def test_server_that_writes_nonsense(scene: Scene, server: _Server) -> None:
    server.script = [answer("zzz qqq", FALSE)]
    with pytest.raises(NoCaption) as caught:
        caption_scene(scene, make_writer("openai", server_config(server)), seed=0)
    assert caught.value.rejected == {"false acting hand": 2, "unknown word": 2}, "both attempts count"
    assert str(caught.value) == "all captions rejected"


def test_server_that_is_not_there_and_a_fallback(scene: Scene) -> None:
    config = WriterConfig(base_url="http://127.0.0.1:9", model_name="x", retries=0, fallback="grammar")
    result = caption_scene(scene, make_writer("openai", config), seed=0)
    assert result.captions and result.rejected[FELL_BACK] == 1


# --- settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("openai", {}, "base_url= is not given"),
        ("openai", {"base_url": "http://x"}, "model_name= is not given"),
        ("openai", {"base_url": "ftp://x", "model_name": "m"}, "expected http"),
        ("openai", {"base_url": "http://x", "model_name": "m", "api_key_env": "NO_SUCH_KEY"}, "NO_SUCH_KEY"),
        ("transformers", {}, "caption_weights= is not given"),
        ("transformers", {"caption_weights": "/no/such/model"}, "/no/such/model"),
        ("transformers", {"caption_weights": "/no/such/model", "prompt": "/no/such/prompt"}, "system.txt"),
        ("gpt", {}, "expected one of grammar, transformers, openai"),
    ],
)
def test_wrong_settings_are_told_at_once(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_writer(name, WriterConfig(**changes))


@pytest.mark.parametrize(
    "change", [{"fallback": "poet"}, {"captions": 0}, {"timeout_s": 0}, {"temperature": -1}, {"retries": -1}]
)
def test_settings_out_of_range(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        WriterConfig(**change)


def test_prompts_are_files(tmp_path: Path) -> None:
    (tmp_path / "system.txt").write_text("Be brief.")
    (tmp_path / "user.txt").write_text("{{ narration }}: {{ facts | join('; ') }} ({{ captions }})")
    messages = Prompt(str(tmp_path)).messages("C walks", (), captions=2)
    assert [message["content"] for message in messages] == ["Be brief.", "C walks:  (2)"]
    (tmp_path / "user.txt").write_text("{{ weather }}")
    with pytest.raises(ValueError, match="weather"):
        Prompt(str(tmp_path))
    assert sorted(path.name for path in PROMPTS.iterdir()) == ["system.txt", "user.txt"]
    assert set(CAPTION_WRITERS) == {"grammar", "transformers", "openai"}


def test_answers_are_read_line_by_line() -> None:
    assert read_answer('1. one\n- two\n\n"three"\n2) one\n') == ("one", "two", "three")
