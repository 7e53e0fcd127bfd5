"""A promotion's results for a person: tables in the terminal, a section of the report."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from archsearch.study.promotion import SIGNIFICANT
from archsearch.ui.blocks import clean
from archsearch.ui.units import arrow, count, value

_PAGE = 120
"""Columns of what is printed where there is no terminal."""

Results = Mapping[str, Any]
"""What `archsearch.study.promotion.analyse` returns."""


def point_rows(results: Results) -> tuple[list[str], list[list[str]]]:
    """Heads and rows: each point's values with their 95 % intervals, and as searched."""
    objectives = results["objectives"]
    heads = ["point", "params", "seeds"]
    for name, direction in objectives.items():
        heads += [f"{name} {arrow(direction)}", "searched"]
    rows = []
    for point in results["points"]:
        values = point["values"]
        seeds = max((one["n"] for one in values.values()), default=0)
        failed = f", {point['failed']} failed" if point["failed"] else ""
        params = count(point["params"]) if point["params"] is not None else "–"
        row = [point["point"] + (" (baseline)" if point["baseline"] else ""), params, f"{seeds}{failed}"]
        for name in objectives:
            row += [_interval(values[name]), value(values[name]["searched"])]
        rows.append(row)
    return heads, rows


def difference_rows(results: Results) -> tuple[list[str], list[list[str]]]:
    """Heads and rows: each pair of points in each objective."""
    rows = []
    for one in results["differences"]:
        pair = f"{one['a']} − {one['b']}"
        interval = "–" if one["low"] is None else f"{value(one['low'])} to {value(one['high'])}"
        told = "–" if one["p_holm"] is None else "real" if one["real"] else "not shown"
        rows.append([one["objective"], pair, value(one["difference"]), interval, _p(one["p_holm"]), told])
    return ["objective", "points", "by", "95 % interval", "p (Holm)", ""], rows


def correlation_lines(results: Results) -> list[str]:
    """One line an objective: how the search's ranking held."""
    lines = []
    for name, found in results["rank_correlation"].items():
        told = "too few points, or all alike"
        if found["rho"] is not None:
            sure = [] if found["low"] is None else [f"{found['low']:.2f} to {found['high']:.2f}"]
            sure += [] if found.get("p") is None else [f"p {_p(found['p'])}"]
            told = f"{found['rho']:.2f} ({', '.join(sure)}), {found['n']} points"
        lines.append(f"rank correlation with the search, {name}: {told}")
    return lines


def print_promotion(results: Results, console: Console | None = None) -> None:
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, _PAGE)  # a file has room, and names are not to be cut
    for title, (heads, rows) in (
        (f"{_about(results)}; mean ± 95 % interval", point_rows(results)),
        (f"{_tests(results)}; real: corrected p < {SIGNIFICANT:g}", difference_rows(results)),
    ):
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for i, head in enumerate(heads):
            table.add_column(head, justify="left" if i == 0 else "right", no_wrap=True)
        for row in rows:
            table.add_row(*map(clean, row))
        if rows:
            console.print(table)
    for line in correlation_lines(results):
        console.print(line, highlight=False)


def section(results: Results) -> str:
    """The report's section, as HTML."""
    about = f"{_about(results)}; mean and 95 % interval of the mean (Student's t)"
    parts = [
        f"<section><h2>Promotion <small>{_text(about)}</small></h2>",
        _table(*point_rows(results)),
    ]
    heads, rows = difference_rows(results)
    if rows:
        note = f"{_tests(results)}; real: p below {SIGNIFICANT:g} after Holm's correction over all rows"
        parts.append(f"<h2>Differences <small>{_text(note)}</small></h2>{_table(heads, rows)}")
    lines = "".join(f"<li>{_text(line)}</li>" for line in correlation_lines(results))
    parts.append(
        f"<ul>{lines}</ul><p class='quiet'>Spearman's rho, 95 % bootstrap interval over points, and p: how "
        "often chance orders them as well</p></section>"
    )
    return "".join(parts)


def _about(results: Results) -> str:
    asked = results["request"]
    seeds = results["new_seeds"]
    scale = f", scaled by width {asked['width']:g} and depth {asked['depth']}"
    tokens = f", {count(asked['tokens'])} tokens" if asked["tokens"] else ""
    larger = scale if (asked["width"], asked["depth"]) != (1, 1) else ""
    span = f"{seeds[0]}–{seeds[-1]}" if len(seeds) > 1 else str(seeds[0])
    return f"from {asked['run']}{larger}{tokens}, seeds {span}, scored on the {results['split']} split"


def _tests(results: Results) -> str:
    words = {"paired": "paired by seed", "welch": "Welch's test", "none": "one seed: untested"}
    used = dict.fromkeys(words[one["test"]] for one in results["differences"])
    return f"differences, {' or '.join(used)}"


def _interval(found: Mapping[str, Any]) -> str:
    if found["mean"] is None:
        return "–"
    if found["low"] is None:
        return value(found["mean"])
    return f"{value(found['mean'])} ± {value((found['high'] - found['low']) / 2)}"


def _p(p: float | None) -> str:
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _table(heads: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{_text(one)}</th>" for one in heads)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="{"id" if i == 0 else "number"}">{_text(cell)}</td>' for i, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="card scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _text(words: str) -> str:
    return escape(clean(words))
