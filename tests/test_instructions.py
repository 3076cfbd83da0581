"""What is promised of verifiable instructions: each of IFEval's 25 kinds, the loose variants, its published data."""

import json
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from edgestill.errors import UserError
from edgestill.evaluate.instruction_checks import sentences
from edgestill.evaluate.instructions import CHECKS, Scored, follows, loosely, score
from edgestill.evaluate.languages import LANGUAGES, candidates

DATA = Path(__file__).parents[2] / "shared" / "data" / "ifeval" / "input_data.jsonl"
AT_LEAST, LESS = "at least", "less than"

# Kind, options, replies that follow, replies that do not.
CASES: list[tuple[str, dict, list[str], list[str]]] = [
    ("keywords:existence", {"keywords": ["cat", "C++"]}, ["A Cat, in c++.", "concatenated C++"], ["cat", "C", "dog"]),
    (
        "keywords:frequency",
        {"keyword": "war", "frequency": 2, "relation": AT_LEAST},
        ["War and war", "WARWAR", "warm war."],
        ["war", "peace"],
    ),
    (
        "keywords:frequency",
        {"keyword": "war", "frequency": 2, "relation": LESS},
        ["war", "peace"],
        ["war war"],
    ),
    (
        "keywords:forbidden_words",
        {"forbidden_words": ["rock", "a.b"]},
        ["Rocks and rocky", "a-b", "acb"],
        ["ROCK!", "hard-rock", "in a.b"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "O", "let_frequency": 3, "let_relation": AT_LEAST},
        ["Ooo", "two doors"],
        ["door", "0000"],
    ),
    ("keywords:letter_frequency", {"letter": "#", "let_frequency": 2, "let_relation": LESS}, ["#one"], ["#one #two"]),
    ("language:response_language", {"language": "de"}, ["Das ist nicht mein Haus."], ["This is not it.", "Haus", "12"]),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": AT_LEAST},
        ["One. Two", "One! Two?", "One.\n\nTwo."],
        ["One, two.", "Heading\nOne"],
    ),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": LESS}, ["One."], ["One. Two."]),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["one\n***\ntwo", "one***two", "***\none\n***\ntwo\n***"],
        ["one", "one\n\ntwo", "one\n***\n\n***\ntwo", "one\n***\ntwo\n***\nthree"],
    ),
    (
        "length_constraints:number_words",
        {"num_words": 3, "relation": AT_LEAST},
        ["one two three", "well-known 7"],
        ["one, two"],
    ),
    ("length_constraints:number_words", {"num_words": 3, "relation": LESS}, ["one, -- two"], ["don't stop"]),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Elm"},
        ["one\n\nelm trees", 'one\n\n\n"Elm, said he', "one\n\nELM", "\n\none\n\nElm"],
        ["elm\n\none", "one\nelm", "one\n\nelms", "one\n\nelm\n\nthree", "elm", "one\n\n**elm** trees", "one\n\n..."],
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["[name], [address]", "[a][b][c]"],
        ["[name]", "[na\nme] [b]", "(name) (address)", "[[name]]"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["Bye.\nP.S. More", "p. s. more", "P.P.S. more"],
        ["PS more", "P.S more", "Bye."],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.P.S"},
        ["Bye.\n\nP.P.S. More", "P. P. S more", "p.p.s: more"],
        ["P.S. more", "PPS"],
    ),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* one\n* two", "- one\ntext\n  - two", "**Bold**\n* one\n- two"],
        ["* one", "* one\n* two\n* three", "1. one\n2. two", "one * two * three"],
    ),
    (
        "detectable_format:constrained_response",
        {},
        ["My answer is yes.", "Well: My answer is maybe."],
        ["My answer is yes", "my answer is no.", "Yes."],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*one* and *two*", "**one** and *two*", "**one** **two**"],
        [
            "*one*",
            "*one and\ntwo*",
            "** ** * *",
            "**one**",
            "****",
            "***one***",
            "*one\none* *two\ntwo*",
            "**one** and **",
        ],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        ["Section 1\none\nSection 2\ntwo", "Section1 Section2 Section3"],
        ["Section 1\none", "SECTION 1\none\nSECTION 2\ntwo", "Section A\nSection B"],
    ),
    (
        "detectable_format:json_format",
        {},
        ['{"a": [1]}', '```json\n{"a": 1}\n```', "```JSON\n[]\n```", "```\n[]```", "3"],
        ["{'a': 1}", 'Here: {"a": 1}', '{"a": 1} Bye', "```json\n```", "[" * 100_000],
    ),
    (
        "detectable_format:title",
        {},
        ["<<Joy>>\ntext", "text <<a poem>> text", "<<<x>>>"],
        ["<Joy>", "<< >>", "<<Joy\n>>", ">>Joy<<", "<<Joy"],
    ),
    (
        "combination:two_responses",
        {},
        ["one\n******\ntwo", "******one******two"],
        ["one", "one\n***\ntwo", "one\n******\none", "a******b******c", "a************b", "one******"],
    ),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Say hello. "},
        ["Say hello.", "say HELLO. Hello!", " \nSay hello.\n\nHello"],
        ["Hello!", "Sure: Say hello.", "Say hello"],
    ),
    (
        "startend:end_checker",
        {"end_phrase": "The end."},
        ["It is the END.\n", '"All over. The end."', "The end."],
        ["The end. Really.", "The end", "An end."],
    ),
    (
        "startend:quotation",
        {},
        ['"Hello."', ' "" ', '\n"a" and "b"\n'],
        ['"', "Hello", '"Hello".', "'Hello'", "“Hello”"],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": AT_LEAST},
        ["NASA, ESA", "I am OK.", "WELL-KNOWN FACT", "I'm ON"],
        ["NASA", "Nasa Esa", "1 2", "WELL-KNOWN"],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": LESS},
        ["NASA", "nasa"],
        ["NASA ESA"],
    ),
    (
        "change_case:english_capital",
        {},
        ["THIS IS IT!", "YES", "1. NEWS"],
        ["This IS IT", "DAS IST NICHT GUT", "123", "ΝΑΙ"],
    ),
    (
        "change_case:english_lowercase",
        {},
        ["this is it!", "yes", "emily's garden 2"],
        ["this is It", "das ist nicht gut", "123", "नहीं", "да"],
    ),
    ("punctuation:no_comma", {}, ["One; two.", "एक، दो"], ["One, two", ","]),
]

