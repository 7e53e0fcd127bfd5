"""`report.html`: the study on one page that needs no network, in light and dark."""

import os
import time
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from archsearch.study import Study, Trial
from archsearch.study.promotion import read_results
from archsearch.study.schema import FRONT, SPACE, SPEC, TRIALS
from archsearch.ui import promotion, theme
from archsearch.ui.blocks import clean
from archsearch.ui.glyphs import kinds, layer_glyph, merge_mark
from archsearch.ui.svg import anchor, curve_charts, front_chart
from archsearch.ui.table import mark, mixture_shares, ordered, outcome, settings
from archsearch.ui.units import arrow, count, duration, size, value

_CURVES = 60


def page(study: Study, folder: Path) -> str:
    """The whole page; links to the run's files are relative to `folder`, where the page will lie."""
    style = resources.files(__package__).joinpath("page.css").read_text("utf-8")
    script = resources.files(__package__).joinpath("page.js").read_text("utf-8")
    sections = [_head(study, folder), _tiles(study), _promotion(study), _front(study, folder), _curves(study)]
    sections += [_trials(study, folder), _failures(study), _foot(study)]
    title = _text(study.header.name)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title} · archsearch</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        + "\n".join(filter(None, sections))
        + f"\n<script>\n{script}</script>\n</body>\n</html>\n"
    )


def layout_html(layout: Sequence[dict[str, Any]]) -> str:
    """A layout as a row of coloured cells, parallel branches above one another in a frame."""
    return f'<span class="lay">{"".join(_item(item) for item in layout)}</span>'


def _item(item: dict[str, Any]) -> str:
    if theme.is_parallel(item):
        merge = str(item.get("merge", "?"))
        branches = "".join(layout_html(branch) for branch in item.get("branches", ()))
        title = _text(f"parallel, merged by {merge}")
        return (
            f'<span class="par" title="{title}">{branches}</span>'
            f'<span class="merge" title="{title}">{merge_mark(merge)}</span>'
        )
    kind, window = str(item.get("kind", "?")), item.get("window")
    colour = theme.layer_colour(str(item.get("family")), kind, bool(window))
    title = _text(kind + (f", window {window}" if window else ""))
    return f'<span class="g" style="background:{colour}" title="{title}">{_text(layer_glyph(item))}</span>'


def _head(study: Study, folder: Path) -> str:
    head = study.header
    began = time.strftime("%Y-%m-%d %H:%M", time.localtime(head.time)) if head.time else "not begun"
    facts = [study.status, began]
    facts += [f"sampler {head.sampler}"] if head.sampler else []
    facts += [f"seed {head.seed}"] if head.seed is not None else []
    facts.append(f"{head.concurrency} trials at a time")
    facts += [f"{count(amount)} {name} a trial" for name, amount in head.budget.items() if _number(amount)]
    facts += [f"space {head.space_hash}"] if head.space_hash else []
    files = [
        _link(study, folder, name, name) for name in (SPACE, "trials.csv", "trials.parquet", "front.png")
    ]
    links = " · ".join(link for link in files if link)
    return (
        f'<header><span class="badge">archsearch</span><h1>{_text(head.name)}</h1>'
        f'<p class="about">{" · ".join(_text(fact) for fact in facts)}</p>'
        f'<p class="about">{links}</p></header>'
    )


def _tiles(study: Study) -> str:
    counts = study.counts()
    others = ", ".join(f"{number} {state}" for state, number in counts.items() if state != "complete")
    done = f"{counts.get('complete', 0)}<small>/{study.total}</small>"
    tiles = [_tile(done, f"complete; {others}" if others else "complete")]
    for name, direction in study.header.objectives.items():
        best = study.best(name)
        found = _text(value(best.values[name])) if best else "–"
        whose = f" (trial {best.id})" if best else ""
        tiles.append(_tile(found, f"best {name} {arrow(direction)}{whose}", "best"))
    if study.front():
        against = ", ".join(f"{name} {value(entry)}" for name, entry in study.reference.items())
        assumed = "; worst seen" if study.assumed_reference else ""
        tiles.append(_tile(value(study.hypervolume()), f"hypervolume against {against}{assumed}", "best"))
        tiles.append(_tile(str(len(study.front())), "trials on the front"))
    tiles.append(_tile(duration(study.elapsed), "elapsed"))
    return f'<section class="tiles">{"".join(tiles)}</section>'


