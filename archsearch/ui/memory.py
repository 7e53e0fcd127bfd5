"""What drawing a study worked out, kept for the next frames for as long as it holds."""

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

from archsearch.study import Study, Trial

P = ParamSpec("P")
T = TypeVar("T")


def once_an_event(
    work: Callable[Concatenate[Study, P], T],
) -> Callable[Concatenate[Study, P], T]:
    """For what depends on the record's events alone, and not on curves or the clock.

    `work(study, ...)` is done again when an event was read, when the writer came or went, and when the other
    arguments are not those of the last time. What it returned is shared: it is not to be changed.
    """
    kept: WeakKeyDictionary[Study, tuple[Any, T]] = WeakKeyDictionary()

    @wraps(work)
    def remembered(study: Study, *arguments: P.args, **options: P.kwargs) -> T:
        asked = (study.revision, study.live, arguments, options)
        found = kept.get(study)
        if found is None or found[0] != asked:
            found = kept[study] = (asked, work(study, *arguments, **options))
        return found[1]

    return remembered


def once_a_layout(work: Callable[[list[dict[str, Any]]], T]) -> Callable[[Trial], T]:
    """`work(trial.layout)`, done again where the trial has another layout."""
    kept: WeakKeyDictionary[Trial, tuple[list[dict[str, Any]], T]] = WeakKeyDictionary()

    @wraps(work)
    def remembered(trial: Trial) -> T:
        found = kept.get(trial)
        if found is None or found[0] is not trial.layout:
            found = kept[trial] = (trial.layout, work(trial.layout))
        return found[1]

    return remembered