# Two sentences each, told from all the others.
TEXTS = {
    "ar": "ذهبنا إلى السوق في الصباح. كان هذا اليوم جميلا مع كل الأصدقاء.",
    "bg": "Днес ще отидем на пазара, за да купим хляб. Времето е хубаво и не вали.",
    "bn": "আজ আমরা বাজারে যাব। আবহাওয়া ভালো।",
    "de": "Heute gehen wir auf den Markt und kaufen Brot. Das Wetter ist schön.",
    "en": "We go to the market today and buy some bread. The weather is fine.",
    "es": "Hoy vamos al mercado y compramos pan para la cena. El tiempo es muy bueno.",
    "fa": "امروز به بازار می‌رویم و نان می‌خریم. هوا خوب است و باران نمی‌بارد.",
    "fi": "Tänään menemme torille ja ostamme leipää. Sää on hyvä, mutta tuulee.",
    "fr": "Aujourd'hui nous allons au marché pour acheter du pain. Il fait beau.",
    "gu": "આજે આપણે બજારમાં જઈશું. હવામાન સારું છે.",
    "hi": "आज हम बाज़ार जा रहे हैं और रोटी खरीदेंगे। मौसम अच्छा है।",
    "it": "Oggi andiamo al mercato e compriamo il pane per la cena. Il tempo è bello.",
    "kn": "ಇಂದು ನಾವು ಮಾರುಕಟ್ಟೆಗೆ ಹೋಗುತ್ತೇವೆ. ಹವಾಮಾನ ಚೆನ್ನಾಗಿದೆ.",
    "ko": "오늘 우리는 시장에 갑니다. 날씨가 좋습니다.",
    "mr": "आज आपण बाजारात जाणार आहोत आणि भाकरी विकत घेणार आहे. हवामान चांगले आहे.",
    "ne": "आज हामी बजार जान्छौं र रोटी किन्छौं। मौसम राम्रो छ।",
    "pa": "ਅੱਜ ਅਸੀਂ ਬਾਜ਼ਾਰ ਜਾਵਾਂਗੇ। ਮੌਸਮ ਚੰਗਾ ਹੈ।",
    "pt": "Hoje vamos ao mercado e compramos pão para o jantar. O tempo está bom e não chove.",
    "ru": "Сегодня мы идём на рынок, чтобы купить хлеб. Погода хорошая, и дождя нет.",
    "sw": "Leo tunaenda sokoni kwa ajili ya kununua mkate. Hali ya hewa ni nzuri sana.",
    "ta": "இன்று நாங்கள் சந்தைக்குப் போகிறோம். வானிலை நன்றாக உள்ளது.",
    "te": "ఈరోజు మేము మార్కెట్‌కు వెళ్తున్నాము. వాతావరణం బాగుంది.",
    "th": "วันนี้เราไปตลาด อากาศดีมาก",
    "ur": "آج ہم بازار جا رہے ہیں اور روٹی خریدیں گے۔ موسم اچھا ہے۔",
    "vi": "Hôm nay chúng tôi đi chợ để mua bánh mì cho bữa tối. Thời tiết rất đẹp.",
}