def _tile(figure: str, words: str, kind: str = "") -> str:
    return f'<div class="tile {kind}"><b>{figure}</b><span>{_text(words)}</span></div>'


def _front(study: Study, folder: Path) -> str:
    front = study.front()
    if not front:
        return _section(
            "Front", "", '<p class="card quiet">No trial has completed, so there is no front.</p>'
        )
    seen = {theme.composition(trial.layout) for trial in study.complete}
    keys = ['<span><i class="ring"></i>front</span>']
    keys += [_key(name, colour) for name, colour in theme.COMPOSITIONS.items() if name in seen]
    heads = _heads(study)
    rows = "".join(_row(study, trial, folder, member=True) for trial in front)
    note = f"{len(front)} of {len(study.complete)} complete trials: no other is as good in every objective"
    chart = f'<div class="card">{front_chart(study)}<div class="keys">{"".join(keys)}</div></div>'
    listed = _section("On the front", "", _legend(study, front) + _table(heads, rows))
    return _section("Front", note, chart) + listed


def _promotion(study: Study) -> str:
    results = read_results(study.run_dir)
    return "" if results is None else promotion.section(results)


def _legend(study: Study, trials: Iterable[Trial]) -> str:
    layers = [
        _key(f"{glyph} {name}", colour, "square") for glyph, name, colour in kinds([t.layout for t in trials])
    ]
    named = study.header.sources
    sources = [_key(name, theme.source_colour(name, named), "square") for name in named]
    return f'<div class="keys">{"".join(layers)}</div><div class="keys">{"".join(sources)}</div>'


def _curves(study: Study) -> str:
    front = study.front()
    members = {trial.id for trial in front}
    others = [trial for trial in study.trials.values() if trial.id not in members]
    charts = curve_charts(study, [*front, *others][:_CURVES])
    if not charts:
        return ""
    figures = []
    for trial, chart in charts:
        star = "★ " if trial.id in members else ""
        told = (
            f'<span class="failed">{_text(trial.state)}</span>'
            if trial.state == "failed"
            else value(trial.loss)
        )
        figures.append(
            f'<figure class="{"member" if star else ""}"><figcaption><a class="id" href="#{anchor(trial)}">'
            f"{star}{_text(trial.id)}</a><span>{told}</span></figcaption>{chart}</figure>"
        )
    note = "training loss in nats a token against steps; grey: the other trials"
    return _section("Learning", note, f'<div class="curves">{"".join(figures)}</div>')


def _trials(study: Study, folder: Path) -> str:
    if not study.trials:
        return _section("All trials", "", '<p class="card quiet">This study has no trials.</p>')
    heads = [*_heads(study), "time", "outcome"]
    rows = "".join(_row(study, trial, folder, member=False) for trial in ordered(study))
    return _section("All trials", "click a column to sort", _table(heads, rows, "sortable"))


def _row(study: Study, trial: Trial, folder: Path, member: bool) -> str:
    """A trial's row: of the front's table if `member`, else of the table of all trials, where links lead."""
    on_front = study.on_front(trial)
    character, colour = mark(study, trial)
    sign = f'<span style="color:{colour}">{character}</span> '
    cells = [
        f'<td class="id" data-key="{_text(trial.id)}">{sign}{_text(trial.id)}</td>',
        f"<td>{layout_html(trial.layout)}</td>",
        f"<td>{_mixture(study, trial)}</td>",
        _amount(trial.cost.get("params"), count),
        _amount(trial.cost.get("state_bytes"), size),
    ]
    for name in study.objectives:
        best = study.best(name)
        cells.append(_amount(trial.values.get(name), value, "top" if best and best.id == trial.id else ""))
    cells.append(f'<td class="settings">{_text(settings(trial))}</td>')
    cells.append(f"<td>{_spec_links(study, trial, folder)}</td>")
    if not member:
        cells.append(_amount(trial.seconds, duration))
        told = "on the front" if on_front else outcome(trial, brief=True) or trial.state
        kind = "failed" if trial.state == "failed" else "quiet"
        cells.append(f'<td class="{kind}">{_text(told)}</td>')
    name = "" if member else f' id="{anchor(trial)}"'
    return f'<tr class="{"member" if on_front else ""}"{name}>{"".join(cells)}</tr>'


