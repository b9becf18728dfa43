"""The test run checks shapes and types of the package: of arrays, of what holds none, and of dataclasses."""

import numpy as np
import pytest
from beartype.roar import BeartypeCallHintParamViolation, BeartypeCallHintReturnViolation
from jaxtyping import TypeCheckError

from support.checked import check

MODULE = """
from dataclasses import dataclass
import numpy as np
from jaxtyping import Float

def gram(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "n m"]:
    return x @ y.T if len(x) < 9 else x

def longer(words: str, *, by: int = 1) -> str:
    def twice(n: int) -> str:
        return words * n
    return twice("2") if by == 2 else by

class Later:
    def same(self, other: "Later", n: int) -> "Later":
        return other

@dataclass
class Row:
    values: Float[np.ndarray, " n"]
"""


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """A module that is checked as the package is."""
    folder = tmp_path_factory.mktemp("checked")
    (folder / "checked_example.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(folder)
        check(["checked_example"])
        import checked_example

        yield checked_example


def test_shapes_are_checked_together_and_in_the_result(example):
    assert example.gram(np.ones((2, 3)), np.ones((4, 3))).shape == (2, 4)
    for wrong in (
        (np.ones((2, 3)), np.ones((4, 2))),
        (np.ones(2), np.ones((4, 3))),
        (np.ones((9, 3)), np.ones((4, 3))),
    ):
        with pytest.raises(TypeCheckError):
            example.gram(*wrong)
    with pytest.raises(TypeCheckError):
        example.Row(np.ones((2, 2)))


def test_types_of_what_holds_no_array_are_checked(example):
    with pytest.raises(BeartypeCallHintParamViolation):
        example.longer(3)
    with pytest.raises(BeartypeCallHintReturnViolation):
        example.longer("x", by=3)
    with pytest.raises(
        TypeCheckError
    ):  # of a class that is not there yet; its other arguments are checked all the same
        example.Later().same(example.Later(), "1")


def test_what_lies_within_a_function_is_left_alone(example):
    with pytest.raises(TypeError, match="can't multiply"):
        example.longer("x", by=2)
