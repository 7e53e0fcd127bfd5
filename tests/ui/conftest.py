import pytest

from archsearch.study import Study

from . import fakes


@pytest.fixture
def live(tmp_path):
    """A live run in the middle of its work; the log is open, so readers see a writer."""
    run = fakes.midway(tmp_path / "run")
    yield run
    run.close()


@pytest.fixture
def study(live):
    return Study.read(live.run_dir)


@pytest.fixture
def finished(tmp_path):
    return fakes.finished(tmp_path / "finished")


@pytest.fixture
def empty(tmp_path):
    return fakes.empty(tmp_path / "empty")
