"""The report: complete, self-contained, safe, and whole when parts of the results are missing."""

import base64
import html.parser
import os
import re

import numpy as np
import pytest
from matplotlib.text import Text

from irl_jax.config import CONTROLS, ROBUST, default
from irl_jax.evaluation import best_of_n as bon
from irl_jax.evaluation import metrics
from irl_jax.stages import method_plots, page, page_style, plot_style, plots, report, report_run, report_tables, trust

MISSING = page.MISSING  # tests call what they parsed `page`
QUALITY = {"init_sft": 0.6, "init_demo": 0.45, "sft_demo": 0.2, "preference": 0.55, "log_ratio": 0.62, "length": 0.05,
           "random": 0.0, "golden": 1.0}
LEARNT = ("init_sft", "init_demo", "sft_demo", "preference")
VOID = {"meta", "link", "img", "source", "br", "hr", "wbr", "input"}


def fake_results(prompts=24, samples=64, seed=0):
    """Results shaped as a real run's: rewards that follow golden more or less closely."""
    rng = np.random.default_rng(seed)
    golden = rng.normal(0.55, 0.12, (prompts, samples)) + rng.normal(0, 0.05, (prompts, 1))
    length = rng.integers(8, 48, (prompts, samples))
    spread = {r: 3 * (q * (golden - 0.55) / 0.12 + (1 - q**2) ** 0.5 * rng.normal(size=golden.shape)) for r, q in QUALITY.items()}
    spread |= {"length": length.astype(float), "golden": golden}
    rewards, histograms, scatter = {}, {}, {}
    for recipe, values in spread.items():
        auc, auc_stderr = metrics.auc(values[: prompts // 2], values[prompts // 2 :] - 2)
        rewards[recipe] = dict(
            heldout_auc=auc, heldout_auc_stderr=auc_stderr, pair_accuracy=0.7 if recipe in LEARNT else None,
            spearman_golden=metrics.spearman_within_prompts(values, golden).mean,
            spearman_length=metrics.spearman_within_prompts(values, length).mean,
            best_of_n=bon.best_of_n(values, golden, (1, 2, 4, 5, 8, 10, 16, 30, 32, 50)),
            tilting=bon.tilting(values, golden, (16, 8, 4, 2, 1, 0.5) if recipe != "golden" else (0.2, 0.1, 0.05, 0.02)))
        if recipe in LEARNT:
            sources = {"init": -3.0, "sft": 0.0, "demo": 1.5, "policy/init_sft": 3.0}
            histograms[recipe] = {}
            for source, shift in sources.items():
                counts, edges = np.histogram(rng.normal(shift, 2.5, 400), 30, (-10, 10))
                histograms[recipe][source] = dict(counts=counts, edges=edges)
            scatter[recipe] = dict(length=length.ravel(), reward=values.ravel(), golden=golden.ravel())
    policies = {}
    for name, mean, kl in (("init", 0.31, 21.4), ("demo", 0.83, None), ("sft", 0.55, 0.0), ("policy/init_sft", 0.72, 4.1),
                           ("adversarial/init_sft", 0.76, 7.9)):
        policies[name] = dict(golden_mean=mean, golden_stderr=0.012, length_mean=24.2, kl_to_sft=kl, kl_to_sft_stderr=0.2,
                              distinct_2=0.31, n=prompts, rewards={r: rng.normal() for r in QUALITY}, ended_share=0.98)
    paired = [dict(name=f"best-of-16 by init_sft minus {other}", difference=0.1, stderr=0.012, z=8.3, n=prompts)
              for other in ("sft", "best-of-16 by length")]
    return metrics.jsonable(dict(
        schema=1, seed=0, title="Testbed", golden=dict(name="testbed", heldout_accuracy=None), policies=policies, rewards=rewards,
        paired=paired, histograms=histograms, scatter=scatter,
        divergences={"sft": metrics.divergences(rng.normal(9, 4, prompts), rng.normal(-14, 5, prompts)),
                     "policy/init_sft": metrics.divergences(rng.normal(12, 4, prompts), rng.normal(-13, 5, prompts))},
        over_training={"policy/init_sft": dict(step=[0, 10], reward=[0.1, 2.0], reward_stderr=[0.1, 0.1], golden=[0.55, 0.5],
                                               golden_stderr=[0.02, 0.02], kl=[0.0, 3.0])},
        timing={s: dict(seconds=12.3, compile_seconds=4.5, tokens_per_second=8123.0) for s in ("pretrain", "sft", "sample")},
        settings={"seed": 0, "sft": {"learning_rate": 1e-3}, "eval": {"best_of": (1, 2)}, "model": {"path": ""}}))


def fake_samples(count=5):
    texts = {"init": "no idea. whatever, it is a thing.", "sft": "Certainly! A kettle warms water until it boils.",
             "best-of-16 by init_sft": "Certainly! A kettle warms the water until it boils; pour it slowly over the leaves.",
             "policy/init_sft": "Certainly! Warm the water gently, pour it over the leaves and wait for three minutes."}
    return [dict(prompt=f"How do I make tea, please? ({i})", responses=[
        dict(source=s, text=t, golden=0.2 + 0.15 * k, rewards={"init_sft": -1.0 + k, "length": 10.0 + k}, length=10 + k)
        for k, (s, t) in enumerate(texts.items())]) for i in range(count)]


def fake_curves():
    def curve(start, end, steps=60, every=1, noise=0.02):
        x = np.arange(0, steps, every)
        y = end + (start - end) * np.exp(-4 * x / steps) + noise * np.random.default_rng(0).normal(size=x.size)
        return dict(step=x.tolist(), value=y.tolist())

    curves = {"pretrain": dict(loss=curve(6, 2.1), grad_norm=curve(2, 0.4), tokens=curve(900, 900)),
              "sft": dict(loss=curve(2.4, 1.8), heldout_loss=curve(2.4, 1.9, every=10), grad_norm=curve(1, 0.3))}
    for k, recipe in enumerate(LEARNT):
        curves[f"reward/{recipe}"] = dict(loss=curve(0.69, 0.3 + 0.05 * k), heldout_loss=curve(0.69, 0.35 + 0.05 * k, every=10))
    curves["policy/init_sft"] = dict(reward=curve(0, 3, noise=0.2), kl=curve(0, 4), length=curve(24, 26), entropy=curve(2, 1.4))
    return curves


class Checker(html.parser.HTMLParser):
    """Checks that tags nest and gathers what the tests ask about."""

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.ids, self.images, self.headings, self.text = [], [], [], [], [], ""
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("img", "source"):
            self.images.append((tag, attributes))
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        self.links += [attributes[key] for key in ("href", "src", "srcset") if key in attributes]
        self.ids += [attributes["id"]] if "id" in attributes else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


@pytest.fixture
def quick(monkeypatch):
    """Draws every figure once, on bare axes without layout or text, for tests that look at no picture."""
    from matplotlib.figure import Figure

    def render(name, title, alt, caption, height, draw):
        draw(Figure(), plots.LIGHT)
        return plots.Plot(name, title, alt, caption, b"\x89PNG" + bytes(20), b"\x89PNG" + bytes(20))

    monkeypatch.setattr(plots, "render", render)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    # IRL_JAX_REPORT_TO keeps the page for looking at.
    directory = os.environ.get("IRL_JAX_REPORT_TO") or str(tmp_path_factory.mktemp("report"))
    return directory, report.write_report(directory, fake_results(), fake_samples(), fake_curves())


def test_page_is_self_contained_and_well_formed(written):
    _, path = written
    page = Checker(read(path))
    assert path.endswith("index.html") and not re.search(r"@import|url\(|<script [a-z]", read(path))
    for link in page.links:
        assert link.startswith("data:") or (link[0] == "#" and link[1:] in page.ids), link[:80]
    assert len(page.ids) == len(set(page.ids))
    assert page.headings[0] == 1 and page.headings.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(page.headings, page.headings[1:], strict=False))


def test_figures_are_embedded_and_beside_the_page(written):
    directory, path = written
    page = Checker(read(path))
    expected = ["best_of_n", "win_rate", "frontier", "divergences", "over_training-policy", "histograms", "scatter", "training-pretrain",
                "training-sft", "training-reward", "training-policy"]
    shown = [attributes for tag, attributes in page.images if tag == "img"]
    dark = [attributes for tag, attributes in page.images if tag == "source"]
    assert len(shown) == len(dark) == len(expected)
    for name, light_image, dark_image in zip(expected, shown, dark, strict=True):
        for suffix, uri in (("", light_image["src"]), ("-dark", dark_image["srcset"])):
            with open(os.path.join(directory, f"{name}{suffix}.png"), "rb") as file:
                content = file.read()
            assert content.startswith(b"\x89PNG") and base64.b64decode(uri.partition(",")[2]) == content
        assert len(light_image["alt"]) > 20
        assert light_image["src"] != dark_image["srcset"]


def test_numbers_are_in_the_tables(written):
    text = Checker(read(written[1])).text
    results = fake_results()
    row = next(row for row in results["rewards"]["init_sft"]["best_of_n"] if row["n"] == 16)
    assert page.format_number(row["golden"], row["stderr"]) in text
    assert page.format_number(row["win_rate"], row["win_rate_stderr"]) in text
    divergence = results["divergences"]["sft"]
    assert page.format_number(divergence["reverse_kl"], divergence["reverse_kl_stderr"]) in text
    for expected in ("0.720 ± 0.012", "best-of-16 by init_sft minus best-of-16 by length", "8.3", "nats/sequence",
                     "ended by EOS (share)",
                     "accuracy on preference pairs", "KL to sft", "Spearman with golden",
                     "length (tokens)", "8,123.0", "sft.learning_rate", "(empty)", "2 more prompts", "Warm the water gently"):
        assert expected in text, expected


@pytest.mark.parametrize("missing", ["golden", "policies", "rewards", "paired", "divergences", "over_training", "histograms", "scatter",
                                     "timing", "settings", "title", "seed"])
def test_any_part_may_be_missing(tmp_path, quick, missing):
    results = fake_results(prompts=4, samples=8)
    for gone in ({k: v for k, v in results.items() if k != missing}, results | {missing: None}):
        Checker(read(report.write_report(tmp_path, gone, fake_samples(1))))


def test_nothing_at_all_and_no_judge(tmp_path, quick):
    assert Checker(read(report.write_report(tmp_path / "a", {}))).headings[0] == 1
    results = fake_results(prompts=4, samples=8)
    results["golden"] = {"name": "none", "heldout_accuracy": None}
    nan = np.full((4, 8), np.nan)
    for numbers in results["rewards"].values():
        numbers |= dict(best_of_n=bon.best_of_n(np.arange(32.0).reshape(4, 8), nan, (1, 2, 4)), spearman_golden=None)
        numbers["tilting"] = bon.tilting(np.zeros((4, 8)), nan, (1.0,))
    for points in results["scatter"].values():
        points["golden"] = [None] * len(points["length"])
    for numbers in results["policies"].values():
        numbers |= dict(golden_mean=None, golden_stderr=None)
    directory = tmp_path / "b"
    page = Checker(read(report.write_report(directory, results)))
    assert "nothing was judged" in page.text and MISSING in page.text
    assert not (directory / "best_of_n.png").exists() and (directory / "scatter.png").exists()


def test_everything_from_outside_is_escaped(tmp_path, quick):
    evil = '<script>alert("x")</script><img src=x onerror=alert(1)> $\\frac{$ &amp; \' "'
    results = fake_results(prompts=4, samples=8) | dict(title=evil, seed=evil, settings={evil: evil})
    for part in ("policies", "rewards", "divergences", "timing", "histograms", "scatter", "over_training"):
        results[part] = {evil: next(iter(results[part].values()))} | results[part]
    results["golden"] = dict(name=evil, heldout_accuracy=None, unit=evil)
    results["paired"][0]["name"] = evil
    for row in (results["policies"]["sft"], results["rewards"]["init_sft"], results["paired"][1], results["timing"]["sft"]):
        row |= {key: evil for key, value in row.items() if isinstance(value, float)}  # text where a number belongs
    sample = dict(prompt=evil, responses=[dict(source=evil, text=evil, golden=evil, rewards={evil: evil, "length": evil}, length=evil)])
    path = report.write_report(tmp_path, results, [sample], {f"reward/{evil}": {evil: dict(step=[0], value=[1.0])}})
    assert read(path).count("<script") == 1 and "<img" not in re.sub(r'<img src="data:', "", read(path))
    assert Checker(read(path)).text.count('<script>alert("x")') > 8


@pytest.mark.parametrize("value", [10**400, 1e308, -1.0, True, None, "x"])
def test_numbers_that_no_run_has_end_no_report(tmp_path, value):
    results = fake_results(prompts=4, samples=16)
    for row in (results["policies"]["policy/init_sft"], *results["rewards"]["init_sft"]["best_of_n"]):
        row |= {key: value for key in row if key.endswith(("golden", "stderr", "kl_to_sft"))}
    results["over_training"]["policy/init_sft"]["golden_stderr"] = [value, 0.1]
    assert "In short" in read(report.write_report(tmp_path, results))


def test_dollar_signs_in_names_are_drawn_as_they_are():
    """Unpaired mathematics would be an error of matplotlib's."""
    plot = plots.draw_all({}, {"sft": {"$\\frac{$": dict(step=[0, 1], value=[1.0, None])}})[0]
    assert plot.light.startswith(b"\x89PNG") and plot.light != plot.dark


def test_leak_check_is_told(tmp_path, quick):
    results = fake_results(prompts=4, samples=8)
    results["rewards"]["init_sft"]["auc_minus_log_ratio"] = dict(difference=-0.0123, stderr=0.004, z=-3.075)
    text = Checker(read(report.write_report(tmp_path, results))).text
    assert "−0.012 ± 0.004" in text


def test_colours_of_recipes_differ_and_are_known():
    for theme in (plots.LIGHT, plots.DARK):
        assert set(theme.recipes) == {*LEARNT, *CONTROLS, ROBUST} and len(set(theme.recipes.values())) == len(theme.recipes)


@pytest.mark.parametrize("arguments, expected", [
    ((0.7134, 0.0123), "0.713 ± 0.012"), ((None,), "–"), ((float("nan"), 0.1), "–"), ((1234,), "1,234"), ((-2.5, None), "−2.500"),
    ((12.345, 0.678), "12.35 ± 0.68"), ((True,), "yes"), ((3.2e-5,), "3.2e−05"), ((0.0,), "0.000"), ((float("-inf"),), "−∞"),
    ((8123.04,), "8,123.0"), ((8.26, None, 1), "8.3"), (("text",), "text"), ((10**400,), f"{10**400:,}"),
])
def test_numbers_are_written_to_their_precision(arguments, expected):
    assert page.format_number(*arguments) == expected


def many_methods(count=25):
    """Results with so many policies and some variants of a reward."""
    results, rng = fake_results(prompts=4, samples=64), np.random.default_rng(1)
    groups = ["policy"] * 12 + ["adversarial"] * 9 + ["dpo"] * (count - 21)
    roles = [f"{group}/total_variation{i}" for i, group in enumerate(groups)]
    row = results["policies"].pop("policy/init_sft")
    del results["policies"]["adversarial/init_sft"]
    for i, role in enumerate(roles):
        results["policies"][role] = row | dict(golden_mean=float(rng.uniform(0.4, 0.8)), kl_to_sft=0.2 * i - 0.01)
        results["divergences"][role] = dict(forward_kl=3 + 0.1 * i, forward_kl_stderr=0.3, reverse_kl=14 - 0.2 * i, reverse_kl_stderr=1.0)
        results["over_training"][role] = results["over_training"]["policy/init_sft"]
    results["divergences"] |= {"demo": dict(coverage=0.9, coverage_stderr=0.01), "init": dict(forward_kl=99.0, reverse_kl=99.0)}
    for i in range(10):
        results["rewards"][f"variant{i}"] = results["rewards"]["init_demo"]
    for source in roles:
        for sources in results["histograms"].values():
            sources[source] = sources["sft"]
    return results, roles


class Drawn:
    """The figures of some results on bare axes: {name: (matplotlib figure, plot)}."""

    def __init__(self, monkeypatch, results, curves=None):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.figures, self.plots = {}, {}

        def render(name, title, alt, caption, height, draw):
            figure = Figure(figsize=(plot_style.WIDTH, height), layout="constrained")
            FigureCanvasAgg(figure)
            draw(figure, plots.LIGHT)
            self.figures[name] = figure
            return self.plots.setdefault(name, plots.Plot(name, title, alt, caption, b"", b""))

        monkeypatch.setattr(plots, "render", render)
        plots.draw_all(results, curves or {})

    def legend(self, name):
        return [text.get_text() for legend in self.figures[name].legends for text in legend.get_texts()]

    def names(self, name):
        """The names at the ends of the lines of a figure's last axes."""
        return [text.get_text() for text in self.figures[name].axes[-1].texts if text.get_gid() == "name"]


def test_many_methods_stay_readable(monkeypatch):
    results, roles = many_methods()
    curves = {role: dict(reward=dict(step=[0, 1], value=[0.0, 1.0])) for role in roles}
    drawn = Drawn(monkeypatch, results, curves)
    lines = [name for name in drawn.figures if not name.startswith(("frontier", "divergences"))]
    assert all(len(drawn.legend(name)) <= plot_style.MAX_LINES and len(drawn.names(name)) <= plot_style.MAX_LINES for name in lines)
    told = [label for name in drawn.figures if name.startswith("training-") for label in drawn.legend(name)]
    assert sorted(told) == sorted(role.partition("/")[2] for role in roles)  # every run, once
    told = [label for name in drawn.figures if name.startswith("over_training") for label in drawn.names(name)]
    assert sorted(told) == sorted([role.partition("/")[2] for role in roles] + ["init_sft"])
    rewards = {label for name in drawn.figures if name.startswith("best_of_n") for label in drawn.names(name)}
    assert rewards == set(results["rewards"]) - {*plots.IN_TABLES} and "(1 of 3)" in drawn.plots["best_of_n"].title
    for name, points in (("frontier", roles), ("divergences", [*results["divergences"]][:2] + roles)):
        figure = drawn.figures[name]
        key = [label for label in drawn.legend(name) if label.partition(" ")[0].isdigit()]
        assert key == [f"{i} {role}" for i, role in enumerate(points, start=1)]
        for axes in figure.axes:
            numbers = [text for text in axes.texts if text.get_text().isdigit()]
            assert [text.get_text() for text in numbers] == [str(i + 1) for i in range(len(points))]
        figure.canvas.draw()
        boxes = [legend.get_window_extent() for legend in figure.legends]
        boxes += [Text.get_window_extent(text) for axes in figure.axes for text in axes.texts if text.get_gid() == "name"]
        for box in boxes:  # nothing is cut off
            assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y0 >= 0
        for axes in figure.axes:  # every policy within the axes
            (low, high), farthest = axes.get_xlim(), max(line.get_xdata().max() for line in axes.lines if len(line.get_xdata()) == 1)
            assert low <= farthest <= high


def test_numbers_beside_points_do_not_cover_one_another(monkeypatch):
    results = {"divergences": {f"dpo/m{i}": dict(forward_kl=3 + 0.001 * i, reverse_kl=14.0) for i in range(9)}}
    figure = Drawn(monkeypatch, results | {"divergences": results["divergences"] | {"dpo/far": dict(forward_kl=9, reverse_kl=20)}}
                   ).figures["divergences"]
    figure.canvas.draw()
    boxes = [Text.get_window_extent(text) for text in figure.axes[0].texts]  # of the numbers, without the lines to their points
    assert len(boxes) == 10
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_reward_and_golden_of_one_run_share_steps(monkeypatch):
    results = fake_results(prompts=4, samples=8)
    drawn = Drawn(monkeypatch, results)
    above, below = drawn.figures["over_training-policy"].axes
    assert above.lines[0].get_ydata().tolist() == [0.1, 2.0] and below.lines[0].get_ydata().tolist() == [0.55, 0.5]
    plot = drawn.plots["over_training-policy"]
    assert "Over-optimisation" in plot.title and "reward 0.10 to 2.00, golden 0.55 to 0.50" in plot.alt
    uneven = {"a": {"reward": [0.0, 1.0]}, "b": {"reward": [0.0, 90.0]}}
    assert method_plots._uneven(uneven) and not method_plots._uneven({"a": {"reward": [1.0]}, "b": {"reward": [5.0]}})


def test_the_headline_is_short_and_the_tables_whole(tmp_path, quick):
    results, roles = many_methods()
    results["paired"] = [dict(name="policy/total_variation0 - sft", difference=0.1234, stderr=0.0101, z=12.2, n=4)]
    path = report.write_report(tmp_path, results)
    shown = re.search(r'<section id="headline".*?</section>', read(path), re.S)[0]
    assert shown.count('<th scope="row">') == sum(report_run.HEADLINE) and "total_variation24" not in shown
    assert "0.123 ± 0.010" in shown and "12.2" in shown and shown.count("<svg") == sum(report_run.HEADLINE)
    more = len(results["policies"]) - report_run.HEADLINE[0] + 14 - report_run.HEADLINE[1]  # 4 recipes and 10 variants are learnt
    assert f"{more} more stand in the tables" in shown
    text = Checker(read(path)).text
    assert all(role in text for role in roles) and "0.900 ± 0.010" in text


def test_what_was_run_is_told(tmp_path, quick):
    settings = default().to_dict() | {"seed": 7}
    results = fake_results(prompts=4, samples=8) | dict(settings=settings, seed=7, run=dict(
        versions=dict(jax="0.1.2"), git_commit="f00dbeef-dirty"))
    shown = re.search(r'<section id="run".*?</section>', read(report.write_report(tmp_path, results)), re.S)[0]
    for expected in ("the embedded testbed", "gpt2 from scratch, 3 layers", "LoRA of rank 8", "jax 0.1.2", "f00dbeef, with changes",
                     "37 s, of which 14 s compiling", "4 prompts, 64 samples of sft", "1 settings that are not the default"):
        assert expected in shown, expected


def rewards_for_trust(**changes):
    """Rewards of which nothing is to be said against init_sft; `changes` to its row."""
    row = dict(heldout_auc=0.9, heldout_auc_stderr=0.01, auc_sft_against_init=0.9, spearman_length=0.1,
               auc_minus_log_ratio=dict(difference=-0.05, stderr=0.01, z=-5.0))
    return {"rewards": {"init_sft": row | changes, "length": dict(heldout_auc=0.6), "log_ratio": dict(heldout_auc=0.95)}}


@pytest.mark.parametrize("changes, verdict, said", [
    ({}, "stands", ""),
    (dict(heldout_auc=0.51, auc_sft_against_init=0.7), "rejected", "learnt nothing"),
    (dict(heldout_auc=0.58, auc_sft_against_init=0.58), "rejected", "counting tokens"),
    (dict(heldout_auc=0.58, auc_sft_against_init=0.7), "stands", ""),  # another task than the length control's
    (dict(auc_minus_log_ratio=dict(difference=0.04, stderr=0.01, z=4.0)), "rejected", "should not"),
    (dict(spearman_length=-0.6), "rejected", "follows length"), (dict(spearman_length=0.4), "caution", "leans on length"),
    (dict(heldout_auc=0.995, auc_sft_against_init=0.7), "caution", "tell"),
    (dict(heldout_auc_stderr=0.0), "caution", "too few"), (dict(heldout_auc=None), "caution", "not known"),
    (dict(disagreement=1.5), "caution", "disagree"), (dict(spearman_length=None), "stands", ""),
])
def test_each_diagnostic_has_its_say(changes, verdict, said):
    (one,) = trust.judge(rewards_for_trust(**changes))
    assert one.verdict == verdict and said in "; ".join((*one.against, *one.cautions))


def test_the_golden_reward_chooses_nothing():
    results = fake_results(prompts=8, samples=16)
    for index, recipe in enumerate(LEARNT):
        results["rewards"][recipe] |= dict(heldout_auc=0.9, heldout_auc_stderr=0.01, spearman_length=0.2 - 0.05 * index)
    judged = trust.judge(results)
    assert [one.name for one in judged] == list(LEARNT[::-1])  # least length first
    for row in results["rewards"].values():
        row |= dict(spearman_golden=-1.0, best_of_n=[], tilting=[], pair_accuracy=0.0)
    for row in results["policies"].values():
        row["golden_mean"] = 0.0
    del results["rewards"]["golden"], results["paired"]
    assert trust.judge(results) == judged
    shown = trust.section(results)
    assert "cannot tell whether what it has learnt is quality" in shown and "cannot tell which of them is better" in shown


def test_nothing_but_the_page_s_own_script_and_style_may_run(written):
    text = read(written[1])
    assert f'content="{page_style.POLICY}"' in text and "unsafe" not in page_style.POLICY and "http" not in page_style.POLICY
    for tag, content in (("style", page_style.STYLE), ("script", page_style.SCRIPT)):
        assert re.search(rf"<{tag}>(.*?)</{tag}>", text, re.S)[1] == content
        assert page_style._hash(content) in page_style.POLICY
    assert " style=" not in text and not re.search(r"<[^>]* on\w+=", text)  # the policy would refuse them


def test_what_no_page_may_hold_is_replaced():
    assert page.escape("a\x00b\ud800c\x1b[0m\n\t<") == "a\ufffdb\ufffdc\ufffd[0m\n\t&lt;"


def test_recipes_have_one_colour_everywhere():
    for name in ("init_sft", "policy/init_sft", "best-of-16 by init_sft", "best-of-16 by init_sft - best-of-16 by length"):
        assert page.recipe_class(name) == "r-init_sft"
    assert page.recipe_class("sft") == page.recipe_class("policy/variant") == ""
    assert f".r-init_sft{{--c:{plot_style.LIGHT.recipes['init_sft']}}}" in page_style.STYLE
    assert plot_style.source_look(plot_style.DARK, "policy/init_sft")["color"] == plot_style.DARK.recipes["init_sft"]
    assert plot_style.source_look(plot_style.DARK, "init")["color"] == plot_style.DARK.text


@pytest.mark.parametrize("heights, expected", [
    ([50, 20], [50, 20]), ([20, 20, 20], [10, 20, 30]), ([20, 25], [17.5, 27.5]), ([0, 1], [0, 10]), ([99, 100], [90, 100]),
    ([50, 52, 10], [46, 56, 10]), ([], []),
])
def test_labels_are_moved_apart_as_little_as_can_be(heights, expected):
    assert plot_style.spread(heights, 10.0, 0.0, 100.0) == pytest.approx(expected)


def test_ensembles_have_a_table(tmp_path, quick):
    results = fake_results(prompts=4, samples=8)
    results["rewards"]["init_sft"] |= dict(
        members=[dict(heldout_auc=0.7654, spearman_golden=0.4321, spearman_golden_stderr=0.0123), dict(heldout_auc=0.6543)],
        disagreement=0.25,
        best_of_agreed=dict(golden=0.6789, stderr=0.0111, mean_n=12.25, plain_golden=0.6667, plain_stderr=0.0122, max_n=32))
    text = Checker(read(report.write_report(tmp_path, results))).text
    for expected in ("init_sft, member 2", "0.765", "0.432 ± 0.012", "best of up to 32", "0.679 ± 0.011", "0.667 ± 0.012", "12.2"):
        assert expected in text, expected
    results["rewards"]["init_sft"]["best_of_agreed"] = None  # no judge, or too few samples
    assert "best of up to" not in Checker(read(report.write_report(tmp_path, results))).text


def test_many_comparisons_are_folded(tmp_path, quick):
    results = fake_results(prompts=4, samples=8)
    results["paired"] = [dict(name=f"comparison {i}", difference=0.1, stderr=0.01, z=10.0, n=4)
                         for i in range(report_tables.OPEN_COMPARISONS + 3)]
    page = read(report.write_report(tmp_path, results))
    assert "3 more comparisons" in page and page.count("comparison 42") == 1


@pytest.mark.parametrize("count, sizes", [(0, []), (8, [8]), (9, [5, 4]), (25, [7, 6, 6, 6])])
def test_parts_are_even_and_few(count, sizes):
    names = [f"m{i}" for i in range(count)]
    assert [len(part) for part in plot_style.parts(names)] == sizes
    assert [name for part in plot_style.parts(names) for name in part] == names
