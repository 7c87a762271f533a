import pytest

from megatron_compete.plan.sharding import Sharding
from megatron_compete.plan.tensors import Tensors
from tests.plan.jobs import job_of

TENSORS = (Tensors("mlp", 600), Tensors("norm", 200))
FSDP = "--bf16 --use-megatron-fsdp --data-parallel-sharding-strategy"
CKPT = "--ckpt-format fsdp_dtensor --no-gradient-accumulation-fusion --router topk"


@pytest.fixture(autouse=True)
def many_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Megatron refuses FSDP under the launcher's setting, and says so."""
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "8")


def test_plain_and_distributed_optimizer() -> None:
    plain, shared = job_of("--bf16", 4), job_of("--bf16 --use-distributed-optimizer", 4)
    assert Sharding.of(plain).optimizer_ranks(plain, expert=False) == 1
    assert Sharding.of(shared).optimizer_ranks(shared, expert=False) == 4
    sent = Sharding.of(plain).sent(plain, TENSORS, 4)
    assert (sent.gradients, sent.parameters) == (2 * 800 * 4 * 3 / 4, 0.0)
    sent = Sharding.of(shared).sent(shared, TENSORS, 4)
    assert (sent.gradients, sent.parameters) == (800 * 4 * 3 / 4, 800 * 2 * 3 / 4)


def test_instances_share_the_state_out_over_fewer_ranks() -> None:
    job = job_of("--bf16 --use-distributed-optimizer --num-distributed-optimizer-instances 2", 4)
    assert Sharding.of(job).optimizer_ranks(job, expert=False) == 2
    one = job_of("--bf16 --use-distributed-optimizer", 4)
    assert Sharding.of(job).sent(job, TENSORS, 4).gradients > Sharding.of(one).sent(one, TENSORS, 4).gradients


@pytest.mark.parametrize(
    ("strategy", "gradients", "weights"),
    [("optim", False, False), ("optim_grads", True, False), ("optim_grads_params", True, True)],
)
def test_fully_sharded(strategy: str, gradients: bool, weights: bool) -> None:
    job = job_of(f"{FSDP} {strategy} {CKPT} --global-batch-size 16", 4)
    sharding = Sharding.of(job)
    assert (sharding.gradients, sharding.weights) == (gradients, weights)
    assert job.microbatches == 2
    assert sharding.held_gradients(job, 800, expert=False) == 800 * 4 / (4 if gradients else 1)
    assert sharding.held_weights(job, TENSORS) == (800 * 2 / 4 + 2 * 600 * 2 if weights else 800 * 2)
    sent = sharding.sent(job, TENSORS, 4)
    assert sent.gradients == 800 * 4 * 3 / 4 * (2 if gradients else 1)
    assert sent.parameters == 800 * 2 * 3 / 4 * (2 * 2 if weights else 1)
