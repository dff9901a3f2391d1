import json
import socket
import subprocess
import sys
from dataclasses import replace

import pytest

from luthier.models import machine
from luthier.models.machine import (
    Cpu,
    Gpu,
    Machine,
    examine,
    expectations,
    extras,
    parse_gpus,
    port_is_free,
    probe,
    probe_cpu,
)

EPYC = "processor\t: 0\nmodel name\t: AMD EPYC 9B45\nflags\t\t: fpu avx2 avx512f avx512_vnni avx512_bf16 sse\n"
OLD = "processor\t: 0\nmodel name\t: Intel Core i5-6200U\nflags\t\t: fpu avx avx2\n"
GRAVITON = "processor\t: 0\nBogoMIPS\t: 2100.00\nFeatures\t: fp asimd asimddp sve bf16 i8mm\n"
GB = 1_000_000_000


def made(cpu: Cpu, memory: float = 16e9, gpus: tuple[Gpu, ...] = ()) -> Machine:
    return Machine(cpu, int(memory), int(memory), 0, gpus, "Linux x86_64")


@pytest.mark.parametrize(
    ("text", "features", "bf16", "kind"),
    [
        (EPYC, ("avx2", "avx512f", "avx512_vnni", "avx512_bf16"), True, "bf16"),
        (OLD, ("avx2",), False, "simd"),
        (GRAVITON, ("asimd", "asimddp", "sve", "bf16", "i8mm"), True, "bf16"),
        ("model name : x\nflags : fpu\n", (), False, "none"),
        ("", (), False, "none"),
    ],
)
def test_processors_are_told_apart(text, features, bf16, kind):
    cpu = probe_cpu(text)
    assert (cpu.features, cpu.native_bf16, cpu.kind) == (features, bf16, kind)
    assert cpu.cores >= 1 and cpu.usable >= 1


def test_doctor_and_loading_agree_on_bf16():
    from luthier.models.load import cpu_has_bf16

    for text in (EPYC, OLD, GRAVITON, ""):
        assert probe_cpu(text).native_bf16 == cpu_has_bf16(text)


def test_nvidia_gpus_are_read_and_noise_is_left_out():
    text = "NVIDIA H200, 143771, 570.86\nNVIDIA A10G, rev 2, 23028, 550.1\n\nNo devices were found\n"
    assert parse_gpus(text) == (
        Gpu("NVIDIA H200", 143771 << 20, "570.86"),
        Gpu("NVIDIA A10G, rev 2", 23028 << 20, "550.1"),
    )


def test_more_machine_is_never_expected_to_be_slower():
    slow, fast = made(probe_cpu(OLD)), made(probe_cpu(EPYC))
    many = made(replace(fast.cpu, usable=64), memory=256e9)
    gpu = made(fast.cpu, gpus=(Gpu("H200", 140 * GB),))
    order = ["broken", "poor", "fair", "good"]
    for worse, better in ((slow, fast), (fast, many), (fast, gpu)):
        for before, after in zip(expectations(worse), expectations(better), strict=True):
            assert order.index(after.verdict) >= order.index(before.verdict), before.work
    assert all(each.verdict == "good" for each in expectations(gpu))


def test_the_estimate_is_the_measured_figure_it_was_calibrated_on():
    """434 tokens/s of LoRA on SmolLM2-135M on two cores with AVX512-BF16."""
    two = made(replace(probe_cpu(EPYC), usable=2), memory=25e9)
    lora = next(each for each in expectations(two) if "135M, LoRA" in each.work)
    assert lora.estimate == pytest.approx(434, rel=0.05) and lora.verdict == "good" and "estimate" in lora.why


def test_what_does_not_fit_in_memory_is_not_here():
    found = {each.work: each for each in expectations(made(probe_cpu(EPYC), memory=4e9))}
    seven = found["a 7B model, LoRA"]
    assert seven.verdict == "poor" and "needs about 24 GB" in seven.why and not seven.estimate
    assert found["SmolLM2-135M, LoRA"].estimate > 0


