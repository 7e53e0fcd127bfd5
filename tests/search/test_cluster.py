"""Sweeps on clusters of two nodes: trials run on both, and go on when a node, or the driver, is lost."""

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from archsearch.study import Study
from tests.search.test_driver import SPACES, assert_whole, events, states, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

PATIENCE_SECONDS = 300.0
STORE = 100_000_000
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
IDLE = """
import sys, time, ray
ray.init(address=sys.argv[1], log_to_driver=False)
for _ in range(200):
    if ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"]:
        sys.exit(0)
    time.sleep(0.1)
sys.exit(f"still in use: {ray.available_resources()} of {ray.cluster_resources()}")
"""


def space(tmp_path: Path, trials: int, tokens: str, resources: str = "{}") -> Path:
    text = (SPACES / "tiny.yaml").read_text()
    for old, new in (
        ("trials: 4", f"scheduler: none, trials: {trials}"),
        ("8K", tokens),
        ("{concurrent: 2}", resources),
    ):
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "space.yaml"
    path.write_text(text)
    return path


def sweep(path: Path, run: Path, address: str, *more: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "archsearch", "sweep", str(path), "--out", str(run), "--no-dashboard"]
    return subprocess.Popen(
        [*command, "--address", address, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    return process.returncode, out + err


def nodes_of(run: Path, state: str = "complete") -> set[str]:
    return {event["node"] for event in events(run) if event["state"] == state}


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Ray's sockets have long names."""
    folder = Path(tempfile.mkdtemp(prefix="cl-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def cluster(short_folder: Path) -> Iterator[Any]:
    """Two nodes of one core each."""
    from ray._common.utils import get_default_ray_temp_dir
    from ray.cluster_utils import Cluster

    # It notes its address there, and fails where no Ray has ever run.
    Path(get_default_ray_temp_dir()).mkdir(parents=True, exist_ok=True)
    node = {"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False}
    found = Cluster(initialize_head=True, head_node_args={**node, "temp_dir": str(short_folder)})
    found.add_node(**node)
    yield found
    found.shutdown()


def test_a_sweep_uses_both_nodes(cluster: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, printed = ended(sweep(space(tmp_path, 16, "20K"), run, cluster.address))
    assert code == 0, printed
    study = assert_whole(run, trials=16)
    assert study.header.concurrency == 2
    assert len(nodes_of(run)) == 2
    assert all((run / "trials" / trial / "weights.safetensors").exists() for trial in states(run, "complete"))


def test_a_sweep_outlives_one_of_its_nodes(cluster: Any, tmp_path: Path) -> None:
    """Killed when trials have ended on both nodes and more are half-way."""
    run = tmp_path / "run"
    process = sweep(space(tmp_path, 16, "60K"), run, cluster.address)
    wait_for(lambda: len(states(run, "complete")) >= 6)
    wait_for(lambda: len(list(run.glob("trials/*/checkpoint.pt"))) == 2)
    victim = cluster.worker_nodes.copy().pop()
    cluster.remove_node(victim, allow_graceful=False)
    code, printed = ended(process)
    assert code == 0, printed
    study = assert_whole(run, trials=16)
    assert len(nodes_of(run)) == 2
    lost = [event for event in events(run) if event.get("retries")]
    assert len({event["trial"] for event in lost}) == 1
    assert study.trials[lost[0]["trial"]].state == "complete"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def head(port: int, folder: Path, client: int) -> list[str]:
    """Arguments of `ray start`. client: the port of its Ray Client, where that is installed."""
    found = ["--head", f"--port={port}", f"--temp-dir={folder}", "--include-dashboard=false"]
    has_client = importlib.util.find_spec("grpc") is not None
    return [*found, f"--ray-client-server-port={client}"] if has_client else found


@contextlib.contextmanager
def ray_started(folder: Path, *nodes: list[str]) -> Iterator[None]:
    """Nodes that were started with these arguments. folder: for what they print."""
    started = []
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    try:
        for arguments in nodes:
            log = open(folder / f"{len(started)}.log", "w+")  # noqa: SIM115
            started.append(
                subprocess.Popen(
                    [*RAY, "start", *arguments, f"--object-store-memory={STORE}", "--block"],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                )
            )
            wait_for(lambda log=log: "Ray runtime started" in Path(log.name).read_text())
        yield
    finally:
        for process in reversed(started):
            process.send_signal(signal.SIGTERM)
        for process in started:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def by_hand(short_folder: Path) -> Iterator[str]:
    """Two nodes started as the README says; the second has a custom resource. Yields the address."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    other = [f"--address={address}", "--num-cpus=1", "--resources", '{"fast": 1}']
    with ray_started(short_folder, [*head(port, short_folder, free_port()), "--num-cpus=1"], other):
        yield address


def assert_idle(address: str) -> None:
    """Nothing of the sweep is left in the cluster, which is as it was."""
    found = subprocess.run(
        [sys.executable, "-c", IDLE, address], capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert found.returncode == 0, found.stderr


def test_a_killed_and_an_interrupted_driver_leave_nothing_behind(by_hand: str, tmp_path: Path) -> None:
    """Trials ask for what one node has, and keep their files apart from the run."""
    path = space(tmp_path, 4, "100K", "{custom: {fast: 0.5}}")
    run, kept = tmp_path / "run", tmp_path / "kept"
    more = ("--storage", kept.as_uri())
    first = sweep(path, run, by_hand, *more)
    wait_for(lambda: list(kept.glob("trials/*/checkpoint.pt")))
    first.kill()
    first.communicate()
    assert_idle(by_hand)

    code, printed = ended(sweep(path, tmp_path / "other", by_hand, *more))
    assert (code, printed.count("\n")) == (2, 1)
    assert printed.startswith(f"{kept.as_uri()}: is used by another run, {run} on ")
    assert not (tmp_path / "other").exists()

    second = sweep(path, run, by_hand, *more)
    wait_for(lambda: states(run, "complete"))
    trial = wait_for(
        lambda: [name for name in states(run, "running") if name not in states(run, "complete")]
    )[0]
    wait_for(lambda: (kept / "trials" / trial / "metrics.jsonl").exists())
    os.killpg(second.pid, signal.SIGINT)
    code, printed = ended(second)
    assert code == 130, printed
    assert (kept / "trials" / trial / "checkpoint.pt").exists()
    assert_idle(by_hand)

    code, printed = ended(sweep(path, run, by_hand, *more))
    assert code == 0, printed
    study = Study.read(run)
    assert study.counts() == {"complete": 4}
    assert len(states(run, "complete")) == 4
    assert len(nodes_of(run)) == 1
    for name in study.trials:
        assert {path.name for path in (run / "trials" / name).iterdir()} == {"spec.yaml", "metrics.jsonl"}
        assert (kept / "trials" / name / "weights.safetensors").exists()
        assert not (kept / "trials" / name / "checkpoint.pt").exists()
    assert_idle(by_hand)


def test_what_the_cluster_cannot_give_is_said_in_a_line(by_hand: str, tmp_path: Path) -> None:
    cases = {
        "{gpu: 1}": "resources.gpu: 1 of GPU a trial; no node of the cluster has any",
        "{custom: {slow: 1}}": "resources.custom.slow: 1 of slow a trial; no node of the cluster has any",
        "{cpu: 2}": "resources.cpu: 2 of CPU a trial; no node has more than 1",
    }
    for resources, message in cases.items():
        code, printed = ended(sweep(space(tmp_path, 4, "8K", resources), tmp_path / "run", by_hand))
        assert code == 2
        assert message in printed
        assert printed.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "nobody answers there"),
        ("127.0.0.1", "expected auto, HOST:PORT or ray://HOST:PORT"),
        ("http://127.0.0.1:1", "expected auto, HOST:PORT or ray://HOST:PORT"),
    ],
)
def test_a_wrong_address_is_said_in_a_line(tmp_path: Path, address: str, message: str) -> None:
    code, printed = ended(sweep(SPACES / "tiny.yaml", tmp_path / "run", address))
    assert code == 2
    assert printed.startswith(f"--address {address}: {message}")
    assert printed.count("\n") == 1


def test_two_nodes_train_a_trial_together(cluster: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, printed = ended(sweep(space(tmp_path, 2, "8K", "{workers: 2}"), run, cluster.address))
    assert code == 0, printed
    assert assert_whole(run, trials=2).header.concurrency == 1


def test_a_sweep_through_ray_client(short_folder: Path, tmp_path: Path) -> None:
    """The driver is on no node of the cluster, and sees no Ray but the head's port for clients."""
    pytest.importorskip("grpc", reason="Ray Client needs pip install 'ray[client]'")
    client = free_port()
    address, run = f"ray://127.0.0.1:{client}", tmp_path / "run"
    with ray_started(short_folder, [*head(free_port(), short_folder, client), "--num-cpus=2"]):
        wait_for(lambda: answers(client))
        code, printed = ended(sweep(space(tmp_path, 4, "8K"), run, address))
    assert code == 0, printed
    study = assert_whole(run, trials=4)
    assert study.counts() == {"complete": 4}
    assert study.header.concurrency == 2
    assert len(nodes_of(run)) == 1
