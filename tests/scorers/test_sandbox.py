from __future__ import annotations

import os
import socket
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import pytest

from luthier.scorers import _sandbox
from luthier.scorers._sandbox import Limits, Outcome, describe, run_program, run_programs

SMALL = Limits(cpu_s=1, wall_s=1.5, memory_mb=256, disk_mb=2, output_kb=16)
linux = pytest.mark.skipif(sys.platform != "linux", reason="these layers are the Linux kernel's")


def run(program: str, limits: Limits = SMALL, without: tuple[str, ...] = ()) -> Outcome:
    before = set(Path(tempfile.gettempdir()).glob("luthier-program-*"))
    outcome = run_program(program, limits, without=without)
    if "PYTEST_XDIST_WORKER" not in os.environ:
        assert set(Path(tempfile.gettempdir()).glob("luthier-program-*")) <= before  # nothing is left behind
    return outcome


def test_a_program_that_runs_to_its_end_passes() -> None:
    outcome = run(
        "from typing import List\nimport math\n\ndef f(x: List[int]) -> int:\n    return sum(x)\n\nassert f([1, 2]) == 3"
    )
    assert outcome.passed
    assert outcome.reason == ""


def test_ordinary_python_works_inside() -> None:
    assert run(
        """
import asyncio, collections, dataclasses, hashlib, itertools, pathlib, random, re, tempfile, threading
@dataclasses.dataclass
class Point:
    x: "int"
async def one():
    return 1
assert asyncio.run(one()) == 1
done = []
thread = threading.Thread(target=done.append, args=(1,)); thread.start(); thread.join()
assert done == [1]
pathlib.Path("notes").mkdir(); pathlib.Path("notes/a.txt").write_text("x")
assert pathlib.Path("notes/a.txt").read_text() == "x"
with tempfile.TemporaryFile() as file:
    file.write(b"y")
hashlib.sha256(b"z").hexdigest()
if __name__ == "__main__":
    raise RuntimeError("a main guard is not run, as in human-eval")
""",
        Limits(),
    ).passed


def test_what_went_wrong_is_said_with_its_line() -> None:
    outcome = run("x = 1\nassert x == 2, 'one is not two'")
    assert (outcome.status, outcome.reason) == (
        "failed",
        "AssertionError: one is not two (line 2: assert x == 2, 'one is not two')",
    )
    assert "SyntaxError" in run("def f(:").reason
    assert "RecursionError" in run("def f(): return f()\nf()").reason
    assert "Odd" in run("class Odd(Exception):\n    def __str__(self): raise self\nraise Odd()").reason


@pytest.mark.parametrize(
    "leave",
    [
        "import os; os._exit(0)",
        "import sys; sys.exit(0)",
        "raise SystemExit",
        "exit = quit = None; raise KeyboardInterrupt",
        "import os, sys; print('passed', flush=True); os._exit(0)",
        "import os; os.closerange(3, 1100)",
        'import os\nfor fd in range(3, 1000):\n    try: os.write(fd, b\'{"status": "passed", "token": "\' + b\'0\' * 64 + b\'"}\')\n    except OSError: pass\nos._exit(0)',
        "import atexit, os; atexit.register(os._exit, 0); raise ValueError",
    ],
)
def test_leaving_before_the_end_is_not_passing(leave: str) -> None:
    outcome = run(leave + "\nassert False")
    assert outcome.status in ("failed", "killed")
    assert outcome.reason


def test_a_program_cannot_turn_its_failure_into_a_pass_through_the_modules_that_report_it() -> None:
    outcome = run(
        "import json, os\nreal = os.write\nos.write = lambda fd, data: real(fd, data.replace(b'failed', b'passed'))\n"
        'json.dumps = lambda value, **_: \'{"status": "passed"}\'\nassert False'
    )
    assert outcome.status == "failed"


