"""Generator of jobs/configs/README.md: every setting, from the config classes and their comments.

python -m tests.support.settings_page
"""

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from models.config import BackboneConfig
from pipeline.config.extensions import method_blocks, source_blocks
from pipeline.config.run import RunConfig
from tests.support.places import ROOT

PAGE = ROOT / "jobs" / "configs" / "README.md"
HEAD = """# Settings

Every setting of a config, its type, its default and its meaning. A config is one YAML file (`--config`);
`--set a.b=value` overrides a setting, list items by number (`--set tasks.0.sampling_weight=2`). Settings
without a default are required.

In paths, `~/` is the home folder and variables such as `$HOME` are refused. `s3://bucket/prefix` is possible
for `data.to_score` and `scoring.scores`. A word that YAML would change needs quotes: `labels: ['no', 'yes']`.

This page is written from the config classes by `python -m tests.support.settings_page`.
"""
COMMANDS = """
| config | what it is for |
|---|---|
| `demo.yaml` | the synthetic marketplace, a small model: `make demo` |
| `esci.yaml` | real judged pairs of ESCI, Chorus and others |
| `production.yaml` | a Ray cluster, an MLflow server and an object store |
"""


def settings_of(block: type[Any]) -> Iterator[tuple[str, str, str, str]]:
    """Yield (name, type, default, meaning) of each setting that a config class defines, in its order."""
    ours = [base for base in block.__mro__ if base.__module__.startswith(("models", "pipeline"))]
    for base in reversed(ours):
        source = inspect.getsource(base)
        lines = source.split("\n")
        (definition,) = ast.parse(source).body
        assert isinstance(definition, ast.ClassDef)
        for node in definition.body:
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            name = node.target.id
            if name.startswith("_") or "ClassVar" in ast.unparse(node.annotation):
                continue
            yield name, type_name(node.annotation), default_of(node.value), comment_of(lines, node)


class AnnotatedRemover(ast.NodeTransformer):
    """Replacement of Annotated[X, ...] by X in a type."""

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        self.generic_visit(node)
        if ast.unparse(node.value) == "Annotated" and isinstance(node.slice, ast.Tuple):
            return node.slice.elts[0]
        return node


def type_name(annotation: ast.expr) -> str:
    """Return a type as text for the page."""
    return ast.unparse(AnnotatedRemover().visit(annotation)).replace("|", "\\|")


def default_of(value: ast.expr | None) -> str:
    """Return the default as written in the class; empty for a required setting."""
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "Field":
        given = {keyword.arg: keyword.value for keyword in value.keywords}
        if "default_factory" in given:
            return "`mtl_lora`"
        return f"`{ast.unparse(given['default'])}`" if "default" in given else ""
    if value is None:
        return ""
    if isinstance(value, ast.Call):
        return "see below"
    return f"`{ast.unparse(value)}`"


def comment_of(lines: list[str], node: ast.AnnAssign) -> str:
    """Return the comment behind a setting, or the comment lines above it."""
    behind = lines[(node.end_lineno or node.lineno) - 1].partition("  # ")[2]
    above: list[str] = []
    for line in reversed(lines[: node.lineno - 1]):
        if not line.strip().startswith("#"):
            break
        above.insert(0, line.strip().lstrip("# "))
    comment = " ".join(above) or behind
    return "" if comment.startswith("type: ignore") else comment.replace("|", "\\|")


def table_of(block: type[Any], left_out: tuple[str, ...] = ()) -> str:
    """Return the table of a config class."""
    rows = {row[0]: row for row in settings_of(block) if row[0] not in left_out}
    body = "\n".join(
        f"| `{name}` | {kind} | {default} | {text} |" for name, kind, default, text in rows.values()
    )
    return f"| setting | type | default | meaning |\n|---|---|---|---|\n{body}\n"


def first_paragraph(block: type[Any]) -> str:
    """Return the first paragraph of a config class's docstring."""
    return inspect.getdoc(block).split("\n\n")[0].replace("\n", " ")  # type: ignore[union-attr]


def build_page() -> str:
    """Return the whole page."""
    parts = [HEAD + COMMANDS, "## The config itself\n", table_of(RunConfig)]
    blocks: dict[str, type[Any]] = {"backbone": BackboneConfig}
    for name, field in RunConfig.model_fields.items():
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                blocks[name] = kind
    blocks.pop("sources", None)
    for name in RunConfig.model_fields:
        if name in blocks:
            parts += [f"## `{name}`\n", first_paragraph(blocks[name]) + "\n", table_of(blocks[name])]
    parts.append("## `adapter`\n\nOne of these methods, by `method`; `mtl_lora` where none is named.\n")
    for name, block in method_blocks().items():
        parts += [f"### `method: {name}`\n", first_paragraph(block) + "\n", table_of(block, ("method",))]
    parts.append("## `sources`\n\nA list; each item is one of these kinds, by `kind`.\n")
    for name, block in source_blocks().items():
        parts += [f"### `kind: {name}`\n", first_paragraph(block) + "\n", table_of(block, ("kind",))]
    return "\n".join(parts)


def write_page(path: Path = PAGE) -> None:
    """Write the page."""
    path.write_text(build_page())


if __name__ == "__main__":
    write_page()
