import ast
import multiprocessing
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from archsearch.data import corpora
from archsearch.data.corpora import Domain, load_domain, open_domain
from archsearch.data.splitting import SPLITS, Document, split_of
from archsearch.spec.vocabulary import END_OF_DOCUMENT


def documents(domain: Domain, split: str) -> list[bytes]:
    data = domain.tokens(split).tobytes()
    assert data[-1] == END_OF_DOCUMENT
    return data[:-1].split(bytes([END_OF_DOCUMENT]))


def build(cache_directory: Path) -> str:
    return str(open_domain("reference", cache_directory).directory)


def test_manifest_describes_the_files(domain: Domain) -> None:
    domain.verify()
    for split in SPLITS:
        entry = domain.manifest["splits"][split]
        assert entry["bytes"] == len(domain.tokens(split))
        assert entry["documents"] == len(documents(domain, split))


def test_splits_share_no_module(domain: Domain) -> None:
    for split in SPLITS:
        modules = domain.modules(split)
        assert modules
        assert all(split_of(module) == split for module in modules)


def test_splits_share_no_document(domain: Domain) -> None:
    seen: set[bytes] = set()
    for split in SPLITS:
        here = {b" ".join(document.split()) for document in documents(domain, split)}
        assert len(here) == domain.manifest["splits"][split]["documents"]
        assert not here & seen
        seen |= here


def test_splits_are_large_enough_to_train_and_score_on(domain: Domain) -> None:
    assert len(domain.tokens("train")) > 1_000_000
    assert min(len(domain.tokens("validation")), len(domain.tokens("test"))) > 40_000


def test_code_parses_without_docstrings_and_reference_is_prose() -> None:
    for text in documents(open_domain("code"), "test"):
        assert ast.get_docstring(ast.parse(text)) is None
    lengths = [len(text) for text in documents(open_domain("reference"), "test")]
    assert min(lengths) > 80


def test_load_domain_gives_a_read_only_map() -> None:
    tokens = load_domain("reference", "train")
    assert isinstance(tokens, np.memmap)
    assert tokens.dtype == np.uint8
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 1


def test_the_first_of_equal_documents_is_kept() -> None:
    kept = corpora._without_duplicates([Document("a", "x  y"), Document("b", "x y\n"), Document("b", "z")])
    assert kept == [Document("a", "x  y"), Document("b", "z")]


@pytest.fixture(scope="module")
def fresh_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache into which two processes have built the same domain at once."""
    directory = tmp_path_factory.mktemp("cache")
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        places = pool.map(build, [directory, directory], chunksize=1)
    assert places[0] == places[1]
    return directory


def test_builders_racing_for_one_cache_leave_one_domain(fresh_cache: Path) -> None:
    assert [path.name for path in (fresh_cache / "domains").iterdir()] == [corpora._key("reference")]
    built = open_domain("reference", fresh_cache)
    built.verify()
    assert built.manifest == open_domain("reference").manifest


def test_damage_is_found(fresh_cache: Path) -> None:
    built = open_domain("reference", fresh_cache)
    path = built.directory / "test.bin"
    data = path.read_bytes()
    path.write_bytes(b"x" + data[1:])
    with pytest.raises(ValueError, match=r"test\.bin: sha256 is"):
        built.verify()
    assert corpora._read_manifest(built.directory) == built.manifest
    path.write_bytes(data[:-1])
    assert corpora._read_manifest(built.directory) is None


def test_a_damaged_domain_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_small_library(library: Path) -> list[Document]:
        return [Document(f"module{i}", f"text {i}") for i in range(200)]

    monkeypatch.setitem(corpora._READERS, "small", read_small_library)
    target = tmp_path / "domains" / corpora._key("small")
    target.mkdir(parents=True)
    (target / "train.bin").write_bytes(b"half of it")
    built = open_domain("small", tmp_path)
    built.verify()
    assert built.directory == target
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("blocked", ["file", "read-only"])
def test_unwritable_cache_falls_back(blocked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if blocked == "file":
        (tmp_path / "cache").write_text("not a folder")
    elif os.geteuid() == 0:
        monkeypatch.setattr(corpora, "_writable", lambda directory: "cache" not in directory.name)
    else:
        (tmp_path / "cache").mkdir(mode=0o500)
    monkeypatch.setenv("ARCHSEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(corpora.tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    corpora._temporary_cache.cache_clear()
    monkeypatch.setitem(corpora._READERS, "small", lambda _: [Document(f"m{i}", f"{i}") for i in range(200)])
    try:
        assert tmp_path / "temporary" in open_domain("small").directory.parents
    finally:
        corpora._temporary_cache.cache_clear()


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'reference'"):
        open_domain("refrence")
    with pytest.raises(ValueError, match="did you mean 'validation'"):
        load_domain("reference", "valid")


def test_key_names_the_interpreter() -> None:
    assert f"{sys.version_info.major}.{sys.version_info.minor}." in corpora._key("code")
    assert corpora._key("code") != corpora._key("reference")