def test_a_loop_ends_at_the_time_limit() -> None:
    start = time.monotonic()
    assert run("while True: pass").status in ("killed", "timeout")
    assert run("import time; time.sleep(60)", Limits(wall_s=0.4)).status == "timeout"
    assert (
        run(
            "import signal, time\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError): pass\ntime.sleep(60)",
            Limits(wall_s=0.4),
        ).status
        == "timeout"
    )
    assert time.monotonic() - start < 20


def test_a_program_that_closes_its_pipes_and_goes_on_is_still_watched() -> None:
    assert run("import os, time\nos.closerange(0, 1000)\ntime.sleep(60)", Limits(wall_s=0.4)).status == "timeout"


@linux
def test_memory_is_bounded() -> None:
    assert "MemoryError" in run("x = []\nwhile True: x.append(bytearray(1 << 20))").reason
    assert "MemoryError" in run("x = bytearray(1 << 40)").reason


def test_what_it_prints_is_bounded_and_kept() -> None:
    outcome = run("while True: print('x' * 1000)")
    assert outcome.status == "output"
    assert len(outcome.output) <= 16 << 10
    told = run("import sys; print('hello'); print('there', file=sys.stderr)\nassert False").output
    assert told.split() == ["hello", "there"] or told.split() == ["there", "hello"]
    assert run(r"import os; os.write(1, b'\xff\x00')").output == "\ufffd\0"


def test_the_disk_is_bounded() -> None:
    assert "File too large" in run("with open('a', 'wb') as file:\n    while True: file.write(bytes(1 << 16))").reason
    many = "i = 0\nwhile True:\n    i += 1\n    with open(str(i), 'wb') as file: file.write(bytes(1 << 19))"
    assert run(many, Limits(cpu_s=2, wall_s=2.0, disk_mb=2)).status == "disk"
    empty = "i = 0\nwhile True:\n    i += 1\n    open(str(i), 'w').close()"
    assert run(empty, Limits(cpu_s=2, wall_s=2.0)).status == "disk"
    deep = "import os\nwhile True:\n    os.mkdir('d')\n    os.chdir('d')"
    assert run(deep, Limits(cpu_s=2, wall_s=2.0)).status == "disk"


