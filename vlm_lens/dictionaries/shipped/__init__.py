"""The dictionary that ships with the package, and the program that makes it.

`python -m vlm_lens.dictionaries.shipped` trains it again: an autoencoder of the patches of
toy-idefics2, with a card of what its features are about, measured against the tasks' tables.
"""
