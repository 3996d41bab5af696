"""From a model's name, as the user writes it, to what it is, where it is and which engine runs it. Reads file names and JSON, never weights
(one exception: a folder that may hold a packaged model is hashed to know)."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from patchwork_serving.config import ModelConfig, Paths
from patchwork_serving.errors import ModelUnknown
from patchwork_serving.gpus import gpu_names
from patchwork_serving.models.packaged import (
    MINILM,
    PACKAGED,
    EngineName,
    ModelKind,
    PackagedModel,
    installed_file,
    minilm_tokenizer,
    packaged_by_name,
)

_KIND_OF_ENGINE: Mapping[EngineName, ModelKind] = {
    "llamacpp": "llm",
    "openvino": "llm",
    "vllm": "llm",
    "transformers": "embedder",
    "onnx": "embedder",
    "reranker": "reranker",
    "external": "llm",
}
#: Where exporters put the graph inside a model folder, the best first.
_ONNX_NAMES = ("model.onnx", "onnx/model.onnx", "model_quantized.onnx", "onnx/model_quantized.onnx")


class ModelFiles(NamedTuple):
    """What an engine loads."""

    path: Path  #: a file, or a folder for engines that read Hugging Face folders
    tokenizer: Path | None = None  #: ``tokenizer.json``, when it is not beside ``path``


#: Gives the files when an engine starts, fetching them first where needed. Blocks.
Locate = Callable[[], ModelFiles]


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    name: str
    kind: ModelKind
    engine: EngineName
    source: str  #: ``packaged:NAME``, a path, ``hf:ORG/NAME`` or a URL
    path: Path | None = None  #: the file or folder to load; None: fetch it first
    tokenizer: Path | None = None  #: ``tokenizer.json``, when it is not beside ``path``
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    license: str | None = None
    size: int | None = None  #: bytes on disk, None when unknown


def resolve(name: str, models: Mapping[str, ModelConfig], paths: Paths, gpu: bool | None = None) -> ResolvedModel:
    """What ``name`` means here: an entry of ``patchwork.yaml``, a packaged model, ``hf:ORG/NAME``, or a local file or folder.

    ``gpu`` says whether there is one (None: look), because vLLM then runs a folder of a Hugging Face LLM. Raises ModelUnknown, naming
    what exists and how to add the model.
    """
    entry = models.get(name)
    if entry is not None and entry.engine == "emulated":
        return _emulated(name, entry)
    if entry is None:
        found = _by_source(name, name, paths, gpu, None)
        if found is None:
            raise ModelUnknown(_unknown(name, models))
        return found
    found = _by_source(name, entry.source or name, paths, gpu, entry.engine)
    if found is None:
        raise ModelUnknown(f"patchwork.yaml: models.{name}.source: {_unknown(entry.source or name, models)}")
    if entry.engine is not None and entry.engine != found.engine:
        found = replace(found, engine=entry.engine, kind=_KIND_OF_ENGINE[entry.engine])
    return replace(found, name=name, engine_args={**found.engine_args, **entry.engine_args})


def can_host(name: str, models: Mapping[str, ModelConfig], paths: Paths, gpu: bool | None = None) -> bool:
    """Whether :func:`resolve` finds a model that can run here."""
    try:
        return resolve(name, models, paths, gpu).engine != "external"
    except ModelUnknown:
        return False


def known_models(models: Mapping[str, ModelConfig], paths: Paths) -> list[ResolvedModel]:
    """Packaged models and the entries of ``patchwork.yaml``, by name; entries that cannot be resolved are left out."""
    found = {model.name: _packaged(model, paths) for model in PACKAGED}
    for name in models:
        try:
            found[name] = resolve(name, models, paths)
        except ModelUnknown:
            continue
    return sorted(found.values(), key=lambda model: model.name)


def cache_folder(paths: Paths, source: str) -> Path:
    """The folder of a fetched model; ``source`` is a packaged name or ``hf:ORG/NAME``."""
    return paths.models / source.removeprefix("packaged:").replace(":", "--").replace("/", "--")


def _emulated(name: str, entry: ModelConfig) -> ResolvedModel:
    args = entry.engine_args
    kind = args.get("kind")
    if kind not in ("llm", "embedder", "reranker"):
        raise ModelUnknown(
            f"patchwork.yaml: models.{name}.engine_args.kind: {kind!r} is no kind of model; give llm, embedder or reranker with rows, "
            "or a profile of such a kind (a retriever or function is emulated under components)"
        )
    return ResolvedModel(name, kind, "emulated", f"emulated:{args.get('profile', 'rows')}", engine_args=dict(args))


def _by_source(
    name: str, source: str, paths: Paths, gpu: bool | None, engine: EngineName | None
) -> ResolvedModel | None:
    if source.startswith(("http://", "https://")):
        return ResolvedModel(name, "llm", "external", source)
    packaged = packaged_by_name(source.removeprefix("packaged:"))
    if packaged is not None:
        return _packaged(packaged, paths)
    if source.startswith("hf:"):
        return _hub(name, source, paths, gpu, engine)
    path = Path(source).expanduser()
    # replicas have another working directory, so a path is known by its whole name
    return _local(str(path.absolute()), path.absolute(), paths, gpu, engine) if _looks_like_path(source, path) else None


def _looks_like_path(source: str, path: Path) -> bool:
    """``ORG/NAME`` is a hub's name unless such a folder is there."""
    return path.exists() or source.startswith(("/", "./", "../", "~")) or path.suffix in (".gguf", ".onnx")


