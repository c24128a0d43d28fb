#!/usr/bin/env bash
# The accelerator's cases, under 8 minutes on one H100: bash benchmarks/gpu.sh [--tiny] [--cases=A,B] [--peak_flops=F] [--peak_bytes=B]
# SFT of a 1B Llama shape in bfloat16 as a share of the chip's peak, decoding at batch 64 as a share of its memory bandwidth, and
# 16 samples a prompt beside transformers' generate. Makes benchmarks/.venv-gpu first; IRL_JAX_BENCHMARK_VENV=DIR takes an environment
# that has jax for this chip, torch and transformers already. --tiny runs the same code on a tiny model wherever it is.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export IRL_JAX_BENCHMARK_VENV=${IRL_JAX_BENCHMARK_VENV:-$here/.venv-gpu} IRL_JAX_BENCHMARK_EXTRAS=${IRL_JAX_BENCHMARK_EXTRAS-cuda}
source "$here/_venv.sh"
check_flags "$(known_flags gpu)" "$@"
[ -e "$VENV/.installed" ] || [ ! -x "$PYTHON" ] || echo given > "$VENV/.given" # somebody else's environment is taken as it is
[ -e "$VENV/.given" ] || ensure_peers
cd "$ROOT"
export XLA_PYTHON_CLIENT_PREALLOCATE=false # torch needs some of the memory
exec "$PYTHON" -m benchmarks.speed.gpu "$@"
