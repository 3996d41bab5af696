"""What is shown or written has no secret in it, and is otherwise what it was."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from pydantic import BaseModel, PrivateAttr, SecretStr

from patchwork_adapters import redaction
from patchwork_adapters.redaction import hide_secrets_of, redacted, redacted_traceback

KEY = "Kx81qQ-distinctive"


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_known", set())


@pytest.mark.parametrize(("text", "shown"), [
    (f"could not reach https://ann:{KEY}@host:8000/v1?x=1", "could not reach https://***@host:8000/v1?x=1"),
    (f"https://h/v1?api_key={KEY}&n=3", "https://h/v1?api_key=***&n=3"),
    (f"connection to postgresql+psycopg://rag:{KEY}@db/rag failed", "connection to postgresql+psycopg://***@db/rag failed"),
    (f"host=db user=rag password={KEY} dbname=rag", "host=db user=rag password=*** dbname=rag"),
    (f"host=db password='{KEY} x' dbname=rag", "host=db password=*** dbname=rag"),
    (f"{{'Authorization': 'Bearer {KEY}', 'accept': 'json'}}", "{'Authorization': ***, 'accept': 'json'}"),
    (f"Authorization: Bearer {KEY}", "Authorization: Bearer ***"),
    ("Incorrect API key provided: sk-proj-abcdef0123456789. You can", "Incorrect API key provided: ***. You can"),
    ("Incorrect API key provided: sk-abc*****6789.", "Incorrect API key provided: ***."),
    (f'{{"openai_api_key": "{KEY}", "model": "m"}}', '{"openai_api_key": ***, "model": "m"}'),
    (f"OPENAI_API_KEY={KEY}", "OPENAI_API_KEY=***"),
    ("the proxy http://u:p@proxy:3128 refuses", "the proxy http://***@proxy:3128 refuses"),
])  # fmt: skip
def test_secrets_are_told_by_their_form(text: str, shown: str) -> None:
    assert redacted(text) == shown
    assert redacted(shown) == shown


@pytest.mark.parametrize("text", [
    "max_tokens=64, prompt_tokens: 12, token: 5",
    "the key 'question' is missing; give tokens as a list", "api_key: None, secret=True",
    "http://127.0.0.1:8000/v1 answers 401", "write postgresql://HOST/DATABASE",
    "my_chain.py, line 3: KeyError: 'token'", "user@example.org: hi",
    "task-oriented, desk-bound and sk-learn",
])  # fmt: skip
def test_other_text_stays_as_it_is(text: str) -> None:
    assert redacted(text) == text


class Leaf(BaseModel):
    model: str = "a-model-name"
    openai_api_key: SecretStr = SecretStr(KEY)
    _token: str = PrivateAttr("private-token-1")


class Sneaky:
    @property
    def __dict__(self):  # type: ignore[no-untyped-def, override]
        raise RuntimeError("looked at")


def test_secrets_are_told_by_their_value_wherever_an_object_keeps_them() -> None:
    text = f"{KEY} private-token-1 plain-password header-value-1 a-model-name"
    assert redacted(text) == text
    hide_secrets_of([
        Leaf(), SimpleNamespace(password="plain-password", name="a-model-name"),
        SimpleNamespace(default_headers={"X-Api-Key": "header-value-1", "X-App": "a-model-name"}), 5, None, Sneaky(),
    ])  # fmt: skip
    assert redacted(text) == "*** *** *** *** a-model-name"


def test_variables_that_are_named_as_secrets_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("SOME_FOLDER", "a-model-name")
    assert redacted(f"got {KEY} for a-model-name") == "got *** for a-model-name"


def test_a_secret_within_another_leaves_nothing_of_the_longer_one() -> None:
    hide_secrets_of([SimpleNamespace(token="abcdefgh"), SimpleNamespace(token="abcdefgh-and-more")])
    assert redacted("x abcdefgh-and-more y abcdefgh") == "x *** y ***"


def test_a_traceback_has_no_secret_in_it() -> None:
    try:
        try:
            raise ValueError(f"password={KEY}")
        except ValueError as inner:
            raise RuntimeError(f"https://a:{KEY}@h/") from inner
    except RuntimeError as error:
        shown = redacted_traceback(error)
    assert KEY not in shown
    assert "test_redaction.py" in shown
    assert "RuntimeError: https://***@h/" in shown
