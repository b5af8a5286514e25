"""A tokenizer's view for text that nobody vouches for: whatever it spells, it gets the letters' ids, never a
token added to the vocabulary.

`split_special_tokens=True` does this for tokens marked special only; `<think>` or `<tool_call>` of many chat
models are added without the mark and would still be forged. Ids of text that spells no added token are the
tokenizer's own.
"""

import json
from collections.abc import Collection
from typing import Any


class PlainTokenizer:
    """Tokenises fields of rows. Neither padding nor cutting that was saved with the tokenizer plays a
    part.
    """

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self.view = None if backend is None else plain_view(backend)
        self.tokenizer = tokenizer
        self.added = frozenset(tokenizer.added_tokens_decoder) - {tokenizer.unk_token_id}

    def ids(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, without tokens around it."""
        if self.view is not None:
            return [encoding.ids for encoding in self.view.encode_batch_fast(texts, add_special_tokens=False)]
        # tokenizers written in Python have no view: what text forged is dropped
        lists = (
            self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            if texts
            else []
        )
        return [[token for token in ids if token not in self.added] for ids in lists]


def plain_view(backend: Any) -> Any:
    """A copy of a `tokenizers.Tokenizer` that matches no added token, and whose model cannot come upon one by
    spelling either.
    """
    from tokenizers import Tokenizer

    saved = json.loads(backend.to_str())
    # one letter is itself: without it in the vocabulary, texts that hold it would lose it
    added = {token["content"] for token in saved["added_tokens"] if len(token["content"]) > 1}
    model = saved["model"]
    if "merges" in model:
        prefix = model.get("continuing_subword_prefix") or ""
        model["merges"] = [pair for pair in model["merges"] if not touches(pair, prefix, added)]
    # a model may hold added tokens as words of its own, as Unigram's </s>; fields hold no line break, so none
    # spells the new name
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {unspellable(word, added): index for word, index in vocab.items()}
    else:
        model["vocab"] = [[unspellable(word, added), score] for word, score in vocab]
    if model.get("unk_token"):
        model["unk_token"] = unspellable(model["unk_token"], added)
    return Tokenizer.from_str(
        json.dumps(saved | {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None})
    )


def touches(pair: list[str], prefix: str, added: Collection[str]) -> bool:
    """Whether a merge makes an added token or goes on from one."""
    left, right = pair
    return left + right[len(prefix) :] in added or left in added or right in added


def unspellable(word: str, added: Collection[str]) -> str:
    """The word, or another name that no field can spell if it is an added token."""
    return f"\n{word}\n" if word in added else word
