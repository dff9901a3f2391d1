"""Soft prompts: putting one before a model, and what its virtual tokens can begin as."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from luthier.core.errors import InputError, UnsupportedError
from luthier.methods._peft import wrap
from luthier.models.adapters import inner_of
from luthier.models.load import LoadedModel
from luthier.models.soft_prompt import set_sizes, task_of

if TYPE_CHECKING:
    import torch

COMMON = 5000
"""Lester et al. 2021, section 3.2: a prompt that begins as words of the vocabulary begins as some of its most common ones."""


def check_text(init: str, text: str | None) -> None:
    """Raise ValueError unless a text is given with init text and only then."""
    if init == "text" and not text:
        raise ValueError("init text needs text: what the virtual tokens begin as")
    if init != "text" and text is not None:
        raise ValueError(f"text is for init text; got init {init}")


def put(model: LoadedModel, settings: Any, *, method: str) -> LoadedModel:
    """``model`` with the soft prompt that ``settings`` (a PEFT config) describes before everything that it reads.

    Raises InputError when its tokens leave no room for others, UnsupportedError when the model takes no soft prompt of this kind.
    """
    tokens = settings.num_virtual_tokens
    if model.context_length and tokens >= model.context_length:
        raise InputError(
            f"method.tokens must leave room in the context of {model.context_length} tokens of {model.base.name}; got {tokens}"
        )
    settings.task_type = task_of(model.architecture)
    set_sizes(settings, inner_of(model))
    left = max(model.context_length - tokens, 0)
    built = replace(wrap(model, settings, method=method), context_length=left, virtual_tokens=tokens)
    if model.device.type != "meta":
        _try(built, method)
    return built


def put_prefix(
    model: LoadedModel, *, method: str, tokens: int, hidden: int | None, init: str, text: str | None
) -> LoadedModel:
    """``model`` with learned keys and values in every layer, made by an MLP of inner width ``hidden`` where that is given."""
    from peft import PrefixTuningConfig

    values = None
    if init != "random" and model.device.type != "meta":
        values = keys_and_values(model, start_ids(model, init, text, tokens))
    settings = PrefixTuningConfig(
        num_virtual_tokens=tokens, prefix_projection=hidden is not None, encoder_hidden_size=hidden
    )
    built = put(model, settings, method=method)
    if values is not None:
        set_tokens(built, values)
    return built


def _try(model: LoadedModel, method: str) -> None:
    """Read one token after the soft prompt. Raises UnsupportedError when that fails, or when the prompt makes no difference."""
    import torch

    from luthier.models.decode import hidden_states
    from luthier.models.seq2seq import encode

    inner = inner_of(model).eval()
    ids = torch.ones(1, 2, dtype=torch.long, device=model.device)
    try:
        with torch.enable_grad():
            if model.architecture == "decoder":
                out = hidden_states(inner, ids)
            elif model.architecture == "encoder-decoder":
                out = encode(inner, ids, torch.ones_like(ids))
            else:
                out = inner(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, NotImplementedError) as error:
        raise _refusal(model, method, str(error).split("\n")[0] or type(error).__name__) from error
    if not out.requires_grad:
        raise _refusal(model, method, "it leaves out what is put before its text")


def _refusal(model: LoadedModel, method: str, reason: str) -> UnsupportedError:
    return UnsupportedError(
        f"method {method} cannot go into {model.base.name} ({type(inner_of(model).base_model).__name__}): {reason}",
        hint="for this model: method=prompt | method=lora",
    )


def encoder_of(model: LoadedModel) -> Any:
    """PEFT's module that makes the virtual tokens of the adapter in ``model``."""
    inner = inner_of(model)
    return inner.prompt_encoder[inner.active_adapter]


def set_tokens(model: LoadedModel, values: torch.Tensor) -> None:
    """Let the virtual tokens begin as ``values``: (tokens, width), or for keys and values (tokens, their sizes in all layers)."""
    encoder_of(model).embedding.weight.data.copy_(values)


