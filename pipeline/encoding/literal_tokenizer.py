"""Tokenizer for untrusted text, which cannot produce tokens that were added to the vocabulary.

Text that spells an added token gets the ids of its letters. `split_special_tokens=True` does this only for
tokens marked special. Many chat models add `<think>` or `<tool_call>` without the mark, so text could forge
them. Text that spells no added token keeps the ids of the original tokenizer.
"""

import json
from collections.abc import Collection
from typing import Any


class LiteralTokenizer:
    """Tokenizer of row texts; it ignores padding and truncation saved with the original tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._backend = None if backend is None else literal_backend(backend)
        self._tokenizer = tokenizer
        self._added_ids = frozenset(tokenizer.added_tokens_decoder) - {tokenizer.unk_token_id}

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Return the token ids of each text, without control tokens around it."""
        if not texts:
            return []
        if self._backend is not None:
            encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
            return [encoding.ids for encoding in encodings]
        # tokenizers written in Python have no backend to copy: drop the forged tokens
        id_lists = self._tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [[token for token in ids if token not in self._added_ids] for ids in id_lists]


def literal_backend(backend: Any) -> Any:
    """Return a copy of a `tokenizers.Tokenizer` that produces no added token, by match or by merges."""
    from tokenizers import Tokenizer

    saved = json.loads(backend.to_str())
    # an added token of one letter stays, or texts would lose that letter
    added = {token["content"] for token in saved["added_tokens"] if len(token["content"]) > 1}
    model = saved["model"]
    if "merges" in model:
        prefix = model.get("continuing_subword_prefix") or ""
        model["merges"] = [pair for pair in model["merges"] if not _merges_added_token(pair, prefix, added)]
    # a model may have added tokens among its own words, as Unigram has </s>; no field spells the new names,
    # because fields have no line breaks
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {_unspellable(word, added): index for word, index in vocab.items()}
    else:
        model["vocab"] = [[_unspellable(word, added), score] for word, score in vocab]
    if model.get("unk_token"):
        model["unk_token"] = _unspellable(model["unk_token"], added)
    return Tokenizer.from_str(
        json.dumps(saved | {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None})
    )


def _merges_added_token(pair: list[str], prefix: str, added: Collection[str]) -> bool:
    """Return True if a merge produces an added token or extends one."""
    left, right = pair
    return left + right[len(prefix) :] in added or left in added or right in added


def _unspellable(word: str, added: Collection[str]) -> str:
    """Return a name that no field can spell for an added token, other words unchanged."""
    return f"\n{word}\n" if word in added else word
