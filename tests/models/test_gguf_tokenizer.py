"""Token ids against llama.cpp itself: the reference that serving uses."""

import json
import random
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.models.gguf_files import write_model
from tests.models.test_convert import tiny
from transformers import AutoTokenizer

from luthier.core.errors import DataError, UnsupportedError
from luthier.models.gguf_tokenizer import PRE_TOKENIZERS, build_tokenizer
from luthier.models.read_gguf import read_header

HARD = [
    "",
    " ",
    "Hello world",
    "1234567 89 0.5e-10 1,000",
    "１２３ ⅷ ½ ² ๔ 四",
    "我的包裹还没有到,请帮我查一下。",
    "😀👍🏽👨‍👩‍👧 emoji",
    "def f(x):\n    return x**2  # ok\n\n\n",
    "<|im_start|>user\nhi<|im_end|>\n",
    "a\t\tb  c   \n d \r\n e\r",
    "'s're I'LL don't we'VE",
    "   leading and trailing   ",
    "\n\n \n",
    "é à ñ e\u0301 Ω ß İ",
    "مرحبا ١٢٣ שלום नमस्ते",
    "x<|endoftext|> y <|im_end|><|im_end|>",
    "\u00a0nbsp\u2003em\u3000ideographic",
    "a1b2c3 \n\n  7",
    "{}[]()!?@#$%^&*-_=+\\|;:'\",.<>/`~",
    "control \x14[ \x01\x7f\x00end",
    "http://example.org/a?b=c&d=%20",
]


def diverse(count: int, seed: int = 0) -> list[str]:
    """``HARD`` and random mixtures of many scripts, spaces, digits, control characters and special tokens."""
    chance = random.Random(seed)
    pools = [
        *(range(32, 127), range(48, 58), range(9, 14), range(0, 32), range(0xA0, 0x250), range(0x370, 0x600)),
        *(range(0x900, 0xA00), range(0x2000, 0x2100), range(0x2150, 0x2190), range(0x3000, 0x30FF)),
        *(range(0x4E00, 0x9FFF), range(0xAC00, 0xD7A3), range(0x1F300, 0x1F6FF), range(0x1D400, 0x1D7FF)),
        [0x85, 0xA0, 0x1680, 0x180E, 0x200B, 0x2028, 0x3000, 0xFEFF],
    ]
    out = list(HARD)
    while len(out) < count:
        text = "".join(chr(chance.choice(chance.choice(pools))) for _ in range(chance.randint(1, 40)))
        if chance.random() < 0.3:
            text += "<|im_end|>" + " " * chance.randint(0, 3) + text[:5]
        out.append(text)
    return out


