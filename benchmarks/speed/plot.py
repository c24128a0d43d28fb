"""The sampler's seconds over samples a prompt, prompts and tokens, as docs/sampling_speed.png.

python -m benchmarks.speed.plot RESULTS.json OUT.png draws again what was kept.
"""

from __future__ import annotations

import json
import pathlib
import sys

LABELS = {"samples": "samples a prompt", "prompts": "prompts", "tokens": "tokens a response"}


def draw(curves: dict, path) -> None:
    """Writes the PNG of what `sampling.curves` measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.4), sharey=True, layout="constrained")
    for axis, (name, points) in zip(axes, curves["points"].items(), strict=True):
        values = [point[name] for point in points]
        seconds = [point["seconds"] for point in points]
        proportional = [seconds[-1] * value / values[-1] for value in values]
        axis.plot(values, proportional, color="#767676", linewidth=1.2, linestyle="--", label="in proportion to the largest")
        axis.plot(values, seconds, marker="o", color="#1f5fa8", linewidth=1.8)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axis.set_xticks(values, [str(value) for value in values])
        axis.minorticks_off()
        held = ", ".join(f"{value} {LABELS[other]}" for other, value in curves["held_at"].items() if other != name)
        axis.set_title(f"with {held}", fontsize=9)
        axis.set_xlabel(LABELS[name])
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("seconds a call")
    axes[-1].legend(loc="lower right", frameon=False, fontsize=8)
    figure.suptitle(f"Sampling, {curves['size']}, prompts of up to {curves['prompt_tokens']} tokens", fontsize=10)
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def main(argv) -> int:
    results, out = argv
    draw(json.loads(pathlib.Path(results).read_text())["curves"], out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
