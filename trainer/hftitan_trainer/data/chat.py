"""Tokenizes chats with the model's own chat template; the loss covers only the assistant's turns.

A template with `{% generation %}` blocks marks the assistant's tokens itself. With any other template, the span of a
turn is render(messages up to and including the turn) minus render(messages before it, with the generation prompt). This
requires each rendering to be a prefix of the next, which is checked for every chat. Templates that rewrite earlier
turns (for example, drop their reasoning) are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hftitan_trainer.process.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, Any]]
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Tokens:
    """A document: token ids, and for each whether the loss covers it (None: all)."""

    ids: Sequence[int]
    learn: list[bool] | None = None


class ChatEncoder:
    """Converts chats to Tokens. Raises UserError if the tokenizer has no chat template or no character offsets."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, field: str = "spec.dataset") -> None:
        self._tokenizer = tokenizer
        self._field = f"{field}.messagesField"
        template = tokenizer.chat_template
        if isinstance(template, dict):
            template = template.get("default")
        if not template:
            raise UserError(
                self._field,
                "the model's tokenizer has no chat template; use the instruct version of the model, or train on text "
                "with textField",
            )
        self._marks_generation = "{% generation" in template or "{%- generation" in template
        if not tokenizer.is_fast:
            raise UserError(
                self._field,
                "the model has only a slow tokenizer, which gives no character offsets to find the assistant's turns; "
                "train on text with textField",
            )

    def encode(self, messages: Any, where: str) -> Tokens:
        """Encode one chat. `where` is its place in the data, for errors. Raises UserError if it is not a valid chat."""
        checked = self._check(messages, where)
        text = self._render(checked, where)
        marked = self._marked(checked) if self._marks_generation else None
        if marked is not None:
            return marked
        spans = turn_spans(
            checked, text, lambda turns, prompt: self._render(turns, where, prompt=prompt), self._field, where
        )
        encoding = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return Tokens(list(encoding["input_ids"]), mask_by_spans(encoding["offset_mapping"], spans))

    def _marked(self, messages: Messages) -> Tokens | None:
        encoding = self._tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        mask = encoding["assistant_masks"]
        # A template may have generation blocks only for some roles or branches; then it may mark nothing.
        return Tokens(list(encoding["input_ids"]), [bool(m) for m in mask]) if any(mask) else None

    def _render(self, messages: Messages, where: str, *, prompt: bool = False) -> str:
        try:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))
        except Exception as error:
            # jinja2.TemplateError if the template refuses a chat (roles out of order); other errors if it cannot
            # process one
            raise UserError(self._field, f"{where}: the model's chat template refuses this chat: {error}") from error

    def _check(self, messages: Any, where: str) -> Messages:
        if not isinstance(messages, list) or not messages:
            raise UserError(self._field, f"{where}: expected a list of messages, found {_kind(messages)}")
        for number, message in enumerate(messages):
            if not isinstance(message, dict) or not isinstance(message.get("role"), str):
                raise UserError(
                    self._field, f"{where}: message {number} is not an object with a role: {_kind(message)}"
                )
            if not isinstance(message.get("content"), str):
                raise UserError(
                    self._field,
                    f"{where}: the content of message {number} is {_kind(message.get('content'))}, not text",
                )
        return messages


def turn_spans(
    messages: Messages, text: str, render: Callable[[Messages, bool], str], field: str, where: str
) -> list[Span]:
    """Return character spans in `text` (the whole chat) of the assistant's turns, without white space at their ends.

    `render(messages, generation_prompt)` is the template. Raises UserError if a rendering is not a prefix of the next.
    """
    spans: list[Span] = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        with_turn = render(messages[: number + 1], False)
        before = render(messages[:number], True) if number else ""
        if not with_turn.startswith(before):
            # Some templates start the turn differently for generation (with an empty thinking block).
            before = render(messages[:number], False)
        if not (with_turn.startswith(before) and text.startswith(with_turn)):
            raise UserError(
                field,
                f"{where}: the model's chat template changes earlier turns when message {number} is added, so the "
                "assistant's tokens cannot be found; use a template with {% generation %} blocks, or chats with one "
                "answer",
            )
        end = len(before) + len(with_turn[len(before) :].rstrip())
        if end > len(before):
            spans.append((len(before), end))
    return spans


def mask_by_spans(offsets: list[Span], spans: list[Span]) -> list[bool]:
    """Return for each token, by its character offsets, whether it is in one of the (ascending) spans."""
    mask: list[bool] = []
    index = 0
    for start, end in offsets:
        while index < len(spans) and spans[index][1] <= start:
            index += 1
        # A token that crosses a border belongs to the turn in which it ends.
        mask.append(index < len(spans) and end > spans[index][0] and end > start)
    return mask


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {str(value)[:60]!r}"
