-- The vector extension must be there before; the store checks it and says how to get it.

-- loading: rows are being written, the index built, the recall measured; nobody searches it.
-- ready:   searched. At most one per name; replacing it deletes the old one in the same transaction.
CREATE TYPE patchwork.collection_state AS ENUM ('loading', 'ready');

CREATE TYPE patchwork.distance AS ENUM ('cosine', 'l2', 'inner_product');

-- One row per exported vector store. Its vectors are in the table patchwork.rows_ID.
CREATE TABLE patchwork.collections (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name         text NOT NULL,
    state        patchwork.collection_state NOT NULL DEFAULT 'loading',
    dim          integer NOT NULL,             -- 0: unknown yet, because the store was empty
    distance     patchwork.distance NOT NULL,
    content_hash text,                         -- of what was exported; NULL once a row was added, changed or deleted
    row_count    bigint NOT NULL DEFAULT 0,    -- at export
    ef_search    integer NOT NULL DEFAULT 40,
    recall       double precision NOT NULL DEFAULT 1,
    exact        boolean NOT NULL DEFAULT true,
    recall_by_ef jsonb NOT NULL DEFAULT '{}',  -- what was measured: candidates per query -> recall@10
    created_at   timestamptz NOT NULL DEFAULT now()
);

CREATE UNIQUE INDEX collections_ready_name ON patchwork.collections (name) WHERE state = 'ready';
