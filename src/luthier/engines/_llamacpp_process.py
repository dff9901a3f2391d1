"""llama.cpp's own server as a program, so that its end is not that of the process which uses it.

Reads one line of JSON (the fields of ``_llamacpp_server.Settings``, ``loras`` and ``socket``), says in one line of JSON whether it is ready,
and ends when its stdin does. Started as a file: nothing of Luthier is imported.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any


def main() -> None:
    """Serve until stdin ends; Ctrl-C and SIGTERM are for the process that started this one, which ends it in order."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    asked = json.loads(sys.stdin.readline())
    try:
        server = start(asked)
    except RuntimeError as error:
        say({"error": str(error)})
        return
    say({"ready": True})
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads on
    sys.stdin.read()
    del server
    os._exit(0)


def say(what: dict[str, Any]) -> None:
    """One line of JSON."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def start(asked: dict[str, Any]) -> Any:
    """The server, which answers once this returns. Raises RuntimeError for what llama.cpp cannot load."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = asked["model"]
    params.hostnames, params.port = [asked["socket"]], 0  # an address that ends in .sock is a socket file
    params.verbosity = -1
    params.n_ctx, params.n_parallel = asked["context_length"] * asked["parallel"], asked["parallel"]
    params.kv_unified, params.fit_params, params.warmup = False, False, False
    params.cache_ram_mib, params.cache_idle_slots, params.ctx_shift = asked["cache_mib"], False, False
    params.ui, params.endpoint_slots, params.endpoint_props = False, False, False
    params.n_threads_http = 2 * asked["parallel"] + 8
    params.n_gpu_layers = asked["gpu_layers"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = asked["threads"]
    kind = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{asked['cache_type'].upper()}")
    params.cache_type_k = params.cache_type_v = kind
    if asked["cache_type"] == "f32":  # flash attention would round to f16 all the same
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 0.0) for path in asked["loras"]]
    params.lora_init_without_apply = True
    speculate(xllamacpp, params, asked)
    return xllamacpp.Server(params)


def speculate(xllamacpp: Any, params: Any, asked: dict[str, Any]) -> None:
    """Tokens are guessed by a draft model, or from what stands in the text already, and checked by the model."""
    kinds = xllamacpp.common_speculative_type
    types = []
    if asked["draft"]:
        draft = params.speculative.draft
        draft.mparams.path, draft.n_max, draft.n_gpu_layers = asked["draft"], asked["draft_tokens"], asked["gpu_layers"]
        draft.cpuparams.n_threads = draft.cpuparams_batch.n_threads = asked["threads"]
        types.append(kinds.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE)
    if asked["lookup"]:
        params.speculative.ngram_simple.size_n, params.speculative.ngram_simple.size_m = 3, asked["draft_tokens"]
        types.append(kinds.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE)
    if types:
        params.speculative.types = types


if __name__ == "__main__":
    main()
