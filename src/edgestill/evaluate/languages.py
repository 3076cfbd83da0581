"""Which language a text is in: by its script, and among the languages of one script by their commonest words."""

import unicodedata
from collections import Counter

# By the first word of their letters' names in Unicode.
SCRIPTS = {
    "ARABIC": ("ar", "fa", "ur"),
    "BENGALI": ("bn",),
    "CYRILLIC": ("bg", "ru"),
    "DEVANAGARI": ("hi", "mr", "ne"),
    "GUJARATI": ("gu",),
    "GURMUKHI": ("pa",),
    "HANGUL": ("ko",),
    "KANNADA": ("kn",),
    "LATIN": ("de", "en", "es", "fi", "fr", "it", "pt", "sw", "vi"),
    "TAMIL": ("ta",),
    "TELUGU": ("te",),
    "THAI": ("th",),
}
LANGUAGES = tuple(sorted(code for codes in SCRIPTS.values() for code in codes))

_LISTS = {
    "ar": "في من على إلى أن التي الذي هذا هذه ما لا و مع عن كان كانت هو هي لم لن قد كل بعد بين ذلك أو ثم كما أنا أنت"
    " نحن هم إن حيث يمكن غير عند حتى إذا لك لي به بها له لها عليه فيه أي",
    "fa": "و در به از که این را با است برای آن یک های می خود تا بر هم شود شده بود شد ما من او یا اما هر نیز اگر باید"
    " دارد کرد کند هستند چه همه نمی ها شما پس",
    "ur": "کے میں کی ہے اور سے کا کو اس پر نے ہیں یہ کہ ایک بھی تھا نہیں ہو کیا جو تو کر لیے ہم وہ آپ تھے تھی ہی اپنے"
    " ان جس گیا کچھ رہے رہا ساتھ مجھے یا",
    "bg": "и на да се от за в не е са че с по този тази това като които който но ще или до може си аз ти ние вие те"
    " той тя към със при още има беше само какво как ако след така го му ми много във",
    "ru": "и в не на что я он с как это по но из у за то все она так его от к же вы бы мы для о был быть или если они"
    " только может также есть при мне меня ещё уже когда чтобы который которые их ее её до нет",
    "hi": "के में की है और से का को ने पर हैं यह कि एक भी था नहीं हो इस जो तो कर लिए हम वह आप थे थी ही अपने उन जिस गया"
    " कुछ साथ या मैं ये हूँ कोई बहुत होता होती",
    "mr": "आहे आणि च्या या हे ही तो ते ती मी आहेत नाही होते होता होती एक करून साठी मध्ये आपण आपल्या त्यांच्या त्या तर"
    " पण किंवा काही असे जे की म्हणून सर्व खूप हा माझ्या तुम्ही त्याच्या आम्ही मला जर तुमच्या",
    "ne": "छ र को मा का लाई ले हो पनि यो छन् थियो गर्न गर्ने भएको एक तर म हामी तपाईं त्यो हुन्छ हुन् गरेको छैन भने"
    " लागि यस साथै उनी आफ्नो वा गरी गर्छ धेरै कि मेरो हाम्रो सबै अनि के पर्छ रहेको",
    "de": "der die das und ist nicht ein eine einen einem einer zu in den dem des mit auf für von sich ich du wir sie"
    " es auch wie als an im am bei aus nach wenn aber oder kann sind hat haben wird werden war nur noch so dass"
    " um ihr ihre",
    "en": "the of and to in is that it for was on are as with be this have has from or by not but at an you your my we"
    " our they their he his she her i a will can would what when which if so all do there about more who how s t"
    " m ll ve re d no yes up out just like get go me us some could them than then now its been were had did am"
    " may should must very here why where too into only over any these those please most make",
    "es": "el la los las de que y en un una es no se por con para su al lo como más pero sus le ha o si sobre este ya"
    " cuando todo esta ser son también fue muy hasta desde del mi tu yo me",
    "fi": "ja on ei se että oli hän mutta kun niin kuin myös ovat olla voi jos tai sekä mitä joka jotka ne minä sinä"
    " me he tämä sen siitä vain nyt sitten hyvin kanssa ole en olen koska",
    "fr": "le la les de des et en un une est que qui dans pour pas sur au aux avec ce cette il elle je vous nous ne se"
    " sont plus par mais ou du son sa ses leur être a été comme si tout votre l d c qu j me",
    "it": "il lo la i gli le di che e è un una in non per con si da del della dei delle al alla sono come più ma anche"
    " questo questa nel nella ha ho se o su tra ci mi ti suo sua loro essere l dell quando molto all me",
    "pt": "o a os as de que e é do da dos das em no na nos nas um uma não para por com se mais como mas ao à ou são"
    " foi seu sua ele ela eu você isso este esta também já muito quando ser há está pelo pela meu me",
    "sw": "na ya wa kwa ni katika la za cha kuwa hii huu hiyo yake yao watu au lakini kama pia hivyo ili kila sana"
    " mimi wewe yeye sisi hakuna kutoka ambao ambayo si wake wote yangu yako baada kabla hadi bila vya",
    "vi": "và của là có không được trong một cho các những này với người để đã khi cũng như từ nhiều tôi bạn ra vào về"
    " đến hơn còn trên phải sẽ rất thì mà nó chúng ta hay đó",
}
WORDS = {code: frozenset(words.split()) for code, words in _LISTS.items()}


def candidates(text: str) -> tuple[str, ...]:
    """The languages that a text may be in, of those in `LANGUAGES`: one where it can be told, none for another script.

    The script of most letters decides; among its languages, that whose commonest words make up most of the text. Where
    these are equally many, as in a text without any, all of them may be.

    >>> candidates("Das ist nicht der Weg."), candidates("తెలుగు"), candidates("Ελληνικά")
    (('de',), ('te',), ())
    """
    scripts: Counter[str] = Counter()
    for character, count in Counter(text).items():
        if character.isalpha():
            scripts[unicodedata.name(character, "").partition(" ")[0]] += count
    codes = SCRIPTS.get(scripts.most_common(1)[0][0], ()) if scripts else ()
    if len(codes) < 2:
        return codes
    words = _words(text)
    found = {code: sum(word in WORDS[code] for word in words) for code in codes}
    return tuple(code for code in codes if found[code] == max(found.values()))


def _words(text: str) -> list[str]:
    """In lower case. A vowel sign is a part of its word, which `\\w` in a regular expression does not know."""
    composed = unicodedata.normalize("NFC", text).lower()
    return "".join(c if c.isalpha() or unicodedata.category(c)[0] == "M" else " " for c in composed).split()
