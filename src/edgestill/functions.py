"""A user's own function, named as `file.py:function`."""

import hashlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgestill.errors import UserError, closest, first_line
from edgestill.paths import exists

FUNCTION = re.compile(r"(?P<file>.+\.py):(?P<name>[A-Za-z_]\w*)")


def load_function(spec: str) -> Callable[..., Any]:
    """The function of `file.py:function`; a file is run once, however many of its functions are asked for.

    Raises:
        UserError: no such file, a file that does not run, or no such function in it.

    >>> load_function("my_data.py:splits")  # doctest: +SKIP
    """
    parts = FUNCTION.fullmatch(spec)
    if parts is None:
        raise UserError(f"a function is named as file.py:function; {spec!r} came")
    path = Path(parts["file"]).resolve()
    if not exists(path):
        raise UserError(f"there is no file {path} (for {spec!r})")
    module_name = f"edgestill_user_{path.stem}_{hashlib.blake2b(str(path).encode(), digest_size=6).hexdigest()}"
    if module_name not in sys.modules:
        found = importlib.util.spec_from_file_location(module_name, path)
        if found is None or found.loader is None:
            raise UserError(f"{path} is not a Python file")
        module = importlib.util.module_from_spec(found)
        sys.modules[module_name] = module
        try:
            found.loader.exec_module(module)
        except Exception as error:
            del sys.modules[module_name]
            raise UserError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error
    function = getattr(sys.modules[module_name], parts["name"], None)
    if not callable(function):
        known = [name for name in vars(sys.modules[module_name]) if not name.startswith("_")]
        raise UserError(f"{path} has no function {parts['name']!r}{closest(parts['name'], known)}")
    return function  # type: ignore[no-any-return]


def model_of(spec: str, given: Mapping[str, Any], options: dict[str, Any]) -> Any:
    """What the function of `file.py:function` makes of `options` and of those of `given` that it takes and that are not
    None; these join the options, with which a saved model is made again.

    Raises:
        UserError: a function that cannot be called so, with what it raised.
    """
    function = load_function(spec)
    taken = inspect.signature(function).parameters
    arguments = {name: value for name, value in given.items() if name in taken and value is not None} | options
    try:
        made = function(**arguments)
    except Exception as error:
        raise UserError(f"{spec} cannot be called with {arguments}: {first_line(error)}") from error
    options |= arguments
    return made
