"""`archsearch`, with every point of a learning curve also written where nothing takes it back.

A trial that goes on from a checkpoint drops the points after it from its curve; `worked.jsonl`, beside it,
keeps all that was ever done, so that a step taken twice can be counted.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from archsearch.search import tuning
from archsearch.search.worker import TrialWorker

WORKED = "worked.jsonl"


class CountedWorker(TrialWorker):
    def setup(self, config: dict[str, Any]) -> None:
        from archsearch.experiment.run import ExperimentRun

        if not hasattr(ExperimentRun, "counted"):
            log = ExperimentRun._log

            def counted(run: ExperimentRun, point: dict[str, Any]) -> None:
                log(run, point)
                with open(run.folder / "worked.jsonl", "a") as file:
                    file.write(json.dumps(point) + "\n")

            ExperimentRun._log = counted  # type: ignore[method-assign]
            ExperimentRun.counted = True  # type: ignore[attr-defined]
        super().setup(config)


if __name__ == "__main__":
    tuning.TrialWorker = CountedWorker  # type: ignore[misc]
    from archsearch.cli import main

    sys.argv[0] = "archsearch"
    main()
