"""A Hugging Face tokenizer from a GGUF file's vocabulary that gives the same ids as llama.cpp.

The file names its pre-tokenizer (``tokenizer.ggml.pre``) instead of describing it, so the rule behind each name is stated here. A
wrong rule is not noticed by eye (digits and line breaks split differently) but makes training and serving disagree; therefore an
unknown name is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.core.errors import DataError, UnsupportedError

_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PRE_TOKENIZERS: Mapping[str, tuple[bool, str]] = {
    "gpt-2": (False, ""),
    "smollm": (True, ""),
    "llama-bpe": (False, _LLAMA3),
    "qwen2": (False, _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")),
}
"""Name -> (each digit alone first?, regular expression; "" is GPT-2's, which the byte-level step has built in)."""

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4
_LLAMA3_FAMILY = (
    "llama-bpe",
)  # llama.cpp takes whole words of the vocabulary before it merges, and starts texts with BOS


def build_tokenizer(path: Path, metadata: Mapping[str, Any]) -> Any:
    """A ``PreTrainedTokenizerFast`` from GGUF metadata: vocabulary, merges, special tokens, chat template.

    Raises UnsupportedError for a vocabulary that is not byte-level BPE or whose pre-tokenizer is not in ``PRE_TOKENIZERS``, and
    DataError when parts are missing.
    """
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2" or pre not in PRE_TOKENIZERS:
        raise UnsupportedError(
            f"{path.name}: the tokenizer must be gpt2 with pre-tokenizer {', '.join(PRE_TOKENIZERS)}; got {kind!r} with {pre!r}",
            hint="pull the model in Hugging Face layout instead: hf:org/name or file:FOLDER",
        )
    tokens = metadata.get("tokenizer.ggml.tokens")
    types = metadata.get("tokenizer.ggml.token_type") or []
    if not tokens or len(set(tokens)) != len(tokens) or len(types) not in (0, len(tokens)):
        raise DataError(f"{path}: the GGUF vocabulary is missing, has doubles, or lacks its token types")
    raw = _byte_level_bpe(tokens, metadata.get("tokenizer.ggml.merges") or [], pre)
    for text, kind_number in zip(tokens, types, strict=False):
        if kind_number in (_UNKNOWN, _CONTROL, _USER_DEFINED):
            raw.add_tokens([AddedToken(text, special=kind_number != _USER_DEFINED, normalized=False)])
    if metadata.get("tokenizer.ggml.add_bos_token", pre in _LLAMA3_FAMILY):
        _begin_with_bos(raw, tokens, metadata)
    special = {
        f"{role}_token": tokens[metadata[f"tokenizer.ggml.{key}_token_id"]]
        for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
        if 0 <= metadata.get(f"tokenizer.ggml.{key}_token_id", -1) < len(tokens)
    }
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        clean_up_tokenization_spaces=False,
        model_max_length=int(metadata.get(f"{metadata.get('general.architecture')}.context_length", 2048)),
        **special,
    )
    made.chat_template = metadata.get("tokenizer.chat_template")
    return made


def _byte_level_bpe(tokens: list[str], merges: list[str], pre: str) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    raw = Tokenizer(
        models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=pairs, ignore_merges=pre in _LLAMA3_FAMILY)
    )
    single_digits, expression = PRE_TOKENIZERS[pre]
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if single_digits else []
    if expression:
        steps.append(pre_tokenizers.Split(Regex(expression), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not expression))
    lost = "".join(sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(tokens)))
    if lost:  # bytes without a token are dropped; llama.cpp does not join what stood on their two sides
        steps.append(pre_tokenizers.Split(Regex("[" + "".join(f"\\x{{{ord(c):x}}}" for c in lost) + "]"), "removed"))
    raw.pre_tokenizer = pre_tokenizers.Sequence(steps)
    raw.decoder = decoders.ByteLevel()
    return raw


def _begin_with_bos(raw: Any, tokens: list[str], metadata: Mapping[str, Any]) -> None:
    from tokenizers import processors

    bos = metadata.get("tokenizer.ggml.bos_token_id")
    if isinstance(bos, int) and bos < len(tokens):
        raw.post_processor = processors.TemplateProcessing(
            single=f"{tokens[bos]} $A", pair=f"{tokens[bos]} $A {tokens[bos]} $B", special_tokens=[(tokens[bos], bos)]
        )
