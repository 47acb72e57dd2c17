"""Recipe files: what each of them makes of a fine-tuning, what beats them, what they may not say."""

import ast
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from small_checkpoints import toy_config, write_checkpoint
from small_stores import recording, write_store

from csfm_jax import cli, encoding, recipes, tasks
from csfm_jax import config as configs
from csfm_jax.commands import finetune
from csfm_jax.config import OptimizerConfig, TrainingConfig
from csfm_jax.evaluation import study
from csfm_jax.evaluation.cell import Settings
from csfm_jax.evaluation.predictions import Split
from csfm_jax.models import config as model_config
from csfm_jax.tasks.config import AdaptationConfig
from csfm_jax.tasks.resolve import resolve
from csfm_jax.training import best, checkpoint
from data_pipelines.config import WindowConfig
from data_pipelines.errors import BadInput
from data_pipelines.subjects import PUBLIC_KEY, fingerprint
from data_pipelines.windows import fixed_starts, row_length

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ("benchmark_finetuned", "benchmark_frozen", "benchmark_linear", "csfm_published")
RHYTHM = tasks.get("simulated_rhythm")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A checkpoint of a toy model that was never trained."""
    people = (fingerprint(PUBLIC_KEY), "simulated")
    return write_checkpoint(tmp_path_factory.mktemp("recipes") / "toy", toy_config(), people=people)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """63 labelled train recordings of 10 s, two without a label, and some of the other splits."""
    splits = ["train"] * 65 + ["validation", "test"] * 4
    made = []
    for i, split in enumerate(splits):
        labels = {"rhythm/irregular": float(i % 2), "rate/fast": float(i % 3 == 0)} if i not in (5, 6) else {}
        made.append(recording(i, ("II",), 10.0, split, labels=labels))
    return write_store(tmp_path_factory.mktemp("stores") / "small", made)


def recipe_file(folder, *lines):
    """A file of one's own that sets these fields."""
    path = folder / "mine.py"
    body = "".join(f"    recipe.{line}\n" for line in lines)
    start = "from csfm_jax.recipes import blank\n\ndef get_recipe():\n    recipe = blank()\n"
    path.write_text(f"{start}{body}    return recipe\n")
    return str(path)


def made(recipe, *overrides, base=None, scratch=False):
    words = recipes.read(recipe)
    return finetune.recipe(base or toy_config(), RHYTHM, "stores", list(overrides), scratch, words)


def of_store(config, store):
    """As `csfm finetune` completes a configuration."""
    config = finetune.with_rows(resolve(config, [store]).adapted(config), [store])
    return finetune.with_steps(config, [store])


BENCHMARK = {
    "optimizer": OptimizerConfig(
        learning_rate=1e-3, decay="constant", warmup_steps=0, beta2=0.999, weight_decay=1e-3
    ),
    "crop": (2.5, 1, 64, 1),
    "starts": [0, 2.48, 5, 7.48],
    "length": TrainingConfig(
        steps=100, epochs=100, log_every=10, eval_every=1, save_every=100, keep_best="first"
    ),
}  # fmt: skip
EXPECTED = {
    "csfm_published": {
        "adaptation": {"loss": "asymmetric", "layer_decay": 0.75},
        "optimizer": OptimizerConfig(
            learning_rate=1e-4, decay="linear", final_fraction=0.0, warmup_steps=8, beta2=0.999, weight_decay=0.05
        ),
        "crop": (10.0, 1, 16, 1),
        "starts": [0],
        "length": TrainingConfig(
            steps=80, epochs=20, log_every=10, eval_every=4, save_every=100, keep_best="macro_f1"
        ),
    },
    "benchmark_finetuned": BENCHMARK | {"adaptation": {"rates": "groups", "layer_decay": 0.1}},
    "benchmark_frozen": BENCHMARK | {"adaptation": {"trainable": "head", "head": "attention"}},
    "benchmark_linear": BENCHMARK | {"adaptation": {"trainable": "head"}},
}  # fmt: skip


@pytest.mark.parametrize("name", SHIPPED)
def test_each_recipe_makes_of_a_checkpoint_what_it_says(name, toy, store):
    config = made(name, base=encoding.about(toy).config)
    config, expected, window = of_store(config, store), EXPECTED[name], config.data.window
    found = resolve(config, [store])
    assert config.adaptation == dataclasses.replace(
        AdaptationConfig(task=RHYTHM.name, labels=found.labels, positive_weight=found.positive_weight),
        **expected["adaptation"],
    )
    assert config.optimizer == expected["optimizer"]
    assert (window.seconds, window.most_per_recording, config.data.rows, config.data.row_windows) == expected["crop"]
    assert fixed_starts(RHYTHM.crops_of(window), 10.0)[0].tolist() == expected["starts"]
    assert config.training == expected["length"]
    for part in ("tokens", "encoder", "backbone", "decoder"):
        assert getattr(config, part) == getattr(toy_config(), part)
    model_config.check(config)


