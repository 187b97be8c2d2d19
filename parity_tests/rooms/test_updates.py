"""Tasks of several updates and with draws of their own: one step, resumable, sharded, sampled from."""

import functools
import json
import re
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest
from flax import nnx

from jaxarch import catalog, cli, state
from jaxarch.commands.sample import sample, to_images, write_sheet
from jaxarch.convert.files import read_tensors
from jaxarch.errors import DivergenceError, UsageError
from jaxarch.parallel import make_mesh
from jaxarch.train import checkpoint, fit, plan, quality, tasks
from jaxarch.train.recipe import optimizers_of, recipe_of, schedule_of

QUICK = {"train.steps": "4", "train.eval_every": "4", "train.batch_size": "16", "train.save_every": "2"}
RIVALS = QUICK | {"train.task_options.critic_steps": "2"}
ONE, EIGHT = "data=1", "data=2,fsdp=4"


def short(name, out, *, settings=QUICK, mesh=ONE, **more):
    """A run on one of the devices, which compiles several times faster, or on all."""
    devices = jax.devices()[:1] if mesh == ONE else None
    with mock.patch.object(plan, "make_mesh", functools.partial(make_mesh, devices=devices)):
        return fit(name, settings=settings, out=out, mesh=mesh, progress=False, **more)


@pytest.fixture(scope="module")
def adversaries(tmp_path_factory):
    return short("conditional_generator", tmp_path_factory.mktemp("gan") / "run", settings=RIVALS)


def test_updates_have_their_own_optimizers(adversaries):
    counts = {
        name: max(int(x) for k, x in checkpoint.flatten(state).items() if k.endswith("count"))
        for name, state in adversaries.state.opt_state.items()
    }
    assert counts == {"critic": 4 * 2, "generator": 4}
    moments = checkpoint.flatten(adversaries.state.opt_state["critic"])
    assert all("generator." not in k for k in moments)
    row = adversaries.history[-1]
    assert row["loss"] == pytest.approx(row["loss_critic"] + row["loss_generator"], rel=1e-6)
    assert {"penalty_critic", "gap_critic", "grad_norm_generator"} <= row.keys()
    assert {"frechet", "spread"} == adversaries.metrics.keys()


def test_eight_devices_and_interruption_change_nothing(adversaries, tmp_path):
    # The draws of each update are split as the batch is.
    split = short("conditional_generator", tmp_path / "split", settings=RIVALS, mesh=EIGHT)
    for ours, theirs in zip(split.history, adversaries.history, strict=True):
        assert ours["loss_critic"] == pytest.approx(theirs["loss_critic"], rel=1e-9)
        assert ours["loss_generator"] == pytest.approx(theirs["loss_generator"], rel=1e-9)
    # As an interruption after step 2 leaves it.
    cut = tmp_path / "cut"
    shutil.copytree(adversaries.out, cut)
    shutil.rmtree(cut / checkpoint.FOLDER / "4")
    again = short("conditional_generator", cut, settings=RIVALS, resume=True)
    assert again.history == adversaries.history
    for key, value in adversaries.state.params.items():
        np.testing.assert_array_equal(again.state.params[key], value)


def test_a_checkpoint_of_an_earlier_version_resumes(adversaries, tmp_path):
    """It names the averaged parameters `average`."""
    cut = tmp_path / "cut"
    shutil.copytree(adversaries.out, cut)
    shutil.rmtree(cut / checkpoint.FOLDER / "4")
    middle = cut / checkpoint.FOLDER / "2"
    about = json.loads((middle / checkpoint.ABOUT).read_text())
    leaves = {re.sub("^ema_params/", "average/", k): v for k, v in checkpoint.read(middle).items()}
    checkpoint.write(middle, leaves, about)
    assert any(
        k.startswith("average/") for k in json.loads((middle / checkpoint.SUMS).read_text())["tensors"]
    )
    again = short("conditional_generator", cut, settings=RIVALS, resume=True)
    assert again.history == adversaries.history
    for key, value in adversaries.state.ema_params.items():
        np.testing.assert_array_equal(again.state.ema_params[key], value)


