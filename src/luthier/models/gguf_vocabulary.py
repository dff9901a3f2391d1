"""A tokenizer as GGUF metadata, so that other programs that read the file cut text into the same tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.core.errors import MismatchError, UnsupportedError
from luthier.models.gguf_tokenizer import PRE_TOKENIZERS

if TYPE_CHECKING:
    import gguf

    from luthier.data.render import Renderer

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""llama.cpp's token types."""


@dataclass(frozen=True)
class Vocabulary:
    """A byte-level BPE tokenizer. ``special`` maps bos, eos, eot, pad and unk to ids; absent ones are left out."""

    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    split: str
    special: Mapping[str, int]
    adds_bos: bool
    template: str

    @staticmethod
    def of(tokenizer: Any, size: int, renderer: Renderer | None) -> Vocabulary:
        """From a fast tokenizer and the number of rows of the embedding table (rows beyond the tokenizer become unused tokens).

        Raises UnsupportedError for tokenizers that llama.cpp cannot be told to imitate, MismatchError when the tokenizer has more
        tokens than the model.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UnsupportedError("GGUF export needs a fast tokenizer (tokenizer.json)")
        described = json.loads(backend.to_str())
        split = split_name(described)
        known: dict[int, tuple[str, int]] = {i: (t, NORMAL) for t, i in described["model"]["vocab"].items()}
        for added in described.get("added_tokens") or ():
            known[added["id"]] = (added["content"], CONTROL if added["special"] else USER_DEFINED)
        if known and max(known) >= size:
            raise MismatchError(f"the tokenizer has token ids up to {max(known)}; the model has {size} rows")
        rows = [known.get(i, (f"[PAD{i}]", UNUSED)) for i in range(size)]
        merges = tuple(m if isinstance(m, str) else " ".join(m) for m in described["model"]["merges"])
        special = {
            key: token
            for key in ("bos", "eos", "pad", "unk")
            if (token := getattr(tokenizer, f"{key}_token_id", None)) is not None
        }
        others = sorted(renderer.stop_ids - {special.get("eos", -1)}) if renderer is not None else []
        if others:
            special["eot"] = others[0]
        opening = tokenizer("a")["input_ids"][:1]
        return Vocabulary(
            tokens=tuple(token for token, _ in rows),
            types=tuple(kind for _, kind in rows),
            merges=merges,
            split=split,
            special=special,
            adds_bos=bool(opening) and opening[0] == special.get("bos"),
            template=renderer.template if renderer is not None else "",
        )

    def add_to(self, writer: gguf.GGUFWriter) -> None:
        """Write the ``tokenizer.*`` keys."""
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.split)
        writer.add_token_list(list(self.tokens))
        writer.add_token_types(list(self.types))
        writer.add_token_merges(list(self.merges))
        for key, token in self.special.items():
            getattr(writer, f"add_{key}_token_id")(token)
        writer.add_add_bos_token(self.adds_bos)
        writer.add_add_space_prefix(False)
        if self.template:
            writer.add_chat_template(self.template)


def split_name(described: Mapping[str, Any]) -> str:
    """llama.cpp's name for how a tokenizer.json cuts text before merging; raises UnsupportedError when it has none."""
    model, normalizer = described.get("model") or {}, described.get("normalizer")
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise UnsupportedError(
            f"GGUF export knows byte-level BPE tokenizers; got {model.get('type') or 'an unknown kind'}"
        )
    steps = _steps(described.get("pre_tokenizer"))
    kinds = [step["type"] for step in steps]
    if kinds[-2:] == ["ByteLevel", "Split"] and steps[-1].get("behavior") == "Removed":
        steps, kinds = steps[:-1], kinds[:-1]  # drops bytes that have no token, which llama.cpp does by itself
    rule = None
    if kinds[-1:] == ["ByteLevel"] and not steps[-1].get("add_prefix_space"):
        whole = steps[-1].get("use_regex", True)
        if kinds == ["ByteLevel"] and whole:
            rule = (False, "")
        elif kinds == ["Digits", "ByteLevel"] and whole and steps[0].get("individual_digits"):
            rule = (True, "")
        elif kinds == ["Split", "ByteLevel"] and not whole and steps[0].get("behavior") == "Isolated":
            rule = (False, (steps[0].get("pattern") or {}).get("Regex", ""))
    name = next((known for known, its in PRE_TOKENIZERS.items() if its == rule), None)
    composed = normalizer is not None and _steps(normalizer, "normalizers") != [{"type": "NFC"}]
    if name is None or composed or bool(model.get("ignore_merges")) != (name == "llama-bpe"):
        raise UnsupportedError(
            "GGUF export: llama.cpp has no name for how this tokenizer cuts text "
            f"(pre_tokenizer {', '.join(kinds) or 'none'}; normalizer {(normalizer or {}).get('type', 'none')})"
        )
    return name


def _steps(node: Mapping[str, Any] | None, key: str = "pretokenizers") -> list[Mapping[str, Any]]:
    """The inner steps of a pre-tokenizer or normalizer, sequences flattened."""
    if node is None:
        return []
    if node.get("type") == "Sequence":
        return [step for inner in node[key] for step in _steps(inner, key)]
    return [node]
