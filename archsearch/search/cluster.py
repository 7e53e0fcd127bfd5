"""Running trials on a Ray cluster that somebody started: it is joined and left, never started or stopped."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import archsearch
from archsearch.data import TextSpec
from archsearch.data.files import find_files
from archsearch.search import homes
from archsearch.search.away import Away, StopKey
from archsearch.search.owner import check_storage, is_run_itself
from archsearch.search.place import Place
from archsearch.search.ray_session import ENVIRONMENT, MARK, PREFIX, clear_up, environment, silence
from archsearch.search.space import SearchSpace
from archsearch.search.work import one_line

CLIENT = "ray://"
_MANY = 1 << 30
_CONNECT_SECONDS = 10.0
_ANSWER_SECONDS = 120.0
_MOST_TEXT = 200 << 20
"""Bytes of text that are sent along; Ray refuses packages of more than 512 MiB."""

_WORKERS_ENVIRONMENT = ("RAY_CHDIR_TO_TRIAL_DIR", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO")


def on_cluster(space: SearchSpace, out: Path, address: str, storage: str | None) -> Place:
    """The cluster at `address`: auto, HOST:PORT of its head, or ray://HOST:PORT.

    storage: a path or URI that all nodes share, for trials' files; default: the run's folder. Raises
    ValueError for a cluster that cannot be joined or a storage that a node does not reach, StudyError for one
    that is another run's, SpecError where no node has what a trial asks for, or does not see a text.
    """
    shared = homes.absolute(storage or str(out))
    at_run = is_run_itself(shared, out)
    if not at_run:
        check_storage(shared, out)
    _check_address(address)
    texts = _Texts(space)
    resources = space.settings.resources
    try:
        with _joined(address, texts, resources.cpu):
            fits = _fitting(space)
            _check_reach(space, fits, shared, texts, address)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"--address {address}: {_why(error)}") from None
    concurrency = min(resources.concurrent or _MANY, sum(fits.values()) // resources.processes)
    stop = StopKey(f"archsearch-stop-{uuid.uuid4().hex}")
    away = Away(shared, stop, at_run)

    @contextlib.contextmanager
    def session(run: Path) -> Iterator[Path]:
        clear_up(run)
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        (run / MARK).write_text(str(folder))
        pending = {"TUNE_MAX_PENDING_TRIALS_PG": str(concurrency)}
        try:
            with environment(pending), _joined(address, texts, resources.cpu):
                try:
                    yield folder
                finally:
                    stop.forget()
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            (run / MARK).unlink(missing_ok=True)

    return Place(concurrency, session, away)


@contextlib.contextmanager
def _joined(address: str, texts: _Texts, threads: int) -> Iterator[None]:
    """Be a driver of the cluster, whose workers have this package and the texts. threads: of each worker."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    variables = dict.fromkeys(names, str(threads)) | {
        name: ENVIRONMENT[name] for name in _WORKERS_ENVIRONMENT
    }
    with environment(ENVIRONMENT | _token_mode(address)), silence(), texts.staged() as folder:
        import ray

        ray.shutdown()
        package: dict[str, Any] = {
            "py_modules": [str(Path(archsearch.__file__).parent)],
            "excludes": ["__pycache__"],
            "env_vars": variables,
        }
        if folder is not None:
            package["working_dir"] = str(folder)
        ray.init(address=address, runtime_env=package, log_to_driver=False, logging_level=logging.CRITICAL)
        try:
            with _client_folder() if address.startswith(CLIENT) else contextlib.nullcontext():
                yield
        finally:
            ray.shutdown()


def _check_address(address: str) -> None:
    """Raises ValueError where nobody listens; Ray would try for minutes."""
    if address == "auto":
        return
    try:
        found = urlsplit(address if "://" in address else f"//{address}")
        host, port = found.hostname, found.port
    except ValueError:
        host = port = None
    if host is None or port is None or found.scheme not in ("", "ray"):
        raise ValueError(f"--address {address}: expected auto, HOST:PORT or ray://HOST:PORT")
    try:
        socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise ValueError(f"--address {address}: nobody answers there: {error}") from None


def _token_mode(address: str) -> dict[str, str]:
    """`ray start` asks for a token where it finds one, and who joins has to say so, but only then: a driver
    that asks for one itself cannot be reached by a cluster without."""
    given = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if "RAY_AUTH_MODE" in os.environ or not (given or Path("~/.ray/auth_token").expanduser().exists()):
        return {}
    if not address.startswith(CLIENT):
        asked = subprocess.run([sys.executable, "-c", _KNOCK, address], capture_output=True, text=True)
        if "AuthenticationError" not in asked.stderr:
            return {}
    return {"RAY_AUTH_MODE": "token"}


_KNOCK = """
import sys
from ray._private.services import canonicalize_bootstrap_address_or_die
from ray._raylet import GcsClient
GcsClient(address=canonicalize_bootstrap_address_or_die(sys.argv[1]))
"""


@contextlib.contextmanager
def _client_folder() -> Iterator[None]:
    """Tune asks for the folder of this node's Ray, for files of its driver; a client is on no node."""
    from ray.train._internal import storage

    folder = tempfile.mkdtemp(prefix="archsearch-client-")
    before = storage._get_ray_train_session_dir
    storage._get_ray_train_session_dir = lambda: folder
    try:
        yield
    finally:
        storage._get_ray_train_session_dir = before
        shutil.rmtree(folder, ignore_errors=True)


