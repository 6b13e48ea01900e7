"""What HTTP headers say: when to come back, and what a body is."""

from __future__ import annotations

import email.utils
import math
import time
from functools import lru_cache


def retry_after(value: str | None) -> float | None:
    """Seconds to wait, from `Retry-After` as seconds or as a date (RFC 9110, 10.2.3); None where it says neither."""
    text = (value or "").strip()
    try:
        if text.replace(".", "", 1).isdecimal():
            wait = float(text)
        else:
            wait = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return None
    return max(0.0, wait) if math.isfinite(wait) else None


@lru_cache(maxsize=64)
def media_type(value: str | None) -> tuple[str, str | None]:
    """The type of a body in small letters, and its charset, from `Content-Type`."""
    kind, *parameters = (value or "").split(";")
    charset = next(
        (text.strip()[8:].strip("\"' ") for text in parameters if text.strip()[:8].lower() == "charset="), None
    )
    return kind.strip().lower(), charset or None
