"""Words that the fake engine draws, and the numbers that it says of them. All of it follows from hashes."""

from __future__ import annotations

import hashlib
import math
from collections import Counter

from luthier.core.engine import Sampling, TokenLogprob
from luthier.core.message import Prompt

_WORDS = (
    "the a this that it we they can will may should never often always please check open send wait return order parcel "
    "lesson account payment answer question number first second today tomorrow again before after because and or with"
)
WORDS = tuple(_WORDS.split())
_LOGPROB = -0.5
_FAVOUR = 3.0  # logit of the word that is drawn when nothing speaks against it; the others have 0 to 2


def hashed(*parts: str) -> int:
    """A number below 2**64."""
    digest = hashlib.blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def word_id(word: str) -> int:
    """The token id of a word."""
    return hashed("token", word) >> 33


_IDS = {word: word_id(word) for word in WORDS}


def render(prompt: Prompt) -> str:
    """A prompt as text; its words are the prompt's tokens."""
    if isinstance(prompt, str):
        return prompt
    lines = []
    for turn in prompt:
        extra = [f"{call.name} {call.arguments}" for call in turn.tool_calls] + [image.url for image in turn.images]
        lines.append(" ".join([f"{turn.role}: {turn.content}", *extra]))
    return "\n".join(lines)


def seed_of(prompt: Prompt, sampling: Sampling) -> int:
    """What an answer is drawn with: the prompt, and what ``sampling`` says of the draw."""
    draw = "greedy"
    if sampling.temperature > 0:
        draw = repr((sampling.seed or 0, sampling.temperature, sampling.top_p, sampling.top_k))
        draw += repr(sampling.min_p) if sampling.min_p else ""
    if sampling.repetition_penalty != 1.0:
        draw += repr(sampling.repetition_penalty)
    return hashed(render(prompt), draw)


def draw_words(seed: int, sampling: Sampling) -> list[str]:
    """3 to 12 words. Bias and penalties are added to the logits that each place has for each word."""
    count = 3 + seed % 10
    bias = dict(sampling.logit_bias)
    adjusted = bias or sampling.presence_penalty or sampling.frequency_penalty
    words: list[str] = []
    said: Counter[str] = Counter()
    for place in range(count):
        word = WORDS[hashed(str(seed), str(place)) % len(WORDS)]
        if adjusted:
            favoured = word

            def logit(each: str, place: int = place, favoured: str = favoured) -> float:
                own = _FAVOUR if each == favoured else hashed(str(seed), str(place), each) / 2**63
                penalty = sampling.presence_penalty * (said[each] > 0) + sampling.frequency_penalty * said[each]
                return own + bias.get(_IDS[each], 0.0) - penalty

            word = max(WORDS, key=logit)
        said[word] += 1
        words.append(word)
    return words


def banned(text: str, sampling: Sampling) -> bool:
    """Whether ``text`` has a word whose bias is -100."""
    out = {token for token, bias in sampling.logit_bias if bias <= -100.0}
    return bool(out) and any(word_id(word) in out for word in text.split())


def pieces(text: str) -> list[str]:
    """Words, each with the white space before it, the last with what follows too; joined they are ``text``."""
    out, at = [], 0
    for word in text.split():
        end = text.index(word, at) + len(word)
        out.append(text[at:end])
        at = end
    if text[at:]:
        out[-1:] = ["".join([*out[-1:], text[at:]])]
    return out


def token_logprob(piece: str, alternatives: int) -> TokenLogprob:
    """The piece with probability 0.61; ``alternatives`` likeliest, itself among them, share what is left by halves."""
    top = [(piece.encode(), _LOGPROB)]
    rest = 1.0 - math.exp(_LOGPROB)
    space = piece[: len(piece) - len(piece.lstrip())]
    others = (word for word in WORDS if word != piece.strip())
    for number, word in zip(range(1, alternatives), others, strict=False):
        top.append(((space + word).encode(), math.log(rest / 2**number)))
    return TokenLogprob(piece.encode(), _LOGPROB, tuple(top[:alternatives]))
