import pytest

from archsearch.data.corpora import Domain, open_domain


@pytest.fixture(scope="session", params=["reference", "code"])
def domain(request: pytest.FixtureRequest) -> Domain:
    return open_domain(request.param)