# Replies to prompts of the published data, by key: what follows them all, a change of it, and what that breaks.
ANSWERS: dict[int, tuple[str, tuple[str, str], int]] = {
    1107: (
        "Why did the rocket lose its job?\nIt got fired.\n******\nHow does the moon cut its hair?\nEclipse it.",
        ("Eclipse it.", "Eclipse it, of course."),
        0,
    ),
    1127: (
        "SECTION 1\nThe bell has rung without me.\nSECTION 2\nMy chair is cold.\nSECTION 3\nThe bus went by.\n"
        "SECTION 4\nSo tell me now:\nCan I get my money back for the classes I missed?",
        ("SECTION 4", "The last one"),
        0,
    ),
    1139: (
        'Write a funny haiku about moms, containing keywords "mom" and "mother" in your response.\n\n'
        "Mom hides the cookies\nMother nature calls her out\nCrumbs upon her chin",
        ("Write a funny", "Sure! Write a funny"),
        0,
    ),
    1262: (
        "<<The Weight of Wheels>>\nA heavier axle presses harder on the road. Its damage grows with the fourth power "
        "of the load, as Dr. Road would say. A lorry thus wears the road as thousands of cars do.",
        ("as thousands of cars do.", "as cars do. So. It is."),
        -1,
    ),
    1287: (
        "the river does not ask who is king.\n* john came with few words and a sword\n* he married maria, the young "
        "queen\n* the crown sat down on him as snow on a branch",
        ("* he married", "he married"),
        0,
    ),
    142: (
        '"Knock, knock. Who is there? A cat. A cat who? A category of words, as any morphologist would say."',
        ("Knock, knock", "Knock"),
        1,
    ),
    143: (
        "Three years are 36 months, and 36 times 6 inches are 216 inches, or 18 feet.\n***\n5 + 18 = 23 feet.\n\n"
        "P.P.S. Please do not feed it.",
        ("\n***\n", "\n\n"),
        0,
    ),
    2439: (
        "Punched tickets are grasped by the police at [address] too.\n\nThey grasp offences first.\n\n"
        "Then they grasp everything else that [name] left behind.",
        ("\n\nThen", "\nThen"),
        1,
    ),
    2724: (
        '"Adão e Eva viviam em um jardim onde não havia dor. Eles não sabiam o que era o mal, mas a serpente falou com '
        'Eva e tudo mudou para os dois."',
        ('"Adão', "Adão"),
        1,
    ),
    3195: (
        "Bianca nave va\nnel vento della notte\nil mare e la luna",
        ("Bianca nave va", "Bianca nave, va"),
        1,
    ),
    340: ("Because *trust is cheap* and money is not, and few are caught.", ("*trust is cheap*", "trust is cheap"), 0),
    3518: (
        '```json\n{"pros": ["You are compensated well"], "cons": ["Immigrants miss home"]}\n```',
        ('"cons"', "cons"),
        0,
    ),
    3669: (
        "आरव कभी नहीं बोला फिर भी सब उसे सुनते थे। वह कौन है? वह एक किताब का नाम है।",
        ("आरव कभी", "आरव, कभी"),
        0,
    ),
    3756: (
        "Pikachu is a Pokémon, and the Avengers are of another studio. My answer is no.",
        ("My answer is no.", "The answer is no."),
        0,
    ),
}


