"""What the tests of the loaders share."""

import pytest

from ipt_fast.data import build_index, make_loader


@pytest.fixture
def opened():
    """Return a function from folders to their loader; all are closed in the end."""
    loaders = []

    def make(folders, **options):
        index = build_index(folders, progress=False)
        loaders.append(make_loader(index, **{"batch_size": 4, "workers": 0, "loader": "torch", **options}))
        return loaders[-1]

    yield make
    for loader in loaders:
        loader.close()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
