"""The job's life on a cluster: run folders, submission, chains of jobs, status. Nothing here imports torch or Megatron."""
