"""Plans a run for TPUs that are not here: compiles its programs for a topology and reports what each needs per chip.

It loads only shapes. libtpu compiles for a named topology as it would on the machine itself.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import re
import tempfile
import time
from pathlib import Path

from irl_jax import artifacts, chips, hf, hlo, hlo_text, paths
from irl_jax.checks import check, check_policy
from irl_jax.errors import UserError
from irl_jax.overrides import nearest


def run(config, topology: str, slices: int = 1, out: str = "aot", names: tuple[str, ...] = ()) -> dict:
    """Compiles a config's programs for a topology; prints a table and writes OUT/plan.json.

    Args:
        config: locked ConfigDict; model.path may be a hub name of `models.published`. topology: for example "v5e:4x4". slices: number
            of slices, joined by the data centre's network. out: folder. names: programs from `aot_steps.NAMES`; () is all.

    Returns:
        The plan: {"topology", "chip", "mesh", "steps": [one row per program]}, with bytes and operations per chip.

    Raises:
        UserError: no libtpu, an unknown topology or program, a mesh that doesn't fit it, or anything wrong in the config.
    """
    from irl_jax.stages import aot_advice, aot_steps, aot_table

    unknown = [name for name in names if name not in aot_steps.NAMES]
    if unknown:
        raise UserError(f"--steps: unknown step '{unknown[0]}'{nearest(unknown[0], aot_steps.NAMES)}; one of {', '.join(aot_steps.NAMES)}")
    check(config)
    check_policy(config, dense=True)  # config.policy itself is compiled, even if no method uses it unchanged
    chip = chips.chip_of(topology)
    folder = paths.of(out)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out={out}: is a file; give a folder")
    devices = describe(topology, slices)
    planner = make_planner(config, devices)
    plan = {"topology": topology, "slices": slices, "chips": len(devices), "chip": chip._asdict(), "mesh": dict(planner.mesh.shape),
            "model": planner.model.__dict__, "steps": []}  # fmt: skip
    with paths.refusals(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name in names or aot_steps.NAMES:
        print(f"aot: compiling {name} for {len(devices)} chips", flush=True)
        row = measure(planner, name, chip, len(devices) // slices if slices > 1 else 0)
        if not row["fits"]:
            again = functools.partial(_again, config, devices=devices, slices=slices, name=name, chip=chip)
            row["advice"] = aot_advice.advise(row, planner, chip, again)
        plan["steps"].append(row)
        artifacts.write_json(folder / "plan.json", plan)  # an interrupted plan keeps the steps so far
    print(aot_table.render(plan))
    print(f"plan: {folder / 'plan.json'}")
    return plan


_QUIET = {  # libtpu doesn't ask the network which TPU machine this is, and other processes may have it loaded
    "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_STDERR_LOG_LEVEL": "3", "TPU_MIN_LOG_LEVEL": "3",
}  # fmt: skip


def describe(topology: str, slices: int = 1) -> list:
    """The devices of a topology; none need to be attached.

    Raises:
        UserError: libtpu is not installed, doesn't start, or knows no such topology.
    """
    found = importlib.util.find_spec("libtpu")
    if found is None or found.origin is None:
        raise UserError("aot compiles with libtpu, which is not installed: pip install 'irl_jax[tpu]'")
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
    import jax
    from jax.experimental import topologies

    jax.config.update("jax_platforms", "cpu")  # leave this machine's accelerators alone
    try:
        how = {"num_slices": slices} if slices > 1 else {}
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology, **how).devices)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:200]
        if "topology" not in reason.lower():
            raise UserError(f"libtpu does not start: {reason}") from None
        raise UserError(f"--topology={topology}: libtpu knows no such topology ({reason}); examples: {chips.EXAMPLES}") from None


def make_planner(config, devices):
    """The planner of a config on these devices. Raises: see `sharding.make_mesh`."""
    from irl_jax import sharding
    from irl_jax.stages import aot_steps, context

    mesh = sharding.make_mesh(config.mesh, devices)
    return aot_steps.Planner(config, context.as_configured(architecture(config), config), mesh)


def architecture(config):
    """The initial model's ModelConfig: from model.path, or from the config's sizes for the testbed."""
    if config.data.source != "testbed":
        return hf.read_config(config.model.path, config.model.revision)
    from irl_jax.data import testbed
    from irl_jax.stages import context

    return context.from_scratch(config, len(testbed.build_world(config.data.testbed, config.seed).tokenizer))


def _again(config, changed: dict, devices, slices: int, name: str, chip) -> dict:
    """The program's row with changed settings."""
    from ml_collections import ConfigDict

    other = ConfigDict(config.to_dict())
    other.update_from_flattened_dict(changed)
    print(f"aot: {name} does not fit; compiling with {', '.join(f'{k}={v}' for k, v in changed.items())}", flush=True)
    return measure(make_planner(other.lock(), devices), name, chip, len(devices) // slices if slices > 1 else 0)


def measure(planner, name: str, chip, slice_devices: int = 0) -> dict:
    """Compiles one program and measures it. All numbers are per chip.

    Returns:
        {"step", "tokens", "bytes": {...}, "fits", "compile_seconds"}. If XLA could compile it, also "flops", "ideal_flops",
        "hbm_bytes", "network_bytes", "seconds", "binds", "vocabulary_tokens".
    """
    program = planner.program(name)
    count = planner.mesh.size
    start = time.perf_counter()
    roles = role_bytes(planner.resident(name))
    row = {"step": name, "section": program.section, "tokens": program.tokens / count, "roles": roles}
    try:
        compiled, text = compile_program(program)
    except Exception as error:  # jax raises all XLA errors as one type
        needed = out_of_memory(str(error))
        if needed is None:
            raise
        beside = sum(roles.values()) - _size([program.arguments[i] for i in program.own])
        row["bytes"] = {"peak": needed, "resident": beside, "total": needed + beside}
        return row | {"fits": False, "compile_seconds": time.perf_counter() - start}
    row["compile_seconds"] = time.perf_counter() - start
    row["bytes"] = memory(compiled.memory_analysis(), program, sum(roles.values()))
    row["fits"] = row["bytes"]["total"] <= chip.memory
    cost = hlo.Program(text, program.trips, slice_devices).cost()
    row |= {"flops": cost.flops, "ideal_flops": program.ideal / count, "hbm_bytes": cost.memory,
            "network_bytes": {kind + (" (between slices)" if far else ""): sent for (kind, far), sent in sorted(cost.network.items())},
            "vocabulary_tokens": vocabulary_tokens(text, planner.model, planner.mesh)}  # fmt: skip
    far = sum(sent for (_, crosses), sent in cost.network.items() if crosses)
    near = sum(cost.network.values()) - far
    seconds = {"compute": cost.flops / chip.flops, "memory": cost.memory / chip.bandwidth, "network": near / chip.ici + far / chip.dcn}
    return row | {"seconds": seconds, "binds": max(seconds, key=seconds.__getitem__)}


def compile_program(program):
    """(compiled, its HLO text). libtpu dumps the text itself, since jaxlib can't read every program of a newer libtpu."""
    lowered = program.compiled.lower(*program.arguments)
    with tempfile.TemporaryDirectory() as folder:
        compiled = lowered.compile(compiler_options={"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
        texts = sorted(Path(folder).glob("*after_optimizations.txt"), key=lambda file: file.stat().st_size)
        return compiled, texts[-1].read_text() if texts else compiled.as_text()


def memory(analysis, program, roles: float) -> dict:
    """Bytes per chip: the program's own, and those of the other roles in memory.

    peak = arguments + temporaries + outputs - aliased (donated arguments whose place outputs take). XLA doesn't count an
    argument that the program never reads. It is in memory all the same and counts as resident. roles: bytes of all roles in memory.
    """
    arguments, outputs = analysis.argument_size_in_bytes, analysis.output_size_in_bytes
    temporaries, aliased = analysis.temp_size_in_bytes, analysis.alias_size_in_bytes
    peak = arguments + temporaries + outputs - aliased
    batch = _size(program.arguments) - _size([program.arguments[i] for i in program.own])
    resident = max(0.0, roles + batch - arguments)
    return {"arguments": arguments, "temporaries": temporaries, "outputs": outputs, "aliased": aliased, "peak": peak,
            "resident": resident, "total": peak + resident}  # fmt: skip


def role_bytes(resident: dict) -> dict[str, float]:
    """{role: bytes per device}. The value is listed separately, though it is part of the policy's state."""
    import jax

    sizes: dict[str, float] = {}
    for role, tree in resident.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            name = "value" if "/value/" in jax.tree_util.keystr(path, simple=True, separator="/") else role
            sizes[name] = sizes.get(name, 0.0) + _bytes(leaf)
    return sizes


def _size(tree) -> float:
    import jax

    return sum(_bytes(leaf) for leaf in jax.tree.leaves(tree))


def _bytes(leaf) -> float:
    """Bytes of one device's shard of a leaf."""
    import jax
    import jax.numpy as jnp

    width = 8 if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.dtype.itemsize
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * width


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def out_of_memory(message: str) -> float | None:
    """The bytes a program needs, from XLA's out-of-memory message (inf if not given there); None for other messages."""
    if not re.search(r"Ran out of memory|CompileTimeHbmOom|Exceeded hbm capacity", message, re.IGNORECASE):
        return None
    found = re.search(r"(?:Used|temporaries|required[^(]*) \(?([\d.]+)([KMGT]?) ?(?:of|\))", message)
    return float(found[1]) * _UNITS[found[2]] if found else math.inf


def vocabulary_tokens(text: str, model, mesh) -> float:
    """Tokens whose vocabulary logits a chip holds at once: from the largest array with a vocabulary axis, except parameters."""
    size, ways = model.padded_vocab, mesh.shape["tensor"]
    parts = {size, *([] if size % ways else [size // ways])}
    widths = {model.width // ways for ways in (1, mesh.shape["fsdp"], mesh.shape["fsdp"] * mesh.shape["tensor"]) if model.width % ways == 0}
    tokens = 0.0
    for array in hlo_text.largest(text, 10**6):
        axis = next((size for size in array.dims if size in parts), None)
        if axis and len(array.dims) > 1 and not widths & set(array.dims) and array.dtype in ("f32", "bf16"):
            tokens = max(tokens, math.prod(array.dims) / axis)
    return tokens