@pytest.mark.parametrize("name", SHIPPED)
def test_each_recipe_says_where_it_comes_from_and_how_it_is_run(name):
    assert tuple(sorted(configs.shipped_configs("recipes"))) == SHIPPED
    header = ast.get_docstring(ast.parse(configs.shipped_configs("recipes")[name].read_text()))
    for part in ("Reproduces: ", "Differs: ", "Expected: ", f"csfm finetune --checkpoint=RUN --recipe={name}"):
        assert part in header, part


def test_a_command_teaches_by_a_recipe_and_goes_on_with_it(toy, tiny_stores, tmp_path, capsys):
    words = [
        "finetune", f"--checkpoint={toy}", "--recipe=csfm_published", "--task=simulated_rhythm",
        f"--store={tiny_stores}", f"--workdir={tmp_path}", "--config.training.epochs=1", "--config.data.rows=13",
    ]  # fmt: skip
    assert cli.main(words) == 0, capsys.readouterr().err
    config, _, run = checkpoint.restore_params(tmp_path)
    # of 26 recordings
    assert (run["step"], config.training.steps, config.training.epochs, config.training.eval_every) == (2, 2, 1, 2)
    assert (config.optimizer.decay, config.adaptation.loss) == ("linear", "asymmetric")
    validated = (tmp_path / "validation.jsonl").read_text().splitlines()
    assert len(validated) == 1 and best.place(tmp_path) == tmp_path / "best"
    assert cli.main(words) == 0 and "steps: 2 done of 2" in capsys.readouterr().out
    assert cli.main([*words, "--config.optimizer.decay=cosine"]) == 2
    assert "config.optimizer.decay = cosine (was linear)" in capsys.readouterr().err


@pytest.mark.parametrize("short", [0, 1])
def test_predictions_are_read_in_rows_as_of_training_unless_these_are_too_short(short, toy, store, tmp_path):
    config = of_store(made("benchmark_linear", base=encoding.about(toy).config), store)
    longest = int(Split(config, [store], "test", tmp_path).table.tokens.max())
    assert config.data.row_tokens == row_length(longest) > longest
    rows = longest - short
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, row_tokens=rows, row_visible=rows))
    batch = next(Split(config, [store], "test", tmp_path).batches())
    assert batch.channel.shape[1] == (row_length(longest) if short else longest)


def test_the_command_line_beats_a_recipe(store):
    config = made("csfm_published", "--config.optimizer.decay=constant", "--config.data.rows=4")
    assert (config.optimizer.decay, config.data.rows, config.adaptation.loss) == ("constant", 4, "asymmetric")
    by_steps = of_store(made("csfm_published", "--config.training.steps=30"), store)
    assert (by_steps.training.epochs, by_steps.training.steps, by_steps.optimizer.warmup_steps) == (0, 30, 3)
    by_epochs = of_store(made("csfm_published", "--config.training.epochs=3", "--config.training.eval_every=7"), store)
    assert (by_epochs.training.steps, by_epochs.training.eval_every) == (12, 7)
    assert of_store(made("csfm_published", "--config.optimizer.warmup_steps=4"), store).optimizer.warmup_steps == 4
    half = of_store(made("csfm_published", "--config.adaptation.halvings=1"), store)
    assert half.training.steps == 80  # with fewer labels a model is taught for as long


def test_rates_that_fall_with_depth_are_those_of_a_whole_pretrained_encoder():
    frozen = made("benchmark_finetuned", "--config.adaptation.trainable=head")
    scratch = made("benchmark_finetuned", scratch=True)
    for config, decay in ((frozen, AdaptationConfig.layer_decay), (scratch, 1.0)):
        assert (config.adaptation.rates, config.adaptation.layer_decay) == ("layers", decay)
        assert (config.data.window.seconds, config.optimizer.decay) == (2.5, "constant")


