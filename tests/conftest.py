"""Shared fixtures: a private home, tiny random models with a real tokenizer, and the two real models."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # test processes run side by side; tiny tensors gain nothing from threads

REPOSITORY = Path(__file__).parent.parent

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SENTENCES = [
    "The parcel has not arrived and the courier does not answer.",
    "Please refund the deposit for the violin I returned in March.",
    "I cannot sign in since I changed my password; the code never comes.",
    "My lesson was cancelled twice. Who is the teacher now?",
    "billing refund delivery account lessons 0123456789 {}[]()!?",
    "我的包裹还没有到,请帮我查一下。",
]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A private, empty LUTHIER_HOME."""
    root = tmp_path / "home"
    monkeypatch.setenv("LUTHIER_HOME", str(root))
    monkeypatch.delenv("LUTHIER_DATABASE_URL", raising=False)
    return root


def _tokenizer(folder: Path, *, chat: bool) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    if chat:
        special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        raw = Tokenizer(models.BPE())
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=384, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        )
        raw.train_from_iterator(SENTENCES * 4, trainer)
        fast = PreTrainedTokenizerFast(
            tokenizer_object=raw, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|endoftext|>"
        )
        fast.chat_template = CHATML
    else:
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        cut = pre_tokenizers.BertPreTokenizer()
        words = sorted({word for text in SENTENCES for word, _ in cut.pre_tokenize_str(text)})
        letters = sorted({letter for word in words for letter in word})
        # written down, not trained: the trainer does not find the same words every time
        known = dict.fromkeys([*special, *letters, *(f"##{letter}" for letter in letters), *words])
        raw = Tokenizer(models.WordPiece({word: n for n, word in enumerate(known)}, unk_token="[UNK]"))
        raw.pre_tokenizer = cut
        raw.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        fast = PreTrainedTokenizerFast(
            tokenizer_object=raw,
            pad_token="[PAD]",
            unk_token="[UNK]",
            cls_token="[CLS]",
            sep_token="[SEP]",
            mask_token="[MASK]",
        )
    fast.save_pretrained(str(folder))


def _t5_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=384, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    raw.train_from_iterator(SENTENCES * 4, trainer)
    raw.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")
    fast.save_pretrained(str(folder))


@pytest.fixture(scope="session")
def tiny_decoder_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of about 30 thousand random parameters with a byte-level tokenizer and a ChatML template, as a HF folder."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny-decoder")
    _tokenizer(folder, chat=True)
    vocabulary = len(AutoTokenizer.from_pretrained(str(folder)))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def tiny_gpt2_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 of about 30 thousand random parameters (biases everywhere, transposed linear layers) with the decoder's tokenizer."""
    import torch
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("tiny-gpt2")
    _tokenizer(folder, chat=True)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(AutoTokenizer.from_pretrained(str(folder))),
        n_positions=512,
        n_embd=32,
        n_inner=64,
        n_layer=2,
        n_head=4,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    GPT2LMHeadModel(config).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def tiny_encoder_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of about 30 thousand random parameters with a word-piece tokenizer, as a HF folder."""
    import torch
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("tiny-encoder")
    _tokenizer(folder, chat=False)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=300,  # a few more than words
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        pad_token_id=0,
    )
    BertModel(config).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def tiny_t5_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 of about 60 thousand random parameters (one matrix for both embeddings and the head) with a byte-level tokenizer that
    closes a text with ``</s>``, as a HF folder."""
    import torch
    from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

    folder = tmp_path_factory.mktemp("tiny-t5")
    _t5_tokenizer(folder)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(AutoTokenizer.from_pretrained(str(folder))),
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    T5ForConditionalGeneration(config).save_pretrained(str(folder))
    return folder


@pytest.fixture
def tiny_decoder(home: Path, tiny_decoder_path: Path) -> str:
    """The tiny decoder, pulled into the private home; returns its name."""
    from luthier.models.pull import pull

    return pull(f"file:{tiny_decoder_path}", alias="tiny-decoder").name


@pytest.fixture
def tiny_gpt2(home: Path, tiny_gpt2_path: Path) -> str:
    """The tiny GPT-2, pulled into the private home; returns its name."""
    from luthier.models.pull import pull

    return pull(f"file:{tiny_gpt2_path}", alias="tiny-gpt2").name


@pytest.fixture
def tiny_encoder(home: Path, tiny_encoder_path: Path) -> str:
    """The tiny encoder, pulled into the private home; returns its name."""
    from luthier.models.pull import pull

    return pull(f"file:{tiny_encoder_path}", alias="tiny-encoder").name


@pytest.fixture
def tiny_t5(home: Path, tiny_t5_path: Path) -> str:
    """The tiny T5, pulled into the private home; returns its name."""
    from luthier.models.pull import pull

    return pull(f"file:{tiny_t5_path}", alias="tiny-t5").name


@pytest.fixture(scope="session")
def tool_templates() -> dict[str, str | None]:
    """Chat templates that write tool calls, each in a family's own way (abridged); ``plain`` is the tiny decoder's, without a place for tools."""
    turns = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + (m.content or '') }}"
    listed = "{% if tools %}{{ '<|im_start|>system\n' + tools | tojson + '<|im_end|>\n' }}{% endif %}" + turns
    close = "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    each = "{% for c in m.tool_calls or [] %}{% set f = c.function %}"
    calls = {
        "hermes": each
        + "{{ '\n' if m.content or not loop.first }}<tool_call>{{ '\n' }}"
        + '{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}{{ "\n" }}</tool_call>{% endfor %}',
        "llama": "{% if m.tool_calls %}{% if m.tool_calls | length > 1 %}{{ raise_exception('one at a time') }}{% endif %}"
        "{% set f = m.tool_calls[0].function %}"
        '{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}{% endif %}',
        "mistral": each
        + "{% if c.id | length != 9 %}{{ raise_exception('nine') }}{% endif %}{{ '[TOOL_CALLS] [' if loop.first }}"
        + "{{ (f | tojson)[:-1] + ', \"id\": \"' + c.id + '\"}' + (']' if loop.last else ', ') }}{% endfor %}",
        "named": each + "<|call|>{{ f.name }}<|args|>{{ f.arguments | tojson }}{% endfor %}",
        "fenced": each
        + "{{ '<calls>' if loop.first }}<call>function<sep>{{ f.name + '\n```json\n' + (f.arguments | tojson) + '\n```' }}</call>"
        + "{{ '</calls>' if loop.last }}{% endfor %}",
        "quoted": each
        + '<f>{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson | tojson }}}</f>{% endfor %}',
        "xml": each
        + "<function={{ f.name }}>{% for k, v in f.arguments.items() %}<{{ k }}>{{ v }}</{{ k }}>{% endfor %}</function>{% endfor %}",
    }
    return {"plain": None} | {name: listed + call + close for name, call in calls.items()}


@pytest.fixture(scope="session")
def real_home() -> Iterator[Path]:
    """A home shared by all test processes that holds the two real models (pulled once, kept between runs)."""
    from filelock import FileLock

    from luthier.models.pull import pull
    from luthier.store.database import open_store

    root = REPOSITORY / ".luthier" / "tests"
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(str(root / "pull.lock")):
        store = open_store(root)
        for name in ("smollm2-135m", "minilm-l6"):
            pull(name, store=store)
    yield root
