"""The 25 instructions of IFEval that a program can check (Zhou et al., 2023, table 1), by their published ids.

Each check takes the answer and the instruction's own arguments and says whether it was followed. A missing argument raises KeyError.
Counts and comparisons are those of the published evaluation, with two exceptions that need no downloaded data: sentences are cut by
Punkt with a fixed list of abbreviations, and languages are told by py3langid.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from luthier.scorers._words import sentences

Arguments = Mapping[str, Any]
Check = Callable[[str, Arguments], bool]

_WORD = re.compile(r"\w+")
_LONGEST_FOR_LANGUAGE = 20_000


def _compare(count: int, relation: str, threshold: float) -> bool:
    """``less than`` or ``at least``, the only two relations there are."""
    if relation == "less than":
        return count < threshold
    if relation == "at least":
        return count >= threshold
    raise KeyError(f"relation must be 'less than' or 'at least'; got {relation!r}")


def _occurrences(word: str, text: str) -> int:
    return len(re.findall(re.escape(word.strip()), text, re.IGNORECASE))


def keywords_existence(text: str, given: Arguments) -> bool:
    """Every keyword occurs."""
    return all(_occurrences(word, text) > 0 for word in given["keywords"])


def keywords_frequency(text: str, given: Arguments) -> bool:
    """One keyword occurs so often."""
    return _compare(_occurrences(given["keyword"], text), given["relation"], given["frequency"])


def keywords_forbidden(text: str, given: Arguments) -> bool:
    """None of the words occurs as a word."""
    return not any(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in given["forbidden_words"])


def letter_frequency(text: str, given: Arguments) -> bool:
    """One letter, of either case, occurs so often."""
    return _compare(text.lower().count(given["letter"].strip().lower()), given["let_relation"], given["let_frequency"])


def language_of(text: str) -> str:
    """ISO 639-1 code; empty when there are no letters to tell by."""
    import py3langid

    if not any(c.isalpha() for c in text):
        return ""
    return str(py3langid.classify(text[:_LONGEST_FOR_LANGUAGE].lower())[0])


def response_language(text: str, given: Arguments) -> bool:
    """The answer is in that language; one without letters passes, as published."""
    found = language_of(text)
    return not found or found == str(given["language"]).lower().split("-")[0]


def number_sentences(text: str, given: Arguments) -> bool:
    """So many sentences."""
    return _compare(len(sentences(text)), given["relation"], given["num_sentences"])


def number_words(text: str, given: Arguments) -> bool:
    """So many words (runs of letters, digits and underscores)."""
    return _compare(len(_WORD.findall(text)), given["relation"], given["num_words"])


def number_paragraphs(text: str, given: Arguments) -> bool:
    """So many paragraphs parted by ``***``, none of them empty but for the ends."""
    parts = re.split(r"\s?\*\*\*\s?", text)
    inner = parts[1:-1]
    if any(not part.strip() for part in inner):
        return False
    return sum(bool(part.strip()) for part in parts) == int(given["num_paragraphs"])


def nth_paragraph_first_word(text: str, given: Arguments) -> bool:
    """So many paragraphs parted by an empty line, and the n-th begins with that word."""
    parts = text.split("\n\n")
    count, place = sum(bool(part.strip()) for part in parts), int(given["nth_paragraph"])
    if not 1 <= place <= count or not parts[place - 1].strip():
        return False
    first = parts[place - 1].split()[0].lstrip("'").lstrip('"')
    word = re.split(r"[.,?!'\"]", first, maxsplit=1)[0].lower()
    return count == int(given["num_paragraphs"]) and word == str(given["first_word"]).lower()


def number_placeholders(text: str, given: Arguments) -> bool:
    """At least so many ``[placeholders]``."""
    return len(re.findall(r"\[[^\]\[\n]*\]", text)) >= int(given["num_placeholders"])


def postscript(text: str, given: Arguments) -> bool:
    """There is a postscript, begun by the marker."""
    marker = given["postscript_marker"].strip()
    known = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return re.search(known.get(marker, re.escape(marker.lower())), text.lower()) is not None


def number_bullet_lists(text: str, given: Arguments) -> bool:
    """Exactly so many lines that begin with ``*`` or ``-``. As published, a lone ``*`` is one bullet together with the line after it."""
    lines = [line.lstrip() for line in text.split("\n")]
    count = sum(line.startswith("-") for line in lines)
    place = 0
    while place < len(lines):
        line = lines[place]
        lone = line == "*" and place + 1 < len(lines)
        count += lone or (line[:1] == "*" and line[1:2] not in ("", "*"))
        place += 2 if lone else 1
    return count == int(given["num_bullets"])


def constrained_response(text: str, given: Arguments) -> bool:
    """One of the three fixed answers occurs."""
    return any(f"My answer is {word}." in text for word in ("yes", "no", "maybe"))


def number_highlighted_sections(text: str, given: Arguments) -> bool:
    """At least so many ``*highlighted*`` or ``**highlighted**`` parts."""
    single = [part for part in re.findall(r"\*[^\n*]*\*", text) if part.strip("*").strip()]
    double = [part for part in re.findall(r"\*\*[^\n*]*\*\*", text) if part[2:-2].strip()]
    return len(single) + len(double) >= int(given["num_highlights"])


def multiple_sections(text: str, given: Arguments) -> bool:
    """At least so many sections, each begun by the marker and a number."""
    marker = re.escape(given["section_spliter"].strip())
    return len(re.findall(rf"{marker}\s?\d+", text)) >= int(given["num_sections"])


def json_format(text: str, given: Arguments) -> bool:
    """The whole answer is JSON, in a fence or not."""
    inner = re.sub(r"^```(?:json|Json|JSON)?", "", text.strip()).removesuffix("```").strip()
    try:
        json.loads(inner)
    except (ValueError, RecursionError):
        return False
    return True


def title(text: str, given: Arguments) -> bool:
    """There is a ``<<title>>`` on one line."""
    for line in text.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        if 0 <= start < end and line[start:end].lstrip("<").rstrip(">").strip():
            return True
    return False


def two_responses(text: str, given: Arguments) -> bool:
    """Two different answers, parted by ``******``."""
    parts = text.split("******")
    if any(not part.strip() for part in parts[1:-1]):
        return False
    answers = [part.strip() for part in parts if part.strip()]
    return len(answers) == 2 and answers[0] != answers[1]


def repeat_prompt(text: str, given: Arguments) -> bool:
    """It begins by repeating the request."""
    return text.strip().lower().startswith(given["prompt_to_repeat"].strip().lower())


def end_checker(text: str, given: Arguments) -> bool:
    """It ends with the phrase; quotation marks around the answer do not matter."""
    return text.strip().strip('"').lower().endswith(given["end_phrase"].strip().lower())


def quotation(text: str, given: Arguments) -> bool:
    """The whole answer stands in double quotation marks."""
    text = text.strip()
    return len(text) > 1 and text[0] == '"' and text[-1] == '"'


def capital_word_frequency(text: str, given: Arguments) -> bool:
    """So many words in capitals (a word with hyphens is one)."""
    from nltk.tokenize import NLTKWordTokenizer

    cut = NLTKWordTokenizer()
    count = sum(word.isupper() for sentence in sentences(text) for word in cut.tokenize(sentence))
    return _compare(count, given["capital_relation"], given["capital_frequency"])


def english_capital(text: str, given: Arguments) -> bool:
    """English, in capitals only."""
    return text.isupper() and language_of(text) == "en"


def english_lowercase(text: str, given: Arguments) -> bool:
    """English, without a capital."""
    return text.islower() and language_of(text) == "en"


def no_comma(text: str, given: Arguments) -> bool:
    """No comma at all."""
    return "," not in text


CHECKS: Mapping[str, Check] = {
    "keywords:existence": keywords_existence,
    "keywords:frequency": keywords_frequency,
    "keywords:forbidden_words": keywords_forbidden,
    "keywords:letter_frequency": letter_frequency,
    "language:response_language": response_language,
    "length_constraints:number_sentences": number_sentences,
    "length_constraints:number_paragraphs": number_paragraphs,
    "length_constraints:number_words": number_words,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "detectable_content:number_placeholders": number_placeholders,
    "detectable_content:postscript": postscript,
    "detectable_format:number_bullet_lists": number_bullet_lists,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:number_highlighted_sections": number_highlighted_sections,
    "detectable_format:multiple_sections": multiple_sections,
    "detectable_format:json_format": json_format,
    "detectable_format:title": title,
    "combination:two_responses": two_responses,
    "combination:repeat_prompt": repeat_prompt,
    "startend:end_checker": end_checker,
    "startend:quotation": quotation,
    "change_case:capital_word_frequency": capital_word_frequency,
    "change_case:english_capital": english_capital,
    "change_case:english_lowercase": english_lowercase,
    "punctuation:no_comma": no_comma,
}


def followed(name: str, text: str, given: Arguments, *, loose: bool) -> bool:
    """Whether the answer follows one instruction; an empty answer follows none.

    ``loose`` also accepts it without its first line, its last, both, and without asterisks, so that a polite opening or markdown does not
    count against it. Raises KeyError for an unknown id or a missing argument.
    """
    check = CHECKS[name]
    texts = _variants(text) if loose else (text,)
    return any(bool(one.strip()) and check(one, given) for one in texts)


def _variants(text: str) -> tuple[str, ...]:
    lines = text.split("\n")
    cut = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return tuple(dict.fromkeys([*cut, *(one.replace("*", "") for one in cut)]))
