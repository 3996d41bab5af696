"""The command line used wrongly, on a machine that lacks something, and interrupted: one clear line, the right code, nothing left running.

Each test types what a person types. Chains are small and mostly without models: what is tested is how starting fails, not what is started.
"""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psycopg
import pytest

from kit.deployed import Home, a_home
from patchwork_serving import deploy
from patchwork_serving.config import Paths
from patchwork_serving.errors import DiskFull
from patchwork_serving.gpus import gpu_names
from patchwork_serving.progress import SilentProgress

CHAIN = """
from langchain_core.runnables import RunnableLambda
chain = RunnableLambda(lambda text: text) | (lambda text: text.upper())
"""
ASKS_A_MODEL = """
from langchain_openai import ChatOpenAI
chain = ChatOpenAI(model="smollm2-135m-instruct", max_tokens=4) | (lambda message: message.content)
"""
#: fails at its second import and later ones: the builder is content with it, a replica is not
FAILS_IN_REPLICAS = """
from pathlib import Path
from langchain_core.runnables import RunnableLambda
seen = Path(__file__).with_suffix(".seen")
if seen.exists():
    raise RuntimeError("the work folder is locked")
seen.touch()
chain = RunnableLambda(lambda text: text)
"""
#: the same, but its replicas never get ready
HANGS_IN_REPLICAS = FAILS_IN_REPLICAS.replace(
    'raise RuntimeError("the work folder is locked")', "__import__('time').sleep(600)"
)
HANGS = """
import time
print("importing now")
time.sleep(600)
"""


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with a_home() as made:
        yield made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A good chain, in a folder of its own for a patchwork.yaml."""
    return written(tmp_path, CHAIN)


def written(folder: Path, code: str, name: str = "my_chain.py") -> Path:
    path = folder / name
    path.write_text(code, encoding="utf-8")
    return path


def refused(result: subprocess.CompletedProcess[str], code: int, *told: str) -> str:
    """The one line of an error, after the lines of progress; facts are not printed."""
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if not line.startswith(("...  ", "ok   ", "FAIL "))]
    assert lines[0].startswith("error: "), result.stderr
    assert "Traceback" not in result.stderr
    for text in told:
        assert text in lines[0]
    return lines[0]


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("x = 1\n", ("holds no chain", ":NAME")),
        (CHAIN + "other = RunnableLambda(len) | str\n", ("2 chains", "my_chain.py:chain", "my_chain.py:other")),
        (
            "def fill():\n    raise ValueError('no corpus')\n\nfill()\n",
            ("my_chain.py, line 2", "ValueError: no corpus"),
        ),
        ("import no_such_package\n", ("line 1", "'no_such_package' is not installed", "pip install no-such-package")),
        ("import llama_index.llms.nobody\n", ("not installed", "pip install llama-index-llms-nobody")),
        ("def f(:\n", ("my_chain.py, line 1", "syntax")),
        ("import sys\nsys.exit(3)\n", ("ends the program", "__main__")),
    ],
    ids=["no chain", "two chains", "raises", "missing package", "missing integration", "syntax", "exits"],
)
def test_a_module_that_cannot_be_used_is_told_in_one_line(
    home: Home, tmp_path: Path, code: str, told: tuple[str, ...]
) -> None:
    refused(home.run("inspect", str(written(tmp_path, code))), 2, *told)


def test_a_target_that_is_not_there_is_told_before_anything_starts(home: Home) -> None:
    refused(home.run("deploy", "no_such_file.py"), 2, "no_such_file.py does not exist")
    assert home.left() == []


@pytest.mark.parametrize(
    ("settings", "code", "told"),
    [
        ("slo: [1", 2, ("patchwork.yaml line", "not valid YAML")),
        ("sloo: 2s", 2, ("unknown key 'sloo'", "--schema")),
        ("slo: soon", 2, ("slo", "not a duration")),
        ("components: {llm-other: {replicas: 2}}", 2, ("components.llm-other", "no such component")),
        (
            "models: {smollm2-135m-instruct: {source: ./none.gguf}}",
            1,
            ("patchwork.yaml: models.smollm2-135m-instruct", "none.gguf does not exist"),
        ),
    ],
    ids=["yaml", "unknown key", "bad value", "unknown component", "unknown model"],
)
def test_bad_settings_name_their_place(home: Home, file: Path, settings: str, code: int, told: tuple[str, ...]) -> None:
    file.with_name("patchwork.yaml").write_text(settings, encoding="utf-8")
    refused(home.run("inspect", str(file)), code, *told)
    assert home.left() == []


@pytest.mark.skipif(bool(gpu_names()), reason="this machine has a GPU")
def test_a_gpu_that_is_asked_for_and_absent_is_told_before_anything_starts(home: Home, file: Path) -> None:
    file.with_name("patchwork.yaml").write_text("components: {llm-x: {num_gpus: 1}}", encoding="utf-8")
    refused(home.run("deploy", str(file)), 1, "components.llm-x.num_gpus", "no GPU")
    assert home.left() == []


def test_a_home_that_cannot_be_written_is_told_with_the_remedy(home: Home, file: Path) -> None:
    result = home.run("deploy", str(file), "--port", "0", env={"PATCHWORK_HOME": str(file / "home")})
    refused(result, 1, "cannot write", "PATCHWORK_HOME")
    assert Home(file / "home").left() == []


def test_a_full_disk_is_told_before_anything_starts(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    with pytest.raises(DiskFull, match="1 MiB left.*PATCHWORK_HOME"):
        deploy.start(deploy.DeployOptions(str(file), port=0), SilentProgress(), Paths(tmp_path, tmp_path))
    assert Home(tmp_path).left() == []


def test_a_taken_port_is_told_with_the_remedy(home: Home, file: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused(home.run("deploy", str(file), "--port", str(port)), 1, f"127.0.0.1:{port}", "--port")
    assert home.left() == []


def test_a_database_that_does_not_answer_is_told_without_its_password(home: Home, file: Path) -> None:
    url = "postgresql://someone:s3cret@127.0.0.1:1/things"
    result = home.run("deploy", str(file), env={"DATABASE_URL": url})
    refused(result, 1, "127.0.0.1:1/things", "DATABASE_URL")
    assert "s3cret" not in result.stderr
    refused(home.run("deploy", str(file), env={"DATABASE_URL": "mysql://x"}), 1, "postgresql://")
    assert home.left() == []


@pytest.mark.postgres
def test_a_database_without_pgvector_is_told_with_the_remedy(home: Home, file: Path, postgres_dsn: str) -> None:
    with psycopg.connect(postgres_dsn, autocommit=True) as connection:
        connection.execute("create database bare")
        connection.execute("alter database bare set extension_control_path = '/nonexistent'")
    bare = psycopg.conninfo.make_conninfo(postgres_dsn, dbname="bare")
    refused(home.run("deploy", str(file), env={"DATABASE_URL": bare}), 1, "no pgvector", "install pgvector")
    assert home.left() == []


def test_a_cluster_that_does_not_answer_is_told_at_once(home: Home, file: Path) -> None:
    refused(home.run("deploy", str(file), env={"RAY_ADDRESS": "127.0.0.1:1"}), 1, "RAY_ADDRESS=127.0.0.1:1", "unset")
    assert home.left() == []


def test_names_that_are_not_deployed_are_told(home: Home) -> None:
    for arguments in (["down", "nobody"], ["logs", "nobody"], ["invoke", "nobody", "hello"]):
        refused(home.run(*arguments), 2, "'nobody'")
    assert home.left() == []


def test_doctor_tells_of_models_that_are_not_here(home: Home, tmp_path: Path) -> None:
    result = home.run("doctor", "--json", env={"PATCHWORK_CACHE": str(tmp_path)})
    checks = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    absent = checks["model smollm2-135m-instruct"]
    assert not absent["ok"]
    assert "patchwork models pull smollm2-135m-instruct" in absent["remedy"]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.models
def test_a_model_file_that_is_not_what_was_fetched_ends_the_start(home: Home, tmp_path: Path) -> None:
    (folder := tmp_path / "cache" / "models" / "smollm2-135m-instruct").mkdir(parents=True)
    (real,) = (Paths.from_env().models / "smollm2-135m-instruct").glob("*.gguf")
    shutil.copy(real.with_name(real.name + ".sha256"), folder)
    (folder / real.name).write_bytes(b"GGUF" + bytes(1000))
    result = home.run(
        "deploy", str(written(tmp_path, ASKS_A_MODEL)), "--port", "0", env={"PATCHWORK_CACHE": str(tmp_path / "cache")}
    )
    refused(result, 1, real.name, "patchwork models pull smollm2-135m-instruct --force")
    assert home.left() == []


@pytest.mark.ray
@pytest.mark.slow
def test_what_fails_only_in_replicas_is_told_with_its_reason_and_leaves_nothing(home: Home, tmp_path: Path) -> None:
    result = home.run("deploy", str(written(tmp_path, FAILS_IN_REPLICAS)), "--port", "0")
    refused(result, 1, "the work folder is locked")
    assert home.left() == []


@pytest.mark.ray
@pytest.mark.slow
class TestInterrupted:
    """By Ctrl-C, by the system, and by force."""

    @pytest.fixture
    def home(self) -> Iterator[Home]:
        with a_home() as made:
            yield made

    @pytest.mark.parametrize("signals", [[signal.SIGINT], [signal.SIGTERM], [signal.SIGINT, signal.SIGINT]])
    def test_while_the_module_is_imported(self, home: Home, tmp_path: Path, signals: list[signal.Signals]) -> None:
        running = home.begin("deploy", str(written(tmp_path, HANGS)), "--port", "0")
        wait_for(running, "importing my_chain.py")
        interrupt(running, signals)
        assert running.wait(60) == 1
        assert settled(home) == []

    def test_while_replicas_start(self, home: Home, tmp_path: Path) -> None:
        running = home.begin("deploy", str(written(tmp_path, HANGS_IN_REPLICAS)), "--port", "0")
        wait_for(running, "starting ingress")
        interrupt(running, [signal.SIGTERM])
        assert running.wait(60) == 1
        assert settled(home) == []

    def test_a_killed_start_is_shown_by_status_and_cleaned_by_down(self, home: Home, tmp_path: Path) -> None:
        running = home.begin("deploy", str(written(tmp_path, HANGS)), "--port", "0")
        wait_for(running, "importing my_chain.py")
        time.sleep(1.0)  # Ray's first process is there
        interrupt(running, [signal.SIGKILL])
        assert "still run" in home.run("status").stdout
        assert home.run("down").returncode == 0
        assert settled(home) == []

    def test_what_a_killed_command_served_goes_on_and_can_be_updated_and_stopped(self, home: Home, file: Path) -> None:
        running = home.begin("deploy", str(file), "--port", "0")
        wait_for(running, "is ready at")
        interrupt(running, [signal.SIGKILL])
        before = app(home)
        assert (before["state"], before["orphaned"]) == ("ready", True)

        refused(home.run("deploy", str(file), "--port", "1"), 1, "already listen", "--port")
        refused(home.run("down", "nobody"), 2, "my_chain")
        file.write_text(CHAIN.replace("upper", "lower"), encoding="utf-8")
        updated = home.run("deploy", str(file), "--detach", "--json")
        assert json.loads(updated.stdout.splitlines()[-1])["url"] == before["url"]
        assert home.run("invoke", "my_chain", "Hello").stdout.strip() == "hello"
        assert (app(home)["state"], app(home)["orphaned"]) == ("ready", False)

        again = home.begin("deploy", str(file))
        wait_for(again, "is ready at")
        interrupt(again, [signal.SIGTERM])
        assert again.returncode == 0
        assert settled(home) == []


def app(home: Home) -> dict[str, object]:
    (found,) = json.loads(home.run("status", "--json").stdout)["apps"]
    return dict(found)


def wait_for(running: subprocess.Popen[str], text: str) -> None:
    """Until the command says it; what it says afterwards is read and dropped, so that it never blocks."""
    assert running.stdout is not None
    said = []
    for line in running.stdout:
        said.append(line)
        if text in line:
            threading.Thread(target=drain, args=(running.stdout,), daemon=True).start()
            return
    raise AssertionError("".join(said))


def drain(stream: IO[str]) -> None:
    with stream:
        stream.read()


def interrupt(running: subprocess.Popen[str], signals: list[signal.Signals]) -> None:
    for signum in signals:
        running.send_signal(signum)
        time.sleep(0.3)
    running.wait(90)


def settled(home: Home, timeout_s: float = 15.0) -> list[str]:
    """What is left once killed processes have been reaped."""
    deadline = time.monotonic() + timeout_s
    while (left := home.left()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left
