"""The record of a study: event schema, append-only log, read model, fronts. Only NumPy beside stdlib."""

from archsearch.study.fronts import hypervolume, non_dominated, order_front
from archsearch.study.log import StudyLog, StudyWriteError, is_live
from archsearch.study.record import Study
from archsearch.study.schema import VERSION, StudyError
from archsearch.study.trial import Header, Session, Trial

__all__ = [
    "VERSION",
    "Header",
    "Session",
    "Study",
    "StudyError",
    "StudyLog",
    "StudyWriteError",
    "Trial",
    "hypervolume",
    "is_live",
    "non_dominated",
    "order_front",
]
