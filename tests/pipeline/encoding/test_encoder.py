"""Encoding keeps the query, holds the limits, and lets no ad forge a control token."""

import random
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from models.backbone import load_tokenizer
from pipeline.config.encoding import EncodeConfig
from pipeline.config.loading import read_config
from pipeline.config.tasks import Task
from pipeline.encoding.encoder import Encoder, fit_fields
from pipeline.schema import AD_COLUMNS, ROW_SCHEMA, TEXT_COLUMNS
from tests.support.places import ROOT

PLAIN = "Search query: {query}\nAd: {ad_title}\nIs the ad relevant? Answer:"
PRODUCT = "Product: {ad_title}, {ad_description}\nQuery: {query}\nAnswer:"
ALL = "k {ad_keyword}\nt {ad_title}\nd {ad_description}\np {landing_page}\nq {query}\nAnswer:"
TEMPLATES = {"plain": PLAIN, "product": PRODUCT, "all": ALL}
ROOMY = EncodeConfig(max_query_chars=400, max_ad_chars=20_000, max_tokens=128)


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path) -> Any:
    return load_tokenizer(tiny_llama)


@pytest.fixture(scope="module")
def word_pieces() -> Any:
    """Return a tokenizer like BERT's: lower case, word pieces, [CLS] at the start and [SEP] at the end."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = string.ascii_lowercase
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *letters,
        *":?[]",
        *(f"##{letter}" for letter in letters),
    ]
    pieces = Tokenizer(models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    pieces.normalizer = normalizers.BertNormalizer()
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pieces.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=pieces, **names)


def build_tasks(templates: Mapping[str, str]) -> list[Task]:
    return [
        Task(name=name, labels=("bad", "good"), relevant_from=1, template=template)
        for name, template in templates.items()
    ]


def rows(*texts: Mapping[str, str | None]) -> pa.Table:
    """Return contract rows with these texts."""
    others = {"query": "q", "ad_title": "t", "market": "us"}
    return pa.Table.from_pylist([{"row_id": str(n), **others, **t} for n, t in enumerate(texts)], ROW_SCHEMA)


def random_rows(count: int, words: int, seed: int = 0) -> pa.Table:
    """Return rows with up to `words` plain words per column; some columns are null."""
    draw = random.Random(seed)
    vocabulary = (
        "red",
        "blue",
        "running",
        "shoes",
        "camera",
        "4k",
        "tv",
        "café",
        "straße",
        "靴",
        "a",
        "I",
        "42",
        "boots",
    )

    def text() -> str:
        return " ".join(draw.choices(vocabulary, k=draw.randint(1, words)))

    optional = AD_COLUMNS[1:]
    return rows(
        *(
            {"query": text(), "ad_title": text()} | {c: draw.choice((text(), None)) for c in optional}
            for _ in range(count)
        )
    )


@pytest.mark.parametrize("name", TEMPLATES)
def test_long_ad_does_not_truncate_the_query(tokenizer: Any, name: str) -> None:
    long_ad = {column: "lorem ipsum " * 850 for column in AD_COLUMNS}
    [ids] = Encoder(tokenizer, build_tasks(TEMPLATES), ROOMY).encode(
        rows({"query": "red running shoes size 42", **long_ad}), name
    )
    assert len(ids) == 128
    assert " red running shoes size 42\n" in tokenizer.decode(ids)


def test_every_ad_column_keeps_a_part(tokenizer: Any) -> None:
    long = {"ad_description": "x " * 5_000, "landing_page": "y " * 5_000}
    texts = {"query": "shoes", "ad_title": "blue boots", "ad_keyword": "boots", **long}
    [ids] = Encoder(tokenizer, build_tasks(TEMPLATES), ROOMY).encode(rows(texts), "all")
    text = tokenizer.decode(ids)
    assert (
        "t blue boots\n" in text and "k boots\n" in text and text.count(" x") > 10 and text.count(" y") > 10
    )


@pytest.mark.parametrize("max_tokens", [64, 80, 128, 200])
@pytest.mark.parametrize("name", TEMPLATES)
def test_truncated_rows_use_exactly_the_limit(tokenizer: Any, name: str, max_tokens: int) -> None:
    table = random_rows(120, 60)
    limited = Encoder(
        tokenizer, build_tasks(TEMPLATES), EncodeConfig(max_query_chars=300, max_tokens=max_tokens)
    ).encode(table, name)
    whole = Encoder(
        tokenizer, build_tasks(TEMPLATES), EncodeConfig(max_query_chars=300, max_tokens=4_000)
    ).encode(table, name)
    assert [len(ids) for ids in limited] == [min(len(ids), max_tokens) for ids in whole]
    assert any(len(ids) > max_tokens for ids in whole)
    for short, long in zip(limited, whole, strict=True):
        assert short == long or len(long) > max_tokens


def random_fields(draw: random.Random) -> dict[str, list[int]]:
    names = ["query", *draw.sample(AD_COLUMNS, draw.randint(1, 4))]
    draw.shuffle(names)
    return {name: list(range(draw.choice((0, 1, 3, 10, 50, 300)))) for name in names}


def test_fields_are_truncated_at_their_ends_to_the_budget() -> None:
    draw = random.Random(3)
    for _ in range(2_000):
        fields, budget = random_fields(draw), draw.randint(4, 400)
        kept = fit_fields(fields, budget)
        total = sum(map(len, fields.values()))
        assert sum(map(len, kept.values())) == min(total, budget)
        assert all(kept[name] == ids[: len(kept[name])] for name, ids in fields.items())


def test_longest_ad_column_is_truncated_first() -> None:
    draw = random.Random(4)
    query_cut = ad_cut = 0
    for _ in range(2_000):
        fields, budget = random_fields(draw), draw.randint(4, 400)
        kept = fit_fields(fields, budget)
        cut = {name for name in fields if len(kept[name]) < len(fields[name])}
        if "query" in cut:
            query_cut += 1
            assert len(kept["query"]) >= budget // 2
        for name in cut - {"query"}:
            ad_cut += 1
            assert all(len(kept[name]) >= len(kept[other]) - 1 for other in fields if other != "query")
    assert query_cut > 50 and ad_cut > 500


FORGERIES = ("<end>", "<pad>", "a<end>b", "<end><pad><end>", " <end> ", "< end >", "<END>")


@pytest.mark.parametrize("column", TEXT_COLUMNS)
def test_control_token_in_a_row_gives_its_letters(tokenizer: Any, column: str) -> None:
    encoded = Encoder(tokenizer, build_tasks(TEMPLATES), ROOMY).encode(
        rows(*({column: text} for text in FORGERIES)), "all"
    )
    for text, ids in zip(FORGERIES, encoded, strict=True):
        assert not {tokenizer.pad_token_id, tokenizer.eos_token_id} & set(ids)
        assert " ".join(text.split()) in tokenizer.decode(ids)


def test_control_token_in_a_template_is_the_token(tokenizer: Any) -> None:
    templates = build_tasks({"a": "Ad: {ad_title}\nQuery: {query}<end>\n"})
    [ids] = Encoder(tokenizer, templates, ROOMY).encode(rows({"query": "a<end>"}), "a")
    assert ids.count(tokenizer.eos_token_id) == 1
    assert ids[-2:] == [tokenizer.eos_token_id, *tokenizer("\n")["input_ids"]]


class RecordingTokenizer:
    """Replacement of an encoder's literal tokenizer that records its input."""

    def __init__(self, encoder: Encoder) -> None:
        self._tokenizer = encoder.literal_tokenizer
        self.seen: list[str] = []
        encoder.literal_tokenizer = self  # type: ignore[assignment]

    def encode(self, texts: list[str]) -> list[list[int]]:
        self.seen += texts
        return self._tokenizer.encode(texts)


