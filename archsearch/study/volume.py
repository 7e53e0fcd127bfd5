"""The hypervolume's course over a study, each trial looked at once however often it is asked for."""

from collections.abc import Sequence

import numpy as np

from archsearch.study.fronts import Floats, hypervolume


class VolumeHistory:
    """The hypervolume after each of a growing list of points, in the objectives' units."""

    def __init__(self) -> None:
        self._reference: list[float] = []
        self._directions: list[str] = []
        self._points: list[list[float]] = []
        self._volumes: list[float] = []
        self._front_fd: Floats = np.empty((0, 0))

    def after(
        self, points: Sequence[list[float]], reference: Sequence[float], directions: Sequence[str]
    ) -> list[float]:
        """One volume a point, against this reference.

        Begins anew unless the points are those of the last call, or follow them, against the same reference.
        """
        against = [list(reference), list(directions)]
        if against != [self._reference, self._directions] or self._points != points[: len(self._points)]:
            self._reference, self._directions = list(reference), list(directions)
            self._points, self._volumes = [], []
            self._front_fd = np.empty((0, len(directions)))
        for point in points[len(self._points) :]:
            self._points.append(point)
            self._volumes.append(self._volume_with(point))
        return self._volumes

    def _volume_with(self, point: list[float]) -> float:
        signs_d = np.where(np.asarray(self._directions) == "maximize", -1.0, 1.0)
        losses_fd = (np.asarray(point) - self._front_fd) * signs_d
        no_better_f, no_worse_f = (losses_fd >= 0).all(axis=1), (losses_fd <= 0).all(axis=1)
        if (no_better_f & ~no_worse_f).any():
            return self._volumes[-1]
        self._front_fd = np.vstack((self._front_fd[~no_worse_f], point))
        return hypervolume(self._front_fd, self._reference, self._directions)
