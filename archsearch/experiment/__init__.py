"""An experiment: arch + data + training + evaluation, and one run of it."""

from archsearch.experiment.spec import Experiment, load_experiment

__all__ = ["Experiment", "load_experiment"]
