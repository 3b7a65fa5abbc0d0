"""Reads text in any encoding as UTF-8. Unless its encoding is given, the first bytes that are not ASCII decide it."""

import codecs
import contextlib
import io
import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TypeAlias, cast

import charset_normalizer

from refit.tables.sources.files import Opened, open_unpacked

BLOCK_BYTES = 1 << 16
WINDOW_BYTES = 1 << 16
"""So many bytes, from the first that is not ASCII on, decide the encoding."""
UTF8_MARK = codecs.BOM_UTF8
UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
UTF8, UTF16, WINDOWS = "utf-8", "utf-16", "cp1252"
LATIN, CYRILLIC = ("mac_roman", "cp850", "cp1250", "iso8859_2"), ("cp1251", "koi8_r", "cp866", "iso8859_5", "mac_cyrillic")
TITLES = {
    **{"ascii": "ASCII", UTF8: "UTF-8", UTF16: "UTF-16", WINDOWS: "Windows-1252", "cp1250": "Windows-1250"},
    **{"mac_roman": "Mac Roman", "koi8_r": "KOI8-R", "iso8859_2": "ISO 8859-2", "iso8859_5": "ISO 8859-5"},
}
MIN_ODD, MAX_ODD_SHARE = 3, 0.1
"""So many signs that no word has where they stand, and this share of those beyond ASCII, show that an encoding is another."""
SMALL_SCRIPTS = ("GREEK", "HEBREW", "ARABIC", "THAI")
"""Beside Cyrillic, the scripts of which an encoding has all letters in single bytes."""
FREQUENT_CYRILLIC = re.compile("[\u043e\u0435\u0430\u0438\u043d\u0442\u0441\u0440\u0432\u043b]", re.IGNORECASE)
"""The ten letters that make up two thirds of Russian text."""
APOSTROPHES = "\u2019\u2018\u00b4\u00b7\u00ad\u2013"
"""Signs that may stand between letters, as in `l'été`."""
NOT_ASCII = re.compile(rb"[\x80-\xff]")
FOREIGN_RUN = re.compile(rb"[\x80-\xff]{2,}")
"""Letters beyond ASCII stand alone in words of Western languages, and side by side in those of other scripts."""

Settle: TypeAlias = Callable[[str], str]
"""Takes the encoding that was found, and returns the one to use."""


def take_found(encoding: str) -> str:
    """Use the encoding that was found."""
    return encoding


