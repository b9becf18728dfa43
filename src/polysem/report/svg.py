"""Drawing: SVG elements with every text and attribute escaped, linear scales, and the frame that all charts
share.

Colours are CSS classes, never values, so that one drawing serves light, dark and print. Charts are 480 units
wide with 13-unit
text: two beside each other on a laptop, one across on a phone, readable on both.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from polysem.report.text import Real

WIDTH = 480.0


def el(tag: str, *children: Markup | str, **attributes: object) -> Markup:
    """One element; `class_` is class, `_` in names is `-`, None leaves an attribute out, floats get two
    decimals."""
    shown = []
    for name, value in attributes.items():
        if value is None:
            continue
        text = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
        shown.append(Markup(' {}="{}"').format(name.rstrip("_").replace("_", "-"), text))
    inside = Markup("").join(escape(child) for child in children)
    # Tag and attribute names are literals of this package; values and text went through escape.
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(tag), Markup("").join(shown), inside)


@dataclass(frozen=True)
class Axis:
    """Numbers lo..hi to drawing units start..stop, linear or in decades."""

    lo: Real
    hi: Real
    start: Real
    stop: Real
    logarithmic: bool = False

    def __call__(self, value: Real) -> Real:
        a, b, v = (
            (math.log10(x) for x in (self.lo, self.hi, value))
            if self.logarithmic
            else (self.lo, self.hi, value)
        )
        return self.start + (v - a) / (b - a) * (self.stop - self.start)

    def ticks(self, n: int = 5) -> list[Real]:
        """About `n` round numbers inside the scale."""
        if self.logarithmic:
            exponents = range(
                math.ceil(math.log10(self.lo) - 1e-9), math.floor(math.log10(self.hi) + 1e-9) + 1
            )
            step = max(1, round(len(exponents) / n))
            return [10.0**e for e in exponents if e % step == 0]
        raw = (self.hi - self.lo) / n
        size = 10 ** math.floor(math.log10(raw))
        step = min((m * size for m in (1, 2, 2.5, 5, 10)), key=lambda s: abs(s - raw))
        first, last = math.ceil(self.lo / step - 1e-9), math.floor(self.hi / step + 1e-9)
        return [k * step for k in range(first, last + 1)]


def padded(values: Iterable[Real], *, include: Sequence[Real] = (), share: Real = 0.06) -> tuple[Real, Real]:
    """The range of finite values with some room; (-1, 1) around nothing."""
    known = [v for v in (*values, *include) if math.isfinite(v)]
    if not known:
        return -1.0, 1.0
    lo, hi = min(known), max(known)
    room = (hi - lo) * share or abs(hi) * 0.5 or 1.0
    return lo - room, hi + room


def tick_text(value: Real) -> str:
    """A tick label with a true minus."""
    text = f"{value:.6g}" if abs(value) < 1e4 else f"{value:.0e}".replace("e+0", "e").replace("e+", "e")
    return text.replace("-", "−")


@dataclass(frozen=True)
class Frame:
    """A plot area with scales; `left` and the other margins in drawing units."""

    x: Axis
    y: Axis
    height: Real
    width: Real = WIDTH

    @classmethod
    def of(
        cls,
        x: tuple[Real, Real],
        y: tuple[Real, Real],
        *,
        height: Real = 340,
        left: Real = 66,
        right: Real = 16,
        top: Real = 14,
        bottom: Real = 50,
        log_y: bool = False,
    ) -> "Frame":
        return cls(Axis(*x, left, WIDTH - right), Axis(*y, height - bottom, top, logarithmic=log_y), height)

    def axes(
        self,
        *,
        x_label: str,
        y_label: str,
        x_ticks: Sequence[Real] | None = None,
        y_ticks: Sequence[Real] | None = None,
        x_text: Callable[[Real], str] = tick_text,
        y_text: Callable[[Real], str] = tick_text,
    ) -> list[Markup]:
        """Grid lines, tick labels and axis titles."""
        left, right, bottom, top = self.x.start, self.x.stop, self.y.start, self.y.stop
        parts = []
        for tick in self.y.ticks() if y_ticks is None else y_ticks:
            y = self.y(tick)
            parts.append(el("line", class_="grid", x1=left, x2=right, y1=y, y2=y))
            parts.append(el("text", y_text(tick), class_="tick", x=left - 7, y=y + 4.5, text_anchor="end"))
        for tick in self.x.ticks() if x_ticks is None else x_ticks:
            x = self.x(tick)
            parts.append(el("line", class_="grid", x1=x, x2=x, y1=top, y2=bottom))
            parts.append(el("text", x_text(tick), class_="tick", x=x, y=bottom + 18, text_anchor="middle"))
        middle_x, middle_y = (left + right) / 2, (top + bottom) / 2
        parts.append(el("text", x_label, class_="axis", x=middle_x, y=bottom + 39, text_anchor="middle"))
        turned = f"rotate(-90 12 {middle_y:.2f})"
        parts.append(
            el("text", y_label, class_="axis", x=12, y=middle_y + 4, text_anchor="middle", transform=turned)
        )
        return parts

    def hline(self, value: Real, class_: str) -> Markup:
        return el("line", class_=class_, x1=self.x.start, x2=self.x.stop, y1=self.y(value), y2=self.y(value))

    def vline(self, value: Real, class_: str) -> Markup:
        return el("line", class_=class_, x1=self.x(value), x2=self.x(value), y1=self.y.start, y2=self.y.stop)

    def path(self, points: Iterable[tuple[Real, Real]], class_: str) -> Markup:
        return el("path", class_=class_, d=self._drawn(points))

    def band(self, points: Sequence[tuple[Real, Real, Real]], class_: str) -> Markup:
        """The area between lo and hi of (x, lo, hi)."""
        outline = [(x, hi) for x, _, hi in points] + [(x, lo) for x, lo, _ in reversed(points)]
        return el("path", class_=class_, d=self._drawn(outline) + " Z")

    def _drawn(self, points: Iterable[tuple[Real, Real]]) -> str:
        return " ".join(
            f"{'L' if k else 'M'}{self.x(a):.2f} {self.y(b):.2f}" for k, (a, b) in enumerate(points)
        )


def drawing(
    parts: Iterable[Markup],
    *,
    height: Real,
    title: str,
    description: str,
    class_: str = "chart",
    **attributes: object,
) -> Markup:
    """The <svg>, announced by its title and description (as a label: a <title> would pop up over every
    mark)."""
    box = f"0 0 {WIDTH} {height:g}"
    said = f"{title}. {description}"
    return el("svg", *parts, viewBox=box, role="img", aria_label=said, class_=class_, **attributes)


def scales(frame: Frame) -> Mapping[str, object]:
    """What a script needs to turn places in a drawing into values and back, as attributes of its <svg>."""
    ends = {"x0": frame.x.start, "x1": frame.x.stop, "y0": frame.y.start, "y1": frame.y.stop}
    values = {"xlo": frame.x.lo, "xhi": frame.x.hi, "ylo": frame.y.lo, "yhi": frame.y.hi}
    return {f"data_{name}": v for name, v in ends.items()} | {
        f"data_{name}": repr(float(v)) for name, v in values.items()
    }
