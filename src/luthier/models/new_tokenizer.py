"""Tokenizers for new models: trained on a dataset's texts, the same texts giving the same tokenizer.

Decoders get byte-level BPE (Sennrich et al. 2016 over bytes, Radford et al. 2019, section 2.2), every digit by itself as in SmolLM2, and with
it tokens for conversations (ChatML), ends of documents and infilling. Encoders get WordPiece (Schuster and Nakajima 2012; Devlin et al. 2019).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from luthier.core.dataset import Dataset, Example
from luthier.core.digest import digest_text
from luthier.core.errors import DataError, InputError

END, TURN, TURN_END, PAD = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"
DECODER_TOKENS = (END, TURN, TURN_END, PAD, "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")
ENCODER_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML without a system turn of its own."""
LEAST = 256 + len(DECODER_TOKENS)
"""The smallest vocabulary of a decoder: a token for each byte."""


LEAST_WORDS = 64


def texts_of(dataset: Dataset) -> Iterator[str]:
    """Every text of the rows, of whatever kind."""
    for example in dataset.examples:
        yield from _texts(example)


def _texts(example: Example) -> Iterator[str]:
    for turns in (example.messages, example.chosen, example.rejected):
        yield from (turn.content for turn in turns if turn.content)
    yield from (text for text in (example.target, *example.positives, *example.negatives) if text)


def train_decoder_tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    """A fast byte-level BPE tokenizer of at most ``vocabulary`` tokens (less where the texts have no more pairs that occur twice).

    Raises InputError when ``vocabulary`` does not hold all bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if vocabulary < LEAST:
        raise InputError(
            f"vocabulary must be at least {LEAST} for byte-level BPE: 256 bytes and {len(DECODER_TOKENS)} special tokens; got {vocabulary}"
        )
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=list(DECODER_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator(_some(texts), trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=END, eos_token=TURN_END, pad_token=PAD, clean_up_tokenization_spaces=False
    )
    made.chat_template = TEMPLATE
    return made


def train_encoder_tokenizer(texts: Sequence[str], vocabulary: int, *, lowercase: bool = True) -> Any:
    """A fast WordPiece tokenizer of at most ``vocabulary`` tokens, with ``[CLS]`` and ``[SEP]`` around every text.

    At most half of it are letters; where that is not all of them, the rarest become ``[UNK]``. Raises InputError when ``vocabulary`` is too small.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    if vocabulary < LEAST_WORDS:
        raise InputError(f"vocabulary must be at least {LEAST_WORDS} for WordPiece; got {vocabulary}")
    normalizer, cut = normalizers.BertNormalizer(lowercase=lowercase), pre_tokenizers.BertPreTokenizer()
    letters = _letters(texts, normalizer, cut, vocabulary // 2)
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer, trained.pre_tokenizer = normalizer, cut
    # The trainer numbers letters in an order of its own, which decides between pairs that are equally frequent; so they come with numbers.
    numbered = [*ENCODER_TOKENS, *letters]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary, min_frequency=2, special_tokens=numbered, limit_alphabet=1, show_progress=False
    )
    trained.train_from_iterator(texts, trainer)
    known = sorted(trained.get_vocab().items(), key=lambda entry: entry[1])
    raw = Tokenizer(models.WordPiece({token: number for number, (token, _) in enumerate(known)}, unk_token="[UNK]"))
    raw.normalizer, raw.pre_tokenizer, raw.decoder = normalizer, cut, decoders.WordPiece()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def digest_of(tokenizer: Any) -> str:
    """sha256 of the whole tokenizer: vocabulary, merges, how texts are cut."""
    return digest_text(tokenizer.backend_tokenizer.to_str())


def _some(texts: Iterable[str]) -> Iterator[str]:
    found = False
    for text in texts:
        found = found or bool(text.strip())
        yield text
    if not found:
        raise DataError("there is no text to train a tokenizer on")


def _letters(texts: Iterable[str], normalizer: Any, cut: Any, room: int) -> list[str]:
    """The most frequent letters, as they begin a word (``a``) and, where they do, go on in one (``##a``): at most ``room`` tokens, in a fixed order."""
    words: Counter[str] = Counter()
    for text in _some(texts):
        words.update(normalizer.normalize_str(text).split())
    counts: Counter[str] = Counter()
    inside: set[str] = set()
    for word, often in words.items():
        for part, _ in cut.pre_tokenize_str(word):
            inside.update(part[1:])
            for letter in part:
                counts[letter] += often
    kept: list[str] = []
    for letter in sorted(counts, key=lambda letter: (-counts[letter], letter)):
        forms = [letter, f"##{letter}"] if letter in inside else [letter]
        if len(kept) + len(forms) > room:
            break
        kept += forms
    return sorted(kept)
