"""SVG elements of the pictures, and their style sheet. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

EM = 0.6
"""Mean width of a character, as a share of the font size, for the wider fonts of STYLE."""
SERIES = 8
"""Number of colours of series without a fixed colour. The ninth series has the first colour again."""
COLORS = ("yellow", "light-yellow", "orange", "green", "gray", "blue", "red")
"""Colours that the dashboards use by name. STYLE has their values in light and dark mode."""

STYLE = """
svg{--bg:#f4f5f7;--card:#fff;--line:#e1e4ea;--fg:#1c2430;--dim:#667085;--started:#d9480f;--saved:#18794e;
--c0:#2463eb;--c1:#d9480f;--c2:#18794e;--c3:#9333ea;--c4:#b58900;--c5:#0e7490;--c6:#be185d;--c7:#64748b;
--yellow:#d4a106;--light-yellow:#f0d36a;--orange:#d9480f;--green:#18794e;--gray:#8a94a6;--blue:#2463eb;--red:#c81e1e}
@media(prefers-color-scheme:dark){svg{--bg:#12161d;--card:#1a2029;--line:#2f3743;--fg:#e6e9ef;--dim:#98a2b3;
--started:#ff9f5c;--saved:#4cc38a;--c0:#74a9ff;--c1:#ff9f5c;--c2:#4cc38a;--c3:#c084fc;--c4:#e3b341;--c5:#4fc3d9;
--c6:#f472b6;--c7:#a8b3c4;--yellow:#e3b341;--light-yellow:#f7e29a;--orange:#ff9f5c;--green:#4cc38a;--gray:#98a2b3;
--blue:#74a9ff;--red:#ff7b72}}
text{font:11px system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;fill:var(--fg)}
.bg{fill:var(--bg)}.card{fill:var(--card);stroke:var(--line)}.grid{stroke:var(--line)}.dim{fill:var(--dim)}
.head{font-size:17px;font-weight:600}.title{font-size:12px;font-weight:600}.row{font-size:14px;font-weight:600}
.curve{fill:none;stroke-width:1.5;stroke-linejoin:round}.end{text-anchor:end}.middle{text-anchor:middle}
.Attempt-started{stroke:var(--started);stroke-dasharray:4 3}.Checkpoint{stroke:var(--saved);stroke-width:1.5}
""" + "".join(
    f".s{name}{{stroke:var(--{color})}}.f{name}{{fill:var(--{color})}}.a{name}{{fill:var(--{color});fill-opacity:.35}}"
    for name, color in [*((i, f"c{i}") for i in range(SERIES)), *((color, color) for color in COLORS)]
)

Point = tuple[float, float]


def text(x: float, y: float, words: str, kind: str = "", *, room: float = 0.0, size: float = 11) -> str:
    """Return a text element. `room`: width in pixels; longer text is cut and ends with an ellipsis."""
    shown = fit(words, room, size) if room else words
    style = f' style="font-size:{size:g}px"' if size != 11 and not kind.startswith(("head", "title", "row")) else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{_class(kind)}{style}>{escape(shown, quote=False)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def box(x: float, y: float, width: float, height: float, kind: str, radius: float = 0) -> str:
    size = f'width="{max(width, 0):.1f}" height="{max(height, 0):.1f}"'
    corners = f' rx="{radius:g}"' if radius else ""
    return f'<rect x="{x:.1f}" y="{y:.1f}" {size}{_class(kind)}{corners}/>'


def curve(points: Sequence[Point], kind: str) -> str:
    return f'<polyline points="{_places(points)}" class="curve {kind}"/>'


def area(points: Sequence[Point], kind: str) -> str:
    return f'<polygon points="{_places(points)}" class="{kind}"/>'


def wide(words: str, size: float = 11) -> float:
    """Return the estimated width in pixels, a little more than most fonts need."""
    return len(words) * size * EM


def fit(words: str, room: float, size: float = 11) -> str:
    if wide(words, size) <= room:
        return words
    return words[: max(1, int(room / (size * EM)) - 1)].rstrip() + "…"


def _places(points: Sequence[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
