"""The job's life on a cluster. Nothing here imports torch or Megatron.

submit.py         the command: a recipe or a chain as run folders that Slurm runs
planned_job.py    one job of a submission; pretrain_job.py: what its run folder decides of a recipe
chain.py          jobs that follow one another; chain_file.py: their YAML, tool_jobs.py: the jobs around training
layout_check.py   would Megatron take it? asked before the queue
settings.py       cluster.env: the settings and their checks; env_file.py: its lines as bash reads them
run_folder.py     what a run folder holds; snapshot.py: the code that a job runs
sbatch.py         the batch script, and sbatch; times.py: Slurm's time limits
queue.py          what Slurm's queue says of jobs
status.py         what has become of a run; status_report.py: the command that says so
"""