@pytest.fixture(scope="module")
def rows() -> dict[int, dict]:
    if not DATA.exists():
        pytest.skip("the shared copy of IFEval's prompts is not on this machine")
    return {row["key"]: row for row in map(json.loads, DATA.read_text(encoding="utf-8").splitlines())}


def test_every_kind_has_a_case() -> None:
    assert len(CHECKS) == 25
    assert {kind for kind, *_ in CASES} == set(CHECKS)


@pytest.mark.parametrize(
    ("kind", "options", "reply", "expected"),
    [(kind, options, reply, True) for kind, options, good, _ in CASES for reply in good]
    + [(kind, options, reply, False) for kind, options, _, bad in CASES for reply in bad],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_a_reply_follows_an_instruction_or_does_not(kind: str, options: dict, reply: str, expected: bool) -> None:
    assert follows(reply, kind, options) is expected


@pytest.mark.parametrize("reply", ["", " \n"])
def test_an_empty_reply_follows_nothing(reply: str) -> None:
    for kind, options, *_ in CASES:
        assert score(reply, [kind], [options]) == Scored(strict=(False,), loose=(False,))


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("...", 0),
        ("No end", 1),
        ("One. Two! Three? Four…", 4),
        ('He said: "Go." She went.', 2),
        ("**Bold.** Next.", 2),
        ("Mr. and Mrs. Bell met Dr. J. R. Hu at 3.5 p.m. today.", 1),
        ("1. One.\n2. Two.\n10. Ten.", 3),
        ("It was in 1999. Then it was over.", 2),
        ("Well... maybe. Well... Maybe.", 3),
        ("see example.com or v1.2 now", 1),
        ("यह एक है। यह दो है।", 2),
        ("यह एक है।यह दो है।", 2),
        ('"Mr. Bell" and (Dr. Hu).', 1),
        ("-- ! -- ?", 0),
    ],
)
def test_sentences_are_counted_by_their_ends(text: str, count: int) -> None:
    assert sentences(text) == count


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_text_is_in_its_own_language_alone(language: str) -> None:
    assert candidates(TEXTS[language]) == (language,)
    assert candidates(TEXTS[language].upper()) == (language,)
    following = [
        code for code in LANGUAGES if follows(TEXTS[language], "language:response_language", {"language": code})
    ]
    assert following == [language]


def test_a_few_foreign_words_do_not_change_a_language() -> None:
    assert candidates(TEXTS["ko"] + " SRE, indicator") == ("ko",)
    assert candidates("<<green whispers>>\ngulls glide over galway's grace") == ("en",)


def test_accents_count_however_they_are_encoded() -> None:
    assert candidates(unicodedata.normalize("NFD", "những")) == candidates("những") == ("vi",)


def test_texts_of_other_scripts_and_without_letters_are_in_no_known_language() -> None:
    assert candidates("Καλημέρα") == candidates("2 + 2") == candidates("") == ()


def test_loose_variants_leave_out_lines_and_asterisks() -> None:
    assert loosely("Sure!\n**one**\nBye *now*") == [
        "Sure!\n**one**\nBye *now*",
        "**one**\nBye *now*",
        "Sure!\n**one**",
        "**one**",
        "Sure!\none\nBye now",
        "one\nBye now",
        "Sure!\none",
        "one",
    ]
    assert loosely("one") == ["one"]
    assert loosely(" \n ") == []