@pytest.fixture
def llama_cpp() -> Iterator[Callable[[Path], Callable[[str], list[int]]]]:
    """Opens a GGUF file with llama.cpp and gives its tokenisation."""
    import xllamacpp

    servers = []

    def load(path: Path) -> Callable[[str], list[int]]:
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(path)
        parameters.n_ctx = 128
        parameters.warmup = False
        parameters.verbosity = 0
        server = xllamacpp.Server(parameters)
        servers.append(server)

        def tokenize(text: str) -> list[int]:
            body = json.dumps({"content": text, "add_special": False, "parse_special": True}).encode()
            asked = urllib.request.Request(
                f"{server.listening_address}/tokenize", body, {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(asked) as answer:
                return json.load(answer)["tokens"]

        return tokenize

    yield load
    servers.clear()


def differences(tokenizer, tokenize, texts):
    pairs = ((text, tokenizer(text, add_special_tokens=False).input_ids, tokenize(text)) for text in texts)
    return [each for each in pairs if each[1] != each[2]]


@pytest.mark.parametrize("pre", list(PRE_TOKENIZERS))
def test_ids_of_a_small_vocabulary_are_those_of_llama_cpp(pre, tiny_decoder_path, tmp_path, llama_cpp):
    original = AutoTokenizer.from_pretrained(str(tiny_decoder_path))
    path = write_model(tmp_path / "m.gguf", tiny("llama", len(original)), original, pre=pre)
    ours = build_tokenizer(path, read_header(path).metadata)
    assert differences(ours, llama_cpp(path), diverse(200)) == []


def test_the_rules_are_not_all_the_same(tiny_decoder_path, tmp_path):
    """The battery above can tell them apart: each pair of rules cuts some text differently."""
    from tests.models.gguf_files import write_vocabulary

    class Collect(dict):
        def __getattr__(self, name):
            return lambda value: self.__setitem__(name, value)

    said = Collect()
    write_vocabulary(said, AutoTokenizer.from_pretrained(str(tiny_decoder_path)), "gpt-2")
    keys = {
        "add_tokenizer_model": "model",
        "add_token_list": "tokens",
        "add_token_types": "token_type",
        "add_token_merges": "merges",
    }
    metadata = {f"tokenizer.ggml.{new}": said[old] for old, new in keys.items()}
    cuts = {}
    for pre in PRE_TOKENIZERS:
        steps = build_tokenizer(Path("x"), metadata | {"tokenizer.ggml.pre": pre}).backend_tokenizer.pre_tokenizer
        cuts[pre] = str([[piece for piece, _ in steps.pre_tokenize_str(text)] for text in HARD])
    assert len(set(cuts.values())) == len(PRE_TOKENIZERS)


def test_a_saved_tokenizer_keeps_its_rule(tiny_decoder_path, tmp_path):
    original = AutoTokenizer.from_pretrained(str(tiny_decoder_path))
    path = write_model(tmp_path / "m.gguf", tiny("llama", len(original)), original, pre="smollm")
    made = build_tokenizer(path, read_header(path).metadata)
    made.save_pretrained(str(tmp_path / "t"))
    (tmp_path / "t" / "config.json").write_text('{"model_type": "llama"}')
    again = AutoTokenizer.from_pretrained(str(tmp_path / "t"))
    assert [again(t).input_ids for t in HARD] == [made(t).input_ids for t in HARD]
    digits = again("2024").input_ids
    assert [again.decode([i]) for i in digits] == ["2", "0", "2", "4"]


def test_texts_begin_with_bos_where_the_file_says_so(tiny_decoder_path, tmp_path):
    original = AutoTokenizer.from_pretrained(str(tiny_decoder_path))
    path = write_model(tmp_path / "m.gguf", tiny("llama", len(original)), original, pre="llama-bpe")
    metadata = dict(read_header(path).metadata)
    plain = original("hi", add_special_tokens=False).input_ids
    assert build_tokenizer(path, metadata)("hi").input_ids == [1, *plain]
    assert build_tokenizer(path, metadata | {"tokenizer.ggml.add_bos_token": False})("hi").input_ids == plain
    assert (
        build_tokenizer(path, metadata | {"tokenizer.ggml.pre": "qwen2", "tokenizer.ggml.add_bos_token": True})(
            "hi"
        ).input_ids[0]
        == 1
    )


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"tokenizer.ggml.model": "llama"}, UnsupportedError),
        ({"tokenizer.ggml.pre": "unheard-of"}, UnsupportedError),
        ({"tokenizer.ggml.tokens": []}, DataError),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, DataError),
        ({"tokenizer.ggml.token_type": [1]}, DataError),
    ],
)
def test_vocabularies_that_cannot_be_rebuilt_exactly_are_refused(change, error):
    good = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.merges": []}
    build_tokenizer(Path("good.gguf"), good)
    with pytest.raises(error, match=r"bad\.gguf"):
        build_tokenizer(Path("bad.gguf"), good | change)


@pytest.mark.models
def test_ids_of_smollm2_are_those_of_llama_cpp(real_home, llama_cpp):
    from luthier.store.artifacts import path_of
    from luthier.store.database import open_store
    from luthier.store.models import find

    store = open_store(real_home)
    folder = path_of(store, find(store, "smollm2-135m").digest)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    texts = diverse(300, seed=1)
    assert differences(tokenizer, llama_cpp(folder / "source.gguf"), texts) == []
    assert tokenizer.decode(tokenizer("2024").input_ids[:1]) == "2"