def test_a_supervised_baseline_keeps_its_own_recipe(toy, tmp_path, capsys):
    baseline = configs.load("benchmark_s4")
    assert made("csfm_published", base=baseline, scratch=True) == finetune.recipe(
        baseline, RHYTHM, "stores", [], scratch=True
    )
    words = ["finetune", "--checkpoint=random", "--config=benchmark_s4", "--recipe=csfm_published"]
    assert cli.main([*words, "--task=simulated_rhythm", f"--workdir={tmp_path}", "--store=none"]) == 2
    assert "--recipe: found csfm_published beside --config=benchmark_s4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (
            "encoder.width = 8",
            r"mine.py: config.encoder.width: found a field of encoder; .*network is the checkpoint's",
        ),
        ("tokens.patch = {'ecg': 5}", "config.tokens.patch.ecg: found a field of tokens"),
        ("mesh.fsdp = 2", "config.mesh.fsdp: found a field of mesh"),
        ("optimizer.learning_rat = 1.0", "did you mean config.optimizer.learning_rate"),
        ("optimizer.decay = 1", "mine.py: config.optimizer.decay: found a int; expected a str"),
        ("optimiser.decay = 'linear'", "--recipe=.*mine.py: found AttributeError"),
        ("training.epochs = recipe.training.steps = 3", "config.training.epochs: found both lengths"),
    ],
)
def test_what_no_recipe_says_is_refused_by_name(tmp_path, line, found):
    with pytest.raises(BadInput, match=found) as error:
        recipes.read(recipe_file(tmp_path, line))
    assert "\n" not in str(error.value)


def test_what_task_and_stores_decide_is_refused(tmp_path):
    with pytest.raises(BadInput, match="config.data.stores: found a value; expected none: --task and --store"):
        made(recipe_file(tmp_path, "data.stores = 'elsewhere'"))
    with pytest.raises(BadInput, match="config.training.epochs: found both lengths"):
        made("csfm_published", "--config.training.epochs=2", "--config.training.steps=2")


def test_a_config_is_no_recipe_and_a_recipe_no_config(tmp_path):
    with pytest.raises(BadInput, match="--recipe=csfm_base: .* one of benchmark_finetuned, .*csfm_published"):
        recipes.read("csfm_base")
    with pytest.raises(BadInput, match="get_recipe"):
        recipes.read(str(configs.find("csfm_base")))
    with pytest.raises(BadInput, match="get_config"):
        configs.load(recipe_file(tmp_path))


def test_epochs_are_of_fine_tunings_and_at_least_one(store):
    with pytest.raises(BadInput, match="config.training.epochs: found 3; expected 0 in pretraining"):
        model_config.check(dataclasses.replace(toy_config(), training=TrainingConfig(epochs=3)))
    eight = dataclasses.replace(toy_config().data, window=WindowConfig(crops=8))
    with pytest.raises(BadInput, match="config.data.window.crops: found 8"):
        model_config.check(dataclasses.replace(toy_config(), data=eight))
    with pytest.raises(BadInput, match="config.training.epochs: found -1"):
        of_store(made("csfm_published", "--config.training.epochs=-1"), store)


def settings(store, recipe, folder):
    words = recipes.read(recipe) if recipe else ()
    return Settings(str(store.path), [store], [], 0, True, folder / "features", 0, 0, recipe=words)


def test_a_study_fine_tunes_by_a_recipe_and_is_another_one_by_another(toy, store, tmp_path):
    models = f"linear:{toy},attention:{toy},finetuned:{toy},benchmark_s4"

    def planned(recipe):
        return study.plan(settings(store, recipe, tmp_path), RHYTHM.name, models, "all", None, tmp_path)

    linear, attention, finetuned, baseline = (cell.config for cell in planned("benchmark_finetuned").cells)
    assert finetuned.adaptation.rates == "groups" and attention.adaptation.rates == "layers"
    assert attention.adaptation.head == "attention"
    assert [c.training.epochs for c in (linear, attention, finetuned, baseline)] == [0, 100, 100, 0]
    assert baseline.optimizer == configs.load("benchmark_s4").optimizer and linear.data.window.seconds == 9
    planned("benchmark_finetuned")
    for other in (None, "csfm_published"):
        with pytest.raises(BadInput, match="a study with other recipe"):
            planned(other)


def test_a_study_leaves_it_to_its_models_what_is_taught(toy, store, tmp_path, capsys):
    words = ["evaluate", f"--tasks={RHYTHM.name}", f"--models=finetuned:{toy}", f"--store={store.path}"]
    assert cli.main([*words, f"--workdir={tmp_path}", "--recipe=benchmark_frozen"]) == 2
    said = capsys.readouterr().err
    assert "--recipe=benchmark_frozen: found adaptation.head = attention" in said and "--models says" in said
    words = ["evaluate", f"--checkpoint={toy}", f"--store={store.path}", "--recipe=csfm_published"]
    assert cli.main(words) == 2 and "--recipe: found beside --checkpoint" in capsys.readouterr().err


def test_an_installed_package_holds_them(tmp_path):
    words = [sys.executable, "setup.py", "--quiet", "build_py", f"--build-lib={tmp_path}"]
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True, timeout=120)
    there = {path.stem for path in (tmp_path / "csfm_jax" / "_configs" / "recipes").glob("*.py")}
    assert there == set(SHIPPED)
    assert (tmp_path / "csfm_jax" / "_configs" / "csfm_base.py").is_file()
