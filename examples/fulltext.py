"""A second source: Postgres full-text search over whole sections of the reference. It plays the part that a web search has in the papers.

Needs DATABASE_URL (any Postgres); the table is made and filled on the first run.
"""

import os
import re

import psycopg
from corpus import passages
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever

TABLE = "python_reference_sections"
CREATE = f"""
CREATE TABLE IF NOT EXISTS {TABLE} (
    id text PRIMARY KEY, title text NOT NULL, body text NOT NULL,
    words tsvector GENERATED ALWAYS AS (to_tsvector('english', title || ' ' || body)) STORED
)"""
INDEX = f"CREATE INDEX IF NOT EXISTS {TABLE}_words ON {TABLE} USING gin (words)"
FILL = f"INSERT INTO {TABLE} (id, title, body) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING"
SEARCH = f"""
SELECT id, title, body FROM {TABLE}, to_tsquery('english', %s) query
WHERE words @@ query ORDER BY ts_rank_cd(words, query) DESC, id LIMIT %s"""


class FullTextRetriever(BaseRetriever):
    """Sections that have the most of the question's words."""

    dsn: str
    k: int = 2

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        words = sorted(set(re.findall(r"[a-z0-9]{3,}", query.lower())))
        if not words:
            return []
        with psycopg.connect(self.dsn) as connection:
            rows = connection.execute(SEARCH, (" | ".join(words), self.k)).fetchall()
        return [Document(id=id, page_content=body, metadata={"title": title}) for id, title, body in rows]


def full_text_search(k: int = 2) -> FullTextRetriever:
    dsn = os.environ["DATABASE_URL"]
    with psycopg.connect(dsn) as connection:
        connection.execute(
            "SELECT pg_advisory_xact_lock(hashtext(%s))", (TABLE,)
        )  # servers start several processes at once
        connection.execute(CREATE)
        connection.execute(INDEX)
        if connection.execute(f"SELECT count(*) FROM {TABLE}").fetchone() == (0,):
            connection.cursor().executemany(FILL, [(p.id, p.title, p.text) for p in passages()])
    return FullTextRetriever(dsn=dsn, k=k)
