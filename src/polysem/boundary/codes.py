"""Which code a text is in that is not Unicode: Western text is told from others, and the others are named for `iconv`."""

import re

_NOT_WESTERN = re.compile(rb"[\x00-\x08\x0e-\x1f\x81\x8d\x8f\x90\x9d]")
"""bytes that are no text in Windows-1252"""
_RUN = re.compile(r"(?!(.)\1*(?:[\x00-\x7f\xa0]|$))[^\x00-\x7f\xa0]{4,}")
"""four letters or signs in a row, as no Western language writes them; but for one and the same, as in jäääär"""
_INSIDE = re.compile(
    r"[^\W\d_][¡-¦¨¬¯¶¸¹²³¼½¾¿‚ƒ„†‡ˆ‰‹›˜™][^\W\d_]|[^\W\d_][‚„]|[‚„][^\w\s\x00-\x7f]|ƒ[^\W\d_]"
)
"""a sign inside a word, or a low quotation mark that opens nothing"""
_HAN, _KANA, _HANGUL = r"\u4e00-\u9fff", r"\u3041-\u30fa", r"\uac00-\ud7a3"
_SIGNS = r"\u3000-\u3020\u30fb-\u30ff\uff01-\uff5e"
_SMALL = "[а-яё]"
_ODD_CAPITAL = r"(?s)\A(?!.*[а-яё][А-ЯЁ][а-яё])"
_CODES: tuple[tuple[str, str, str], ...] = (
    ("CP1251", _SMALL, _ODD_CAPITAL),
    ("KOI8-R", _SMALL, _ODD_CAPITAL),
    ("CP1253", "[α-ώΐΰ]", "[α-ω]"),
    ("SHIFT_JIS", f"[{_SIGNS}{_KANA}{_HAN}]", f"[{_KANA}]"),
    ("EUC-JP", f"[{_SIGNS}{_KANA}{_HAN}]", f"[{_KANA}]"),
    ("EUC-KR", f"[{_SIGNS}{_HANGUL}]", f"[{_HANGUL}]"),
    ("GB2312", f"[{_SIGNS}{_HAN}]", f"[{_HAN}]"),
    ("SHIFT_JIS", f"[{_SIGNS}{_HAN}]", f"[{_HAN}]"),
    ("BIG5", f"[{_SIGNS}{_HAN}]", f"[{_HAN}]"),
)
"""(name for iconv, what an everyday text beyond ASCII is made of, what is found in it), the strictest first"""
_MOST = 0.75
"""least share of the letters and signs beyond ASCII that are of the everyday kind"""


def is_western(content: bytes) -> bool:
    """Whether bytes may be taken for Windows-1252, which decodes nearly anything: no byte that it has not, no runs as texts of
    two bytes a letter or of another alphabet leave, no sign inside a word."""
    if _NOT_WESTERN.search(content):
        return False
    text = content.decode("cp1252")
    return not _RUN.search(text) and not _INSIDE.search(text)


def code_of(content: bytes) -> str | None:
    """The name for `iconv -f` of the code that bytes are likely in; None where none fits."""
    if b"\0" in content:
        return "UTF-16LE" if content[1::2].count(0) >= content[::2].count(0) else "UTF-16BE"
    if is_western(content):
        return "CP1252"
    for name, everyday, some in _CODES:
        try:
            text = re.sub(r"[\x00-\x7f]", "", content.decode(name))
        except UnicodeDecodeError:
            continue
        if re.search(some, text) and len(re.findall(everyday, text)) >= _MOST * len(text):
            return name
    return None
