"""Loading a checkpoint onto a mesh: the host's memory, eight devices, what is refused before anything is placed, padded vocabularies."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import loading
import pytest

from irl_jax import hf, hf_import
from irl_jax.models import families

MIB = 2**20
# Beside the devices' own: a block of 4 MB as it is mapped, read, cast and sent, the compiled writes, and what malloc keeps (44 MB measured).
ROOM = 64 * MIB


def in_a_process(what, folder, devices=1):
    """What `loading.py WHAT FOLDER` prints."""
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu",
                                "PYTHONPATH": str(pathlib.Path(hf.__file__).parent.parent)}
    done = subprocess.run([sys.executable, loading.__file__, what, str(folder)], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_host_holds_some_blocks_beside_what_the_devices_hold(tmp_path):
    """Of 80M parameters in three shards; the resident memory of a CPU has the devices' in it."""
    config = families.from_hf_config({"model_type": "llama", **loading.SIZES})
    for kind in ("bfloat16", "float32"):
        largest = loading.make_folder(tmp_path / kind, config, kind, shards=3)
    loading.make_folder(tmp_path / "tiny", dataclasses.replace(config, width=64, num_layers=1), "float32")
    grown = in_a_process("memory", tmp_path)
    assert ROOM < 2 * largest
    for kind in ("bfloat16", "float32"):
        growth, devices = grown[kind]
        assert devices > 300 * MIB
        assert growth < devices + ROOM
    growth, devices = grown["everything at once"]
    assert growth > devices + 2 * largest + ROOM  # what this test would say of it
