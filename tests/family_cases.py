"""Tiny random models of every family, and what torch transformers makes of them: stored in tests/fixtures/families, and live.

tests/fixtures/make_families.py writes the files, test_families.py reads them. Nothing here needs torch but `live`.
"""

import dataclasses
import functools
import io
import json
import pathlib
import zlib

import numpy as np

FOLDER = pathlib.Path(__file__).resolve().parent / "fixtures" / "families"

LLAMA31 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 500.0,
           "original_max_position_embeddings": 16}  # fmt: skip
LLAMA32 = LLAMA31 | {"factor": 32.0, "original_max_position_embeddings": 8, "rope_theta": 300.0}
SMALL = dict(vocab_size=23, hidden_size=12, intermediate_size=14, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             head_dim=6, max_position_embeddings=32, bos_token_id=1, eos_token_id=2, pad_token_id=0)  # fmt: skip
SQUARE = {key: value for key, value in SMALL.items() if key != "head_dim"} | {"hidden_size": 16}  # heads together as wide as the model
GPT2 = dict(vocab_size=23, n_embd=12, n_layer=2, n_head=4, n_inner=20, n_positions=32, bos_token_id=1, eos_token_id=2)
QWEN_WINDOW = dict(use_sliding_window=True, sliding_window=4, max_window_layers=1)
GEMMA2 = SMALL | dict(head_dim=8, query_pre_attn_scalar=7, sliding_window=5)
CASES = {  # name: (model_type, settings)
    "gpt2": ("gpt2", GPT2),
    "gpt2-untied": ("gpt2", GPT2 | dict(n_head=2, n_inner=14, activation_function="gelu", tie_word_embeddings=False)),
    "llama2": ("llama", SMALL | dict(num_key_value_heads=4)),
    "llama3": ("llama", SMALL | dict(rope_parameters={"rope_type": "default", "rope_theta": 5e5}, rms_norm_eps=1e-3)),
    "llama31": ("llama", SMALL | dict(rope_parameters=LLAMA31, num_key_value_heads=1, head_dim=8)),
    "llama32": ("llama", SMALL | dict(rope_parameters=LLAMA32, num_attention_heads=6, head_dim=8, tie_word_embeddings=True)),
    "llama-linear": ("llama", SMALL | dict(rope_parameters={"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4}, attention_bias=True,
                                           mlp_bias=True, num_attention_heads=2, num_key_value_heads=1)),
    "mistral": ("mistral", SMALL | dict(sliding_window=5)),
    "mistral-tied": ("mistral", SMALL | dict(sliding_window=3, head_dim=10, num_key_value_heads=1, tie_word_embeddings=True)),
    "mistral-whole": ("mistral", SMALL | dict(sliding_window=None, num_key_value_heads=4)),
    "qwen2": ("qwen2", SQUARE | dict(tie_word_embeddings=True)),
    "qwen2-window": ("qwen2", SQUARE | QWEN_WINDOW | dict(num_hidden_layers=3, num_key_value_heads=1)),
    "qwen3": ("qwen3", SMALL | dict(head_dim=8)),
    "qwen3-tied": ("qwen3", SMALL | dict(head_dim=10, tie_word_embeddings=True, num_key_value_heads=4, attention_bias=True)),
    "qwen3-window": ("qwen3", SMALL | QWEN_WINDOW | dict(num_key_value_heads=1)),
    "gemma": ("gemma", SMALL | dict(head_dim=10, num_key_value_heads=1)),
    "gemma-untied": ("gemma", SMALL | dict(tie_word_embeddings=False)),
    "gemma2": ("gemma2", GEMMA2),
    "gemma2-caps": ("gemma2", GEMMA2 | dict(attn_logit_softcapping=1.0, final_logit_softcapping=2.0, sliding_window=3,
                                           num_hidden_layers=3, num_key_value_heads=1)),
    "gemma2-untied": ("gemma2", GEMMA2 | dict(attn_logit_softcapping=None, final_logit_softcapping=None, num_key_value_heads=4,
                                             head_dim=4, tie_word_embeddings=False)),
    "gemma3": ("gemma3_text", GEMMA2 | dict(num_hidden_layers=7, head_dim=4)),
    "gemma3-scaled": ("gemma3_text", GEMMA2 | dict(
        sliding_window=4, num_hidden_layers=3, num_key_value_heads=1, tie_word_embeddings=False,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={"full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 900.0},
                         "sliding_attention": {"rope_type": "default", "rope_theta": 50.0}})),
    "phi3": ("phi3", SQUARE | dict(sliding_window=6)),
    "phi3-partial": ("phi3", SQUARE | dict(num_key_value_heads=1, tie_word_embeddings=True,
                                          rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5})),
}  # fmt: skip

