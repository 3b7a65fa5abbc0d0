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
from refit.tables.sources.letters import WINDOWS, count_odd, find_latin

BLOCK_BYTES = 1 << 16
WINDOW_BYTES = 1 << 16
"""So many bytes, from the first that is not ASCII on, decide the encoding."""
UTF8_MARK = codecs.BOM_UTF8
UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
UTF8, UTF16 = "utf-8", "utf-16"
JAPANESE = ("cp932", "euc_jp")
TITLES = {
    **{"ascii": "ASCII", UTF8: "UTF-8", UTF16: "UTF-16", WINDOWS: "Windows-1252", "cp1250": "Windows-1250"},
    **{"cp1253": "Windows-1253", "cp1254": "Windows-1254", "cp1257": "Windows-1257", "mac_roman": "Mac Roman"},
    **{"koi8_r": "KOI8-R", "iso8859_2": "ISO 8859-2", "iso8859_5": "ISO 8859-5", "iso8859_7": "ISO 8859-7"},
}
SMALL_SCRIPTS = ("HEBREW", "ARABIC", "THAI")
"""Beside Cyrillic and Greek, the scripts of which an encoding has all letters in single bytes."""
CYRILLIC = re.compile("[\u043e\u0435\u0430\u0438\u043d\u0442\u0441\u0440\u0432\u043b]", re.IGNORECASE)
"""The ten letters that make up two thirds of Russian text."""
GREEK = re.compile(
    "[\u03b1\u03ac\u03bf\u03cc\u03b9\u03af\u03b5\u03ad\u03c4\u03c3\u03c2\u03bd\u03b7\u03ae\u03c5\u03c1]", re.IGNORECASE
)
"""The letters that make up three quarters of Greek text."""
FREQUENT = {
    **dict.fromkeys(("cp1251", "koi8_r", "cp866", "iso8859_5", "mac_cyrillic"), CYRILLIC),
    **dict.fromkeys(("cp1253", "iso8859_7"), GREEK),
}
KANA = re.compile("[\u3041-\u3096\u30a1-\u30fa]")
MIN_KANA, MIN_KANA_SHARE = 5, 0.2
"""So many kinds of kana, and this share of the signs beyond ASCII, show that a text is Japanese."""
NOT_ASCII = re.compile(rb"[\x80-\xff]")
FOREIGN_RUN = re.compile(rb"([\x80-\xff])(?!\1(?![\x80-\xff]))[\x80-\xff]+")
"""Letters beyond ASCII stand alone in words in Latin letters, or twice, as in `Töötaja`; in those of other scripts side by side."""

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
    if 2 * sum(len(run[0]) for run in FOREIGN_RUN.finditer(window)) > num_foreign:
        other = _find_japanese(window) or _find_other(window, num_foreign)
        if other:
            return other
    return find_latin(window)


def _find_other(window: bytes, num_foreign: int) -> str | None:
    """The encoding of text in other letters than Latin ones."""
    guess = charset_normalizer.from_bytes(window).best()
    is_other = guess is not None and any(_is_mostly(str(guess), script) for script in SMALL_SCRIPTS)
    if not is_other and (frequent := _find_frequent(window, num_foreign)):
        return frequent
    return None if guess is None or _is_mostly(str(guess), "LATIN") else guess.encoding


def _find_japanese(window: bytes) -> str | None:
    """The encoding in which many of the signs beyond ASCII are kana, which Japanese is full of and no other language has."""
    for encoding in JAPANESE:
        with contextlib.suppress(UnicodeDecodeError):
            text = codecs.getincrementaldecoder(encoding)().decode(window)
            kana = KANA.findall(text)
            if len(set(kana)) >= MIN_KANA and len(kana) >= MIN_KANA_SHARE * sum(sign > "\x7f" for sign in text):
                return encoding
    return None


def _find_frequent(window: bytes, num_foreign: int) -> str | None:
    """The encoding in which most signs beyond ASCII are its script's frequent letters, and no word has capitals within."""
    likely = {}
    for encoding, letters in FREQUENT.items():
        num_frequent = len(letters.findall(window.decode(encoding, "replace")))
        likely[encoding] = num_frequent - count_odd(window, encoding)
    likeliest = max(likely, key=lambda encoding: likely[encoding])
    return likeliest if 2 * likely[likeliest] > num_foreign else None


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
