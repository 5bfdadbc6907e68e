"""Values as Grafana writes them, in the units that the panels have."""


def written(value: float, unit: str, decimals: int | None = None) -> str:
    """A value with its unit, as short as Grafana has it."""
    if unit == "percentunit":
        return f"{100 * value:.{0 if decimals is None else decimals}f} %"
    if unit == "s":
        return _duration(value)
    if unit == "bytes":
        return _scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))
    if unit == "sci":
        return f"{value:.2e}"
    if unit.startswith("si:"):
        number, _, prefix = _scaled(value, 1000, ("", "k", "M", "G")).partition(" ")
        return f"{number} {prefix}{unit.removeprefix('si:')}"
    if unit == "ops":
        return f"{_plain(value, decimals)} /s"
    if unit == "short":
        return _scaled(value, 1000, ("", "K", "Mil", "Bil")).strip()
    return _plain(value, decimals)


def _plain(value: float, decimals: int | None) -> str:
    if decimals is not None:
        return f"{value:.{decimals}f}"
    return f"{value:.0f}" if value == round(value) else f"{value:.3g}"


def _scaled(value: float, base: int, names: tuple[str, ...]) -> str:
    power = 0
    while abs(value) >= base and power < len(names) - 1:
        value, power = value / base, power + 1
    return f"{value:.3g} {names[power]}".rstrip() if names[power] or value != round(value) else f"{value:.0f}"


def _duration(seconds: float) -> str:
    for length, name in ((86400.0, "day"), (3600.0, "hour"), (60.0, "min"), (1.0, "s")):
        if abs(seconds) >= length:
            return f"{seconds / length:.3g} {name}"
    return f"{1000 * seconds:.3g} ms"
