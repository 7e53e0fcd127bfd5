"""A local Ray of our own: quiet, in a temporary folder, gone when the sweep is."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from archsearch.search.keeper import SESSION, kept

PREFIX = "archsearch-ray-"
MARK = ".ray"
"""In the run's folder while it is worked on: where Ray's files are, for a later session to clear up."""

ENVIRONMENT = {
    # Ray reads these when it is imported or started; each silences or disables something of its own.
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Messages of Ray's daemons are printed whatever log_to_driver says, unless the filter drops them all.
    "RAY_DEDUP_LOGS": "1",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
    "RAY_enable_metrics_collection": "0",
    # A client that lost its session's store would end this process a minute later, without a word, though the
    # session is long over: the store is watched instead.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "1000000",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Tune would write out all of its trials over and over, for a restore that is never asked for.
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    "TUNE_WARN_THRESHOLD_S": "3600",
}

_LONGEST_BASE = 24
"""Ray puts sockets some 70 characters below its folder, and a socket's path may have 107."""


@contextlib.contextmanager
def ray_session(run: Path, cpus: int, threads: int, gpus: int = 0) -> Iterator[Path]:
    """Start Ray with `cpus` cores and `gpus` GPUs; yield a folder for its files.

    threads: BLAS threads of each worker. Raises RuntimeError where Ray does not start.

    One session's daemons, sockets and files are its own: those of a killed one cannot disturb it.
    """
    clear_up(run)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=_base()))
    (run / MARK).write_text(str(folder))
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    try:
        own = {"TUNE_MAX_PENDING_TRIALS_PG": str(cpus), SESSION: str(folder)}
        with kept(folder), environment(ENVIRONMENT | own), silence():
            import ray

            ray.shutdown()
            with environment(limits), own_signals():
                ray.init(
                    address="local",
                    num_cpus=cpus,
                    num_gpus=gpus,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.CRITICAL,
                    object_store_memory=100_000_000,
                    _temp_dir=str(folder),
                )
            _take_signals_back_early()
            try:
                yield folder
            finally:
                ray.shutdown()
                take_signals_back()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        (run / MARK).unlink(missing_ok=True)


@contextlib.contextmanager
def own_signals() -> Iterator[None]:
    """Signals are ours alone while Ray starts.

    Its handlers of SIGTERM end its processes and then this one, which waits for them for a minute, before
    ours could be put back. And its processes get a group of their own: a signal to ours (as `timeout` sends)
    would end them under our hands.
    """
    from ray._private import services, utils

    class Apart(services.ConsolePopen):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, process_group=0, **kwargs)

    ours: list[tuple[Any, str, Any]] = [
        (utils, "set_sigterm_handler", lambda handler: None),
        (services, "ConsolePopen", Apart),
    ]
    with contextlib.ExitStack() as stack:
        for module, name, value in ours:
            stack.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, value)
        yield


def take_signals_back() -> None:
    """Install again what Python believes to be installed: Ray's library, when it shuts down, leaves SIGTERM
    and others to the system, which would end this process."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.getsignal(number))


def _take_signals_back_early() -> None:
    """Between the library's shutdown and the end of `ray.shutdown` Ray's processes are ended, which may take
    seconds."""
    from ray._private import worker

    node: Any = worker._global_node
    end = node.kill_all_processes

    def end_processes(*args: Any, **kwargs: Any) -> None:
        take_signals_back()
        end(*args, **kwargs)

    node.kill_all_processes = end_processes


def clear_up(run: Path) -> None:
    """Remove the files of a session of this run that was killed, or is about to be."""
    try:
        left = Path((run / MARK).read_text())
    except OSError:
        return
    if left.parent == _base() and left.name.startswith(PREFIX):
        shutil.rmtree(left, ignore_errors=True)


def _base() -> Path:
    base = Path(tempfile.gettempdir())
    return base if len(str(base)) <= _LONGEST_BASE else Path("/tmp")


@contextlib.contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Set variables, and put back what was there."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """No line of Ray's Python side reaches the terminal; failures are told through the record."""
    loggers = [logging.getLogger(name) for name in ("ray", "ray.tune", "ray.data", "ray.train")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
