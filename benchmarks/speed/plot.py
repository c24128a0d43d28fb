"""The sampler's seconds over samples a prompt, prompts and tokens, as docs/sampling_speed.png."""

from __future__ import annotations

import pathlib

LABELS = {"samples": "samples a prompt", "prompts": "prompts", "tokens": "tokens a response"}


def draw(curves: dict, path) -> None:
    """Writes the PNG of what `sampling.curves` measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.4), sharey=True, layout="constrained")
    for axis, (name, points) in zip(axes, curves["points"].items(), strict=True):
        values = [point[name] for point in points]
        axis.plot(values, [point["seconds"] for point in points], marker="o", color="#1f5fa8", linewidth=1.8)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(values, [str(value) for value in values])
        axis.minorticks_off()
        held = ", ".join(f"{value} {LABELS[other]}" for other, value in curves["held_at"].items() if other != name)
        axis.set_title(f"with {held}", fontsize=9)
        axis.set_xlabel(LABELS[name])
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("seconds a call")
    figure.suptitle(f"Sampling, {curves['size']}, prompts of up to {curves['prompt_tokens']} tokens", fontsize=10)
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
