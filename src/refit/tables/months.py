"""Names of months in other languages than English, as dates have them."""

import polars as pl

ENGLISH = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
MONTHS = {
    "German": (
        *("januar|jänner|jan", "februar|feber|feb", "märz|maerz|mrz|mär", "april|apr", "mai", "juni|jun", "juli|jul"),
        *("august|aug", "september|sept|sep", "oktober|okt", "november|nov", "dezember|dez"),
    ),
    "French": (
        *("janvier|janv|jan", "février|fevrier|févr|fevr|fév|fev", "mars", "avril|avr", "mai", "juin", "juillet|juil"),
        *("août|aout", "septembre|sept", "octobre|oct", "novembre|nov", "décembre|decembre|déc|dec"),
    ),
    "Spanish": (
        *("enero|ene", "febrero|feb", "marzo|mar", "abril|abr", "mayo|may", "junio|jun", "julio|jul", "agosto|ago"),
        *("septiembre|setiembre|sept|sep|set", "octubre|oct", "noviembre|nov", "diciembre|dic"),
    ),
    "Italian": (
        *("gennaio|gen", "febbraio|feb", "marzo|mar", "aprile|apr", "maggio|mag", "giugno|giu", "luglio|lug", "agosto|ago"),
        *("settembre|sett|set", "ottobre|ott", "novembre|nov", "dicembre|dic"),
    ),
    "Portuguese": (
        *("janeiro|jan", "fevereiro|fev", "março|marco|mar", "abril|abr", "maio|mai", "junho|jun", "julho|jul", "agosto|ago"),
        *("setembro|set", "outubro|out", "novembro|nov", "dezembro|dez"),
    ),
    "Dutch": (
        *("januari|jan", "februari|feb", "maart|mrt", "april|apr", "mei", "juni|jun", "juli|jul", "augustus|aug"),
        *("september|sept|sep", "oktober|okt", "november|nov", "december|dec"),
    ),
}
"""Patterns of the twelve months, in lower case, the long names first."""
CONNECTORS = ((r"(\d)\.( ?\pL)", "$1$2"), (r"(?i)^1er\b", "1"), (r"(?i) del? ", " "), (r" {2,}", " "))
"""What stands around months, as in `1. Mai`, `1er mai` and `1 de mayo de 2024`, and what becomes of it."""


def translate_months(texts: pl.Series, language: str) -> pl.Series:
    """Write dates with English names of three letters, without what stands around them: `1. März 2024` as `1 Mar 2024`."""
    for pattern, month in zip(MONTHS[language], ENGLISH, strict=True):
        texts = texts.str.replace_all(rf"(?i)\b(?:{pattern})\b\.?", month)
    for pattern, instead in CONNECTORS:
        texts = texts.str.replace_all(pattern, instead)
    return texts