T, LENGTHS, LIMIT = 14, np.array([14, 9, 5]), 10  # tokens of a padded row, of what is in it, and of a greedy text at most
PROMPT = 2  # tokens at the start of each row that the SFT loss leaves out
ZERO = 1e-5  # a part of a gradient whose root mean square is below is zero: the next is at 9e-4
LOGIT_STEP = 2.0**-15  # logits are stored as multiples of it
GRADIENT_STEP, LEAST_STEP = 6e-5, 1e-8  # a part of a gradient: of the first times its root mean square, or the second, whichever is larger


@dataclasses.dataclass(frozen=True)
class Expected:
    """What transformers gives for one case.

    config: its config.json. shapes: of the tensors that it saves. seed: of their values (`drawn`). logits: float32 [6, T, V], 0 at
    padding. greedy: [3, LIMIT], 0 after the end. gradients: of the mean SFT loss over the six rows, a tensor's name -> its parts (`parts`).
    """

    config: dict
    shapes: dict[str, tuple[int, ...]]
    seed: int
    logits: np.ndarray
    greedy: np.ndarray
    gradients: dict[str, list[np.ndarray]]

    @functools.cached_property
    def tensors(self) -> dict[str, np.ndarray]:
        """The weights, float32."""
        return {name: drawn(self.config["model_type"], name, shape, self.seed) for name, shape in self.shapes.items()}


def drawn(kind: str, name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """A tensor's values, far from what models start with; the same on every machine and exact in float32.

    RandomState's stream is frozen, random_sample makes no use of the C library's functions, and all is in multiples of 2^-12.
    """
    unit = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32).random_sample(shape) * 2 - 1
    gemma, norm = kind.startswith("gemma"), "norm" in name or ".ln_" in name
    width = 0.5 if norm or name.endswith("bias") else 0.35
    if gemma and "embed_tokens" in name:  # which it multiplies by sqrt(width): layers would count for little, and texts repeat one token
        width = 0.1
    centre = 1.0 if norm and name.endswith("weight") and not gemma else 0.0  # Gemma multiplies by 1 + weight
    return (np.floor(unit * width * 2**12) / 2**12 + centre).astype(np.float32)


def rows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, mask and positions [6, T] of three rows padded on the right, then of three on the left."""
    tokens = np.random.RandomState(3).randint(3, 23, (6, T))
    lengths = np.tile(LENGTHS, 2)[:, None]
    index = np.arange(T) - np.where(np.arange(6)[:, None] < 3, 0, T - lengths)
    mask = (index >= 0) & (index < lengths)
    return np.where(mask, tokens, 0), mask, np.where(mask, index, 0)


def responses() -> np.ndarray:
    """Which tokens of `rows` the SFT loss is about: bool [6, T]."""
    _, mask, positions = rows()
    return mask & (positions >= PROMPT)


def prompts(left: bool) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and mask [3, T] of the prompts of greedy texts: the last three of `rows`, padded on either side."""
    tokens, mask, _ = rows()
    if left:
        return tokens[3:], mask[3:]
    ends = np.arange(T) < LENGTHS[:, None]
    out = np.zeros_like(tokens[3:])
    out[ends] = tokens[3:][mask[3:]]
    return out, ends


def parts(config: dict, name: str, tensor: np.ndarray) -> list[np.ndarray]:
    """A tensor as the parameters in it: GPT-2's c_attn and Phi-3's qkv_proj and gate_up_proj hold several."""
    if ".c_attn." in name:
        return np.split(tensor, 3, axis=-1)
    if ".gate_up_proj." in name:
        return np.split(tensor, 2)
    if ".qkv_proj." in name:
        width = config["hidden_size"] // config["num_attention_heads"] if config.get("head_dim") is None else config["head_dim"]
        queries, keys = config["num_attention_heads"] * width, config["num_key_value_heads"] * width
        return np.split(tensor, [queries, queries + keys])
    return [tensor]


def distance(got: np.ndarray, want: np.ndarray) -> float:
    """How far a part of a gradient is from `want`, in units of its norm; of one that is zero but for rounding, in units of 0.01 a number,
    so that 1e-4 is 1e-6 a number."""
    norm, size = np.linalg.norm(want), np.sqrt(want.size)
    return float(np.linalg.norm(got - want) / (norm if norm > ZERO * size else 1e-2 * size))


# ---------------------------------------------------------------- files


def _packed(values: np.ndarray, step: float) -> np.ndarray:
    """Multiples of `step` as planes of bytes, uint8 [3, N], of which the high ones compress."""
    counts = np.rint(np.asarray(values, np.float64).ravel() / step).astype(np.int64)
    counts = np.where(counts < 0, -2 * counts - 1, 2 * counts)  # small numbers for small counts of either sign
    assert counts.max(initial=0) < 2**24
    return np.stack([counts >> shift & 255 for shift in (0, 8, 16)]).astype(np.uint8)


