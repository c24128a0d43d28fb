"""Run by tests/test_loading.py in processes of their own: what loading a model needs of the host's memory, and what eight devices get."""

import json
import pathlib
import sys

import numpy as np

SIZES = {"num_hidden_layers": 12, "hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 2048,
         "vocab_size": 32003, "max_position_embeddings": 64, "tie_word_embeddings": False}  # 80M parameters, 66 MB the largest tensor
KINDS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def make_folder(folder, config, kind, shards=1, seed=0):
    """Writes a model of random numbers in that dtype, a tensor at a time; the bytes of the largest tensor in it."""
    import ml_dtypes

    from irl_jax import hf_export
    from irl_jax.models import families, tensors, transformer

    folder.mkdir()
    shapes = tensors.jax.eval_shape(lambda: transformer.init_trunk(tensors.jax.random.key(0), config))
    numbers, largest, pool = np.random.default_rng(seed), 0, np.random.default_rng(seed).normal(size=2**20).astype(np.float32)

    def some(shape):
        return np.resize(np.roll(pool, int(numbers.integers(2**20))), shape).astype(getattr(ml_dtypes, kind, kind))

    stored = [s._replace(read=lambda shape=s.shape: some(shape)) for s in tensors.stored_tensors(config, {"params": shapes})]
    for shard in range(shards):
        part = {s.name: s.read() for s in stored[shard::shards]}
        largest = max(largest, *(tensor.nbytes for tensor in part.values()))
        hf_export.save_tensors(folder / (hf_export.WEIGHTS if shards == 1 else f"{shard}.safetensors"), part)
    if shards > 1:
        weight_map = {s.name: f"{number % shards}.safetensors" for number, s in enumerate(stored)}
        hf_export.write_json(folder / hf_export.INDEX, {"weight_map": weight_map})
    hf_export.write_json(folder / "config.json", families.to_hf_config(config))
    return largest


def everything_at_once(folder, mesh):
    """How not to do it: all tensors on the host, layers stacked there, then placed."""
    from safetensors.numpy import load_file

    from irl_jax import hf, sharding
    from irl_jax.models import tensors

    config = hf.read_config(folder)
    stored = {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}
    pieces = tensors.import_plan(config, {name: tensor.shape for name, tensor in stored.items()}, "").pieces
    trunk = {}
    for path, own in pieces.items():
        arrays = []
        for piece in own:
            tensor = stored[piece.name].T if piece.transposed else stored[piece.name]
            arrays.append(tensor[..., piece.start : piece.start + piece.shape[-1]].astype(np.float32))
        *parents, last = path.split("/")
        tree = trunk
        for parent in parents:
            tree = tree.setdefault(parent, {})
        tree[last] = arrays[0] if own[0].layer is None else np.stack(arrays)
    return sharding.place(trunk, mesh)


def in_status(field):
    """Bytes, of this process alone (getrusage's peak would have that of the process it was forked from)."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def memory(folder):
    """{way: [growth of the peak of resident memory, bytes on the devices]} for the folders "tiny", whose loading makes jax's own
    memory grow before anything is measured, and "bfloat16" and "float32"."""
    import jax

    from irl_jax import hf, sharding

    mesh, out = sharding.one_device(), {}
    block_by_block = lambda folder, mesh: hf.load_folder(folder, mesh)[1]
    for way, name, load in (("warm", "tiny", block_by_block), ("bfloat16", "bfloat16", block_by_block),
                            ("float32", "float32", block_by_block), ("everything at once", "float32", everything_at_once)):
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak is what it is now
        before = in_status("VmRSS")
        leaves = jax.tree.leaves(jax.block_until_ready(load(folder / name, mesh)))
        size = sum(shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards)
        out[way] = [in_status("VmHWM") - before, size]
        del leaves
    return out


if __name__ == "__main__":
    print(json.dumps({"memory": memory}[sys.argv[1]](pathlib.Path(sys.argv[2]))))
