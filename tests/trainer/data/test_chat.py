"""Chats: the loss covers only the assistant's words and the end of its turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hftitan_trainer.data.chat import ChatEncoder, mask_by_spans
from hftitan_trainer.process.errors import UserError

CHATML = "the fixture of that name"
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "Four é."},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes."},
]
GENERATION = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}</s>"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}\n{% endfor %}"
)
FORGETFUL = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' and not loop.last %}(earlier){% else %}"
    "{{ m.content }}{% endif %}</s>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
ALTERNATING = "{% if messages[0].role != 'user' %}{{ raise_exception('start with the user') }}{% endif %}"
THINKING = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n<think>\n\n</think>{% endif %}"
)


Encoder = Callable[[str | None], tuple[Any, ChatEncoder]]


@pytest.fixture
def encoder(byte_tokenizer: Callable[[], Any], chatml: str) -> Encoder:
    def make(template: str | None) -> tuple[Any, ChatEncoder]:
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = chatml if template == CHATML else template
        return tokenizer, ChatEncoder(tokenizer)

    return make


@pytest.mark.parametrize(
    ("template", "learnt"),
    [
        (CHATML, "Four é.</s>Yes.</s>"),
        (GENERATION, "Four é.</s>Yes.</s>"),
        # The generation prompt differs from what the template renders, so the turn's header is learnt as well.
        (THINKING, "<|assistant|>\nFour é.</s><|assistant|>\nYes.</s>"),
    ],
)
def test_only_the_assistants_words_are_learnt(encoder: Encoder, template: str, learnt: str) -> None:
    tokenizer, made = encoder(template)
    tokens = made.encode(CHAT, "here")
    assert tokens.learn is not None
    assert tokens.ids == tokenizer.apply_chat_template(CHAT, tokenize=True, return_dict=True)["input_ids"]
    words = tokenizer.decode([i for i, wanted in zip(tokens.ids, tokens.learn, strict=True) if wanted])
    assert words == learnt


def test_a_template_that_rewrites_earlier_turns_is_refused(encoder: Encoder) -> None:
    _, made = encoder(FORGETFUL)
    with pytest.raises(UserError, match=r"spec\.dataset\.messagesField: f:3: .*changes earlier turns"):
        made.encode(CHAT, "f:3")
    # One answer works: nothing is rewritten.
    assert made.encode(CHAT[1:3], "here").learn is not None


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "expected a list of messages, found list '[]'"),
        (None, "expected a list of messages, found nothing"),
        ("hi", "expected a list of messages, found str 'hi'"),
        ([{"content": "x"}], "message 0 is not an object with a role: dict"),
        ([{"role": "user", "content": None}], "the content of message 0 is nothing, not text"),
        ([{"role": "user", "content": [{"type": "image"}]}], "the content of message 0 is list"),
    ],
)
def test_an_invalid_chat_is_named_with_its_place(encoder: Encoder, messages: Any, words: str) -> None:
    _, made = encoder(CHATML)
    with pytest.raises(UserError) as caught:
        made.encode(messages, "file.jsonl:7")
    assert str(caught.value).startswith(f"spec.dataset.messagesField: file.jsonl:7: {words}")


def test_the_message_contains_the_templates_own_error(encoder: Encoder) -> None:
    _, made = encoder(ALTERNATING)
    with pytest.raises(UserError, match="f:1: the model's chat template refuses this chat: start with the user"):
        made.encode(CHAT, "f:1")


def test_a_missing_template_is_a_user_error(encoder: Encoder) -> None:
    with pytest.raises(UserError, match="has no chat template; use the instruct version"):
        encoder(None)


@pytest.mark.parametrize(
    ("offsets", "spans", "mask"),
    [
        ([(0, 2), (2, 4), (4, 6)], [(2, 4)], [False, True, False]),
        ([(0, 3), (3, 6)], [(2, 4)], [True, True]),
        ([(0, 0), (0, 2), (2, 2)], [(0, 2)], [False, True, False]),
        ([(0, 1), (1, 2), (2, 3), (3, 4)], [(0, 1), (3, 4)], [True, False, False, True]),
        ([(0, 1)], [], [False]),
    ],
)
def test_tokens_are_masked_by_their_characters(
    offsets: list[tuple[int, int]], spans: list[tuple[int, int]], mask: list[bool]
) -> None:
    assert mask_by_spans(offsets, spans) == mask
