"""What texts hold, as a network can learn from it: words, pairs of words, and pieces of words, by their numbers.

N is the number of texts.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from refit.data.identities import Rows

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
MAX_ROWS_FITTED = 50_000
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


@dataclass(frozen=True)
class Ngrams:
    """The n-grams of texts, K of them: each text has each of its own once.

    Args:
        rows: Which text has it, `(K,)`, ascending; those of a text are in the order of `list_ngrams`.
        codes: Where its name is, `(K,)`.
        names: All different ones.
    """

    rows: Rows
    codes: Rows
    names: pl.Series


def list_ngrams(texts: pl.Series) -> Ngrams:
    """List the n-grams of each text: its words, then its pairs of neighbouring words, then the pieces of its words.

    Case does not count, nor do compatible forms of a letter (Unicode NFKC). Pieces are those of words of three letters or more.

    Source:
        Joulin et al., Bag of Tricks for Efficient Text Classification (2017), for pairs of words; Bojanowski et al., Enriching Word
        Vectors with Subword Information (2017), for pieces.
    """
    split = _split_words(texts)
    rows, (words, codes) = split["row"].to_numpy(), _encode(split["word"])
    is_pair = rows[:-1] == rows[1:]
    pairs, pair_codes = _encode(pl.Series((codes[:-1] * len(words) + codes[1:])[is_pair]))
    pair_words = words.gather(pairs // len(words)) + " " + words.gather(pairs % len(words))
    cut = _cut_words(words)
    pieces, piece_codes = _encode(cut["piece"])
    cut = pl.DataFrame({"code": cut["code"], "piece": piece_codes})
    held = pl.DataFrame({"row": rows, "code": codes}).join(cut, on="code", maintain_order="left_right")
    all_rows = np.concatenate([rows, rows[:-1][is_pair], held["row"].to_numpy()])
    starts = len(words), len(words) + len(pairs)
    all_codes = np.concatenate([codes, starts[0] + pair_codes, starts[1] + held["piece"].to_numpy()])
    names = pl.concat([words, pair_words, pieces])
    order = np.argsort(all_rows, kind="stable")
    order = order[pl.Series(all_rows[order] * len(names) + all_codes[order]).is_first_distinct().to_numpy()]
    return Ngrams(all_rows[order], all_codes[order], names)


def take_sample(texts: pl.Series) -> pl.Series:
    """Take the texts to choose n-grams by: all, or some at equal distances."""
    return texts.gather_every(max(1, -(-len(texts) // MAX_ROWS_FITTED)))


def choose_ngrams(texts: pl.Series) -> list[str]:
    """Choose the n-grams to learn, those in most texts first."""
    counts, num_merged = pl.DataFrame(schema={"ngram": pl.String, "rows": pl.Int64}), 0
    for start in range(0, len(texts), ROWS_A_BLOCK):
        found = list_ngrams(texts[start : start + ROWS_A_BLOCK])
        more = pl.DataFrame({"ngram": found.names, "rows": np.bincount(found.codes, minlength=len(found.names))})
        counts = pl.concat([counts, more])
        if len(counts) > 2 * num_merged:  # not in each block, so that the time grows with the number of texts alone
            counts = counts.group_by("ngram").agg(pl.col("rows").sum())
            num_merged = len(counts)
    counts = counts.group_by("ngram").agg(pl.col("rows").sum()).filter(pl.col("rows") >= MIN_ROWS)
    return list(counts.sort("rows", "ngram", descending=[True, False])["ngram"].head(MAX_NGRAMS))


def number_ngrams(ngrams: Iterable[str]) -> dict[str, int]:
    """Give n-grams their numbers, from 1 on."""
    return {ngram: number for number, ngram in enumerate(ngrams, 1)}


def count_known(texts: pl.Series, numbers: Mapping[str, int]) -> Rows:
    """Count the numbered n-grams of each text, `(N,)`."""
    counts = [np.bincount(rows, minlength=num_rows) for _, num_rows, rows, _ in _find_known(texts, numbers)]
    return np.concatenate(counts) if counts else np.zeros(0, np.int64)


def write_numbers(texts: pl.Series, numbers: Mapping[str, int], out: NDArray[np.float32]) -> None:
    """Write the numbers of each text's n-grams into zeros, as many as there is place for.

    Shape:
        texts: N texts, some may be missing; out: (N, W).
    """
    for start, _, rows, known in _find_known(texts, numbers):
        places = np.arange(len(rows)) - np.searchsorted(rows, rows)  # counted anew in each row
        is_kept = places < out.shape[1]
        out[start + rows[is_kept], places[is_kept]] = known[is_kept]


def find_longest_words(texts: pl.Series) -> pl.Series:
    """The longest word of each text, the first of several; null for a text without one."""
    parts = [pl.Series(texts.name, [], dtype=pl.String)]
    for start in range(0, len(texts), ROWS_A_BLOCK):
        block = texts[start : start + ROWS_A_BLOCK]
        words = _split_words(block).with_columns(length=pl.col("word").str.len_chars())
        longest = words.group_by("row", maintain_order=True).agg(
            pl.col("word").sort_by("length", descending=True, maintain_order=True).first()
        )
        rows = pl.DataFrame({"row": pl.int_range(len(block), eager=True)})
        parts.append(rows.join(longest, on="row", how="left", maintain_order="left")["word"].alias(texts.name))
    return pl.concat(parts)


def _find_known(texts: pl.Series, numbers: Mapping[str, int]) -> Iterator[tuple[int, int, Rows, Rows]]:
    """Yield, a block of texts at a time, its start, its size, and which of its rows have which numbers."""
    for start in range(0, len(texts), ROWS_A_BLOCK):
        block = texts[start : start + ROWS_A_BLOCK]
        found = list_ngrams(block)
        known = np.array([numbers.get(name, 0) for name in found.names.to_list()], np.int64)[found.codes]
        yield start, len(block), found.rows[known > 0], known[known > 0]


def _split_words(texts: pl.Series) -> pl.DataFrame:
    """The `row` of each `word`, in the order of the texts."""
    words = texts.str.normalize("NFKC").str.to_lowercase().str.extract_all(WORD)
    return pl.DataFrame({"row": pl.int_range(len(texts), eager=True), "word": words}).explode("word").drop_nulls()


def _cut_words(words: pl.Series) -> pl.DataFrame:
    """The pieces of different words: the `code` of the word, which is its place, and the `piece`."""
    frame = words.to_frame("word").with_row_index("code").filter(pl.col("word").str.len_chars() >= PIECE - 1)
    frame = frame.with_columns(place=pl.int_ranges(pl.col("word").str.len_chars() + (3 - PIECE))).explode("place")
    return frame.select(pl.col("code").cast(pl.Int64), piece=PIECE_MARK + ("<" + pl.col("word") + ">").str.slice("place", PIECE))


def _encode(values: pl.Series) -> tuple[pl.Series, Rows]:
    """The different values, and for each value its place among these."""
    different = values.unique(maintain_order=True)
    places = different.to_frame("value").with_row_index("code")
    codes = values.to_frame("value").join(places, on="value", maintain_order="left")["code"]
    return different, codes.cast(pl.Int64).to_numpy()
