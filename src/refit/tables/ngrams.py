"""What texts hold, as a network can learn from it: words, pairs of words, and pieces of words, by their numbers.

N is the number of texts.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

ALONE = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
"""Scripts without blanks between words: each of their signs counts as a word."""
WORD = rf"[{ALONE}]|[[\p{{L}}\p{{M}}\p{{N}}_]--[{ALONE}]]+|[^\s\p{{L}}\p{{M}}\p{{N}}_]"
"""A word, or a sign between words."""
PIECE = 4
"""Letters of a piece; where a word begins and ends counts as a letter, too."""
PIECE_MARK = "#"
"""Before each piece, so that no word is equal to it."""
MIN_ROWS = 2
"""N-grams in fewer texts are not learned."""
MAX_NGRAMS = 32_768
"""At most so many are learned: those in most texts; ties go by name."""
MAX_WIDTH = 256
"""At most so many of one text are kept, in the order in which `list_ngrams` lists them."""
MAX_ROWS_FITTED = 100_000
"""Of more texts, so many at equal distances are looked at to choose n-grams."""
ROWS_A_BLOCK = 8192
"""Texts whose n-grams are in memory at a time."""
MIN_VALUES, MIN_SHARE, MIN_WORDS = 100, 0.5, 4.0
"""A column holds texts if more than so many of its values differ, and this share, and they have so many words on average."""


def are_texts(counts: pl.DataFrame) -> bool:
    """Whether a column of strings holds texts rather than names or categories.

    Args:
        counts: Its distinct strings, and in how many `rows` each is.
    """
    if counts.height <= MIN_VALUES or counts.height < MIN_SHARE * int(counts["rows"].sum()):
        return False
    texts = counts["text"]
    num_words = texts.str.count_matches(r"\S*\p{L}\S*") + texts.str.count_matches(f"[{ALONE}]")
    return int(num_words.sum()) >= MIN_WORDS * len(texts)


def list_ngrams(texts: pl.Series) -> pl.DataFrame:
    """List the n-grams of each text: its words, then its pairs of neighbouring words, then the pieces of its words.

    Case does not count, nor do compatible forms of a letter (Unicode NFKC). Pieces are those of words of three letters or more.

    Returns:
        The `row` of each `ngram`, by rows; a text has each of its n-grams once, in the order of the text.

    Source:
        Joulin et al., Bag of Tricks for Efficient Text Classification (2017), for pairs of words; Bojanowski et al., Enriching Word
        Vectors with Subword Information (2017), for pieces.
    """
    words = _split_words(texts)
    pairs = words.select(
        "row", ngram=pl.when(pl.col("row") == pl.col("row").shift(-1)).then(pl.col("ngram") + " " + pl.col("ngram").shift(-1))
    )
    marked = words["ngram"].unique().to_frame().filter(pl.col("ngram").str.len_chars() >= PIECE - 1)
    places = pl.int_ranges(pl.col("ngram").str.len_chars() + (3 - PIECE))
    pieces = marked.with_columns(place=places).explode("place")
    pieces = pieces.select("ngram", piece=PIECE_MARK + ("<" + pl.col("ngram") + ">").str.slice("place", PIECE))
    pieces = words.join(pieces, on="ngram", maintain_order="left_right").select("row", ngram="piece")
    ngrams = pl.concat([words, pairs.drop_nulls(), pieces]).unique(maintain_order=True)
    return ngrams.sort("row", maintain_order=True)


def choose_ngrams(texts: pl.Series) -> list[str]:
    """Choose the n-grams to learn, those in most texts first; some texts may be missing."""
    texts = texts.drop_nulls()
    texts = texts.gather_every(max(1, -(-len(texts) // MAX_ROWS_FITTED)))
    counts = pl.DataFrame(schema={"ngram": pl.String, "rows": pl.UInt32})
    for start in range(0, len(texts), ROWS_A_BLOCK):
        more = list_ngrams(texts[start : start + ROWS_A_BLOCK]).group_by("ngram").agg(rows=pl.len())
        counts = pl.concat([counts, more]).group_by("ngram").agg(pl.col("rows").sum())
    counts = counts.filter(pl.col("rows") >= MIN_ROWS)
    return list(counts.sort("rows", "ngram", descending=[True, False])["ngram"].head(MAX_NGRAMS))


def number_ngrams(ngrams: Sequence[str]) -> pl.DataFrame:
    """Give n-grams their numbers, from 1 on."""
    return pl.DataFrame({"ngram": pl.Series(ngrams, dtype=pl.String), "number": pl.int_range(1, len(ngrams) + 1, eager=True)})


def count_known(texts: pl.Series, numbers: pl.DataFrame) -> NDArray[np.int64]:
    """Count the numbered n-grams of each text, `(N,)`."""
    counts = np.zeros(len(texts), np.int64)
    for start in range(0, len(texts), ROWS_A_BLOCK):
        known = list_ngrams(texts[start : start + ROWS_A_BLOCK]).join(numbers, on="ngram")
        counts[start : start + ROWS_A_BLOCK] = np.bincount(known["row"], minlength=min(ROWS_A_BLOCK, len(texts) - start))
    return counts


def write_numbers(texts: pl.Series, numbers: pl.DataFrame, out: NDArray[np.float32]) -> None:
    """Write the numbers of each text's n-grams into zeros, as many as there is place for.

    Shape:
        texts: N texts, some may be missing; out: (N, W).
    """
    for start in range(0, len(texts), ROWS_A_BLOCK):
        known = list_ngrams(texts[start : start + ROWS_A_BLOCK]).join(numbers, on="ngram", maintain_order="left")
        rows = known["row"].to_numpy()
        places = np.arange(len(rows)) - np.searchsorted(rows, rows)  # counted anew in each row
        is_kept = places < out.shape[1]
        out[start + rows[is_kept], places[is_kept]] = known["number"].to_numpy()[is_kept]


def find_longest_words(texts: pl.Series) -> pl.Series:
    """The longest word of each text, the first of several; null for a text without one."""
    parts = [pl.Series(texts.name, [], dtype=pl.String)]
    for start in range(0, len(texts), ROWS_A_BLOCK):
        block = texts[start : start + ROWS_A_BLOCK]
        words = _split_words(block).with_columns(length=pl.col("ngram").str.len_chars())
        longest = words.group_by("row", maintain_order=True).agg(
            pl.col("ngram").sort_by("length", descending=True, maintain_order=True).first()
        )
        rows = pl.DataFrame({"row": pl.int_range(len(block), eager=True)})
        parts.append(rows.join(longest, on="row", how="left", maintain_order="left")["ngram"].alias(texts.name))
    return pl.concat(parts)


def _split_words(texts: pl.Series) -> pl.DataFrame:
    """The `row` of each word, in `ngram`, in the order of the texts."""
    words = texts.str.normalize("NFKC").str.to_lowercase().str.extract_all(WORD)
    return pl.DataFrame({"row": pl.int_range(len(texts), eager=True), "ngram": words}).explode("ngram").drop_nulls()
