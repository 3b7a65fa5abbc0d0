"""Tells in which encoding text in Latin letters is, by how often each language writes each letter beyond ASCII."""

import math
import re
from collections import Counter, defaultdict
from typing import Literal, TypeAlias

WINDOWS = "cp1252"
WESTERN = (
    "ä.6 ö.3 ü.7 ß.3",
    "é1.9 è.3 à.5 ê.2 ç.1 â.05 î.05 ô.02 û.06 ù.06 ë.01 ï.01 œ.02",
    "ó.8 í.7 á.5 é.4 ñ.3 ú.2 ü.01",
    "ã.8 ç.5 á.5 é.5 í.3 ó.3 ê.4 õ.2 ú.1 à.1 â.1 ô.1",
    "à.6 è.3 é.1 ì.03 ò.1 ù.2",
    "ä1.8 å1.3 ö1.3 é.05",
    "æ.9 ø.9 å1.2 é.05",
    "ä3.6 ö.4 å.01",
    "á1.8 ð4.4 é.6 í1.6 ó1 ú.6 ý.2 þ1.5 æ.9 ö.8",
    "õ.9 ä1.4 ö.2 ü.6 š.01 ž.01",
    "é.1 ë.1 ï.05 ö.02 ü.02 è.02",
)
CENTRAL = (
    "ą1 ć.4 ę1.1 ł1.8 ń.2 ó.85 ś.7 ź.06 ż.8",
    "á2.2 č1 ď.02 é1.3 ě1.6 í3.3 ň.08 ó.03 ř1.2 š.8 ť.04 ú.1 ů.7 ý1 ž1",
    "á1.9 ä.1 č1 ď.2 é.9 í1.1 ľ.4 ĺ.01 ň.2 ó.1 ô.2 ŕ.01 š.8 ť.6 ú1 ý1.1 ž.9",
    "á3.4 é3.4 í.5 ó1 ö.8 ő1 ú.1 ü.3 ű.2",
    "ă2.4 â.5 î1 ş1.2 ţ1",
    "č1.1 ć.6 đ.3 š1 ž.6",
)
TURKISH = ("ç1.2 ğ1.1 \u01315.1 ö.8 ş1.8 ü1.9 İ.3 â.02 î.01",)
BALTIC = ("ą.6 č.4 ę.2 ė1.7 į.6 š1.2 ų1.3 ū.5 ž.9", "ā4 č.1 ē1.8 ģ.1 ī1.8 ķ.1 ļ.3 ņ.5 š.9 ū.4 ž.2")
ENCODINGS = {
    WINDOWS: (0, WESTERN),
    **{"mac_roman": (12, WESTERN), "cp850": (12, WESTERN)},
    **{"cp1250": (4, CENTRAL), "iso8859_2": (6, CENTRAL), "cp852": (10, CENTRAL)},
    **{"cp1254": (4, TURKISH), "cp1257": (6, BALTIC)},
}
"""By encoding, how much likelier, as a logarithm, one must be than Windows-1252, and how often each of its languages
writes each letter beyond ASCII, in percent of all letters."""
LETTERS_SHARE = 0.85
"""So many signs beyond ASCII are letters of the text's own language; others' are rarer, as are signs that stand for no letter."""
USUAL_SIGNS, USUAL, OTHER_LETTER, OTHER_SIGN = "“”„\u2018\u2019\u2013—…€°§«»·²³º£", 0.015, 0.002, 0.0005
RARE = {"joint": 0.1, "odd": 1e-5}
WITHIN_WORDS = "\u2018\u2019\u00b4\u00b7\u00ad\u2013"
"""Signs that may stand between letters, as in `l'été`."""
UNITS = "\u00aa\u00ba\u00b5"
"""Letters that stand beside digits, as in `3ª` and `5 µm`."""
OTHER_SCRIPTS = "\u0370"
"""From this sign on, letters are not Latin ones, which no word mixes with them."""
LATIN = re.compile("[A-Za-z]")
CAPITALS_SHARE = 0.08
"""So often is a word's first letter a capital."""
FOREIGN = re.compile(rb"(?s)(?=(.[\x80-\xff].))")
"""A byte beyond ASCII between two others."""

Place: TypeAlias = Literal["small", "capital", "joint", "odd"]


def find_latin(window: bytes) -> str:
    """The likeliest encoding of text in Latin letters; Windows-1252 where nothing tells them apart."""
    fit = {}
    for encoding, (lead, languages) in ENCODINGS.items():
        signs = _count_signs(window, encoding)
        fit[encoding] = max(_rate(signs, language) for language in [*languages, " ".join(languages)]) - lead
    return max(fit, key=lambda encoding: fit[encoding])


def count_odd(window: bytes, encoding: str) -> int:
    """Count signs beyond ASCII that no word has where they stand: no letter between letters, or a capital within a word."""
    return sum(number for (_, place), number in _count_signs(window, encoding).items() if place == "odd")


def _count_signs(window: bytes, encoding: str) -> Counter[tuple[str, Place]]:
    """How often each sign beyond ASCII stands in a word as a small letter would, as a capital, and where no word has it."""
    signs: Counter[tuple[str, Place]] = Counter()
    for place, number in Counter(FOREIGN.findall(b" " + window + b" ")).items():
        before, sign, after = place.decode(encoding, "replace")
        signs[sign, _find_place(before, sign, after)] += number
    return signs


def _find_place(before: str, sign: str, after: str) -> Place:
    is_mixed = sign.isalpha() and sign >= OTHER_SCRIPTS and LATIN.search(before + after) is not None
    if is_mixed or sign == "\ufffd" or sign < "\xa0":
        return "odd"
    if not sign.isalpha() or sign in UNITS:
        is_within = before.isalpha() and after.isalpha()
        return "small" if not is_within or sign in UNITS else "joint" if sign in WITHIN_WORDS else "odd"
    if (before + after).strip().isdigit():
        return "odd"
    if not sign.isupper():
        return "odd" if before.isupper() and after.isupper() else "small"
    if before.islower() or (before.isupper() and after.islower()):
        return "odd"
    return "small" if before.isupper() or after.isupper() else "capital"


def _rate(signs: Counter[tuple[str, Place]], language: str) -> float:
    """The logarithm of how likely a text in a language has these signs among those beyond ASCII."""
    frequent: defaultdict[str, float] = defaultdict(float)
    for letter in language.split():
        frequent[letter[0]] += float(letter[1:])
    whole, fit = sum(frequent.values()) / LETTERS_SHARE, 0.0
    for (sign, place), number in signs.items():
        share = frequent.get(sign) or frequent.get(sign.lower())
        if place in RARE:
            likely = RARE[place]
        elif share:
            likely = share / whole * (CAPITALS_SHARE if place == "capital" and sign not in frequent else 1)
        elif sign in USUAL_SIGNS:
            likely = USUAL
        else:
            likely = OTHER_LETTER if sign.isalpha() else OTHER_SIGN
        fit += number * math.log(likely)
    return fit