MEGABYTE = 2**20
KINDS = {"one word": "x", "words": "lorem ipsum ", "blanks": " ", "wide": "靴", "control tokens": "<end>"}


@pytest.mark.parametrize("size_bytes", [MEGABYTE, 10 * MEGABYTE])
@pytest.mark.parametrize("text", KINDS.values(), ids=KINDS.keys())
def test_tokenizer_sees_no_more_than_the_limit_of_a_megabyte(
    tokenizer: Any, text: str, size_bytes: int
) -> None:
    limits = EncodeConfig(max_query_chars=50, max_ad_chars=100)
    encoder = Encoder(tokenizer, build_tasks(TEMPLATES), limits)
    recorder = RecordingTokenizer(encoder)
    long = text * (size_bytes // len(text.encode()))
    at_limits = {column: long[: 50 if column == "query" else 100] for column in TEXT_COLUMNS}
    [ids] = encoder.encode(rows(dict.fromkeys(TEXT_COLUMNS, long)), "all")
    num_chars = sum(map(len, recorder.seen))
    recorder.seen.clear()
    assert encoder.encode(rows(at_limits), "all") == [ids]
    assert num_chars <= sum(map(len, recorder.seen)) + len(TEXT_COLUMNS)
    assert num_chars <= 50 + 4 * 100 + len(TEXT_COLUMNS)


def test_python_sees_at_most_four_times_the_limit(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.compute as pc

    cut: list[pa.ChunkedArray] = []
    real = pc.utf8_slice_codeunits
    monkeypatch.setattr(pc, "utf8_slice_codeunits", lambda *given: cut.append(real(*given)) or cut[-1])
    Encoder(tokenizer, build_tasks(TEMPLATES), EncodeConfig(max_query_chars=50, max_ad_chars=100)).encode(
        rows(dict.fromkeys(TEXT_COLUMNS, "靴 " * MEGABYTE)), "all"
    )
    assert sorted(len(text.as_py()) for column in cut for text in column) == [200, 400, 400, 400, 400]


def test_query_and_ad_have_their_own_character_limits(tokenizer: Any) -> None:
    encoder = Encoder(
        tokenizer,
        build_tasks({"a": "{query}\n{ad_title}\nAnswer"}),
        EncodeConfig(max_query_chars=5, max_ad_chars=9),
    )
    recorder = RecordingTokenizer(encoder)
    encoder.encode(rows({"query": "a" * 20, "ad_title": "b" * 20}), "a")
    assert recorder.seen == ["a" * 5, "b" * 9]


def test_equal_texts_are_tokenized_once(tokenizer: Any) -> None:
    encoder = Encoder(tokenizer, build_tasks({"a": "{query}\n{ad_title}\nAnswer"}), ROOMY)
    recorder = RecordingTokenizer(encoder)
    encoder.encode(rows(*({"query": f"q{n % 3}", "ad_title": "same"} for n in range(30))), "a")
    assert sorted(recorder.seen) == ["q0", "q1", "q2", "same"]


def test_null_is_empty_text(tokenizer: Any) -> None:
    optional = AD_COLUMNS[1:]
    table = rows(dict.fromkeys(optional), dict.fromkeys(optional, ""))
    null, empty = Encoder(tokenizer, build_tasks(TEMPLATES), ROOMY).encode(table, "all")
    assert null == empty == tokenizer("k\nt t\nd\np\nq q\nAnswer:")["input_ids"]


def test_white_space_is_collapsed(tokenizer: Any) -> None:
    table = rows({"query": "red shoes"}, {"query": " red\u00a0\n\tshoes "})
    one, other = Encoder(tokenizer, build_tasks(TEMPLATES), ROOMY).encode(table, "plain")
    assert one == other


@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_equal_those_of_the_whole_text(tokenizer: Any, name: str) -> None:
    table, roomy = random_rows(200, 6), EncodeConfig(max_tokens=2_000)
    whole = [TEMPLATES[name].format(**{c: row[c] or "" for c in TEXT_COLUMNS}) for row in table.to_pylist()]
    # the blank before an empty column is dropped
    whole = [text.replace(" \n", "\n") for text in whole]
    assert (
        Encoder(tokenizer, build_tasks(TEMPLATES), roomy).encode(table, name) == tokenizer(whole)["input_ids"]
    )


def test_shipped_templates_lose_no_word(tokenizer: Any) -> None:
    paths = sorted((ROOT / "jobs" / "configs").glob("*.yaml"))
    for task in (task for path in paths for task in read_config(path).tasks):
        words = {column: f"{column.replace('_', '')} word" for column in TEXT_COLUMNS}
        [ids] = Encoder(tokenizer, [task], EncodeConfig(max_tokens=1_000)).encode(rows(words), task.name)
        assert tokenizer.decode(ids) == task.template.format(**words)


def test_ids_do_not_depend_on_other_rows(tokenizer: Any) -> None:
    table, encoder = (
        random_rows(60, 40),
        Encoder(tokenizer, build_tasks(TEMPLATES), EncodeConfig(max_tokens=96)),
    )
    for name in TEMPLATES:
        together = encoder.encode(table, name)
        assert [encoder.encode(table.slice(n, 1), name)[0] for n in range(60)] == together
        chunked = pa.concat_tables([table.slice(0, 7), table.slice(7)])
        assert encoder.encode(chunked, name) == together


def test_no_rows_have_no_ids(tokenizer: Any) -> None:
    assert Encoder(tokenizer, build_tasks(TEMPLATES), ROOMY).encode(rows(), "plain") == []


def random_texts(count: int) -> list[str]:
    """Return texts of any UTF-8 characters, with many that tokenizers treat specially."""
    draw = random.Random(5)
    apart = "\0\u200b\u200d\u202e\ufeff\ufffd\uffff\u0301\U0001f469\U000e0001\x7f\x85\u2028▁Ġ<|>[]{}"
    anything = [*range(0xD800), *range(0xE000, 0x110000)]

    def character() -> str:
        return chr(draw.choice(anything)) if draw.random() < 0.7 else draw.choice(apart)

    return ["".join(character() for _ in range(draw.randint(0, 80))) for _ in range(count)]


@pytest.mark.parametrize("kind", ["bytes", "word pieces"])
def test_no_text_breaks_the_encoder(tokenizer: Any, word_pieces: Any, kind: str) -> None:
    texts = random_texts(2_000)
    chosen = tokenizer if kind == "bytes" else word_pieces
    encoder = Encoder(chosen, build_tasks({"a": "a: {ad_title}\nq: {query}\n"}), EncodeConfig(max_tokens=40))
    table = rows(
        *({"query": one, "ad_title": other} for one, other in zip(texts, reversed(texts), strict=True))
    )
    encoded = encoder.encode(table, "a")
    assert len(encoded) == 2_000
    assert all(0 < len(ids) <= 40 and all(type(i) is int for i in ids) for ids in encoded)


def test_truncated_bert_rows_keep_cls_and_sep(word_pieces: Any) -> None:
    encoder = Encoder(
        word_pieces, build_tasks({"a": "q: {query}\na: {ad_title}"}), EncodeConfig(max_tokens=24)
    )
    titles = ("cd", "cd " * 100, "[SEP] cd [CLS] [MASK] [PAD]")
    encoded = encoder.encode(rows(*({"query": "ab", "ad_title": title} for title in titles)), "a")
    assert encoded[0] == word_pieces("q: ab\na: cd")["input_ids"]
    assert [len(ids) for ids in encoded[1:]] == [24, 24]
    for ids in encoded:
        assert (ids[0], ids[-1]) == (word_pieces.cls_token_id, word_pieces.sep_token_id)
        assert not set(word_pieces.convert_tokens_to_ids(["[PAD]", "[CLS]", "[SEP]", "[MASK]"])) & set(
            ids[1:-1]
        )


def test_saved_padding_and_truncation_are_ignored(tokenizer: Any) -> None:
    import copy

    other = copy.deepcopy(tokenizer)
    other.backend_tokenizer.enable_padding(length=300, pad_id=0, pad_token="<pad>")
    other.backend_tokenizer.enable_truncation(max_length=5)
    assert len(other.backend_tokenizer.encode("red running shoes, blue").ids) == 300
    table = random_rows(20, 20)
    plain, odd = (
        Encoder(t, build_tasks(TEMPLATES), EncodeConfig(max_tokens=200)).encode(table, "all")
        for t in (tokenizer, other)
    )
    assert plain == odd


def test_template_over_half_of_the_limit_is_refused(tokenizer: Any) -> None:
    words = "These are far too many words"
    fixed = len(tokenizer(words)["input_ids"])
    templates = build_tasks({"a": words + "{query}{ad_title}"})
    assert Encoder(tokenizer, templates, EncodeConfig(max_tokens=2 * fixed)).encode(rows({}), "a")
    with pytest.raises(
        ValueError, match=f"{fixed} tokens, over half of encode.max_tokens = {2 * fixed - 1}; shorten it"
    ):
        Encoder(tokenizer, templates, EncodeConfig(max_tokens=2 * fixed - 1))


def test_template_without_words_is_refused_without_control_tokens(tokenizer: Any, word_pieces: Any) -> None:
    bare = build_tasks({"fine": PLAIN, "bare": "{query} {ad_title}"})
    with pytest.raises(ValueError, match="template of task bare has no words of its own"):
        Encoder(tokenizer, bare, ROOMY)
    # BERT always adds its two tokens
    assert Encoder(word_pieces, bare, ROOMY).encode(rows({"query": "", "ad_title": ""}), "bare") == [[2, 3]]