def _unpacked(planes: np.ndarray, step: float) -> np.ndarray:
    counts = (planes.astype(np.int64) << np.array([[0], [8], [16]])).sum(0)
    return np.where(counts % 2, -(counts + 1) // 2, counts // 2) * step


def write(name: str, expected: Expected) -> bytes:
    """The bytes of a case's file: numpy arrays and JSON, compressed; the same for the same arguments."""
    flat = [part for tensor in expected.gradients.values() for part in tensor]
    steps = [float(max(GRADIENT_STEP * np.sqrt(np.mean(np.square(part, dtype=np.float64))), LEAST_STEP)) for part in flat]
    about = {"config": expected.config, "shapes": expected.shapes, "seed": expected.seed, "steps": steps}
    planes = np.concatenate([_packed(part, step) for part, step in zip(flat, steps, strict=True)], axis=1)
    file = io.BytesIO()
    np.savez_compressed(
        file,
        about=np.frombuffer(json.dumps(about).encode(), np.uint8),
        logits=_packed(expected.logits[rows()[1]], LOGIT_STEP),
        greedy=expected.greedy.astype(np.uint8),
        gradients=planes,
    )
    return file.getvalue()


def read(name: str) -> Expected:
    """What `write` wrote of a case."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        about = json.loads(file["about"].tobytes())
        packed, greedy, planes = file["logits"], file["greedy"].astype(np.int64), file["gradients"]
    config, shapes = about["config"], {key: tuple(shape) for key, shape in about["shapes"].items()}
    mask = rows()[1]
    logits = np.zeros((*mask.shape, config["vocab_size"]), np.float32)
    logits[mask] = _unpacked(packed, LOGIT_STEP).reshape(mask.sum(), -1)
    gradients, steps, at = {}, iter(about["steps"]), 0
    for key, shape in shapes.items():
        gradients[key] = []
        for part in parts(config, key, np.zeros(shape)):
            values = _unpacked(planes[:, at : at + part.size], next(steps))
            gradients[key].append(values.reshape(part.shape))
            at += part.size
    return Expected(config, shapes, about["seed"], logits, greedy, gradients)


# ---------------------------------------------------------------- live


def torch_model(name: str, seed: int):
    """The torch model of a case."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, settings = CASES[name]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings), attn_implementation="eager").eval().float()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(drawn(kind, key, tuple(parameter.shape), seed)))
    return model


def live(model, seed: int, folder: pathlib.Path) -> Expected:
    """Saves a `torch_model` to `folder`, and what it gives."""
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    del config["transformers_version"]
    mask, logits = rows()[1], torch_logits(model)
    gradients = torch_gradients(model, logits)
    return Expected(
        config,
        shapes={key: value.shape for key, value in gradients.items()},
        seed=seed,
        logits=np.where(mask[..., None], logits.detach().numpy(), 0),
        greedy=torch_greedy(model)[0],
        gradients={key: parts(config, key, value) for key, value in gradients.items()},
    )


def torch_logits(model):
    """A torch model's logits of `rows`, [6, T, V]."""
    import torch

    tokens, mask, positions = (torch.tensor(np.asarray(x, np.int64)) for x in rows())
    return model(input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=False).logits


def torch_gradients(model, logits) -> dict[str, np.ndarray]:
    """The gradient of the mean SFT loss for each of its parameters."""
    import torch

    tokens, mask = torch.tensor(rows()[0]), torch.tensor(responses())
    logprobs = torch.log_softmax(logits[:, :-1], -1).gather(-1, tokens[:, 1:, None])[..., 0]
    model.zero_grad()
    (-(logprobs * mask[:, 1:]).sum() / mask.sum()).backward()
    return {key: parameter.grad.numpy() for key, parameter in model.named_parameters()}


def torch_greedy(model) -> tuple[np.ndarray, float]:
    """What `generate` writes, [3, LIMIT], and the least lead of a token that it took over the next."""
    import torch

    tokens, mask = prompts(left=True)
    out = model.generate(torch.tensor(tokens), attention_mask=torch.tensor(mask.astype(np.int64)), max_new_tokens=LIMIT, do_sample=False,
                         eos_token_id=2, pad_token_id=0, return_dict_in_generate=True, output_logits=True)  # fmt: skip
    texts = np.zeros((len(tokens), LIMIT), np.int64)
    texts[:, : out.sequences.shape[1] - T] = out.sequences[:, T:].numpy()
    best = torch.stack(out.logits, 1).topk(2, -1).values.numpy()
    open_ = np.cumsum(texts == 2, axis=1) - (texts == 2) == 0  # up to the EOS and with it
    return texts, float((best[..., 0] - best[..., 1])[open_[:, : best.shape[1]]].min())
