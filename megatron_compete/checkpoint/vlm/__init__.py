"""Vision-language models in and out: the language model goes the way of any other, with tower and projector beside it.

folders.py     the parts of a Hugging Face model, whose tensors have names of their own in each layout
reading.py     a LLaVA, or a tower, a projector and a language model, to import
fresh.py       what a composed model has of no part: a projector, and rows for the image token
upcycling.py   parts as mixtures of experts
writing.py     a checkpoint as a LLaVA
processor.py   the files that turn pictures and prompts into a model's inputs
template.py    the chat template that training rendered
"""
