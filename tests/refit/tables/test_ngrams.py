"""Words, pairs of words and pieces of words, whichever the script, in bounded memory."""

import os
import random
import subprocess
import sys
from typing import Any

import numpy as np
import polars as pl
import pytest

from refit.tables import ngrams
from refit.tables.ngrams import (
    are_texts,
    choose_ngrams,
    count_known,
    find_longest_words,
    list_ngrams,
    number_ngrams,
    take_sample,
    write_numbers,
)

WORDS = ["the", "a", "of", "free", "entry", "win", "prize", "call", "now", "meeting", "tomorrow", "thanks", "100", "!", "?", "."]


def make_texts(num_texts: int, seed: int = 0) -> pl.Series:
    pick = random.Random(seed)
    texts = [" ".join(pick.choices(WORDS, k=pick.randint(3, 12))) for _ in range(num_texts)]
    return pl.Series("note", [None if number % 17 == 0 else text for number, text in enumerate(texts)], dtype=pl.String)


def list_of(text: str) -> list[str]:
    found = list_ngrams(pl.Series([text]))
    return found.names.gather(found.codes).to_list()


def test_a_text_has_its_words_then_its_pairs_then_its_pieces_each_once() -> None:
    words = ["free", "entry", "now", "!"]
    pairs = ["free entry", "entry now", "now now", "now !"]
    pieces = ["#<fre", "#free", "#ree>", "#<ent", "#entr", "#ntry", "#try>", "#<now", "#now>"]
    assert list_of("Free ENTRY now now!") == [*words, *pairs, *pieces]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("don't", ["don", "'", "t"]),
        ("ﬁne Straße", ["fine", "straße"]),
        ("好电影 ok", ["好", "电", "影", "ok"]),
        ("मैं हूँ", ["मैं", "हूँ"]),
        ("spam_1 🎉", ["spam_1", "🎉"]),
        ("", []),
    ],
)
def test_words_are_found_in_any_script(text: str, words: list[str]) -> None:
    assert list_of(text)[: len(words)] == words


def test_ngrams_of_two_texts_or_more_are_learned_those_in_most_texts_first() -> None:
    assert choose_ngrams(pl.Series(["b a", "a b", "b b", "c", None])) == ["b", "a"]


def test_neither_the_order_of_texts_nor_the_size_of_blocks_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = make_texts(300)
    chosen = choose_ngrams(texts)
    assert choose_ngrams(texts.sample(fraction=1, shuffle=True, seed=1)) == chosen
    numbers = number_ngrams(chosen)
    written = [np.zeros((300, 20), np.float32) for _ in range(2)]
    write_numbers(texts, numbers, written[0])
    counts, longest = count_known(texts, numbers), find_longest_words(texts)
    monkeypatch.setattr(ngrams, "ROWS_A_BLOCK", 7)
    write_numbers(texts, numbers, written[1])
    assert choose_ngrams(texts) == chosen
    assert (written[0] == written[1]).all()
    assert (count_known(texts, numbers) == counts).all()
    assert find_longest_words(texts).equals(longest, null_equal=True)


def test_of_many_texts_some_at_equal_distances_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngrams, "MAX_ROWS_FITTED", 2)
    assert take_sample(pl.Series(["a", "b", "c", "d", "e"])).to_list() == ["a", "d"]


def test_what_exceeds_the_limit_is_not_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngrams, "MAX_NGRAMS", 1)
    assert choose_ngrams(pl.Series(["b a", "a b", "b b"])) == ["b"]


def test_numbers_stand_in_the_order_of_the_text_as_far_as_there_is_place() -> None:
    out = np.zeros((4, 3), np.float32)
    write_numbers(pl.Series(["a b c", None, "x b", "c b a d"]), number_ngrams(["b", "a", "d", "c", "a b"]), out)
    assert out.tolist() == [[2, 1, 4], [0, 0, 0], [1, 0, 0], [4, 1, 2]]


def test_the_longest_word_is_the_first_of_several() -> None:
    found = find_longest_words(pl.Series("t", ["to be or not", "one two", None, "", "!"]))
    assert found.to_list() == ["not", "one", None, None, "!"]


PLACES = ["Paris", "New York", "Rome", "São Paulo"]
COLUMNS: dict[str, tuple[list[str], bool]] = {
    "messages": ([f"call me at {n} when you can" for n in range(300)], True),
    "Chinese reviews": ([f"这部电影很好看{n}" for n in range(300)], True),
    "messages with copies": ([f"call me at {n % 200} when you can" for n in range(300)], True),
    "names": ([f"Anna{n} Maria Smith" for n in range(300)], False),
    "codes": ([f"AB-{n} 12 77 5 6" for n in range(300)], False),
    "addresses": ([f"{n} Main Street, {PLACES[n % 4]}" for n in range(300)], False),
    "URLs": ([f"https://example.com/some/page/of/{n}.html" for n in range(300)], False),
    "answers": ([f"I agree with statement number {n % 140} at least" for n in range(300)], False),
    "few rows": ([f"call me at {n} when you can" for n in range(100)], False),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_texts_mostly_differ_and_have_several_words(name: str) -> None:
    texts, is_text = COLUMNS[name]
    assert are_texts(pl.Series("text", texts).value_counts(name="rows")) == is_text


def test_the_number_of_threads_does_not_matter() -> None:
    code = (
        "import polars as pl, numpy as np, hashlib; from refit.tables.ngrams import *\n"
        "out = np.zeros((9000, 64), np.float32)\n"
        "texts = pl.Series([' '.join(f'w{(n * k) % 97}' for k in range(1, 30)) for n in range(9000)])\n"
        "numbers = number_ngrams(choose_ngrams(texts)); write_numbers(texts, numbers, out)\n"
        "print(hashlib.sha256(out.tobytes() + ''.join(numbers).encode()).hexdigest())"
    )
    found = {run_with_threads(code, number) for number in (1, 3)}
    assert len(found) == 1


def run_with_threads(code: str, number: int) -> Any:
    environment = {**os.environ, "POLARS_MAX_THREADS": str(number)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout
