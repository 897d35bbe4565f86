"""Options of commands, each said once: flags, YAML keys, checks, help and reference pages follow from its field.

fields.py   a class of options: sources, defaults, messages        values.py   what a value may be
"""
