"""Whether a reply follows an instruction, one function a kind: (reply, its options) -> bool.

Each says what the instruction asks for, and in a line where the verdict may differ from the public implementation's.
"""

import json
import re
from typing import Literal

from edgestill.errors import UserError, closest
from edgestill.evaluate.languages import LANGUAGES, candidates

Relation = Literal["at least", "less than"]

_ENDS = tuple(".!?…。！？।؟۔")
_CLOSING = """"'”’»)]*_"""
_NUMBER = re.compile(r"\W*\d+\.")
_TITLES = "mr|mrs|ms|dr|prof|st|rev|gen|sen|gov|capt|lt|col|sgt|mt|vs|cf"
_INITIALS_OR_TITLE = re.compile(rf"""["'(\[“‘*]*(?:(?:[a-z]\.)+|(?:{_TITLES})\.)""", re.IGNORECASE)


def _compare(count: int, relation: Relation, limit: int) -> bool:
    return count >= limit if relation == "at least" else count < limit


def keywords_existence(reply: str, keywords: list[str]) -> bool:
    """Each keyword occurs, in whatever case, also inside a word."""
    return all(keyword.lower() in reply.lower() for keyword in keywords)


def keyword_frequency(reply: str, keyword: str, frequency: int, relation: Relation) -> bool:
    """A keyword occurs so often, in whatever case, also inside words."""
    return _compare(reply.lower().count(keyword.strip().lower()), relation, frequency)


def forbidden_words(reply: str, forbidden_words: list[str]) -> bool:
    """None of the words occurs as a whole word, in whatever case."""
    return not any(re.search(rf"\b{re.escape(word)}\b", reply, re.IGNORECASE) for word in forbidden_words)


def letter_frequency(reply: str, letter: str, let_frequency: int, let_relation: Relation) -> bool:
    """A character, any and not only a letter, occurs so often in whatever case."""
    if len(letter) != 1:
        raise UserError(f"keywords:letter_frequency counts one character; letter={letter!r} came")
    return _compare(reply.lower().count(letter.lower()), let_relation, let_frequency)


def response_language(reply: str, language: str) -> bool:
    """The reply is in a language (ISO 639-1). Decided by script and common words, not by langdetect: a reply too short
    to tell does not follow."""
    if language not in LANGUAGES:
        raise UserError(
            f"language:response_language knows {', '.join(LANGUAGES)}; {language!r} came{closest(language, LANGUAGES)}"
        )
    return candidates(reply) == (language,)


def sentences(text: str) -> int:
    """How many sentences a text has.

    One ends at `.`, `!`, `?` or `…` before white space, not at the full stop of an item's number, of an initial or of
    a title (Dr.), and at three dots only before a capital. What has no such end, a heading or a line of a poem, belongs
    to the next.

    >>> sentences("1. Ask Dr. Lee. Why?\\n2. Well... it is 3.5 km"), sentences("One. Two")
    (3, 2)
    """
    lines = [re.sub("([。！？।؟۔])", r"\1 ", line).split() for line in text.split("\n")]  # no space follows these
    words = [(word, place == 0) for line in lines for place, word in enumerate(line)]
    count, begun = 0, False
    for (word, first), (following, _) in zip(words, [*words[1:], ("", True)], strict=False):
        begun = begun or re.search(r"\w", word) is not None
        if begun and _is_end(word.rstrip(_CLOSING), first, following):
            count, begun = count + 1, False
    return count + begun


def _is_end(word: str, first: bool, following: str) -> bool:
    """Whether a word, perhaps the first of its line, ends a sentence before the one that follows."""
    if not word.endswith(_ENDS) or (first and _NUMBER.fullmatch(word)) or _INITIALS_OR_TITLE.fullmatch(word):
        return False
    return not (word.endswith(("...", "…")) and following[:1].islower())


def number_sentences(reply: str, num_sentences: int, relation: Relation) -> bool:
    """So many `sentences`. By this rule, not by NLTK's Punkt, which counts an item's number as a sentence."""
    return _compare(sentences(reply), relation, num_sentences)


def number_words(reply: str, num_words: int, relation: Relation) -> bool:
    """So many words: runs of letters and digits. "don't" and "well-known" are two each."""
    return _compare(len(re.findall(r"\w+", reply)), relation, num_words)


def _parts(reply: str, divider: str) -> list[str]:
    """What stands between dividers, without an empty first or last part; nothing where another one is empty."""
    parts = [part.strip() for part in reply.split(divider)]
    parts = parts[not parts[0] : len(parts) - (not parts[-1])]
    return parts if all(parts) else []


def number_paragraphs(reply: str, num_paragraphs: int) -> bool:
    """Exactly so many paragraphs, with `***` between them; it may also stand before the first and after the last."""
    return len(_parts(reply, "***")) == num_paragraphs


