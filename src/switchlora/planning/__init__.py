"""`switchlora plan`: what a training would need on so many devices, before anybody rents them.

A decoder layer is like the next. So a model of two layers is built, without memory, by the very code that trains,
looked at (`outline`), and multiplied: tensors by their shapes, activations by what autograd saves, FLOPs by what runs.
How the strategies share tensors out, and what then travels, are formulas (`shares`, `traffic`), which tests hold
against runs.
"""