def _failures(study: Study) -> str:
    failed = [trial for trial in study.trials.values() if trial.state == "failed"]
    if not failed:
        return ""
    rows = []
    for trial in failed:
        cause = trial.cause or {}
        rows.append(
            f'<tr><td class="id">{_text(trial.id)}</td>'
            f'<td class="failed">{_text(cause.get("kind", "unknown"))}</td>'
            f"<td>{_text(cause.get('step', '–'))}</td>"
            f"<td><pre>{_text(cause.get('message', ''))}</pre></td></tr>"
        )
    table = _table(["trial", "cause", "step", "message"], "".join(rows))
    return _section("Failures", "recorded, and the sweep went on", table)


def _foot(study: Study) -> str:
    notes = [
        _text(note.get("message", "")) for note in study.notes if note.get("level") in ("warning", "error")
    ]
    told = "".join(f"<li>{note}</li>" for note in notes)
    section = _section("Notes", "", f"<ul>{told}</ul>") if told else ""
    return (
        f"{section}<footer>Written by archsearch from the run's own record; this page loads nothing.</footer>"
    )


def _mixture(study: Study, trial: Trial) -> str:
    total = sum(share for share, _ in mixture_shares(study, trial)) or 1.0
    named = [*study.header.sources, *(name for name in trial.mixture if name not in study.header.sources)]
    told = ", ".join(
        f"{name} {trial.mixture[name]:.1%}" for name in named if _number(trial.mixture.get(name))
    )
    parts = "".join(
        f'<span style="width:{share / total:.2%};background:{colour}"></span>'
        for share, colour in mixture_shares(study, trial)
    )
    return f'<span class="mix" title="{_text(told)}">{parts}</span>'


def _spec_links(study: Study, trial: Trial, folder: Path) -> str:
    links = [
        _link(study, folder, str(path.relative_to(study.run_dir)), "yaml")
        for path in sorted((study.run_dir / FRONT).glob("*.yaml"))
        if trial.id in path.stem.replace("_", "-").split("-")
    ]
    links.append(_link(study, folder, f"{TRIALS}/{trial.id}/{SPEC}", "yaml"))
    return next((link for link in links if link), "")


def _link(study: Study, folder: Path, name: str, words: str) -> str:
    """A link to a file of the run, empty where there is none."""
    path = study.run_dir / name
    if not path.is_file() and name not in ("trials.csv", "trials.parquet", "front.png"):
        return ""
    base = folder if name in ("trials.csv", "trials.parquet", "front.png") else study.run_dir
    return f'<a href="{_text(Path(os.path.relpath(base / name, folder)).as_posix())}">{_text(words)}</a>'


def _heads(study: Study) -> list[str]:
    objectives = [f"{name} {arrow(direction)}" for name, direction in study.header.objectives.items()]
    return ["trial", "layout, input to output", "mixture", "params", "state", *objectives, "sampled", "spec"]


def _section(title: str, note: str, body: str) -> str:
    told = f" <small>{_text(note)}</small>" if note else ""
    return f"<section><h2>{_text(title)}{told}</h2>{body}</section>"


def _table(heads: Iterable[str], rows: str, kind: str = "") -> str:
    head = "".join(f"<th>{_text(name)}</th>" for name in heads)
    table = f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return f'<div class="card scroll">{table}</div>'


def _amount(amount: Any, show: Any, kind: str = "") -> str:
    if not _number(amount):
        return '<td class="number quiet" data-key="">–</td>'
    return f'<td class="number {kind}" data-key="{amount!r}">{_text(show(amount))}</td>'


def _key(words: str, colour: str, shape: str = "") -> str:
    return f'<span><i class="{shape}" style="background:{colour}"></i>{_text(words)}</span>'


def _text(words: object) -> str:
    return escape(clean(str(words)))


def _number(amount: object) -> bool:
    return isinstance(amount, int | float) and not isinstance(amount, bool)
