"""The inside of the sandbox: takes every right away from its own process, then runs one program. See ``_sandbox``.

Started as a script by ``_sandbox``, with the standard library alone. Standard input carries a JSON object; two more pipes hold the token
(read only when the program has come to its end) and take the verdict.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import resource
import struct
import sys
import types
from collections.abc import Callable
from typing import Any

_NO_NEW_PRIVILEGES, _SET_SECCOMP, _DEATH_SIGNAL, _SET_DUMPABLE = 38, 22, 1, 4
_KILL = 9

# Denied system calls by machine; "-" where a machine has none. ``clone``, ``clone3``, ``tgkill`` and ``prlimit64`` are treated apart.
_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
_DENIED = """
socket 41 198|connect 42 203|execve 59 221|execveat 322 281|fork 57 -|vfork 58 -|kill 62 129|tkill 200 130
rt_sigqueueinfo 129 138|rt_tgsigqueueinfo 297 240|pidfd_send_signal 424 424|pidfd_open 434 434|pidfd_getfd 438 438
ptrace 101 117|process_vm_readv 310 270|process_vm_writev 311 271|process_madvise 440 440|kcmp 312 272
mount 165 40|umount2 166 39|pivot_root 155 41|chroot 161 51|unshare 272 97|setns 308 268|mount_setattr 442 442
open_tree 428 428|move_mount 429 429|fsopen 430 430|fsconfig 431 431|fsmount 432 432|fspick 433 433
bpf 321 280|perf_event_open 298 241|userfaultfd 323 282|io_uring_setup 425 425|keyctl 250 219|add_key 248 217
request_key 249 218|memfd_create 319 279|memfd_secret 447 447|shmget 29 194|msgget 68 186|semget 64 190|mq_open 240 180
fallocate 285 47|truncate 76 45|copy_file_range 326 285|chmod 90 -|fchmod 91 52|fchmodat 268 53|fchmodat2 452 452
chown 92 -|fchown 93 55|lchown 94 -|fchownat 260 54|setxattr 188 5|lsetxattr 189 6|fsetxattr 190 7|setxattrat 463 463
removexattr 197 14|lremovexattr 198 15|fremovexattr 199 16|removexattrat 466 466|file_setattr 469 469
utime 132 -|utimes 235 -|futimesat 261 -|utimensat 280 88|mknod 133 -|mknodat 259 33
init_module 175 105|finit_module 313 273|delete_module 176 106|kexec_load 246 104|kexec_file_load 320 294|reboot 169 142
swapon 167 224|swapoff 168 225|settimeofday 164 170|clock_settime 227 112|adjtimex 159 171|clock_adjtime 305 266
sethostname 170 161|setdomainname 171 162|acct 163 89|quotactl 179 60|personality 135 92|syslog 103 116
open_by_handle_at 304 265|fanotify_init 300 262|setpriority 141 140|sched_setaffinity 203 122|sched_setscheduler 144 119
sched_setparam 142 118|sched_setattr 314 274|ioprio_set 251 30|modify_ldt 154 -|iopl 172 -|ioperm 173 -|vmsplice 278 75
"""
_CLONE, _CLONE3, _TGKILL, _PRLIMIT = (56, 220), (435, 435), (234, 131), (302, 261)
_CLONE_THREAD, _X32 = 0x10000, 0x40000000

_READ = 4 | 8  # files and folders
_DEVICE = 2 | 4
_WORK = 2 | 4 | 8 | 16 | 32 | 128 | 256 | 1024 | 4096 | 8192 | 16384  # all but executing, devices and sockets

_HIDDEN: set[int] = set()
_AUDITED = (
    "socket.",
    "os.fork",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.system",
    "os.kill",
    "subprocess.",
    "pty.",
)


def main() -> None:
    """Read the job, give up rights, run the program, say how it ended."""
    token_fd, verdict_fd = (_hide(int(argument)) for argument in sys.argv[1:3])
    with open(0, "rb", closefd=False) as stdin:
        job = json.loads(stdin.read())
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    program: str = job["program"]
    missing = _confine(job)
    write, read, leave, dump = os.write, os.read, os._exit, json.dumps  # the program may put others in their place
    status, error = _run(program)
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
    verdict = {"status": status, "error": error, "missing": missing}
    if status == "passed":
        verdict["token"] = read(token_fd, 128).decode("ascii")
    write(verdict_fd, dump(verdict).encode("ascii"))
    leave(0)


def _hide(fd: int) -> int:
    """The same pipe under a number that a program has to guess."""
    hidden = 128 + int.from_bytes(os.urandom(4), "big") % 800
    while hidden in _HIDDEN:
        hidden += 1
    _HIDDEN.add(hidden)
    os.dup2(fd, hidden, inheritable=False)
    os.close(fd)
    return hidden


def _run(program: str) -> tuple[str, str]:
    module = types.ModuleType("program")
    sys.modules["program"] = module
    try:
        exec(compile(program, "<program>", "exec"), module.__dict__)
    except SystemExit:
        return "exited", "it left through SystemExit before its tests were over"
    except BaseException as error:  # noqa: BLE001 - whatever a program raises is its verdict
        return "failed", _told(error, program)
    return "passed", ""


def _told(error: BaseException, program: str) -> str:
    """``AssertionError: message (line 12: assert f(1) == 2)``."""
    try:
        text = f"{type(error).__name__}: {error}"
    except BaseException:  # noqa: BLE001 - an exception of the program's own making
        text = type(error).__name__
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<program>":
            line = trace.tb_lineno
        trace = trace.tb_next
    lines = program.splitlines()
    where = f" (line {line}: {lines[line - 1].strip()[:200]})" if 0 < line <= len(lines) else ""
    return text[:500] + where


def _confine(job: dict[str, Any]) -> dict[str, str]:
    """Give up rights, in the order in which each is still possible; returns what could not be had, and why."""
    missing: dict[str, str] = {}
    layers: dict[str, Callable[[dict[str, Any]], None]] = {
        "limits": _limit,
        "landlock": _landlock,
        "user": _leave_user,
        "parent": _die_with_parent,
        "seccomp": _seccomp,
    }
    for name, apply in layers.items():
        try:
            if name in job["without"]:
                raise OSError("switched off")
            apply(job)
        except (OSError, ValueError, AttributeError) as error:
            missing[name] = str(error)
    if "seccomp" in missing:
        _no_processes()
        sys.addaudithook(_audit)
    return missing


def _limit(job: dict[str, Any]) -> None:
    mb = 1 << 20
    limits = {
        "CORE": (0, 0),
        "CPU": (job["cpu_s"], job["cpu_s"] + 1),
        "FSIZE": (job["disk_mb"] * mb,) * 2,
        "NOFILE": (64, 64),
        "AS": (job["memory_mb"] * mb,) * 2,  # last: macOS refuses it
    }
    for name, (soft, hard) in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        most = resource.getrlimit(kind)[1]
        wanted = (soft, hard) if most == resource.RLIM_INFINITY else (min(soft, most), min(hard, most))
        resource.setrlimit(kind, wanted)


def _no_processes() -> None:
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event.startswith(_AUDITED):
        raise PermissionError(errno.EPERM, f"{event} is not permitted here")


# ---- Linux


def _libc() -> Any:
    if sys.platform != "linux":
        raise OSError(f"needs Linux; this is {sys.platform}")
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def _die_with_parent(job: dict[str, Any]) -> None:
    libc = _libc()
    _check(libc.prctl(_SET_DUMPABLE, 0, 0, 0, 0), "prctl")
    _check(libc.prctl(_DEATH_SIGNAL, _KILL, 0, 0, 0), "prctl")
    if os.getppid() != job["parent"]:
        os._exit(1)


def _leave_user(job: dict[str, Any]) -> None:
    """Root becomes ``uid``, or, where that could not read Python's own library, stays without any capability."""
    if os.geteuid() != 0:
        return
    if job["uid"] is not None:
        os.setgroups([])
        os.setresgid(job["uid"], job["uid"], job["uid"])
        os.setresuid(job["uid"], job["uid"], job["uid"])
        return
    header, none = struct.pack("Ii", 0x20080522, 0), bytes(24)
    _check(_libc().capset(header, none), "capset")


