"""Who writes captions: a grammar, a local language model, or a server with OpenAI's interface.

A writer gets the narration and the facts and gives sentences; whether they are true is the checker's business
(see generate.py). Prompts are files: ``system.txt`` and ``user.txt``, Jinja templates that are given ``narration``, ``facts``
(sentences) and ``captions`` (how many).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pretrain.annotate import grammar
from pretrain.annotate.records import CaptionWriter, StageFailed

PROMPTS = Path(__file__).parent / "prompts"
_MOST_FACTS = 24  # of a prompt; the first of each kind come first
_LONGEST_WAIT_S = 30.0


@dataclass(frozen=True, kw_only=True)
class WriterConfig:
    """Settings of the writers; each reads those that concern it.

    Attributes:
        captions: how many to ask for.
        attempts: how often a writer that samples is asked, each time with another seed, until a caption is accepted.
        fallback: "" or "grammar": who writes where no caption of the writer is accepted or the server fails. Recorded in
            `Captions.rejected` as "written by the grammar instead".
        prompt: directory with system.txt and user.txt; "" = the ones that come with EgoArm.
        temperature: of sampling; 0 = greedy.
        max_tokens: of one answer.
        caption_weights: directory of a causal language model in transformers' format, with its tokenizer.
        device: of that model: "auto", "cpu", "cuda" or "mps".
        base_url: of the server, e.g. "http://localhost:8000/v1".
        model_name: as the server calls it.
        api_key_env: environment variable that holds the server's key; "" = no key.
        timeout_s: of one request.
        retries: further requests after a time-out, an overload, an error of the server or an answer that is no answer.
        backoff_s: wait before the first of them; each further wait is twice as long.
    """

    captions: int = 4
    attempts: int = 2
    fallback: str = ""
    prompt: str = ""
    temperature: float = 0.7
    max_tokens: int = 256
    caption_weights: str = ""
    device: str = "auto"
    base_url: str = ""
    model_name: str = ""
    api_key_env: str = ""
    timeout_s: float = 60.0
    retries: int = 3
    backoff_s: float = 0.5

    def __post_init__(self) -> None:
        if self.fallback not in ("", "grammar"):
            raise ValueError(f"fallback={self.fallback!r}: expected grammar, or empty for none")
        for name, least in (("captions", 1), ("attempts", 1), ("max_tokens", 1), ("retries", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: expected {least} or more")
        for name, least in (("temperature", 0.0), ("backoff_s", 0.0)):
            if not getattr(self, name) >= least:
                raise ValueError(f"{name}={getattr(self, name)}: expected {least:g} or more")
        if not self.timeout_s > 0:
            raise ValueError(f"timeout_s={self.timeout_s}: expected seconds above 0")


class Prompt:
    """The two prompt files.

    Raises:
        ValueError: the directory lacks one of them, or it is not a template; names the file.
    """

    def __init__(self, directory: str = "") -> None:
        from jinja2 import StrictUndefined, TemplateError
        from jinja2.sandbox import SandboxedEnvironment

        environment = SandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
        self._templates = {}
        for role in ("system", "user"):
            path = (Path(directory) if directory else PROMPTS) / f"{role}.txt"
            try:
                self._templates[role] = environment.from_string(path.read_text(encoding="utf-8"))
            except FileNotFoundError:
                raise ValueError(
                    f"prompt={directory}: {path} is missing; it must hold system.txt and user.txt (copy {PROMPTS})"
                ) from None
            except (TemplateError, UnicodeDecodeError) as error:
                raise ValueError(f"{path}: not a Jinja template in UTF-8: {error}") from error
        self.messages(
            "C picks up the can", (), captions=1
        )  # a wrong name in a template shows here, not at the first clip

    def messages(self, narration: str, facts: Sequence[Mapping[str, Any]], *, captions: int) -> list[dict[str, str]]:
        """The conversation to complete, in the form that chat templates and servers take."""
        from jinja2 import TemplateError

        sentences = [grammar.fact_sentence(fact) for fact in _most_telling(facts)]
        values = {"narration": narration, "facts": list(dict.fromkeys(sentences)), "captions": captions}
        try:
            return [{"role": role, "content": template.render(values)} for role, template in self._templates.items()]
        except TemplateError as error:
            raise ValueError(
                f"the prompt cannot be filled in: {error}; it may use narration, facts, captions"
            ) from error


def _most_telling(facts: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """What moves and is touched first, then relations with touched things, then the others; at most _MOST_FACTS."""
    touched = {fact["object_id"] for fact in facts if fact["type"] == "contact"}

    def rank(fact: Mapping[str, Any]) -> int:
        if fact["type"] != "relation":
            return 0
        return 1 if touched & {fact["subject_id"], fact["object_id"]} else 2

    return sorted(facts, key=rank)[:_MOST_FACTS]


def read_answer(answer: str) -> tuple[str, ...]:
    """The captions of an answer: its lines, without bullets, numbers and quotation marks."""
    lines = (
        re.sub(r"^\s*(?:[-*•]|\d+[.):])\s*", "", line).strip().strip("\"'`").strip() for line in answer.splitlines()
    )
    return tuple(dict.fromkeys(line for line in lines if line))


@dataclass
class GrammarWriter:
    """Templates, no weights: `grammar.py`. Always accepted by the checker."""

    config: WriterConfig
    name: str = "grammar"

    def write(self, narration: str, facts: Sequence[Mapping[str, Any]], *, seed: int) -> tuple[str, ...]:
        return grammar.write_captions(narration, facts, seed=seed, most=self.config.captions)


@dataclass
class TransformersWriter:
    """A local causal language model.

    The answer is sampled with the caller's seed at `temperature`, or greedy at 0. A tokenizer with a chat template gets the
    conversation in it; without one, the two prompts follow each other.

    Raises:
        ValueError: no such directory, or it does not hold a model with a tokenizer.
    """

    config: WriterConfig
    name: str = "transformers"
    prompt: Prompt = field(init=False)

    def __post_init__(self) -> None:
        self.prompt = Prompt(self.config.prompt)
        self._loaded  # noqa: B018 - a directory without weights is told at once

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from pretrain.annotate.weights import load, load_model, transformers, weights_directory

        directory = weights_directory(
            self.config.caption_weights, key="caption_weights", model="Qwen/Qwen2.5-7B-Instruct"
        )
        library = transformers()
        tokenizer = load(library.AutoTokenizer, directory, key="caption_weights", padding_side="left")
        model = load_model(
            library.AutoModelForCausalLM, directory, key="caption_weights", device=self.config.device
        )  # fmt: skip
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        return tokenizer, model

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.config,)  # the weights are loaded again in the other process

    def write(self, narration: str, facts: Sequence[Mapping[str, Any]], *, seed: int) -> tuple[str, ...]:
        return self.write_batch([(narration, facts)], seed=seed)[0]

    def write_batch(
        self, scenes: Sequence[tuple[str, Sequence[Mapping[str, Any]]]], *, seed: int
    ) -> list[tuple[str, ...]]:
        """Captions of several scenes (narration, facts) in one forward batch, padded on the left."""
        import torch

        tokenizer, model = self._loaded
        texts = [self._text(*scene) for scene in scenes]
        # A chat template writes its own special tokens.
        batch = tokenizer(
            texts, return_tensors="pt", padding=True, add_special_tokens=not tokenizer.chat_template,
            return_token_type_ids=False,
        ).to(model.device)  # fmt: skip
        room = model.config.max_position_embeddings - self.config.max_tokens
        if batch["input_ids"].shape[1] > room:
            raise StageFailed(
                f"the prompt has {batch['input_ids'].shape[1]} tokens, more than the {room} that "
                f"max_tokens={self.config.max_tokens} leaves of the model's context"
            )
        sampling = (
            {"do_sample": True, "temperature": self.config.temperature}
            if self.config.temperature > 0
            else {"do_sample": False}
        )
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.inference_mode():
            torch.manual_seed(seed)
            output = model.generate(
                **batch, **sampling, max_new_tokens=self.config.max_tokens, pad_token_id=tokenizer.pad_token_id
            )
        answers = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        return [read_answer(answer) for answer in answers]

    def _text(self, narration: str, facts: Sequence[Mapping[str, Any]]) -> str:
        tokenizer, _ = self._loaded
        messages = self.prompt.messages(narration, facts, captions=self.config.captions)
        if tokenizer.chat_template:
            return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return "\n\n".join(message["content"] for message in messages) + "\n"


@dataclass
class ServerWriter:
    """Any server with OpenAI's chat completions (vLLM, llama.cpp, Ollama, ...), by httpx.

    Raises:
        ValueError: no base_url or model_name, the variable of the key is not set, or httpx is not installed.
    """

    config: WriterConfig
    name: str = "openai"
    prompt: Prompt = field(init=False)

    def __post_init__(self) -> None:
        for key, example in (
            ("base_url", "http://localhost:8000/v1"),
            ("model_name", "the name that the server lists"),
        ):
            if not getattr(self.config, key):
                raise ValueError(f"{key}= is not given: captions from a server need it, e.g. {example}")
        if not re.match(r"https?://", self.config.base_url):
            raise ValueError(f"base_url={self.config.base_url}: expected http://... or https://...")
        if self.config.api_key_env and not os.environ.get(self.config.api_key_env):
            raise ValueError(
                f"api_key_env={self.config.api_key_env}: this environment variable is not set; set it to the server's key"
            )
        self.prompt = Prompt(self.config.prompt)
        self._client  # noqa: B018 - a missing package is told at once

    @cached_property
    def _client(self) -> Any:
        try:
            import httpx
        except ImportError:
            raise ValueError(
                "captions from a server need httpx, which is not installed: pip install 'egoarm[annotate]'"
            ) from None
        key = os.environ.get(self.config.api_key_env, "") if self.config.api_key_env else ""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(timeout=self.config.timeout_s, headers=headers)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.config,)  # sockets and templates stay in their process

    def write(self, narration: str, facts: Sequence[Mapping[str, Any]], *, seed: int) -> tuple[str, ...]:
        """Raises:
        StageFailed: the server did not answer with text; says what the last of the tries met.
        """
        import httpx

        request = {
            "model": self.config.model_name,
            "messages": self.prompt.messages(narration, facts, captions=self.config.captions),
            "temperature": self.config.temperature,
            "max_tokens": self.config.max_tokens,
            "seed": seed,
        }
        url = f"{self.config.base_url.rstrip('/')}/chat/completions"
        trouble = ""
        for number in range(self.config.retries + 1):
            wait_s = self.config.backoff_s * 2**number
            try:
                response = self._client.post(url, json=request)
            except httpx.TimeoutException:
                trouble = f"no answer within {self.config.timeout_s:g} s"
            except httpx.TransportError as error:
                trouble = f"{type(error).__name__}: {error}"
            else:
                if response.status_code == 200:
                    text = _content(response)
                    if text is not None:
                        return read_answer(text)
                    trouble = f"an answer that is no chat completion: {response.text[:80]!r}"
                else:
                    trouble = f"HTTP {response.status_code}: {' '.join(response.text.split())[:120]}"
                    if response.status_code < 500 and response.status_code not in (408, 409, 425, 429):
                        break  # asking again would not help
                    wait_s = max(wait_s, _retry_after_s(response.headers.get("retry-after", "")))
            if number < self.config.retries:
                time.sleep(min(wait_s, _LONGEST_WAIT_S))
        raise StageFailed(f"server failed: {trouble}")


def _content(response: Any) -> str | None:
    """The text of a chat completion; None = the answer has none."""
    try:
        text = response.json()["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        return None
    return text if isinstance(text, str) else None


def _retry_after_s(header: str) -> float:
    return float(header) if re.fullmatch(r"\d+(\.\d+)?", header) else 0.0


CAPTION_WRITERS: dict[str, Callable[[WriterConfig], CaptionWriter]] = {
    "grammar": GrammarWriter,
    "transformers": TransformersWriter,
    "openai": ServerWriter,
}


def make_writer(name: str, config: WriterConfig) -> CaptionWriter:
    """The writer of a name in CAPTION_WRITERS.

    Raises:
        ValueError: an unknown name, or a setting that this writer needs is missing.
    """
    if name not in CAPTION_WRITERS:
        raise ValueError(f"generate={name}: expected one of {', '.join(CAPTION_WRITERS)}")
    return CAPTION_WRITERS[name](config)
