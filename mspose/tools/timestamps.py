"""Timestamps as whole nanoseconds: a float has too few digits for nanoseconds since 1970."""

from decimal import Decimal, InvalidOperation

LATEST_SECONDS, EARLIEST_NANOSECONDS = 10**11, 10**17
"""A timestamp up to the one is in seconds, from the other on in nanoseconds, both since 1970."""


def exact_number(text: str) -> Decimal:
    """The decimal number in `text`, all its digits kept. Raises ValueError where it is none."""
    try:
        number = Decimal(text)
    except InvalidOperation:
        number = Decimal("nan")
    if not number.is_finite():
        raise ValueError(f"{text[:40]!r} is not a timestamp")
    return number


def nanoseconds(text: str) -> int:
    """Whole nanoseconds of a timestamp in seconds, or in nanoseconds as EuRoC writes it.

    Raises ValueError for what is neither: no number, or one between both (milliseconds, dates).
    """
    number = exact_number(text)
    if abs(number) >= EARLIEST_NANOSECONDS:
        return int(number)
    if abs(number) > LATEST_SECONDS:
        raise ValueError(f"{text[:40]} is too large for seconds: write timestamps in seconds")
    return int((number * 10**9).to_integral_value())


def seconds_text(time_ns: int) -> str:
    """Seconds with nine decimals: `1403636579.763555584`."""
    whole, rest = divmod(abs(time_ns), 10**9)
    return f"{'-' if time_ns < 0 else ''}{whole}.{rest:09d}"