def _landlock(job: dict[str, Any]) -> None:
    """Files: read Python and the system's libraries, work in the own folder, nothing else. Needs kernel 5.13 or later."""
    libc = _libc()
    version = _check(libc.syscall(444, None, 0, 1), "landlock")
    handled = (1 << 13) - 1
    for least, bit in ((2, 8192), (3, 16384), (5, 32768)):
        handled |= bit if version >= least else 0
    # the network (bind, connect) from version 4, signals and abstract sockets from version 6
    attributes = struct.pack("QQQ", handled, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = _check(libc.syscall(444, attributes[:size], size, 0), "landlock_create_ruleset")
    granted = [(path, _READ) for path in job["readable"]] + [(path, _DEVICE) for path in job["devices"]]
    for path, rights in [*granted, (job["folder"], _WORK)]:
        with contextlib.suppress(FileNotFoundError, PermissionError):
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            allowed = rights if os.path.isdir(path) else rights & ~8  # noqa: PTH112 - pathlib would be loaded for this alone
            rule = struct.pack("=Qi", allowed & handled, fd)
            _check(libc.syscall(445, rules, 1, rule, 0), f"landlock_add_rule {path}")
            os.close(fd)
    _check(libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0), "prctl")
    _check(libc.syscall(446, rules, 0), "landlock_restrict_self")
    os.close(rules)


