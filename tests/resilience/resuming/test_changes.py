"""Changes of a run that goes on: rules on validated arguments, and what the trainer and the planner make of them."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.layout import scope
from megatron_compete.layout.rules import BrokenRules
from megatron_compete.report.scalars import read_scalars
from megatron_compete.resilience.resuming.changes import SavedRun, broken_changes, check_changes, notes_on
from megatron_compete.resilience.resuming.saved_run import read_saved_run
from tests.plan.jobs import VISION, job_of
from tests.training.runs import losses, train

COSINE = "--lr-decay-style cosine --lr-warmup-iters 2 --min-lr 1e-4"
CONSTANT = "--lr-decay-style constant"
OVERRIDE, KEEP = "--override-opt_param-scheduler", "--use-checkpoint-opt_param-scheduler"


def validated(flags: str) -> argparse.Namespace:
    return job_of(flags).args


def saved(flags: str = COSINE, iteration: int = 5, **more: Any) -> SavedRun:
    """A run of 10 iterations of 8 samples, saved in its middle."""
    args = validated(flags)
    args.consumed_train_samples = 8 * iteration
    vars(args).update(more)
    return SavedRun(args, iteration)


ALLOWED = {
    "nothing": (COSINE, COSINE),
    "micro batch": (COSINE, f"{COSINE} --micro-batch-size 4"),
    "longer at a constant rate": (CONSTANT, f"{CONSTANT} --train-iters 20"),
    "larger batch at a constant rate": (CONSTANT, f"{CONSTANT} --global-batch-size 16"),
    "longer, decay as it was": (f"{COSINE} --lr-decay-iters 10", f"{COSINE} --lr-decay-iters 10 --train-iters 20"),
    "longer, decay that follows as it was": (COSINE, f"{COSINE} --lr-decay-iters 10 --train-iters 20"),
    "shorter, decay as it was": (COSINE, f"{COSINE} --lr-decay-iters 10 --train-iters 6"),
    "nothing left to do": (COSINE, f"{COSINE} --lr-decay-iters 10 --train-iters 5"),
    "another rate, overridden": (COSINE, f"{COSINE} --lr 5e-4 {OVERRIDE}"),
    "another rate, kept": (COSINE, f"{COSINE} --lr 5e-4 {KEEP}"),
    "smallest rate of a constant one": (CONSTANT, f"{CONSTANT} --min-lr 1e-5"),
    "weights alone": (COSINE, f"{COSINE} --seq-length 16 --lr 5e-4 --finetune"),
    "from topk to competition": (f"{COSINE} --router topk", COSINE),
}
REFUSED = {
    "longer": (f"{COSINE} --train-iters 20", ["--train-iters 20 is 10 in the checkpoint", "160 instead of 80", KEEP, OVERRIDE]),
    "shorter": (f"{COSINE} --train-iters 8", ["--train-iters 8 is 10 in the checkpoint", KEEP, OVERRIDE]),
    "too short": (f"{COSINE} --lr-decay-iters 10 --train-iters 4", ["--train-iters 4 is before iteration 5"]),
    "rate": (f"{COSINE} --lr 5e-4", ["--lr 0.0005 is 0.001 in the checkpoint", KEEP, OVERRIDE]),
    "batch": (f"{COSINE} --global-batch-size 16", ["--global-batch-size 16 is 8 in the checkpoint", KEEP, OVERRIDE]),
    "style": (COSINE.replace("cosine", "linear"), ["--lr-decay-style linear is cosine in the checkpoint"]),
    "warm-up": (f"{COSINE} --lr-warmup-iters 3", ["--lr-warmup-iters 3 is 2 in the checkpoint"]),
    "weight decay": (f"{COSINE} --weight-decay 0.3", ["weight decay 0.3 instead of 0.01"]),
    "both": (f"{COSINE} {KEEP} {OVERRIDE}", ["exclude each other"]),
    "sequence": (f"{COSINE} --seq-length 16", ["--seq-length 16 is 32 in the checkpoint", "--finetune"]),
    "precision": (f"{COSINE} --bf16", ["the precision (--bf16, --fp16)", "--no-load-optim"]),
    "optimizer": (f"{COSINE} --optimizer sgd", ["--optimizer sgd is adam in the checkpoint", "--no-load-optim"]),
    "layers": (f"{COSINE} --num-layers 6", ["--num-layers 6 is 4 in the checkpoint"]),
    "rotation": (f"{COSINE} --rotary-base 500000", ["--rotary-base 500000 is 10000 in the checkpoint"]),
    "sinks": (f"{COSINE} --softmax-type off-by-one", ["--softmax-type off-by-one is vanilla in the checkpoint"]),
    "a tower": (f"{COSINE} {VISION}", ["--vision-model-type siglip is None in the checkpoint"]),
    "norms": (f"{COSINE} --qk-layernorm", ["--qk-layernorm True is False in the checkpoint"]),
}  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--vision-num-layers 2", "--vision-num-layers 2 is 3 in the checkpoint"),
        ("--experts-in vision", "--experts-in ('vision',) is"),
        ("--img-h 32", "--img-h 32 is 16 in the checkpoint"),
        ("--freeze-LM", "--freeze-LM True is False in the checkpoint, and its optimizer state is of other weights"),
    ],
)
def test_another_tower_is_another_model(flags: str, said: str) -> None:
    before = saved(f"{COSINE} {VISION}")
    (message,) = broken_changes(before, validated(f"{COSINE} {VISION} {flags}"))
    assert message.startswith(said.replace("('vision',)", str(validated(f"{VISION} --experts-in vision").experts_in)))
    assert broken_changes(before, validated(f"{COSINE} {VISION}")) == ()


@pytest.mark.parametrize("name", ALLOWED)
def test_what_is_exact_or_asked_for_goes_on(name: str) -> None:
    before, now = ALLOWED[name]
    assert broken_changes(saved(before), validated(now)) == ()


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_is_one_line_with_flag_value_and_way_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scope, "OUT_OF_SCOPE", ())
    now, said = REFUSED[name]
    args = validated(now)
    (message,) = broken_changes(saved(), args)
    assert "\n" not in message and all(part in message for part in said), message
    with pytest.raises(CompeteError):
        check_changes(saved(), args)


def test_a_hybrid_models_stages_may_change_and_its_layers_not() -> None:
    before, now = saved(hybrid_layer_pattern="*E*E/*E"), validated(COSINE)
    now.hybrid_layer_pattern = "*E|*E/*E"
    assert broken_changes(before, now) == ()
    now.hybrid_layer_pattern = "*EE*/*E"
    (message,) = broken_changes(before, now)
    assert message.startswith("--hybrid-layer-pattern *EE*/*E is *E*E/*E in the checkpoint")


def test_no_optimizer_state() -> None:
    before = saved(no_save_optim=True)
    (message,) = broken_changes(before, validated(COSINE))
    assert "--no-save-optim" in message and "--no-load-optim" in message and "--finetune" in message
    args = validated(f"{COSINE} --no-load-optim --lr 5e-4")
    assert broken_changes(before, args) == ()
    assert "begin anew at iteration 5" in "".join(notes_on(before, args))


def test_samples_instead_of_iterations_are_the_same_course() -> None:
    flags = "--lr-decay-style cosine --lr-warmup-samples 16 --min-lr 1e-4 --train-iters=false --train-samples"
    assert broken_changes(saved(), validated(f"{flags} 80")) == ()
    assert broken_changes(saved(), validated(f"{flags} 160"))
    (message,) = broken_changes(saved(), validated(f"{flags} 32 --lr-decay-samples 80"))
    assert message.startswith("--train-samples 32 is below the 40")


def test_what_was_kept_goes_before_what_was_asked_for() -> None:
    """A run that was extended with `KEEP` has the longer run's arguments and the shorter run's course."""
    extended = saved(f"{COSINE} --train-iters 20 {KEEP}")
    course = {
        "max_lr": 1e-3, "min_lr": 1e-4, "lr_warmup_steps": 16, "lr_decay_steps": 80, "lr_decay_style": "cosine",
        "start_wd": 0.01, "end_wd": 0.01, "wd_incr_steps": 80, "wd_incr_style": "constant",
    }  # fmt: skip
    kept = SavedRun(extended.arguments, 5, rate_schedule=course)
    assert broken_changes(kept, validated(f"{COSINE} --train-iters 20 {KEEP}")) == ()
    (message,) = broken_changes(kept, validated(f"{COSINE} --train-iters 20"))
    assert KEEP in message


def test_another_order_of_samples_is_said() -> None:
    (note,) = notes_on(saved(CONSTANT), validated(f"{CONSTANT} --train-iters 20 --seed 5"))
    assert "--seed 5 is 1234 in the checkpoint" in note and "--train-iters 20 is 10" in note and "number 40" in note
    assert notes_on(saved(), validated(COSINE)) == ()


LISTED = "12 samples (00c0ffee)"


@pytest.mark.parametrize(
    ("flags", "listed", "said"),
    [
        ("--pack-conversations --micro-batch-size 1", LISTED, "--pack-conversations True is False in the checkpoint"),
        ("--group-by-modality", LISTED, "--group-by-modality True is False in the checkpoint"),
        (
            "--use-tiling --max-num-tiles 2",
            LISTED,
            "--use-tiling True is False in the checkpoint; --max-num-tiles 2 is 1",
        ),
        ("--conversation-template plain", LISTED, "--conversation-template plain is tokenizer in the checkpoint"),
        (
            "",
            "13 samples (0badcafe)",
            f"the list of 13 samples (0badcafe) is another than the checkpoint's of {LISTED}",
        ),
    ],
)
def test_other_conversations_are_said(flags: str, listed: str, said: str) -> None:
    before, now = saved(f"{CONSTANT} {VISION}", listed_samples=LISTED), validated(f"{CONSTANT} {VISION} {flags}")
    now.listed_samples = listed
    (note,) = notes_on(before, now)
    assert note.startswith(said) and note.endswith("may come in another order, from number 40 on"), note


def test_the_same_conversations_in_a_longer_run_are_none() -> None:
    before, now = (
        saved(f"{CONSTANT} {VISION}", listed_samples=LISTED),
        validated(f"{CONSTANT} {VISION} --train-iters 20"),
    )
    assert notes_on(before, now) == ()  # as who only looks has it: no list was made
    now.listed_samples = LISTED
    assert notes_on(before, now) == ()


def test_another_sample_of_tokens_is_said() -> None:
    sampled = f"{COSINE} --compete-token-fraction 0.3"
    (note,) = notes_on(saved(COSINE), validated(sampled))
    assert "--compete-token-fraction 0.3 is 1.0 in the checkpoint" in note and "from iteration 5 on" in note
    assert notes_on(saved(sampled), validated(f"{sampled} --compete-score-chunk-tokens 64")) == ()
    assert notes_on(saved(f"{COSINE} --router topk"), validated(sampled)) == ()


def test_a_release_and_arguments_of_other_versions_are_no_changes() -> None:
    release = SavedRun(validated("--num-layers 6"), 0, release=True)
    assert broken_changes(release, validated(COSINE)) == ()
    before = saved()
    del before.arguments.seq_length, before.arguments.num_layers
    assert broken_changes(before, validated(f"{COSINE} --seq-length 16")) == ()


STEPS, MIDDLE = 6, 3
RUN = f"{COSINE} --train-iters {STEPS}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 steps, with a checkpoint in its middle."""
    folder = tmp_path_factory.mktemp("changes")
    train(1, f"{RUN} --save {folder}/ckpt --save-interval {MIDDLE} --tensorboard-dir {folder}/whole")
    (folder / "ckpt/latest_checkpointed_iteration.txt").write_text(str(MIDDLE))
    return folder


