"""Text for people: hostile characters made visible, numbers with sensible digits, JSON that cannot leave its
script element.

Glosses and tokens are written by models, by strangers and by web pages. Here they lose the power to reorder,
hide or overflow what is around them; escaping for HTML is the template's business (autoescape) and comes
after.
"""

import json
import math
import unicodedata

from markupsafe import Markup

Real = float | int
"""a number of any kind; the type checkers of the tests tell them apart"""
MAX_LENGTH = 400
"""characters of one text that are shown"""
MAX_MARKS = 3
"""combining marks in a row that are shown: more is decoration meant to overflow"""
_SHOWN = {"\n": "↵", "\r": "↲", "\t": "⇥"}
_BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0\u00a0\u2007\u202f\u3000\u034f\u17b4\u17b5")
"""printable by category, but drawn as nothing or as a space that is none"""
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def visible(text: str, *, limit: int = MAX_LENGTH) -> str:
    """`text` with every control, bidirectional, zero-width and unassigned character as its code point, cut at
    `limit`.

    `ab\\u202ecd` becomes `ab⟨U+202E⟩cd`. Result is plain text, not HTML.
    """
    parts: list[str] = []
    marks = 0
    for character in text[:limit]:
        category = unicodedata.category(character)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        if character in _SHOWN:
            parts.append(_SHOWN[character])
        elif category in _HIDDEN or character in _BLANK or marks > MAX_MARKS:
            parts.append(f"⟨U+{ord(character):04X}⟩")
        else:
            parts.append(character)
    if len(text) > limit:
        parts.append(f"… [{len(text)} characters]")
    return "".join(parts)


def embed_json(value: object) -> Markup:
    """JSON for a <script type="application/json"> element: no character in it can close the element or start
    another."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def number(value: Real | None, *, digits: int = 3, sign: bool = False) -> str:
    """`value` to `digits` significant digits, with a true minus; a dash where there is none, ∞ where it is infinite."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return _endless(value, sign=sign)
    if value == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{abs(value):,.{min(places, 8)}f}" if abs(value) >= 1e-4 else f"{abs(value):.{digits - 1}e}"
    return ("−" if value < 0 else "+" if sign else "") + text


def fixed(value: Real | None, *, places: int = 3, sign: bool = False) -> str:
    """`value` with so many decimals, for columns of one scale."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return _endless(value, sign=sign)
    return f"{value:{'+' if sign else ''}.{places}f}".replace("-", "−")


def _endless(value: Real, *, sign: bool) -> str:
    return "−∞" if value < 0 else "+∞" if sign else "∞"


def interval(lo: Real | None, hi: Real | None, *, digits: int = 3) -> str:
    """`lo to hi`, both with the same number of decimals; an end that is infinite as ∞."""
    if lo is None or hi is None or math.isnan(lo) or math.isnan(hi):
        return "no interval"
    size = max((abs(v) for v in (lo, hi) if math.isfinite(v)), default=1.0) or 1.0
    places = min(8, max(0, digits - 1 - math.floor(math.log10(max(size, 1e-12)))))
    return " to ".join(fixed(v, places=places, sign=True) for v in (lo, hi))


def count(value: Real | None) -> str:
    """A count, thousands apart by a narrow space at which no line breaks; a fraction of one as such."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return _endless(value, sign=False)
    if value >= 100 or value == int(value):
        return f"{value:,.0f}".replace(",", "\u202f")
    return number(value, digits=2)


def plural(n: int, noun: str) -> str:
    """`1 pair`, `3 pairs`."""
    return f"{count(n)} {noun}{'' if n == 1 else 's'}"


def p_value(value: Real | None, *, name: str = "") -> str:
    """A probability, never printed as 0; with a name, as `p = 0.012` or `p < 0.0001`."""
    if value is None or math.isnan(value):
        return "–"
    if value < 1e-4:
        return f"{name} < 0.0001".lstrip()
    return (f"{name} = " if name else "") + (f"{value:.4f}" if value < 0.1 else f"{value:.2f}")
