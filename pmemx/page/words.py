"""Values as a reader sees them: numbers, sizes, times, and text in which nothing is invisible."""

import json
import math
import re
from collections.abc import Sequence

from markupsafe import Markup

from pmemx.core.clock import from_microseconds

# Control characters but tab and line feed, marks and overrides of direction, separators, half characters.
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_UNITS = ("B", "kB", "MB", "GB", "TB")


def visible(value: object) -> object:
    """Text with its hidden characters written out, so that none can act on a terminal or turn a line around.

    Other values, and what is markup already, stay as they are.
    """
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return _HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", value)


def number(value: float | None) -> str:
    """Three decimals, more where they would all be zero, none for a whole number; a dash where there is no value."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f").replace("-", "−")
    if value == 0 or abs(value) >= 0.0095:
        text = f"{value:.3f}" if abs(value) < 100 else f"{value:,.1f}".replace(",", "\u202f")
    else:
        text = f"{value:.2g}"
    return text.replace("-", "−")


def size(count: int) -> str:
    """Bytes in a unit that keeps the number small: 1.5 MB."""
    value, unit = float(count), _UNITS[0]
    for unit in _UNITS:
        if value < 1000 or unit == _UNITS[-1]:
            break
        value /= 1000
    return f"{value:.0f}\u00a0{unit}" if unit == "B" else f"{value:.1f}\u00a0{unit}"


def short(digest: str) -> str:
    """The first twelve digits, enough to find it again."""
    return digest[:12]


def moment(time: str | None) -> str:
    """A time of the JSON twin without its offset, which is always that of UTC; a dash where there is none."""
    return "–" if time is None else time.removesuffix("+00:00").replace("T", " ")


def iso(at: int | None) -> str | None:
    """Microseconds since 1970 as ISO 8601 in UTC, to the second."""
    return None if at is None else from_microseconds(at).isoformat(timespec="seconds")


def shade(value: float | None, largest: float = 1.0) -> int:
    """The step of the colour map, 0 to 9, of a value between 0 and the largest."""
    if value is None or largest <= 0:
        return 0
    return min(9, max(0, int(10 * value / largest)))


def pretty(value: object) -> str:
    """JSON for a reader, with every character as it is, and text without its quotes unless it is empty."""
    return value if value and isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def degrees(angles: Sequence[float]) -> str:
    """The largest of some angles in radians, in degrees; a dash where there is none."""
    return f"{math.degrees(max(angles)):.1f}°" if angles else "–"