def test_the_real_machine_has_memory_and_cores():
    here = probe()
    assert here.memory_bytes >= here.free_memory_bytes > 0 and here.cpu.usable >= 1 and here.cpu.model


def test_a_port_in_use_is_not_free():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        assert not port_is_free(port)
        finding = next(f for f in examine_port(port))
        assert finding.verdict == "fair" and f"--port {port + 1}" in finding.advice
    assert port_is_free(port)


def examine_port(port):
    return [machine._port(port)]


def test_extras_are_read_from_the_installed_package():
    found = extras()
    assert "postgres" in found and "psycopg" in found["postgres"][0] and "dev" not in found
    assert extras("no-such-package") == {}


def test_a_healthy_home_is_reported_so(home):
    report = examine(port=free_port())
    topics = {finding.topic: finding for finding in report.findings}
    assert {"CPU", "Memory", "GPU", "Software", "Disk", "Store", "Models", "Port"} <= set(topics)
    assert not report.broken
    assert topics["Models"].verdict == "fair" and topics["Models"].advice == "luthier pull smollm2-135m"
    json.dumps(report.as_dict())


def test_pulled_models_and_their_damage_are_reported(home, tiny_decoder):
    from luthier.store import artifacts
    from luthier.store.database import open_store
    from luthier.store.models import find

    store = open_store()
    assert "tiny-decoder" in machine._models(store).found
    (artifacts.path_of(store, find(store, tiny_decoder).digest) / "config.json").unlink()
    report = examine(port=free_port())
    broken = [finding for finding in report.findings if finding.verdict == "broken"]
    assert report.broken and [b.topic for b in broken] == ["Models"]
    assert broken[0].advice == "luthier pull tiny-decoder --force"


def test_a_store_that_cannot_be_opened_is_a_finding_not_a_crash(home):
    home.mkdir()
    (home / "luthier.db").write_bytes(b"not a database" * 100)
    broken = [finding for finding in examine().findings if finding.verdict == "broken"]
    assert [b.topic for b in broken] == ["Store"] and "not a database" in broken[0].found


def test_runs_of_dead_processes_are_put_right(home):
    from luthier.store import runs
    from luthier.store.database import open_store

    store = open_store()
    run = runs.start(store, "tune", "x", {}, {})
    path = runs.folder(store, run.id) / "environment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pid": 2**22 + 1}))
    finding = next(f for f in examine().findings if f.topic == "Store")
    assert "1 run of dead processes marked interrupted" in finding.advice
    assert runs.find_run(store, run.id).status == "interrupted"


def test_a_full_disk_is_a_finding(home, monkeypatch):
    import shutil
    from types import SimpleNamespace

    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    disk = next(f for f in examine().findings if f.topic == "Disk")
    assert disk.verdict == "poor" and "LUTHIER_HOME" in disk.advice


def test_advice_on_gpus(monkeypatch):
    card = Gpu("NVIDIA A10", 24 * GB)
    monkeypatch.setattr(machine, "_version", lambda _: "2.13.0+cpu")
    assert "CPU build" in machine._gpu([card]).advice
    monkeypatch.setattr(machine, "_version", lambda _: "2.13.0+cu130")
    assert machine._gpu([card]).verdict == "good"
    assert machine._gpu([]).verdict == "fair"
    assert "mps" in machine._gpu([Gpu("Apple GPU", 0)]).advice


def test_a_missing_library_is_broken(monkeypatch):
    real = machine._version
    monkeypatch.setattr(machine, "_version", lambda name: "" if name == "xllamacpp" else real(name))
    finding = machine._installation(probe_cpu(EPYC))[0]
    assert finding.verdict == "broken" and finding.advice == "pip install xllamacpp"


def test_examining_imports_no_torch(home):
    code = "import sys; from luthier.models.machine import examine; examine(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