def test_each_update_moves_its_own_half(adversaries):
    run = adversaries.run
    first, last = run.init().params, adversaries.state.params
    # A Wasserstein critic's last bias cancels between real and generated rows.
    same = {k for k in first if (np.asarray(first[k]) == np.asarray(last[k])).all()}
    assert same <= {"critic.model.2.bias"}
    alone = tasks.Update(loss=mock.Mock(), trains="nothing.*")
    from jaxarch.train.step import trainable_params

    with pytest.raises(UsageError, match=r"nothing\.\*"):
        trainable_params(first, alone)


def test_schedules_count_steps_and_not_updates():
    made, *_ = recipe_of("conditional_generator", None, {"train.steps": "4", "train.schedule": "linear"})
    optimizer = optimizers_of(made, tasks.task(made.task, **made.task_options))["critic"]
    weights = {"w": jax.numpy.ones(3)}
    moments, steps = optimizer.init(weights), []
    for _ in range(4 * 3):
        changes, moments = optimizer.update(weights, moments, weights)
        steps.append(-float(changes["w"][0]))
    # Adam moves by the rate where the gradient stays: three times by each step's.
    np.testing.assert_allclose(
        steps, np.repeat([float(schedule_of(made)(i)) for i in range(4)], 3) * 2, rtol=1e-4
    )


def test_unknown_updates(tmp_path):
    made, *_ = recipe_of("conditional_generator", None, {})
    task = tasks.task(made.task, **made.task_options)
    import dataclasses

    for updates, says in (({"critics": {}}, "critic"), ({"critic": {"lr": 1.0}}, "learning_rate")):
        with pytest.raises(UsageError, match=says):
            optimizers_of(dataclasses.replace(made, updates=updates), task)


def test_samples_are_those_of_their_seed(tmp_path):
    run = short("vae", tmp_path / "run", settings={**QUICK, "train.steps": "2"})
    assert {"bound", "reconstruction"} == run.metrics.keys()
    again = sample(run.out, 3, seed=4)
    np.testing.assert_array_equal(again, sample(run.out, 3, seed=4))
    assert again.shape == (3, 8, 8, 1)
    assert not np.array_equal(again, sample(run.out, 3, seed=5))
    with pytest.raises(UsageError, match="--guidance has no effect on a model of the task vae"):
        sample(run.out, 3, guidance=2.0)


def test_diffusion_is_trained_and_sampled_from(tmp_path):
    small = {"base_channels": "8", "multipliers": "(1,)", "attention_levels": "()"}
    settings = {**QUICK, "train.steps": "1", "train.batch_size": "8"}
    settings |= {f"model.{k}": v for k, v in small.items()}
    run = short("diffusion_unet", tmp_path / "run", settings=settings)
    assert {"loss"} == run.metrics.keys()
    sheet = tmp_path / "sheet.png"
    extra = ["--steps", "3", "--guidance", "2", "--class", "3"]
    assert cli.main(["sample", str(run.out), "--n", "5", "--out", str(sheet), *extra]) == 0
    assert sheet.read_bytes().startswith(b"\x89PNG")


def test_samples_come_from_the_averaged_generator(adversaries):
    last = adversaries.state
    assert last.ema_params.keys() == last.params.keys()
    z = jax.random.normal(jax.random.split(jax.random.key(3))[0], (4, 32))
    found = {}
    for name, weights in {"average": last.ema_params, "params": last.params}.items():
        model = catalog.create_model("conditional_generator", "digits")
        of_generator = {
            k.removeprefix("generator."): v for k, v in weights.items() if k.startswith("generator.")
        }
        state.update(model, of_generator)
        found[name] = to_images(model(z, jax.numpy.arange(4)))
    drawn = sample(adversaries.out, 4, seed=3)
    np.testing.assert_allclose(drawn, found["average"], rtol=1e-6)
    assert np.abs(drawn - found["params"]).max() > 1e-3


def test_averaged_weights_convert(adversaries, tmp_path, capsys):
    run, key = str(adversaries.out), "generator.model.2.weight"
    files = {"ema_params": [str(tmp_path / "a.safetensors"), "--average"], "params": [str(tmp_path / "p.pt")]}
    for name, arguments in files.items():
        assert cli.main(["convert", run, *arguments]) == 0
        held = getattr(adversaries.state, name)[key]
        np.testing.assert_array_equal(read_tensors(Path(arguments[0]))[key], np.asarray(held).T)
    wrong = {
        (run, str(tmp_path / "folder")): "--average writes a weight file",
        (files["params"][0], str(tmp_path / "b.pt"), "--model", "mlp"): "keeps no average",
    }
    for arguments, says in wrong.items():
        assert cli.main(["convert", *arguments, "--average"]) == 2
        assert says in capsys.readouterr().err


