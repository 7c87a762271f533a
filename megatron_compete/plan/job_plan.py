"""Everything the planner says about one job on one kind of machine."""

from dataclasses import dataclass

from megatron_compete.plan.flops import StepFLOPs, step_flops
from megatron_compete.plan.hardware import Hardware
from megatron_compete.plan.job import Job
from megatron_compete.plan.memory import StageMemory, megatron_estimate, stage_memory
from megatron_compete.plan.parameters import Parameters, count_parameters
from megatron_compete.plan.times import PipelineTimes, pipeline_times
from megatron_compete.plan.traffic import StepTraffic, Traffic


@dataclass(frozen=True)
class JobPlan:
    """Parameters and state are counted as Megatron builds them; activations, traffic and times are estimates."""

    job: Job
    hardware: Hardware
    parameters: Parameters
    memory: tuple[StageMemory, ...]
    """Of a rank of each pipeline stage, the first stage first."""
    traffic: tuple[Traffic, ...]
    flops: StepFLOPs
    times: PipelineTimes
    megatron_memory: tuple[float, float] | None
    """Megatron's own estimate of the fullest rank: weights with optimizer, and activations, in bytes; None where it has none."""

    @property
    def fullest(self) -> StageMemory:
        """The stage whose ranks hold most at a competing step."""
        return max(self.memory, key=lambda stage: stage.competing)

    @property
    def memory_limit(self) -> float:
        """Bytes of a GPU that the plan may fill."""
        return self.hardware.memory_bytes * self.hardware.usable_memory

    @property
    def fits(self) -> bool:
        """Whether every stage's ranks fit, competing steps included."""
        return self.fullest.competing <= self.memory_limit

    def utilization(self, flops: float, seconds: float) -> float:
        """MFU: operations of a step over all ranks, as a share of what the devices' bf16 (in FP8, FP8) peak allows."""
        fp8 = self.job.transformer.fp8 and self.hardware.fp8_flops
        peak = self.hardware.fp8_flops if fp8 and self.hardware.fp8_flops else self.hardware.bf16_flops
        return flops / (seconds * peak * self.job.sizes.world)


def plan_job(job: Job, hardware: Hardware) -> JobPlan:
    """Price a job; no GPU, no process group, seconds for ten thousand ranks."""
    parameters = count_parameters(job)
    return JobPlan(
        job=job,
        hardware=hardware,
        parameters=parameters,
        memory=stage_memory(job, parameters),
        traffic=StepTraffic(job, parameters).all(),
        flops=step_flops(job),
        times=pipeline_times(job, hardware, parameters),
        megatron_memory=megatron_estimate(job),
    )
