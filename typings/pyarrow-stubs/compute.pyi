# pyarrow.compute makes its functions when it is imported and ships no stubs. What its names are is tested by the calls.
from typing import Any

def __getattr__(name: str) -> Any: ...
