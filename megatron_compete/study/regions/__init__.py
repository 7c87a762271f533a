"""The regions task: one MoE layer learns a teacher whose hidden regions are known, so that routing has a right answer.

    python -m megatron_compete.study.regions --router topk --probe-log probe.jsonl

teacher.py    regions, maps, inputs: pure functions of the seed
student.py    one MoE layer of Megatron-Core with any router of this package, and the oracle
growth.py     a student that begins from another one's experts
flops.py      operations of a step, scoring passes included
train.py      the loop, on `trainers.ModelCompetition` and Megatron-Core's schedule of microbatches
arguments.py  the flags: Megatron's and this package's names for what they share
"""