def test_revived_codes_are_reported():
    task = tasks.task("vq_vae", codes=7)
    model = catalog.create_model("vq_vae", "tiny", rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    batch = task.draw(jax.random.key(0), {"x": jax.numpy.asarray(rng.normal(size=(2, 4, 4, 3)))})
    _, metrics = task.updates["model"].loss(model, batch)
    assert metrics.keys() == {"reconstruction", "perplexity", "usage", "revived"}
    # Unused codes fall from 1 to 0.9, below the bound of 0.98.
    assert int(metrics["revived"]) == round(7 * (1 - float(metrics["usage"]))) > 0


def test_divergence_of_one_adversary_stops_the_run(tmp_path):
    settings = {**RIVALS, "train.lr": "1e200"}  # the generator's; the critic has its own
    with pytest.raises(DivergenceError, match=r"the loss of step 2 is (nan|inf|-inf): lower train\.lr"):
        short("conditional_generator", tmp_path / "run", settings=settings)


def test_sampling_says_what_is_wrong(adversaries, tmp_path, capsys):
    run = str(adversaries.out)
    wrong = {
        ("--n", "0"): "n must be at least 1",
        ("--class", "10"): r"class 10 is out of range",
        ("--steps", "5"): "--steps has no effect",
        ("--out", str(tmp_path / "x.jpg")): "written as .png",
    }
    for arguments, says in wrong.items():
        assert cli.main(["sample", run, *arguments]) == 2
        assert says in capsys.readouterr().err
    assert cli.main(["sample", str(tmp_path / "none")]) == 1
    classifier = short("mlp", tmp_path / "mlp", settings={"train.steps": "1", "train.eval_every": "1"})
    assert cli.main(["sample", str(classifier.out)]) == 2
    assert "no generative model" in capsys.readouterr().err


def test_samplers_know_their_tasks_options():
    def sample(model, task, **options):
        sampler: Any = tasks.task(task, **options).sample
        return sampler(model, {}, jax.random.key(0), jax.numpy.arange(3))

    assert tasks.task("classification").sample is None
    assert sample(mock.Mock(decode=lambda z: z), "vae", latent=5).shape == (3, 5)
    shapes = mock.Mock(generator=lambda *inputs: [x.shape for x in inputs])
    assert sample(shapes, "gan", latent=4, noise=7, conditional=True) == [(3, 4), (3, 7), (3,)]
    with pytest.raises(UsageError, match="no prior to sample from"):
        sample(None, "vq_vae")


def test_frechet_distance(caplog):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 6)) @ rng.normal(size=(6, 6))
    shift = np.arange(6.0)
    weight = np.ones(500)

    def sums(real, fake):
        a = quality.moment_sums(jax.numpy.asarray(real), jax.numpy.asarray(weight), "real")
        return a | quality.moment_sums(jax.numpy.asarray(fake), jax.numpy.asarray(weight), "fake")

    assert quality.compared(sums(x, x))["frechet"] == pytest.approx(0, abs=1e-9)
    assert quality.compared(sums(x, x + shift))["frechet"] == pytest.approx((shift**2).sum())
    # Of normal distributions with one covariance and twice its root: the trace of the covariance.
    spread = np.trace(np.cov(x.T, bias=True))
    centred = x - x.mean(0)
    assert quality.compared(sums(centred, 2 * centred))["frechet"] == pytest.approx(spread)
    assert "collapsed" not in caplog.text
    assert quality.compared(sums(x, 0.1 * x))["spread"] == pytest.approx(0.01)
    assert "collapsed" in caplog.text


def test_images_are_square_and_bounded(tmp_path):
    assert to_images(np.full((2, 16), 3.0)).shape == (2, 4, 4, 1)
    assert to_images(np.full((2, 16), 3.0)).max() == 1
    with pytest.raises(UsageError, match="no square"):
        to_images(np.zeros((2, 15)))
    write_sheet(tmp_path / "a.png", np.zeros((3, 4, 4, 3)))
    assert json.dumps(sorted(p.name for p in tmp_path.iterdir())) == '["a.png"]'
