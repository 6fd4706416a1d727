"""Timestamps as whole nanoseconds: a float has too few digits for nanoseconds since 1970."""

from decimal import Decimal, InvalidOperation

UNITS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
"""Unit -> nanoseconds."""
RANGES = {
    "s": (0, 10**11),
    "ms": (10**12, 5 * 10**12),
    "us": (10**15, 5 * 10**15),
    "ns": (10**17, 9 * 10**18),
}
"""Unit -> sizes of the timestamps that are in it where nothing says their unit: seconds from any
origin, the others since 1970 (of the years 2001 to 2128). Numbers between are dates, such as
20240131120000, or nothing.
"""


def exact_number(text: str) -> Decimal:
    """The decimal number in `text`, all its digits kept. Raises ValueError where it is none."""
    try:
        number = Decimal(text)
    except InvalidOperation:
        number = Decimal("nan")
    if not number.is_finite():
        raise ValueError(f"{text[:40]!r} is not a timestamp")
    return number


def nanoseconds(text: str, unit: str | None = None) -> int:
    """Whole nanoseconds of a timestamp in `unit`, one of `UNITS`; by default its size tells.

    Raises ValueError for what is no number, or of no size in `RANGES`.
    """
    number = exact_number(text)
    if unit is None:
        sizes = (name for name, (low, high) in RANGES.items() if low <= abs(number) <= high)
        unit = next(sizes, None)
    if unit is None or abs(number) * UNITS[unit] > RANGES["ns"][1]:
        raise ValueError(
            f"{text[:40]} is too large for seconds, and no timestamp in ms, us or ns since 1970:"
            " write timestamps in seconds"
        )
    return int((number * UNITS[unit]).to_integral_value())


def seconds_text(time_ns: int) -> str:
    """Seconds with nine decimals: `1403636579.763555584`."""
    whole, rest = divmod(abs(time_ns), 10**9)
    return f"{'-' if time_ns < 0 else ''}{whole}.{rest:09d}"
