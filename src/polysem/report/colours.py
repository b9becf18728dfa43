"""The colours of drawings and pages, light and dark, as CSS variables: safe for colour-blind eyes, AA contrast in both."""

from polysem.report.words import OTHER
from polysem.vocabulary import RELATIONS

PALETTE = {
    "paper": ("#fbfbf9", "#14171a"),
    "card": ("#ffffff", "#1c2024"),
    "ink": ("#1b1f24", "#e8eaed"),
    "soft": ("#515a65", "#aab2bb"),
    "rule": ("#d9dcd8", "#343a40"),
    "grid": ("#e6e8e4", "#2b3035"),
    "accent": ("#0b5c8a", "#7cc4f0"),
    "wash": ("#eef3f5", "#20272d"),
    "found": ("#0b6b4f", "#6fd6ae"),
    "hint": ("#7a3e9d", "#d3a6f2"),
    "null": ("#4a5568", "#b6c0cc"),
    "open": ("#8a4b00", "#f0b35e"),
    "none": ("#5b5f66", "#a7adb5"),
    "warn-bg": ("#fff4dd", "#3a2c10"),
    "warn-ink": ("#6b4300", "#ffdc9c"),
    "mark": ("#c2410c", "#fb923c"),
    "hot": ("#c2410c", "#e0560f"),
    "fit": ("#0b3f66", "#cfe8ff"),
    "weak": ("#5b7f9e", "#7f9db6"),
    "corner": ("#c81e1e", "#ff7b72"),
    "halo": ("#ffffff", "#14171a"),
}
"""name -> light, dark"""
BINS = (
    ("#8fb4d9", "#35577a"),
    ("#5f97cc", "#3f73a3"),
    ("#347ab8", "#4f90c9"),
    ("#185d9b", "#74aee0"),
    ("#0a4076", "#a5cdf0"),
    ("#062849", "#d5e8f9"),
)
"""of bins of interference, the strongest last"""
_VIRIDIS = (
    "fde725 dde318 bade28 95d840 75d054 56c667 3dbc74 29af7f 20a386 1f968b 238a8d 287d8e 2d718e 33638d 39558c 404688 440154",
    "440154 48186a 472d7b 424086 3b528b 33638d 2c728e 26828e 21918c 1fa088 28ae80 3fbc73 5ec962 84d44b addc30 d8e219 fde725",
)
"""of counts, the smallest first: as far from the ground as they are large"""


def style() -> str:
    """Every colour as a variable, of relations (`--k-NAME`) too, and a class `k-NAME` for each of those that sets --c.

    Light and dark follow what the reader prefers; a page that can be switched by hand sets `color-scheme`, which
    browsers since 2024 follow through light-dark().
    """
    marks = {name: r.mark for name, r in RELATIONS.items()}
    ramp = zip(*(side.split() for side in _VIRIDIS), strict=True)
    known = {
        **PALETTE,
        **{f"b{k}": pair for k, pair in enumerate(BINS)},
        **{f"v{k}": (f"#{light}", f"#{dark}") for k, (light, dark) in enumerate(ramp)},
        **{f"k-{name}": (mark.light, mark.dark) for name, mark in (marks | {"other": OTHER}).items()},
    }
    light, dark, both = (
        "".join(f"--{name}:{of(*pair)};" for name, pair in known.items())
        for of in (lambda a, _: a, lambda _, b: b, lambda a, b: f"light-dark({a},{b})")
    )
    classes = "".join(f".k-{name}{{--c:var(--k-{name})}}" for name in marks)
    return (
        f":root{{color-scheme:light dark;{light}--c:var(--k-other)}}\n"
        f"@media (prefers-color-scheme:dark){{:root{{{dark}}}}}\n"
        f"@supports (color:light-dark(#000,#fff)){{:root{{{both}}}}}\n{classes}\n"
    )