def nth_paragraph_first_word(reply: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Exactly so many paragraphs, with an empty line between them, and one (from 1) begins with a word, in whatever
    case. Empty paragraphs are not counted; the public implementation leaves them out of the number alone."""
    paragraphs = [part.strip() for part in reply.split("\n\n") if part.strip()]
    if len(paragraphs) != num_paragraphs or nth_paragraph > num_paragraphs:
        return False
    word = re.match(r"""['"]*([^\s.,?!'"]*)""", paragraphs[nth_paragraph - 1])
    return word is not None and word[1].lower() == first_word.lower()


def number_placeholders(reply: str, num_placeholders: int) -> bool:
    """At least so many placeholders in square brackets, each on one line: `[address]`."""
    return len(re.findall(r"\[[^\[\]\n]*\]", reply)) >= num_placeholders


def postscript(reply: str, postscript_marker: str) -> bool:
    """The marker (P.S. or P.P.S) occurs, in whatever case, perhaps with spaces in it. Where is not asked."""
    letters = [re.escape(part) for part in postscript_marker.strip().split(".")]
    return re.search(r"\.\s?".join(letters), reply, re.IGNORECASE) is not None


def number_bullet_lists(reply: str, num_bullets: int) -> bool:
    """Exactly so many lines that begin with `*`, but not `**`, or with `-`: a line of dashes is one too."""
    lines = [line.strip() for line in reply.split("\n")]
    return sum(line[:1] in ("*", "-") and line[:2] != "**" for line in lines) == num_bullets


def constrained_response(reply: str) -> bool:
    """One of the three answers occurs, as it is written."""
    return any(f"My answer is {answer}." in reply for answer in ("yes", "no", "maybe"))


def number_highlighted_sections(reply: str, num_highlights: int) -> bool:
    """At least so many `*highlighted*` or `**highlighted**` parts, each on one line. `***One***` is one; the public
    implementation counts two."""
    marked = re.findall(r"\*\*([^*\n]+)\*\*|\*([^*\n]+)\*", reply)
    return sum(bool((double or single).strip()) for double, single in marked) >= num_highlights


def multiple_sections(reply: str, section_spliter: str, num_sections: int) -> bool:
    """At least so many marks with a number, as in `Section 1`. (The data spells the option so.)"""
    return len(re.findall(rf"{re.escape(section_spliter.strip())}\s?\d+", reply)) >= num_sections


def json_format(reply: str) -> bool:
    """The whole reply is JSON, perhaps in a fence of Markdown."""
    body = re.sub(r"^```(?:json)?|```$", "", reply.strip(), flags=re.IGNORECASE)
    try:
        json.loads(body)
    except (ValueError, RecursionError):  # the second by thousands of brackets, as a small model may write
        return False
    return True


def title(reply: str) -> bool:
    """Some line has a `<<title>>`."""
    lines = [line[line.find("<<") : line.rfind(">>") + 2] for line in reply.split("\n") if "<<" in line]
    return any(line.lstrip("<").rstrip(">").strip() for line in lines)


def two_responses(reply: str) -> bool:
    """Exactly two replies, not the same, with `******` between them."""
    parts = _parts(reply, "******")
    return len(parts) == 2 and parts[0] != parts[1]


def repeat_prompt(reply: str, prompt_to_repeat: str) -> bool:
    """The reply begins with the prompt, in whatever case."""
    return reply.strip().lower().startswith(prompt_to_repeat.strip().lower())


def end_checker(reply: str, end_phrase: str) -> bool:
    """The reply ends with a phrase, in whatever case; a quotation mark may follow."""
    return reply.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def quotation(reply: str) -> bool:
    """The whole reply stands between double quotation marks, straight ones."""
    bare = reply.strip()
    return len(bare) > 1 and bare[0] == bare[-1] == '"'


def capital_word_frequency(reply: str, capital_frequency: int, capital_relation: Relation) -> bool:
    """So many words in capitals. A word ends at white space or an apostrophe (I'm has the word I), a comma, a colon or
    a semicolon, which comes near NLTK's tokenizer."""
    words = re.findall(r"[^\s'’,:;]+", reply)
    return _compare(sum(word.isupper() for word in words), capital_relation, capital_frequency)


def _english(reply: str) -> bool:
    """Nothing says that it is another language: a headline has no common words."""
    return "en" in candidates(reply)


def english_capital(reply: str) -> bool:
    """English without a small letter. The language is found without regard to case, which langdetect is not."""
    return reply.isupper() and _english(reply)


def english_lowercase(reply: str) -> bool:
    """English without a capital."""
    return reply.islower() and _english(reply)


def no_comma(reply: str) -> bool:
    """Not one comma."""
    return "," not in reply