def test_the_loose_measure_accepts_what_stands_around_an_answer() -> None:
    kinds = ["startend:quotation", "detectable_format:json_format", "punctuation:no_comma"]
    assert score('Sure, here it is:\n"An answer."\nBye, dear.', kinds, [{}] * 3) == Scored(
        strict=(False, False, False), loose=(True, True, True)
    )
    kinds = ["length_constraints:nth_paragraph_first_word", "detectable_format:number_highlighted_sections"]
    options = [{"num_paragraphs": 1, "nth_paragraph": 1, "first_word": "elm"}, {"num_highlights": 1}]
    assert score("**Elm** trees", kinds, options) == Scored(strict=(False, True), loose=(True, True))


def test_options_that_are_none_are_ignored() -> None:
    assert follows("one two", "length_constraints:number_words", {"num_words": 2, "relation": AT_LEAST, "letter": None})
    assert follows("one two", "punctuation:no_comma", {"keywords": None})


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("keywords:existance", {}, "no kind of instruction 'keywords:existance'; did you mean 'keywords:existence'"),
        ("startend:end_checker", {}, "takes end_phrase; 'end_phrase' is missing"),
        ("startend:end_checker", {"end_phrase": None}, "'end_phrase' is missing"),
        ("punctuation:no_comma", {"letter": "a"}, "takes no options; 'letter' came"),
        ("length_constraints:number_words", {"num_word": 2}, "'num_word' came; did you mean 'num_words'"),
        (
            "length_constraints:number_words",
            {"num_words": 2, "relation": "at most"},
            "relation is 'at least' or 'less than'; 'at most' came",
        ),
        (
            "length_constraints:number_words",
            {"num_words": "2", "relation": LESS},
            "num_words is a whole number from 1; '2' came",
        ),
        ("detectable_format:number_bullet_lists", {"num_bullets": 0}, "num_bullets is a whole number from 1; 0 came"),
        ("keywords:existence", {"keywords": "cat"}, "keywords is a list of texts; 'cat' came"),
        (
            "keywords:letter_frequency",
            {"letter": "ab", "let_frequency": 1, "let_relation": LESS},
            "counts one character",
        ),
        ("language:response_language", {"language": "ja"}, "knows ar, bg, .*'ja' came"),
    ],
)
@pytest.mark.parametrize("reply", ["A reply", ""])
def test_a_wrong_instruction_is_refused_in_one_line(kind: str, options: dict, said: str, reply: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        score(reply, [kind], [options])
    assert "\n" not in str(refused.value)


def test_each_instruction_needs_its_options() -> None:
    with pytest.raises(UserError, match="1 and 2 came"):
        score("one", ["punctuation:no_comma"], [{}, {}])


def test_every_published_prompt_is_scored(rows: dict[int, dict]) -> None:
    assert len(rows) == 541
    assert {kind for row in rows.values() for kind in row["instruction_id_list"]} == set(CHECKS)
    everything = {name: None for row in rows.values() for options in row["kwargs"] for name in options}
    for reply in ("Yes.", "*\n" * 40, '```json\n{"a": 1}', "नमस्ते [a] <<b>> ***\n\nP.S. ******\n\n\n", ""):
        for row in rows.values():
            found = score(reply, row["instruction_id_list"], row["kwargs"])
            assert len(found.strict) == len(found.loose) == len(row["kwargs"])
            assert all(loose >= strict for strict, loose in zip(found.strict, found.loose, strict=True))
            full = [everything | options for options in row["kwargs"]]  # as some copies of the data have them
            assert score(reply, row["instruction_id_list"], full) == found


@pytest.mark.parametrize("key", ANSWERS)
def test_published_prompts_answered_by_hand(rows: dict[int, dict], key: int) -> None:
    row, (reply, (old, new), broken) = rows[key], ANSWERS[key]
    instructions, options = row["instruction_id_list"], row["kwargs"]
    assert all(score(reply, instructions, options).strict)
    assert reply.count(old) == 1
    spoiled = list(score(reply.replace(old, new), instructions, options).strict)
    expected = [True] * len(instructions)
    expected[broken] = False
    assert spoiled == expected


def test_it_is_read_without_torch() -> None:
    code = "import sys, edgestill.evaluate.instructions; print({'torch', 'numpy', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
