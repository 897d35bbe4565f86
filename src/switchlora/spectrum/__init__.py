"""`switchlora spectrum`: singular values of a model's matrices, and of what training changed in them.

options.py    what can be asked for            measures.py   singular values -> effective and stable rank
layers.py     a model -> its matrices by type  reference.py  what a model is compared with
command.py    all of it, in order
"""
