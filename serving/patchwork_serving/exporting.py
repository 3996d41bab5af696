"""From the stores that a chain holds in memory to collections in Postgres."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Callable, Sequence

from patchwork_adapters import stores
from patchwork_adapters.walk import Leaf
from patchwork_serving.config import Config, Paths
from patchwork_serving.progress import ProgressSink, step
from patchwork_serving.release import Collection


def export_stores(
    leaves: Sequence[Leaf], prefix: str, config: Config, paths: Paths, *, over_tcp: bool, progress: ProgressSink
) -> tuple[str | None, list[Collection]]:
    """Copy the content of each store that can be exported; returns the database's URL and a collection ``prefix:path`` per store.

    Without ``DATABASE_URL``, the embedded Postgres is started, but only when there is something to copy. Runs an event loop of its own.
    """
    exported = [leaf for leaf in leaves if leaf.spec.export is not None]
    dsn = os.environ.get("DATABASE_URL")
    if not exported:
        return dsn, []
    if not dsn:
        from patchwork_serving.store.embedded import EmbeddedPostgres

        with step(progress, "postgres", "starting the embedded Postgres"):
            dsn = EmbeddedPostgres(paths.postgres, tcp=over_tcp).start()
    return dsn, asyncio.run(_export_all(exported, prefix, dsn, config, progress))


async def _export_all(
    leaves: Sequence[Leaf], prefix: str, dsn: str, config: Config, progress: ProgressSink
) -> list[Collection]:
    from patchwork_serving.store.export import export_collection
    from patchwork_serving.store.pgvector import PgVectorStore

    collections = []
    async with PgVectorStore(dsn, pool_size=2) as store:
        await store.migrate()
        for leaf in leaves:
            content = stores.export(leaf.spec, leaf.obj)
            dim = len(content.rows[0].vector) if content.rows else 0
            step_id = f"export-{leaf.path}"
            progress.begin(step_id, f"exporting {leaf.path} ({len(content.rows)} rows) to Postgres")
            collection = await export_collection(
                store, f"{prefix}:{leaf.path}", content.rows, dim, content.distance, leaf=leaf.path,
                recall_floor=config.store.recall_floor, ef_search=config.store.ef_search, progress=_shown(progress, step_id),
            )  # fmt: skip
            how = "exact scan" if collection.exact else f"ef_search {collection.ef_search}"
            progress.end(step_id, f"recall@10 {collection.recall:.3f}, {how}")
            fingerprint = stores.fingerprint(leaf.spec, leaf.obj)
            collections.append(dataclasses.replace(collection, fingerprint=fingerprint))
    return collections


def _shown(progress: ProgressSink, step_id: str) -> Callable[[str, int, int], None]:
    return lambda doing, done, total: progress.update(step_id, done, total, doing)
