"""A corpus to `.bin/.idx`: shards assigned to workers, kept as parts in a work folder, joined when all are there.

job.py        what to do: every flag with its meaning
identity.py   what makes two runs the same job, and what to say when they are not
encode.py     texts -> ids, a batch at a time
parts.py      a worker's part files and the journal of its finished shards
shard.py      one shard: read, encoded, written as a part
folder.py     the work folder: lock, job, finished shards
scheduler.py       which shard next, and what is finished
workers.py    worker processes of this node       mpi.py   many nodes
assemble.py   parts -> dataset, manifest and report
"""
