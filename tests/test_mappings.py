"""irl_jax/mappings.py: compiled programs go before a process runs out of memory mappings."""

import types

import jax
import jax.numpy as jnp
import pytest

from irl_jax import mappings
from irl_jax.stages import training


@pytest.mark.skipif(not mappings.OWN.exists(), reason="no Linux")
def test_programs_are_dropped_and_still_run():
    def taken():
        return mappings.OWN.read_bytes().count(b"\n")

    squares = [jax.jit(lambda x, power=power: (x**power).sum()) for power in range(2, 42)]
    x = jnp.arange(4.0)
    jax.block_until_ready([each(x) for each in squares])
    before = taken()
    assert not mappings.spare(1.0) and taken() >= before - 5
    assert mappings.spare(0.0) and taken() < before - 40
    assert squares[0](x) == 14


def test_a_system_that_does_not_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(mappings, "LIMIT", tmp_path / "none")
    assert not mappings.spare(0.0)


def test_every_method_begins_with_room(monkeypatch):
    told, took = [], {"seconds": 1.0, "compile_seconds": 0.0, "tokens_per_second": 0.0}
    workdir = types.SimpleNamespace(is_done=lambda role: False, mark_done=lambda role, info: told.append(info), timing=lambda role: took)
    context = types.SimpleNamespace(config=None, workdir=workdir, variant=lambda method: context)
    methods = [types.SimpleNamespace(role=f"reward/{name}") for name in ("init_sft", "init_demo")]
    monkeypatch.setattr(training.variants, "methods", lambda config, group: methods)
    monkeypatch.setattr(training.mappings, "spare", lambda: told.append("room"))
    training.each_method(context, "reward", lambda context, method: method.role)
    assert told == ["room", "reward/init_sft", "room", "reward/init_demo"]