def _seccomp(job: dict[str, Any]) -> None:
    """System calls: no sockets, no other processes, no signals to others, nothing that only administrators need."""
    libc, machine = _libc(), os.uname().machine
    if machine not in _MACHINES or struct.calcsize("P") != 8:
        raise OSError(f"no table of system calls for {machine}")
    code = _filter(*_MACHINES[machine])
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(buffer))
    _check(libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0), "prctl")
    _check(libc.prctl(_SET_SECCOMP, 2, program, 0, 0), "seccomp")


def _filter(architecture: int, column: int) -> bytes:
    """The filter as classic BPF: (code, jump if true, jump if false, value) an instruction."""
    load, equal, at_least, has_bits, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, kill, deny, unknown = 0x7FFF0000, 0x80000000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
    number, arch, first = 0, 4, 16  # where the kernel puts them
    rows = [entry.split() for entry in _DENIED.replace("\n", "|").split("|") if entry]
    denied = [int(row[1 + column]) for row in rows if row[1 + column] != "-"]
    out = [(load, 0, 0, arch), (equal, 1, 0, architecture), (give, 0, 0, kill)]
    out += [(load, 0, 0, number), (at_least, 0, 1, _X32), (give, 0, 0, kill)]
    out += [(equal, 0, 1, _CLONE3[column]), (give, 0, 0, unknown)]  # glibc then uses clone, whose flags can be seen
    for call, test, value in (
        (_CLONE, has_bits, _CLONE_THREAD),
        (_TGKILL, equal, os.getpid()),
        (_PRLIMIT, equal, 0),
    ):
        out += [(equal, 0, 4, call[column]), (load, 0, 0, first), (test, 0, 1, value)]
        out += [(give, 0, 0, allow), (give, 0, 0, deny)]
    for place, call_number in enumerate(denied):
        out.append((equal, len(denied) - place, 0, call_number))
    out += [(give, 0, 0, allow), (give, 0, 0, deny)]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in out)


if __name__ == "__main__":
    main()
