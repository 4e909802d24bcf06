"""Where time comes from: an argument, so that whatever depends on it can be tested."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

Clock = Callable[[], datetime]
"""Now, with a time zone."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


def system_clock() -> datetime:
    """The machine's time in UTC."""
    return datetime.now(UTC)


def to_microseconds(moment: datetime) -> int:
    """Microseconds since 1970, exactly."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def from_microseconds(count: int) -> datetime:
    """The inverse of to_microseconds, in UTC; of what no calendar reaches, the first or the last moment of the years 1 to 9999."""
    return _EPOCH + timedelta(microseconds=min(max(count, to_microseconds(_FIRST)), to_microseconds(_LAST)))
