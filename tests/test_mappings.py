"""irl_jax/mappings.py: compiled programs go before a process runs out of memory mappings."""

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
    told = []

    class Method:
        role = "reward/init_sft"

    class Workdir:
        def is_done(self, role):
            return False

        def mark_done(self, role, info):
            told.append(info)

        def timing(self, role):
            return {"seconds": 1.0, "compile_seconds": 0.0, "tokens_per_second": 0.0}

    class Context:
        config, workdir = None, Workdir()

        def variant(self, method):
            return self

    monkeypatch.setattr(training.variants, "methods", lambda config, group: [Method()])
    monkeypatch.setattr(training.mappings, "spare", lambda: told.append("room"))
    training.each_method(Context(), "reward", lambda context, method: "trained")
    assert told == ["room", "trained"]