def rates_of(folder: Path) -> dict[int, float]:
    return read_scalars(folder)["learning-rate"]


def test_the_trainer_refuses_with_code_2_and_so_does_the_planner(folder: Path) -> None:
    flags = f"{COSINE} --train-iters 12 --load {folder}/ckpt"
    with pytest.raises(AssertionError, match="error: --train-iters 12 is 6 in the checkpoint: "):
        train(1, flags)
    assert isinstance(read_saved_run(folder / "ckpt"), SavedRun)
    with pytest.raises(BrokenRules, match="--train-iters 12 is 6 in the checkpoint: "):
        job_of(f"{_as_trained()} {flags}")


def _as_trained() -> str:
    """What `MODEL` of the training runs has other than that of the planner's jobs."""
    from tests.training.runs import MODEL

    return MODEL.replace("\n", " ")


def test_another_rate_is_taken_with_the_optimizers_state(folder: Path) -> None:
    half = f"--lr 5e-3 --min-lr 5e-5 --lr-decay-style cosine --lr-warmup-iters 2 --train-iters {STEPS}"
    train(1, f"{half} {OVERRIDE} --load {folder}/ckpt --tensorboard-dir {folder}/half")
    whole, found = rates_of(folder / "whole"), rates_of(folder / "half")
    assert found == pytest.approx({step: rate / 2 for step, rate in whole.items() if step > MIDDLE}, rel=1e-6)
    train(1, f"{RUN} {OVERRIDE} --load {folder}/ckpt --tensorboard-dir {folder}/same")
    undisturbed = {step: loss for step, loss in losses(folder / "whole").items() if step > MIDDLE}
    assert losses(folder / "same") == undisturbed  # so moments are the checkpoint's
    assert losses(folder / "half")[MIDDLE + 1] == undisturbed[MIDDLE + 1]
    assert losses(folder / "half")[STEPS] != undisturbed[STEPS]


def test_a_kept_course_ends_at_its_smallest_rate(folder: Path) -> None:
    train(
        1, f"{COSINE} --lr 5e-3 --train-iters {STEPS + 2} {KEEP} --load {folder}/ckpt --tensorboard-dir {folder}/kept"
    )
    whole, kept = rates_of(folder / "whole"), rates_of(folder / "kept")
    assert {step: kept[step] for step in range(MIDDLE + 1, STEPS + 1)} == {
        step: rate for step, rate in whole.items() if step > MIDDLE
    }
    assert kept[STEPS + 2] == pytest.approx(1e-4)


def test_a_longer_run_at_a_constant_rate_is_the_same_run(tmp_path: Path) -> None:
    train(1, f"--train-iters {STEPS} --tensorboard-dir {tmp_path}/whole")
    train(1, f"--train-iters {MIDDLE} --save {tmp_path}/ckpt --save-interval {MIDDLE}")
    train(1, f"--train-iters {STEPS} --load {tmp_path}/ckpt --tensorboard-dir {tmp_path}/longer")
    whole, longer = losses(tmp_path / "whole"), losses(tmp_path / "longer")
    assert longer == {step: loss for step, loss in whole.items() if step > MIDDLE}
