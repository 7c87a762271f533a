"""A corpus to `.bin/.idx`: shards assigned to workers, kept as parts in a work folder, joined when all are there.

job.py           what to do: every flag with its meaning
identity.py      what makes two runs the same job, and what to say when they are not
run.py           a job from its beginning, or from where it was stopped, to its dataset
folder.py        the work folder: lock, job, finished shards
scheduler.py     which shard next, and what is finished
coordinator.py   what workers ask for shards, and tell what became of them
workers.py       worker processes of this node; mpi.py: many nodes
shard.py         one shard: read, encoded, written as a part; line_numbers.py: where in its file a document lies
encode.py        texts to ids, a batch at a time
parts.py         a worker's part files and the journal of its finished shards
assemble.py      parts to a dataset
output.py        datasets, manifests and the list of skipped documents, all under their names at once
"""
