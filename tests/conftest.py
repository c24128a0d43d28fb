"""Fixtures and settings that every test shares."""

import atexit
import collections
import gzip
import importlib
import itertools
import json
import os
import pathlib
import shutil
import sys
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before anything imports jax
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # halves the time: most of it is compiling
if "IRL_JAX_TESTS_CACHE" not in os.environ:  # in the process that starts the workers, which inherit it
    # Programs that several processes of one session compile are compiled once; a fresh folder, so that no old one is trusted.
    os.environ["IRL_JAX_TESTS_CACHE"] = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="irl_jax_tests_")
    atexit.register(shutil.rmtree, os.environ["IRL_JAX_TESTS_CACHE"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pytest  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent


def shared_folder() -> pathlib.Path:
    """Where the shared data and models are, if they are anywhere."""
    return pathlib.Path(os.environ.get("IRL_JAX_SHARED") or ROOT.parent / "shared")


def pytest_collection_modifyitems(config, items):
    """Leaves the slow tests out unless a -m expression or a test's own id asks for them, and runs the files that have some last.

    Of these the one with the most comes first, so that it does not keep one worker busy while the other has nothing left.
    """
    slow = [item for item in items if "slow" in item.keywords]
    if not config.getoption("-m") and not any("::" in argument for argument in config.args):
        if slow:
            config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if "slow" not in item.keywords]
        return
    count = collections.Counter(item.path for item in slow)
    items.sort(key=lambda item: (count[item.path] > 0, -count[item.path]))


@pytest.fixture(scope="module", autouse=True)
def few_mappings():
    """Drops compiled programs after a file that leaves 0.3 of the memory mappings taken: the next one may need more than are left."""
    yield
    if "jax" in sys.modules:
        from irl_jax import mappings

        mappings.spare(0.3)


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of shared data and models, or a skip that says what is missing."""
    folder = shared_folder()
    if not folder.is_dir():
        pytest.skip("no shared data: set IRL_JAX_SHARED or put them in ../shared")
    return folder


FIRST = 4000  # lines: a judge fits to them in a fraction of the time


@pytest.fixture(scope="session")
def small_shared(shared, tmp_path_factory):
    """The shared folder with one layer of the model of reviews instead of six, whose programs compile soon, and the first lines of its texts."""
    import safetensors.numpy

    folder, name = tmp_path_factory.mktemp("shared"), pathlib.Path("models", "imdb-gpt2-6m")
    for text in ("hh/harmless-base.test.jsonl.gz", "imdb/train.jsonl.gz", "imdb/test.jsonl.gz", "paradetox/paradetox.tsv"):
        (folder / "data" / text).parent.mkdir(parents=True, exist_ok=True)
        opened = gzip.open if text.endswith(".gz") else open
        with opened(shared / "data" / text, "rt") as whole, opened(folder / "data" / text, "wt") as first:
            first.writelines(itertools.islice(whole, FIRST))
    shutil.copytree(shared / name, folder / name)
    config = json.loads((folder / name / "config.json").read_text())
    (folder / name / "config.json").write_text(json.dumps(config | {"n_layer": 1}))
    weights = safetensors.numpy.load_file(shared / name / "model.safetensors")
    kept = {key: value for key, value in weights.items() if ".h." not in f".{key}" or ".h.0." in f".{key}"}
    assert 0 < len(kept) < len(weights)
    safetensors.numpy.save_file(kept, folder / name / "model.safetensors", {"format": "pt"})
    return folder


def for_comparison(name: str):
    """A module of the "torch" extra; without it a skip, or a failure where IRL_JAX_REQUIRE_TORCH=1."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        message = f"{name} is not installed ({error}): IRL_JAX_TEST_TORCH=1 bash launch/test.sh installs it"
        if os.environ.get("IRL_JAX_REQUIRE_TORCH") == "1":
            pytest.fail(message)
        pytest.skip(message)


@pytest.fixture
def decode_steps(monkeypatch):
    """A function that tells how often the sampler decoded a step since it was last asked."""
    import jax

    from irl_jax import sampler

    steps, plain = [], sampler.decode

    def counted(*arguments):
        jax.debug.callback(lambda: steps.append(1))
        return plain(*arguments)

    def since() -> int:
        jax.effects_barrier()
        done = len(steps)
        steps.clear()
        return done

    monkeypatch.setattr(sampler, "decode", counted)
    return since


@pytest.fixture(scope="session")
def torch():
    """The torch module for comparisons, as `for_comparison` gives it."""
    return for_comparison("torch")


@pytest.fixture(scope="session")
def peft(torch):
    """The peft module, likewise."""
    return for_comparison("peft")