class Utf8Text(io.RawIOBase):
    """The text of a file as UTF-8 without byte order marks; bytes that its encoding does not know stay as they are.

    Args:
        file: The bytes.
        encoding: How they encode text; None finds it.
        settle: Asked once the encoding is found, which it never is where all bytes are ASCII.
    """

    def __init__(self, file: BinaryIO, encoding: str | None = None, settle: Settle = take_found) -> None:
        self._file, self._encoding, self._settle = file, encoding, settle
        self._pieces, self._ahead = self._convert(), b""

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer as far as one piece of the file goes."""
        while not self._ahead:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._ahead = piece
        taken, self._ahead = self._ahead[: len(buffer)], self._ahead[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)

    def _convert(self) -> Iterator[bytes]:
        block, encoding = self._file.read(BLOCK_BYTES), self._encoding
        while block.startswith(UTF8_MARK):
            block = block.removeprefix(UTF8_MARK)
        if encoding is None and block.startswith(UTF16_MARKS):
            encoding = self._settle(UTF16)
        if encoding is None:
            while block and block.isascii():
                yield block
                block = self._file.read(BLOCK_BYTES)
            if not block:
                return
            block, window = self._look_ahead(block)
            encoding = self._settle(find_encoding(window))
        decoder = None if encoding == UTF8 else codecs.getincrementaldecoder(encoding)("surrogateescape")
        while block:
            yield block if decoder is None else _encode(decoder.decode(block))
            block = self._file.read(BLOCK_BYTES)
        if decoder is not None:
            yield _encode(decoder.decode(b"", True))

    def _look_ahead(self, block: bytes) -> tuple[bytes, bytes]:
        """The block with all that follows up to the end of the window, and the window."""
        first = NOT_ASCII.search(block)
        start = first.start() if first else len(block)
        while len(block) < start + WINDOW_BYTES and (more := self._file.read(start + WINDOW_BYTES - len(block))):
            block += more
        return block, block[start : start + WINDOW_BYTES]


def _encode(text: str) -> bytes:
    return text.replace("\ufeff", "").encode("utf-8", "surrogateescape")


@contextlib.contextmanager
def open_text(opened: Opened, encoding: str | None = None, settle: Settle = take_found) -> Iterator[BinaryIO]:
    """Open a file, unpacked, as UTF-8; arguments as those of `Utf8Text`."""
    with open_unpacked(opened) as file, io.BufferedReader(Utf8Text(file, encoding, settle), BLOCK_BYTES) as text:
        yield cast(BinaryIO, text)


def find_encoding(window: bytes) -> str:
    """Find the encoding of bytes that begin with one beyond ASCII: UTF-8, else Windows-1252 unless another is likelier."""
    text = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode(window)
    num_broken = sum("\udc80" <= sign <= "\udcff" for sign in text)
    if sum(sign > "\x7f" for sign in text) >= 2 * num_broken:
        return UTF8
    num_foreign = len(NOT_ASCII.findall(window))
    if 2 * sum(map(len, FOREIGN_RUN.findall(window))) > num_foreign:
        guess = charset_normalizer.from_bytes(window).best()
        is_other = guess is not None and any(_is_mostly(str(guess), script) for script in SMALL_SCRIPTS)
        if not is_other and (cyrillic := _find_cyrillic(window, num_foreign)):
            return cyrillic
        if guess is not None and not _is_mostly(str(guess), "LATIN"):
            return guess.encoding
    num_odd = _count_odd(window, WINDOWS)
    if num_odd < MIN_ODD or num_odd <= MAX_ODD_SHARE * num_foreign:
        return WINDOWS
    odd = {encoding: _count_odd(window, encoding) for encoding in LATIN}
    likeliest = min(odd, key=lambda encoding: odd[encoding])
    return likeliest if odd[likeliest] <= MAX_ODD_SHARE * num_odd else WINDOWS


def _find_cyrillic(window: bytes, num_foreign: int) -> str | None:
    """The encoding in which most signs beyond ASCII are the frequent Cyrillic letters, and no word has capitals within."""
    likely = {}
    for encoding in CYRILLIC:
        num_frequent = len(FREQUENT_CYRILLIC.findall(window.decode(encoding, "replace")))
        likely[encoding] = num_frequent - _count_odd(window, encoding)
    likeliest = max(likely, key=lambda encoding: likely[encoding])
    return likeliest if 2 * likely[likeliest] > num_foreign else None


def _count_odd(window: bytes, encoding: str) -> int:
    """Count signs beyond ASCII that no word has where they stand: no letter between letters, or a capital within a word."""
    num_odd, text = 0, window.decode(encoding, "replace")
    for before, sign, after in zip(text, text[1:], text[2:] + " ", strict=False):
        if sign == "\ufffd" or "\x7f" < sign < "\xa0":
            num_odd += 1
        elif sign > "\x7f" and before.isalpha():
            is_within = after.isalpha() and not sign.isalpha() and sign not in APOSTROPHES
            num_odd += is_within or (sign.isupper() and (before.islower() or after.islower()))
    return num_odd


def _is_mostly(text: str, script: str) -> bool:
    """Whether most letters beyond ASCII are of a script, such as LATIN ones in `Größe`."""
    letters = [sign for sign in text if sign > "\x7f" and sign.isalpha()]
    return 2 * sum(script in unicodedata.name(sign, "") for sign in letters) >= len(letters)


def is_unicode(encoding: str) -> bool:
    """Whether an encoding is one of Unicode's."""
    return encoding.lower().startswith("utf")


def name_encoding(encoding: str) -> str:
    """An encoding as people call it."""
    return TITLES.get(encoding, encoding)
