"""Next steps that errors name can be taken: every command is one, with what it needs, and every setting exists."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import click
import pytest
import typer
from pydantic import BaseModel

from polysem.cli.app import app
from polysem.config import Study
from polysem.transfer.config import TransferStudy
from polysem.transfer.panel import JudgePanel

SOURCES = Path(__file__).parents[2] / "src" / "polysem"
FIELD = "X"
"""in place of a value that an f-string puts in"""
_COMMAND = re.compile(r"(?:^|: |`)(polysem [a-z][^,;()`]*)")
_MENTION = re.compile(r"polysem ([a-z][a-z-]+)")
_SETTING = re.compile(r"\b([a-z]+)\.(?!md\b|toml\b|safetensors\b)([a-z_0-9]+)\b(?! ?\()")


def text_of(node: ast.expr) -> Iterator[str]:
    """Every text that an expression may be, with FIELD for what is put in."""
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.JoinedStr(values=values):
            yield "".join(
                next(text_of(part), FIELD) if isinstance(part, ast.Constant) else FIELD for part in values
            )
        case ast.IfExp(body=body, orelse=other):
            yield from (*text_of(body), *text_of(other))
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            yield next(text_of(left), FIELD) + next(text_of(right), FIELD)


def hints() -> list[tuple[str, str]]:
    """(place, text) of every hint in the sources."""
    found = []
    for path in sorted(SOURCES.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        named = {
            target.id: node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(tree):
            match node:
                case ast.keyword(arg="hint" | "rebuild", value=value):
                    pass
                case ast.Call(func=ast.Name(id="Door"), args=[_, value, *_]):
                    pass
                case _:
                    continue
            value = named.get(value.id, value) if isinstance(value, ast.Name) else value
            found += [(f"{path.relative_to(SOURCES)}:{value.lineno}", text) for text in text_of(value)]
    return found


HINTS = hints()
VERBS: dict[str, click.Command] = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]


def sections(kind: type[BaseModel], name: str = "") -> Iterator[tuple[str, set[str]]]:
    """(section, keys) of a settings file; a table that may stand several times also by its singular."""
    yield name, set(kind.model_fields)
    for key, info in kind.model_fields.items():
        for part in (info.annotation, *get_args(info.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from sections(part, key)
                yield from sections(part, key.removesuffix("s"))


SETTINGS: dict[str, set[str]] = {}
for settings in (Study, TransferStudy, JudgePanel):
    for section, keys in sections(settings):
        SETTINGS.setdefault(section, set()).update(keys)


def commands(text: str) -> list[str]:
    return [found.strip().rstrip(".") for found in _COMMAND.findall(text)]


@pytest.mark.parametrize("text", sorted({text for _, text in HINTS if "polysem " in text}))
def test_commands_that_hints_name_can_be_typed(text):
    place = [where for where, other in HINTS if other == text]
    for verb in _MENTION.findall(text):
        assert verb in VERBS, f"{place}: there is no verb {verb!r} in {text!r}"
    for command in commands(text):
        verb, *words = shlex.split(command.partition(" > ")[0])[1:]
        try:
            VERBS[verb].make_context(verb, words, resilient_parsing=False)
        except (click.MissingParameter, click.NoSuchOption) as error:
            pytest.fail(f"{place}: {command!r}: {error}")
        except click.UsageError as error:
            if "unexpected extra argument" in str(error):
                pytest.fail(f"{place}: {command!r}: {error}")


@pytest.mark.parametrize("text", sorted({text for _, text in HINTS if _SETTING.search(text)}))
def test_settings_that_hints_name_exist(text):
    for section, key in _SETTING.findall(text):
        if section in SETTINGS:
            assert key in SETTINGS[section], f"no setting {section}.{key}: {text!r}"


def test_hints_are_found():
    assert len(HINTS) > 300
    assert any(commands(text) for _, text in HINTS)
