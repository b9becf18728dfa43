"""Shapes and types of the package, checked at every call of a function or method, in tests only.

jaxtyping's own hook would do, at twice the cost of whole tests: it decorates functions within functions anew whenever the outer
one is called, and binds the arguments of every function twice as if they had shapes. Here what lies within a function is left
alone, and what has no arrays in its signature is checked by beartype alone.
"""

import ast
import inspect
from collections.abc import Callable, Sequence
from typing import Any, get_args, get_type_hints

from beartype import beartype
from jaxtyping import AbstractArray, _import_hook, install_import_hook, jaxtyped

_CHECKER = "support.checked.beartype"
"""names the compiled files too, so that those of jaxtyping's own hook are not taken for these"""
_DECORATOR = "__import__('support.checked').checked.function"


def check(modules: Sequence[str]) -> None:
    """Check these modules and what lies below them, from their import on."""
    _import_hook.JaxtypingTransformer = _OfModulesAndClasses
    install_import_hook(modules, _CHECKER)


class _OfModulesAndClasses(_import_hook.JaxtypingTransformer):
    """Dataclasses as jaxtyping has them; functions of modules and methods by `function`."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        if not any(isinstance(parent, ast.FunctionDef) for parent in self._parents):
            decorator = ast.parse(_DECORATOR, mode="eval").body
            node.decorator_list.append(ast.copy_location(decorator, node))
            self._parents.append(node)
            self.generic_visit(node)
            self._parents.pop()
        return node


def function(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A function that checks what it is given and what it gives."""
    if not fn.__annotations__:
        return fn
    try:
        hints = get_type_hints(fn, include_extras=True)
    except (
        AttributeError,
        NameError,
    ):  # a name that only type checkers import, or of a class that is not there yet
        return jaxtyped(fn, typechecker=beartype)
    return jaxtyped(fn, typechecker=beartype) if _of_arrays(list(hints.values())) else beartype(fn)


def _of_arrays(hint: Any) -> bool:
    if isinstance(hint, list):
        return any(_of_arrays(part) for part in hint)
    return (inspect.isclass(hint) and issubclass(hint, AbstractArray)) or _of_arrays(list(get_args(hint)))
