"""From the stores that a chain holds in memory to collections in Postgres."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Sequence

from patchwork_adapters import stores
from patchwork_adapters.walk import Leaf
from patchwork_serving.config import Config, Paths
from patchwork_serving.progress import ProgressSink, step
from patchwork_serving.release import Collection


def export_stores(
    leaves: Sequence[Leaf], config: Config, paths: Paths, *, over_tcp: bool, progress: ProgressSink
) -> tuple[str | None, list[Collection]]:
    """Copy the content of each store that can be exported; returns the database's URL and a collection per store.

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
    return dsn, asyncio.run(_export_all(exported, dsn, config, progress))


async def _export_all(leaves: Sequence[Leaf], dsn: str, config: Config, progress: ProgressSink) -> list[Collection]:
    from patchwork_serving.store.export import export_collection
    from patchwork_serving.store.pgvector import PgVectorStore

    collections = []
    async with PgVectorStore(dsn, pool_size=1) as store:
        for leaf in leaves:
            content = stores.export(leaf.spec, leaf.obj)
            step_id = f"export-{leaf.path}"
            progress.begin(step_id, f"exporting {leaf.path} ({len(content.rows)} rows) to Postgres")
            collection = await export_collection(
                store, leaf.path, content.rows, distance=content.distance, recall_floor=config.store.recall_floor,
                ef_search=config.store.ef_search,
            )  # fmt: skip
            how = "exact scan" if collection.exact else f"ef_search {collection.ef_search}"
            progress.end(step_id, f"recall@10 {collection.recall:.3f}, {how}")
            fingerprint = stores.fingerprint(leaf.spec, leaf.obj)
            collections.append(dataclasses.replace(collection, leaf=leaf.path, fingerprint=fingerprint))
    return collections
