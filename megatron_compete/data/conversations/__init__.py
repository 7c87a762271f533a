"""Visual instruction data: LLaVA's JSON and a folder of images as samples for `LLaVAModel`.

config.py            the settings, and their flags; job_rules.py: what else a job must be like
build.py             from settings to datasets: begin here

json_index.py        where samples lie in a JSON array or JSON Lines, without parsing all of it
conversation.py      a sample as LLaVA writes it, checked
chat.py              as token ids, and which of them are learned; templates.py: named chat templates
image_files.py       images found within their folder, and decoded as upright RGB
pixels.py            as the tower's image processor has them; tiles.py: cut into a grid
sample.py            a sample's tensors, packs, microbatches

reader.py            one path for checks and training
checks.py            every sample looked at before training; bad_samples.py: what can be wrong
sample_list.py       the usable ones, written once and read by all ranks
order.py             which sample is the i-th; packing.py: which share a sequence
dataset.py           the map-style dataset; energon.py: the same samples out of megatron-energon

inspect_conversations.py   the command                                     (megatron-compete conversations)
"""
