"""Dates as people write them, and as ISO 8601 does."""

import datetime

import numpy as np

from jaxarch.data.array_source import ArraySource
from jaxarch.data.source import Batch

NAMES = "january february march april may june july august september october november december"
MONTHS = NAMES.split()
WEEKDAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
PAD, START, END = "_", "<", ">"
SYMBOLS = PAD + START + END + " ,./0123456789abcdefghijklmnopqrstuvwxyz-"
FIRST, DAYS = datetime.date(1900, 1, 1), 55000
LONGEST = 28


def load(*, count: int = 8000) -> ArraySource:
    """src (N, 28) with lengths (N,), tgt (N, 11) that begins with the start token, label (N, 11) the token after each.

    A token is a character.
    A date between 1900 and 2050 in one of eight ways of writing ("Tuesday, 4 March 2003", "03/04/03" ...), and
    as "2003-03-04" with an end token. No day of the test pairs is in a training pair.
    """
    rng = np.random.default_rng(0)
    days = rng.permutation(DAYS)[: count + count // 5]
    test, train = np.split(days, [count // 5])
    return ArraySource(train=_pairs(train, rng), test=_pairs(test, rng), classes=len(SYMBOLS), unit="dates")


def spoken(day: datetime.date, way: int) -> str:
    """A date in one of eight ways of writing; numbers alone have the month first, as in the United States."""
    month, weekday = MONTHS[day.month - 1], WEEKDAYS[day.weekday()]
    return (
        f"{day.day} {month} {day.year}",
        f"{month} {day.day}, {day.year}",
        f"{weekday}, {day.day} {month} {day.year}",
        f"{month[:3]} {day.day}, {day.year}",
        f"{day.day}-{month[:3]}-{day.year}",
        f"{day.month}/{day.day}/{day.year}",
        f"{day.day:02}.{month[:3]}.{day.year}",
        f"{weekday[:3]} {month[:3]} {day.day:02} {day.year}",
    )[way]


def encode(texts: list[str], length: int) -> np.ndarray:
    """Texts as ids (N, length), filled up with 0."""
    return np.array([[SYMBOLS.index(c) for c in text.ljust(length, PAD)] for text in texts], np.int32)


def _pairs(days: np.ndarray, rng: np.random.Generator) -> Batch:
    dates = [FIRST + datetime.timedelta(int(d)) for d in days]
    sources = [spoken(d, int(w)) for d, w in zip(dates, rng.integers(0, 8, len(dates)), strict=True)]
    targets = encode([START + d.isoformat() + END for d in dates], 12)
    return {
        "src": encode(sources, LONGEST),
        "lengths": np.array([len(s) for s in sources], np.int32),
        "tgt": targets[:, :-1],
        "label": targets[:, 1:].copy(),
    }
