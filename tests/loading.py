"""Run by tests/test_loading.py in processes of their own: what loading a model needs of the host's memory, and what eight devices get."""

import json
import pathlib
import sys

import numpy as np

SIZES = {"num_hidden_layers": 9, "hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 2048,
         "vocab_size": 32003, "max_position_embeddings": 64, "tie_word_embeddings": False}  # 67M parameters, 66 MB the largest tensor
SMALL = {"num_hidden_layers": 3, "hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
         "intermediate_size": 24, "vocab_size": 37, "max_position_embeddings": 32}  # fmt: skip
FAMILIES = {  # transposed and not, several leaves in one tensor, tied and not
    "gpt2": {"n_layer": 3, "n_embd": 16, "n_head": 4, "n_positions": 32, "vocab_size": 37}, "llama": SMALL | {"tie_word_embeddings": False},
    "phi3": SMALL | {"tie_word_embeddings": False, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "sliding_window": None},
    "gemma2": SMALL | {"sliding_window": 4, "query_pre_attn_scalar": 8, "final_logit_softcapping": 2.0}}
MESHES = ((1, 4, 2), (1, 2, 4), (2, 2, 2))


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


def random_trunk(config):
    """Numbers like trained ones, the vocabulary's padding zero; numpy."""
    import jax

    from irl_jax.models import transformer

    trunk = jax.device_get(transformer.init_trunk(jax.random.key(0), config))
    numbers = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: (leaf + 0.3 * numbers.normal(size=leaf.shape) * (leaf.any(-1, keepdims=True) | (leaf.ndim < 2))
                                      ).astype(np.float32), trunk)


def save(folder, config, trunk, kind="float32", limit=10**9):
    """Writes a trunk as a Hugging Face folder in that dtype."""
    from irl_jax import hf_export
    from irl_jax.models import families, tensors

    stored = tensors.stored_tensors(config, {"params": trunk})
    hf_export.write_folder(folder, families.to_hf_config(config), stored, dtype=kind, limit=limit)


def eight(folder):
    """{"family/dtype/parameters' dtype/mesh/multiple": [whether every leaf is bitwise the file's, rows of
    the embeddings on a device times the ways of `tensor`, and rows of them in all]}."""
    import jax
    import ml_dtypes
    from ml_collections import ConfigDict

    from irl_jax import hf, hf_import, sharding
    from irl_jax.models import families

    hf_import.BLOCK, out = 1000, {}  # bytes: a few rows; norms are small, kernels are not
    for number, (name, sizes) in enumerate(FAMILIES.items()):
        config = families.from_hf_config({"model_type": name, **sizes})
        trunk = random_trunk(config)
        cases = (("float32", (1, 1, 1), 1), ("bfloat16", MESHES[number % 3], 8), ("float16", MESHES[(number + 1) % 3], 4))
        for kind, axes, multiple in cases:
            save(folder / name / kind, config, trunk, kind, limit=4000)
            assert len(list((folder / name / kind).glob("*.safetensors"))) > 3
            stored = jax.tree.map(lambda leaf, kind=kind: leaf.astype(getattr(ml_dtypes, kind, kind)).astype(np.float32), trunk)
            held = "bfloat16" if number == 1 else "float32"
            mesh = sharding.make_mesh(ConfigDict(dict(zip(sharding.AXES, axes, strict=True))), jax.devices()[: int(np.prod(axes))])
            padded, loaded = hf.load_folder(folder / name / kind, mesh, param_dtype=held, vocab_multiple=multiple)
            same = jax.tree.map(lambda a, b, held=held: a.dtype == held and np.array_equal(a, b.astype(a.dtype)),
                                loaded, with_padding(stored, padded))
            assert jax.tree.map(lambda leaf: leaf.sharding, loaded) == sharding.tree_shardings(loaded, mesh)
            rows = loaded["embed"]["tokens"].addressable_shards[0].data.shape[0]
            out[f"{name}/{kind}/{held}/{axes}/{multiple}"] = [bool(all(jax.tree.leaves(same))), rows * axes[2], padded.padded_vocab]
    return out | {"computed": computed(folder / "gemma2" / "float32")}


def with_padding(trunk, config):
    """A trunk with the vocabulary's padding."""
    import jax

    unused = config.padded_vocab - config.vocab_size
    trunk = jax.tree.map(lambda leaf: leaf, trunk)
    trunk["embed"]["tokens"] = np.pad(trunk["embed"]["tokens"], ((0, unused), (0, 0)))
    if "unembed" in trunk:
        trunk["unembed"]["kernel"] = np.pad(trunk["unembed"]["kernel"], ((0, 0), (0, unused)))
    return trunk


def computed(folder):
    """[log-probs and entropies, gradient of the embeddings, samples] of one device, unpadded, and of fsdp 2 and tensor 4, padded."""
    import jax
    from ml_collections import ConfigDict

    from irl_jax import hf, sampler, sharding
    from irl_jax.models.logprobs import token_logprobs
    from irl_jax.types import PromptBatch

    tokens = np.random.default_rng(0).integers(1, 37, (4, 12)).astype(np.int32)
    rest = np.broadcast_to(np.arange(12, dtype=np.int32), tokens.shape), np.ones(tokens.shape, np.int32)
    prompts = PromptBatch(tokens[:, :5], np.full(4, 5, np.int32), np.arange(4, dtype=np.int32))
    out = []
    for axes, multiple in (((1, 1, 1), 1), ((1, 2, 4), 16)):
        mesh = sharding.make_mesh(ConfigDict(dict(zip(sharding.AXES, axes, strict=True))), jax.devices()[: int(np.prod(axes))])
        config, trunk = hf.load_folder(folder, mesh, vocab_multiple=multiple)

        def score(trunk, tokens, positions, segments, config=config):
            logprobs, entropies = token_logprobs(config, {"params": trunk}, tokens, positions, segments, with_entropy=True)
            return (logprobs + entropies).sum(), (logprobs, entropies)

        (_, both), gradient = sharding.compile_step(jax.value_and_grad(score, has_aux=True), mesh)(trunk, tokens, *rest)
        draw = sampler.make_sampler(config, samples=8, max_tokens=10, eos_ids=(2,), pad_id=0, top_p=0.95, with_logprobs=True)
        drawn = sharding.compile_step(draw, mesh)({"params": trunk}, sharding.put_batch(prompts, mesh), jax.random.key(0))
        out.append([np.asarray(x).tolist() for x in (np.stack(both), gradient["embed"]["tokens"], drawn.tokens, drawn.logprobs)])
    return out


if __name__ == "__main__":
    print(json.dumps({"memory": memory, "eight": eight}[sys.argv[1]](pathlib.Path(sys.argv[2]))))
