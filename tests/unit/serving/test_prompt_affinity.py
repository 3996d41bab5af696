"""Where a prompt goes when several shards could take it."""

from __future__ import annotations

from typing import Any

from patchwork_serving.components.prompt_affinity import PromptAffinity


def turn(*contents: str) -> dict[str, Any]:
    roles = ["user", "assistant"] * len(contents)
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]}


def test_a_new_prompt_goes_where_the_most_room_is() -> None:
    assert PromptAffinity().choose(turn("a"), running=[3, 1], slots=[8, 8]) == 1
    assert PromptAffinity().choose(turn("a"), running=[3, 2], slots=[8, 4]) == 0


def test_a_prompt_that_comes_again_goes_where_it_was() -> None:
    affinity = PromptAffinity()
    assert affinity.choose(turn("a"), running=[3, 1], slots=[8, 8]) == 1
    assert affinity.choose(turn("a"), running=[0, 7], slots=[8, 8]) == 1


def test_every_turn_of_a_conversation_goes_where_it_began() -> None:
    affinity = PromptAffinity()
    assert affinity.choose(turn("a"), running=[1, 0], slots=[8, 8]) == 1
    assert affinity.choose(turn("a", "answer", "more"), running=[0, 5], slots=[8, 8]) == 1


def test_a_full_shard_is_left_and_the_new_one_remembered() -> None:
    affinity = PromptAffinity()
    affinity.choose({"prompt": "a"}, running=[1, 0], slots=[8, 8])
    assert affinity.choose({"prompt": "a"}, running=[7, 8], slots=[8, 8]) == 0
    assert affinity.choose({"prompt": "a"}, running=[7, 0], slots=[8, 8]) == 0


def test_the_oldest_prompt_is_forgotten() -> None:
    affinity = PromptAffinity(size=2)
    for name in "abc":
        affinity.choose({"prompt": name}, running=[1, 0], slots=[8, 8])
    assert affinity.choose({"prompt": "a"}, running=[0, 5], slots=[8, 8]) == 0
    assert affinity.choose({"prompt": "c"}, running=[0, 5], slots=[8, 8]) == 1