@pytest.mark.parametrize("without", [pytest.param((), marks=linux), ("seccomp",)])
@pytest.mark.parametrize(
    "forbidden",
    [
        "import socket; socket.socket()",
        "import socket; socket.create_connection(('127.0.0.1', PORT))",
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1:PORT')",
        "import os; os.fork()",
        "import subprocess; subprocess.run(['true'])",
        "import subprocess; subprocess.Popen('true', shell=True)",
        "import os; os.posix_spawn('/bin/true', ['true'], {})",
        "import os; os.execv('/bin/true', ['true'])",
        "import os; os.kill(os.getppid(), 9)",
    ],
)
def test_sockets_processes_and_signals_are_refused(forbidden: str, without: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        program = f"try:\n    {forbidden.replace('PORT', str(server.getsockname()[1]))}\nexcept OSError as e:\n    print(e)\nelse:\n    raise AssertionError"
        outcome = run(program, without=without)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert outcome.passed, outcome
    assert "ermitted" in outcome.output


@linux
def test_native_code_is_held_as_well() -> None:
    program = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def refused(result):
    assert result == -1 and ctypes.get_errno() in (1, 38), (result, ctypes.get_errno())
refused(libc.socket(2, 1, 0))
refused(libc.fork())
refused(libc.kill(os.getppid(), 0))
refused(libc.syscall(435, 0, 0))
refused(libc.ptrace(16, os.getppid(), 0, 0))
refused(libc.unshare(0x10000000))
refused(libc.memfd_create(b"x", 0))
refused(libc.chmod(b"/tmp", 0o777))
refused(libc.prlimit(os.getppid(), 0, None, None))
"""
    assert run(program).passed


@linux
def test_a_fork_bomb_and_a_thread_bomb_stay_small() -> None:
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    assert run(bomb).status in ("killed", "timeout")
    threads = "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(60,)).start()"
    assert not run(threads, Limits(cpu_s=1, wall_s=1.0, memory_mb=256)).passed


@linux
@pytest.mark.parametrize("without", [(), ("seccomp",)])
def test_the_users_files_can_neither_be_read_nor_changed_nor_deleted(
    home: Path, tmp_path: Path, without: tuple[str, ...]
) -> None:
    home.mkdir(exist_ok=True)
    secret = home / "secret.txt"
    secret.write_text("key")
    for folder in (home, tmp_path):
        folder.chmod(0o777)
    secret.chmod(0o666)
    program = f"""
import errno, os
path = {str(secret)!r}
def refused(call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        assert error.errno in (errno.EPERM, errno.EACCES, errno.EXDEV), error
        return
    raise AssertionError(call)
refused(open, path)
refused(open, path, "w")
refused(open, path, "a")
refused(os.remove, path)
refused(os.rename, path, "mine")
refused(os.link, path, "mine")
refused(os.truncate, path, 0)
refused(os.listdir, os.path.dirname(path))
refused(os.mkdir, os.path.dirname(path) + "/new")
refused(open, "/etc/passwd")
refused(open, "/proc/self/environ")
refused(os.listdir, {str(Path.home())!r})
refused(os.listdir, "/")
refused(open, {tempfile.gettempdir()!r} + "/luthier-mine", "w")
refused(open, "/dev/shm/luthier-mine", "w")
os.symlink(path, "link")
refused(open, "link")
"""
    outcome = run(program, without=without)
    assert outcome.passed, outcome
    assert secret.read_text() == "key"
    if not without:
        assert run(
            f"import os\ntry: os.chmod({str(secret)!r}, 0)\nexcept PermissionError: pass\nelse: assert False"
        ).passed


def test_the_environment_is_not_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    outcome = run(
        "import os, sys\nprint(sorted(os.environ), os.environ['HOME'] == os.getcwd())\nassert 'torch' not in sys.modules"
    )
    assert outcome.passed, outcome
    assert "OPENAI_API_KEY" not in outcome.output
    assert outcome.output.strip().endswith("True")
    assert "ModuleNotFoundError" in run("import test_sandbox").reason
    assert run("assert input() == ''").reason.startswith("EOFError")


def test_crashes_are_told_by_their_signal() -> None:
    assert "SIGABRT" in run("import os; os.abort()").reason
    assert "SIGSEGV" in run("import ctypes; ctypes.string_at(0)").reason


def test_runs_are_repeatable() -> None:
    assert len({run("print(hash('a'), {'a', 'b', 'c'})").output for _ in range(2)}) == 1


def test_several_programs_run_side_by_side_and_come_back_in_order() -> None:
    programs = [f"import time; time.sleep({0.2 if i == 0 else 0})\nprint({i})\nassert {i} != 2" for i in range(5)]
    outcomes = run_programs(programs, SMALL, workers=3)
    assert [outcome.output.strip() for outcome in outcomes] == list("01234")
    assert [outcome.passed for outcome in outcomes] == [True, True, False, True, True]
    assert run_programs([]) == []


def test_text_that_is_no_unicode_and_programs_that_are_long_come_through() -> None:
    assert not run("x = '\ud800'").passed
    assert run("x = 1\n" * 60_000, Limits()).passed


def test_root_becomes_nobody_only_where_nobody_can_read_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    choose = _sandbox._user.__wrapped__
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: "/")
    monkeypatch.setattr(sysconfig, "get_path", lambda _: "/usr")
    assert choose() == 65534
    tmp_path.chmod(0o700)
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    assert choose() is None
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(sysconfig, "get_path", lambda _: "/usr")
    assert choose() is None


@linux
def test_what_protects_here_is_told() -> None:
    protection = describe()
    assert any("seccomp" in held for held in protection.held)
    lacking = run("", without=("seccomp", "landlock")).missing
    assert set(lacking) >= {"seccomp", "landlock"}