def _packaged(model: PackagedModel, paths: Paths) -> ResolvedModel:
    path = installed_file(model.source) if model.installed else cache_folder(paths, model.name) / model.file_name
    return ResolvedModel(
        name=model.name,
        kind=model.kind,
        engine=model.engine,
        source=f"packaged:{model.name}",
        path=path if path is not None and path.is_file() else None,
        tokenizer=minilm_tokenizer() if model is MINILM else None,
        engine_args=dict(model.engine_args),
        license=model.license,
        size=model.size,
    )


def _hub(name: str, source: str, paths: Paths, gpu: bool | None, engine: EngineName | None) -> ResolvedModel:
    folder = cache_folder(paths, source)
    if folder.is_dir():
        return replace(_local(name, folder, paths, gpu, engine), source=source)
    if engine is None:
        raise ModelUnknown(
            f"{source} has not been fetched, so what it is cannot be known: run `patchwork models pull {source}`, "
            "or give its engine in patchwork.yaml (models: {"
            + name
            + ": {source: "
            + source
            + ", engine: llamacpp|openvino|onnx|reranker}})"
        )
    return ResolvedModel(name, _KIND_OF_ENGINE[engine], engine, source)


def _local(name: str, path: Path, paths: Paths, gpu: bool | None, engine: EngineName | None) -> ResolvedModel:
    if not path.exists():
        raise ModelUnknown(f"{path} does not exist; give an existing GGUF file, ONNX file or model folder")
    twin = _packaged_twin(path)
    if twin is not None and engine in (None, twin.engine):
        return replace(_packaged(twin, paths), source=str(path))
    file = _model_file(path, gpu, engine)
    found = _engine_of(file, path) if engine is None else engine
    return ResolvedModel(
        name, _KIND_OF_ENGINE[found], found, source=str(path), path=file, size=_size(file), license=_license(path)
    )


def _model_file(path: Path, gpu: bool | None, engine: EngineName | None) -> Path:
    """What the engine loads: the file itself, or the whole folder for engines that read Hugging Face folders."""
    if path.is_file():
        if path.suffix not in (".gguf", ".onnx"):
            raise ModelUnknown(f"{path} is neither a .gguf nor an .onnx file; give one of those, or a model folder")
        return path
    ggufs = sorted(path.glob("*.gguf"))
    if ggufs and engine in (None, "llamacpp", "openvino"):
        return ggufs[0]
    if engine == "openvino" and (path / "openvino_model.xml").is_file():
        return path
    onnx = next((path / name for name in _ONNX_NAMES if (path / name).is_file()), None)
    if onnx is not None and engine in (None, "onnx", "reranker"):
        return onnx
    classes = _architectures(path)
    if any(c.endswith("ForSequenceClassification") for c in classes) or engine in ("reranker", "transformers"):
        return path
    if any(c.endswith("ForCausalLM") for c in classes) and (engine == "vllm" or _has_gpu(gpu)):
        return path
    raise ModelUnknown(
        f"{path} holds nothing that an engine here can load; it needs a .gguf file (LLM), model.onnx with tokenizer.json "
        "(embedder or reranker), or a cross-encoder in Hugging Face format"
        + ("" if _has_gpu(gpu) else "; Hugging Face LLM folders need a GPU, or vLLM built for CPUs and engine: vllm")
    )


def _has_gpu(known: bool | None) -> bool:
    return bool(_gpus()) if known is None else known


@functools.cache
def _gpus() -> tuple[str, ...]:
    return tuple(gpu_names())


def _engine_of(file: Path, path: Path) -> EngineName:
    if file.suffix == ".gguf":
        return "llamacpp"
    folder = path if path.is_dir() else path.parent
    classes = _architectures(folder)
    if any(c.endswith("ForSequenceClassification") for c in classes):
        return "reranker"
    return "onnx" if file.suffix == ".onnx" else "vllm"


def _architectures(folder: Path) -> tuple[str, ...]:
    for config in (folder / "config.json", folder.parent / "config.json"):
        if config.is_file():
            try:
                document = json.loads(config.read_bytes())
            except ValueError:
                return ()
            names = document.get("architectures") if isinstance(document, dict) else None
            return tuple(str(name) for name in names) if isinstance(names, list) else ()
    return ()


def _packaged_twin(path: Path) -> PackagedModel | None:
    """The packaged model whose very weights are in this folder (a copy of the hub's, for example)."""
    for model in PACKAGED:
        for size, digest in model.same_weights:
            weights = path / "model.safetensors"
            if path.is_dir() and weights.is_file() and weights.stat().st_size == size:
                return model if _sha256(weights, weights.stat().st_mtime_ns) == digest else None
    return None


@functools.lru_cache(maxsize=16)
def _sha256(path: Path, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _license(path: Path) -> str | None:
    """The ``license:`` of a model card, if there is one."""
    card = (path if path.is_dir() else path.parent) / "README.md"
    if not card.is_file():
        return None
    for line in card.read_text(encoding="utf-8", errors="replace").splitlines()[:40]:
        if line.startswith("license:"):
            return line.removeprefix("license:").strip() or None
    return None


def _unknown(name: str, models: Mapping[str, ModelConfig]) -> str:
    known: Iterable[str] = sorted({model.name for model in PACKAGED} | set(models))
    return (
        f"{name!r} is no model that is known here; there are {', '.join(known)}. Add it to patchwork.yaml "
        f"(models: {{{name}: {{source: /path/to/model.gguf}}}}; source may also be an ONNX or Hugging Face folder, or hf:ORG/NAME)"
    )