def start_ids(model: LoadedModel, init: str, text: str | None, tokens: int) -> list[int]:
    """The real tokens that the virtual ones begin as: those of ``text`` again and again, or drawn from the vocabulary.

    Raises InputError for a text without tokens.
    """
    if init == "vocabulary":
        return drawn(model, tokens)
    ids = _ids(model, text or "")
    if not ids:
        raise InputError(f"method.text must have at least one token; got {text!r}")
    return (ids * -(-tokens // len(ids)))[:tokens]


def drawn(model: LoadedModel, count: int) -> list[int]:
    """``count`` of the common words of the vocabulary, by chance: the first with a letter, in whose order tokenizers put the frequent first."""
    import torch

    tokenizer = model.tokenizer
    rows = min(len(tokenizer), inner_of(model).get_input_embeddings().weight.shape[0])
    special = set(tokenizer.all_special_ids)
    words = [
        number
        for number, word in enumerate(tokenizer.convert_ids_to_tokens(range(rows)))
        if number not in special and any(map(str.isalpha, word)) and not (word[0] in "[<" and word[-1] in "]>")
    ][:COMMON]
    return [words[i] for i in torch.randint(len(words), (count,)).tolist()]


def label_embeddings(model: LoadedModel, tokens: int) -> torch.Tensor:
    """(tokens, width): the mean embedding of each label's own tokens (Lester et al. 2021, section 3.2), the rest drawn from the vocabulary.

    Raises InputError when there are no labels, or more of them than tokens.
    """
    import torch

    if not model.labels:
        raise InputError(
            "method.init labels needs labelled data; this data has no labels", hint="method.init=vocabulary | text"
        )
    if len(model.labels) > tokens:
        raise InputError(
            f"method.tokens must be at least {len(model.labels)} with init labels, one for each label; got {tokens}"
        )
    rows = [embeddings(model, _ids(model, label)).mean(0, keepdim=True) for label in model.labels]
    return torch.cat([*rows, embeddings(model, drawn(model, tokens - len(rows)))])


def random_embeddings(model: LoadedModel, tokens: int) -> torch.Tensor:
    """(tokens, width), drawn with the mean and the spread that the model's own embeddings have in each direction."""
    import torch

    rows = len(inner_of(model).get_input_embeddings().weight)
    read = embeddings(model, torch.randint(rows, (COMMON,)).tolist())
    return read.mean(0) + read.std(0) * torch.randn(tokens, read.shape[1]).to(read.device)


def _ids(model: LoadedModel, text: str) -> list[int]:
    return list(model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def embeddings(model: LoadedModel, ids: list[int]) -> torch.Tensor:
    """(ids, width): what the model reads for these tokens."""
    import torch

    with torch.no_grad():
        table = inner_of(model).get_input_embeddings()
        read: torch.Tensor = table(torch.tensor(ids, dtype=torch.long, device=model.device))
        return read.detach().float()


def keys_and_values(model: LoadedModel, ids: list[int]) -> torch.Tensor:
    """(ids, sizes of keys and values in all layers), as PEFT lays them out: what the model's attention makes of these tokens."""
    import torch
    from transformers import DynamicCache

    from luthier.models.prefix import compute

    inner = inner_of(model)
    with torch.no_grad():
        if model.architecture == "decoder":
            pairs = compute(inner, ids, model.device)
        else:
            cache = DynamicCache()
            inner(input_ids=torch.tensor([ids], device=model.device), past_key_values=cache)
            pairs = [(layer.keys, layer.values) for layer in cache.layers]
        stacked = torch.cat([each for pair in pairs for each in pair])  # (2 * layers, heads, ids, size)
        return stacked.permute(2, 0, 1, 3).reshape(len(ids), -1).float()


def sizes(module: Any) -> tuple[int, int, int]:
    """(layers, width, width of all keys of a token in one layer) of a model."""
    config = module.config.get_text_config(decoder=True)
    width, heads = int(config.hidden_size), int(config.num_attention_heads)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    return int(config.num_hidden_layers), width, kv_heads * int(getattr(config, "head_dim", None) or width // heads)
