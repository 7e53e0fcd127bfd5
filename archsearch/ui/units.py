"""Numbers as people read them: short, and with their unit."""

import math

_THOUSANDS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def count(number: float) -> str:
    """A count in three digits or so: 987, 135k, 1.35M."""
    for scale, suffix in _THOUSANDS:
        if abs(number) >= 0.9995 * scale:
            return f"{three(number / scale)}{suffix}"
    return f"{number:.0f}"


def size(number: float) -> str:
    """Bytes in binary units: 512 B, 12 KiB, 1.5 MiB."""
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if abs(number) >= 1024**power:
            scaled = number / 1024**power
            return f"{scaled:.0f} {unit}" if scaled == round(scaled) else f"{three(scaled)} {unit}"
    return f"{number:.0f} B"


def duration(seconds: float) -> str:
    """Seconds as 8.4s, 42s, 3m12s, 2h05m, 3d04h."""
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def value(number: float | None) -> str:
    """An objective's value in about four characters: 0.982, 4.21, 12.6, 1.3e-05; a dash for none."""
    if number is None or not math.isfinite(number):
        return "–"
    if number == 0:
        return "0"
    if abs(number) >= 1e5 or abs(number) < 1e-3:
        return f"{number:.1e}"
    if abs(number) < 1:
        return f"{number:.3f}"
    return three(number)


def three(number: float) -> str:
    """Three significant digits without an exponent; all digits of a larger whole number."""
    magnitude = abs(number)
    if magnitude >= 99.95:
        return f"{number:.0f}"
    return f"{number:.1f}" if magnitude >= 9.995 else f"{number:.2f}"


def setting(entry: object) -> str:
    """A hole's value as it was sampled."""
    if isinstance(entry, bool) or not isinstance(entry, float):
        return str(entry)
    return f"{entry:.3g}"


def cost(name: str, number: float) -> str:
    """A cost with the unit that its name implies."""
    if "bytes" in name:
        return size(number)
    return f"{count(number)}FLOP" if "flops" in name else count(number)


def arrow(direction: str) -> str:
    """Which way is better."""
    return "↑" if direction == "maximize" else "↓"


def share(value: float) -> str:
    """A share as a percentage, never rounded down to nothing: 0.027 -> `2.7%`."""
    if 0 < value < 0.001:
        return "<0.1%"
    return f"{100 * value:.2g}%" if value < 1 else f"{100 * value:.0f}%"