def _fitting(space: SearchSpace) -> dict[str, int]:
    """How many of a trial's processes fit each node, by its id. Raises SpecError where none fits."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    bundle = space.settings.resources.bundle
    fits = {node["NodeID"]: _times(bundle, node["Resources"]) for node in nodes}
    if sum(fits.values()) >= space.settings.resources.processes:
        return {node: count for node, count in fits.items() if count}
    if any(fits.values()):
        asked = space.settings.resources.processes
        raise space.refuse(("resources",), f"{asked} workers a trial; {sum(fits.values())} fit the cluster")
    for name, amount in bundle.items():
        most = max((node["Resources"].get(name, 0) for node in nodes), default=0)
        if most < amount:
            path = (name.lower(),) if name in ("CPU", "GPU") else ("custom", name)
            has = f"no node has more than {most:g}" if most else "no node of the cluster has any"
            raise space.refuse(("resources", *path), f"{amount:g} of {name} a trial; {has}")
    whole = ", ".join(f"{name}: {amount:g}" for name, amount in bundle.items())
    raise space.refuse(("resources",), f"no node of the cluster has all of {whole} that a trial asks for")


def _times(bundle: Mapping[str, float], has: Mapping[str, float]) -> int:
    """How often a bundle fits what a node has; each trial's share of a GPU is one GPU's."""
    found = _MANY
    for name, amount in bundle.items():
        there = has.get(name, 0)
        if name == "GPU":
            found = min(found, int(there) * int(1 / amount + 1e-9))
        else:
            found = min(found, int(there / amount + 1e-9))
    return found


def _check_reach(
    space: SearchSpace, nodes: Mapping[str, int], storage: str, texts: _Texts, address: str
) -> None:
    """Have every node that trials may run on look for the storage, and for texts that are not sent along."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    token = uuid.uuid4().hex[:12]
    mark = homes.joined(storage, f".{token}")
    look = ray.remote(num_cpus=0, max_retries=0)(homes.reach)
    addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
    own = {node: homes.joined(storage, f".{token}-{node[:12]}") for node in nodes}
    try:
        homes.write(mark, b"")
        asked = {
            node: look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
                mark, own[node], list(texts.elsewhere)
            )
            for node in nodes
        }
        for node, answer in asked.items():
            try:
                missing = ray.get(answer, timeout=_ANSWER_SECONDS)
            except Exception as error:
                raise ValueError(f"--address {address}: node {addresses[node]}: {_why(error)}") from None
            for file in missing:
                if file != mark:
                    raise space.refuse(
                        texts.elsewhere[file],
                        f"{file}: not on node {addresses[node]}; expected a path below the working "
                        "directory, which is sent along, or one that all nodes share",
                    )
            if missing or not homes.exists(own[node]):
                raise ValueError(
                    f"node {addresses[node]} does not share {storage}; expected --storage with a path or URI "
                    "that all nodes reach"
                )
    finally:
        for uri in (mark, *own.values()):
            homes.delete(uri)
        folder = homes.local_path(storage)
        if folder is not None:
            with contextlib.suppress(OSError):  # it holds something, and is not ours
                folder.rmdir()


class _Texts:
    """The text files that candidates are trained on. elsewhere: those outside the working directory, which
    nodes must see for themselves, with their places in the space's file."""

    def __init__(self, space: SearchSpace):
        self.sent: list[Path] = []
        self.elsewhere: dict[str, tuple[str | int, ...]] = {}
        for name, path in _text_paths(space).items():
            for file in find_files(path):
                if Path(path).is_absolute() or ".." in Path(path).parts or path.startswith("~"):
                    self.elsewhere[str(file.absolute())] = ("data", "sources", name, "text")
                else:
                    self.sent.append(file)
        size = sum(file.stat().st_size for file in self.sent)
        if size > _MOST_TEXT:
            raise ValueError(
                f"{size >> 20} MiB of text are too much to send along (at most {_MOST_TEXT >> 20} MiB); "
                "expected absolute paths that all nodes share"
            )

    @contextlib.contextmanager
    def staged(self) -> Iterator[Path | None]:
        """A folder that holds what is sent, laid out as below the working directory."""
        if not self.sent:
            yield None
            return
        with tempfile.TemporaryDirectory(prefix="archsearch-texts-") as folder:
            for file in self.sent:
                target = Path(folder, file)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
            yield Path(folder)


def _text_paths(space: SearchSpace) -> dict[str, str]:
    """The texts that candidates name, by source."""
    found = {}
    for experiment in space.samples:
        for name in (*experiment.data.mixture, *experiment.domains):
            fields = experiment.data.source(name).fields
            if isinstance(fields, TextSpec):
                found[name] = fields.path
    return found


def _why(error: BaseException) -> str:
    """An error of Ray's in one line, its cause rather than its traceback."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException):
        return one_line(f"{type(cause).__name__}: {cause}")
    return one_line(str(error).strip().partition("\n")[0] or type(error).__name__)
