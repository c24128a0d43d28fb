"""`python -m irl_jax`."""

import os
import sys

try:
    here = os.getcwd()
except FileNotFoundError:  # somebody removed it
    here = ""
# Python puts the working folder on the path. The command `irl_jax` does not, and optional modules of libraries must not come from there.
if not sys.flags.safe_path and sys.path[:1] == [here]:
    del sys.path[0]

from irl_jax.cli import entry  # noqa: E402

entry()
