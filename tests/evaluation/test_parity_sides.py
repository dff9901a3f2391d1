"""A remote API that serves the same model, one that serves it under another template, and one that tells nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from luthier.core.errors import NotFoundError
from luthier.core.message import Message
from luthier.data.render import Renderer
from luthier.evaluation.parity import Parity, check_parity
from luthier.evaluation.parity_compare import Comparison
from luthier.models.load import load_renderer
from luthier.models.pull import pull


class Server:
    """What an OpenAI-compatible server does, over a Hugging Face folder. Flags take abilities away."""

    def __init__(self, folder: Path, *, template: str | None = None) -> None:
        plain = load_renderer(folder)
        self.renderer = Renderer(plain.tokenizer, template=template) if template else plain
        self.model = transformers.AutoModelForCausalLM.from_pretrained(str(folder)).eval()
        self.tokenizes = self.echoes = self.tells_log_probs = True
        self.refuses = self.readable = False

    def ids(self, body: dict[str, Any]) -> list[int]:
        return self.renderer.prompt_ids(tuple(Message.from_dict(m) for m in body["messages"]))

    @torch.inference_mode()
    def log_probs(self, ids: list[int]) -> torch.Tensor:
        return self.model(torch.tensor([ids])).logits[0].log_softmax(-1)

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if path == "/tokenize" and self.tokenizes:
            return 200, {"tokens": self.ids(body)}
        if path == "/v1/chat/completions" and not self.refuses:
            if body.get("logprobs") and not self.tells_log_probs:
                return 400, {"error": {"message": "logprobs is not supported"}}
            return 200, self.chat(self.ids(body), body)
        if path == "/v1/completions" and self.echoes:
            told = self.log_probs(body["prompt"])
            values = [None, *(float(told[i, t]) for i, t in enumerate(body["prompt"][1:]))]
            return 200, self.reply(
                "text_completion", {"text": "", "logprobs": {"token_logprobs": values}}, body["prompt"]
            )
        return 404, {"error": {"message": "no such thing"}}

    def chat(self, prompt: list[int], body: dict[str, Any]) -> dict[str, Any]:
        ids, said = list(prompt), []
        for _ in range(body["max_tokens"]):
            told = self.log_probs(ids)[-1]
            token = next(t for t in told.argsort(descending=True).tolist() if self.takes(ids[len(prompt) :], t))
            if token in self.renderer.stop_ids:
                break
            said.append({"token": str(token), "logprob": float(told[token]), "bytes": [], "top_logprobs": []})
            ids.append(token)
        message = {"role": "assistant", "content": self.renderer.decode(ids[len(prompt) :])}
        told_ = {"content": said} if body.get("logprobs") else None
        return self.reply("chat.completion", {"message": message, "logprobs": told_}, prompt)

    def takes(self, said: list[int], token: int) -> bool:
        """Whether the text of these tokens would be cut into the same ones again: only then can they be compared."""
        text = self.renderer.decode([*said, token])
        return not self.readable or self.renderer.continuation_ids(text, ends_turn=False) == [*said, token]

    def reply(self, kind: str, choice: dict[str, Any], prompt: list[int]) -> dict[str, Any]:
        usage = {"prompt_tokens": len(prompt), "completion_tokens": 1, "total_tokens": len(prompt) + 1}
        choice = {"index": 0, "finish_reason": "length", **choice}
        return {"id": "1", "object": kind, "created": 1, "model": "m", "choices": [choice], "usage": usage}


@contextmanager
def serving(answer: Callable[[str, dict[str, Any]], tuple[int, dict[str, Any]]]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, said = answer(self.path, body)
            content = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"openai:m@http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


@pytest.fixture
def name(home: Path, tiny_decoder_path: Path) -> str:
    return pull(f"file:{tiny_decoder_path}", alias="tiny").name


def against(name: str, server: Server) -> dict[str, Comparison]:
    with serving(server.answer) as remote:
        found: Parity = check_parity(name, against=[remote], n=4, tokens=4)
    return {c.what: c for c in found.comparisons if c.right == "openai:m"}


def test_the_same_model_behind_an_api(name: str, tiny_decoder_path: Path) -> None:
    found = against(name, Server(tiny_decoder_path))
    assert {what: c.verdict for what, c in found.items()} == {
        "prompt ids": "equal",
        "prompt token counts": "equal",
        "log-probabilities": "within",
        "greedy answers": "equal",
    }
    assert found["log-probabilities"].worst is not None and found["log-probabilities"].worst < 1e-4


def test_an_api_that_tells_only_counts(name: str, tiny_decoder_path: Path) -> None:
    server = Server(tiny_decoder_path)
    server.tokenizes = server.echoes = server.tells_log_probs = False
    found = against(name, server)
    assert found["prompt ids"].verdict == found["log-probabilities"].verdict == "not offered"
    assert found["prompt token counts"].verdict == "equal"


def test_log_probabilities_of_its_own_answers(name: str, tiny_decoder_path: Path) -> None:
    """Without echo, torch reads the API's answers, where the text cuts into as many tokens as the API counts."""
    server = Server(tiny_decoder_path)
    server.echoes, server.readable = False, True
    found = against(name, server)["log-probabilities"]
    assert (found.verdict, found.of) == ("within", 16)
    assert found.worst is not None and found.worst < 1e-4


def test_another_template_is_found(name: str, tiny_decoder_path: Path) -> None:
    other = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    found = against(name, Server(tiny_decoder_path, template=other))
    assert found["prompt ids"].verdict == found["prompt token counts"].verdict == "differs"
    assert found["prompt ids"].where.startswith("prompt 1, token 1: 1 '<|im_start|>' against ")


def test_an_api_that_fails_is_an_error(name: str, tiny_decoder_path: Path) -> None:
    server = Server(tiny_decoder_path)
    server.refuses = True
    with pytest.raises(NotFoundError, match="no such"), serving(server.answer) as remote:
        check_parity(name, against=[remote], n=1)
